package server

import (
	"context"

	"proa.dev/store"
	"proa.dev/store/etcd"
)

// Etcd keeps the state in an etcd cluster that other servers may use too, with
// Secrets sealed by the authority's key (all servers have the same authority),
// unless e.Sealed says otherwise.
func Etcd(e etcd.Config) Opener {
	return func(ctx context.Context, c *Config) (store.Store, error) {
		e.Clock, e.Log = c.Clock, c.Log
		if e.Sealed == nil && c.Seal != nil {
			e.Sealed = []etcd.Sealed{{Prefix: c.sealedPrefix(), Transform: c.Seal}}
		}
		return etcd.Open(ctx, e)
	}
}
