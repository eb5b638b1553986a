package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"golang.org/x/sys/unix"

	"proa.dev/kind"
	"proa.dev/view"
)

const (
	leaseNamespace = "kube-node-lease"
	leaseSeconds   = int32(40)
	leasePeriod    = 10 * time.Second
	statusPeriod   = 5 * time.Minute  // written at least this often
	statusCheck    = 10 * time.Second // looked at this often
	imagesShown    = 50               // largest images in status, as upstream's default
)

// machineFacts are read once.
type machineFacts struct {
	cpuMilli       int64
	memoryBytes    int64
	diskBytes      int64
	hugePages      map[string]int64 // resource name → bytes
	info           corev1.NodeSystemInfo
	bootID         string
	runtimeVersion string
}

func readMachine(dataDir string) machineFacts {
	m := machineFacts{cpuMilli: int64(runtime.NumCPU()) * 1000, hugePages: map[string]int64{}}
	m.memoryBytes = meminfo()["MemTotal"]
	for p := dataDir; ; p = filepath.Dir(p) { // the directory may not be there yet
		var st unix.Statfs_t
		if unix.Statfs(p, &st) == nil {
			m.diskBytes = int64(st.Blocks) * st.Bsize
			break
		}
		if p == "/" || p == "." {
			break
		}
	}
	entries, _ := os.ReadDir("/sys/kernel/mm/hugepages")
	for _, e := range entries {
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		n, _ := strconv.ParseInt(line("/sys/kernel/mm/hugepages/"+e.Name()+"/nr_hugepages"), 10, 64)
		q := resource.NewQuantity(kb<<10, resource.BinarySI)
		m.hugePages["hugepages-"+q.String()] = n * kb << 10
	}
	var u unix.Utsname
	unix.Uname(&u)
	m.info = corev1.NodeSystemInfo{
		MachineID: line("/etc/machine-id"), SystemUUID: line("/sys/class/dmi/id/product_uuid"), BootID: line("/proc/sys/kernel/random/boot_id"),
		KernelVersion: unix.ByteSliceToString(u.Release[:]), OperatingSystem: "linux", Architecture: runtime.GOARCH, OSImage: osImage(),
	}
	if m.info.SystemUUID == "" {
		m.info.SystemUUID = m.info.MachineID
	}
	return m
}

func line(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func osImage() string {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	for l := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(l), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return "Linux"
}

// meminfo in bytes.
func meminfo() map[string]int64 {
	out := map[string]int64{}
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return out
	}
	for l := range strings.Lines(string(data)) {
		name, rest, ok := strings.Cut(l, ":")
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err == nil {
			out[name] = n << 10
		}
	}
	return out
}

