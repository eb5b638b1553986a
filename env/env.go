// Package env is where the world comes in: clock, randomness, files. Each is an
// interface with one real version here and one simulated version in package sim.
//
// Deciders (control/<name>, sched, node/pod, the compilers of proxy and dns) do
// not import env at all: they take now as an argument and return values.
package env

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"time"
)

// Clock tells time and wakes callers. Now carries a monotonic reading in the
// real version, so that differences survive a jump of the wall clock.
type Clock interface {
	Now() time.Time
	// NewTimer sends the time once on C after d. A d of zero or less fires at once.
	NewTimer(d time.Duration) Timer
}

// Timer is one pending wake-up.
type Timer interface {
	C() <-chan time.Time
	// Stop reports whether it prevented the timer from firing.
	Stop() bool
	Reset(d time.Duration) bool
}

// Sleep waits for d on c and says whether it did: false when ctx ended first.
func Sleep(ctx context.Context, c Clock, d time.Duration) bool {
	t := c.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C():
		return true
	case <-ctx.Done():
		return false
	}
}

// Rand is a source of randomness: cryptographic in the real version, from the
// seed in the simulator. Read never fails and fills p.
type Rand interface {
	io.Reader
	Uint64() uint64
}

// SystemClock is the machine's clock.
func SystemClock() Clock { return systemClock{} }

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }
func (systemClock) NewTimer(d time.Duration) Timer {
	return systemTimer{time.NewTimer(d)}
}

type systemTimer struct{ t *time.Timer }

func (t systemTimer) C() <-chan time.Time        { return t.t.C }
func (t systemTimer) Stop() bool                 { return t.t.Stop() }
func (t systemTimer) Reset(d time.Duration) bool { return t.t.Reset(d) }

// SystemRand is the kernel's random generator.
func SystemRand() Rand { return systemRand{} }

type systemRand struct{}

func (systemRand) Read(p []byte) (int, error) { return rand.Read(p) }
func (systemRand) Uint64() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}
