package server

import (
	"testing"

	"proa.dev/store"
	"proa.dev/store/mem"
)

// TestWritten: another program's values are never taken for this one's.
func TestWritten(t *testing.T) {
	if buildID() == "" {
		t.Error("this program does not know its build")
	}
	ctx := t.Context()
	st := mem.Open(mem.Config{})
	defer st.Close()
	s := &Server{Store: st}
	put := func(key, value string) int64 {
		kv, err := st.Put(ctx, key, []byte(value), store.PutOptions{Expect: store.Any})
		if err != nil {
			t.Fatal(err)
		}
		return kv.ModRevision
	}
	written := func() int64 {
		rev, err := s.written(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	old := put("/registry/a", "older than the note")
	first := written()
	if first <= old {
		t.Errorf("what was there at revision %d counts as written by this program, which begins at %d", old, first)
	}
	mine := put("/registry/b", "mine")
	if again := written(); again != first || mine < again {
		t.Errorf("after a restart %d, before %d, written at %d", again, first, mine)
	}
	put(writtenKey, "another 1")
	foreign := put("/registry/c", "of another program")
	if now := written(); now <= foreign {
		t.Errorf("another program's value at %d counts as this one's from %d", foreign, now)
	}
}
