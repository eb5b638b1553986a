// Package bundle is what the engine writes down for proa-runner: how to make
// one container, or one more process in it. Both are JSON files that only root
// can read; the runner trusts them.
package bundle

import (
	"encoding/json"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Names of the files in a container's bundle directory.
const (
	RunFile  = "run.json"
	ExitFile = "exit" // written by the monitor: started code finished oom
)

// Run describes one container.
type Run struct {
	ID        string // container id, also its name below StateRoot
	StateRoot string // libcontainer's state of this sandbox's containers

	Root    Overlay
	Mounts  []ImageMount // images mounted as volumes, made before the container
	Volumes []Volume     // the image's own volumes

	User User
	Spec *specs.Spec // Root.Path and Process.User are filled in by the runner
}

// Overlay is a root file system: read-only Lowers, topmost first, and if Upper
// is set a writable layer. Target exists and lies on a private mount.
type Overlay struct {
	Lowers []string
	Upper  string
	Work   string
	Target string
}

// ImageMount is one image at Target, read-only.
type ImageMount struct{ Overlay }

// Volume is a directory of the host that starts as a copy of the image's
// content at Path, if Host is empty so far, and is mounted there.
type Volume struct{ Path, Host string }

// User says who the process runs as. Name is "user", "uid", "user:group" and so
// on, looked up in the image's own files; "" means root.
type User struct {
	Name         string
	Supplemental []uint32
	Strict       bool // do not add the groups that the image lists for the user
}

// Exec describes one more process; its user was resolved when the container started.
type Exec struct{ Process *specs.Process }

// Write stores v at path, readable for root only.
func Write(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// Read fills v from path.
func Read(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
