package sched

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

var nilLogger = klog.Background()

func benchNode(i int, pods int64) *corev1.Node {
	n := &corev1.Node{}
	n.Name = fmt.Sprintf("node-%d", i)
	n.Labels = map[string]string{hostname: n.Name, zone: fmt.Sprintf("zone-%d", i%5)}
	n.Status.Allocatable = corev1.ResourceList{"cpu": resource.MustParse("32"), "memory": resource.MustParse("128Gi"), "pods": quantity(pods)}
	return n
}

func benchPod(i int) *corev1.Pod {
	p := &corev1.Pod{}
	p.Name, p.Namespace = fmt.Sprintf("pod-%d", i), "default"
	p.UID = types.UID(fmt.Sprintf("uid-%d", i))
	p.Labels = map[string]string{"app": fmt.Sprintf("app-%d", i%100), "pod-template-hash": "abc"}
	p.Spec.Affinity = &corev1.Affinity{}
	p.Spec.Containers = []corev1.Container{{Name: "app", Image: "app:1", Resources: corev1.ResourceRequirements{
		Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("200Mi")}}}}
	return p
}

// What one decision costs, without binding. Pods are replaced once the nodes are
// half full.
func BenchmarkPlace(b *testing.B) {
	for _, nodes := range []int{1000, 5000} {
		for _, how := range []string{"plain", "affinity", "antiaffinity", "spread"} {
			b.Run(fmt.Sprintf("%s/%d", how, nodes), func(b *testing.B) {
				t := NewTable()
				for i := range nodes {
					t.SetNode(benchNode(i, 110))
				}
				ring := make([]*Pod, nodes*20)
				place := func(i int) {
					at := i % len(ring)
					if old := ring[at]; old != nil {
						t.RemovePod(old.Object.UID)
					}
					o := benchPod(i)
					own := &metav1.LabelSelector{MatchLabels: map[string]string{"app": o.Labels["app"]}}
					switch how {
					case "affinity":
						o.Spec.Affinity.PodAffinity = &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{TopologyKey: zone, LabelSelector: own}}}
					case "antiaffinity":
						o.Spec.Affinity.PodAntiAffinity = &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{TopologyKey: hostname, LabelSelector: own}}}
					case "spread":
						o.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 5, TopologyKey: zone, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: own}}
					}
					p := NewPod(o)
					d := t.Place(p)
					if d.Node == "" {
						b.Fatal(d.Message)
					}
					t.Assume(p, d.Node)
					ring[at] = p
				}
				warm := nodes * 2
				for i := range warm {
					place(i)
				}
				b.ReportAllocs()
				b.ResetTimer()
				for i := range b.N {
					place(warm + i)
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pods/s")
			})
		}
	}
}
