package enginetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/engine/term"
	"proa.dev/env"
)

// CreateContainer as the engine's.
func (f *Fake) CreateContainer(_ context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	err := f.enter("CreateContainer")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	cfg := req.GetConfig()
	name := cfg.GetMetadata().GetName()
	if name == "" {
		return nil, status.Error(codes.InvalidArgument, "create container: metadata needs a name")
	}
	s, err := f.sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if !s.ready {
		return nil, status.Errorf(codes.FailedPrecondition, "create container %q: sandbox %q is not ready", name, s.id)
	}
	img := f.image(cfg.GetImage().GetImage())
	if img == nil {
		return nil, status.Errorf(codes.NotFound, "create container %q: image %q is not on this machine; pull it first", name, cfg.GetImage().GetImage())
	}
	id := f.newID()
	if err := f.reserve(containerName(s, cfg.Metadata), id); err != nil {
		return nil, err
	}
	c := &fakeContainer{id: id, sandbox: s, config: proto.CloneOf(cfg), image: img, created: f.clock.Now().UnixNano(), exited: make(chan struct{}),
		resources: proto.CloneOf(cfg.GetLinux().GetResources())}
	if c.resources == nil {
		c.resources = &runtimeapi.LinuxContainerResources{}
	}
	f.containers[id] = c
	f.emit(s, id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, c.created)
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer as the engine's.
func (f *Fake) StartContainer(_ context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	err := f.enter("StartContainer")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	c, err := f.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if c.state != runtimeapi.ContainerState_CONTAINER_CREATED {
		return nil, status.Errorf(codes.FailedPrecondition, "start container %q: it is %s, not created", c.id, word(c.state))
	}
	if !c.sandbox.ready {
		return nil, status.Errorf(codes.FailedPrecondition, "start container %q: sandbox %q is not ready", c.id, c.sandbox.id)
	}
	now := f.clock.Now().UnixNano()
	c.program = f.cfg.Program(c.config)
	if c.program.StartError != "" {
		c.state, c.finished, c.code = runtimeapi.ContainerState_CONTAINER_EXITED, now, 128
		c.reason, c.message = "StartError", c.program.StartError
		close(c.exited)
		f.emit(c.sandbox, c.id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, now)
		return nil, fmt.Errorf("start container %q: %s", c.id, c.message)
	}
	c.state, c.started = runtimeapi.ContainerState_CONTAINER_RUNNING, now
	if !c.program.Forever {
		c.endsAt, c.endCode = now+max(int64(c.program.Lives), 1), c.program.Code
	}
	f.emit(c.sandbox, c.id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, now)
	return &runtimeapi.StartContainerResponse{}, nil
}

func word(s runtimeapi.ContainerState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "CONTAINER_"))
}

// BeginStop is StopContainer without the wait, for a simulator.
func (f *Fake) BeginStop(id string, grace time.Duration) error {
	err := f.enter("StopContainer")
	defer f.mu.Unlock()
	if err != nil {
		return err
	}
	c, err := f.container(id)
	if err != nil || c.state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil
	}
	now := f.clock.Now().UnixNano()
	if grace <= 0 {
		f.end(c, now, 137)
		return nil
	}
	killAt, code := now+int64(grace), int32(137)
	if at := now + int64(c.program.TermAfter); !c.program.Deaf && at <= killAt && !c.asked {
		killAt, code = at, c.program.TermCode
	}
	c.asked = true
	if c.endsAt == 0 || killAt < c.endsAt {
		c.endsAt, c.endCode = killAt, code
	}
	f.settle(now)
	f.wake()
	return nil
}

// StopContainer as the engine's.
func (f *Fake) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if err := f.BeginStop(req.GetContainerId(), time.Duration(req.GetTimeout())*time.Second); err != nil {
		return nil, err
	}
	f.mu.Lock()
	c, err := f.container(req.GetContainerId())
	f.mu.Unlock()
	if err != nil {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	for {
		f.mu.Lock()
		done := c.state != runtimeapi.ContainerState_CONTAINER_RUNNING
		wait := time.Duration(c.endsAt - f.clock.Now().UnixNano())
		f.mu.Unlock()
		if done {
			return &runtimeapi.StopContainerResponse{}, nil
		}
		t := f.clock.NewTimer(max(wait, 0))
		select {
		case <-c.exited:
		case <-t.C():
			f.Advance(f.clock.Now())
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		}
		t.Stop()
	}
}

