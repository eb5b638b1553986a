package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"golang.org/x/sys/unix"

	"proa.dev/node/pod"
)

// Eviction says when the node is in need. A threshold on disk is crossed only
// when less than the percentage AND less than the absolute amount is free, so
// that a large disk that is 95 % full, with gigabytes left, is no emergency.
type Eviction struct {
	Off bool
	// MemoryBytes: below this much available memory pods are evicted. Default 100 MiB.
	MemoryBytes int64
	// DiskPercent and DiskBytes free on the data directory's file system: below both,
	// dead containers and unused images go, then pods. Default 10 and 2 GiB.
	DiskPercent int64
	DiskBytes   int64
	// ImagePercent and ImageBytes free: below both, unused pulled images go, the
	// longest unused first, until twice ImageBytes are free. Default 15 and 5 GiB.
	// Imported images (pinned) are never removed.
	ImagePercent int64
	ImageBytes   int64
	// Period of looking. Default 10 s.
	Period time.Duration
}

func (e *Eviction) defaults() {
	e.MemoryBytes = cmp.Or(e.MemoryBytes, 100<<20)
	e.DiskPercent = cmp.Or(e.DiskPercent, 10)
	e.DiskBytes = cmp.Or(e.DiskBytes, 2<<30)
	e.ImagePercent = cmp.Or(e.ImagePercent, 15)
	e.ImageBytes = cmp.Or(e.ImageBytes, 5<<30)
	e.Period = cmp.Or(e.Period, 10*time.Second)
}

type pressures struct{ memory, disk, pids bool }

// disk says how much of the data directory's file system is there and free to us.
func (a *Agent) disk() (total, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(a.cfg.DataDir, &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

func short(total, free, percent, bytes int64) bool {
	return free < bytes && free < total/100*percent
}

func (a *Agent) pressures() pressures {
	var p pressures
	e := &a.cfg.Eviction
	if e.Off {
		return p
	}
	if m := meminfo(); m["MemTotal"] > 0 {
		p.memory = m["MemAvailable"] < e.MemoryBytes
	}
	if total, free, err := a.disk(); err == nil {
		p.disk = short(total, free, e.DiskPercent, e.DiskBytes)
	}
	limit, err1 := strconv.ParseInt(line("/proc/sys/kernel/pid_max"), 10, 64)
	load := strings.Fields(line("/proc/loadavg"))
	if err1 == nil && len(load) > 3 {
		if _, all, ok := strings.Cut(load[3], "/"); ok {
			if n, err := strconv.ParseInt(all, 10, 64); err == nil {
				p.pids = limit-n < limit/100
			}
		}
	}
	return p
}

// guard frees disk and memory before the machine runs out.
func (a *Agent) guard(ctx context.Context) {
	unused := map[string]time.Time{} // image → since when
	var was pressures
	for a.sleep(ctx, a.cfg.Eviction.Period) {
		if a.cfg.Eviction.Off {
			continue
		}
		if err := a.collectImages(ctx, unused); err != nil && ctx.Err() == nil {
			a.log.Warn("images are not collected", "err", err)
		}
		p := a.pressures()
		if p != was {
			was = p
			select { // the node's conditions change now
			case a.poke <- struct{}{}:
			default:
			}
		}
		switch {
		case p.memory:
			m := meminfo()
			a.evictOne(ctx, corev1.ResourceMemory, a.cfg.Eviction.MemoryBytes, m["MemAvailable"])
		case p.disk:
			_, free, _ := a.disk()
			a.evictOne(ctx, corev1.ResourceEphemeralStorage, a.cfg.Eviction.DiskBytes, free)
		}
		a.checkSizeLimits(ctx)
	}
}

func sortImages(list []*runtimeapi.Image) {
	sort.SliceStable(list, func(i, j int) bool {
		if list[i].Size != list[j].Size {
			return list[i].Size > list[j].Size
		}
		return list[i].Id < list[j].Id
	})
}

func (a *Agent) collectImages(ctx context.Context, unused map[string]time.Time) error {
	total, free, err := a.disk()
	if err != nil {
		return err
	}
	e := &a.cfg.Eviction
	if !short(total, free, e.ImagePercent, e.ImageBytes) {
		return nil
	}
	images, err := a.cfg.Engine.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return err
	}
	containers, err := a.cfg.Engine.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, c := range containers.Containers {
		used[c.ImageRef], used[c.ImageId], used[c.GetImage().GetImage()] = true, true, true
	}
	for _, w := range a.all() { // what pods are about to start
		p := w.pod()
		for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range list {
				used[list[i].Image] = true
			}
		}
	}
	now := a.clock.Now()
	var idle []*runtimeapi.Image
	for _, i := range images.Images {
		busy := used[i.Id] || i.Pinned
		for _, n := range append(append([]string(nil), i.RepoTags...), i.RepoDigests...) {
			busy = busy || used[n] || used[shortName(n)]
		}
		if busy {
			delete(unused, i.Id)
			continue
		}
		if _, ok := unused[i.Id]; !ok {
			unused[i.Id] = now
		}
		if now.Sub(unused[i.Id]) >= 2*time.Minute {
			idle = append(idle, i)
		}
	}
	slices.SortStableFunc(idle, func(x, y *runtimeapi.Image) int { return unused[x.Id].Compare(unused[y.Id]) })
	for _, i := range idle {
		if free >= 2*e.ImageBytes {
			break
		}
		if _, err := a.cfg.Engine.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}}); err != nil {
			return err
		}
		a.log.Info("unused image removed", "image", i.Id, "bytes", i.Size, "free", free)
		delete(unused, i.Id)
		free += int64(i.Size)
	}
	return nil
}

