// Package clienttest is the suite that every Client passes: in process and over
// HTTP. Its cases repeat the promises of packages store and client as seen from
// outside.
package clienttest

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"proa.dev/client"
	"proa.dev/kind"
)

const namespace = "default"

// Run runs all cases; open gives an administrator's client of an empty server
// that lives until the test ends.
func Run(t *testing.T, open func(t *testing.T) client.Client) {
	cases := []struct {
		name string
		run  func(t *testing.T, c client.Client)
	}{
		{"a write that returned is visible", visible},
		{"a stale update is a conflict", conflict},
		{"errors can be told apart", errorsApart},
		{"watch delivers every event once and in order", order},
		{"watch resumes from a version", resume},
		{"a watch that is stopped ends", stop},
		{"pages show one revision", pages},
		{"patch changes what it names", patch},
		{"status has its own door", status},
		{"bind and evict", bindEvict},
		{"names are generated", generated},
		{"sent objects are not changed", untouched},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
}

var ctx = context.Background()

func configMap(name, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: map[string]string{"k": value}}
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "busybox"}}}}
}

func must[T any](t *testing.T) func(v T, err error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func create(t *testing.T, c client.Client, k *kind.Kind, obj kind.Object) kind.Object {
	t.Helper()
	return must[kind.Object](t)(c.Create(ctx, k, obj, metav1.CreateOptions{}))
}

func visible(t *testing.T, c client.Client) {
	for i := range 50 {
		name := fmt.Sprintf("m%d", i)
		made := create(t, c, kind.ConfigMap, configMap(name, "1"))
		got := must[kind.Object](t)(c.Get(ctx, kind.ConfigMap, namespace, name, metav1.GetOptions{}))
		if got.GetResourceVersion() != made.GetResourceVersion() || got.GetUID() != made.GetUID() {
			t.Fatalf("%s: created %v, got %v", name, made, got)
		}
		l := must[client.List](t)(c.List(ctx, kind.ConfigMap, namespace, metav1.ListOptions{}))
		if len(l.Items) != i+1 {
			t.Fatalf("list after %d creates has %d", i+1, len(l.Items))
		}
		if got.GetObjectKind().GroupVersionKind() != kind.ConfigMap.GVK() || l.Items[0].GetObjectKind().GroupVersionKind() != kind.ConfigMap.GVK() {
			t.Fatalf("kind and apiVersion are missing")
		}
	}
}

func conflict(t *testing.T, c client.Client) {
	made := create(t, c, kind.ConfigMap, configMap("a", "1")).(*corev1.ConfigMap)
	next := made.DeepCopy()
	next.Data["k"] = "2"
	must[kind.Object](t)(c.Update(ctx, kind.ConfigMap, next, "", metav1.UpdateOptions{}))
	next = made.DeepCopy()
	next.Data["k"] = "3"
	if _, err := c.Update(ctx, kind.ConfigMap, next, "", metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Fatalf("stale update: %v", err)
	}
	rv := made.ResourceVersion
	if err := c.Delete(ctx, kind.ConfigMap, namespace, "a", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &rv}}); !apierrors.IsConflict(err) {
		t.Fatalf("stale delete: %v", err)
	}
}

func errorsApart(t *testing.T, c client.Client) {
	if _, err := c.Get(ctx, kind.ConfigMap, namespace, "none", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("get: %v", err)
	}
	if err := c.Delete(ctx, kind.ConfigMap, namespace, "none", metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("delete: %v", err)
	}
	if _, err := c.Update(ctx, kind.ConfigMap, configMap("none", "1"), "", metav1.UpdateOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("update: %v", err)
	}
	create(t, c, kind.ConfigMap, configMap("a", "1"))
	if _, err := c.Create(ctx, kind.ConfigMap, configMap("a", "1"), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Fatalf("create: %v", err)
	}
	if _, err := c.Create(ctx, kind.ConfigMap, configMap("Not A Name", "1"), metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Fatalf("invalid: %v", err)
	}
}

// take reads n events other than bookmarks, or fails after ten seconds.
func take(t *testing.T, w watch.Interface, n int) []watch.Event {
	t.Helper()
	var out []watch.Event
	limit := time.After(10 * time.Second)
	for len(out) < n {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				t.Fatalf("watch ended after %d of %d events", len(out), n)
			}
			if e.Type != watch.Bookmark {
				out = append(out, e)
			}
		case <-limit:
			t.Fatalf("%d of %d events in ten seconds", len(out), n)
		}
	}
	return out
}