// RemoveContainer as the engine's.
func (f *Fake) RemoveContainer(_ context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	err := f.enter("RemoveContainer")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if c, err := f.container(req.GetContainerId()); err == nil {
		f.remove(c)
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (f *Fake) remove(c *fakeContainer) {
	now := f.clock.Now().UnixNano()
	if c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
		f.end(c, now, 137)
	}
	delete(f.containers, c.id)
	delete(f.names, containerName(c.sandbox, c.config.Metadata))
	f.emit(c.sandbox, c.id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, now)
}

func (c *fakeContainer) status() *runtimeapi.ContainerStatus {
	st := &runtimeapi.ContainerStatus{Id: c.id, Metadata: c.config.Metadata, State: c.state, CreatedAt: c.created, StartedAt: c.started,
		FinishedAt: c.finished, ExitCode: c.code, Image: c.config.Image, ImageRef: c.image.Id, ImageId: c.image.Id, Reason: c.reason, Message: c.message,
		Labels: c.config.Labels, Annotations: c.config.Annotations, Mounts: c.config.Mounts, LogPath: c.logPath(),
		Resources: &runtimeapi.ContainerResources{Linux: proto.CloneOf(c.resources)}, StopSignal: c.config.StopSignal}
	if len(c.image.RepoDigests) > 0 {
		st.ImageRef = c.image.RepoDigests[0]
	}
	if st.StopSignal == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		st.StopSignal = runtimeapi.Signal_SIGNAL_SIGTERM
	}
	return st
}

// ContainerStatus as the engine's.
func (f *Fake) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	err := f.enter("ContainerStatus")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	c, err := f.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatusResponse{Status: c.status()}, nil
}

// ListContainers as the engine's.
func (f *Fake) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	err := f.enter("ListContainers")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	w := req.GetFilter()
	resp := &runtimeapi.ListContainersResponse{}
	for _, c := range f.containers {
		if strings.HasPrefix(c.id, w.GetId()) && strings.HasPrefix(c.sandbox.id, w.GetPodSandboxId()) &&
			labelsMatch(c.config.Labels, w.GetLabelSelector()) && (w.GetState() == nil || w.State.State == c.state) {
			resp.Containers = append(resp.Containers, &runtimeapi.Container{Id: c.id, PodSandboxId: c.sandbox.id, Metadata: c.config.Metadata,
				Image: c.config.Image, ImageRef: c.status().ImageRef, ImageId: c.image.Id, State: c.state, CreatedAt: c.created,
				Labels: c.config.Labels, Annotations: c.config.Annotations})
		}
	}
	sort.Slice(resp.Containers, func(i, j int) bool {
		a, b := resp.Containers[i], resp.Containers[j]
		return a.CreatedAt > b.CreatedAt || a.CreatedAt == b.CreatedAt && a.Id < b.Id
	})
	return resp, nil
}

