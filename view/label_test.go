package view_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"proa.dev/kind"
	"proa.dev/view"
)

func pod(namespace, name string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}}
}

func names[T kind.Object](seq func(func(T) bool)) []string {
	out := []string{}
	for o := range seq {
		out = append(out, o.GetNamespace()+"/"+o.GetName())
	}
	return out
}

// The label index agrees with looking at every pod, whatever is written.
func TestPodsWithAgreesWithScan(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	v := view.New(kind.All, 0)
	rev := int64(0)
	some := func() map[string]string {
		l := map[string]string{}
		for _, k := range []string{"a", "b", "ab"} {
			if rnd.IntN(3) > 0 {
				l[k] = []string{"x", "y", "", "xy"}[rnd.IntN(4)]
			}
		}
		return l
	}
	for range 3000 {
		rev++
		ns, name := []string{"n", "n2"}[rnd.IntN(2)], fmt.Sprint("p", rnd.IntN(60))
		if o := v.Snapshot().Get(kind.Pod, ns, name); o != nil && rnd.IntN(4) == 0 {
			v.Apply(view.Change{Kind: kind.Pod, Revision: rev, Last: o})
		} else {
			v.Apply(view.Change{Kind: kind.Pod, Revision: rev, New: pod(ns, name, some())})
		}
		if rev%10 > 0 {
			continue
		}
		s, set := v.Snapshot(), some()
		if len(set) == 0 {
			continue
		}
		want := []string{}
		for p := range view.List[*corev1.Pod](s, kind.Pod, ns) {
			if labels.SelectorFromSet(set).Matches(labels.Set(p.Labels)) {
				want = append(want, p.Namespace+"/"+p.Name)
			}
		}
		if got := names(s.PodsWith(ns, set)); !slices.Equal(got, want) {
			t.Fatalf("revision %d: pods with %v: got %v, want %v", rev, set, got, want)
		}
	}
}

// Every service that selects a pod is found by the pod's labels.
func TestSelectingMissesNothing(t *testing.T) {
	v := view.New(kind.All, 0)
	service := func(name string, sel map[string]string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: name}, Spec: corev1.ServiceSpec{Selector: sel}}
	}
	put := func(rev int64, o kind.Object) { v.Apply(view.Change{Kind: kind.Service, Revision: rev, New: o}) }
	put(1, service("a", map[string]string{"app": "web"}))
	put(2, service("b", map[string]string{"app": "web", "tier": "front"}))
	put(3, service("c", map[string]string{"tier": "front"}))
	put(4, service("d", nil))
	put(5, service("e", map[string]string{"app": "other"}))
	of := func(l map[string]string) []string { return names(v.Snapshot().Selecting(kind.Service, "n", l)) }
	if got, want := of(map[string]string{"app": "web", "tier": "front"}), []string{"n/a", "n/b", "n/c"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	put(6, service("a", map[string]string{"tier": "front"}))
	if got, want := of(map[string]string{"app": "web"}), []string{"n/b"}; !slices.Equal(got, want) {
		t.Errorf("after the selector changed: got %v, want %v", got, want)
	}
	v.Apply(view.Change{Kind: kind.Service, Revision: 7, Last: service("b", nil)})
	if got := of(map[string]string{"app": "web"}); len(got) != 0 {
		t.Errorf("after the service went: got %v", got)
	}
	if got := of(nil); len(got) != 0 {
		t.Errorf("no labels: got %v", got)
	}
}

