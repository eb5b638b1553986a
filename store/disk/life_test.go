package disk_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"proa.dev/env"
	"proa.dev/internal/await"
	"proa.dev/store"
	"proa.dev/store/disk"
	"proa.dev/store/seal"
	"proa.dev/store/storetest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("PROA_TEST_WRITER"); dir != "" {
		writer(dir)
	}
	os.Exit(m.Run())
}

// writer is the child of TestKillUnderLoad: it prints each write that was
// acknowledged, until it is killed.
func writer(dir string) {
	s, err := disk.Open(context.Background(), disk.Config{Dir: dir})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var mu sync.Mutex
	for w := range 16 {
		go func() {
			for i := 0; ; i++ {
				key, class := fmt.Sprintf("/w%d/%d", w, i%50), store.Synced
				if i%3 == 2 {
					class = store.Buffered
				}
				kv, err := s.Put(context.Background(), key, fmt.Appendf(nil, "%d-%0500d", i, i), store.PutOptions{Expect: store.Any, Class: class})
				mu.Lock()
				if err != nil {
					fmt.Println("error", err)
					os.Exit(1)
				}
				fmt.Println("put", class, key, kv.ModRevision)
				mu.Unlock()
			}
		}()
	}
	select {}
}

// A real process is killed while it writes: every synced write that it had
// acknowledged is there, and revisions go on above all that it ever printed.
func TestKillUnderLoad(t *testing.T) {
	dir := t.TempDir()
	highest := int64(0)
	for round := range 4 {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), "PROA_TEST_WRITER="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acked := map[string]int64{} // newest synced revision of a key
		lines := 0
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			f := strings.Fields(sc.Text())
			if f[0] == "error" {
				t.Fatalf("round %d: %s", round, sc.Text())
			}
			if len(f) != 4 {
				continue // cut off by the kill
			}
			rev, err := strconv.ParseInt(f[3], 10, 64)
			if err != nil {
				continue
			}
			if f[1] == "0" {
				acked[f[2]] = max(acked[f[2]], rev)
			}
			highest = max(highest, rev)
			if lines++; lines == 3000+1000*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait()
		s := open(t, disk.Config{Dir: dir})
		for key, rev := range acked {
			kv, _, err := s.Get(t.Context(), key, 0)
			if err != nil || kv.ModRevision < rev {
				t.Fatalf("round %d: %s was acknowledged at %d, now it is at %d: %v", round, key, rev, kv.ModRevision, err)
			}
		}
		if s.Revision() < highest {
			t.Fatalf("round %d: the store is at %d, %d was given out", round, s.Revision(), highest)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func dirBytes(t testing.TB, dir string) (n int64) {
	t.Helper()
	_ = filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			n += info.Size()
		}
		return nil
	})
	return n
}

