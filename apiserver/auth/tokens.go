package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"sync"
	"time"
)

// Tokens asks each authenticator in turn; the first that knows the token wins.
// Errors count only when none does.
type Tokens []TokenAuthenticator

// AuthenticateToken implements TokenAuthenticator.
func (t Tokens) AuthenticateToken(ctx context.Context, token string, audiences []string) (User, []string, bool, error) {
	var problems []error
	for _, a := range t {
		u, matched, ok, err := a.AuthenticateToken(ctx, token, audiences)
		if ok {
			return u, matched, true, nil
		}
		if err != nil {
			problems = append(problems, err)
		}
	}
	return User{}, nil, false, errors.Join(problems...)
}

// Agnostic makes an authenticator whose tokens have no audiences one of the API
// server: its tokens are good for whoever asks for one of API's audiences.
type Agnostic struct {
	TokenAuthenticator
	API []string
}

// AuthenticateToken implements TokenAuthenticator.
func (a Agnostic) AuthenticateToken(ctx context.Context, token string, audiences []string) (User, []string, bool, error) {
	var matched []string
	if len(audiences) > 0 {
		for _, x := range audiences {
			if slices.Contains(a.API, x) {
				matched = append(matched, x)
			}
		}
		if len(matched) == 0 {
			return User{}, nil, false, nil
		}
	}
	u, _, ok, err := a.TokenAuthenticator.AuthenticateToken(ctx, token, nil)
	return u, matched, ok, err
}

// CachedTokens remembers who a token belongs to for TTL, and asks once when many
// requests bring the same token at once. Tokens are kept as hashes. Answers of
// "unknown" are remembered for FailureTTL (0: not), errors never.
type CachedTokens struct {
	TokenAuthenticator
	TTL, FailureTTL time.Duration
	Now             func() time.Time

	mu   sync.Mutex
	kept map[tokenKey]*tokenAnswer
}

type tokenKey struct {
	sum       [sha256.Size]byte
	audiences string
}

type tokenAnswer struct {
	done    chan struct{} // closed when the rest is there
	until   time.Time
	user    User
	matched []string
	ok      bool
	err     error
}

const maxCachedTokens, askSeconds = 32 << 10, 30

// AuthenticateToken implements TokenAuthenticator.
func (c *CachedTokens) AuthenticateToken(ctx context.Context, token string, audiences []string) (User, []string, bool, error) {
	key := tokenKey{sum: sha256.Sum256([]byte(token))}
	for _, a := range audiences {
		key.audiences += a + "\x00"
	}
	for {
		c.mu.Lock()
		a := c.kept[key]
		if a == nil {
			break // with the lock
		}
		c.mu.Unlock()
		waited := false
		select {
		case <-a.done:
		default:
			waited = true
			select {
			case <-a.done:
			case <-ctx.Done():
				return User{}, nil, false, ctx.Err()
			}
		}
		if waited || c.Now().Before(a.until) {
			return a.user, a.matched, a.ok, a.err
		}
		c.mu.Lock()
		if c.kept[key] == a {
			delete(c.kept, key)
		}
		c.mu.Unlock()
	}
	a := &tokenAnswer{done: make(chan struct{})}
	if c.kept == nil {
		c.kept = map[tokenKey]*tokenAnswer{}
	}
	if len(c.kept) >= maxCachedTokens {
		c.forget()
	}
	c.kept[key] = a
	c.mu.Unlock()
	defer close(a.done)
	a.err = errors.New("authenticating the token ended early") // a panic below leaves this
	// Others wait for this answer: the one who asks may not take it away from them.
	ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), askSeconds*time.Second)
	defer cancel()
	a.user, a.matched, a.ok, a.err = c.TokenAuthenticator.AuthenticateToken(ask, token, audiences)
	ttl := c.TTL
	if !a.ok {
		ttl = c.FailureTTL
	}
	a.until = c.Now().Add(ttl)
	if a.err != nil || ttl <= 0 {
		c.mu.Lock()
		delete(c.kept, key)
		c.mu.Unlock()
	}
	return a.user, a.matched, a.ok, a.err
}

// forget what is over, and all finished answers when that was not enough.
func (c *CachedTokens) forget() {
	now := c.Now()
	for _, all := range []bool{false, true} {
		for k, a := range c.kept {
			select {
			case <-a.done:
				if all || !now.Before(a.until) {
					delete(c.kept, k)
				}
			default:
			}
		}
		if len(c.kept) < maxCachedTokens/2 {
			return
		}
	}
}
