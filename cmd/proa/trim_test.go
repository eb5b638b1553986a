package main

import (
	"bytes"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"proa.dev/env"
)

// at is a clock that stands still.
type at struct {
	env.Clock
	now time.Time
}

func (a *at) Now() time.Time { return a.now }

var ballast [][]byte

func TestTrimsOnceAfterABurst(t *testing.T) {
	clock := &at{env.SystemClock(), time.Unix(1000, 0)}
	tr := newTrimmer(clock, slog.New(slog.DiscardHandler))
	trims := 0
	tr.pagesOut = func() error { trims++; return dropFilePages() }
	look := func() {
		clock.now = clock.now.Add(trimAgain)
		tr.look()
	}
	look() // the process's own start is a burst
	look()
	if trims != 1 {
		t.Fatalf("%d trims after the start, want 1", trims)
	}
	for range 4 {
		look()
	}
	if trims != 1 {
		t.Errorf("%d trims while idle, want 1", trims)
	}
	for range 64 {
		ballast = append(ballast, bytes.Repeat([]byte{1}, 1<<20))
	}
	look()
	if trims != 1 {
		t.Errorf("trimmed in the middle of a burst")
	}
	ballast = nil
	look()
	if trims != 2 {
		t.Errorf("%d trims after the burst, want 2", trims)
	}
}

func TestDroppedPagesComeBack(t *testing.T) {
	before := fileResident(t)
	if err := dropFilePages(); err != nil {
		t.Fatal(err)
	}
	after := fileResident(t) // this code itself came back
	if after >= before {
		t.Errorf("%d kB of files are resident, before %d kB", after, before)
	}
}

func TestPaceFollowsTheHeap(t *testing.T) {
	tr := newTrimmer(&at{env.SystemClock(), time.Unix(1000, 0)}, slog.New(slog.DiscardHandler))
	var set []int
	tr.setPercent = func(n int) { set = append(set, n) }
	tr.pagesOut = func() error { return nil }
	runtime.GC()
	tr.look()
	for range 512 {
		ballast = append(ballast, bytes.Repeat([]byte{1}, 1<<20))
	}
	runtime.GC()
	tr.look()
	tr.look()
	ballast = nil
	runtime.GC()
	tr.look()
	if len(set) != 3 || set[0] <= minPercent || set[1] != minPercent || set[2] <= minPercent {
		t.Errorf("percent was set to %v; want high, %d, high", set, minPercent)
	}
}

// fileResident is RssFile of this process in kB.
func fileResident(t *testing.T) int {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "RssFile:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssFile in /proc/self/status")
	return 0
}