func shortName(n string) string {
	n = strings.TrimPrefix(n, "docker.io/")
	return strings.TrimSuffix(strings.TrimPrefix(n, "library/"), ":latest")
}

// evictOne ends the pod that can best be spared: over its requests first, then by
// priority, then by how far over. Behaviour: Kubernetes docs, "Node-pressure Eviction".
func (a *Agent) evictOne(ctx context.Context, what corev1.ResourceName, threshold, available int64) {
	usage := map[string]int64{}
	list, err := a.cfg.Engine.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	if err == nil {
		for _, s := range list.Stats {
			if what == corev1.ResourceMemory {
				usage[s.GetAttributes().GetMetadata().GetUid()] = int64(s.GetLinux().GetMemory().GetWorkingSetBytes().GetValue())
			}
		}
	}
	type candidate struct {
		w        *worker
		over     bool
		priority int32
		excess   int64
		usage    int64
	}
	var all []candidate
	for _, w := range a.all() {
		s := w.state.Load()
		if s.Stage >= pod.Draining || s.Pod == nil {
			continue
		}
		priority := int32(0)
		if s.Pod.Spec.Priority != nil {
			priority = *s.Pod.Spec.Priority
		}
		if priority >= 2_000_000_000 {
			continue // critical pods stay
		}
		u := usage[string(w.uid)]
		if what == corev1.ResourceEphemeralStorage {
			u = diskUsage(a.volumes.PodDir(string(w.uid))) + diskUsage(a.podLogDir(s.Pod))
		}
		q := requests(s.Pod)[what]
		all = append(all, candidate{w, u > q.Value(), priority, u - q.Value(), u})
	}
	if len(all) == 0 {
		return
	}
	slices.SortStableFunc(all, func(x, y candidate) int {
		if x.over != y.over {
			return boolOrder(x.over, y.over)
		}
		if x.priority != y.priority {
			return cmp.Compare(x.priority, y.priority)
		}
		return cmp.Compare(y.excess, x.excess)
	})
	c := all[0]
	message := fmt.Sprintf("The node was low on resource: %s. Threshold quantity: %d, available: %d. ", what, threshold, available)
	a.log.Warn("pod evicted", "pod", c.w.namespace+"/"+c.w.name, "resource", string(what), "usage", c.usage, "available", available)
	a.events.about(c.w.pod(), "", corev1.EventTypeWarning, "Evicted", message)
	zero := int64(0)
	c.w.post(pod.Evict{Reason: "Evicted", Message: message, GraceSeconds: &zero})
}

func boolOrder(x, y bool) int {
	if x == y {
		return 0
	}
	if x {
		return -1
	}
	return 1
}

// checkSizeLimits evicts pods whose disk emptyDirs have outgrown their limits.
func (a *Agent) checkSizeLimits(ctx context.Context) {
	for _, w := range a.all() {
		s := w.state.Load()
		if s.Stage != pod.Running || s.Pod == nil {
			continue
		}
		for i := range s.Pod.Spec.Volumes {
			v := &s.Pod.Spec.Volumes[i]
			if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || v.EmptyDir.Medium == corev1.StorageMediumMemory || v.EmptyDir.SizeLimit.IsZero() {
				continue
			}
			if ctx.Err() != nil {
				return
			}
			if diskUsage(a.volumes.Path(s.Pod, v)) > v.EmptyDir.SizeLimit.Value() {
				message := fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String())
				a.events.about(w.pod(), "", corev1.EventTypeWarning, "Evicted", message)
				zero := int64(0)
				w.post(pod.Evict{Reason: "Evicted", Message: message, GraceSeconds: &zero})
				break
			}
		}
	}
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
