// Package lab holds what the tests of all clients share.
package lab

import (
	"context"
	"testing"
	"time"

	"proa.dev/internal/await"
)

// Must ends the test on an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Eventually asks until check is content, for a minute at most; so long lives the
// context of its questions, too.
func Eventually(t testing.TB, what string, check func(context.Context) error) {
	t.Helper()
	const bound = time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	await.Nil(t, bound, what, func() error { return check(ctx) })
}
