// Command proa is the whole cluster in one file: server, node agent, engine and
// command line. It is the only place that reads os.Args and calls os.Exit.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	_ "time/tzdata" // schedules of CronJobs name time zones; not every machine has them

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"proa.dev/cluster"
	core "proa.dev/server"
)

// version is set by the linker: git describe.
var version = "dev"

// exitCode carries a code through cobra without printing.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	if name := filepath.Base(os.Args[0]); assets[name] != nil {
		os.Exit(runAsset(name, assets[name]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	err := root().ExecuteContext(ctx)
	var code exitCode
	switch {
	case err == nil:
	case errors.As(err, &code):
		os.Exit(int(code))
	default:
		fmt.Fprintln(os.Stderr, "proa: "+err.Error())
		os.Exit(1)
	}
}

// options that every command takes.
type options struct {
	name, dataDir string
}

func (o *options) cluster() (cluster.Cluster, error) { return cluster.At(o.name, o.dataDir) }

func root() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "proa",
		Short: "Kubernetes in one small binary",
		Long: `proa runs a whole Kubernetes cluster from one file: API server and store,
controllers, scheduler, node agent with its own container engine, pod network,
service proxy and DNS. The real kubectl is inside.

Start here:
  proa up                  start a cluster on this machine (as root)
  proa demo                run the sample application
  proa kubectl get pods -A
  proa down                stop it, keeping its data
  proa delete              remove everything that was created

For tests of controllers (no root, no cluster):
  KUBEBUILDER_ASSETS=$(proa envtest path) go test ./...`,
		SilenceUsage: true, SilenceErrors: true,
		// Flags before the word kubectl are proa's own, those after it kubectl's.
		TraverseChildren: true,
	}
	onlyGroups(c)
	c.PersistentFlags().StringVar(&o.name, "name", cluster.DefaultName, "which cluster on this machine")
	c.PersistentFlags().StringVar(&o.dataDir, "data-dir", "", "where the cluster keeps its data (default /var/lib/proa/NAME)")
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())
	})
	c.AddCommand(upCommand(&o), downCommand(&o), deleteCommand(&o), statusCommand(&o), doctorCommand(&o),
		imageCommand(&o), kubectlCommand(&o), demoCommand(&o), envtestCommand(), versionCommand())
	c.CompletionOptions.HiddenDefaultCmd = false
	return c
}

// onlyGroups makes a command that only has commands below it: alone it shows its help,
// and a word that is none of them is an error.
func onlyGroups(c *cobra.Command) {
	c.SuggestionsMinimumDistance = 2
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := ""
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			hint = fmt.Sprintf("did you mean `%s %s`? ", c.CommandPath(), near[0])
		}
		return fmt.Errorf("unknown command %q; %s`%s --help` lists them", args[0], hint, c.CommandPath())
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
}

func versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the versions of proa and of the Kubernetes API it serves", Args: cobra.NoArgs,
		Run: func(c *cobra.Command, _ []string) {
			fmt.Fprintf(c.OutOrStdout(), "proa        %s\nkubernetes  %s\n", version, core.KubernetesVersion)
		}}
}

// kubectlCommand runs the real kubectl, unpacked from this file, against the
// chosen cluster.
func kubectlCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "kubectl [ARGS...]", Short: "Run the real kubectl, shipped inside this file",
		Long: `Runs kubectl against the cluster (context proa, or proa-NAME with --name
before the word kubectl). Everything after the word kubectl is kubectl's own.`,
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			env := os.Environ()
			cl, err := o.cluster()
			if err != nil {
				return err
			}
			if own := cl.Path("admin.kubeconfig"); !hasFlag(args, "--kubeconfig") && readable(own) {
				// The first of two variables with one name wins.
				env = append([]string{"KUBECONFIG=" + own}, env...)
			}
			return execKubectl(args, env)
		}}
}

// execKubectl becomes the real kubectl.
func execKubectl(args, env []string) error {
	path, err := unpack("proa-kubectl", helperDir())
	if err != nil {
		return err
	}
	return unix.Exec(path, append([]string{"kubectl"}, args...), env)
}

func hasFlag(args []string, name string) bool {
	for _, a := range args {
		if a == "--" {
			return false
		}
		if a == name || strings.HasPrefix(a, name+"=") {
			return true
		}
	}
	return false
}

func readable(path string) bool {
	f, err := os.Open(path)
	if err == nil {
		f.Close()
	}
	return err == nil
}