// UpdateContainerResources as the engine's.
func (f *Fake) UpdateContainerResources(_ context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	err := f.enter("UpdateContainerResources")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	c, err := f.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if c.state == runtimeapi.ContainerState_CONTAINER_EXITED {
		return nil, status.Errorf(codes.FailedPrecondition, "update container %q: it is exited", c.id)
	}
	// Scalars at zero are absent in proto3: what is set replaces, the rest stays.
	proto.Merge(c.resources, req.GetLinux())
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// UpdatePodSandboxResources takes notice.
func (f *Fake) UpdatePodSandboxResources(_ context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	err := f.enter("UpdatePodSandboxResources")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if _, err := f.sandbox(req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// running finds a container that runs. f.mu is held.
func (f *Fake) running(deed, id string) (*fakeContainer, error) {
	c, err := f.container(id)
	if err == nil && c.state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		err = status.Errorf(codes.FailedPrecondition, "%s container %q: it is %s, not running", deed, c.id, word(c.state))
	}
	return c, err
}

// ReopenContainerLog as the engine's: a FileLog opens for every entry anyway.
func (f *Fake) ReopenContainerLog(_ context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	err := f.enter("ReopenContainerLog")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	c, err := f.running("reopen log of", req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if p := c.logPath(); p != "" && f.cfg.Log != nil {
		f.cfg.Log(p, "")
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// ExecSync as the engine's.
func (f *Fake) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	err := f.enter("ExecSync")
	if err == nil {
		_, err = f.running("exec in", req.GetContainerId())
	}
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if len(req.GetCmd()) == 0 {
		return nil, status.Errorf(codes.InvalidArgument, "exec in container %q: no command", req.GetContainerId())
	}
	if f.cfg.Exec != nil {
		out, errOut, code := f.cfg.Exec(req.GetContainerId(), req.GetCmd())
		return &runtimeapi.ExecSyncResponse{Stdout: []byte(out), Stderr: []byte(errOut), ExitCode: code}, nil
	}
	p := shellCommand(req.GetCmd())
	if p.StartError != "" {
		return nil, fmt.Errorf("exec in container %q: %s", req.GetContainerId(), p.StartError)
	}
	limit := time.Duration(req.GetTimeout()) * time.Second
	wait, late := p.Lives, false
	if limit > 0 && (p.Forever || wait > limit) {
		wait, late = limit, true
	}
	if wait > 0 && !env.Sleep(ctx, f.clock, wait) {
		return nil, ctx.Err()
	}
	if late {
		return nil, status.Errorf(codes.DeadlineExceeded, "exec in container %q: timeout of %ds exceeded", req.GetContainerId(), req.Timeout)
	}
	var out strings.Builder
	for _, l := range p.Lines {
		out.WriteString(l.Text + "\n")
	}
	return &runtimeapi.ExecSyncResponse{Stdout: []byte(out.String()), ExitCode: p.Code}, nil
}

// ExecStream is ExecSync with streams; "cat" copies stdin.
func (f *Fake) ExecStream(ctx context.Context, containerID string, cmd []string, _ bool, stdin io.Reader, stdout, stderr io.Writer, _ <-chan term.Size) (int, error) {
	if len(cmd) == 1 && filepath.Base(cmd[0]) == "cat" && stdin != nil && stdout != nil {
		err := f.enter("ExecSync")
		if err == nil {
			_, err = f.running("exec in", containerID)
		}
		f.mu.Unlock()
		if err != nil {
			return 0, err
		}
		_, err = io.Copy(stdout, stdin)
		return 0, err
	}
	resp, err := f.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: containerID, Cmd: cmd})
	if err != nil {
		return 0, err
	}
	if stdout != nil {
		stdout.Write(resp.Stdout)
	}
	if stderr != nil {
		stderr.Write(resp.Stderr)
	}
	return int(resp.ExitCode), nil
}

// AttachStream shows what a container writes from now on, until it ends.
func (f *Fake) AttachStream(ctx context.Context, containerID string, _ io.Reader, stdout, _ io.Writer, _ <-chan term.Size) error {
	err := f.enter("AttachStream")
	var c *fakeContainer
	if err == nil {
		c, err = f.running("attach to", containerID)
	}
	if err != nil {
		f.mu.Unlock()
		return err
	}
	seen := c.lines
	f.mu.Unlock()
	select {
	case <-c.exited:
	case <-ctx.Done():
		err = ctx.Err()
	}
	f.mu.Lock()
	rest := c.log[min(seen, len(c.log)):]
	f.mu.Unlock()
	for _, l := range rest {
		if stdout != nil {
			io.WriteString(stdout, l+"\n")
		}
	}
	return err
}

// PortForwardStream refuses: nothing listens in memory.
func (f *Fake) PortForwardStream(_ context.Context, sandboxID string, port int32, rw io.ReadWriteCloser) error {
	defer rw.Close()
	err := f.enter("PortForwardStream")
	defer f.mu.Unlock()
	if err != nil {
		return err
	}
	s, err := f.sandbox(sandboxID)
	if err != nil {
		return err
	}
	if !s.ready {
		return status.Errorf(codes.FailedPrecondition, "connect to sandbox %q: it is not ready", s.id)
	}
	return fmt.Errorf("connect to port %d inside sandbox: connection refused", port)
}

// ContainerStats of a running container: its age counts as its CPU time.
func (f *Fake) ContainerStats(_ context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	err := f.enter("ContainerStats")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	c, err := f.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: f.stats(c)}, nil
}

func (f *Fake) stats(c *fakeContainer) *runtimeapi.ContainerStats {
	now := f.clock.Now().UnixNano()
	st := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: c.id, Metadata: c.config.Metadata, Labels: c.config.Labels, Annotations: c.config.Annotations},
		WritableLayer: &runtimeapi.FilesystemUsage{Timestamp: now, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/"}, UsedBytes: &runtimeapi.UInt64Value{}, InodesUsed: &runtimeapi.UInt64Value{}}}
	if c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
		st.Cpu = &runtimeapi.CpuUsage{Timestamp: now, UsageCoreNanoSeconds: &runtimeapi.UInt64Value{Value: uint64(now - c.started)}}
		st.Memory = &runtimeapi.MemoryUsage{Timestamp: now, WorkingSetBytes: &runtimeapi.UInt64Value{Value: 1 << 20}, UsageBytes: &runtimeapi.UInt64Value{Value: 1 << 20}}
	}
	return st
}

