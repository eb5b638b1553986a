package security

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
	"proa.dev/view"
)

// TestQuotaRace: however many create and delete at once, the namespace is never
// above its quota, and every place that was given back can be taken.
func TestQuotaRace(t *testing.T) {
	p := start(t, nil)
	p.namespace("q")
	const hard = 7
	p.create(kind.ResourceQuota, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "q", Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{
		"pods": resource.MustParse(fmt.Sprint(hard)), "requests.cpu": resource.MustParse(fmt.Sprint(hard))}}})
	pod := func(name, generate string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "q", Name: name, GenerateName: generate}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i",
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("1")}}}}}}
	}
	count := func() int {
		n := 0
		for range view.List[*corev1.Pod](p.view.Snapshot(), kind.Pod, "q") {
			n++
		}
		return n
	}
	var made, refused atomic.Int64
	zero := int64(0)
	for round := range 4 {
		var wg sync.WaitGroup
		for w := range 16 {
			wg.Go(func() {
				for i := range 8 {
					name, generate := "", fmt.Sprintf("w%d-", w)
					if w%4 == 0 {
						name, generate = fmt.Sprintf("same-%d-%d", round, i), "" // four fight for one name
					}
					o, err := p.admin.Create(p.ctx, kind.Pod, pod(name, generate), metav1.CreateOptions{})
					if n := count(); n > hard {
						t.Errorf("%d pods, %d are allowed", n, hard)
					}
					switch {
					case err == nil:
						made.Add(1)
						if (w+i)%2 == 0 {
							if err := p.admin.Delete(p.ctx, kind.Pod, "q", o.GetName(), metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
								t.Error(err)
							}
						}
					case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota: q"):
						refused.Add(1)
					case !apierrors.IsAlreadyExists(err):
						t.Error(err)
					}
					// What fails after the quota gives its place back: a bad name, a dry run.
					if i == 0 {
						p.admin.Create(p.ctx, kind.Pod, pod("No Name", ""), metav1.CreateOptions{})
						p.admin.Create(p.ctx, kind.Pod, pod("dry", ""), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
					}
				}
			})
		}
		wg.Wait()
		// Nobody is in between now: exactly as many as are left fit.
		for i := count(); i < hard; i++ {
			if _, err := p.admin.Create(p.ctx, kind.Pod, pod("", "fill-"), metav1.CreateOptions{}); err != nil {
				t.Fatalf("round %d, place %d of %d is lost: %v", round, i+1, hard, err)
			}
		}
		if _, err := p.admin.Create(p.ctx, kind.Pod, pod("", "over-"), metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
			t.Fatalf("one more than allowed: %v", err)
		}
		for o := range view.List[*corev1.Pod](p.view.Snapshot(), kind.Pod, "q") {
			must(t, p.admin.Delete(p.ctx, kind.Pod, "q", o.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero}))
		}
	}
	if made.Load() == 0 || refused.Load() == 0 {
		t.Errorf("%d made, %d refused: no race", made.Load(), refused.Load())
	}
}

// TestAddressRace: no two Services ever share an address or a node port, none is
// lost, and the range can be used up to the last.
func TestAddressRace(t *testing.T) {
	p := start(t, nil)
	p.namespace("s")
	service := func(name string, change func(*corev1.ServiceSpec)) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "s", Name: name}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80}}}}
		if change != nil {
			change(&s.Spec)
		}
		return s
	}
	unique := func() {
		ips, ports := map[string]string{}, map[int32]string{}
		for s := range view.List[*corev1.Service](p.view.Snapshot(), kind.Service, "") {
			if by, ok := ips[s.Spec.ClusterIP]; ok && s.Spec.ClusterIP != "None" && s.Spec.ClusterIP != "" {
				t.Errorf("%s is both %s's and %s's", s.Spec.ClusterIP, by, s.Name)
			}
			ips[s.Spec.ClusterIP] = s.Name
			for _, port := range s.Spec.Ports {
				if by, ok := ports[port.NodePort]; ok && port.NodePort != 0 {
					t.Errorf("%d is both %s's and %s's", port.NodePort, by, s.Name)
				}
				ports[port.NodePort] = s.Name
			}
		}
	}
	var won atomic.Int64
	var wg sync.WaitGroup
	for w := range 12 {
		wg.Go(func() {
			for i := range 12 {
				name := fmt.Sprintf("s-%d-%d", w, i)
				if w%3 == 0 {
					name = fmt.Sprintf("same-%d", i) // four fight for one name
				}
				o, err := p.admin.Create(p.ctx, kind.Service, service(name, nil), metav1.CreateOptions{})
				if err != nil {
					if !apierrors.IsAlreadyExists(err) {
						t.Error(err)
					}
					continue
				}
				p.admin.Create(p.ctx, kind.Service, service("dry", nil), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
				p.admin.Create(p.ctx, kind.Service, service("No Name", nil), metav1.CreateOptions{})
				// All want this one, one gets it.
				if _, err := p.admin.Create(p.ctx, kind.Service, service(fmt.Sprintf("want-%d-%d", w, i), func(s *corev1.ServiceSpec) { s.ClusterIP = "10.96.0.250" }), metav1.CreateOptions{}); err == nil {
					won.Add(1)
				}
				if i%3 == 0 {
					if err := p.admin.Delete(p.ctx, kind.Service, "s", o.GetName(), metav1.DeleteOptions{}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	unique()
	if won.Load() != 1 {
		t.Errorf("%d Services got the same address", won.Load())
	}
	// To the last address: 254, of which some are taken.
	n := 0
	for range view.List[*corev1.Service](p.view.Snapshot(), kind.Service, "") {
		n++
	}
	for i := n; i < 254; i++ {
		if _, err := p.admin.Create(p.ctx, kind.Service, service(fmt.Sprint("fill-", i), func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeClusterIP }), metav1.CreateOptions{}); err != nil {
			t.Fatalf("address %d of 254 is lost: %v", i+1, err)
		}
	}
	_, err := p.admin.Create(p.ctx, kind.Service, service("over", func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeClusterIP }), metav1.CreateOptions{})
	denied(t, err, "range is full")
	unique()
}
