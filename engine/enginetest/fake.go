package enginetest

import (
	"context"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/env"
)

// Image is one image that a Fake has or could pull.
type Image struct {
	Ref     string // full name with tag
	ID      string // "" means one derived from Ref
	Size    uint64
	User    string
	Command []string
	Pinned  bool // imported: not to be collected
}

// FakeConfig sets a Fake up. The zero value works: system clock and randomness,
// no images, the shell of the package comment as every program.
type FakeConfig struct {
	Clock env.Clock
	Rand  env.Rand

	Images   []Image // present from the start
	Registry []Image // can be pulled
	PodIP    func(n int) string

	// Program says how a container behaves; nil is Shell. It must not block.
	Program func(*runtimeapi.ContainerConfig) Program
	// Exec answers commands in containers; nil is Shell without its sleeps.
	Exec func(containerID string, cmd []string) (stdout, stderr string, code int32)
	// Log receives what containers write, as CRI log entries; nil keeps them
	// in memory only. See FileLog.
	Log func(path string, entry string)
}

// Program is the life of one container, told in advance.
type Program struct {
	StartError string // not "": it cannot be started
	Lines      []Line // what it writes, at times after its start
	Lives      time.Duration
	Forever    bool // it ends only when told to
	Code       int32
	// OnTerm is how it takes the stop signal: it ends after TermAfter with
	// TermCode, or not at all if it is deaf.
	Deaf      bool
	TermAfter time.Duration
	TermCode  int32
}

// Line is one line of output.
type Line struct {
	At   time.Duration
	Text string
}

// Fake is an engine in memory. It starts no goroutine and reads no clock but
// the one it was given: time passes for its containers whenever it is called.
// For events of containers that end by themselves call Run, which waits on the
// clock, or, in a simulator, Advance at the time that Next names.
type Fake struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	cfg   FakeConfig
	clock env.Clock
	rand  env.Rand

	mu         sync.Mutex
	images     map[string]*runtimeapi.Image // by ID
	sandboxes  map[string]*fakeSandbox
	containers map[string]*fakeContainer
	names      map[string]string
	subs       map[chan *runtimeapi.ContainerEventResponse]bool
	podCount   int
	kick       chan struct{} // the next wake may be earlier now
	failures   map[string]error
}

type fakeSandbox struct {
	id      string
	config  *runtimeapi.PodSandboxConfig
	handler string
	created int64
	ready   bool
	ip      string
}

type fakeContainer struct {
	id        string
	sandbox   *fakeSandbox
	config    *runtimeapi.ContainerConfig
	image     *runtimeapi.Image
	resources *runtimeapi.LinuxContainerResources
	program   Program
	state     runtimeapi.ContainerState
	created   int64
	started   int64
	finished  int64
	code      int32
	reason    string
	message   string
	lines     int // written so far
	log       []string
	endsAt    int64 // 0: not by itself
	endCode   int32
	asked     bool
	exited    chan struct{}
}

// NewFake returns an engine without sandboxes.
func NewFake(cfg FakeConfig) *Fake {
	f := &Fake{cfg: cfg, clock: cfg.Clock, rand: cfg.Rand,
		images: map[string]*runtimeapi.Image{}, sandboxes: map[string]*fakeSandbox{}, containers: map[string]*fakeContainer{},
		names: map[string]string{}, subs: map[chan *runtimeapi.ContainerEventResponse]bool{}, kick: make(chan struct{}, 1),
		failures: map[string]error{}}
	if f.clock == nil {
		f.clock = env.SystemClock()
	}
	if f.rand == nil {
		f.rand = env.SystemRand()
	}
	if f.cfg.PodIP == nil {
		f.cfg.PodIP = func(n int) string { return fmt.Sprintf("10.244.%d.%d", n/250, 2+n%250) }
	}
	if f.cfg.Program == nil {
		f.cfg.Program = Shell
	}
	for _, i := range cfg.Images {
		f.addImage(i)
	}
	return f
}

