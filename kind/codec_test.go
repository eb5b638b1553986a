package kind

import (
	"bytes"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
)

func samplePod() *corev1.Pod {
	p := &corev1.Pod{}
	p.APIVersion, p.Kind = "v1", "Pod"
	p.Name, p.Namespace, p.UID = "web", "default", "u"
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "nginx:1"}}
	return p
}

func TestEnvelopeIsUpstreams(t *testing.T) {
	pod := samplePod()
	got, err := EncodeStored(Pod, pod)
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	s := Scheme()
	if err := protobuf.NewSerializer(s, s).Encode(pod, &want); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Fatalf("envelope differs\n got %q\nwant %q", got, want.Bytes())
	}
	back, err := DecodeStored(Pod, got)
	if err != nil {
		t.Fatal(err)
	}
	if back.GetName() != "web" || back.GetObjectKind().GroupVersionKind() != Pod.GVK() {
		t.Fatalf("got %v %v", back.GetName(), back.GetObjectKind())
	}
}

func TestDecodeStoredRefusesDamage(t *testing.T) {
	data, err := EncodeStored(Pod, samplePod())
	if err != nil {
		t.Fatal(err)
	}
	for n := range data {
		if n == len(data)-4 || n == len(data)-2 {
			continue // the two empty fields at the end may be absent
		}
		if _, err := DecodeStored(Pod, data[:n]); err == nil {
			t.Errorf("decoded %d of %d bytes without an error", n, len(data))
		}
	}
	if _, err := DecodeStored(Node, data); err == nil {
		t.Error("decoded a pod as a node")
	}
	if _, err := DecodeStored(Pod, []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"j"}}`)); err != nil {
		t.Errorf("json: %v", err)
	}
}

func BenchmarkCodec(b *testing.B) {
	pod := samplePod()
	data, err := EncodeStored(Pod, pod)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = EncodeStored(Pod, pod)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = DecodeStored(Pod, data)
		}
	})
}
