package script

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

const name = "script"

func TestSessions(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("not root; the sessions start a cluster: run them with sudo")
	}
	binary := os.Getenv("PROA")
	if binary == "" {
		binary, _ = filepath.Abs("../../bin/proa")
	}
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("%v; `make build` makes it", err)
	}
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	proa := func(args ...string) {
		t.Helper()
		c := exec.Command(binary, append([]string{"--name", name, "--data-dir", data}, args...)...)
		c.Env = append(os.Environ(), "HOME="+dir)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("proa %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	proa("up", "--kubeconfig", filepath.Join(dir, "kubeconfig"))
	t.Cleanup(func() { proa("delete") })

	// The sessions run in parallel inside this group, before the cluster goes.
	t.Run("group", func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir:                 "testdata",
			RequireExplicitExec: true,
			RequireUniqueNames:  true,
			UpdateScripts:       os.Getenv("UPDATE") != "",
			Setup: func(env *testscript.Env) error {
				ns := strings.ToLower(strings.TrimPrefix(filepath.Base(env.WorkDir), "script-"))
				env.Setenv("NS", ns)
				env.Setenv("CLUSTER", name)
				env.Setenv("DATA", data)
				env.Setenv("KUBECONFIG", filepath.Join(data, "admin.kubeconfig"))
				env.Setenv("PATH", filepath.Dir(binary)+string(os.PathListSeparator)+os.Getenv("PATH"))
				// The word proa is the binary under test with the shared cluster's name.
				out, err := exec.Command(binary, "--name", name, "--data-dir", data, "kubectl", "create", "namespace", ns).CombinedOutput()
				if err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			},
			Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
				// kubectl ARGS: the real one, in the session's namespace.
				"kubectl": func(ts *testscript.TestScript, neg bool, args []string) {
					all := append([]string{"--name", name, "--data-dir", data, "kubectl", "-n", ts.Getenv("NS")}, args...)
					result(ts, neg, ts.Exec(binary, all...))
				},
				// proa ARGS: as typed.
				"proa": func(ts *testscript.TestScript, neg bool, args []string) {
					result(ts, neg, ts.Exec(binary, args...))
				},
			},
		})
	})
}

func result(ts *testscript.TestScript, neg bool, err error) {
	switch {
	case neg && err == nil:
		ts.Fatalf("went through, should have been refused")
	case !neg && err != nil:
		ts.Fatalf("%v", err)
	}
}