func (a *Agent) capacity() corev1.ResourceList {
	m := &a.machine
	c := corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewMilliQuantity(m.cpuMilli, resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(m.memoryBytes, resource.BinarySI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(m.diskBytes, resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(int64(a.cfg.MaxPods), resource.DecimalSI),
	}
	for name, bytes := range m.hugePages {
		c[corev1.ResourceName(name)] = *resource.NewQuantity(bytes, resource.BinarySI)
	}
	return c
}

// allocatable is what pods may ask for: capacity less what is reserved and less
// the memory below which pods are evicted.
func (a *Agent) allocatable() corev1.ResourceList {
	c := a.capacity()
	for name, q := range a.cfg.Reserved {
		v := c[name]
		v.Sub(q)
		if v.Sign() < 0 {
			v = resource.Quantity{}
		}
		c[name] = v
	}
	mem := c[corev1.ResourceMemory]
	keep := a.cfg.Eviction.MemoryBytes
	if a.cfg.Eviction.Off {
		keep = 0
	}
	for name := range c {
		if strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) {
			q := c[name]
			keep += q.Value()
		}
	}
	c[corev1.ResourceMemory] = *resource.NewQuantity(max(mem.Value()-keep, 0), resource.BinarySI)
	return c
}

func (a *Agent) labels() map[string]string {
	l := map[string]string{
		corev1.LabelHostname: a.cfg.Hostname, corev1.LabelOSStable: "linux", corev1.LabelArchStable: runtime.GOARCH,
		"beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": runtime.GOARCH, corev1.LabelInstanceTypeStable: "proa",
	}
	for k, v := range a.cfg.Labels {
		l[k] = v
	}
	return l
}

// keepNode registers the Node and keeps its status true.
func (a *Agent) keepNode(ctx context.Context) {
	var written time.Time
	pause := 100 * time.Millisecond
	for {
		cur, err := a.register(ctx)
		if err == nil {
			next := cur.DeepCopy()
			a.fillStatus(ctx, next)
			if !statusSame(&cur.Status, &next.Status) || a.clock.Now().Sub(written) >= statusPeriod {
				var o kind.Object
				if o, err = a.cfg.Client.Update(ctx, kind.Node, next, "status", metav1.UpdateOptions{}); err == nil {
					written = a.clock.Now()
					a.mu.Lock()
					a.node = o.(*corev1.Node)
					a.mu.Unlock()
				}
			}
		}
		wait := statusCheck
		switch {
		case ctx.Err() != nil:
			return
		case apierrors.IsConflict(err):
			wait = 10 * time.Millisecond
		case err != nil:
			a.log.Warn("node status is not written; trying again", "node", a.cfg.Name, "err", err)
			wait = pause
			pause = min(2*pause, statusCheck)
		default:
			pause = 100 * time.Millisecond
			if !a.isReady() {
				wait = 200 * time.Millisecond // tell as soon as the engine is there
			}
		}
		t := a.clock.NewTimer(wait)
		select {
		case <-t.C():
		case <-a.poke:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

func (a *Agent) isReady() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.node != nil && nodeCondition(&a.node.Status, corev1.NodeReady) == corev1.ConditionTrue
}

func nodeCondition(s *corev1.NodeStatus, t corev1.NodeConditionType) corev1.ConditionStatus {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return s.Conditions[i].Status
		}
	}
	return corev1.ConditionUnknown
}

// register returns the Node as it is, after creating it or correcting its labels.
func (a *Agent) register(ctx context.Context) (*corev1.Node, error) {
	cur := view.Get[*corev1.Node](a.cfg.View.Snapshot(), kind.Node, "", a.cfg.Name)
	a.mu.Lock()
	if a.node != nil && (cur == nil || newer(a.node.ResourceVersion, cur.ResourceVersion)) && cur != nil {
		cur = a.node
	}
	a.mu.Unlock()
	if cur == nil {
		o, err := a.cfg.Client.Get(ctx, kind.Node, "", a.cfg.Name, metav1.GetOptions{})
		if err == nil {
			cur = o.(*corev1.Node)
		} else if !apierrors.IsNotFound(err) {
			return nil, err
		}
	}
	if cur == nil {
		n := &corev1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"},
			ObjectMeta: metav1.ObjectMeta{Name: a.cfg.Name, Labels: a.labels()},
			Spec:       corev1.NodeSpec{ProviderID: a.cfg.ProviderID, Taints: a.cfg.Taints}}
		o, err := a.cfg.Client.Create(ctx, kind.Node, n, metav1.CreateOptions{})
		if err != nil {
			return nil, fmt.Errorf("register node %q: %w", a.cfg.Name, err)
		}
		a.events.aboutNode(corev1.EventTypeNormal, "Starting", "Starting kubelet.")
		return o.(*corev1.Node), nil
	}
	next := cur
	for k, v := range a.labels() {
		if cur.Labels[k] != v {
			if next == cur {
				next = cur.DeepCopy()
				if next.Labels == nil {
					next.Labels = map[string]string{}
				}
			}
			next.Labels[k] = v
		}
	}
	if cur.Spec.ProviderID == "" {
		if next == cur {
			next = cur.DeepCopy()
		}
		next.Spec.ProviderID = a.cfg.ProviderID
	}
	if next == cur {
		return cur, nil
	}
	o, err := a.cfg.Client.Update(ctx, kind.Node, next, "", metav1.UpdateOptions{})
	if err != nil {
		return nil, err
	}
	return o.(*corev1.Node), nil
}

