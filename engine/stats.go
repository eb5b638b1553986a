package engine

import (
	"bufio"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/engine/cgroup"
)

// cpuSample is the previous reading of a group, for the rate.
type cpuSample struct {
	at    int64
	nanos uint64
	rate  uint64
}

// minSample is the shortest time over which a rate means anything.
const minSample = 100_000_000

// rate is the cores in use, in billionths, since the reading before.
func (e *Engine) rate(key string, at int64, nanos uint64) *runtimeapi.UInt64Value {
	e.mu.Lock()
	defer e.mu.Unlock()
	old, ok := e.cpuSamples[key]
	if !ok {
		e.cpuSamples[key] = cpuSample{at: at, nanos: nanos}
		return nil
	}
	if at-old.at < minSample {
		return &runtimeapi.UInt64Value{Value: old.rate}
	}
	r := uint64(0)
	if nanos > old.nanos {
		r = uint64(float64(nanos-old.nanos) / float64(at-old.at) * 1e9)
	}
	e.cpuSamples[key] = cpuSample{at: at, nanos: nanos, rate: r}
	return &runtimeapi.UInt64Value{Value: r}
}

func u64(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }

func (e *Engine) cpu(key string, at int64, u cgroup.Usage) *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: u64(u.CPUNanos), UsageNanoCores: e.rate(key, at, u.CPUNanos)}
}

func memory(at int64, u cgroup.Usage) *runtimeapi.MemoryUsage {
	m := &runtimeapi.MemoryUsage{Timestamp: at, WorkingSetBytes: u64(u.WorkingSetBytes), UsageBytes: u64(u.MemoryBytes),
		RssBytes: u64(u.RSSBytes), PageFaults: u64(u.PageFaults), MajorPageFaults: u64(u.MajorFaults)}
	if u.MemoryLimit > 0 {
		m.AvailableBytes = u64(u.MemoryLimit - min(u.WorkingSetBytes, u.MemoryLimit))
	}
	return m
}

// containerStats reads one container; usage is absent when it does not run.
func (e *Engine) containerStats(c *container) *runtimeapi.ContainerStats {
	at := e.now()
	st := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id: c.id, Metadata: c.config.Metadata, Labels: c.config.Labels, Annotations: c.config.Annotations}}
	if u, ok := c.sandbox.tree.Usage(c.cgroup()); ok {
		st.Cpu, st.Memory = e.cpu(c.id, at, u), memory(at, u)
		st.Swap = &runtimeapi.SwapUsage{Timestamp: at, SwapUsageBytes: u64(u.SwapBytes)}
	}
	bytes, inodes := diskUsage(e.upperDir(c))
	st.WritableLayer = &runtimeapi.FilesystemUsage{Timestamp: at, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: e.cfg.DataDir},
		UsedBytes: u64(bytes), InodesUsed: u64(inodes)}
	return st
}

// diskUsage is what a tree occupies on its file system.
func diskUsage(root string) (bytes, inodes uint64) {
	filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			bytes += uint64(st.Blocks) * 512
			inodes++
		}
		return nil
	})
	return bytes, inodes
}

// ContainerStats reads one container's usage.
func (e *Engine) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	e.mu.Lock()
	c, err := e.container(req.GetContainerId())
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: e.containerStats(c)}, nil
}

// ListContainerStats reads the running containers that pass the filter.
func (e *Engine) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	f := req.GetFilter()
	resp := &runtimeapi.ListContainerStatsResponse{}
	for _, c := range e.runningContainers(func(c *container) bool {
		return strings.HasPrefix(c.id, f.GetId()) && strings.HasPrefix(c.sandbox.id, f.GetPodSandboxId()) && labelsMatch(c.config.Labels, f.GetLabelSelector())
	}) {
		resp.Stats = append(resp.Stats, e.containerStats(c))
	}
	return resp, nil
}

func (e *Engine) runningContainers(keep func(*container) bool) []*container {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []*container
	for _, c := range e.containers {
		if c.state == runtimeapi.ContainerState_CONTAINER_RUNNING && keep(c) {
			out = append(out, c)
		}
	}
	return out
}

