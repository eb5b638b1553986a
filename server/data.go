package server

import (
	"context"

	"proa.dev/env"
	"proa.dev/store"
	"proa.dev/store/disk"
)

// Data keeps the state in a directory as kube-apiserver keeps it in etcd: Secrets
// are as they are, unless EncryptionFile or Seal says otherwise. Nil files are the
// machine's.
func Data(dir string, files env.Files) Opener {
	return func(ctx context.Context, c *Config) (store.Store, error) {
		d := disk.Config{Dir: dir, Files: files, Clock: c.Clock, Log: c.Log}
		if c.Seal != nil {
			d.Sealed = []disk.Sealed{{Prefix: c.sealedPrefix(), Transform: c.Seal}}
		}
		return disk.Open(ctx, d)
	}
}
