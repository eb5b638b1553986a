package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"proa.dev/internal/await"
	"proa.dev/store"
	"proa.dev/store/etcd"
	"proa.dev/store/etcd/etcdtest"
)

func collect(t testing.TB, w store.Watch, n int) []store.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out []store.Event
	for len(out) < n {
		batch, _, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("after %d of %d events: %v", len(out), n, err)
		}
		out = append(out, batch...)
	}
	return out
}

// A watch goes on after a restart of etcd, without loss and without doubles, and so
// do writes and questions for the newest revision.
func TestRestart(t *testing.T) {
	t.Parallel()
	e := etcdtest.Start(t)
	st := open(t, etcd.Config{Endpoints: []string{e.URL}, RequestTimeout: 5 * time.Second})
	defer st.Close()
	w, err := st.Watch(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var written []int64
	put := func(n int) {
		kv, err := st.Put(t.Context(), fmt.Sprintf("/registry/configmaps/default/%d", n%3), nil, store.PutOptions{Expect: store.Any})
		if err != nil {
			t.Fatal(err)
		}
		written = append(written, kv.ModRevision)
	}
	for i := range 10 {
		put(i)
	}
	e.Stop()
	short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	_, err = st.Put(short, "/registry/x/y", nil, store.PutOptions{Expect: store.Any})
	cancel()
	if !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a write without etcd: %v", err)
	}
	e.Restart()
	if _, err := st.Latest(t.Context()); err != nil {
		t.Fatalf("newest revision after the restart: %v", err)
	}
	for i := range 10 {
		put(i)
	}
	for i, ev := range collect(t, w, len(written)) {
		if ev.KV.ModRevision != written[i] {
			t.Fatalf("event %d is of revision %d, %d was written", i, ev.KV.ModRevision, written[i])
		}
	}
}

// A write elsewhere in etcd is no event, and yet watches reach its revision when
// somebody asks for it.
func TestProgress(t *testing.T) {
	t.Parallel()
	e := etcdtest.Start(t)
	st := open(t, etcd.Config{Endpoints: []string{e.URL}})
	defer st.Close()
	other := open(t, etcd.Config{Endpoints: []string{e.URL}, Prefix: "/other"})
	defer other.Close()
	w, err := st.Watch(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	kv, err := other.Put(t.Context(), "/registry/a", nil, store.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rev, err := st.Latest(t.Context())
	if err != nil || rev < kv.ModRevision {
		t.Fatalf("newest revision %d, %v; %d was written", rev, err, kv.ModRevision)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for progress := int64(0); progress < rev; {
		var events []store.Event
		if events, progress, err = w.Next(ctx); err != nil || len(events) > 0 {
			t.Fatalf("events %v up to %d, %v", events, progress, err)
		}
	}
}

// Two stores compact one etcd by upstream's protocol: history goes, and the key says
// up to where.
func TestCompaction(t *testing.T) {
	t.Parallel()
	e := etcdtest.Start(t)
	var sts []*etcd.Store
	for range 2 {
		st := open(t, etcd.Config{Endpoints: []string{e.URL}, CompactEvery: 200 * time.Millisecond})
		defer st.Close()
		sts = append(sts, st)
	}
	first, err := sts[0].Put(t.Context(), "/registry/a", []byte("1"), store.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sts[0].Put(t.Context(), "/registry/a", []byte("2"), store.PutOptions{Expect: first.ModRevision}); err != nil {
		t.Fatal(err)
	}
	for _, st := range sts {
		await.Nil(t, 20*time.Second, "the history is gone", func() error {
			kv, _, err := st.Get(t.Context(), "/registry/a", first.ModRevision)
			switch {
			case errors.Is(err, store.ErrCompacted):
				return nil
			case err != nil:
				t.Fatalf("read of the history: %v", err)
			}
			return fmt.Errorf("revision %d answers %q", first.ModRevision, kv.Value)
		})
	}
}

// A guard that does not hold refuses the write, and says so.
func TestGuards(t *testing.T) {
	t.Parallel()
	e := etcdtest.Start(t)
	st := open(t, etcd.Config{Endpoints: []string{e.URL}})
	defer st.Close()
	g := store.Guard{Key: "/registry/guard", Value: "me"}
	put := func(expect int64) error {
		_, err := st.Put(t.Context(), "/registry/a", nil, store.PutOptions{Expect: expect, Guards: []store.Guard{g}})
		return err
	}
	if err := put(store.Absent); !errors.Is(err, store.ErrGuard) {
		t.Errorf("without the guard's key: %v", err)
	}
	for _, owner := range []string{"other", "me"} {
		if _, err := st.Put(t.Context(), g.Key, []byte(owner), store.PutOptions{Expect: store.Any}); err != nil {
			t.Fatal(err)
		}
		err := put(store.Absent)
		if owner == "me" && err != nil || owner != "me" && !errors.Is(err, store.ErrGuard) {
			t.Errorf("the guard is held by %s: %v", owner, err)
		}
	}
	if err := put(store.Absent); !errors.Is(err, store.ErrExists) {
		t.Errorf("the key is there: %v", err)
	}
	if err := put(7); !errors.Is(err, store.ErrConflict) {
		t.Errorf("another revision: %v", err)
	}
}

func TestOpenWithoutEtcd(t *testing.T) {
	t.Parallel()
	_, err := etcd.Open(t.Context(), etcd.Config{Endpoints: []string{"http://127.0.0.1:1"}, OpenTimeout: 500 * time.Millisecond})
	if !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("open: %v", err)
	}
	if _, err := etcd.Open(t.Context(), etcd.Config{}); err == nil {
		t.Error("open without an endpoint")
	}
	none := filepath.Join(t.TempDir(), "none")
	if _, err := etcd.ClientTLS(none, "", ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("authority %s: %v", none, err)
	}
	if _, err := etcd.ClientTLS("", none, ""); err == nil {
		t.Error("a certificate without a key")
	}
}
