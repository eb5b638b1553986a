package etcd

import (
	"context"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"proa.dev/env"
)

// rounds batch the questions for the newest revision: who asks joins the next
// round that has not been sent yet, and one is under way at a time.
type rounds struct {
	mu      sync.Mutex
	running bool
	next    *round
}

type round struct {
	done chan struct{}
	rev  int64
	err  error
}

// Latest implements store.Shared: the newest revision, at least as new as
// everything that any process had been told was written when Latest was called.
func (s *Store) Latest(ctx context.Context) (int64, error) {
	if err := s.begin(ctx); err != nil {
		return 0, fmt.Errorf("ask for the newest revision: %w", err)
	}
	r := s.join()
	if r == nil {
		return 0, fmt.Errorf("ask for the newest revision: %w", s.fault(ctx, s.ctx.Err()))
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		return 0, fmt.Errorf("ask for the newest revision: %w", ctx.Err())
	}
	if r.err != nil {
		return 0, fmt.Errorf("ask for the newest revision: %w", r.err)
	}
	s.want(r.rev)
	return r.rev, nil
}

// join returns the round to wait for; nil when the store is closed.
func (s *Store) join() *round {
	s.rounds.mu.Lock()
	defer s.rounds.mu.Unlock()
	if s.rounds.next == nil {
		s.rounds.next = &round{done: make(chan struct{})}
	}
	r := s.rounds.next
	if !s.rounds.running {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed {
			return nil
		}
		s.rounds.running = true
		s.wg.Go(s.askRounds)
	}
	return r
}

func (s *Store) askRounds() {
	for {
		s.rounds.mu.Lock()
		r := s.rounds.next
		s.rounds.next = nil
		if r == nil {
			s.rounds.running = false
			s.rounds.mu.Unlock()
			return
		}
		s.rounds.mu.Unlock()
		r.rev, r.err = s.ask()
		close(r.done)
	}
}

// ask asks etcd, again and again until RequestTimeout is over: an etcd that
// starts anew or chooses another leader fails no request.
func (s *Store) ask() (int64, error) {
	ctx, cancel := s.request(s.ctx)
	defer cancel()
	for {
		resp, err := s.client.Get(ctx, s.cfg.Prefix+"/health", clientv3.WithCountOnly())
		if err == nil {
			s.note(resp.Header.Revision)
			return resp.Header.Revision, nil
		}
		if !env.Sleep(ctx, s.clock, askAgain) {
			return 0, s.fault(s.ctx, err)
		}
	}
}

const askAgain = 100 * time.Millisecond

// want says that somebody waits for the watches to reach rev.
func (s *Store) want(rev int64) {
	s.mu.Lock()
	s.wanted = max(s.wanted, rev)
	isBehind := s.behind()
	s.mu.Unlock()
	if isBehind {
		select {
		case s.nudge <- struct{}{}:
		default:
		}
	}
}

// behind: a watch has not told of everything that is wanted. Under mu.
func (s *Store) behind() bool {
	for w := range s.watches {
		if w.reached.Load() < s.wanted {
			return true
		}
	}
	return false
}

// Events nearly always come by themselves; only what is not below the watched
// prefix needs to be asked for.
const (
	nudgeAfter = 5 * time.Millisecond
	nudgeEvery = 50 * time.Millisecond
)

// nudgeLoop asks etcd how far the watches are while somebody waits for that.
func (s *Store) nudgeLoop() {
	for {
		select {
		case <-s.nudge:
		case <-s.ctx.Done():
			return
		}
		for wait := nudgeAfter; ; wait = nudgeEvery {
			if !env.Sleep(s.ctx, s.clock, wait) {
				return
			}
			s.mu.Lock()
			isBehind := s.behind()
			s.mu.Unlock()
			if !isBehind {
				break
			}
			// An error is the watch's business too, which has another connection soon.
			_ = s.client.RequestProgress(clientv3.WithRequireLeader(s.ctx))
		}
	}
}
