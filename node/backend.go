package node

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"proa.dev/kind"
	"proa.dev/node/pod"
	"proa.dev/node/stream"
)

// Handler is the node's HTTPS surface (see node/stream). authenticate and
// authorize decide on every request but /healthz.
func (a *Agent) Handler(authenticate func(*http.Request) (stream.User, bool),
	authorize func(ctx context.Context, user stream.User, verb, subresource string) bool) http.Handler {
	return stream.Handler(stream.Config{Backend: a, Streams: a.cfg.Streams, Authenticate: authenticate, Authorize: authorize,
		Clock: a.clock, Log: a.log})
}

// Pods of this node with their newest status.
func (b *Agent) Pods() []*corev1.Pod {
	var out []*corev1.Pod
	for _, w := range b.all() {
		p := *w.pod()
		if s := w.state.Load(); s.Published != nil {
			p.Status = mergeStatus(&p.Status, s.Published)
		}
		out = append(out, &p)
	}
	return out
}

func (b *Agent) find(namespace, name, uid string) (*worker, error) {
	var best *worker
	for _, w := range b.all() {
		if w.namespace != namespace || w.name != name || uid != "" && string(w.uid) != uid {
			continue
		}
		if best == nil || w.state.Load().Stage < best.state.Load().Stage {
			best = w
		}
	}
	if best == nil {
		return nil, apierrors.NewNotFound(kind.Pod.GroupResource(), name)
	}
	return best, nil
}

// Container is the engine's ID of a running container.
func (b *Agent) Container(namespace, name, uid, container string) (string, error) {
	w, err := b.find(namespace, name, uid)
	if err != nil {
		return "", err
	}
	for _, c := range w.state.Load().Containers {
		if c.Name != container {
			continue
		}
		switch c.Step {
		case pod.Hooking, pod.Up, pod.Ending, pod.Killing:
			return c.ID, nil
		}
		return "", apierrors.NewBadRequest(fmt.Sprintf("container %q in pod %q is not running", container, name))
	}
	return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", container, name))
}

// Sandbox is the engine's ID of a pod's sandbox.
func (b *Agent) Sandbox(namespace, name, uid string) (string, error) {
	w, err := b.find(namespace, name, uid)
	if err != nil {
		return "", err
	}
	if id := w.state.Load().Sandbox.ID; id != "" {
		return id, nil
	}
	return "", apierrors.NewBadRequest(fmt.Sprintf("pod %q has no sandbox yet", name))
}

// Log is where a container's output lies.
func (b *Agent) Log(namespace, name, container string, previous bool) (stream.LogSource, error) {
	w, err := b.find(namespace, name, "")
	if err != nil {
		return stream.LogSource{}, err
	}
	s := w.state.Load()
	for i := range s.Containers {
		c := &s.Containers[i]
		if c.Name != container {
			continue
		}
		attempt := c.Restarts
		if previous {
			// While a restart waits, the attempt that ended is the last one there is.
			if c.Last == nil {
				return stream.LogSource{}, apierrors.NewBadRequest(fmt.Sprintf("previous terminated container %q in pod %q not found", container, name))
			}
			attempt--
		} else if c.ID == "" {
			reason := "ContainerCreating"
			if c.WaitReason != "" {
				reason = c.WaitReason
			} else if c.Role == pod.Main && !s.Initialized && len(s.Containers) > 1 {
				reason = "PodInitializing"
			}
			return stream.LogSource{}, apierrors.NewBadRequest(fmt.Sprintf("container %q in pod %q is waiting to start: %s", container, name, reason))
		}
		id := c.ID
		return stream.LogSource{
			Path: filepath.Join(b.podLogDir(w.pod()), container, fmt.Sprintf("%d.log", attempt)),
			Running: func() bool {
				if previous {
					return false
				}
				for _, now := range w.state.Load().Containers {
					if now.Name == container {
						return now.ID == id && now.Term == nil && w.state.Load().Stage < pod.Cleaning
					}
				}
				return false
			},
		}, nil
	}
	return stream.LogSource{}, apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", container, name))
}

