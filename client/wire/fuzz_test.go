package wire

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// FuzzNegotiate: any Accept and Content-Type header gives an answer.
func FuzzNegotiate(f *testing.F) {
	for _, s := range []string{"", "*/*", "application/json;as=Table;g=meta.k8s.io;v=v1,application/json", "application/vnd.kubernetes.protobuf;q=0.5, application/yaml;q=NaN", "application/json;as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io", ",;,=;q=", "application/json;stream=watch"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, h string) {
		for _, b := range []bool{false, true} {
			Negotiate(h, b, !b)
		}
		BodyFormat(h)
	})
}

// FuzzDecode: no body crashes or hangs a decoder, and what was decoded can be
// encoded and is the same when it is read again.
func FuzzDecode(f *testing.F) {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"x": "y"}}, Data: map[string]string{"k": "v"}}
	proto, err := Encode(Protobuf, cm, corev1.SchemeGroupVersion.WithKind("ConfigMap"), false)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint8(Protobuf), uint8(0), proto)
	f.Add(uint8(Protobuf), uint8(2), deepSchema(50))
	f.Add(uint8(JSON), uint8(1), []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"1e3","memory":"1Gi"}}}]}}`))
	f.Add(uint8(YAML), uint8(1), []byte("a: &a [1,1]\nb: &b [*a,*a]\nmetadata: {name: x}\n"))
	f.Add(uint8(JSON), uint8(0), []byte(`{"data":{"a":"b","a":"c"},"binaryData":{"x":"!"}}`))
	f.Add(uint8(YAML), uint8(2), []byte("spec: {versions: [{schema: {openAPIV3Schema: {properties: {a: {not: {}}}}}}]}\n"))
	f.Fuzz(func(t *testing.T, format, what uint8, data []byte) {
		var obj, again runtime.Object
		gvk := schema.GroupVersionKind{Version: "v1", Kind: "X"}
		switch what % 3 {
		case 0:
			obj, again = new(corev1.ConfigMap), new(corev1.ConfigMap)
		case 1:
			obj, again = new(corev1.Pod), new(corev1.Pod)
		default:
			obj, again = new(apiextensionsv1.CustomResourceDefinition), new(apiextensionsv1.CustomResourceDefinition)
		}
		fm := Format(format % 3)
		if _, err := Decode(fm, data, obj, format%2 == 0); err != nil {
			return
		}
		for _, out := range []Format{JSON, Protobuf} {
			b, err := Encode(out, obj, gvk, false)
			if err != nil {
				continue // such as a time that JSON cannot say
			}
			if _, err := Decode(out, b, again, false); err != nil {
				t.Fatalf("what was encoded (%q) cannot be decoded: %v", b, err)
			}
		}
	})
}

// FuzzUnwrap: the envelope.
func FuzzUnwrap(f *testing.F) {
	f.Add([]byte("k8s\x00\x0a\x02v1\x12\x00"))
	f.Fuzz(func(t *testing.T, data []byte) { Unwrap(data) })
}

// deepSchema is a definition in Protobuf whose schema says "not" so many times.
func deepSchema(depth int) []byte {
	message := func(field int, in []byte) []byte {
		b := binary.AppendUvarint(nil, uint64(field<<3|2))
		b = binary.AppendUvarint(b, uint64(len(in)))
		return append(b, in...)
	}
	// Built from the inside with one buffer that grows to the front.
	const not = 28
	buf := make([]byte, depth*7+64)
	at := len(buf)
	for range depth {
		var head [12]byte
		h := binary.AppendUvarint(head[:0], uint64(not<<3|2))
		h = binary.AppendUvarint(h, uint64(len(buf)-at))
		at -= len(h)
		copy(buf[at:], h)
	}
	s := message(1, buf[at:])         // CustomResourceValidation.openAPIV3Schema
	v := message(4, s)                // version.schema
	spec := message(2, message(7, v)) // crd.spec.versions
	u := &runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition"}, Raw: spec}
	b, _ := u.Marshal()
	return append([]byte("k8s\x00"), b...)
}

// TestDepth: a body that is nested without end is refused, in each format; it
// would exhaust the stack, which ends the process.
func TestDepth(t *testing.T) {
	deep := deepSchema(400_000)
	if len(deep) > 3<<20 {
		t.Fatalf("body of %d bytes is larger than what the server takes", len(deep))
	}
	if _, err := Decode(Protobuf, deep, new(apiextensionsv1.CustomResourceDefinition), true); err == nil || !strings.Contains(err.Error(), "nested") {
		t.Errorf("deep Protobuf: %v, want a refusal", err)
	}
	if _, err := Decode(Protobuf, deepSchema(200), new(apiextensionsv1.CustomResourceDefinition), true); err != nil {
		t.Errorf("Protobuf of an ordinary depth: %v", err)
	}
	for _, f := range []Format{JSON, YAML} {
		body := append([]byte(`{"metadata":`), bytes.Repeat([]byte(`{"a":`), 100_000)...)
		if _, err := Decode(f, body, new(corev1.ConfigMap), true); err == nil {
			t.Errorf("deep body in format %d is accepted", f)
		}
	}
}
