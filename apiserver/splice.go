package apiserver

import (
	"context"
	"strconv"

	"proa.dev/client/wire"
	"proa.dev/kind"
	"proa.dev/store"
)

// Lists in Protobuf are put together from the bytes that the store holds anyway: an
// object differs from its stored form only in its resource version. What this
// program would write differently now (other defaults) must not be served from old
// bytes: Config.Written says from which revision on values are its own.

// spliceFrom is the number of objects from which it pays to ask the store.
const spliceFrom = 16

// stored finds the bytes of a listing's objects, in their order; nil when they
// have to be encoded. What cannot be served from bytes is encoded by itself.
func (s *Server) stored(ctx context.Context, k *kind.Kind, l *listing) func(int) (wire.Proto, error) {
	if s.cfg.Written == 0 || k.Stored != nil || k.Custom || k.StoredJSON || k.Computed != nil || !l.dense || len(l.items) < spliceFrom {
		return nil
	}
	key := func(obj kind.Object) string { return k.StoreKey(obj.GetNamespace(), obj.GetName()) }
	scanner, ok := s.store.(store.Scanner)
	if !ok {
		return nil
	}
	found := make([]kind.Stored, len(l.items))
	var digits [20]byte
	i, at := 0, key(l.items[0])
	_, err := scanner.Scan(ctx, at, key(l.items[len(l.items)-1])+"\x00", l.revision, func(kv *store.KV) bool {
		for at < kv.Key {
			if i++; i == len(l.items) {
				return false
			}
			at = key(l.items[i])
		}
		if at > kv.Key {
			return true
		}
		version := l.items[i].GetResourceVersion()
		if kv.ModRevision >= s.cfg.Written && string(strconv.AppendInt(digits[:0], kv.ModRevision, 10)) == version {
			found[i].Parse(k, kv.Value, version)
		}
		return true
	})
	if err != nil {
		return nil // compacted meanwhile: the objects are there
	}
	return func(i int) (wire.Proto, error) {
		if found[i].Is() {
			return &found[i], nil
		}
		return protoOf(l.items[i])
	}
}

func protoOf(obj kind.Object) (wire.Proto, error) {
	p, ok := obj.(wire.Proto)
	if !ok {
		return nil, wire.ErrNoProto
	}
	return p, nil
}