// Config is shown at /configz, in the names of upstream's KubeletConfiguration.
func (b *Agent) Config() any {
	e := b.cfg.Eviction
	return map[string]any{
		"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
		"port": b.cfg.Port, "maxPods": b.cfg.MaxPods, "clusterDNS": b.cfg.ClusterDNS, "clusterDomain": b.cfg.ClusterDomain,
		"containerLogMaxSize": fmt.Sprint(b.cfg.LogMaxBytes), "containerLogMaxFiles": b.cfg.LogMaxFiles,
		"nodeLeaseDurationSeconds": leaseSeconds, "providerID": b.cfg.ProviderID, "seccompDefault": true,
		"evictionHard": map[string]string{"memory.available": fmt.Sprint(e.MemoryBytes),
			"nodefs.available": fmt.Sprintf("%d%% and %d", e.DiskPercent, e.DiskBytes)},
		"resolvConf": b.cfg.ResolvConf, "cgroupDriver": "cgroupfs",
	}
}

func u64(v *runtimeapi.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	n := v.Value
	return &n
}

func cpuStats(c *runtimeapi.CpuUsage) *statsv1alpha1.CPUStats {
	if c == nil {
		return nil
	}
	return &statsv1alpha1.CPUStats{Time: metav1.NewTime(time.Unix(0, c.Timestamp)), UsageNanoCores: u64(c.UsageNanoCores),
		UsageCoreNanoSeconds: u64(c.UsageCoreNanoSeconds)}
}

func memoryStats(m *runtimeapi.MemoryUsage) *statsv1alpha1.MemoryStats {
	if m == nil {
		return nil
	}
	return &statsv1alpha1.MemoryStats{Time: metav1.NewTime(time.Unix(0, m.Timestamp)), AvailableBytes: u64(m.AvailableBytes),
		UsageBytes: u64(m.UsageBytes), WorkingSetBytes: u64(m.WorkingSetBytes), RSSBytes: u64(m.RssBytes),
		PageFaults: u64(m.PageFaults), MajorPageFaults: u64(m.MajorPageFaults)}
}