// ListContainerStats of the running containers.
func (f *Fake) ListContainerStats(_ context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	err := f.enter("ListContainerStats")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	w := req.GetFilter()
	resp := &runtimeapi.ListContainerStatsResponse{}
	for _, c := range f.containers {
		if c.state == runtimeapi.ContainerState_CONTAINER_RUNNING && strings.HasPrefix(c.id, w.GetId()) && strings.HasPrefix(c.sandbox.id, w.GetPodSandboxId()) && labelsMatch(c.config.Labels, w.GetLabelSelector()) {
			resp.Stats = append(resp.Stats, f.stats(c))
		}
	}
	sort.Slice(resp.Stats, func(i, j int) bool { return resp.Stats[i].Attributes.Id < resp.Stats[j].Attributes.Id })
	return resp, nil
}

// Version names the fake.
func (f *Fake) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "proa-fake", RuntimeVersion: "0.0.0", RuntimeApiVersion: "v1"}, nil
}

// Status is always good, unless Fail says otherwise.
func (f *Fake) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	err := f.enter("Status")
	defer f.mu.Unlock()
	c := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: err == nil}
	if err != nil {
		c.Reason, c.Message = "NotReady", err.Error()
	}
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{c,
		{Type: runtimeapi.NetworkReady, Status: true}}}, Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true}}, nil
}

// RuntimeConfig says cgroupfs.
func (f *Fake) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS}}, nil
}

func (f *Fake) addImage(i Image) *runtimeapi.Image {
	if i.ID == "" {
		sum := sha256.Sum256([]byte(i.Ref))
		i.ID = "sha256:" + hex.EncodeToString(sum[:])
	}
	img := f.images[i.ID]
	if img == nil {
		img = &runtimeapi.Image{Id: i.ID, Size: max(i.Size, 1), Pinned: i.Pinned, Username: i.User, Spec: &runtimeapi.ImageSpec{Image: i.ID}}
		if uid, err := strconv.ParseInt(i.User, 10, 64); err == nil {
			img.Username, img.Uid = "", &runtimeapi.Int64Value{Value: uid}
		}
		f.images[i.ID] = img
	}
	img.RepoTags = append(img.RepoTags, i.Ref)
	return img
}

// image finds by ID or by name; a name may lack registry and tag.
func (f *Fake) image(ref string) *runtimeapi.Image {
	if ref == "" {
		return nil
	}
	for _, i := range f.images {
		if i.Id == ref {
			return i
		}
		for _, t := range i.RepoTags {
			if t == ref || strings.HasSuffix(t, "/"+ref) || strings.HasSuffix(t, "/"+ref+":latest") || t == ref+":latest" {
				return i
			}
		}
	}
	return nil
}

// ListImages as the engine's.
func (f *Fake) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	err := f.enter("ListImages")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListImagesResponse{}
	ref := req.GetFilter().GetImage().GetImage()
	for _, i := range f.images {
		if ref == "" || f.image(ref) == i {
			resp.Images = append(resp.Images, proto.CloneOf(i))
		}
	}
	sort.Slice(resp.Images, func(i, j int) bool { return resp.Images[i].Id < resp.Images[j].Id })
	return resp, nil
}

