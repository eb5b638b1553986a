// Package mem is the store in memory: for tests, simulation and throw-away
// clusters. It keeps the contract of package store, except that a crash loses
// everything: nothing is ever durable, and Sync has nothing to do.
//
// Config.Manual makes a store without goroutines for the simulator: keys expire
// in Expire only.
package mem

import (
	"proa.dev/env"
	"proa.dev/store/internal/tree"
)

// Ring bounds the keys below a prefix; the ones written longest ago go first.
type Ring = tree.Ring

// Config of Open; the zero Config is good.
type Config struct {
	Clock       env.Clock // nil: the system's
	Window      int       // changes kept for watchers and old reads; 0: 10,000
	WindowBytes int64     // of replaced values kept; 0: 16 MiB
	Rings       []Ring
	Manual      bool  // no goroutines: Expire is called by the owner
	Revision    int64 // to start from; 0: 1
}

// Store is a store.Store; Expire and NextExpiry are there for Manual ones.
type Store struct{ *tree.Store }

// Open makes an empty store. It always succeeds.
func Open(c Config) *Store {
	s := tree.New(tree.Config{Clock: c.Clock, Window: c.Window, WindowBytes: c.WindowBytes, Rings: c.Rings, Manual: c.Manual})
	s.Start(max(c.Revision, 1))
	return &Store{s}
}

// Fork makes a store that has this one's state at a revision of the window
// (without what was attached) and goes on from c.Revision: what is found after a
// crash that lost everything later. This one goes on as it was.
func (s *Store) Fork(c Config, at int64) (*Store, error) {
	f := tree.New(tree.Config{Clock: c.Clock, Window: c.Window, WindowBytes: c.WindowBytes, Rings: c.Rings, Manual: c.Manual})
	if err := s.Store.Fork(f, at); err != nil {
		return nil, err
	}
	f.Start(max(c.Revision, s.Revision()))
	return &Store{f}, nil
}
