package disk_test

import (
	"testing"

	"proa.dev/env"
	"proa.dev/store"
	"proa.dev/store/disk"
	"proa.dev/store/storetest"
)

func TestContractOnFiles(t *testing.T) {
	storetest.Run(t, func(t testing.TB, o storetest.Options) store.Store {
		return open(t, config(o, t.TempDir(), nil))
	})
}

func TestContractInMemory(t *testing.T) {
	storetest.Run(t, func(t testing.TB, o storetest.Options) store.Store {
		return open(t, config(o, "/data", env.NewMemFiles()))
	})
}

func config(o storetest.Options, dir string, files env.Files) disk.Config {
	c := disk.Config{Dir: dir, Files: files, Clock: o.Clock, Window: o.Window, WindowBytes: o.WindowBytes,
		EventsPrefix: o.RingPrefix, EventsObjects: o.RingObjects, EventsBytes: o.RingBytes}
	if files != nil {
		c.ReserveBytes = 64 << 10
	}
	return c
}

func open(t testing.TB, c disk.Config) *disk.Store {
	t.Helper()
	s, err := disk.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
