package control

import (
	"errors"
	"testing"
	"time"

	"proa.dev/kind"
	"proa.dev/view"
)

// told keeps what a Meter is told.
type told struct{ waited, worked []time.Duration }

func (m *told) Waited(_ int, d time.Duration) { m.waited = append(m.waited, d) }
func (m *told) Worked(_ int, d time.Duration) { m.worked = append(m.worked, d) }

func TestCounts(t *testing.T) {
	at := time.Unix(1000, 0)
	after := func(s int) time.Time { return at.Add(time.Duration(s) * time.Second) }
	c := NewCore([]Part{{Name: "a", Kind: kind.Pod}, {Name: "b", Kind: kind.Node}})
	m := &told{}
	c.Meter = m
	k := Key{0, view.Ref{Kind: kind.Pod, Namespace: "shop", Name: "web"}}
	is := func(step string, now time.Time, want Count) {
		t.Helper()
		if got := c.Counts(now); got[0] != want || got[1] != (Count{}) {
			t.Errorf("%s: %+v, want %+v", step, got, want)
		}
	}
	c.Tick(after(0))
	c.Wake(k)
	c.Wake(k) // it is queued already
	is("queued", after(1), Count{Depth: 1, Adds: 1})
	if _, ok := c.Next(1, after(2)); !ok {
		t.Fatal("nothing to do")
	}
	is("running", after(5), Count{Adds: 1, Unfinished: 3 * time.Second, Longest: 3 * time.Second})
	c.Wake(k)
	c.Wake(k)
	is("woken meanwhile", after(5), Count{Depth: 1, Adds: 2, Unfinished: 3 * time.Second, Longest: 3 * time.Second})
	c.Done(k, after(6), 1, 0, time.Time{}, nil, false)
	is("done and queued", after(6), Count{Depth: 1, Adds: 2})
	c.Next(1, after(7))
	c.Done(k, after(8), 1, 0, time.Time{}, errors.New("conflict"), true)
	is("again after a conflict", after(8), Count{Depth: 1, Adds: 3, Retries: 1})
	c.Next(1, after(9))
	c.Done(k, after(9), 1, 0, time.Time{}, errors.New("no"), false)
	is("again by time", after(9), Count{Adds: 3, Retries: 2})
	if _, ok := c.Next(1, after(60)); !ok {
		t.Fatal("the time has come")
	}
	is("running again", after(60), Count{Adds: 4, Retries: 2})
	c.Done(k, after(60), 1, 0, time.Time{}, nil, false)
	is("idle", after(60), Count{Adds: 4, Retries: 2})
	if len(m.waited) != 4 || m.waited[0] != 2*time.Second || m.waited[1] != 5*time.Second || m.waited[2] != time.Second || len(m.worked) != 4 || m.worked[0] != 4*time.Second || m.worked[1] != time.Second {
		t.Errorf("waited %v, worked %v", m.waited, m.worked)
	}
}