func order(t *testing.T, c client.Client) {
	w := must[watch.Interface](t)(c.Watch(ctx, kind.ConfigMap, namespace, metav1.ListOptions{}))
	defer w.Stop()
	const n = 100
	obj := create(t, c, kind.ConfigMap, configMap("a", "0")).(*corev1.ConfigMap)
	for i := 1; i < n; i++ {
		next := obj.DeepCopy()
		next.Data["k"] = strconv.Itoa(i)
		obj = must[kind.Object](t)(c.Update(ctx, kind.ConfigMap, next, "", metav1.UpdateOptions{})).(*corev1.ConfigMap)
	}
	if err := c.Delete(ctx, kind.ConfigMap, namespace, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	last := 0
	for i, e := range take(t, w, n+1) {
		cm := e.Object.(*corev1.ConfigMap)
		want := watch.Modified
		switch i {
		case 0:
			want = watch.Added
		case n:
			want = watch.Deleted
		}
		rv, _ := strconv.Atoi(cm.ResourceVersion)
		if e.Type != want || rv <= last || cm.Data["k"] != strconv.Itoa(min(i, n-1)) {
			t.Fatalf("event %d: %s version %d after %d, value %s", i, e.Type, rv, last, cm.Data["k"])
		}
		last = rv
	}
}

func resume(t *testing.T, c client.Client) {
	create(t, c, kind.ConfigMap, configMap("a", "1"))
	b := create(t, c, kind.ConfigMap, configMap("b", "1"))
	create(t, c, kind.ConfigMap, configMap("c", "1"))
	w := must[watch.Interface](t)(c.Watch(ctx, kind.ConfigMap, namespace, metav1.ListOptions{ResourceVersion: b.GetResourceVersion()}))
	defer w.Stop()
	if e := take(t, w, 1)[0]; e.Type != watch.Added || e.Object.(*corev1.ConfigMap).Name != "c" {
		t.Fatalf("first event after b: %+v", e)
	}
}

func stop(t *testing.T, c client.Client) {
	w := must[watch.Interface](t)(c.Watch(ctx, kind.ConfigMap, namespace, metav1.ListOptions{}))
	w.Stop()
	for range w.ResultChan() {
	}
	short, cancel := context.WithCancel(ctx)
	w = must[watch.Interface](t)(c.Watch(short, kind.ConfigMap, namespace, metav1.ListOptions{}))
	cancel()
	for range w.ResultChan() {
	}
	w.Stop()
}

func pages(t *testing.T, c client.Client) {
	for i := range 5 {
		create(t, c, kind.ConfigMap, configMap(fmt.Sprintf("m%d", i), "1"))
	}
	one := must[client.List](t)(c.List(ctx, kind.ConfigMap, namespace, metav1.ListOptions{Limit: 2}))
	if len(one.Items) != 2 || one.Remaining == nil || *one.Remaining != 3 {
		t.Fatalf("first page: %d items, %v remain", len(one.Items), one.Remaining)
	}
	create(t, c, kind.ConfigMap, configMap("m2a", "1"))
	two := must[client.List](t)(c.List(ctx, kind.ConfigMap, namespace, metav1.ListOptions{Limit: 10, Continue: one.Continue}))
	if len(two.Items) != 3 || two.ResourceVersion != one.ResourceVersion || two.Continue != "" {
		t.Fatalf("second page: %d items at %s after %s", len(two.Items), two.ResourceVersion, one.ResourceVersion)
	}
}

func patch(t *testing.T, c client.Client) {
	create(t, c, kind.ConfigMap, configMap("a", "1"))
	got := must[kind.Object](t)(c.Patch(ctx, kind.ConfigMap, namespace, "a", types.MergePatchType, []byte(`{"data":{"x":"y"}}`), "", metav1.PatchOptions{}))
	if d := got.(*corev1.ConfigMap).Data; d["x"] != "y" || d["k"] != "1" {
		t.Fatalf("merged: %v", d)
	}
}

func status(t *testing.T, c client.Client) {
	p := create(t, c, kind.Pod, pod("p")).(*corev1.Pod).DeepCopy()
	p.Status.Phase = corev1.PodRunning
	p.Labels = map[string]string{"a": "b"}
	got := must[kind.Object](t)(c.Update(ctx, kind.Pod, p, "status", metav1.UpdateOptions{})).(*corev1.Pod)
	if got.Status.Phase != corev1.PodRunning {
		t.Fatalf("phase is %s", got.Status.Phase)
	}
	p = got.DeepCopy()
	p.Status.Phase = corev1.PodFailed
	got = must[kind.Object](t)(c.Update(ctx, kind.Pod, p, "", metav1.UpdateOptions{})).(*corev1.Pod)
	if got.Status.Phase != corev1.PodRunning {
		t.Fatalf("the main door changed the phase to %s", got.Status.Phase)
	}
}

func bindEvict(t *testing.T, c client.Client) {
	p := create(t, c, kind.Pod, pod("p"))
	b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "p", UID: p.GetUID()}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}}
	if _, err := c.Post(ctx, kind.Pod, namespace, "p", "binding", b); err != nil {
		t.Fatal(err)
	}
	got := must[kind.Object](t)(c.Get(ctx, kind.Pod, namespace, "p", metav1.GetOptions{})).(*corev1.Pod)
	if got.Spec.NodeName != "n1" {
		t.Fatalf("node is %q", got.Spec.NodeName)
	}
	if _, err := c.Post(ctx, kind.Pod, namespace, "p", "binding", b); !apierrors.IsConflict(err) {
		t.Fatalf("bound twice: %v", err)
	}
	if _, err := c.Post(ctx, kind.Pod, namespace, "p", "eviction", &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "p"}}); err != nil {
		t.Fatal(err)
	}
	got = must[kind.Object](t)(c.Get(ctx, kind.Pod, namespace, "p", metav1.GetOptions{})).(*corev1.Pod)
	if got.DeletionTimestamp == nil {
		t.Fatal("evicted pod is not going")
	}
}

func generated(t *testing.T, c client.Client) {
	seen := map[string]bool{}
	for range 20 {
		cm := configMap("", "1")
		cm.GenerateName = "g-"
		name := create(t, c, kind.ConfigMap, cm).GetName()
		if seen[name] || len(name) != 7 {
			t.Fatalf("generated %q", name)
		}
		seen[name] = true
	}
}

func untouched(t *testing.T, c client.Client) {
	cm := configMap("a", "1")
	create(t, c, kind.ConfigMap, cm)
	if cm.UID != "" || cm.ResourceVersion != "" {
		t.Fatalf("create changed its argument: %+v", cm.ObjectMeta)
	}
}
