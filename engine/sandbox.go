package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/engine/cgroup"
	"proa.dev/engine/wire"
)

type sandboxState string

const (
	creating sandboxState = "creating"
	ready    sandboxState = "ready"
	notReady sandboxState = "notready"
)

const shmBytes = "67108864" // 64 MiB

// sandbox is one pod's surroundings. state, ips, monitor and networked are
// guarded by Engine.mu; the rest does not change.
type sandbox struct {
	id      string
	config  *runtimeapi.PodSandboxConfig
	handler string
	created int64
	cgroup  string
	tree    *cgroup.Tree // control groups as the monitor sees them

	state     sandboxState
	ips       []string
	monitor   *link
	initPid   int
	networked bool

	stopping sync.Mutex // one StopPodSandbox at a time
}

func (s *sandbox) namespaces() *runtimeapi.NamespaceOption {
	return s.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (s *sandbox) hostNet() bool {
	return s.namespaces().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

func (s *sandbox) hostIPC() bool { return s.namespaces().GetIpc() == runtimeapi.NamespaceMode_NODE }

func (s *sandbox) sharedPids() bool { return s.namespaces().GetPid() == runtimeapi.NamespaceMode_POD }

func nameOfSandbox(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("sandbox/%s/%s/%s/%d", m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt())
}

// reserve takes a name for id. e.mu is held.
func (e *Engine) reserve(name, id string) error {
	if other := e.names[name]; other != "" {
		return status.Errorf(codes.AlreadyExists, "%s is in use by %q", name, other)
	}
	e.names[name] = id
	return nil
}

// RunPodSandbox makes namespaces, network and monitor; the sandbox is READY after it.
func (e *Engine) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	cfg := req.GetConfig()
	if err := checkSandboxConfig(cfg, req.GetRuntimeHandler()); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "run sandbox %q: %v", cfg.GetMetadata().GetName(), err)
	}
	// POD is the zero of the enumeration: absent options are no wish.
	if u := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions(); u != nil && u.Mode == runtimeapi.NamespaceMode_POD {
		return nil, status.Errorf(codes.Unimplemented, "run sandbox %q: user namespaces are not supported; set hostUsers to true", cfg.GetMetadata().GetName())
	}
	tree, err := cgroup.Detect("self")
	if err != nil {
		return nil, err
	}
	s := &sandbox{
		id: e.newID(), config: cfg, handler: req.GetRuntimeHandler(), created: e.now(), state: creating,
		cgroup: e.podCgroup(cfg.GetLinux().GetCgroupParent()), tree: tree,
	}
	name := nameOfSandbox(cfg.GetMetadata())
	e.mu.Lock()
	err = e.reserve(name, s.id)
	if err == nil {
		e.sandboxes[s.id] = s
	}
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := e.raise(ctx, s); err != nil {
		if derr := e.dismantle(context.WithoutCancel(ctx), s); derr != nil {
			e.log.Warn("half made sandbox left behind", "sandbox", s.id, "err", derr)
		} else {
			e.discard(s)
		}
		return nil, fmt.Errorf("run sandbox %q: %w", cfg.GetMetadata().GetName(), err)
	}
	e.emit(s.id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	e.emit(s.id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: s.id}, nil
}

func checkSandboxConfig(cfg *runtimeapi.PodSandboxConfig, handler string) error {
	m := cfg.GetMetadata()
	switch {
	case cfg == nil || m == nil:
		return errors.New("no metadata")
	case m.Name == "" || m.Namespace == "" || m.Uid == "":
		return errors.New("metadata needs name, namespace and uid")
	case handler != "" && handler != "runc":
		return fmt.Errorf("no runtime handler %q; this engine has \"\" and \"runc\"", handler)
	case strings.Contains(cfg.GetLinux().GetCgroupParent(), ".."):
		return fmt.Errorf("cgroup parent %q leads out of its tree", cfg.Linux.CgroupParent)
	case len(cfg.Hostname) > 64:
		return fmt.Errorf("host name %q is longer than 64 bytes", cfg.Hostname)
	}
	ns := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
	for k := range cfg.GetLinux().GetSysctls() {
		if err := checkSysctl(k, ns.GetNetwork() == runtimeapi.NamespaceMode_NODE, ns.GetIpc() == runtimeapi.NamespaceMode_NODE); err != nil {
			return err
		}
	}
	return nil
}

