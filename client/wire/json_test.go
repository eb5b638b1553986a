package wire

import (
	"bytes"
	"encoding/json"
	"math/rand"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/resource"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	runtimeserializer "k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/randfill"

	"proa.dev/kind"
)

// same fails unless v is encoded as encoding/json does it, errors included.
func same(t *testing.T, v any, what string) {
	t.Helper()
	want, wantErr := json.Marshal(v)
	got, err := AppendJSON([]byte("before"), v)
	if (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() {
		t.Fatalf("%s: error is %v, want %v", what, err, wantErr)
	}
	if err != nil {
		want = nil
	}
	if !bytes.Equal(got, append([]byte("before"), want...)) {
		t.Fatalf("%s:\n%s\nwant\n%s", what, got[len("before"):], want)
	}
	if got, _ := MarshalJSON(v); !bytes.Equal(got, want) { // the second time, from what was noted the first
		t.Fatalf("%s: MarshalJSON differs from AppendJSON", what)
	}
}

// TestJSONIsTheStandardLibrarys encodes every kind, filled with anything.
func TestJSONIsTheStandardLibrarys(t *testing.T) {
	codecs := runtimeserializer.NewCodecFactory(kind.Scheme())
	first := time.Now().UnixNano()
	t.Logf("first random seed: %d", first)
	for seed := range int64(25) {
		if seed >= 10 {
			seed += first
		}
		src := rand.New(rand.NewSource(seed))
		filler := fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, func(runtimeserializer.CodecFactory) []any {
			depth := 0
			return []any{
				func(s *apiextensionsv1.JSONSchemaProps, c randfill.Continue) {
					*s = apiextensionsv1.JSONSchemaProps{Type: c.String(0), Description: c.String(0)}
					if depth > 2 {
						return
					}
					depth++
					c.Fill(&s.Maximum)
					c.Fill(&s.Items)
					c.Fill(&s.Enum)
					c.Fill(&s.AdditionalProperties)
					c.Fill(&s.Dependencies)
					c.Fill(&s.Properties)
					depth--
				},
				func(j *apiextensionsv1.JSON, c randfill.Continue) { j.Raw, _ = json.Marshal(randomValue(src, 3)) },
				func(f *metav1.FieldsV1, c randfill.Continue) { f.Raw, _ = json.Marshal(randomValue(src, 3)) },
				func(x *runtime.RawExtension, c randfill.Continue) { *x = randomExtension(src) },
				func(s *string, c randfill.Continue) { *s = randomString(src) },
			}
		}), rand.NewSource(seed), codecs)
		for _, k := range kind.All.Rows() {
			if k.New == nil {
				continue
			}
			obj := k.New()
			filler.Fill(obj)
			obj.GetObjectKind().SetGroupVersionKind(k.GVK())
			what := strings.Join([]string{"seed", string(appendInt(nil, seed)), k.String()}, " ")
			same(t, obj, what)
			same(t, k.New(), k.String()+", empty")
			content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
			if err != nil {
				continue // some random values have no such form
			}
			same(t, &unstructured.Unstructured{Object: content}, what+" without type")
		}
	}
}

// randomString has what must be escaped in it, and what is no UTF-8.
func randomString(src *rand.Rand) string {
	var b strings.Builder
	for range src.Intn(30) {
		switch src.Intn(8) {
		case 0:
			b.WriteByte(byte(src.Intn(256)))
		case 1:
			b.WriteRune(rune(src.Intn(0x3000)))
		case 2:
			b.WriteByte("\"\\<>&\b\f\n\r\t\x00\x7f"[src.Intn(12)])
		default:
			b.WriteString("plain/text"[:src.Intn(11)])
		}
	}
	return b.String()
}

