package server

import (
	"strings"
	"sync/atomic"

	"proa.dev/kind"
	"proa.dev/store"
	"proa.dev/store/seal"
)

// sealing makes Config.Seal; at is the store once it is open.
func (s *Server) sealing(at *atomic.Pointer[store.Store]) error {
	c := &s.cfg
	if c.Seal != nil || c.EncryptionFile == "" && c.Authority == nil {
		return nil
	}
	o := seal.Options{File: c.EncryptionFile, Rand: c.Rand, Clock: c.Clock, Log: c.Log, Resource: resourceOf(), Revision: func() int64 {
		if st := at.Load(); st != nil {
			return (*st).Revision()
		}
		return 0
	}}
	if c.Authority != nil {
		o.Local = []seal.Key{{Name: "key1", Secret: c.Authority.SecretsKey}}
	}
	var err error
	c.Seal, err = seal.Open(o)
	return err
}

// sealedPrefix is the part of the keys that Seal has to be asked about.
func (c *Config) sealedPrefix() string {
	if c.EncryptionFile == "" {
		return "/registry/secrets/"
	}
	return "/registry/"
}

// resourceOf names what a store key holds: "secrets", "deployments.apps". Custom
// objects lie below their group and plural. What lies before /registry belongs to
// the etcd that others use too.
func resourceOf() func(key string) string {
	names := map[string]string{}
	for _, k := range kind.All.Roots() {
		names[k.Prefix] = k.String()
	}
	return func(key string) string {
		_, rest, _ := strings.Cut(key, "/registry/")
		first, rest, _ := strings.Cut(rest, "/")
		second, _, _ := strings.Cut(rest, "/")
		if n := names[first+"/"+second]; n != "" {
			return n
		}
		if n := names[first]; n != "" {
			return n
		}
		if strings.Contains(first, ".") && second != "" {
			return second + "." + first
		}
		return first
	}
}