// limit gives the pod's group what its configuration says. A group that several
// pods share (no cgroup_parent of its own) is left alone.
func (s *sandbox) limit() error {
	r := s.config.GetLinux().GetResources()
	if r == nil || s.config.Linux.CgroupParent == "" {
		return nil
	}
	return s.tree.Limit(s.cgroup, cgroup.Limits{CPUShares: r.CpuShares, CPUQuota: r.CpuQuota, CPUPeriod: r.CpuPeriod,
		Memory: r.MemoryLimitInBytes, Unified: r.Unified})
}

// podCgroup is a pod's group below the engine's.
func (e *Engine) podCgroup(parent string) string {
	return filepath.Join(e.cfg.CgroupParent, strings.TrimPrefix(parent, "/"))
}

// raise builds what a sandbox consists of. Whatever it left can be dismantled.
func (e *Engine) raise(ctx context.Context, s *sandbox) error {
	dir := e.runDir(s.id)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	s.networked = !s.hostNet() && e.cfg.Network != nil
	if err := e.saveSandbox(s); err != nil {
		return err
	}
	// The monitor comes up while the namespaces and the network are made.
	type spawned struct {
		l   *link
		err error
	}
	monitor := make(chan spawned, 1)
	go func() {
		l, err := e.spawnMonitor(dir, s.sharedPids(), func(m wire.Message) { e.onEvent(s, m) })
		monitor <- spawned{l, err}
	}()
	ips, err := e.surround(ctx, s, dir)
	up := <-monitor
	if up.err != nil {
		return errors.Join(err, up.err)
	}
	e.follow(s, up.l)
	if err != nil {
		return err
	}
	a, err := up.l.call(ctx, wire.Hello, nil)
	if err != nil {
		return fmt.Errorf("greet monitor: %w%s", err, tailOf(filepath.Join(dir, "monitor.log")))
	}
	if e.cfg.CgroupParent != s.cgroup || s.config.GetLinux().GetResources() != nil {
		if err := s.tree.Make(s.cgroup); err != nil {
			return fmt.Errorf("create control group %q: %w", s.cgroup, err)
		}
		if err := s.limit(); err != nil {
			return err
		}
	}
	e.mu.Lock()
	s.ips, s.state = ips, ready
	fmt.Sscan(a.msg.Arg(1), &s.initPid)
	err = e.saveSandbox(s)
	e.mu.Unlock()
	return err
}

// surround makes namespaces, files and network.
func (e *Engine) surround(ctx context.Context, s *sandbox, dir string) ([]string, error) {
	plan := nsPlan{dir: filepath.Join(dir, "ns"), net: !s.hostNet(), ipc: !s.hostIPC(), hostname: s.config.Hostname, sysctls: map[string]string{}}
	if plan.net {
		// Ports below 1024 and ping need no capability inside a pod's own network.
		plan.sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
		plan.sysctls["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	for k, v := range s.config.GetLinux().GetSysctls() {
		plan.sysctls[k] = v
	}
	if err := makeNamespaces(plan); err != nil {
		return nil, err
	}
	if plan.ipc {
		shm := filepath.Join(dir, "shm")
		if err := os.MkdirAll(shm, 0o700); err != nil {
			return nil, err
		}
		if err := unix.Mount("shm", shm, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size="+shmBytes); err != nil {
			return nil, fmt.Errorf("mount shared memory: %w", err)
		}
	}
	if err := e.writeSandboxFiles(s, dir); err != nil {
		return nil, err
	}
	if !s.networked {
		return nil, nil
	}
	return e.cfg.Network.Setup(ctx, s.id, e.netns(s), s.config)
}

// netns is the path of a sandbox's network namespace, "" for the host's.
func (e *Engine) netns(s *sandbox) string {
	if s.hostNet() {
		return ""
	}
	return filepath.Join(e.runDir(s.id), "ns", "net")
}

// writeSandboxFiles writes what containers see below /etc unless mounts of
// their own cover it.
func (e *Engine) writeSandboxFiles(s *sandbox, dir string) error {
	host := s.config.Hostname
	if host == "" || s.hostNet() {
		h, err := os.Hostname()
		if err != nil {
			return err
		}
		host = h
	}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	if s.hostNet() {
		if b, err := os.ReadFile("/etc/hosts"); err == nil {
			hosts = string(b)
		}
	}
	resolv := resolvConf(s.config.GetDnsConfig())
	if s.config.GetDnsConfig() == nil {
		if b, err := os.ReadFile("/etc/resolv.conf"); err == nil {
			resolv = string(b)
		}
	}
	for name, text := range map[string]string{"hostname": host + "\n", "hosts": hosts, "resolv.conf": resolv} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func resolvConf(d *runtimeapi.DNSConfig) string {
	var b strings.Builder
	if len(d.GetSearches()) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Searches, " "))
	}
	for _, s := range d.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(d.GetOptions()) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	return b.String()
}

