package engine

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Records are what the engine remembers across its own end: replaced as a
// whole, not flushed, since what loses them (the machine's sudden end) also ends
// what they are about. A record that does not parse is treated as half made.

type sandboxRecord struct {
	ID      string
	Config  []byte // PodSandboxConfig
	Handler string
	State   sandboxState
	Created int64
	IPs     []string
	Cgroup  string // group of the pod
	Network bool   // Setup may have been called
}

type containerRecord struct {
	ID         string
	Sandbox    string
	Config     []byte // ContainerConfig
	ImageID    string
	ImageRef   string
	StopSignal string
	Created    int64
	Started    int64
	Finished   int64
	Exited     bool
	Code       int32
	Reason     string
	Message    string
	User       string // uid:gid:groups, once started
	Resources  []byte // LinuxContainerResources now in force
}

func (e *Engine) saveSandbox(s *sandbox) error {
	cfg, err := proto.Marshal(s.config)
	if err != nil {
		return err
	}
	return writeJSON(filepath.Join(e.sandboxDir(), s.id+".json"), sandboxRecord{
		ID: s.id, Config: cfg, Handler: s.handler, State: s.state, Created: s.created,
		IPs: s.ips, Cgroup: s.cgroup, Network: s.networked,
	})
}

func (e *Engine) saveContainer(c *container) error {
	cfg, err := proto.Marshal(c.config)
	if err != nil {
		return err
	}
	res, err := proto.Marshal(c.resources)
	if err != nil {
		return err
	}
	return writeJSON(filepath.Join(e.bundleDir(c.id), "record.json"), containerRecord{
		ID: c.id, Sandbox: c.sandbox.id, Config: cfg, ImageID: c.imageID, ImageRef: c.imageRef,
		StopSignal: c.stopSignal, Created: c.created, Started: c.started, Finished: c.finished,
		Exited: c.state == runtimeapi.ContainerState_CONTAINER_EXITED, Code: c.code,
		Reason: c.reason, Message: c.message, User: c.user, Resources: res,
	})
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return os.Rename(path+".new", path)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
