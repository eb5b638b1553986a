package script

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

const name = "script"

// sessions that run at once: most of a session is waiting.
const sessions = "6"

func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		flag.Set("test.parallel", sessions)
	}
	os.Exit(m.Run())
}

func TestSessions(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("not root; the sessions start a cluster: run them with sudo")
	}
	binary := proaBinary(t)
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
	built := make(chan error, 1)
	archive := filepath.Join(dir, "busybox.tar")
	go func() { built <- buildImage(dir, archive) }()
	proa("up", "--kubeconfig", filepath.Join(dir, "kubeconfig"), "--node", name+"-node")
	t.Cleanup(func() { proa("delete") })
	if err := <-built; err != nil {
		t.Fatal(err)
	}
	proa("image", "import", archive)

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
				env.Setenv("NODE", name+"-node")
				env.Setenv("HOME", env.WorkDir)
				env.Setenv("KUBECONFIG", filepath.Join(data, "admin.kubeconfig"))
				bin := filepath.Join(env.WorkDir, ".bin")
				env.Setenv("PATH", bin+string(os.PathListSeparator)+filepath.Dir(binary)+string(os.PathListSeparator)+os.Getenv("PATH"))
				// The program kubectl, for sessions that run it in the background.
				if err := os.MkdirAll(bin, 0o755); err != nil {
					return err
				}
				text := fmt.Sprintf("#!/bin/sh\nexec '%s' --name %s --data-dir '%s' kubectl -n %s \"$@\"\n", binary, name, data, ns)
				if err := os.WriteFile(filepath.Join(bin, "kubectl"), []byte(text), 0o755); err != nil {
					return err
				}
				// The word proa is the binary under test with the shared cluster's name.
				out, err := exec.Command(binary, "--name", name, "--data-dir", data, "kubectl", "create", "namespace", ns).CombinedOutput()
				if err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			},
			Cmds: commands(binary),
		})
	})
}

func proaBinary(t *testing.T) string {
	t.Helper()
	binary := os.Getenv("PROA")
	if binary == "" {
		binary, _ = filepath.Abs("../../bin/proa")
	}
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("%v; `make build` makes it", err)
	}
	return binary
}

// buildImage makes an archive with proa/busybox:1: a shell with its applets, and
// web of test/machine, which answers each request with VERSION and the pod's name.
func buildImage(dir, archive string) error {
	run := func(name string, args ...string) error {
		c := exec.Command(name, args...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w\n%s", name, args[0], err, out)
		}
		return nil
	}
	mkimage, web := filepath.Join(dir, "mkimage"), filepath.Join(dir, "web")
	if err := run("go", "build", "-o", mkimage, "../../tools/mkimage"); err != nil {
		return err
	}
	if err := run("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", web, "../machine/web"); err != nil {
		return err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w; `make deps` installs busybox-static", err)
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return err
	}
	args := []string{"-o", archive, "-name", "proa/busybox:1", "-file", busybox + ":/bin/busybox:755", "-file", web + ":/bin/web:755",
		"-dir", "/tmp:1777", "-dir", "/root:700", "-dir", "/etc", "-cmd", "sh"}
	for _, a := range strings.Fields(string(applets)) {
		if a != "busybox" {
			args = append(args, "-link", "/bin/busybox:/bin/"+a)
		}
	}
	return run(mkimage, args...)
}
