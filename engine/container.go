package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/engine/bundle"
	"proa.dev/engine/wire"
	"proa.dev/env"
)

const (
	// codeStartError and codeUnknown are exit codes of containers that never
	// ran, or whose end nobody saw.
	codeStartError = 128
	codeUnknown    = 255

	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOM        = "OOMKilled"
	reasonStartError = "StartError"
	reasonUnknown    = "Unknown"

	// killPatience is how long a killed container may take to be gone.
	killPatience = 2 * time.Minute
)

// container is one container. Below the line everything is guarded by Engine.mu.
type container struct {
	id         string
	sandbox    *sandbox
	config     *runtimeapi.ContainerConfig
	imageID    string
	imageRef   string
	stopSignal string
	created    int64
	exited     chan struct{} // closed when state becomes EXITED
	stdinOnce  sync.Once
	// ---
	state     runtimeapi.ContainerState
	starting  bool
	removing  bool
	pid       int
	started   int64
	finished  int64
	code      int32
	reason    string
	message   string
	user      string
	resources *runtimeapi.LinuxContainerResources
	execs     map[string]chan int // exec id → exit code
}

func (c *container) namespaces() *runtimeapi.NamespaceOption {
	return c.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

// ownPids reports whether the container has a process namespace of its own.
func (c *container) ownPids() bool {
	return c.namespaces().GetPid() == runtimeapi.NamespaceMode_CONTAINER
}

// cgroup is the container's group.
func (c *container) cgroup() string { return filepath.Join(c.sandbox.cgroup, c.id) }

func (c *container) logPath() string {
	if c.config.LogPath == "" || c.sandbox.config.LogDirectory == "" {
		return ""
	}
	return filepath.Join(c.sandbox.config.LogDirectory, c.config.LogPath)
}

func nameOfContainer(s *sandbox, m *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("container/%s/%s/%d", s.id, m.GetName(), m.GetAttempt())
}

func holdOwner(containerID string) string { return "container/" + containerID }

// CreateContainer writes down a container; nothing runs yet.
func (e *Engine) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	cfg := req.GetConfig()
	if cfg.GetMetadata().GetName() == "" {
		return nil, status.Error(codes.InvalidArgument, "create container: metadata needs a name")
	}
	name := cfg.Metadata.Name
	e.mu.Lock()
	s, err := e.sandbox(req.GetPodSandboxId())
	if err == nil && s.state != ready {
		err = status.Errorf(codes.FailedPrecondition, "create container %q: sandbox %q is not ready", name, s.id)
	}
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	ref := cfg.GetImage().GetImage()
	img, ok := e.cfg.Images.Get(ref)
	if !ok {
		return nil, status.Errorf(codes.NotFound, "create container %q: image %q is not on this machine; pull it first", name, ref)
	}
	c := &container{
		id: e.newID(), sandbox: s, config: cfg, imageID: img.ID, imageRef: imageRef(img), created: e.now(),
		exited: make(chan struct{}), resources: cfg.GetLinux().GetResources(),
		stopSignal: stopSignal(cfg.StopSignal, img.Config.Config.StopSignal), execs: map[string]chan int{},
	}
	if c.resources == nil {
		c.resources = &runtimeapi.LinuxContainerResources{}
	}
	if _, err := parseSignal(c.stopSignal); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "create container %q: %v", name, err)
	}
	e.mu.Lock()
	err = e.reserve(nameOfContainer(s, cfg.Metadata), c.id)
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := e.layOut(c, img); err != nil {
		e.clear(c)
		return nil, fmt.Errorf("create container %q: %w", name, err)
	}
	e.mu.Lock()
	if s.state != ready {
		e.mu.Unlock()
		e.clear(c)
		return nil, status.Errorf(codes.FailedPrecondition, "create container %q: sandbox %q is not ready", name, s.id)
	}
	e.containers[c.id] = c
	e.mu.Unlock()
	e.emit(c.id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return &runtimeapi.CreateContainerResponse{ContainerId: c.id}, nil
}

