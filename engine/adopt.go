package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/engine/cgroup"
	"proa.dev/engine/wire"
)

// adoptPatience bounds the wait for one monitor's first answer.
const adoptPatience = 5 * time.Second

// adopt takes over what an earlier engine left in the same directories. Nothing
// of it is an error of this engine: what cannot be read is cleared away and logged.
func (e *Engine) adopt(ctx context.Context) {
	states := e.loadSandboxes()
	e.loadContainers()
	var wg sync.WaitGroup
	for _, s := range states {
		wg.Add(1)
		go func() {
			defer wg.Done()
			e.adoptSandbox(ctx, s)
		}()
	}
	wg.Wait()
	e.sweep(ctx)
}

func (e *Engine) loadSandboxes() []*sandbox {
	files, _ := filepath.Glob(filepath.Join(e.sandboxDir(), "*.json"))
	var out []*sandbox
	for _, f := range files {
		var r sandboxRecord
		cfg := &runtimeapi.PodSandboxConfig{}
		err := readJSON(f, &r)
		if err == nil {
			err = proto.Unmarshal(r.Config, cfg)
		}
		if err == nil && r.ID+".json" != filepath.Base(f) {
			err = fmt.Errorf("it is about %q", r.ID)
		}
		if err != nil {
			e.log.Warn("sandbox's record is damaged; the sandbox is removed", "file", f, "err", err)
			os.Remove(f)
			continue
		}
		tree, err := cgroup.Detect(e.monitorPid(r.ID))
		if err != nil {
			tree, err = cgroup.Detect("self")
		}
		if err != nil {
			e.log.Warn("control groups cannot be read", "err", err)
			continue
		}
		s := &sandbox{id: r.ID, config: cfg, handler: r.Handler, created: r.Created, cgroup: r.Cgroup,
			tree: tree, state: r.State, ips: r.IPs, networked: r.Network && e.cfg.Network != nil}
		if r.State != creating {
			e.names[nameOfSandbox(cfg.Metadata)] = s.id
		}
		e.sandboxes[s.id] = s
		out = append(out, s)
	}
	return out
}

// monitorPid is the number of the sandbox's monitor, or "self".
func (e *Engine) monitorPid(sandboxID string) string {
	dir := e.runDir(sandboxID)
	b, err := os.ReadFile(filepath.Join(dir, "monitor.pid"))
	if err != nil {
		return "self"
	}
	pid := strings.TrimSpace(string(b))
	// The number may be somebody else's by now; a monitor's directory is its own.
	if cwd, err := os.Readlink("/proc/" + pid + "/cwd"); err != nil || cwd != realPath(dir) {
		return "self"
	}
	return pid
}

func realPath(p string) string {
	if r, err := filepath.EvalSymlinks(p); err == nil {
		return r
	}
	return p
}

func (e *Engine) loadContainers() {
	entries, _ := os.ReadDir(e.containerDir())
	for _, ent := range entries {
		dir := filepath.Join(e.containerDir(), ent.Name())
		var r containerRecord
		cfg, res := &runtimeapi.ContainerConfig{}, &runtimeapi.LinuxContainerResources{}
		err := readJSON(filepath.Join(dir, "record.json"), &r)
		if err == nil {
			err = proto.Unmarshal(r.Config, cfg)
		}
		if err == nil {
			err = proto.Unmarshal(r.Resources, res)
		}
		s := e.sandboxes[r.Sandbox]
		if err != nil || s == nil || r.ID != ent.Name() || cfg.Metadata == nil {
			e.log.Info("half made container is removed", "dir", dir, "err", err)
			if err := os.RemoveAll(dir); err != nil {
				e.log.Warn("half made container is left behind", "dir", dir, "err", err)
			}
			continue
		}
		c := &container{id: r.ID, sandbox: s, config: cfg, imageID: r.ImageID, imageRef: r.ImageRef, stopSignal: r.StopSignal,
			created: r.Created, exited: make(chan struct{}), started: r.Started, finished: r.Finished, code: r.Code,
			reason: r.Reason, message: r.Message, user: r.User, resources: res, execs: map[string]chan int{}}
		switch {
		case r.Exited:
			c.state = runtimeapi.ContainerState_CONTAINER_EXITED
			close(c.exited)
		case r.Started != 0:
			c.state = runtimeapi.ContainerState_CONTAINER_RUNNING
		}
		e.containers[c.id] = c
		e.names[nameOfContainer(s, cfg.Metadata)] = c.id
	}
}