// Summary is what metrics-server and kubectl top read.
func (b *Agent) Summary(ctx context.Context) (*statsv1alpha1.Summary, error) {
	boxes, err := b.cfg.Engine.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	if status.Code(err) == codes.Unimplemented {
		boxes, err = b.sumContainers(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("read pod statistics: %s", message(err))
	}
	now := metav1.NewTime(b.clock.Now())
	sum := &statsv1alpha1.Summary{Node: statsv1alpha1.NodeStats{NodeName: b.cfg.Name, StartTime: metav1.NewTime(bootTime(now.Time)),
		CPU: machineCPU(now), Memory: machineMemory(now)}}
	if m, err := measure(b.cfg.DataDir); err == nil {
		t, f, u := uint64(m.DiskBytes), uint64(m.DiskFree), uint64(max(m.DiskBytes-m.DiskFree, 0))
		sum.Node.Fs = &statsv1alpha1.FsStats{Time: now, CapacityBytes: &t, AvailableBytes: &f, UsedBytes: &u}
	}
	for _, s := range boxes.Stats {
		at := s.GetAttributes()
		m := at.GetMetadata()
		ps := statsv1alpha1.PodStats{PodRef: statsv1alpha1.PodReference{Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid()},
			CPU: cpuStats(s.GetLinux().GetCpu()), Memory: memoryStats(s.GetLinux().GetMemory())}
		if w := b.workerByUID(m.GetUid()); w != nil {
			ps.StartTime = metav1.NewTime(w.state.Load().StartTime)
		}
		if n := s.GetLinux().GetNetwork().GetDefaultInterface(); n != nil {
			ps.Network = &statsv1alpha1.NetworkStats{Time: now, InterfaceStats: statsv1alpha1.InterfaceStats{Name: n.Name,
				RxBytes: u64(n.RxBytes), TxBytes: u64(n.TxBytes), RxErrors: u64(n.RxErrors), TxErrors: u64(n.TxErrors)}}
		}
		if p := s.GetLinux().GetProcess(); p != nil {
			ps.ProcessStats = &statsv1alpha1.ProcessStats{ProcessCount: u64(p.ProcessCount)}
		}
		for _, c := range s.GetLinux().GetContainers() {
			ps.Containers = append(ps.Containers, statsv1alpha1.ContainerStats{Name: c.GetAttributes().GetMetadata().GetName(),
				StartTime: ps.StartTime, CPU: cpuStats(c.Cpu), Memory: memoryStats(c.Memory)})
		}
		sum.Pods = append(sum.Pods, ps)
	}
	return sum, nil
}

// sumContainers makes pods' statistics of containers', for engines that have only
// those.
func (b *Agent) sumContainers(ctx context.Context) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	list, err := b.cfg.Engine.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		return nil, err
	}
	pods := map[string]*runtimeapi.PodSandboxStats{}
	out := &runtimeapi.ListPodSandboxStatsResponse{}
	add := func(to **runtimeapi.UInt64Value, v *runtimeapi.UInt64Value) {
		if v == nil {
			return
		}
		sum := &runtimeapi.UInt64Value{Value: v.Value}
		if *to != nil {
			sum.Value += (*to).Value
		}
		*to = sum
	}
	for _, c := range list.Stats {
		l := c.GetAttributes().GetLabels()
		p := pods[l[labelPodUID]]
		if p == nil {
			p = &runtimeapi.PodSandboxStats{Attributes: &runtimeapi.PodSandboxAttributes{Metadata: &runtimeapi.PodSandboxMetadata{
				Name: l[labelPodName], Namespace: l[labelPodNamespace], Uid: l[labelPodUID]}},
				Linux: &runtimeapi.LinuxPodSandboxStats{Cpu: &runtimeapi.CpuUsage{}, Memory: &runtimeapi.MemoryUsage{}}}
			pods[l[labelPodUID]] = p
			out.Stats = append(out.Stats, p)
		}
		p.Linux.Containers = append(p.Linux.Containers, c)
		if c.Cpu != nil {
			p.Linux.Cpu.Timestamp = c.Cpu.Timestamp
			add(&p.Linux.Cpu.UsageCoreNanoSeconds, c.Cpu.UsageCoreNanoSeconds)
			add(&p.Linux.Cpu.UsageNanoCores, c.Cpu.UsageNanoCores)
		}
		if c.Memory != nil {
			p.Linux.Memory.Timestamp = c.Memory.Timestamp
			add(&p.Linux.Memory.WorkingSetBytes, c.Memory.WorkingSetBytes)
			add(&p.Linux.Memory.UsageBytes, c.Memory.UsageBytes)
			add(&p.Linux.Memory.RssBytes, c.Memory.RssBytes)
		}
	}
	return out, nil
}

func (b *Agent) workerByUID(uid string) *worker {
	for _, w := range b.all() {
		if string(w.uid) == uid {
			return w
		}
	}
	return nil
}

func bootTime(now time.Time) time.Time {
	up, _, _ := strings.Cut(line("/proc/uptime"), " ")
	d, err := time.ParseDuration(up + "s")
	if err != nil {
		return now
	}
	return now.Add(-d)
}

// machineCPU adds up the busy time of all processors. The rate is left to those
// who read twice.
func machineCPU(now metav1.Time) *statsv1alpha1.CPUStats {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil
	}
	first, _, _ := strings.Cut(string(data), "\n")
	var user, nice, system, idle, iowait, irq, softirq, steal uint64
	if _, err := fmt.Sscanf(first, "cpu %d %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal); err != nil {
		return nil
	}
	busy := (user + nice + system + irq + softirq + steal) * 10_000_000 // USER_HZ is 100
	return &statsv1alpha1.CPUStats{Time: now, UsageCoreNanoSeconds: &busy}
}

func machineMemory(now metav1.Time) *statsv1alpha1.MemoryStats {
	m := meminfo()
	available := uint64(m["MemAvailable"])
	used := uint64(max(m["MemTotal"]-m["MemFree"], 0))
	working := uint64(max(m["MemTotal"]-m["MemAvailable"], 0))
	rss := uint64(m["AnonPages"])
	return &statsv1alpha1.MemoryStats{Time: now, AvailableBytes: &available, UsageBytes: &used, WorkingSetBytes: &working, RSSBytes: &rss}
}

