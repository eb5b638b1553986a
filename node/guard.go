package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"golang.org/x/sys/unix"

	"proa.dev/kind"
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
	// ImageAge is how long an image must be unused before it is collected, unless
	// pods would have to go. Default 2 min.
	ImageAge time.Duration
	// Hold is how long the node's condition says pressure after it was last
	// measured, so that the scheduler does not fill what was just freed. Default 5 min.
	Hold time.Duration
	// Period of looking. Default 10 s.
	Period time.Duration
	// Measure says what is left. Default: the machine, with the data directory's
	// file system.
	Measure func() (Supply, error)
}

// Supply is what a machine has, and what is left of it. A zero total is unknown.
type Supply struct {
	MemoryBytes, MemoryFree int64
	DiskBytes, DiskFree     int64
	PIDs, PIDsFree          int64
}

func (e *Eviction) defaults(dataDir string) {
	e.MemoryBytes = cmp.Or(e.MemoryBytes, 100<<20)
	e.DiskPercent = cmp.Or(e.DiskPercent, 10)
	e.DiskBytes = cmp.Or(e.DiskBytes, 2<<30)
	e.ImagePercent = cmp.Or(e.ImagePercent, 15)
	e.ImageBytes = cmp.Or(e.ImageBytes, 5<<30)
	e.ImageAge = cmp.Or(e.ImageAge, 2*time.Minute)
	e.Hold = cmp.Or(e.Hold, 5*time.Minute)
	e.Period = cmp.Or(e.Period, 10*time.Second)
	if e.Measure == nil {
		e.Measure = func() (Supply, error) { return measure(dataDir) }
	}
}

func measure(dataDir string) (Supply, error) {
	var s Supply
	var st unix.Statfs_t
	if err := unix.Statfs(dataDir, &st); err != nil {
		return s, fmt.Errorf("measure file system of %q: %w", dataDir, err)
	}
	s.DiskBytes, s.DiskFree = int64(st.Blocks)*st.Bsize, int64(st.Bavail)*st.Bsize
	m := meminfo()
	s.MemoryBytes, s.MemoryFree = m["MemTotal"], m["MemAvailable"]
	limit, err := strconv.ParseInt(line("/proc/sys/kernel/pid_max"), 10, 64)
	if load := strings.Fields(line("/proc/loadavg")); err == nil && len(load) > 3 {
		_, all, _ := strings.Cut(load[3], "/")
		if n, err := strconv.ParseInt(all, 10, 64); err == nil {
			s.PIDs, s.PIDsFree = limit, limit-n
		}
	}
	return s, nil
}

// pressures are the node conditions of need.
type pressures struct{ memory, disk, pids bool }

// none says whether pods are welcome.
func (p pressures) none() bool { return p == pressures{} }

func (p pressures) String() string {
	var list []string
	for _, c := range []struct {
		on   bool
		name corev1.NodeConditionType
	}{{p.memory, corev1.NodeMemoryPressure}, {p.disk, corev1.NodeDiskPressure}, {p.pids, corev1.NodePIDPressure}} {
		if c.on {
			list = append(list, string(c.name))
		}
	}
	return "[" + strings.Join(list, " ") + "]"
}

func short(total, free, percent, bytes int64) bool {
	return total > 0 && free < bytes && free < total/100*percent
}

// of says which thresholds a supply has crossed.
func (e *Eviction) of(s Supply) pressures {
	return pressures{
		memory: s.MemoryBytes > 0 && s.MemoryFree < e.MemoryBytes,
		disk:   short(s.DiskBytes, s.DiskFree, e.DiskPercent, e.DiskBytes),
		pids:   s.PIDs > 0 && s.PIDsFree < s.PIDs/100,
	}
}

// look measures. It returns what is crossed now, and remembers when.
func (a *Agent) look() (Supply, pressures, error) {
	if a.cfg.Eviction.Off {
		return Supply{}, pressures{}, nil
	}
	s, err := a.cfg.Eviction.Measure()
	if err != nil {
		return s, pressures{}, err
	}
	p := a.cfg.Eviction.of(s)
	now := a.clock.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range []struct {
		on bool
		at *time.Time
	}{{p.memory, &a.pressed.memory}, {p.disk, &a.pressed.disk}, {p.pids, &a.pressed.pids}} {
		if x.on {
			*x.at = now
		}
	}
	return s, p, nil
}