// adoptSandbox connects to the monitor and takes the state of its containers
// from it; without a monitor everything in the sandbox has ended.
func (e *Engine) adoptSandbox(ctx context.Context, s *sandbox) {
	dir := e.runDir(s.id)
	was := s.state // before somebody else may change it
	var l *link
	err := errors.New("sandbox was only half made")
	if was == ready {
		l, err = dialMonitor(dir, func(m wire.Message) { e.onEvent(s, m) })
	} else if was == notReady {
		err = errors.New("sandbox was being stopped")
	}
	if err == nil {
		e.follow(s, l)
		wait, cancel := context.WithTimeout(ctx, adoptPatience)
		defer cancel()
		var said []wire.Message
		err = l.each(wait, wire.Hello, nil, nil, func(a answer) { said = append(said, a.msg) })
		if err == nil {
			e.believe(s, said)
			return
		}
	}
	if was != notReady {
		e.log.Info("sandbox has ended while no engine ran", "sandbox", s.id, "why", err)
	}
	half := was == creating
	e.mu.Lock()
	s.state, s.monitor = notReady, nil
	e.mu.Unlock()
	if l != nil {
		l.close()
	}
	if pid := e.monitorPid(s.id); pid != "self" {
		// It lives but does not answer, or belongs to a sandbox that is going.
		if n, err := strconv.Atoi(pid); err == nil {
			unix.Kill(n, unix.SIGKILL)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "init.pid")); err == nil {
		if pid, err := strconv.Atoi(string(b)); err == nil && pid > 1 && isInit(pid) {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	e.mu.Lock()
	var list []*container
	for _, c := range e.containers {
		if c.sandbox == s && c.state != runtimeapi.ContainerState_CONTAINER_EXITED {
			list = append(list, c)
		}
	}
	e.mu.Unlock()
	for _, c := range list {
		_, statErr := os.Stat(filepath.Join(e.bundleDir(c.id), "exit"))
		if c.state == runtimeapi.ContainerState_CONTAINER_CREATED && statErr != nil {
			s.tree.Kill(c.cgroup(), time.Second) // it may have been on its way
			continue                             // created it remains, until somebody removes it
		}
		if err := s.tree.Kill(c.cgroup(), 5*time.Second); err != nil {
			e.log.Warn("processes of an ended container are left", "container", c.id, "err", err)
		}
		e.concludeFromFile(c)
	}
	if err := e.dismantle(ctx, s); err != nil {
		e.log.Warn("ended sandbox cannot be dismantled yet", "sandbox", s.id, "err", err)
		return
	}
	if half {
		if err := e.discard(s); err != nil {
			e.log.Warn("half made sandbox is left behind", "sandbox", s.id, "err", err)
		}
	}
}

// believe takes over what the monitor says.
func (e *Engine) believe(s *sandbox, said []wire.Message) {
	known := map[string]bool{}
	for _, m := range said {
		if m.Type == wire.OK {
			fmt.Sscan(m.Arg(1), &s.initPid)
			continue
		}
		// id, state, pid, started, code, finished, oom, user
		known[m.Arg(0)] = true
		e.mu.Lock()
		c := e.containers[m.Arg(0)]
		if c != nil && c.state != runtimeapi.ContainerState_CONTAINER_EXITED {
			c.pid, _ = strconv.Atoi(m.Arg(2))
			c.started, _ = strconv.ParseInt(m.Arg(3), 10, 64)
			c.user = m.Arg(7)
			c.state = runtimeapi.ContainerState_CONTAINER_RUNNING
		}
		e.mu.Unlock()
		if c == nil {
			continue
		}
		if m.Arg(1) == "exited" {
			code, _ := strconv.Atoi(m.Arg(4))
			finished, _ := strconv.ParseInt(m.Arg(5), 10, 64)
			e.setExited(c, int32(code), finished, reasonOf(code, m.Arg(6) == wire.FlagOOM), "")
		}
	}
	e.mu.Lock()
	var lost []*container
	for _, c := range e.containers {
		if c.sandbox == s && c.state == runtimeapi.ContainerState_CONTAINER_RUNNING && !known[c.id] {
			lost = append(lost, c)
		}
	}
	e.mu.Unlock()
	for _, c := range lost {
		e.concludeFromFile(c)
	}
}

// sweep clears away what belongs to no record: runtime directories with their
// monitors and mounts, and holds on images.
func (e *Engine) sweep(ctx context.Context) {
	entries, _ := os.ReadDir(filepath.Join(e.cfg.RunDir, "sandbox"))
	for _, ent := range entries {
		if e.sandboxes[ent.Name()] != nil {
			continue
		}
		s := &sandbox{id: ent.Name(), state: creating, config: &runtimeapi.PodSandboxConfig{}, networked: e.cfg.Network != nil}
		dir := e.runDir(s.id)
		if l, err := dialMonitor(dir, func(wire.Message) {}); err == nil {
			e.follow(s, l)
		}
		if err := e.dismantle(ctx, s); err != nil {
			e.log.Warn("remains of a sandbox cannot be cleared away", "dir", dir, "err", err)
		}
	}
	for _, owner := range e.cfg.Images.Owners() {
		if id, ok := strings.CutPrefix(owner, "container/"); ok && e.containers[id] == nil {
			if err := e.cfg.Images.ReleaseFor(owner); err != nil {
				e.log.Warn("image stays held for a container that is gone", "container", id, "err", err)
			}
		}
	}
}
