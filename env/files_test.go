package env_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"proa.dev/env"
)

func both(t *testing.T, run func(t *testing.T, files env.Files, dir string)) {
	t.Run("system", func(t *testing.T) { run(t, env.SystemFiles(), t.TempDir()) })
	t.Run("memory", func(t *testing.T) { run(t, env.NewMemFiles(), "/dir") })
}

func write(t *testing.T, f env.File, text string) {
	t.Helper()
	if _, err := f.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, files env.Files, name string) string {
	t.Helper()
	f, err := files.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFiles(t *testing.T) {
	both(t, func(t *testing.T, files env.Files, dir string) {
		dir = filepath.Join(dir, "a", "b")
		if err := files.MkdirAll(dir); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, "f")
		if _, err := files.Open(name); !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		f, err := files.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		write(t, f, "hello")
		if _, err := f.WriteAt([]byte("J"), 0); err != nil {
			t.Fatal(err)
		}
		write(t, f, " there")
		if got := read(t, files, name); got != "Jello there" {
			t.Fatal(got)
		}
		// A new file of the name leaves the old one to who has it open.
		g, err := files.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		write(t, g, "new")
		b := make([]byte, 5)
		if _, err := f.ReadAt(b, 0); err != nil || string(b) != "Jello" || read(t, files, name) != "new" {
			t.Fatalf("%q %v", b, err)
		}
		for _, err := range []error{f.Truncate(2), f.Allocate(0, 100), f.Sync(), f.Close(), g.Close(),
			files.Rename(name, name+"2"), files.Link(name+"2", name+"3"), files.SyncDir(dir)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := files.Link(name+"2", name+"3"); !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
		names, err := files.List(dir)
		if err != nil || len(names) != 2 || names[0] != "f2" || names[1] != "f3" {
			t.Fatal(names, err)
		}
		if err := files.Remove(dir); err == nil {
			t.Fatal("a directory with files was removed")
		}
		if err := errors.Join(files.Remove(name+"2"), files.Remove(name+"3"), files.Remove(dir)); err != nil {
			t.Fatal(err)
		}
		if free, total, err := files.Free(filepath.Dir(dir)); err != nil || free == 0 || total < free {
			t.Fatal(free, total, err)
		}
		l, err := files.Lock(dir + ".lock")
		if err != nil {
			t.Fatal(err)
		}
		var locked *env.LockedError
		if _, err := files.Lock(dir + ".lock"); !errors.As(err, &locked) || locked.PID != 0 && locked.PID != os.Getpid() {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if l, err = files.Lock(dir + ".lock"); err != nil {
			t.Fatal(err)
		}
		l.Close()
	})
}

func TestCrashLosesWhatWasNotSynced(t *testing.T) {
	m := env.NewMemFiles()
	if err := m.MkdirAll("/d"); err != nil {
		t.Fatal(err)
	}
	create := func(name, text string) env.File {
		f, err := m.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		write(t, f, text)
		return f
	}
	kept := create("/d/kept", "synced")
	if err := errors.Join(kept.Sync(), m.SyncDir("/d")); err != nil {
		t.Fatal(err)
	}
	write(t, kept, "-tail")
	if _, err := kept.WriteAt([]byte("S"), 0); err != nil {
		t.Fatal(err)
	}
	if err := create("/d/nameless", "synced").Sync(); err != nil {
		t.Fatal(err)
	}
	if err := m.Rename("/d/kept", "/d/renamed"); err != nil {
		t.Fatal(err)
	}
	m.Crash(func(name string, unsynced int) int {
		if name != "/d/kept" || unsynced != 6 {
			t.Errorf("%s has %d unsynced bytes", name, unsynced)
		}
		return 3
	})
	if got := m.Tree(); got != "/d/kept 9\n" {
		t.Fatal(got)
	}
	if got := read(t, m, "/d/kept"); got != "synced-ta" {
		t.Fatal(got)
	}
	if _, err := kept.Write(nil); !errors.Is(err, syscall.ESTALE) {
		t.Fatalf("a handle from before the crash: %v", err)
	}
}

func TestInjectedFailures(t *testing.T) {
	m := env.NewMemFiles()
	m.FailNth("sync", 2, syscall.ENOSPC)
	f, err := m.Create("/f")
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 3; i++ {
		if err := f.Sync(); errors.Is(err, syscall.ENOSPC) != (i == 2) {
			t.Fatalf("sync %d: %v", i, err)
		}
	}
	m.Fail(nil)
	m.SetCapacity(10)
	if n, err := f.Write(make([]byte, 12)); n != 10 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(n, err)
	}
	if err := m.Remove("/f"); err != nil || m.Used() != 0 {
		t.Fatal(m.Used(), err)
	}
}
