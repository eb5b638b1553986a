package apiserver

import (
	"testing"

	"proa.dev/apiserver/auth"
	"proa.dev/env"
)

// BenchmarkDoors is what measuring adds to one request: three readings of the
// clock, two counters, two histograms.
func BenchmarkDoors(b *testing.B) {
	s := &Server{clock: env.SystemClock()}
	m := newMetrics(s)
	started := s.clock.Now()
	b.ReportAllocs()
	for b.Loop() {
		m.authenticated(nil, true, s.clock.Now().Sub(started))
		began := s.clock.Now()
		m.authorized(auth.Allow, nil, s.clock.Now().Sub(began))
	}
}

// TestMeasuringAllocatesNothing: no request pays memory for being measured.
func TestMeasuringAllocatesNothing(t *testing.T) {
	s := &Server{clock: env.SystemClock()}
	m := newMetrics(s)
	if n := testing.AllocsPerRun(100, func() {
		m.authenticated(nil, true, 1)
		m.authorized(auth.Deny, nil, 1)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
