package server

import (
	"context"

	"proa.dev/store"
	"proa.dev/store/etcd"
	"proa.dev/store/seal"
)

// Etcd keeps the state in an etcd cluster that other servers may use too, with
// Secrets sealed by the authority's key (all servers have the same authority),
// unless e.Sealed says otherwise.
func Etcd(e etcd.Config) Opener {
	return func(ctx context.Context, c *Config) (store.Store, error) {
		e.Clock, e.Log = c.Clock, c.Log
		if e.Sealed == nil && c.Authority != nil {
			secrets, err := seal.New(c.Rand, seal.Key{Name: "key1", Secret: c.Authority.SecretsKey})
			if err != nil {
				return nil, err
			}
			e.Sealed = []etcd.Sealed{{Prefix: "/registry/secrets/", Transform: secrets}}
		}
		return etcd.Open(ctx, e)
	}
}