// ImageStatus as the engine's.
func (f *Fake) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	err := f.enter("ImageStatus")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if req.GetImage().GetImage() == "" {
		return nil, status.Error(codes.InvalidArgument, "get image: no reference")
	}
	resp := &runtimeapi.ImageStatusResponse{}
	if i := f.image(req.Image.Image); i != nil {
		resp.Image = proto.CloneOf(i)
	}
	return resp, nil
}

// PullImage takes from FakeConfig.Registry.
func (f *Fake) PullImage(_ context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	err := f.enter("PullImage")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, status.Error(codes.InvalidArgument, "pull image: no reference")
	}
	for _, i := range f.cfg.Registry {
		if i.Ref == ref || strings.HasSuffix(i.Ref, "/"+ref) || strings.HasSuffix(i.Ref, "/"+ref+":latest") {
			if have := f.image(i.Ref); have != nil {
				return &runtimeapi.PullImageResponse{ImageRef: have.Id}, nil
			}
			return &runtimeapi.PullImageResponse{ImageRef: f.addImage(i).Id}, nil
		}
	}
	if i := f.image(ref); i != nil {
		return &runtimeapi.PullImageResponse{ImageRef: i.Id}, nil
	}
	return nil, status.Errorf(codes.NotFound, "pull image %q: not found in the registry", ref)
}

// RemoveImage as the engine's.
func (f *Fake) RemoveImage(_ context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	err := f.enter("RemoveImage")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if i := f.image(req.GetImage().GetImage()); i != nil {
		delete(f.images, i.Id)
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo adds up the images.
func (f *Fake) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	err := f.enter("ImageFsInfo")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var sum uint64
	for _, i := range f.images {
		sum += i.Size
	}
	usage := func(n, inodes uint64) []*runtimeapi.FilesystemUsage {
		return []*runtimeapi.FilesystemUsage{{Timestamp: f.clock.Now().UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/"},
			UsedBytes: &runtimeapi.UInt64Value{Value: n}, InodesUsed: &runtimeapi.UInt64Value{Value: inodes}}}
	}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: usage(sum, uint64(len(f.images))), ContainerFilesystems: usage(0, 0)}, nil
}

// Shell is the program of the package comment. Other commands: true, false,
// sleep N as such; anything else runs for ever and ends politely.
func Shell(cfg *runtimeapi.ContainerConfig) Program {
	return shellCommand(append(append([]string{}, cfg.Command...), cfg.Args...))
}

func shellCommand(cmd []string) Program {
	if len(cmd) == 0 {
		return Program{Forever: true}
	}
	script := strings.Join(cmd, " ")
	if len(cmd) == 3 && filepath.Base(cmd[0]) == "sh" && cmd[1] == "-c" {
		script = cmd[2]
	} else if strings.HasPrefix(cmd[0], "/no/such") {
		return Program{StartError: fmt.Sprintf("exec: %q: stat %s: no such file or directory", cmd[0], cmd[0])}
	}
	p := Program{Deaf: true}
	for _, stmt := range strings.Split(script, ";") {
		w := strings.Fields(stmt)
		if len(w) == 0 {
			continue
		}
		switch filepath.Base(w[0]) {
		case "echo":
			p.Lines = append(p.Lines, Line{At: p.Lives, Text: strings.Join(w[1:], " ")})
		case "sleep":
			s, err := strconv.ParseFloat(w[len(w)-1], 64)
			if err != nil {
				return Program{StartError: "sleep: " + err.Error()}
			}
			p.Lives += time.Duration(s * float64(time.Second))
		case "true":
			p.Code = 0
		case "false":
			p.Code = 1
		case "exit":
			n, _ := strconv.Atoi(w[len(w)-1])
			p.Code = int32(n)
			return p
		case "trap":
			if n, err := strconv.Atoi(strings.Trim(w[len(w)-2], "'")); err == nil {
				p.Deaf, p.TermCode = false, int32(n)
			}
		default:
			return Program{Forever: true}
		}
	}
	return p
}

// FileLog writes container output to files, as the engine does.
func FileLog(path, entry string) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return
	}
	h, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return
	}
	_, err = io.WriteString(h, entry)
	errors.Join(err, h.Close())
}
