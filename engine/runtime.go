package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/engine/cgroup"
)

// Version names the engine.
func (e *Engine) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	v := e.cfg.Version
	if v == "" {
		v = "0.0.0"
	}
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "proa", RuntimeVersion: v, RuntimeApiVersion: "v1"}, nil
}

// Status says whether containers can be started, and what the engine can do.
func (e *Engine) Status(_ context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	cond := func(kind string, err error, reason string) *runtimeapi.RuntimeCondition {
		c := &runtimeapi.RuntimeCondition{Type: kind, Status: err == nil}
		if err != nil {
			c.Reason, c.Message = reason, err.Error()
		}
		return c
	}
	var err error
	select {
	case <-e.ready:
	default:
		err = fmt.Errorf("the engine is taking over what it left")
	}
	for _, p := range []string{e.cfg.MonitorPath, e.cfg.RunnerPath} {
		if _, serr := os.Stat(p); serr != nil && err == nil {
			err = fmt.Errorf("find helper: %w", serr)
		}
	}
	features := &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			cond(runtimeapi.RuntimeReady, err, "NotReady"),
			cond(runtimeapi.NetworkReady, nil, ""),
		}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Name: "", Features: features}, {Name: "runc", Features: features}},
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	if req.GetVerbose() {
		resp.Info = map[string]string{"dataDir": e.cfg.DataDir, "runDir": e.cfg.RunDir}
	}
	return resp, nil
}

// RuntimeConfig says how control groups are driven.
func (e *Engine) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS}}, nil
}

// UpdateRuntimeConfig takes notice; pod addresses are the network's business.
func (e *Engine) UpdateRuntimeConfig(context.Context, *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// UpdatePodSandboxResources changes the limits of the pod's group.
func (e *Engine) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s, err := e.sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	cfg := proto.CloneOf(s.config)
	if cfg.Linux == nil {
		cfg.Linux = &runtimeapi.LinuxPodSandboxConfig{}
	}
	cfg.Linux.Overhead, cfg.Linux.Resources = req.GetOverhead(), req.GetResources()
	was := s.config
	s.config = cfg
	if s.state == ready {
		if err := s.limit(); err != nil {
			s.config = was
			return nil, fmt.Errorf("update sandbox %q: %w", s.id, err)
		}
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, e.saveSandbox(s)
}

// LimitPod creates the control group that a sandbox with this cgroup_parent
// will be in, and limits it.
func (e *Engine) LimitPod(ctx context.Context, cgroupParent string, l cgroup.Limits) error {
	if err := e.wait(ctx); err != nil {
		return err
	}
	t, err := cgroup.Detect("self")
	if err != nil {
		return err
	}
	g := e.podCgroup(cgroupParent)
	if err := t.Make(g); err != nil {
		return fmt.Errorf("create control group %q: %w", g, err)
	}
	return t.Limit(g, l)
}

// RemovePodCgroup removes what LimitPod made, once no sandbox is in it.
func (e *Engine) RemovePodCgroup(ctx context.Context, cgroupParent string) error {
	if err := e.wait(ctx); err != nil {
		return err
	}
	t, err := cgroup.Detect("self")
	if err != nil {
		return err
	}
	return t.Remove(e.podCgroup(cgroupParent))
}

// UpdateContainerResources changes the limits of a created or running container.
// A zero field stays as it is.
func (e *Engine) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	want := req.GetLinux()
	e.mu.Lock()
	c, err := e.container(req.GetContainerId())
	if err == nil && (c.state == runtimeapi.ContainerState_CONTAINER_EXITED || c.removing) {
		err = status.Errorf(codes.FailedPrecondition, "update container %q: it is %s", c.id, stateWord(c))
	}
	var state runtimeapi.ContainerState
	if err == nil {
		state = c.state
	}
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if state == runtimeapi.ContainerState_CONTAINER_RUNNING {
		l := cgroup.Limits{CPUShares: want.GetCpuShares(), CPUQuota: want.GetCpuQuota(), CPUPeriod: want.GetCpuPeriod(),
			Memory: want.GetMemoryLimitInBytes(), CPUs: want.GetCpusetCpus(), Mems: want.GetCpusetMems(), Unified: want.GetUnified()}
		if e.countsSwap(c.sandbox.tree) {
			l.Swap = want.GetMemorySwapLimitInBytes()
		}
		for _, h := range want.GetHugepageLimits() {
			if l.Huge == nil {
				l.Huge = map[string]uint64{}
			}
			l.Huge[h.PageSize] = h.Limit
		}
		if err := c.sandbox.tree.Limit(c.cgroup(), l); err != nil {
			return nil, fmt.Errorf("update container %q: %w", c.id, err)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c.resources = mergeResources(c.resources, want)
	return &runtimeapi.UpdateContainerResourcesResponse{}, e.saveContainer(c)
}

func mergeResources(old, change *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := proto.CloneOf(old)
	for _, f := range []struct{ to, from *int64 }{
		{&out.CpuPeriod, &change.CpuPeriod}, {&out.CpuQuota, &change.CpuQuota}, {&out.CpuShares, &change.CpuShares},
		{&out.MemoryLimitInBytes, &change.MemoryLimitInBytes}, {&out.OomScoreAdj, &change.OomScoreAdj},
		{&out.MemorySwapLimitInBytes, &change.MemorySwapLimitInBytes},
	} {
		if *f.from != 0 {
			*f.to = *f.from
		}
	}
	if change.CpusetCpus != "" {
		out.CpusetCpus = change.CpusetCpus
	}
	if change.CpusetMems != "" {
		out.CpusetMems = change.CpusetMems
	}
	if len(change.HugepageLimits) > 0 {
		out.HugepageLimits = change.HugepageLimits
	}
	for k, v := range change.Unified {
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		out.Unified[k] = v
	}
	return out
}

// Purge removes all sandboxes and everything this engine has made outside its
// data directory. It is for the end of a cluster, after Run has begun.
func (e *Engine) Purge(ctx context.Context) error {
	if err := e.wait(ctx); err != nil {
		return err
	}
	e.mu.Lock()
	var list []*sandbox
	for _, s := range e.sandboxes {
		list = append(list, s)
	}
	e.mu.Unlock()
	errs := make(chan error, len(list))
	for _, s := range list {
		go func() { errs <- e.removeSandbox(ctx, s) }()
	}
	var first error
	for range list {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	if first != nil {
		return fmt.Errorf("remove all sandboxes: %w", first)
	}
	t, err := cgroup.Detect("self")
	if err != nil {
		return err
	}
	if err := t.Remove(e.cfg.CgroupParent); err != nil {
		return fmt.Errorf("remove control groups: %w", err)
	}
	return unpin(realPath(e.cfg.RunDir))
}

// UpperDir is a container's writable layer on this machine, for accounting.
func (e *Engine) upperDir(c *container) string { return filepath.Join(e.bundleDir(c.id), "upper") }
