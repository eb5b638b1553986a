package main

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"proa.dev/env"
)

// trimmer gives memory back when the server has become idle: garbage of the last
// burst, and pages of the executable that only the start or the burst needed
// (they are clean: what is touched again comes back from the page cache). The
// runtime alone would keep both: it collects when the heap has grown by half, and
// the kernel maps a file's pages in large pieces and keeps them until memory is
// short.
type trimmer struct {
	clock env.Clock
	log   *slog.Logger

	samples  []metrics.Sample
	last     uint64 // bytes allocated so far, at the last look
	busy     bool   // something happened since the last trim
	live     uint64 // bytes of heap after the last trim
	trimmed  time.Time
	pagesOut func() error

	percent    int       // of the collector now
	setPercent func(int) // nil: someone chose it with GOGC
}

const (
	trimEvery = 5 * time.Second
	// idleBytes allocated between two looks is what heartbeats cost.
	idleBytes = 8 << 20
	// A small heap may grow by heapSlack before it is collected, or bursts would
	// collect dozens of times a second; a large one by minPercent.
	heapSlack              = 32 << 20
	minPercent, maxPercent = 50, 300
	// trimAgain bounds the work: one collection of everything in this time.
	trimAgain = 30 * time.Second
)

func newTrimmer(clock env.Clock, log *slog.Logger) *trimmer {
	t := &trimmer{clock: clock, log: log, busy: true, pagesOut: dropFilePages, samples: []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/gc/heap/live:bytes"}}}
	if os.Getenv("GOGC") == "" {
		t.setPercent = func(n int) { debug.SetGCPercent(n) }
	}
	return t
}

func (t *trimmer) Run(ctx context.Context) error {
	timer := t.clock.NewTimer(trimEvery)
	defer timer.Stop()
	metrics.Read(t.samples)
	t.last = t.samples[0].Value.Uint64()
	t.pace()
	for {
		select {
		case <-timer.C():
		case <-ctx.Done():
			return nil
		}
		t.look()
		timer.Reset(trimEvery)
	}
}

// look trims when little was allocated since the last look, and more than a
// little since the last trim.
func (t *trimmer) look() {
	metrics.Read(t.samples)
	allocated, held := t.samples[0].Value.Uint64(), t.samples[1].Value.Uint64()-t.samples[2].Value.Uint64()
	t.pace()
	grown := allocated - t.last
	t.last = allocated
	if grown > idleBytes {
		t.busy = true
		return
	}
	if now := t.clock.Now(); (t.busy || held > t.live+t.live/8+idleBytes) && now.Sub(t.trimmed) >= trimAgain {
		t.trim(now)
	}
}

// pace fits the collector to the heap that is alive. It stops the world for a
// moment and is called only when that changes something.
func (t *trimmer) pace() {
	if t.setPercent == nil {
		return
	}
	live := max(t.samples[3].Value.Uint64(), 1<<20)
	n := min(max(int(100*heapSlack/live), minPercent), maxPercent)
	if d := n - t.percent; d > t.percent/8 || -d > t.percent/8 {
		t.percent = n
		t.setPercent(n)
	}
}

func (t *trimmer) trim(now time.Time) {
	t.busy, t.trimmed = false, now
	debug.FreeOSMemory()
	if err := t.pagesOut(); err != nil {
		t.log.Debug("pages of the executable stay in memory", "error", err)
	}
	metrics.Read(t.samples)
	t.live = t.samples[1].Value.Uint64() - t.samples[2].Value.Uint64()
	t.last = t.samples[0].Value.Uint64()
}

// dropFilePages unmaps the executable's pages that nobody has written to.
func dropFilePages() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close()
	var start, end uintptr // of a mapping of the executable that cannot be written
	var errs error
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		fields := strings.Fields(line)
		switch {
		case len(fields) >= 6 && strings.Contains(fields[0], "-") && len(fields[1]) == 4:
			start, end = 0, 0
			if fields[1][0] == 'r' && fields[1][1] == '-' && fields[5] == self {
				from, to, _ := strings.Cut(fields[0], "-")
				a, err1 := strconv.ParseUint(from, 16, 64)
				b, err2 := strconv.ParseUint(to, 16, 64)
				if err1 == nil && err2 == nil {
					start, end = uintptr(a), uintptr(b)
				}
			}
		case end != 0 && len(fields) == 3 && fields[0] == "Anonymous:":
			// Pages of its own (relocations) would be lost.
			if fields[1] == "0" {
				if _, _, e := unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED); e != 0 {
					errs = fmt.Errorf("madvise %x-%x: %w", start, end, e)
				}
			}
			start, end = 0, 0
		}
	}
	if errs == nil {
		errs = lines.Err()
	}
	return errs
}
