// Package binaries builds proa-monitor and proa-runner for tests, once per
// machine and state of the sources: the go command's own cache makes the second
// build cheap.
package binaries

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
)

var once = sync.OnceValues(build)

// Paths returns the helpers' paths.
func Paths() (monitor, runner string, err error) {
	dir, err := once()
	return filepath.Join(dir, "proa-monitor"), filepath.Join(dir, "proa-runner"), err
}

func build() (string, error) {
	_, here, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(here), "..", "..", "..")
	// Processes that outlive a test keep what they run: a directory per process.
	dir, err := os.MkdirTemp("", "proa-helpers-")
	if err != nil {
		return "", err
	}
	for _, b := range []struct {
		name, cgo string
		args      []string
	}{
		{"proa-monitor", "0", []string{"-ldflags", "-s -w"}},
		{"proa-runner", "1", []string{"-tags", "seccomp,netgo,osusergo", "-ldflags", "-s -w -linkmode external -extldflags -static"}},
	} {
		args := append([]string{"build", "-trimpath", "-o", filepath.Join(dir, b.name)}, b.args...)
		cmd := exec.Command("go", append(args, "./cmd/"+b.name)...)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED="+b.cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s(it needs gcc and libseccomp-dev)", b.name, err, out)
		}
		// Pages not yet written to disk would count as the helper's own memory.
		f, err := os.Open(filepath.Join(dir, b.name))
		if err != nil {
			return "", err
		}
		f.Sync()
		f.Close()
	}
	return dir, nil
}

// Remove deletes what Paths has built, if it has.
func Remove() {
	if dir, err := once(); err == nil {
		os.RemoveAll(dir)
	}
}
