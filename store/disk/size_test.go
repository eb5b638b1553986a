package disk_test

import (
	"bytes"
	"testing"

	"proa.dev/env"
	"proa.dev/store"
	"proa.dev/store/disk"
)

// TestSize: the size grows with what is written.
func TestSize(t *testing.T) {
	s := open(t, disk.Config{Dir: "/data", Files: env.NewMemFiles(), Clock: env.SystemClock(), ReserveBytes: 64 << 10})
	defer s.Close()
	name, before, err := store.Sized(s).Size(t.Context())
	if err != nil || name != "disk-0" || before <= 0 {
		t.Fatalf("%q %d %v", name, before, err)
	}
	if _, err := s.Put(t.Context(), "/registry/a", bytes.Repeat([]byte("x"), 1<<20), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, after, err := s.Size(t.Context()); err != nil || after < before+1<<20 {
		t.Errorf("%d bytes before a value of a megabyte, then %d %v", before, after, err)
	}
}