// statusSame ignores heartbeat times.
func statusSame(a, b *corev1.NodeStatus) bool {
	x, y := a.DeepCopy(), b.DeepCopy()
	for _, s := range []*corev1.NodeStatus{x, y} {
		for i := range s.Conditions {
			s.Conditions[i].LastHeartbeatTime = metav1.Time{}
		}
	}
	return equality.Semantic.DeepEqual(x, y)
}

// keepForeign adds to the node's own resources the extended ones that others have
// advertised for it (Kubernetes docs, "Advertise Extended Resources for a Node").
func keepForeign(own, have corev1.ResourceList) corev1.ResourceList {
	for name, q := range have {
		if _, is := own[name]; !is && strings.Contains(string(name), "/") {
			own[name] = q
		}
	}
	return own
}

func (a *Agent) fillStatus(ctx context.Context, n *corev1.Node) {
	s := &n.Status
	s.Capacity, s.Allocatable = keepForeign(a.capacity(), s.Capacity), keepForeign(a.allocatable(), s.Allocatable)
	s.Addresses = nil
	for _, ip := range a.cfg.HostIPs {
		s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: a.cfg.Hostname})
	s.DaemonEndpoints.KubeletEndpoint.Port = a.cfg.Port
	s.NodeInfo = a.machine.info
	s.NodeInfo.KubeletVersion = a.cfg.Version
	if v, err := a.cfg.Engine.Version(ctx, &runtimeapi.VersionRequest{}); err == nil {
		s.NodeInfo.ContainerRuntimeVersion = v.RuntimeName + "://" + v.RuntimeVersion
	}
	s.Images = a.imageList(ctx)

	ready, reason, message := true, "KubeletReady", "kubelet is posting ready status"
	if why := a.engineTrouble(ctx); why != "" {
		ready, reason, message = false, "KubeletNotReady", why
	}
	p := a.pressures()
	a.condition(s, corev1.NodeMemoryPressure, p.memory, pick(p.memory, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
		pick(p.memory, "kubelet has insufficient memory available", "kubelet has sufficient memory available"))
	a.condition(s, corev1.NodeDiskPressure, p.disk, pick(p.disk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
		pick(p.disk, "kubelet has disk pressure", "kubelet has no disk pressure"))
	a.condition(s, corev1.NodePIDPressure, p.pids, pick(p.pids, "KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
		pick(p.pids, "kubelet has insufficient PID available", "kubelet has sufficient PID available"))
	a.condition(s, corev1.NodeReady, ready, reason, message)
}

func pick(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}

func (a *Agent) condition(s *corev1.NodeStatus, t corev1.NodeConditionType, is bool, reason, message string) {
	now := metav1.NewTime(a.clock.Now().Truncate(time.Second))
	status := corev1.ConditionFalse
	if is {
		status = corev1.ConditionTrue
	}
	for i := range s.Conditions {
		c := &s.Conditions[i]
		if c.Type != t {
			continue
		}
		if c.Status != status {
			c.LastTransitionTime = now
			a.events.aboutNode(corev1.EventTypeNormal, eventOf(t, is), fmt.Sprintf("Node %s status is now: %s", a.cfg.Name, eventOf(t, is)))
		}
		c.Status, c.Reason, c.Message, c.LastHeartbeatTime = status, reason, message, now
		return
	}
	s.Conditions = append(s.Conditions, corev1.NodeCondition{Type: t, Status: status, Reason: reason, Message: message,
		LastHeartbeatTime: now, LastTransitionTime: now})
}

func eventOf(t corev1.NodeConditionType, is bool) string {
	switch t {
	case corev1.NodeMemoryPressure:
		return pick(is, "NodeHasInsufficientMemory", "NodeHasSufficientMemory")
	case corev1.NodeDiskPressure:
		return pick(is, "NodeHasDiskPressure", "NodeHasNoDiskPressure")
	case corev1.NodePIDPressure:
		return pick(is, "NodeHasInsufficientPID", "NodeHasSufficientPID")
	}
	return pick(is, "NodeReady", "NodeNotReady")
}

// engineTrouble says why no pod can run, "" when they can.
func (a *Agent) engineTrouble(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	st, err := a.cfg.Engine.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return "container runtime is down: " + message(err)
	}
	var bad []string
	for _, c := range st.GetStatus().GetConditions() {
		if c.Status {
			continue
		}
		switch c.Type {
		case "RuntimeReady":
			bad = append(bad, fmt.Sprintf("container runtime not ready: %s=false reason:%s message:%s", c.Type, c.Reason, c.Message))
		case "NetworkReady":
			bad = append(bad, fmt.Sprintf("container runtime network not ready: %s=false reason:%s message:%s", c.Type, c.Reason, c.Message))
		}
	}
	return strings.Join(bad, ", ")
}

func (a *Agent) imageList(ctx context.Context) []corev1.ContainerImage {
	list, err := a.cfg.Engine.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil
	}
	sortImages(list.Images)
	var out []corev1.ContainerImage
	for _, i := range list.Images[:min(len(list.Images), imagesShown)] {
		names := append(append([]string(nil), i.RepoDigests...), i.RepoTags...)
		if len(names) == 0 {
			continue
		}
		out = append(out, corev1.ContainerImage{Names: names[:min(len(names), 5)], SizeBytes: int64(i.Size)})
	}
	return out
}