func tailOf(path string) string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return ""
	}
	return ": " + strings.TrimSpace(string(b[max(0, len(b)-512):]))
}

// follow reads from a monitor until it is gone, and then ends what it had.
func (e *Engine) follow(s *sandbox, l *link) {
	e.mu.Lock()
	s.monitor = l
	closed := e.closed
	e.mu.Unlock()
	if closed {
		l.close()
	}
	e.group.Add(1)
	go func() {
		defer e.group.Done()
		l.follow()
		e.monitorLost(s, l)
	}()
}

// monitorLost handles the end of a monitor's connection. A monitor that we have
// not told to quit has died, and with it the knowledge of its containers.
func (e *Engine) monitorLost(s *sandbox, l *link) {
	e.mu.Lock()
	expected := e.closed || s.monitor != l || s.state != ready
	if !expected {
		s.state = notReady
		if err := e.saveSandbox(s); err != nil {
			e.log.Warn("sandbox's record is out of date", "sandbox", s.id, "err", err)
		}
	}
	e.mu.Unlock()
	if expected {
		return
	}
	e.log.Warn("monitor died; its containers are ended", "sandbox", s.id)
	e.endOrphans(s)
	e.emit(s.id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

// StopPodSandbox ends all containers at once, takes the sandbox off the network
// and lets its namespaces go.
func (e *Engine) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	e.mu.Lock()
	s, err := e.sandbox(req.GetPodSandboxId())
	e.mu.Unlock()
	if err != nil {
		return &runtimeapi.StopPodSandboxResponse{}, nil // what is not there is stopped
	}
	if err := e.stopSandbox(ctx, s); err != nil {
		return nil, fmt.Errorf("stop sandbox %q: %w", s.id, err)
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (e *Engine) stopSandbox(ctx context.Context, s *sandbox) error {
	s.stopping.Lock()
	defer s.stopping.Unlock()
	e.mu.Lock()
	was := s.state
	s.state = notReady
	var running []*container
	for _, c := range e.containers {
		if c.sandbox == s {
			running = append(running, c)
		}
	}
	var serr error
	if was != notReady {
		serr = e.saveSandbox(s)
	}
	e.mu.Unlock()
	if serr != nil {
		return serr
	}
	var wg sync.WaitGroup
	errs := make([]error, len(running))
	for i, c := range running {
		wg.Add(1)
		go func() { defer wg.Done(); errs[i] = e.stop(ctx, c, 0) }()
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := e.dismantle(ctx, s); err != nil {
		return err
	}
	if was != notReady {
		e.emit(s.id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
	return nil
}

// dismantle takes down everything but the records. It may be repeated.
func (e *Engine) dismantle(ctx context.Context, s *sandbox) error {
	dir := e.runDir(s.id)
	if s.networked {
		if err := e.cfg.Network.Teardown(ctx, s.id, e.netns(s)); err != nil {
			return err
		}
		s.networked = false
	}
	e.mu.Lock()
	l := s.monitor
	s.monitor = nil
	e.mu.Unlock()
	if l != nil && !l.closed() {
		if _, err := l.call(ctx, wire.Quit, nil); err != nil && !errors.Is(err, errMonitorGone) {
			return fmt.Errorf("end monitor: %w", err)
		}
		select {
		case <-l.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for _, p := range []string{"ns/net", "ns/ipc", "ns/uts", "shm"} {
		if err := unpin(filepath.Join(dir, p)); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove sandbox's files: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.state == notReady {
		return e.saveSandbox(s)
	}
	return nil
}

// discard forgets a sandbox that is dismantled.
func (e *Engine) discard(s *sandbox) error {
	if s.cgroup != e.cfg.CgroupParent {
		s.tree.RemoveEmpty(s.cgroup)
	}
	err := os.Remove(filepath.Join(e.sandboxDir(), s.id+".json"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.sandboxes, s.id)
	name := nameOfSandbox(s.config.GetMetadata())
	if e.names[name] == s.id {
		delete(e.names, name)
	}
	return nil
}

// RemovePodSandbox stops a sandbox and removes it with all its containers.
func (e *Engine) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	e.mu.Lock()
	s, err := e.sandbox(req.GetPodSandboxId())
	e.mu.Unlock()
	if err != nil {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	if err := e.removeSandbox(ctx, s); err != nil {
		return nil, fmt.Errorf("remove sandbox %q: %w", s.id, err)
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (e *Engine) removeSandbox(ctx context.Context, s *sandbox) error {
	if err := e.stopSandbox(ctx, s); err != nil {
		return err
	}
	e.mu.Lock()
	var list []*container
	for _, c := range e.containers {
		if c.sandbox == s {
			list = append(list, c)
		}
	}
	e.mu.Unlock()
	for _, c := range list {
		if err := e.remove(ctx, c); err != nil {
			return err
		}
	}
	status, containers := e.sandboxView(s)
	if err := e.discard(s); err != nil {
		return err
	}
	e.events.send(&runtimeapi.ContainerEventResponse{
		ContainerId: s.id, ContainerEventType: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
		CreatedAt: e.now(), PodSandboxStatus: status, ContainersStatuses: containers,
	})
	return nil
}

func (s *sandbox) criState() runtimeapi.PodSandboxState {
	if s.state == ready {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// status is what CRI shows. Engine.mu is held.
func (s *sandbox) status() *runtimeapi.PodSandboxStatus {
	st := &runtimeapi.PodSandboxStatus{
		Id: s.id, Metadata: s.config.Metadata, State: s.criState(), CreatedAt: s.created,
		Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: &runtimeapi.NamespaceOption{
			Network: s.namespaces().GetNetwork(), Pid: s.namespaces().GetPid(), Ipc: s.namespaces().GetIpc(),
			TargetId: s.namespaces().GetTargetId(),
		}}},
		Labels: s.config.Labels, Annotations: s.config.Annotations, RuntimeHandler: s.handler,
	}
	for i, ip := range s.ips {
		if s.state != ready {
			break
		}
		if i == 0 {
			st.Network.Ip = ip
		} else {
			st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
		}
	}
	return st
}

// sandboxView is a sandbox's status with those of its containers.
func (e *Engine) sandboxView(s *sandbox) (*runtimeapi.PodSandboxStatus, []*runtimeapi.ContainerStatus) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []*runtimeapi.ContainerStatus
	for _, c := range e.containers {
		if c.sandbox == s {
			list = append(list, c.status())
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].CreatedAt > list[j].CreatedAt })
	return s.status(), list
}

// PodSandboxStatus returns one sandbox with its containers.
func (e *Engine) PodSandboxStatus(ctx context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	e.mu.Lock()
	s, err := e.sandbox(req.GetPodSandboxId())
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	st, list := e.sandboxView(s)
	resp := &runtimeapi.PodSandboxStatusResponse{Status: st, ContainersStatuses: list, Timestamp: e.now()}
	if req.GetVerbose() {
		resp.Info = map[string]string{"netns": e.netns(s), "cgroup": s.cgroup}
	}
	return resp, nil
}

// ListPodSandbox returns the sandboxes that pass all parts of the filter, newest first.
func (e *Engine) ListPodSandbox(ctx context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	f := req.GetFilter()
	e.mu.Lock()
	defer e.mu.Unlock()
	resp := &runtimeapi.ListPodSandboxResponse{}
	for _, s := range e.sandboxes {
		if s.state == creating || !strings.HasPrefix(s.id, f.GetId()) || !labelsMatch(s.config.Labels, f.GetLabelSelector()) ||
			f.GetState() != nil && f.State.State != s.criState() {
			continue
		}
		resp.Items = append(resp.Items, &runtimeapi.PodSandbox{
			Id: s.id, Metadata: s.config.Metadata, State: s.criState(), CreatedAt: s.created,
			Labels: s.config.Labels, Annotations: s.config.Annotations, RuntimeHandler: s.handler,
		})
	}
	sort.Slice(resp.Items, func(i, j int) bool {
		a, b := resp.Items[i], resp.Items[j]
		return a.CreatedAt > b.CreatedAt || a.CreatedAt == b.CreatedAt && a.Id < b.Id
	})
	return resp, nil
}

func labelsMatch(have, want map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

// DialSandbox connects to a port of a sandbox's own loopback device.
func (e *Engine) DialSandbox(ctx context.Context, sandboxID string, port int32) (net.Conn, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	e.mu.Lock()
	s, err := e.sandbox(sandboxID)
	if err == nil && s.state != ready {
		err = status.Errorf(codes.FailedPrecondition, "connect to sandbox %q: it is not ready", s.id)
	}
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return dialInside(ctx, e.netns(s), port)
}