func (e *Engine) podStats(s *sandbox) *runtimeapi.PodSandboxStats {
	at := e.now()
	e.mu.Lock()
	cfg := s.config
	e.mu.Unlock()
	linux := &runtimeapi.LinuxPodSandboxStats{}
	// Pods without a group of their own are the sum of their containers.
	if s.cgroup != e.cfg.CgroupParent {
		if u, ok := s.tree.Usage(s.cgroup); ok {
			linux.Cpu, linux.Memory = e.cpu(s.id, at, u), memory(at, u)
			linux.Process = &runtimeapi.ProcessUsage{Timestamp: at, ProcessCount: u64(u.Processes)}
		}
	}
	for _, c := range e.runningContainers(func(c *container) bool { return c.sandbox == s }) {
		linux.Containers = append(linux.Containers, e.containerStats(c))
	}
	if linux.Cpu == nil {
		sumContainers(linux, at)
	}
	linux.Network = e.networkUsage(s, at)
	return &runtimeapi.PodSandboxStats{Attributes: &runtimeapi.PodSandboxAttributes{
		Id: s.id, Metadata: cfg.Metadata, Labels: cfg.Labels, Annotations: cfg.Annotations}, Linux: linux}
}

func sumContainers(p *runtimeapi.LinuxPodSandboxStats, at int64) {
	p.Cpu = &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: u64(0)}
	p.Memory = &runtimeapi.MemoryUsage{Timestamp: at, WorkingSetBytes: u64(0), UsageBytes: u64(0), RssBytes: u64(0)}
	for _, c := range p.Containers {
		p.Cpu.UsageCoreNanoSeconds.Value += c.GetCpu().GetUsageCoreNanoSeconds().GetValue()
		if r := c.GetCpu().GetUsageNanoCores(); r != nil {
			if p.Cpu.UsageNanoCores == nil {
				p.Cpu.UsageNanoCores = u64(0)
			}
			p.Cpu.UsageNanoCores.Value += r.Value
		}
		p.Memory.WorkingSetBytes.Value += c.GetMemory().GetWorkingSetBytes().GetValue()
		p.Memory.UsageBytes.Value += c.GetMemory().GetUsageBytes().GetValue()
		p.Memory.RssBytes.Value += c.GetMemory().GetRssBytes().GetValue()
	}
}

// networkUsage reads the counters of a sandbox's own links.
func (e *Engine) networkUsage(s *sandbox, at int64) *runtimeapi.NetworkUsage {
	if s.hostNet() {
		return nil
	}
	usage := &runtimeapi.NetworkUsage{Timestamp: at}
	inNetns(e.netns(s), func() error {
		// The list of the thread that asks, not of the process.
		f, err := os.Open("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		defer f.Close()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			name, rest, ok := strings.Cut(sc.Text(), ":")
			w := strings.Fields(rest)
			if name = strings.TrimSpace(name); !ok || name == "lo" || len(w) < 11 {
				continue
			}
			n := func(i int) *runtimeapi.UInt64Value {
				v, _ := strconv.ParseUint(w[i], 10, 64)
				return u64(v)
			}
			i := &runtimeapi.NetworkInterfaceUsage{Name: name, RxBytes: n(0), RxErrors: n(2), TxBytes: n(8), TxErrors: n(10)}
			if usage.DefaultInterface == nil {
				usage.DefaultInterface = i
			} else {
				usage.Interfaces = append(usage.Interfaces, i)
			}
		}
		return nil
	})
	return usage
}

// PodSandboxStats reads one pod's usage.
func (e *Engine) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	e.mu.Lock()
	s, err := e.sandbox(req.GetPodSandboxId())
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: e.podStats(s)}, nil
}

// ListPodSandboxStats reads the ready pods that pass the filter.
func (e *Engine) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	f := req.GetFilter()
	e.mu.Lock()
	var list []*sandbox
	for _, s := range e.sandboxes {
		if s.state == ready && strings.HasPrefix(s.id, f.GetId()) && labelsMatch(s.config.Labels, f.GetLabelSelector()) {
			list = append(list, s)
		}
	}
	e.mu.Unlock()
	resp := &runtimeapi.ListPodSandboxStatsResponse{}
	for _, s := range list {
		resp.Stats = append(resp.Stats, e.podStats(s))
	}
	return resp, nil
}

// ImageFsInfo says what images and containers' layers occupy.
func (e *Engine) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	at := e.now()
	bytes, inodes := e.cfg.Images.Usage()
	cb, ci := diskUsage(e.containerDir())
	usage := func(dir string, bytes, inodes uint64) []*runtimeapi.FilesystemUsage {
		return []*runtimeapi.FilesystemUsage{{Timestamp: at, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: dir},
			UsedBytes: u64(bytes), InodesUsed: u64(inodes)}}
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     usage(e.cfg.ImageDir, uint64(max(bytes, 0)), uint64(max(inodes, 0))),
		ContainerFilesystems: usage(e.cfg.DataDir, cb, ci),
	}, nil
}
