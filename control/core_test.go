package control_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

var (
	t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a  = control.Key{Ref: view.Ref{Kind: kind.ConfigMap, Namespace: "n", Name: "a"}}
	b  = control.Key{Ref: view.Ref{Kind: kind.ConfigMap, Namespace: "n", Name: "b"}}
)

func core() *control.Core { return control.NewCore([]control.Part{{Name: "p", Kind: kind.ConfigMap}}) }

func next(t *testing.T, c *control.Core, revision int64, now time.Time, want *control.Key) {
	t.Helper()
	k, ok := c.Next(revision, now)
	switch {
	case want == nil && ok:
		t.Fatalf("handed out %v, want nothing", k)
	case want != nil && (!ok || k != *want):
		t.Fatalf("handed out %v %v, want %v", k, ok, *want)
	}
}

func TestAKeyIsQueuedOnceAndInOrder(t *testing.T) {
	c := core()
	c.Wake(a)
	c.Wake(b)
	c.Wake(a)
	next(t, c, 1, t0, &a)
	next(t, c, 1, t0, &b)
	next(t, c, 1, t0, nil)
}

func TestAKeyIsNeverHandedOutTwiceAtOnce(t *testing.T) {
	c := core()
	c.Wake(a)
	next(t, c, 1, t0, &a)
	c.Wake(a)
	next(t, c, 1, t0, nil)
	c.Done(a, t0, 1, 0, time.Time{}, nil, false)
	next(t, c, 1, t0, &a)
	c.Done(a, t0, 1, 0, time.Time{}, nil, false)
	next(t, c, 1, t0, nil)
}

// The fence: after a write at revision 9 the key waits for a snapshot with it,
// and others do not wait for it.
func TestAKeyWaitsForItsOwnWrite(t *testing.T) {
	c := core()
	c.Wake(a)
	next(t, c, 5, t0, &a)
	c.Wake(a)
	c.Done(a, t0, 5, 9, time.Time{}, nil, false)
	c.Wake(b)
	next(t, c, 8, t0, &b)
	next(t, c, 8, t0, nil)
	next(t, c, 9, t0, &a)
}

func TestBackoff(t *testing.T) {
	for n, want := range map[int]time.Duration{1: 5 * time.Millisecond, 2: 10 * time.Millisecond, 3: 20 * time.Millisecond, 13: 20480 * time.Millisecond, 14: 30 * time.Second, 1000: 30 * time.Second} {
		if got := control.Backoff(n); got != want {
			t.Errorf("after %d failures: %v, want %v", n, got, want)
		}
	}
	c := core()
	boom := &control.Failure{Action: act.Event{}, Err: errTest}
	c.Wake(a)
	now := t0
	for n := 1; n < 5; n++ {
		next(t, c, 1, now, &a)
		c.Done(a, now, 1, 0, time.Time{}, boom, false)
		now = now.Add(control.Backoff(n) - 1)
		next(t, c, 1, now, nil)
		now = now.Add(1)
		if at := c.NextTimer(); !at.Equal(now) {
			t.Fatalf("failure %d: timer at %v, want %v", n, at, now)
		}
	}
	// A success forgets the failures.
	next(t, c, 1, now, &a)
	c.Done(a, now, 1, 0, time.Time{}, nil, false)
	c.Wake(a)
	next(t, c, 1, now, &a)
	c.Done(a, now, 1, 0, time.Time{}, boom, false)
	if at := c.NextTimer(); !at.Equal(now.Add(5 * time.Millisecond)) {
		t.Errorf("after a success: %v", at.Sub(now))
	}
}

func TestAFirstConflictIsPlannedAgainAtOnce(t *testing.T) {
	c := core()
	c.Wake(a)
	next(t, c, 1, t0, &a)
	c.Done(a, t0, 1, 0, time.Time{}, errTest, true)
	next(t, c, 1, t0, &a)
	c.Done(a, t0, 1, 0, time.Time{}, errTest, true)
	next(t, c, 1, t0, nil)
	next(t, c, 1, t0.Add(10*time.Millisecond), &a)
}

