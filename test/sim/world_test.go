package sim

import (
	"fmt"
	"sort"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/kind"
	"proa.dev/sim"
)

// world is one simulated cluster.
type world struct {
	*sim.Sim
	server *server // nil while it is down
	nodes  []*machine
	stormy bool
	plant  string // a mistake that the invariants must find

	// What invariants remember, over all lives of the server.
	revision int64                  // newest that any view has shown
	acked    map[string]int64       // key → revision of the newest synced write that was acknowledged
	homes    map[types.UID]string   // pod → node that it was bound to
	boxes    map[types.UID]string   // pod → machine that has a sandbox of it
	sizes    map[types.UID][]sizeAt // workload → how many pods it was to have, lately

	stats stats
	why   map[string]int // answers other than yes
}

type stats struct {
	writes, plans, actions, refused, binds, preempted, sandboxes, relists int
}

// sizeAt is how many a workload was to have from an instant on.
type sizeAt struct {
	at time.Time
	n  int
}

const machines = 4

func newWorld(seed uint64) *world {
	w := &world{Sim: sim.New(seed), acked: map[string]int64{}, homes: map[types.UID]string{}, boxes: map[types.UID]string{}, sizes: map[types.UID][]sizeAt{}}
	w.Add("server", w.startServer)
	for i := range machines {
		m := newMachine(w, fmt.Sprintf("node-%d", i+1), i+1)
		w.nodes = append(w.nodes, m)
		w.Add(m.name, m.start)
	}
	return w
}

func (w *world) fail(format string, args ...any) { w.Fail(fmt.Errorf(format, args...)) }

// between draws a duration.
func (w *world) between(min, max time.Duration) time.Duration { return w.Rand().Between(min, max) }

func (w *world) machine(name string) *machine {
	for _, m := range w.nodes {
		if m.name == name {
			return m
		}
	}
	return nil
}

// resized remembers how many pods a workload is to have.
func (w *world) resized(uid types.UID, n int) {
	list := w.sizes[uid]
	if len(list) > 0 && list[len(list)-1].n == n {
		return
	}
	w.sizes[uid] = append(list, sizeAt{w.Now(), n})
}

// allowed is the most that a workload was to have within the last window: plans
// of before are still being carried out.
func (w *world) allowed(uid types.UID, window time.Duration) int {
	list := w.sizes[uid]
	most := 0
	for i, s := range list {
		if i+1 < len(list) && list[i+1].at.Before(w.Now().Add(-window)) {
			continue
		}
		most = max(most, s.n)
	}
	return most
}

func active(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func sorted[M ~map[K]V, K ~string, V any](m M) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool { return keys[i] < keys[j] })
	return keys
}

func id(o kind.Object) string { return o.GetNamespace() + "/" + o.GetName() }