// Fail makes every call of a method (such as "StartContainer") fail until it is
// called again with nil.
func (f *Fake) Fail(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failures[method] = err
}

// enter begins a call: time passes first. f.mu is held after it.
func (f *Fake) enter(method string) error {
	f.mu.Lock()
	f.settle(f.clock.Now().UnixNano())
	return f.failures[method]
}

func (f *Fake) newID() string {
	var b [32]byte
	f.rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Advance lets everything happen that is due at now.
func (f *Fake) Advance(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settle(now.UnixNano())
}

// Next is when something will happen by itself; ok is false if nothing will.
func (f *Fake) Next() (at time.Time, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.next()
	return time.Unix(0, n), n != 0
}

func (f *Fake) next() int64 {
	var first int64
	consider := func(at int64) {
		if first == 0 || at < first {
			first = at
		}
	}
	for _, c := range f.containers {
		if c.state != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		if c.endsAt != 0 {
			consider(c.endsAt)
		}
		if c.lines < len(c.program.Lines) {
			consider(c.started + int64(c.program.Lines[c.lines].At))
		}
	}
	return first
}

// settle plays out everything up to now, in the order of time, then of IDs.
func (f *Fake) settle(now int64) {
	for {
		at := f.next()
		if at == 0 || at > now {
			return
		}
		ids := make([]string, 0, len(f.containers))
		for id := range f.containers {
			ids = append(ids, id)
		}
		sort.Strings(ids)
		for _, id := range ids {
			c := f.containers[id]
			if c.state != runtimeapi.ContainerState_CONTAINER_RUNNING {
				continue
			}
			for c.lines < len(c.program.Lines) && c.started+int64(c.program.Lines[c.lines].At) <= at {
				f.write(c, c.started+int64(c.program.Lines[c.lines].At), c.program.Lines[c.lines].Text)
				c.lines++
			}
			if c.endsAt != 0 && c.endsAt <= at {
				f.end(c, c.endsAt, c.endCode)
			}
		}
	}
}

func (f *Fake) write(c *fakeContainer, at int64, text string) {
	c.log = append(c.log, text)
	if p := c.logPath(); p != "" && f.cfg.Log != nil {
		f.cfg.Log(p, time.Unix(0, at).UTC().Format("2006-01-02T15:04:05.000000000Z07:00")+" stdout F "+text+"\n")
	}
}

func (c *fakeContainer) logPath() string {
	if c.config.LogPath == "" || c.sandbox.config.LogDirectory == "" {
		return ""
	}
	return path.Join(c.sandbox.config.LogDirectory, c.config.LogPath)
}

// Logs are the lines that a container has written.
func (f *Fake) Logs(id string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[id]; c != nil {
		return slices.Clone(c.log)
	}
	return nil
}

func (f *Fake) end(c *fakeContainer, at int64, code int32) {
	c.state, c.finished, c.code = runtimeapi.ContainerState_CONTAINER_EXITED, at, code
	c.reason = "Completed"
	if code != 0 {
		c.reason = "Error"
	}
	close(c.exited)
	f.emit(c.sandbox, c.id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, at)
}

// Kill ends a running container as a crash would, or the kernel for want of memory.
func (f *Fake) Kill(id string, code int32, oom bool) error {
	if err := f.enter("Kill"); err != nil {
		f.mu.Unlock()
		return err
	}
	defer f.mu.Unlock()
	c := f.containers[id]
	if c == nil || c.state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return status.Errorf(codes.FailedPrecondition, "kill container %q: it does not run", id)
	}
	f.end(c, f.clock.Now().UnixNano(), code)
	if oom {
		c.reason = "OOMKilled"
	}
	return nil
}

// Run drives a Fake by its clock until ctx ends.
func (f *Fake) Run(ctx context.Context) error {
	for {
		f.Advance(f.clock.Now())
		wait := time.Hour
		if at, ok := f.Next(); ok {
			wait = max(at.Sub(f.clock.Now()), 0)
		}
		t := f.clock.NewTimer(wait)
		select {
		case <-t.C():
		case <-f.kick:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		t.Stop()
	}
}

func (f *Fake) wake() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}

