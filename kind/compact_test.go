package kind

import (
	"fmt"
	"math/rand"
	"reflect"
	"runtime"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/resource"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeserializer "k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// TestCompactChangesNothing: a compacted object is the same in all that can be
// seen, also when parts of it were met before, and its copies are their own.
func TestCompactChangesNothing(t *testing.T) {
	codecs := runtimeserializer.NewCodecFactory(Scheme())
	first := time.Now().UnixNano()
	t.Logf("first random seed: %d", first)
	for seed := range int64(6) {
		if seed > 3 {
			seed += first
		}
		filler := fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, flatSchemas), rand.NewSource(seed), codecs)
		for _, k := range whole() {
			obj := k.New()
			filler.Fill(obj)
			for range 3 { // the third meets itself
				other := obj.DeepCopyObject().(Object)
				Compact(other)
				if !reflect.DeepEqual(obj, other) {
					t.Fatalf("seed %d: %s: compacted it differs", seed, k)
				}
			}
		}
	}
}

// TestCompactShares: what two objects have in common is there once.
func TestCompactShares(t *testing.T) {
	var pods []*corev1.Pod
	for i := range 10 { // from the leaves up, a level each time
		p := heldPod(i)
		Compact(p)
		pods = append(pods, p)
	}
	a, b := pods[8], pods[9]
	if reflect.ValueOf(a.Labels).Pointer() != reflect.ValueOf(b.Labels).Pointer() {
		t.Error("labels are there twice")
	}
	x, y := &a.Spec.Containers[0], &b.Spec.Containers[0]
	if reflect.ValueOf(x.Resources.Requests).Pointer() != reflect.ValueOf(y.Resources.Requests).Pointer() {
		t.Error("requests are there twice")
	}
	if &x.Env[0] != &y.Env[0] {
		t.Error("variables are there twice")
	}
	if x.ReadinessProbe != y.ReadinessProbe {
		t.Error("probes are there twice")
	}
	if &a.OwnerReferences[0] != &b.OwnerReferences[0] {
		t.Error("owners are there twice")
	}
	if a.Spec.Volumes[0].Projected != b.Spec.Volumes[0].Projected {
		t.Error("volumes are there twice")
	}
	if a.Name == b.Name || x.VolumeMounts[0].Name == y.VolumeMounts[0].Name {
		t.Error("names are not their own")
	}
	// Equal bytes of different types stay apart.
	one, two := &corev1.Pod{Spec: corev1.PodSpec{ActiveDeadlineSeconds: new(int64), Priority: new(int32)}}, &corev1.Pod{Spec: corev1.PodSpec{ActiveDeadlineSeconds: new(int64), Priority: new(int32)}}
	for range 3 {
		Compact(one)
		Compact(two)
	}
	if one.Spec.ActiveDeadlineSeconds != two.Spec.ActiveDeadlineSeconds || one.Spec.Priority != two.Spec.Priority {
		t.Error("numbers are there twice")
	}
}

// heldPod is one of many of a set.
func heldPod(i int) *corev1.Pod {
	yes, grace, in := true, int64(30), int64(300)
	token := fmt.Sprintf("kube-api-access-%05d", i)
	at := metav1.Unix(1700000000, 0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("web-7f6d5c4b-%05d", i), GenerateName: "web-7f6d5c4b-", Namespace: "shop", UID: types.UID(fmt.Sprintf("6f3c1c3a-0000-4000-8000-%012d", i)), CreationTimestamp: at,
			Labels:          map[string]string{"app": "web", "pod-template-hash": "7f6d5c4b", "tier": "front"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-7f6d5c4b", UID: "6f3c1c3a-0000-4000-8000-000000000000", Controller: &yes, BlockOwnerDeletion: &yes}}},
		Spec: corev1.PodSpec{NodeName: fmt.Sprintf("node-%d", i%100), ServiceAccountName: "default", DeprecatedServiceAccount: "default", RestartPolicy: "Always", DNSPolicy: "ClusterFirst", SchedulerName: "default-scheduler",
			TerminationGracePeriodSeconds: &grace, SecurityContext: &corev1.PodSecurityContext{}, EnableServiceLinks: &yes,
			Tolerations: []corev1.Toleration{{Key: "node.kubernetes.io/not-ready", Operator: "Exists", Effect: "NoExecute", TolerationSeconds: &in}, {Key: "node.kubernetes.io/unreachable", Operator: "Exists", Effect: "NoExecute", TolerationSeconds: &in}},
			Volumes: []corev1.Volume{{Name: token, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &in}},
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
				{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}}}}}}}}}},
			Containers: []corev1.Container{{Name: "web", Image: "example.com/web:1.2.3", ImagePullPolicy: "IfNotPresent", Env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}},
				Ports:                  []corev1.ContainerPort{{ContainerPort: 8080, Protocol: "TCP"}},
				Resources:              corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")}, Limits: corev1.ResourceList{"memory": resource.MustParse("256Mi")}},
				ReadinessProbe:         &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080), Scheme: "HTTP"}}, PeriodSeconds: 10},
				VolumeMounts:           []corev1.VolumeMount{{Name: token, ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}},
				TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: "File"}}},
		Status: corev1.PodStatus{Phase: "Pending", QOSClass: "Burstable"},
	}
}

// BenchmarkHeldPod: bytes that one pod of many holds as it is decoded, without its
// stored bytes.
func BenchmarkHeldPod(b *testing.B) {
	for _, of := range []struct {
		name    string
		compact func(Object)
	}{{"as decoded", func(Object) {}}, {"compact", Compact}} {
		b.Run(of.name, func(b *testing.B) {
			const n = 20_000
			for b.Loop() {
				pods := make([]Object, n)
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				for i := range pods {
					data, err := EncodeStored(Pod, heldPod(i))
					if err != nil {
						b.Fatal(err)
					}
					p := new(corev1.Pod)
					_, _, raw, _ := splitEnvelope(data[4:])
					if err := p.Unmarshal(raw); err != nil {
						b.Fatal(err)
					}
					of.compact(p)
					pods[i] = p
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "bytes/pod")
				runtime.KeepAlive(pods)
			}
		})
	}
}

// BenchmarkCompact: what it costs.
func BenchmarkCompact(b *testing.B) {
	pod := heldPod(1)
	b.Run("pod", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p := pod.DeepCopy()
			Compact(p)
		}
	})
	b.Run("copy alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = pod.DeepCopy()
		}
	})
}
