package apiserver_test

import (
	"context"
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/apiserver/apitest"
	"proa.dev/kind"
)

// BenchmarkChange: what changes of objects cost in process: who owns what is noted
// by every one.
func BenchmarkChange(b *testing.B) {
	c := apitest.Start(b, nil)
	l := c.Server.Local(apitest.Admin)
	p := pod("p")
	p.Namespace = "n"
	if _, err := l.Create(context.Background(), kind.Pod, p, metav1.CreateOptions{FieldManager: "maker"}); err != nil {
		b.Fatal(err)
	}
	for _, change := range []struct {
		name, doc string
		how       types.PatchType
	}{
		{"merge", `{"metadata":{"annotations":{"a":"%d"}}}`, types.MergePatchType},
		{"strategic", `{"metadata":{"annotations":{"a":"%d"}}}`, types.StrategicMergePatchType},
		{"apply", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","annotations":{"b":"%d"}}}`, types.ApplyYAMLPatchType},
	} {
		b.Run(change.name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := l.Patch(context.Background(), kind.Pod, "n", "p", change.how, fmt.Appendf(nil, change.doc, i), "", metav1.PatchOptions{FieldManager: "changer"}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