func randomValue(src *rand.Rand, deep int) any {
	switch n := src.Intn(8); {
	case n == 0:
		return nil
	case n == 1:
		return src.Intn(2) == 0
	case n == 2:
		return src.Int63() - src.Int63()
	case n == 3:
		return src.NormFloat64() * []float64{1, 1e-9, 1e25, 0}[src.Intn(4)]
	case n == 4 || deep == 0:
		return randomString(src)
	case n == 5:
		list := make([]any, src.Intn(4))
		for i := range list {
			list[i] = randomValue(src, deep-1)
		}
		return list
	}
	m := map[string]any{}
	for range src.Intn(5) {
		m[randomString(src)] = randomValue(src, deep-1)
	}
	return m
}

func randomExtension(src *rand.Rand) runtime.RawExtension {
	switch src.Intn(3) {
	case 0:
		return runtime.RawExtension{}
	case 1:
		return runtime.RawExtension{Object: &corev1.ConfigMap{Data: map[string]string{randomString(src): randomString(src)}}}
	}
	var spaced bytes.Buffer
	enc := json.NewEncoder(&spaced)
	enc.SetEscapeHTML(false)
	enc.SetIndent(" ", "\t")
	enc.Encode(map[string]any{"a": randomValue(src, 3)})
	return runtime.RawExtension{Raw: spaced.Bytes()}
}

type odd struct {
	A      int               `json:"a,string"`
	Time   time.Time         `json:"time,omitzero"`
	Number json.Number       `json:"number,omitempty"`
	Array  [2]int8           `json:"array"`
	Any    any               `json:"any,omitempty"`
	Text   map[int]string    `json:"text,omitempty"`
	Status map[string]*odder `json:"status,omitempty"`
}

type odder struct {
	Hidden int `json:"-"`
	secret int
	Dash   uint16  `json:"-,"`
	Bad    float32 `json:"b\"ad"`
	U      uint64
	Q      resource.Quantity                    `json:"q,omitzero"`
	Ptr    map[string]unstructured.Unstructured `json:"ptr,omitempty"`
}

// TestOddJSON: what API types do not have, and what cannot be encoded.
func TestOddJSON(t *testing.T) {
	loop := map[string]any{}
	loop["x"] = make(chan int)
	for _, v := range []any{nil, 1, int32(-3), int64(1) << 62, 1.5, float32(2.5), 1e21, 1e-7, -0.0, "x<y>&\u2028\xff", true, []any(nil), []any{nil, "a", []string{"b"}}, []byte("abc"),
		map[string]any(nil), map[string]any{}, map[string]string{"b": "1", "a": "2"}, (*corev1.Pod)(nil), (*unstructured.Unstructured)(nil), &unstructured.Unstructured{},
		&odd{}, odd{A: 3}, &odd{A: 4, Number: "12", Any: &odder{U: 1}, Text: map[int]string{2: "b", 1: "a"}, Status: map[string]*odder{"x": nil, "y": {Bad: 1e-7, secret: 1}}},
		&odd{Number: "no number"}, &odder{Q: resource.MustParse("100m"), Ptr: map[string]unstructured.Unstructured{"a": {Object: map[string]any{"x": 1}}}},
		&metav1.Table{Rows: []metav1.TableRow{{Cells: []any{"a", int64(1), nil, 2, true}, Object: runtime.RawExtension{Object: &metav1.PartialObjectMetadata{}}}}},
		&intstr.IntOrString{Type: 7}, &runtime.RawExtension{Raw: []byte("{")}, &runtime.RawExtension{Raw: []byte(`{"a":01}`)}, &runtime.RawExtension{Raw: []byte(`{"a":"` + "\x01" + `"}`)},
		&metav1.FieldsV1{Raw: []byte(`{"f:a": {}, "f:b\u003c":{".":{}} }`)}, &metav1.FieldsV1{Raw: []byte(strings.Repeat("[", 600) + strings.Repeat("]", 600))},
		loop, &struct{ F func() }{}, &metav1.FieldsV1{Raw: []byte(`{}x`)}, map[string][]byte{"a": nil, "b": {}, "c": {1}},
		&schema.GroupVersion{Group: "a", Version: "b"}, &struct{ V []schema.GroupVersion }{[]schema.GroupVersion{{Version: "v1"}}},
	} {
		same(t, v, strings.TrimSpace(strings.ToValidUTF8(strings.Join(strings.Fields(typeName(v)), " "), "?")))
	}
}