// One key is rewritten a million times: the files stay flat.
func TestRewritingLeavesFilesFlat(t *testing.T) {
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	dir := t.TempDir()
	s := open(t, disk.Config{Dir: dir, ReserveBytes: -1})
	value := []byte(strings.Repeat("lease ", 50))
	var wg sync.WaitGroup
	largest := int64(0)
	for w := range 8 {
		wg.Go(func() {
			for i := range n / 8 {
				class := store.Buffered
				if i%100 == 0 {
					class = store.Synced
				}
				if _, err := s.Put(t.Context(), "/registry/leases/kube-node-lease/n1", value, store.PutOptions{Expect: store.Any, Class: class}); err != nil {
					t.Error(err)
					return
				}
				if w == 0 && i%1000 == 0 {
					largest = max(largest, dirBytes(t, dir))
				}
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rest := dirBytes(t, dir)
	t.Logf("%d writes of %d bytes: %d kB at most, %d kB at rest", n, len(value), largest>>10, rest>>10)
	if largest > 48<<20 || rest > 32<<20 {
		t.Fatalf("the files grew to %d kB, %d kB are left", largest>>10, rest>>10)
	}
}

func TestRestart(t *testing.T) {
	clock := storetest.NewClock()
	files := env.NewMemFiles()
	s := open(t, crashConfig(files, clock))
	put := func(key string, ttl time.Duration) store.KV {
		kv, err := s.Put(t.Context(), key, []byte(key), store.PutOptions{Expect: store.Any, TTL: ttl, Class: store.Buffered})
		if err != nil {
			t.Fatal(err)
		}
		return kv
	}
	put("/a", 0)
	put("/ttl/short", 5*time.Second)
	put("/ttl/long", time.Hour)
	last := put("/b", 0)
	want := stateOf(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// After a clean close revisions go on where they were, and a watch from the
	// newest one misses nothing.
	clock.Advance(2 * time.Second)
	s = open(t, crashConfig(files, clock))
	if s.Revision() != last.ModRevision || s.Compacted() != last.ModRevision {
		t.Fatalf("revision %d, compacted %d after a clean close at %d", s.Revision(), s.Compacted(), last.ModRevision)
	}
	if got := stateOf(t, s); !maps.Equal(got, want) {
		t.Fatalf("state is %v, was %v", got, want)
	}
	if _, err := s.Watch(t.Context(), "", last.ModRevision); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Watch(t.Context(), "", last.ModRevision-1); !errors.Is(err, store.ErrCompacted) {
		t.Fatalf("watch from before the start: %v", err)
	}
	if next := put("/c", 0); next.ModRevision != last.ModRevision+1 {
		t.Fatalf("next revision is %d after %d", next.ModRevision, last.ModRevision)
	}

	// Expiry outlives restarts, also while nobody was there.
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	kill(files, s, nil)
	clock.Advance(time.Minute)
	s = open(t, crashConfig(files, clock))
	await.Nil(t, 10*time.Second, "/ttl/short has expired", func() error {
		kv, _, err := s.Get(t.Context(), "/ttl/short", 0)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return nil
		case err == nil:
			err = fmt.Errorf("it is there with %+v", kv)
		}
		return err
	})
	if _, _, err := s.Get(t.Context(), "/ttl/long", 0); err != nil {
		t.Fatal(err)
	}
	// After a crash what somebody may have seen is compacted, not repeated.
	if _, err := s.Watch(t.Context(), "", last.ModRevision+1); !errors.Is(err, store.ErrCompacted) {
		t.Fatalf("watch from before the crash: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// Without a synced write, a buffered one is durable after half a second.
func TestBufferedIsSyncedInTime(t *testing.T) {
	clock := storetest.NewClock()
	files := env.NewMemFiles()
	s := open(t, crashConfig(files, clock))
	if _, err := s.Put(t.Context(), "/a", nil, store.PutOptions{Class: store.Buffered}); err != nil {
		t.Fatal(err)
	}
	synced := make(chan struct{}, 100)
	files.Fail(func(op env.Op) error {
		if op.Name == "sync" {
			synced <- struct{}{}
		}
		return nil
	})
	clock.Advance(time.Second)
	select {
	case <-synced:
	case <-time.After(10 * time.Second):
		t.Fatal("no sync")
	}
	if err := s.Sync(t.Context()); err != nil { // waits for the one under way
		t.Fatal(err)
	}
	kill(files, s, nil)
	s = open(t, crashConfig(files, clock))
	if _, _, err := s.Get(t.Context(), "/a", 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSecondProcessIsToldWhoHasIt(t *testing.T) {
	dir := t.TempDir()
	s := open(t, disk.Config{Dir: dir})
	_, err := disk.Open(t.Context(), disk.Config{Dir: dir})
	want := fmt.Sprintf("data directory %q is in use by process %d", dir, os.Getpid())
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("error is %v, want %s", err, want)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, disk.Config{Dir: dir})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// mount makes a small real file system.
func mount(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("this test needs root, to mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestReadOnlyDirectory(t *testing.T) {
	dir := mount(t, "size=64m")
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, dir + "/below"} {
		_, err := disk.Open(t.Context(), disk.Config{Dir: d})
		if !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), d) || !strings.Contains(err.Error(), "mount it read-write") {
			t.Fatalf("error is %v", err)
		}
	}
}

// A full disk refuses writes, serves reads, lets objects be deleted, and takes
// writes again when there is room; nothing acknowledged is lost.
func TestFullDisk(t *testing.T) {
	dir := mount(t, "size=96m")
	s := open(t, disk.Config{Dir: dir})
	key := func(i int) string { return fmt.Sprintf("/k/%05d", i) }
	n := 0
	var full error
	for ; n < 100_000 && full == nil; n++ {
		value := make([]byte, 20_000)
		for i := range value {
			value[i] = byte(i * n >> 3)
		}
		h := sha256.Sum256(value) // incompressible enough
		copy(value, h[:])
		_, full = s.Put(t.Context(), key(n), value, store.PutOptions{Class: store.Class(n % 2)})
	}
	n-- // the last one failed
	if !errors.Is(full, store.ErrNoSpace) || !strings.Contains(full.Error(), dir) || !strings.Contains(full.Error(), "free some space") {
		t.Fatalf("after %d writes: %v", n, full)
	}
	if s.Len() != n {
		t.Fatalf("%d keys after %d writes", s.Len(), n)
	}
	if _, _, err := s.Get(t.Context(), key(n/2), 0); err != nil {
		t.Fatal(err)
	}
	before := s.Revision()
	if _, err := s.Put(t.Context(), "/refused", nil, store.PutOptions{}); !errors.Is(err, store.ErrNoSpace) || s.Revision() != before {
		t.Fatalf("put on a full disk: %v", err)
	}
	for i := range n / 2 {
		if _, _, err := s.Delete(t.Context(), key(i), store.DeleteOptions{}); err != nil {
			t.Fatalf("delete on a full disk: %v", err)
		}
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT, "size=256m"); err != nil {
		t.Fatal(err)
	}
	await.Nil(t, 10*time.Second, "a put with room again", func() error {
		_, err := s.Put(t.Context(), "/again", nil, store.PutOptions{Expect: store.Any})
		return err
	})
	want := stateOf(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, disk.Config{Dir: dir})
	if got := stateOf(t, s); !maps.Equal(got, want) || len(got) != n-n/2+1 {
		t.Fatalf("%d keys after a restart, %d before", len(got), len(want))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// The disk fills up although there seemed to be room: what was accepted is
// finished from the reserve, or fails with nothing applied.
func TestFullDiskWithoutWarning(t *testing.T) {
	clock := storetest.NewClock()
	for _, capacity := range []int64{300 << 10, 500 << 10, 777 << 10, 2 << 20} {
		files := env.NewMemFiles()
		c := crashConfig(files, clock)
		c.MinFreeBytes = -1
		s := open(t, c)
		files.SetCapacity(capacity)
		var err error
		n := 0
		for ; err == nil && n < 10_000; n++ {
			_, err = s.Put(t.Context(), fmt.Sprintf("/k/%d", n), make([]byte, 5000), store.PutOptions{})
		}
		if !errors.Is(err, store.ErrNoSpace) {
			t.Fatalf("capacity %d: after %d writes: %v", capacity, n, err)
		}
		if s.Len() != n-1 {
			t.Fatalf("capacity %d: %d keys after %d writes", capacity, s.Len(), n-1)
		}
		files.SetCapacity(0)
		clock.Advance(time.Second)
		if _, err := s.Put(t.Context(), "/again", nil, store.PutOptions{}); err != nil {
			t.Fatalf("capacity %d: with room again: %v", capacity, err)
		}
		want := stateOf(t, s)
		kill(files, s, nil)
		s = open(t, c)
		if got := stateOf(t, s); !maps.Equal(got, want) {
			t.Fatalf("capacity %d: %d keys after a restart, %d before", capacity, len(got), len(want))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSealedAtRest(t *testing.T) {
	dir := t.TempDir()
	key := func(name string) seal.Key {
		h := sha256.Sum256([]byte(name))
		return seal.Key{Name: name, Secret: h[:]}
	}
	keys := func(names ...string) []disk.Sealed {
		var ks []seal.Key
		for _, n := range names {
			ks = append(ks, key(n))
		}
		k, err := seal.New(env.SystemRand(), ks...)
		if err != nil {
			t.Fatal(err)
		}
		return []disk.Sealed{{Prefix: "/registry/secrets/", Transform: k}}
	}
	put := func(s *disk.Store, key, value string) {
		t.Helper()
		if _, err := s.Put(t.Context(), key, []byte(value), store.PutOptions{Expect: store.Any}); err != nil {
			t.Fatal(err)
		}
	}
	reopen := func(s *disk.Store, sealed []disk.Sealed) *disk.Store {
		t.Helper()
		if s != nil {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		return open(t, disk.Config{Dir: dir, Sealed: sealed})
	}
	holds := func(text string) bool {
		found := false
		_ = filepath.Walk(dir, func(name string, info os.FileInfo, err error) error {
			if err == nil && !info.IsDir() {
				b, _ := os.ReadFile(name)
				found = found || strings.Contains(string(b), text)
			}
			return nil
		})
		return found
	}
	s := reopen(nil, nil)
	put(s, "/registry/secrets/default/old", "before-any-key")
	s = reopen(s, keys("key1"))
	put(s, "/registry/secrets/default/a", "secret-of-a")
	put(s, "/registry/configmaps/default/a", "plain-of-a")
	want := stateOf(t, s)
	s = reopen(s, keys("key2", "key1"))
	if got := stateOf(t, s); !maps.Equal(got, want) {
		t.Fatalf("state is %v, was %v", got, want)
	}
	if holds("secret-of-a") || !holds("plain-of-a") || !holds("k8s:enc:aesgcm:v1:key1:") {
		t.Fatal("the secret is in the files as it is, or the other value is not")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, sealed := range [][]disk.Sealed{nil, keys("key3")} {
		_, err := disk.Open(t.Context(), disk.Config{Dir: dir, Sealed: sealed})
		if err == nil || !strings.Contains(err.Error(), "/registry/secrets/default/a") {
			t.Fatalf("without the key: %v", err)
		}
	}
	s = reopen(nil, keys("key2", "key1"))
	put(s, "/registry/secrets/default/a", "secret-of-a-again")
	s = reopen(s, keys("key2"))
	if kv, _, err := s.Get(t.Context(), "/registry/secrets/default/a", 0); err != nil || string(kv.Value) != "secret-of-a-again" {
		t.Fatal(kv, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