// Metrics writes one page in Prometheus' text form.
func (b *Agent) Metrics(ctx context.Context, page string, w io.Writer) error {
	switch page {
	case "resource", "cadvisor":
		sum, err := b.Summary(ctx)
		if err != nil {
			return err
		}
		if page == "resource" {
			return resourceMetrics(w, sum)
		}
		return cadvisorMetrics(w, sum)
	case "probes":
		return nil
	}
	stages := map[pod.Stage]int{}
	containers := map[string]int{"running": 0, "waiting": 0, "exited": 0}
	for _, wk := range b.all() {
		s := wk.state.Load()
		stages[s.Stage]++
		for _, c := range s.Containers {
			switch {
			case c.Step == pod.Ended:
				containers["exited"]++
			case c.Step >= pod.Hooking:
				containers["running"]++
			default:
				containers["waiting"]++
			}
		}
	}
	m := metricsWriter{w: w}
	m.head("kubelet_node_name", "gauge", "The node's name. The count is always 1.")
	m.line("kubelet_node_name", 1, "node", b.cfg.Name)
	m.head("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox")
	m.line("kubelet_running_pods", float64(stages[pod.Running]+stages[pod.Draining]+stages[pod.Stopping]))
	m.head("kubelet_running_containers", "gauge", "Number of containers currently running")
	for _, k := range []string{"exited", "running", "waiting"} {
		m.line("kubelet_running_containers", float64(containers[k]), "container_state", k)
	}
	m.head("proa_node_pods", "gauge", "Pods by stage of their life cycle")
	for st := pod.Waiting; st <= pod.Gone; st++ {
		m.line("proa_node_pods", float64(stages[st]), "stage", st.String())
	}
	return m.err
}

type metricsWriter struct {
	w   io.Writer
	err error
}