func typeName(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

// FuzzJSONStrings: strings and raw documents.
func FuzzJSONStrings(f *testing.F) {
	f.Add("plain", []byte(`{"a":[1,2.5e+3,"x\n",null,true]}`))
	f.Add("\u2028<\xff>", []byte(" [ -0.1 , \"\xe2\x80\xa8<\" ] "))
	f.Fuzz(func(t *testing.T, s string, raw []byte) {
		same(t, s, "string")
		same(t, map[string]string{s: s}, "map")
		same(t, &json.RawMessage{}, "raw")
		m := json.RawMessage(raw)
		same(t, &m, "raw")
	})
}

func samplePod() *corev1.Pod {
	no, yes := int64(30), true
	mounts := []corev1.VolumeMount{{Name: "kube-api-access-abcde", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}}
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080), Scheme: "HTTP"}}, PeriodSeconds: 10, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3}
	at := metav1.Unix(1700000000, 0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web-7f6d5c4b-abcde", Namespace: "shop", UID: "6f3c1c3a-0000-4000-8000-000000000001", ResourceVersion: "123456", CreationTimestamp: at,
			Labels: map[string]string{"app": "web", "pod-template-hash": "7f6d5c4b", "tier": "front"}, Annotations: map[string]string{"example.com/note": "a <note> & more"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-7f6d5c4b", UID: "6f3c1c3a-0000-4000-8000-000000000000", Controller: &yes, BlockOwnerDeletion: &yes}}},
		Spec: corev1.PodSpec{NodeName: "node-1", ServiceAccountName: "default", RestartPolicy: "Always", DNSPolicy: "ClusterFirst", TerminationGracePeriodSeconds: &no, SecurityContext: &corev1.PodSecurityContext{},
			Volumes: []corev1.Volume{{Name: "kube-api-access-abcde", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}}}},
			Containers: []corev1.Container{{Name: "web", Image: "example.com/web:1.2.3", ImagePullPolicy: "IfNotPresent", Env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}},
				Ports:          []corev1.ContainerPort{{ContainerPort: 8080, Protocol: "TCP"}},
				Resources:      corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")}, Limits: corev1.ResourceList{"memory": resource.MustParse("256Mi")}},
				ReadinessProbe: probe, VolumeMounts: mounts, TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: "File"}}},
		Status: corev1.PodStatus{Phase: "Running", PodIP: "10.0.0.7", PodIPs: []corev1.PodIP{{IP: "10.0.0.7"}}, StartTime: &at,
			Conditions:        []corev1.PodCondition{{Type: "Ready", Status: "True", LastTransitionTime: at}, {Type: "PodScheduled", Status: "True", LastTransitionTime: at}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "web", Ready: true, Image: "example.com/web:1.2.3", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at}}}}},
	}
}

func BenchmarkJSON(b *testing.B) {
	custom, err := runtime.DefaultUnstructuredConverter.ToUnstructured(samplePod())
	if err != nil {
		b.Fatal(err)
	}
	for _, of := range []struct {
		name string
		obj  any
	}{{"Pod", samplePod()}, {"ConfigMap", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "b"}, Data: map[string]string{"k": strings.Repeat("x", 1000)}}},
		{"Custom", &unstructured.Unstructured{Object: custom}}} {
		b.Run(of.name+"/standard", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				json.Marshal(of.obj)
			}
		})
		b.Run(of.name+"/plan", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				MarshalJSON(of.obj)
			}
		})
	}
}
