package env

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		if !Sleep(ctx, SystemClock(), time.Hour) || time.Since(began) != time.Hour {
			t.Errorf("slept %v", time.Since(began))
		}
		time.AfterFunc(time.Minute, cancel)
		began = time.Now()
		if Sleep(ctx, SystemClock(), time.Hour) || time.Since(began) != time.Minute {
			t.Errorf("the context ended after a minute: slept %v", time.Since(began))
		}
	})
}
