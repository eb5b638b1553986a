package tree

import (
	"errors"
	"fmt"
	"testing"

	"proa.dev/store"
)

// A watcher that waits at the end of the window moves with it, although nothing
// of its prefix happens.
func TestIdleWatcherMovesWithTheWindow(t *testing.T) {
	s := New(Config{Window: 10, Manual: true})
	s.Start(1)
	idle, err := s.Watch(t.Context(), "/a/", 0)
	if err != nil {
		t.Fatal(err)
	}
	if es, err := idle.(*watch).take(); err != nil || len(es) != 0 {
		t.Fatal(es, err)
	}
	for i := range 100 {
		if _, err := s.Put(t.Context(), fmt.Sprintf("/b/%d", i), nil, store.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Put(t.Context(), "/a/x", nil, store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	es, rev, err := idle.Next(t.Context())
	if err != nil || len(es) != 1 || rev != s.Revision() {
		t.Fatal(es, rev, err)
	}
}

// flakyLog refuses when told to.
type flakyLog struct {
	refuse error
	held   map[string]string
	gate   chan struct{}
}

func (l *flakyLog) Write(es []*Entry, sync bool) error {
	if l.gate != nil {
		<-l.gate
	}
	if l.refuse != nil {
		return l.refuse
	}
	for _, e := range es {
		if e.Deleted {
			delete(l.held, e.KV.Key)
		} else {
			l.held[e.KV.Key] = string(e.KV.Value)
		}
	}
	return nil
}
func (l *flakyLog) Sync() error       { return l.refuse }
func (l *flakyLog) Close(int64) error { return nil }

// A group that the log refuses leaves nothing behind, nor does what was staged
// on top of it; what waited for its outcome is decided by what is there.
func TestRefusedGroupLeavesNothing(t *testing.T) {
	l := &flakyLog{held: map[string]string{}, gate: make(chan struct{})}
	s := New(Config{Log: l, Rings: []Ring{{Prefix: "/r/", Objects: 2}}})
	s.Start(1)
	defer s.Close()
	const n = 20
	refused := errors.New("refused")
	l.refuse = refused
	errs := make(chan error, 3*n)
	for i := range n {
		go func() {
			_, err := s.Put(t.Context(), "/a", fmt.Append(nil, i), store.PutOptions{Expect: store.Any})
			errs <- err
		}()
		go func() {
			_, err := s.Put(t.Context(), fmt.Sprintf("/r/%d", i), nil, store.PutOptions{})
			errs <- err
		}()
		go func() {
			_, err := s.Put(t.Context(), "/a", nil, store.PutOptions{Expect: 77})
			errs <- err
		}()
	}
	go func() {
		for {
			select {
			case l.gate <- struct{}{}:
			case <-s.done:
				return
			}
		}
	}()
	for range 3 * n {
		if err := <-errs; !errors.Is(err, refused) && !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("put: %v", err)
		}
	}
	if s.Revision() != 1 || s.Len() != 0 || len(s.staged) != 0 || s.rings[0].objects != 0 {
		t.Fatalf("revision %d, %d keys, %d staged, %d in the ring", s.Revision(), s.Len(), len(s.staged), s.rings[0].objects)
	}
	s.order.Lock() // no group is under way
	l.refuse = nil
	s.order.Unlock()
	kv, err := s.Put(t.Context(), "/a", []byte("new"), store.PutOptions{})
	if err != nil || kv.ModRevision <= 1+2*n-1 || l.held["/a"] != "new" {
		t.Fatalf("put after the failure: %v %v, log holds %v; revisions are not used again", kv, err, l.held)
	}
}