func TestTheLastWakeCounts(t *testing.T) {
	c := core()
	plan := func(at time.Time, wake time.Duration) {
		t.Helper()
		c.Wake(a)
		next(t, c, 1, at, &a)
		w := time.Time{}
		if wake > 0 {
			w = t0.Add(wake)
		}
		c.Done(a, at, 1, 0, w, nil, false)
	}
	plan(t0, time.Minute)
	plan(t0, time.Hour)
	next(t, c, 1, t0.Add(2*time.Minute), nil)
	next(t, c, 1, t0.Add(time.Hour), &a)
	c.Done(a, t0.Add(time.Hour), 1, 0, time.Time{}, nil, false)
	plan(t0, 2*time.Hour)
	plan(t0, 0) // no wake: the old one does not count any more
	next(t, c, 1, t0.Add(3*time.Hour), nil)
	if !c.NextTimer().IsZero() {
		t.Error("a timer is left")
	}
	// Many replaced wakes do not pile up.
	for i := range 100000 {
		plan(t0, time.Duration(i+1)*time.Hour)
	}
	next(t, c, 1, t0.Add(99999*time.Hour), nil)
	next(t, c, 1, t0.Add(100000*time.Hour), &a)
}

func TestChangesWakeWhatPartsSay(t *testing.T) {
	to := func(name string) func(view.Snapshot, kind.Object) []view.Ref {
		return func(_ view.Snapshot, o kind.Object) []view.Ref {
			return []view.Ref{{Kind: kind.ConfigMap, Namespace: "n", Name: name + o.GetLabels()["x"]}}
		}
	}
	c := control.NewCore([]control.Part{
		{Name: "own", Kind: kind.ConfigMap, When: func(old, new kind.Object) bool { return new != nil }},
		{Name: "from secrets", Kind: kind.ConfigMap, Wakes: []control.Wake{{Kind: kind.Secret, To: to("s")}}},
		{Name: "all", Kinds: []*kind.Kind{kind.Secret, kind.Service}, Wakes: []control.Wake{{To: to("any"), When: func(_, new kind.Object) bool { return new == nil }}}},
	})
	secret := func(x string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "s", Labels: map[string]string{"x": x}}}
	}
	got := func() map[string]bool {
		out := map[string]bool{}
		for {
			k, ok := c.Next(1, t0)
			if !ok {
				return out
			}
			out[string(rune('0'+k.Part))+" "+k.Ref.String()] = true
			c.Done(k, t0, 1, 0, time.Time{}, nil, false)
		}
	}
	check := func(when string, want ...string) {
		t.Helper()
		have := got()
		for _, w := range want {
			if !have[w] {
				t.Errorf("%s: %q was not woken", when, w)
			}
			delete(have, w)
		}
		for h := range have {
			t.Errorf("%s: %q was woken", when, h)
		}
	}
	c.Changed(view.Snapshot{}, &view.Change{Kind: kind.Secret, Old: secret("1"), New: secret("2")})
	check("a secret changes: both states are looked at", "1 configmaps/n/s1", "1 configmaps/n/s2", "2 secrets/n/s")
	c.Changed(view.Snapshot{}, &view.Change{Kind: kind.Secret, Old: secret("1"), Last: secret("1")})
	check("a secret goes", "1 configmaps/n/s1", "2 secrets/n/s", "2 configmaps/n/any1")
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "c"}}
	c.Changed(view.Snapshot{}, &view.Change{Kind: kind.ConfigMap, New: cm})
	check("a config map comes", "0 configmaps/n/c", "1 configmaps/n/c")
	c.Changed(view.Snapshot{}, &view.Change{Kind: kind.ConfigMap, Old: cm, Last: cm})
	check("a config map goes", "1 configmaps/n/c")
	c.Start(view.Build(1, kind.All, secret("3"), cm))
	check("start", "0 configmaps/n/c", "1 configmaps/n/c", "1 configmaps/n/s3", "2 secrets/n/s", "2 configmaps/n/any3")
}