func (m *metricsWriter) head(name, kind, help string) {
	if m.err == nil {
		_, m.err = fmt.Fprintf(m.w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
}

func (m *metricsWriter) line(name string, v float64, labels ...string) {
	if m.err != nil {
		return
	}
	var b strings.Builder
	for i := 0; i+1 < len(labels); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%s=%q", labels[i], labels[i+1])
	}
	text := name
	if b.Len() > 0 {
		text += "{" + b.String() + "}"
	}
	_, m.err = fmt.Fprintf(m.w, "%s %v\n", text, v)
}

const nano = 1e9

func resourceMetrics(w io.Writer, s *statsv1alpha1.Summary) error {
	m := metricsWriter{w: w}
	each := func(name, kind, help string, f func(add func(v float64, labels ...string))) {
		m.head(name, kind, help)
		f(func(v float64, labels ...string) { m.line(name, v, labels...) })
	}
	sortPods(s)
	each("node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node in core-seconds", func(add func(float64, ...string)) {
		if c := s.Node.CPU; c != nil && c.UsageCoreNanoSeconds != nil {
			add(float64(*c.UsageCoreNanoSeconds) / nano)
		}
	})
	each("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes", func(add func(float64, ...string)) {
		if c := s.Node.Memory; c != nil && c.WorkingSetBytes != nil {
			add(float64(*c.WorkingSetBytes))
		}
	})
	perContainer := func(f func(c *statsv1alpha1.ContainerStats, labels []string)) {
		for i := range s.Pods {
			p := &s.Pods[i]
			for j := range p.Containers {
				f(&p.Containers[j], []string{"container", p.Containers[j].Name, "namespace", p.PodRef.Namespace, "pod", p.PodRef.Name})
			}
		}
	}
	each("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the container in core-seconds", func(add func(float64, ...string)) {
		perContainer(func(c *statsv1alpha1.ContainerStats, l []string) {
			if c.CPU != nil && c.CPU.UsageCoreNanoSeconds != nil {
				add(float64(*c.CPU.UsageCoreNanoSeconds)/nano, l...)
			}
		})
	})
	each("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes", func(add func(float64, ...string)) {
		perContainer(func(c *statsv1alpha1.ContainerStats, l []string) {
			if c.Memory != nil && c.Memory.WorkingSetBytes != nil {
				add(float64(*c.Memory.WorkingSetBytes), l...)
			}
		})
	})
	each("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds", func(add func(float64, ...string)) {
		perContainer(func(c *statsv1alpha1.ContainerStats, l []string) {
			if !c.StartTime.IsZero() {
				add(float64(c.StartTime.UnixNano())/nano, l...)
			}
		})
	})
	each("pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod in core-seconds", func(add func(float64, ...string)) {
		for i := range s.Pods {
			if p := &s.Pods[i]; p.CPU != nil && p.CPU.UsageCoreNanoSeconds != nil {
				add(float64(*p.CPU.UsageCoreNanoSeconds)/nano, "namespace", p.PodRef.Namespace, "pod", p.PodRef.Name)
			}
		}
	})
	each("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes", func(add func(float64, ...string)) {
		for i := range s.Pods {
			if p := &s.Pods[i]; p.Memory != nil && p.Memory.WorkingSetBytes != nil {
				add(float64(*p.Memory.WorkingSetBytes), "namespace", p.PodRef.Namespace, "pod", p.PodRef.Name)
			}
		}
	})
	each("resource_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise", func(add func(float64, ...string)) { add(0) })
	return m.err
}

func cadvisorMetrics(w io.Writer, s *statsv1alpha1.Summary) error {
	m := metricsWriter{w: w}
	sortPods(s)
	type series struct {
		name, kind, help string
		value            func(c *statsv1alpha1.ContainerStats) *uint64
		scale            float64
	}
	cpu := func(f func(*statsv1alpha1.CPUStats) *uint64) func(*statsv1alpha1.ContainerStats) *uint64 {
		return func(c *statsv1alpha1.ContainerStats) *uint64 {
			if c.CPU == nil {
				return nil
			}
			return f(c.CPU)
		}
	}
	mem := func(f func(*statsv1alpha1.MemoryStats) *uint64) func(*statsv1alpha1.ContainerStats) *uint64 {
		return func(c *statsv1alpha1.ContainerStats) *uint64 {
			if c.Memory == nil {
				return nil
			}
			return f(c.Memory)
		}
	}
	for _, x := range []series{
		{"container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", cpu(func(c *statsv1alpha1.CPUStats) *uint64 { return c.UsageCoreNanoSeconds }), nano},
		{"container_memory_usage_bytes", "gauge", "Current memory usage in bytes, including all memory regardless of when it was accessed", mem(func(c *statsv1alpha1.MemoryStats) *uint64 { return c.UsageBytes }), 1},
		{"container_memory_working_set_bytes", "gauge", "Current working set in bytes.", mem(func(c *statsv1alpha1.MemoryStats) *uint64 { return c.WorkingSetBytes }), 1},
		{"container_memory_rss", "gauge", "Size of RSS in bytes.", mem(func(c *statsv1alpha1.MemoryStats) *uint64 { return c.RSSBytes }), 1},
	} {
		m.head(x.name, x.kind, x.help)
		for i := range s.Pods {
			p := &s.Pods[i]
			for j := range p.Containers {
				if v := x.value(&p.Containers[j]); v != nil {
					m.line(x.name, float64(*v)/x.scale, "container", p.Containers[j].Name, "namespace", p.PodRef.Namespace, "pod", p.PodRef.Name)
				}
			}
		}
	}
	for _, x := range []struct {
		name, help string
		value      func(n *statsv1alpha1.NetworkStats) *uint64
	}{
		{"container_network_receive_bytes_total", "Cumulative count of bytes received", func(n *statsv1alpha1.NetworkStats) *uint64 { return n.RxBytes }},
		{"container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", func(n *statsv1alpha1.NetworkStats) *uint64 { return n.TxBytes }},
	} {
		m.head(x.name, "counter", x.help)
		for i := range s.Pods {
			p := &s.Pods[i]
			if p.Network == nil {
				continue
			}
			if v := x.value(p.Network); v != nil {
				m.line(x.name, float64(*v), "interface", p.Network.Name, "namespace", p.PodRef.Namespace, "pod", p.PodRef.Name)
			}
		}
	}
	return m.err
}

func sortPods(s *statsv1alpha1.Summary) {
	sort.Slice(s.Pods, func(i, j int) bool {
		a, b := s.Pods[i].PodRef, s.Pods[j].PodRef
		if a.Namespace != b.Namespace {
			return a.Namespace < b.Namespace
		}
		return a.Name < b.Name
	})
}
