package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"golang.org/x/sys/unix"

	"proa.dev/node/pod"
)

const (
	// evictGrace is what an evicted pod's containers get, in seconds, as upstream's
	// hard thresholds give.
	evictGrace = int64(1)
	// criticalPriority and above is never evicted: the system's own classes.
	criticalPriority = 2_000_000_000
)

func podUID(labels map[string]string) types.UID { return types.UID(labels[labelPodUID]) }

func quantity(bytes int64) *resource.Quantity { return resource.NewQuantity(bytes, resource.BinarySI) }

func isCritical(p *corev1.Pod) bool {
	return p.Spec.Priority != nil && *p.Spec.Priority >= criticalPriority
}

// candidate is a pod that may be evicted.
type candidate struct {
	w          *worker
	priority   int32
	usage      int64
	request    int64
	containers map[string]int64 // usage by container
}

// rank orders candidates, the one that can best be spared first: over its requests,
// then by priority, then by how far over. Behaviour: Kubernetes docs, "Node-pressure
// Eviction".
func rank(all []candidate) {
	slices.SortStableFunc(all, func(x, y candidate) int {
		xOver, yOver := x.usage > x.request, y.usage > y.request
		switch {
		case xOver && !yOver:
			return -1
		case yOver && !xOver:
			return 1
		}
		return cmp.Or(cmp.Compare(x.priority, y.priority), cmp.Compare(y.usage-y.request, x.usage-x.request))
	})
}

// usages of the running pods, by pod and container.
func (a *Agent) usages(ctx context.Context, what corev1.ResourceName) map[types.UID]map[string]int64 {
	out := map[types.UID]map[string]int64{}
	list, err := a.cfg.Engine.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		return out
	}
	for _, s := range list.Stats {
		uid := podUID(s.GetAttributes().GetLabels())
		if out[uid] == nil {
			out[uid] = map[string]int64{}
		}
		n := int64(s.GetMemory().GetWorkingSetBytes().GetValue())
		if what == corev1.ResourceEphemeralStorage {
			n = int64(s.GetWritableLayer().GetUsedBytes().GetValue())
		}
		out[uid][s.GetAttributes().GetMetadata().GetName()] += n
	}
	return out
}

// evictOne ends the pod that can best be spared and returns it, or nil.
func (a *Agent) evictOne(ctx context.Context, what corev1.ResourceName, threshold *resource.Quantity, available int64) *worker {
	usage := a.usages(ctx, what)
	var all []candidate
	for _, w := range a.all() {
		s := w.state.Load()
		if s.Stage >= pod.Draining || s.Pod == nil || isCritical(s.Pod) {
			continue
		}
		c := candidate{w: w, containers: usage[w.uid]}
		if s.Pod.Spec.Priority != nil {
			c.priority = *s.Pod.Spec.Priority
		}
		for _, n := range c.containers {
			c.usage += n
		}
		if what == corev1.ResourceEphemeralStorage {
			c.usage += diskUsage(a.volumes.PodDir(string(w.uid))) + diskUsage(a.podLogDir(s.Pod))
		}
		q := requests(s.Pod)[what]
		c.request = q.Value()
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil
	}
	rank(all)
	c := all[0]
	var b strings.Builder
	fmt.Fprintf(&b, "The node was low on resource: %s. Threshold quantity: %s, available: %s. ", what, threshold, quantity(available>>10<<10))
	p := c.w.pod()
	for i := range p.Spec.Containers {
		k := &p.Spec.Containers[i]
		request := k.Resources.Requests[what]
		if n := c.containers[k.Name]; n > request.Value() {
			fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of %s. ", k.Name, quantity(n), request.String(), what)
		}
	}
	a.evict(c.w, b.String(), "resource", string(what), "usage", c.usage, "available", available)
	return c.w
}

func (a *Agent) evict(w *worker, message string, facts ...any) {
	a.log.Warn("pod evicted", append([]any{"pod", w.namespace + "/" + w.name, "message", message}, facts...)...)
	a.events.about(w.pod(), "", corev1.EventTypeWarning, "Evicted", message)
	grace := evictGrace
	w.post(pod.Evict{Reason: "Evicted", Message: message, GraceSeconds: &grace})
}

// refuses says why a new pod is not taken while the node is in need, "" if it is.
func (p pressures) refuses(x *corev1.Pod) string {
	if p.none() || isCritical(x) {
		return ""
	}
	if p == (pressures{memory: true}) {
		if pod.QOS(x) != corev1.PodQOSBestEffort {
			return ""
		}
		for _, t := range x.Spec.Tolerations {
			taint := corev1.Taint{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule}
			if (t.Key == "" && t.Operator == corev1.TolerationOpExists || t.Key == taint.Key) && (t.Effect == "" || t.Effect == taint.Effect) {
				return ""
			}
		}
	}
	return fmt.Sprintf("The node had condition: %s. ", p)
}

// checkLocalStorage evicts pods that use more local storage than they may: an
// emptyDir on disk over its sizeLimit, a container's own files and logs over its
// limit of ephemeral-storage, a pod over the sum of them.
func (a *Agent) checkLocalStorage(ctx context.Context) {
	var usage map[types.UID]map[string]int64 // asked for when a pod has a limit
	for _, w := range a.all() {
		s := w.state.Load()
		if s.Stage != pod.Running || s.Pod == nil || ctx.Err() != nil {
			continue
		}
		if message := a.overLocalStorage(ctx, w, s.Pod, &usage); message != "" {
			a.evict(w, message)
		}
	}
}

func (a *Agent) overLocalStorage(ctx context.Context, w *worker, p *corev1.Pod, usage *map[types.UID]map[string]int64) string {
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || v.EmptyDir.Medium != corev1.StorageMediumDefault || v.EmptyDir.SizeLimit.IsZero() {
			continue
		}
		if diskUsage(a.volumes.Path(p, v)) > v.EmptyDir.SizeLimit.Value() {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String())
		}
	}
	var limits resource.Quantity
	limited := true
	for i := range p.Spec.Containers {
		limit, ok := p.Spec.Containers[i].Resources.Limits[corev1.ResourceEphemeralStorage]
		limited = limited && ok
		limits.Add(limit)
		if !ok {
			continue
		}
		if *usage == nil {
			*usage = a.usages(ctx, corev1.ResourceEphemeralStorage)
		}
		name := p.Spec.Containers[i].Name
		if (*usage)[w.uid][name]+diskUsage(filepath.Join(a.podLogDir(p), name)) > limit.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", name, limit.String())
		}
	}
	if !limited {
		return ""
	}
	all := diskUsage(a.volumes.PodDir(string(w.uid))) + diskUsage(a.podLogDir(p))
	for _, n := range (*usage)[w.uid] {
		all += n
	}
	if all > limits.Value() {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limits.String())
	}
	return ""
}

// diskUsage is what the files below dir take, in bytes; other file systems are
// not entered.
func diskUsage(dir string) int64 {
	var sum int64
	var dev uint64
	filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			return filepath.SkipDir
		}
		var st unix.Stat_t
		if unix.Lstat(p, &st) != nil {
			return nil
		}
		if p == dir {
			dev = st.Dev
		} else if st.Dev != dev {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		sum += st.Blocks * 512
		return nil
	})
	return sum
}
