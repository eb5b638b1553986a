package patch

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// FuzzApply: no patch crashes, hangs or makes something that is no JSON.
func FuzzApply(f *testing.F) {
	const pod = `{"metadata":{"name":"a","labels":{"x":"y"}},"spec":{"containers":[{"name":"c","env":[{"name":"E","value":"1"}]}]}}`
	for i, p := range []string{`[{"op":"add","path":"/metadata/labels/z","value":"1"}]`, `[{"op":"copy","from":"/spec","path":"/metadata/x"}]`, `[{"op":"move","from":"/a","path":"/"}]`, `[{"op":"test","path":"/spec/containers/-1"}]`,
		`{"metadata":null}`, `{"spec":{"containers":[{"name":"c","$patch":"delete"}]}}`, `{"spec":{"$setElementOrder/containers":[{"name":"c"}],"containers":[{"name":"c","env":[{"$patch":"replace"}]}]}}`,
		`{"spec":{"$retainKeys":["containers"],"containers":[]}}`, `{"metadata":{"$deleteFromPrimitiveList/finalizers":["a"]}}`, `[{"op":"replace","path":"","value":[]}]`, `null`, `[]`} {
		f.Add(uint8(i), p, pod)
	}
	f.Fuzz(func(t *testing.T, kind uint8, patch, original string) {
		if !json.Valid([]byte(original)) || len(original) == 0 || original[0] != '{' {
			return
		}
		typ := []types.PatchType{types.JSONPatchType, types.MergePatchType, types.StrategicMergePatchType}[kind%3]
		out, _, err := Apply(typ, []byte(original), []byte(patch), corev1.Pod{}, kind%2 == 0)
		if err == nil && !json.Valid(out) {
			t.Fatalf("%s %q on %q gives %q, which is no JSON", typ, patch, original, out)
		}
	})
}