// A snapshot does not move under its reader.
func TestSnapshotStays(t *testing.T) {
	v := view.New(kind.All, 0)
	v.Apply(view.Change{Kind: kind.Pod, Revision: 1, New: pod("n", "p", map[string]string{"a": "x"})})
	s := v.Snapshot()
	v.Apply(view.Change{Kind: kind.Pod, Revision: 2, New: pod("n", "p", map[string]string{"a": "y"})})
	v.Apply(view.Change{Kind: kind.Pod, Revision: 3, New: pod("n", "q", map[string]string{"a": "x"})})
	if got := names(s.PodsWith("n", map[string]string{"a": "x"})); !slices.Equal(got, []string{"n/p"}) {
		t.Errorf("old snapshot: %v", got)
	}
	if got := names(v.Snapshot().PodsWith("n", map[string]string{"a": "x"})); !slices.Equal(got, []string{"n/q"}) {
		t.Errorf("new snapshot: %v", got)
	}
	if s.Revision() != 1 || v.Snapshot().Revision() != 3 {
		t.Errorf("revisions: %d and %d", s.Revision(), v.Snapshot().Revision())
	}
}

// A pod is on its node, with its owner and among the orphans exactly while it is.
func TestIndexesFollowWrites(t *testing.T) {
	v := view.New(kind.All, 0)
	yes := true
	p := pod("n", "p", nil)
	write := func(rev int64, edit func(*corev1.Pod)) {
		p = p.DeepCopy()
		edit(p)
		v.Apply(view.Change{Kind: kind.Pod, Revision: rev, New: p})
	}
	check := func(when string, node, owner, orphan []string) {
		t.Helper()
		s := v.Snapshot()
		got := [][]string{names(s.PodsOn("n1")), names(s.OwnedBy("u1", kind.Pod)), names(s.OrphanPods("n"))}
		for i, want := range [][]string{node, owner, orphan} {
			if !slices.Equal(got[i], append([]string{}, want...)) {
				t.Errorf("%s: %s: got %v, want %v", when, []string{"on node", "owned", "orphans"}[i], got[i], want)
			}
		}
	}
	it := []string{"n/p"}
	write(1, func(*corev1.Pod) {})
	check("created", nil, nil, it)
	write(2, func(p *corev1.Pod) { p.Spec.NodeName = "n1" })
	check("bound", it, nil, it)
	write(3, func(p *corev1.Pod) { p.OwnerReferences = []metav1.OwnerReference{{UID: "u1"}} })
	check("owned", it, it, it)
	write(4, func(p *corev1.Pod) { p.OwnerReferences[0].Controller = &yes })
	check("controlled", it, it, nil)
	v.Apply(view.Change{Kind: kind.Pod, Revision: 5, Last: p})
	check("gone", nil, nil, nil)
}

// Changes are complete between two cursors, or say that they are not.
func TestChangesAreCompleteOrGone(t *testing.T) {
	v := view.New(kind.All, 4)
	for i := range int64(20) {
		v.Apply(view.Change{Kind: kind.Pod, Revision: i + 1, New: pod("n", fmt.Sprint("p", i), nil)})
	}
	changes, progress, _, err := v.Changes(kind.Pod, 17)
	if err != nil || progress != 20 || len(changes) != 3 || changes[0].Revision != 18 {
		t.Fatalf("after 17: %d changes, progress %d, %v", len(changes), progress, err)
	}
	if _, _, _, err := v.Changes(kind.Pod, 1); err != view.ErrGone {
		t.Fatalf("after 1: %v, want ErrGone", err)
	}
	if c, _, _, err := v.Changes(kind.Service, 20); err != nil || len(c) != 0 {
		t.Fatalf("services: %v %v", c, err)
	}
}

func BenchmarkPodsWith(b *testing.B) {
	v := view.New(kind.All, 0)
	for i := range 20000 {
		v.Load(kind.Pod, pod("n", fmt.Sprint("p", i), map[string]string{"app": fmt.Sprint(i % 2000), "tier": "web", "release": fmt.Sprint(i % 5)}))
	}
	v.Loaded(1)
	s := v.Snapshot()
	set := map[string]string{"app": "17", "tier": "web"}
	for b.Loop() {
		if n := len(slices.Collect(s.PodsWith("n", set))); n != 10 {
			b.Fatal(n)
		}
	}
}