func (f *Fake) sandbox(id string) (*fakeSandbox, error) {
	return find("sandbox", f.sandboxes, id)
}

func (f *Fake) container(id string) (*fakeContainer, error) {
	return find("container", f.containers, id)
}

// find takes an ID or a prefix that fits one only.
func find[T any](what string, m map[string]T, id string) (T, error) {
	var none T
	if v, ok := m[id]; ok {
		return v, nil
	}
	var hits []string
	for k := range m {
		if id != "" && strings.HasPrefix(k, id) {
			hits = append(hits, k)
		}
	}
	switch len(hits) {
	case 1:
		return m[hits[0]], nil
	case 0:
		return none, status.Errorf(codes.NotFound, "find %s %q: not found", what, id)
	}
	return none, status.Errorf(codes.NotFound, "find %s %q: the ID prefix fits more than one", what, id)
}

// RunPodSandbox as the engine's.
func (f *Fake) RunPodSandbox(_ context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	err := f.enter("RunPodSandbox")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	cfg := req.GetConfig()
	m := cfg.GetMetadata()
	if m.GetName() == "" || m.GetNamespace() == "" || m.GetUid() == "" {
		return nil, status.Errorf(codes.InvalidArgument, "run sandbox %q: metadata needs name, namespace and uid", m.GetName())
	}
	if h := req.GetRuntimeHandler(); h != "" && h != "runc" {
		return nil, status.Errorf(codes.InvalidArgument, "run sandbox %q: no runtime handler %q; this engine has \"\" and \"runc\"", m.Name, h)
	}
	if u := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions(); u != nil && u.Mode == runtimeapi.NamespaceMode_POD {
		return nil, status.Errorf(codes.Unimplemented, "run sandbox %q: user namespaces are not supported; set hostUsers to true", m.Name)
	}
	id := f.newID()
	if err := f.reserve(sandboxName(m), id); err != nil {
		return nil, err
	}
	s := &fakeSandbox{id: id, config: proto.CloneOf(cfg), handler: req.GetRuntimeHandler(), created: f.clock.Now().UnixNano(), ready: true}
	if cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() != runtimeapi.NamespaceMode_NODE {
		s.ip = f.cfg.PodIP(f.podCount)
		f.podCount++
	}
	f.sandboxes[id] = s
	f.emit(s, id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, s.created)
	f.emit(s, id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, s.created)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func sandboxName(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("sandbox/%s/%s/%s/%d", m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt())
}

func containerName(s *fakeSandbox, m *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("container/%s/%s/%d", s.id, m.GetName(), m.GetAttempt())
}

func (f *Fake) reserve(name, id string) error {
	if other := f.names[name]; other != "" {
		return status.Errorf(codes.AlreadyExists, "%s is in use by %q", name, other)
	}
	f.names[name] = id
	return nil
}

// StopPodSandbox as the engine's.
func (f *Fake) StopPodSandbox(_ context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	err := f.enter("StopPodSandbox")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if s, err := f.sandbox(req.GetPodSandboxId()); err == nil {
		f.stopSandbox(s)
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (f *Fake) of(s *fakeSandbox) []*fakeContainer {
	var out []*fakeContainer
	for _, c := range f.containers {
		if c.sandbox == s {
			out = append(out, c)
		}
	}
	sort.Slice(out, func(i, j int) bool {
		return out[i].created > out[j].created || out[i].created == out[j].created && out[i].id < out[j].id
	})
	return out
}

func (f *Fake) stopSandbox(s *fakeSandbox) {
	now := f.clock.Now().UnixNano()
	was := s.ready
	s.ready = false
	for _, c := range f.of(s) {
		if c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
			f.end(c, now, 137)
		}
	}
	if was {
		f.emit(s, s.id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, now)
	}
}

// RemovePodSandbox as the engine's.
func (f *Fake) RemovePodSandbox(_ context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	err := f.enter("RemovePodSandbox")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	s, err := f.sandbox(req.GetPodSandboxId())
	if err != nil {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	f.stopSandbox(s)
	for _, c := range f.of(s) {
		f.remove(c)
	}
	delete(f.sandboxes, s.id)
	delete(f.names, sandboxName(s.config.Metadata))
	f.emit(s, s.id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, f.clock.Now().UnixNano())
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (s *fakeSandbox) state() runtimeapi.PodSandboxState {
	if s.ready {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

func (s *fakeSandbox) status() *runtimeapi.PodSandboxStatus {
	st := &runtimeapi.PodSandboxStatus{Id: s.id, Metadata: s.config.Metadata, State: s.state(), CreatedAt: s.created,
		Network: &runtimeapi.PodSandboxNetworkStatus{}, Labels: s.config.Labels, Annotations: s.config.Annotations, RuntimeHandler: s.handler}
	if s.ready {
		st.Network.Ip = s.ip
	}
	o := s.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	st.Linux = &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: &runtimeapi.NamespaceOption{
		Network: o.GetNetwork(), Pid: o.GetPid(), Ipc: o.GetIpc(), TargetId: o.GetTargetId()}}}
	return st
}

// PodSandboxStatus as the engine's.
func (f *Fake) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	err := f.enter("PodSandboxStatus")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	s, err := f.sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.PodSandboxStatusResponse{Status: s.status(), Timestamp: f.clock.Now().UnixNano()}
	for _, c := range f.of(s) {
		resp.ContainersStatuses = append(resp.ContainersStatuses, c.status())
	}
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

// ListPodSandbox as the engine's.
func (f *Fake) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	err := f.enter("ListPodSandbox")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	w := req.GetFilter()
	resp := &runtimeapi.ListPodSandboxResponse{}
	for _, s := range f.sandboxes {
		if strings.HasPrefix(s.id, w.GetId()) && labelsMatch(s.config.Labels, w.GetLabelSelector()) && (w.GetState() == nil || w.State.State == s.state()) {
			resp.Items = append(resp.Items, &runtimeapi.PodSandbox{Id: s.id, Metadata: s.config.Metadata, State: s.state(), CreatedAt: s.created,
				Labels: s.config.Labels, Annotations: s.config.Annotations, RuntimeHandler: s.handler})
		}
	}
	sort.Slice(resp.Items, func(i, j int) bool {
		a, b := resp.Items[i], resp.Items[j]
		return a.CreatedAt > b.CreatedAt || a.CreatedAt == b.CreatedAt && a.Id < b.Id
	})
	return resp, nil
}

func (f *Fake) emit(s *fakeSandbox, id string, kind runtimeapi.ContainerEventType, at int64) {
	if len(f.subs) == 0 {
		f.wake()
		return
	}
	ev := &runtimeapi.ContainerEventResponse{ContainerId: id, ContainerEventType: kind, CreatedAt: at, PodSandboxStatus: s.status()}
	for _, c := range f.of(s) {
		ev.ContainersStatuses = append(ev.ContainersStatuses, c.status())
	}
	for ch := range f.subs {
		select {
		case ch <- ev:
		default:
			delete(f.subs, ch)
			close(ch)
		}
	}
	f.wake()
}

// Events as the engine's.
func (f *Fake) Events(ctx context.Context) <-chan *runtimeapi.ContainerEventResponse {
	ch := make(chan *runtimeapi.ContainerEventResponse, 1024)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subs[ch] = true
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.subs[ch] {
			delete(f.subs, ch)
			close(ch)
		}
	})
	return ch
}

// GetContainerEvents as the engine's.
func (f *Fake) GetContainerEvents(_ *runtimeapi.GetEventsRequest, s grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	for ev := range f.Events(s.Context()) {
		if err := s.Send(ev); err != nil {
			return err
		}
	}
	return status.FromContextError(s.Context().Err()).Err()
}
