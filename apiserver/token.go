package apiserver

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"

	"proa.dev/apiserver/admit"
	"proa.dev/env"
	"proa.dev/store"
	"proa.dev/view"
)

// TokenPrefix is where tokens are kept: a key for each, whose value is the server
// that holds it.
const TokenPrefix = "/registry/proa.dev/tokens/"

// Tokens implements admit.Tokens on a shared store. Who needs a token that another
// server holds takes it over with one write, and waits until its own view shows
// that write: everything that was written under the token before is then in the
// view too, and nothing will be written any more by the server that held it, since
// its writes name it as their guard. A token is kept until somebody else takes it:
// a server that is alone at work pays one comparison for each write.
type Tokens struct {
	store store.Store
	view  *view.View
	me    string

	mu   sync.Mutex
	held map[string]*hold
}

// hold is one token; its lock lets one goroutine at a time take it over.
type hold struct {
	mu sync.Mutex
	is bool
}

// NewTokens makes Tokens of one server; each start has another name.
func NewTokens(st store.Store, v *view.View, r env.Rand) *Tokens {
	var b [12]byte
	r.Read(b[:])
	return &Tokens{store: st, view: v, me: hex.EncodeToString(b[:]), held: map[string]*hold{}}
}

// Hold implements admit.Tokens.
func (t *Tokens) Hold(ctx context.Context, name string, r *admit.Request) error {
	key := TokenPrefix + name
	h := t.of(key)
	h.mu.Lock()
	defer h.mu.Unlock()
	for try := 0; !h.is; try++ {
		err := t.take(ctx, key)
		if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrNotFound) {
			continue // another server was faster
		}
		if err != nil {
			return fmt.Errorf("take over the right to decide %s: %w", name, err)
		}
		h.is = true
	}
	if g := (admit.Guard{Key: key, Value: t.me}); !slices.Contains(r.Guards, g) {
		r.Guards = append(r.Guards, g)
	}
	return nil
}

func (t *Tokens) of(key string) *hold {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.held[key]
	if h == nil {
		if len(t.held) >= maxTokens {
			clear(t.held) // they are taken again when they are needed
		}
		h = &hold{}
		t.held[key] = h
	}
	return h
}

// maxTokens bounds what is remembered of namespaces that may be gone.
const maxTokens = 4096

// take writes this server into the token and waits until the view shows it.
func (t *Tokens) take(ctx context.Context, key string) error {
	kv, _, err := t.store.Get(ctx, key, 0)
	expect := kv.ModRevision
	if errors.Is(err, store.ErrNotFound) {
		expect = store.Absent
	} else if err != nil {
		return err
	}
	got, err := t.store.Put(ctx, key, []byte(t.me), store.PutOptions{Expect: expect})
	if err != nil {
		return err
	}
	return t.view.WaitFor(ctx, got.ModRevision)
}

// lost is told of a write whose guard did not hold.
func (t *Tokens) lost(guards []admit.Guard) {
	for _, g := range guards {
		h := t.of(g.Key)
		h.mu.Lock()
		h.is = false
		h.mu.Unlock()
	}
}

func storeGuards(in []admit.Guard) []store.Guard {
	if len(in) == 0 {
		return nil
	}
	out := make([]store.Guard, len(in))
	for i, g := range in {
		out[i] = store.Guard{Key: g.Key, Value: g.Value}
	}
	return out
}
