// Command proa-kubectl is the real kubectl, built from k8s.io/kubectl. It is a
// separate executable, embedded compressed in proa and unpacked on first use,
// because its command tree costs 8 MB and 15–30 ms in every process that links it.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"

	_ "k8s.io/client-go/plugin/pkg/client/auth"
)

func main() {
	command := cmd.NewDefaultKubectlCommand()
	if err := cli.RunNoErrOutput(command); err != nil {
		util.CheckErr(err)
	}
	os.Exit(0)
}
