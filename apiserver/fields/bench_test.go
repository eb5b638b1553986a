package fields

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
)

func examplePod() *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "web-", Labels: map[string]string{"app": "web", "hash": "abc"},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web", UID: "u"}}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "nginx", Ports: []corev1.ContainerPort{{ContainerPort: 80}},
			Env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}}}}}}
	kind.Pod.Default(p)
	return p
}

// BenchmarkCreated: who owns what of a new object.
func BenchmarkCreated(b *testing.B) {
	now := metav1.NewTime(time.Unix(1_700_000_000, 0))
	for name, obj := range map[string]kind.Object{
		"configmap": &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Data: map[string]string{"k": "v"}},
		"pod":       examplePod(),
	} {
		b.Run(name, func(b *testing.B) {
			t := NewTracker(obj, "v1", Door{Reset: []string{"status"}})
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := t.Created(obj, "kubectl-create", &now); !ok {
					b.Fatal("left to the library")
				}
			}
		})
	}
}

// BenchmarkUpdated: a status that changes as it did before.
func BenchmarkUpdated(b *testing.B) {
	now := metav1.NewTime(time.Unix(1_700_000_000, 0))
	main := NewTracker(&corev1.Pod{}, "v1", Door{Reset: []string{"status"}})
	t := NewTracker(&corev1.Pod{}, "v1", Door{Subresource: "status", Reset: []string{"spec"}})
	old := examplePod()
	entries, _ := main.Created(old, "kube-controller-manager", &now)
	next := old.DeepCopy()
	next.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}}}
	entries, _ = t.Updated(old, next, entries, "kubelet", &now)
	last := next.DeepCopy()
	last.Status.Conditions[0].Status = corev1.ConditionTrue
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := t.Updated(next, last, entries, "kubelet", &now); !ok {
			b.Fatal("left to the library")
		}
	}
}