// pressures that the node shows: what was measured within Hold.
func (a *Agent) pressures() pressures {
	now := a.clock.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	held := func(at time.Time) bool { return !at.IsZero() && now.Sub(at) < a.cfg.Eviction.Hold }
	return pressures{held(a.pressed.memory), held(a.pressed.disk), held(a.pressed.pids)}
}

// guard frees disk and memory before the machine runs out.
func (a *Agent) guard(ctx context.Context) {
	if a.cfg.Eviction.Off {
		return
	}
	unused := map[string]time.Time{} // image → since when
	var shown pressures
	var last *worker // the pod evicted last; the next one waits for its end
	for {
		if err := a.relieve(ctx, unused, &last); err != nil && ctx.Err() == nil {
			a.log.Warn("machine's supplies are not watched", "err", err)
		}
		if p := a.pressures(); p != shown {
			shown = p
			select { // the node's conditions change now
			case a.poke <- struct{}{}:
			default:
			}
		}
		a.checkLocalStorage(ctx)
		if !a.sleep(ctx, a.cfg.Eviction.Period) {
			return
		}
	}
}

// relieve looks once and does what the need asks for: images first, pods last.
func (a *Agent) relieve(ctx context.Context, unused map[string]time.Time, last **worker) error {
	e := &a.cfg.Eviction
	s, p, err := a.look()
	if err != nil {
		return err
	}
	if p.disk {
		a.removeDead(ctx)
		if err := a.collectImages(ctx, s, unused, 0); err != nil {
			return err
		}
		if s, p, err = a.look(); err != nil {
			return err
		}
	} else if short(s.DiskBytes, s.DiskFree, e.ImagePercent, e.ImageBytes) {
		if err := a.collectImages(ctx, s, unused, e.ImageAge); err != nil {
			return err
		}
	}
	if w := *last; w != nil && a.worker(w.uid) == w && w.state.Load().Stage < pod.Finished {
		return nil
	}
	switch {
	case p.memory:
		*last = a.evictOne(ctx, corev1.ResourceMemory, quantity(e.MemoryBytes), s.MemoryFree)
	case p.disk:
		*last = a.evictOne(ctx, corev1.ResourceEphemeralStorage, quantity(e.DiskBytes), s.DiskFree)
	}
	return nil
}

// removeDead removes containers that have ended and will not be looked at again:
// those of pods that are over, and those before the last attempt. Their logs stay.
func (a *Agent) removeDead(ctx context.Context) {
	list, err := a.cfg.Engine.ListContainers(ctx, &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_EXITED}}})
	if err != nil {
		return
	}
	for _, c := range list.Containers {
		w := a.worker(podUID(c.Labels))
		if w == nil {
			continue // adoption takes care of strangers
		}
		s := w.state.Load()
		if s.Stage != pod.Finished && (s.Stage != pod.Running || s.Current(c.Labels[labelContainerName]) == c.Id) {
			continue
		}
		if _, err := a.cfg.Engine.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.Id}); err != nil && ctx.Err() == nil {
			a.log.Warn("dead container is not removed", "container", c.Id, "err", err)
		}
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

// collectImages removes images that nothing has used for age, the longest unused
// first, until there is room.
func (a *Agent) collectImages(ctx context.Context, s Supply, unused map[string]time.Time, age time.Duration) error {
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
		if st := w.state.Load().Stage; st >= pod.Cleaning {
			continue
		}
		for _, name := range kind.PodImages(w.pod()) {
			used[name] = true
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
		if now.Sub(unused[i.Id]) >= age {
			idle = append(idle, i)
		}
	}
	slices.SortStableFunc(idle, func(x, y *runtimeapi.Image) int { return unused[x.Id].Compare(unused[y.Id]) })
	free := s.DiskFree
	for _, i := range idle {
		if free >= 2*a.cfg.Eviction.ImageBytes {
			break
		}
		if _, err := a.cfg.Engine.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}}); err != nil {
			return fmt.Errorf("remove unused image %q: %w", i.Id, err)
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