// clear removes what a container has outside memory, and its name.
func (e *Engine) clear(c *container) error {
	dir := e.bundleDir(c.id)
	if err := c.sandbox.tree.Remove(c.cgroup()); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := e.cfg.Images.ReleaseFor(holdOwner(c.id)); err != nil {
		return err
	}
	os.RemoveAll(filepath.Join(e.runDir(c.sandbox.id), "lc", c.id))
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.containers, c.id)
	if n := nameOfContainer(c.sandbox, c.config.Metadata); e.names[n] == c.id {
		delete(e.names, n)
	}
	return nil
}

// StartContainer starts a created container; it is RUNNING after it, or EXITED
// with StartError.
func (e *Engine) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	e.mu.Lock()
	c, err := e.container(req.GetContainerId())
	if err == nil && (c.state != runtimeapi.ContainerState_CONTAINER_CREATED || c.starting || c.removing) {
		err = status.Errorf(codes.FailedPrecondition, "start container %q: it is %s, not created", c.id, stateWord(c))
	}
	if err == nil && c.sandbox.state != ready {
		err = status.Errorf(codes.FailedPrecondition, "start container %q: sandbox %q is not ready", c.id, c.sandbox.id)
	}
	if err != nil {
		e.mu.Unlock()
		return nil, err
	}
	c.starting = true
	l := c.sandbox.monitor
	e.mu.Unlock()

	// Once begun a start is carried through: its outcome must be known.
	err = e.launch(context.WithoutCancel(ctx), c, l)
	e.mu.Lock()
	c.starting = false
	e.mu.Unlock()
	if err != nil {
		if errors.Is(err, errMonitorGone) {
			// It may have started something before it died.
			if kerr := c.sandbox.tree.Kill(c.cgroup(), 5*time.Second); kerr != nil {
				e.log.Warn("processes of a container that failed to start are left", "container", c.id, "err", kerr)
			}
		}
		e.setExited(c, codeStartError, e.now(), reasonStartError, err.Error())
		return nil, fmt.Errorf("start container %q: %w", c.id, err)
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

func (e *Engine) launch(ctx context.Context, c *container, l *link) error {
	if err := e.prepareStart(c); err != nil {
		return err
	}
	log := c.logPath()
	if log != "" {
		if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
			return err
		}
	}
	var flags []string
	for _, f := range []struct {
		on   bool
		name string
	}{{c.config.Stdin, wire.FlagStdin}, {c.config.StdinOnce, wire.FlagStdinOnce}, {c.config.Tty, wire.FlagTTY}, {!c.ownPids(), wire.FlagShared}} {
		if f.on {
			flags = append(flags, f.name)
		}
	}
	dir := e.bundleDir(c.id)
	a, err := l.call(ctx, wire.Start, []string{c.id, e.cfg.RunnerPath, dir, log, filepath.Join(dir, bundle.ExitFile),
		strings.Join(flags, ","), c.sandbox.tree.OOMFile(c.cgroup()), strings.Join(c.sandbox.tree.Killers(c.cgroup()), "\n")})
	if err != nil {
		return err
	}
	pid, _ := strconv.Atoi(a.msg.Arg(0))
	e.mu.Lock()
	c.pid, c.user = pid, a.msg.Arg(1)
	if c.started == 0 {
		c.started, _ = strconv.ParseInt(a.msg.Arg(2), 10, 64)
	}
	emit := false
	if c.state == runtimeapi.ContainerState_CONTAINER_CREATED { // or its end was heard first
		c.state, emit = runtimeapi.ContainerState_CONTAINER_RUNNING, true
	}
	err = e.saveContainer(c)
	e.mu.Unlock()
	if emit {
		e.emit(c.id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	}
	if err != nil {
		e.log.Warn("container's record is out of date", "container", c.id, "err", err)
	}
	return nil
}

// onEvent takes what a monitor reports.
func (e *Engine) onEvent(s *sandbox, m wire.Message) {
	switch m.Type {
	case wire.Exit: // id, code, finished, oom, pid, started
		e.mu.Lock()
		c := e.containers[m.Arg(0)]
		e.mu.Unlock()
		if c == nil || c.sandbox != s {
			return
		}
		code, _ := strconv.Atoi(m.Arg(1))
		finished, _ := strconv.ParseInt(m.Arg(2), 10, 64)
		started, _ := strconv.ParseInt(m.Arg(5), 10, 64)
		e.mu.Lock()
		first := c.started == 0
		if first {
			c.started = started
		}
		e.mu.Unlock()
		if first {
			e.emit(c.id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
		}
		e.setExited(c, int32(code), finished, reasonOf(code, m.Arg(3) == wire.FlagOOM), "")
	case wire.ExecExit: // exec id, code
		code, _ := strconv.Atoi(m.Arg(1))
		e.mu.Lock()
		for _, c := range e.containers {
			if ch := c.execs[m.Arg(0)]; ch != nil && c.sandbox == s {
				ch <- code
				delete(c.execs, m.Arg(0))
			}
		}
		e.mu.Unlock()
	}
}

func reasonOf(code int, oom bool) string {
	switch {
	case code == 0:
		return reasonCompleted
	case oom:
		return reasonOOM
	}
	return reasonError
}

// setExited records a container's end, once.
func (e *Engine) setExited(c *container, code int32, finished int64, reason, message string) {
	e.mu.Lock()
	if c.state == runtimeapi.ContainerState_CONTAINER_EXITED {
		e.mu.Unlock()
		return
	}
	c.state = runtimeapi.ContainerState_CONTAINER_EXITED
	c.code, c.finished, c.reason, c.message = code, finished, reason, message
	delete(e.cpuSamples, c.id)
	if err := e.saveContainer(c); err != nil {
		e.log.Warn("container's record is out of date", "container", c.id, "err", err)
	}
	close(c.exited)
	e.mu.Unlock()
	e.emit(c.id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	if err := c.sandbox.tree.Remove(c.cgroup()); err != nil {
		e.log.Debug("control group is still busy", "container", c.id, "err", err)
	}
}

// StopContainer asks a container to end and kills it after the timeout.
func (e *Engine) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	e.mu.Lock()
	c, err := e.container(req.GetContainerId())
	e.mu.Unlock()
	if err != nil {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err := e.stop(ctx, c, time.Duration(max(req.GetTimeout(), 0))*time.Second); err != nil {
		return nil, fmt.Errorf("stop container %q: %w", c.id, err)
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func (e *Engine) stop(ctx context.Context, c *container, grace time.Duration) error {
	for {
		e.mu.Lock()
		state, starting, l := c.state, c.starting, c.sandbox.monitor
		e.mu.Unlock()
		switch {
		case starting:
			// It is about to run, or to fail.
			if !env.Sleep(ctx, e.clock, 2*time.Millisecond) {
				return ctx.Err()
			}
			continue
		case state != runtimeapi.ContainerState_CONTAINER_RUNNING:
			return nil
		case l == nil:
			e.endOrphans(c.sandbox)
			return nil
		}
		if grace > 0 {
			sig, err := parseSignal(c.stopSignal)
			if err != nil {
				sig = unix.SIGTERM
			}
			if _, err := l.call(ctx, wire.Kill, []string{c.id, strconv.Itoa(int(sig)), ""}); err != nil && !errors.Is(err, errMonitorGone) {
				return err
			}
			t := e.clock.NewTimer(grace)
			select {
			case <-c.exited:
				t.Stop()
				return nil
			case <-ctx.Done():
				t.Stop()
				return ctx.Err()
			case <-t.C():
			}
		}
		if _, err := l.call(ctx, wire.Kill, []string{c.id, strconv.Itoa(int(unix.SIGKILL)), wire.FlagAll}); err != nil && !errors.Is(err, errMonitorGone) {
			return err
		}
		t := time.NewTimer(killPatience) // the kernel's time, not the engine's
		defer t.Stop()
		select {
		case <-c.exited:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			return fmt.Errorf("it is still there %s after SIGKILL", killPatience)
		}
	}
}

// endOrphans ends containers whose monitor is dead.
func (e *Engine) endOrphans(s *sandbox) {
	e.mu.Lock()
	var list []*container
	for _, c := range e.containers {
		if c.sandbox == s && c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
			list = append(list, c)
		}
	}
	initPid := s.initPid
	e.mu.Unlock()
	for _, c := range list {
		if err := s.tree.Kill(c.cgroup(), 5*time.Second); err != nil {
			e.log.Warn("processes of an ended container are left", "container", c.id, "err", err)
		}
		e.concludeFromFile(c)
	}
	if s.sharedPids() && initPid > 1 && isInit(initPid) {
		unix.Kill(initPid, unix.SIGKILL)
	}
}

// isInit guards against a process number that is somebody else's by now.
func isInit(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return err == nil && string(b) == "proa-monitor\x00init\x00"
}

// concludeFromFile ends a container by what its monitor wrote, or as unknown.
func (e *Engine) concludeFromFile(c *container) {
	b, err := os.ReadFile(filepath.Join(e.bundleDir(c.id), bundle.ExitFile))
	f := strings.Fields(string(b)) // started code finished [oom]
	if err != nil || len(f) < 3 {
		e.setExited(c, codeUnknown, e.now(), reasonUnknown, "nobody saw the container's end")
		return
	}
	started, _ := strconv.ParseInt(f[0], 10, 64)
	code, _ := strconv.Atoi(f[1])
	finished, _ := strconv.ParseInt(f[2], 10, 64)
	e.mu.Lock()
	if c.started == 0 {
		c.started = started
	}
	e.mu.Unlock()
	e.setExited(c, int32(code), finished, reasonOf(code, len(f) > 3 && f[3] == wire.FlagOOM), "")
}

// RemoveContainer removes a container, ending it first if need be.
func (e *Engine) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	e.mu.Lock()
	c, err := e.container(req.GetContainerId())
	e.mu.Unlock()
	if err != nil {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	if err := e.remove(ctx, c); err != nil {
		return nil, fmt.Errorf("remove container %q: %w", c.id, err)
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (e *Engine) remove(ctx context.Context, c *container) error {
	e.mu.Lock()
	if c.removing {
		e.mu.Unlock()
		return status.Error(codes.Unavailable, "it is being removed already")
	}
	c.removing = true
	e.mu.Unlock()
	err := e.stop(ctx, c, 0)
	if err == nil {
		e.mu.Lock()
		l := c.sandbox.monitor
		e.mu.Unlock()
		if l != nil && !l.closed() {
			// An unknown container is one that never ran.
			l.call(ctx, wire.Forget, []string{c.id})
		}
		err = e.clear(c)
	}
	if err != nil {
		e.mu.Lock()
		c.removing = false
		e.mu.Unlock()
		return err
	}
	e.emitRemoved(c)
	return nil
}

func stateWord(c *container) string {
	switch {
	case c.removing:
		return "being removed"
	case c.starting:
		return "being started"
	case c.state == runtimeapi.ContainerState_CONTAINER_RUNNING:
		return "running"
	case c.state == runtimeapi.ContainerState_CONTAINER_EXITED:
		return "exited"
	}
	return "created"
}

// status is what CRI shows. Engine.mu is held.
func (c *container) status() *runtimeapi.ContainerStatus {
	st := &runtimeapi.ContainerStatus{
		Id: c.id, Metadata: c.config.Metadata, State: c.state, CreatedAt: c.created, StartedAt: c.started,
		FinishedAt: c.finished, ExitCode: c.code, Image: c.config.Image, ImageRef: c.imageRef, ImageId: c.imageID,
		Reason: c.reason, Message: c.message, Labels: c.config.Labels, Annotations: c.config.Annotations,
		Mounts: c.config.Mounts, LogPath: c.logPath(),
		Resources:  &runtimeapi.ContainerResources{Linux: proto.CloneOf(c.resources)},
		StopSignal: runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+c.stopSignal]),
	}
	if f := strings.Split(c.user, ":"); len(f) == 3 {
		u := &runtimeapi.LinuxContainerUser{}
		u.Uid, _ = strconv.ParseInt(f[0], 10, 64)
		u.Gid, _ = strconv.ParseInt(f[1], 10, 64)
		for _, g := range strings.Split(f[2], ",") {
			if n, err := strconv.ParseInt(g, 10, 64); err == nil {
				u.SupplementalGroups = append(u.SupplementalGroups, n)
			}
		}
		st.User = &runtimeapi.ContainerUser{Linux: u}
	}
	return st
}

// ContainerStatus returns one container.
func (e *Engine) ContainerStatus(ctx context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: c.status()}
	if req.GetVerbose() {
		resp.Info = map[string]string{"pid": strconv.Itoa(c.pid), "sandboxID": c.sandbox.id, "cgroup": c.cgroup()}
	}
	return resp, nil
}

// ListContainers returns the containers that pass all parts of the filter, newest first.
func (e *Engine) ListContainers(ctx context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	f := req.GetFilter()
	e.mu.Lock()
	defer e.mu.Unlock()
	resp := &runtimeapi.ListContainersResponse{}
	for _, c := range e.containers {
		if !strings.HasPrefix(c.id, f.GetId()) || !strings.HasPrefix(c.sandbox.id, f.GetPodSandboxId()) ||
			!labelsMatch(c.config.Labels, f.GetLabelSelector()) || f.GetState() != nil && f.State.State != c.state {
			continue
		}
		resp.Containers = append(resp.Containers, &runtimeapi.Container{
			Id: c.id, PodSandboxId: c.sandbox.id, Metadata: c.config.Metadata, Image: c.config.Image, ImageRef: c.imageRef,
			State: c.state, CreatedAt: c.created, Labels: c.config.Labels, Annotations: c.config.Annotations, ImageId: c.imageID,
		})
	}
	sort.Slice(resp.Containers, func(i, j int) bool {
		a, b := resp.Containers[i], resp.Containers[j]
		return a.CreatedAt > b.CreatedAt || a.CreatedAt == b.CreatedAt && a.Id < b.Id
	})
	return resp, nil
}

// ReopenContainerLog makes a running container write to its log path anew,
// after the file there has been moved away.
func (e *Engine) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	c, l, err := e.running(ctx, "reopen log of", req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if _, err := l.call(ctx, wire.Reopen, []string{c.id}); err != nil {
		return nil, fmt.Errorf("reopen log of container %q: %w", c.id, err)
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// running finds a container that runs, and its monitor.
func (e *Engine) running(ctx context.Context, deed, id string) (*container, *link, error) {
	if err := e.wait(ctx); err != nil {
		return nil, nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.container(id)
	if err != nil {
		return nil, nil, err
	}
	if c.state != runtimeapi.ContainerState_CONTAINER_RUNNING || c.sandbox.monitor == nil {
		return nil, nil, status.Errorf(codes.FailedPrecondition, "%s container %q: it is %s, not running", deed, c.id, stateWord(c))
	}
	return c, c.sandbox.monitor, nil
}

// stopSignal is the name of the signal that asks a container to end, as CRI
// spells it without its prefix.
func stopSignal(want runtimeapi.Signal, image string) string {
	if want != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return strings.TrimPrefix(want.String(), "SIGNAL_")
	}
	if image == "" {
		return "SIGTERM"
	}
	if n, err := strconv.Atoi(image); err == nil {
		if name := unix.SignalName(unix.Signal(n)); name != "" {
			return name
		}
		return image
	}
	image = strings.ToUpper(image)
	if !strings.HasPrefix(image, "SIG") {
		image = "SIG" + image
	}
	return strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(image)
}

// parseSignal takes names as signal(7) has them, SIGRTMINPLUSn, SIGRTMAXMINUSn
// and numbers.
func parseSignal(name string) (unix.Signal, error) {
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= 64 {
		return unix.Signal(n), nil
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	for _, base := range []struct {
		name string
		num  int
		sign int
	}{{"SIGRTMIN", 34, 1}, {"SIGRTMAX", 64, -1}} {
		rest, ok := strings.CutPrefix(name, base.name)
		if !ok {
			continue
		}
		if rest == "" {
			return unix.Signal(base.num), nil
		}
		rest = strings.TrimPrefix(strings.TrimPrefix(rest, "PLUS"), "MINUS")
		if n, err := strconv.Atoi(rest); err == nil && n >= 0 && n <= 30 {
			return unix.Signal(base.num + base.sign*n), nil
		}
	}
	return 0, fmt.Errorf("signal %q is unknown", name)
}

func imageVolumes(volumes map[string]struct{}, taken []*runtimeapi.Mount) []string {
	var out []string
	for v := range volumes {
		v = filepath.Clean("/" + v)
		if !slices.ContainsFunc(taken, func(m *runtimeapi.Mount) bool { return filepath.Clean(m.ContainerPath) == v }) {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return out
}
