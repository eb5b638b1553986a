package control

import (
	"errors"
	"testing"
	"time"

	"proa.dev/kind"
	"proa.dev/view"
)

// A plan that wants to go on at once, and whose actions fail, backs off all the
// same. (The cluster simulation found a deployment in a namespace that was being
// deleted planned 4,000 times in a minute.)
func TestFailedPlanBacksOffThoughItIsDue(t *testing.T) {
	c := NewCore([]Part{{Name: "x", Kind: kind.ConfigMap}})
	now := time.Unix(1000, 0)
	c.Wake(Key{0, view.Ref{Kind: kind.ConfigMap, Name: "a"}})
	for n := 1; n < 8; n++ {
		k, ok := c.Next(0, now)
		if !ok {
			t.Fatalf("failure %d: the key is not due", n)
		}
		c.Done(k, now, 0, 0, now, errors.New("refused"), false)
		if _, ok := c.Next(0, now.Add(Backoff(n)-time.Millisecond)); ok {
			t.Fatalf("failure %d: planned again before its back-off of %v", n, Backoff(n))
		}
		now = now.Add(Backoff(n))
	}
}
