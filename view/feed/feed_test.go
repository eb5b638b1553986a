package feed_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"proa.dev/kind"
	"proa.dev/store"
	"proa.dev/store/mem"
	"proa.dev/view"
	"proa.dev/view/feed"
)

// Own small rows: the feed must not depend on the contents of the table.
var (
	pods  = &kind.Kind{Version: "v1", Kind: "Pod", Plural: "pods", Prefix: "pods", New: func() kind.Object { return &corev1.Pod{} }, NewList: func() runtime.Object { return &corev1.PodList{} }}
	nodes = &kind.Kind{Version: "v1", Kind: "Node", Plural: "nodes", Prefix: "minions", Scope: kind.Cluster, New: func() kind.Object { return &corev1.Node{} }}
	table = kind.NewTable(pods, nodes)
)

func decode(k *kind.Kind, data []byte) (kind.Object, error) {
	o := k.New()
	return o, json.Unmarshal(data, o)
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
}

func put(t testing.TB, st store.Store, k *kind.Kind, o kind.Object, isAttached bool) store.KV {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	opts := store.PutOptions{Expect: store.Any, Class: store.Buffered}
	if isAttached {
		opts.Attached = o
		opts.Stamp = func(rev int64) { o.SetResourceVersion(strconv.FormatInt(rev, 10)) }
	}
	kv, err := st.Put(t.Context(), k.StoreKey(o.GetNamespace(), o.GetName()), data, opts)
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

func poll(t testing.TB, f *feed.Feed) {
	t.Helper()
	if _, err := f.Poll(); err != nil {
		t.Fatal(err)
	}
}

func TestLoadAndFollow(t *testing.T) {
	st := mem.Open(mem.Config{Manual: true})
	defer st.Close()
	for i := range 1000 {
		put(t, st, pods, pod(fmt.Sprintf("p%04d", i)), false)
	}
	last := put(t, st, nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, false)
	if _, err := st.Put(t.Context(), "/registry/unknown/x", []byte("?"), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Put(t.Context(), "/registry/pods/default/bad", []byte("{"), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	v := view.New(table, 0)
	f := feed.New(st, v, decode, nil)
	if err := f.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := v.Snapshot()
	if s.Len(pods) != 1000 || s.Len(nodes) != 1 || f.Skipped() != 1 || s.Revision() != st.Revision() {
		t.Fatalf("%d pods, %d nodes, %d skipped, revision %d of %d", s.Len(pods), s.Len(nodes), f.Skipped(), s.Revision(), st.Revision())
	}
	if rv := s.Get(nodes, "", "n1").GetResourceVersion(); rv != fmt.Sprint(last.ModRevision) {
		t.Fatalf("node has resourceVersion %s, want %d", rv, last.ModRevision)
	}

	// An attached object is taken over, another one decoded.
	mine := pod("mine")
	put(t, st, pods, mine, true)
	other := put(t, st, pods, pod("other"), false)
	poll(t, f)
	s = v.Snapshot()
	if s.Get(pods, "default", "mine") != kind.Object(mine) {
		t.Fatal("the attached object was not taken over")
	}
	if o := s.Get(pods, "default", "other"); o == nil || o.GetResourceVersion() != fmt.Sprint(other.ModRevision) {
		t.Fatalf("decoded object is %v", o)
	}

	// Deletions: with a last state, from what was attached, from the bytes.
	final := mine.DeepCopy()
	_, revA, err := st.Delete(t.Context(), pods.StoreKey("default", "mine"), store.DeleteOptions{Attached: final,
		Stamp: func(rev int64) { final.ResourceVersion = fmt.Sprint(rev) }})
	if err != nil {
		t.Fatal(err)
	}
	_, revB, err := st.Delete(t.Context(), pods.StoreKey("default", "other"), store.DeleteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	again := pod("again")
	put(t, st, pods, again, true)
	_, revC, err := st.Delete(t.Context(), pods.StoreKey("default", "again"), store.DeleteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	poll(t, f)
	changes, progress, _, err := v.Changes(pods, other.ModRevision)
	if err != nil || len(changes) != 4 || progress != revC {
		t.Fatalf("%d changes up to %d, %v", len(changes), progress, err)
	}
	for i, want := range map[int]int64{0: revA, 1: revB, 3: revC} {
		c := changes[i]
		if c.New != nil || c.Old == nil || c.Last == nil || c.Last.GetResourceVersion() != fmt.Sprint(want) || c.Revision != want {
			t.Errorf("change %d: %+v, want a removal at %d", i, c, want)
		}
	}
	if changes[0].Last != kind.Object(final) {
		t.Error("the attached last state was not taken over")
	}
	if again.ResourceVersion == fmt.Sprint(revC) {
		t.Error("the object in the store was changed")
	}
	if s = v.Snapshot(); s.Len(pods) != 1000 {
		t.Fatalf("%d pods at the end", s.Len(pods))
	}
}

func TestFallingBehindReadsAnew(t *testing.T) {
	st := mem.Open(mem.Config{Manual: true, Window: 50})
	defer st.Close()
	for i := range 10 {
		put(t, st, pods, pod(fmt.Sprint("p", i)), false)
	}
	v := view.New(table, 0)
	f := feed.New(st, v, decode, nil)
	if err := f.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := v.Snapshot().Revision()
	if _, _, err := st.Delete(t.Context(), pods.StoreKey("default", "p3"), store.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	var want store.KV
	for range 100 {
		want = put(t, st, pods, pod("p4"), false)
	}
	poll(t, f)
	s := v.Snapshot()
	if s.Len(pods) != 9 || s.Get(pods, "default", "p3") != nil || s.Revision() != st.Revision() {
		t.Fatalf("%d pods at %d, the store is at %d", s.Len(pods), s.Revision(), st.Revision())
	}
	if rv := s.Get(pods, "default", "p4").GetResourceVersion(); rv != fmt.Sprint(want.ModRevision) {
		t.Fatalf("p4 is at %s, want %d", rv, want.ModRevision)
	}
	if _, _, _, err := v.Changes(pods, before); !errors.Is(err, view.ErrGone) {
		t.Fatalf("a watcher from before the gap gets %v", err)
	}
	put(t, st, pods, pod("p3"), false)
	poll(t, f)
	if v.Snapshot().Len(pods) != 10 {
		t.Fatal("it does not follow after reading anew")
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	st := mem.Open(mem.Config{})
	defer st.Close()
	v := view.New(table, 0)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	f := feed.New(st, v, decode, nil)
	if err := f.Run(ctx); err == nil {
		t.Fatal("run without load")
	}
	if err := f.Load(ctx); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- f.Run(ctx) }()
	kv := put(t, st, pods, pod("a"), true)
	wait, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	if err := v.WaitFor(wait, kv.ModRevision); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// BenchmarkLatency is from the call of Put to the moment the view has it.
func BenchmarkLatency(b *testing.B) {
	st := mem.Open(mem.Config{})
	defer st.Close()
	v := view.New(table, 0)
	f := feed.New(st, v, decode, nil)
	if err := f.Load(b.Context()); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	data := make([]byte, 1024)
	for b.Loop() {
		o := pod("a")
		kv, err := st.Put(ctx, "/registry/pods/default/a", data, store.PutOptions{Expect: store.Any, Attached: o,
			Stamp: func(rev int64) { o.ResourceVersion = strconv.FormatInt(rev, 10) }})
		if err != nil {
			b.Fatal(err)
		}
		if err := v.WaitFor(ctx, kv.ModRevision); err != nil {
			b.Fatal(err)
		}
	}
	cancel()
	<-ended
}
