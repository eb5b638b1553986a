// Package await waits in tests: it asks for a condition again and again until the
// condition holds or a bound has passed.
//
// The first question comes at once; then the pause is an eighth of the time waited so
// far, from one to 250 milliseconds, so that what is quick is seen quickly and what is
// slow is not disturbed by the questions. The bound is real time and is no measurement: what is awaited may
// take as long as it needs below it. A question is asked once more when the bound
// has passed, so a machine that gave the test no time at all does not fail it. The
// wait ends with the test (testing.TB.Context), hence not in its Cleanup functions:
// those wait with Until and a context of their own.
//
// True and Nil fail the test and print what was awaited, for how long and what was
// the matter last. All are to be called from the test's own goroutine, except Until,
// which only returns an error.
//
// The package links testing: only test code imports it (tools/imports checks that).
package await

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

const (
	leastPause = time.Millisecond
	mostPause  = 250 * time.Millisecond
)

// errNo is the answer of a condition that says no and nothing else.
var errNo = errors.New("it does not hold")

// True waits until ok says yes. what is a sentence: "the pod is gone".
func True(t testing.TB, bound time.Duration, what string, ok func() bool) {
	t.Helper()
	if err := Until(t.Context(), bound, what, asError(ok)); err != nil {
		t.Fatal(err)
	}
}

// Nil waits until ask returns nil; its error says what is missing.
func Nil(t testing.TB, bound time.Duration, what string, ask func() error) {
	t.Helper()
	if err := Until(t.Context(), bound, what, ask); err != nil {
		t.Fatal(err)
	}
}

// Until is Nil for those who have a context and no test. The error wraps the last one
// of ask and, when ctx ended first, the context's.
func Until(ctx context.Context, bound time.Duration, what string, ask func() error) error {
	began, end := time.Now(), time.NewTimer(bound)
	defer end.Stop()
	err := ask()
	if err == nil {
		return nil
	}
	pause := func() time.Duration { return min(max(time.Since(began)/8, leastPause), mostPause) }
	next := time.NewTimer(pause())
	defer next.Stop()
	for {
		select {
		case <-next.C:
			if err = ask(); err == nil {
				return nil
			}
			next.Reset(pause())
		case <-end.C:
			if err = ask(); err == nil {
				return nil
			}
			return fmt.Errorf("await %q: not within %v: %w", what, bound, err)
		case <-ctx.Done():
			return fmt.Errorf("await %q: the wait of %v was ended: %w; last: %w", what, bound, context.Cause(ctx), err)
		}
	}
}

func asError(ok func() bool) func() error {
	return func() error {
		if ok() {
			return nil
		}
		return errNo
	}
}
