package conformance

import (
	"context"
	"strings"
	"sync"

	"k8s.io/client-go/rest"
)

type (
	restConfig = rest.Config
	request    = rest.Request
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
