// Package group runs goroutines that are waited for: the first that fails ends
// all.
package group

import (
	"context"
	"fmt"
	"sync"
)

// Group of goroutines with one context. The zero value is of no use: New.
type Group struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
}

// New makes an empty group whose context is below ctx.
func New(ctx context.Context) *Group {
	g := &Group{}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	return g
}

// Context that all run with; it ends with the first error, with End, or with the
// one given to New.
func (g *Group) Context() context.Context { return g.ctx }

// Go runs f; an error before the group's end ends the group, under the name.
func (g *Group) Go(name string, f func(ctx context.Context) error) {
	g.wg.Go(func() {
		if err := f(g.ctx); err != nil && g.ctx.Err() == nil {
			g.cancel(fmt.Errorf("%s: %w", name, err))
		}
	})
}

// End tells all to end, and why.
func (g *Group) End(cause error) { g.cancel(cause) }

// Wait returns when all have ended: the cause of the end, which is that of the
// context given to New if that was it.
func (g *Group) Wait() error {
	<-g.ctx.Done()
	g.wg.Wait()
	return context.Cause(g.ctx)
}
