package conformance

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

type (
	restConfig = rest.Config
	request    = rest.Request
	watchEvent = watch.Event
)

// warnings collects the Warning headers.
type warnings struct {
	sync.Mutex
	texts []string
}

// HandleWarningHeaderWithContext implements rest.WarningHandlerWithContext.
func (w *warnings) HandleWarningHeaderWithContext(_ context.Context, _ int, _, text string) {
	w.Lock()
	defer w.Unlock()
	w.texts = append(w.texts, text)
}

func (w *warnings) all() string {
	w.Lock()
	defer w.Unlock()
	return strings.Join(w.texts, "\n")
}

// contextOf outlives the test: for what has to be put in order at its end.
func contextOf(t *testing.T) context.Context { return context.WithoutCancel(t.Context()) }

// wait lets time pass where a behaviour is about nothing happening in it.
func wait(t *testing.T, seconds int) {
	select {
	case <-time.After(time.Duration(seconds) * time.Second):
	case <-t.Context().Done():
	}
}
