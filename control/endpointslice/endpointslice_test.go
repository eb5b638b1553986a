package endpointslice_test

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/endpointslice"
	"proa.dev/control/scenario"
	"proa.dev/kind"
	"proa.dev/view"
)

func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txtar", func() []control.Part {
		return []control.Part{endpointslice.Part(), endpointslice.EndpointsPart(), endpointslice.MirrorPart()}
	})
}

func pod(i int) *corev1.Pod {
	ip := fmt.Sprintf("10.%d.%d.%d", i/62500, i/250%250, i%250)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprintf("p%05d", i), UID: types.UID(fmt.Sprint("p", i)), Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

func service() *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "svc"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.1", Selector: map[string]string{"app": "web"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}}
}

// world applies plans to a model, and counts writes.
type world struct {
	*testing.T
	model  *scenario.Model
	writes int
}

func (w *world) settle() {
	w.Helper()
	for range 10 {
		actions, _ := endpointslice.Plan(w.model.View().Snapshot(), view.Ref{Kind: kind.Service, Namespace: "shop", Name: "web"}, scenario.Epoch)
		if len(actions) == 0 {
			return
		}
		for _, a := range actions {
			if err := endpointslice.Part().Allows(a); err != nil {
				w.Fatal(err)
			}
			w.writes++
			if _, err := control.Do(w.Context(), w.model, a, func(act.Event) {}); err != nil {
				w.Fatalf("%s: %v", a, err)
			}
		}
	}
	w.Fatal("the plan does not come to rest")
}

func (w *world) sizes() (sizes []int, total int) {
	seen := map[string]bool{}
	for es := range view.List[*discoveryv1.EndpointSlice](w.model.View().Snapshot(), kind.EndpointSlice, "shop") {
		sizes = append(sizes, len(es.Endpoints))
		total += len(es.Endpoints)
		for _, e := range es.Endpoints {
			if seen[e.Addresses[0]] {
				w.Errorf("address %s is in two places", e.Addresses[0])
			}
			seen[e.Addresses[0]] = true
		}
		if len(es.Endpoints) > 100 {
			w.Errorf("slice %s has %d endpoints", es.Name, len(es.Endpoints))
		}
	}
	return sizes, total
}

// Slices hold at most 100, every pod once, and a change of few pods costs few
// writes.
func TestPacking(t *testing.T) {
	w := &world{T: t, model: scenario.NewModel(kind.All, func() time.Time { return scenario.Epoch })}
	w.model.Load(kind.Service, service())
	for i := range 250 {
		w.model.Load(kind.Pod, pod(i))
	}
	w.settle()
	if sizes, total := w.sizes(); len(sizes) != 3 || total != 250 || w.writes != 3 {
		t.Fatalf("250 pods: slices of %v, %d writes", sizes, w.writes)
	}
	ref := func(i int) view.Ref { return view.RefOf(kind.Pod, pod(i)) }
	// One goes and one comes: one write.
	w.writes = 0
	w.model.Remove(ref(17))
	w.model.Load(kind.Pod, pod(1000))
	w.settle()
	if _, total := w.sizes(); total != 250 || w.writes != 1 {
		t.Errorf("one pod exchanged: %d endpoints, %d writes", total, w.writes)
	}
	// One comes: it goes where there is room.
	w.writes = 0
	w.model.Load(kind.Pod, pod(1001))
	w.settle()
	if sizes, total := w.sizes(); total != 251 || len(sizes) != 3 || w.writes != 1 {
		t.Errorf("one pod more: %v, %d writes", sizes, w.writes)
	}
	// All but three go: empty slices are removed.
	for i := range 250 {
		if i != 17 && i > 2 {
			w.model.Remove(ref(i))
		}
	}
	w.settle()
	if sizes, total := w.sizes(); total != 5 || len(sizes) > 3 {
		t.Errorf("five left: %v", sizes)
	}
	for _, i := range []int{0, 1, 2, 1000, 1001} {
		w.model.Remove(ref(i))
	}
	w.settle()
	if sizes, total := w.sizes(); total != 0 || len(sizes) != 1 {
		t.Errorf("none left: %v, want one empty slice", sizes)
	}
}

// Beyond 1,000 addresses, classic Endpoints are cut, and say so.
func TestEndpointsTruncated(t *testing.T) {
	w := &world{T: t, model: scenario.NewModel(kind.All, func() time.Time { return scenario.Epoch })}
	w.model.Load(kind.Service, service())
	for i := range 1100 {
		p := pod(i)
		if i < 200 {
			p.Status.Conditions[0].Status = corev1.ConditionFalse
		}
		w.model.Load(kind.Pod, p)
	}
	actions, _ := endpointslice.PlanEndpoints(w.model.View().Snapshot(), view.Ref{Kind: kind.Service, Namespace: "shop", Name: "web"}, scenario.Epoch)
	if len(actions) != 1 {
		t.Fatalf("actions: %v", actions)
	}
	e := actions[0].(act.Create).Object.(*corev1.Endpoints)
	if len(e.Subsets) != 1 || len(e.Subsets[0].Addresses) != 900 || len(e.Subsets[0].NotReadyAddresses) != 100 || e.Annotations[corev1.EndpointsOverCapacity] != "truncated" {
		t.Errorf("got %d ready, %d not ready, annotations %v", len(e.Subsets[0].Addresses), len(e.Subsets[0].NotReadyAddresses), e.Annotations)
	}
}

// A pod's change costs what its own services cost, not what all of them do.
func BenchmarkOnePodOf10kServices(b *testing.B) {
	v := view.New(kind.All, 0)
	for i := range 10000 {
		svc := service()
		svc.Name, svc.UID, svc.Spec.Selector = fmt.Sprint("web", i), types.UID(fmt.Sprint("s", i)), map[string]string{"app": fmt.Sprint(i)}
		v.Load(kind.Service, svc)
		for j := range 2 {
			p := pod(2*i + j)
			p.Labels = svc.Spec.Selector
			v.Load(kind.Pod, p)
		}
	}
	v.Loaded(1)
	s := v.Snapshot()
	part := endpointslice.Part()
	p := view.Get[*corev1.Pod](s, kind.Pod, "shop", "p00017")
	for b.Loop() {
		refs := part.Wakes[0].To(s, p)
		if len(refs) != 1 {
			b.Fatal(refs)
		}
		if a, _ := part.Plan(s, refs[0], scenario.Epoch); len(a) != 1 {
			b.Fatal(a)
		}
	}
}
