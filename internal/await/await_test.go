package await_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"proa.dev/internal/await"
)

// failed is a test that notes how it failed instead of ending.
type failed struct {
	testing.TB
	ctx context.Context
	say string
}

func (f *failed) Helper()                  {}
func (f *failed) Context() context.Context { return f.ctx }
func (f *failed) Fatal(args ...any)        { f.say = fmt.Sprint(args...) }

// What holds needs one question and no time; what comes later is seen, after pauses
// that grow.
func TestHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		await.True(t, time.Second, "yes", func() bool { return true })
		await.Nil(t, time.Second, "yes", func() error { return nil })
		if d := time.Since(began); d != 0 {
			t.Errorf("what holds at once took %v", d)
		}
		asked := 0
		await.True(t, time.Minute, "a second has passed", func() bool {
			asked++
			return time.Since(began) >= time.Second
		})
		if d := time.Since(began); d < time.Second || d > time.Second*9/8 {
			t.Errorf("seen after %v, want at most an eighth after one second", d)
		}
		if asked < 40 || asked > 60 {
			t.Errorf("asked %d times in a second", asked)
		}
		began, asked = time.Now(), 0
		await.True(t, time.Hour, "a minute has passed", func() bool {
			asked++
			return time.Since(began) >= time.Minute
		})
		if d := time.Since(began); d > time.Minute+250*time.Millisecond || asked > 300 {
			t.Errorf("seen after %v and %d questions, want a minute and four in a second", d, asked)
		}
	})
}

// What never holds fails the test at the bound and says what, how long and the last error.
func TestNever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, asked := time.Now(), 0
		f := &failed{TB: t, ctx: t.Context()}
		await.Nil(f, 3*time.Second, "the pod is gone", func() error {
			asked++
			return fmt.Errorf("there at question %d", asked)
		})
		if want := fmt.Sprintf(`await "the pod is gone": not within 3s: there at question %d`, asked); f.say != want || time.Since(began) != 3*time.Second {
			t.Errorf("%q after %v, want %q after 3s", f.say, time.Since(began), want)
		}
		await.True(f, time.Millisecond, "the pod is gone", func() bool { return false })
		if want := `await "the pod is gone": not within 1ms: it does not hold`; f.say != want {
			t.Errorf("%q, want %q", f.say, want)
		}
	})
}

// A question that takes longer than the bound gets its answer and one more chance.
func TestSlowQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		await.True(t, time.Second, "the second answer", func() bool {
			asked++
			<-time.After(time.Minute) // the bubble's time: the question is slow
			return asked == 2
		})
	})
}

// The end of the test ends the wait, with both errors.
func TestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		errOdd := errors.New("odd")
		f := &failed{TB: t, ctx: ctx}
		await.Nil(f, time.Hour, "even", func() error { return errOdd })
		if !strings.HasPrefix(f.say, `await "even": the wait of 1h0m0s was ended: context deadline exceeded; last: odd`) {
			t.Error(f.say)
		}
		if err := await.Until(ctx, time.Hour, "even", func() error { return errOdd }); !errors.Is(err, errOdd) || !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}