// keepLease renews the node's lease: the heartbeat by which its death is noticed.
func (a *Agent) keepLease(ctx context.Context) {
	var cur *coordinationv1.Lease
	pause := 100 * time.Millisecond
	for {
		var err error
		cur, err = a.renew(ctx, cur)
		wait := leasePeriod
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			a.log.Warn("node lease is not renewed; trying again", "node", a.cfg.Name, "err", err)
			wait, cur = pause, nil
			pause = min(2*pause, leasePeriod)
		} else {
			pause = 100 * time.Millisecond
		}
		if !a.sleep(ctx, wait) {
			return
		}
	}
}

func (a *Agent) renew(ctx context.Context, cur *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	now := metav1.NewMicroTime(a.clock.Now())
	holder, duration := a.cfg.Name, leaseSeconds
	if cur == nil {
		o, err := a.cfg.Client.Get(ctx, kind.Lease, leaseNamespace, a.cfg.Name, metav1.GetOptions{})
		switch {
		case err == nil:
			cur = o.(*coordinationv1.Lease)
		case apierrors.IsNotFound(err):
			l := &coordinationv1.Lease{TypeMeta: metav1.TypeMeta{Kind: "Lease", APIVersion: "coordination.k8s.io/v1"},
				ObjectMeta: metav1.ObjectMeta{Namespace: leaseNamespace, Name: a.cfg.Name},
				Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &duration, RenewTime: &now}}
			a.mu.Lock()
			if a.node != nil {
				l.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: a.node.Name, UID: a.node.UID}}
			}
			a.mu.Unlock()
			o, err := a.cfg.Client.Create(ctx, kind.Lease, l, metav1.CreateOptions{})
			if err != nil {
				return nil, err
			}
			return o.(*coordinationv1.Lease), nil
		default:
			return nil, err
		}
	}
	next := cur.DeepCopy()
	next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds, next.Spec.RenewTime = &holder, &duration, &now
	a.mu.Lock()
	if len(next.OwnerReferences) == 0 && a.node != nil {
		next.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: a.node.Name, UID: a.node.UID}}
	}
	a.mu.Unlock()
	o, err := a.cfg.Client.Update(ctx, kind.Lease, next, "", metav1.UpdateOptions{})
	if err != nil {
		return nil, err
	}
	return o.(*coordinationv1.Lease), nil
}
