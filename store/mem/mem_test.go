package mem_test

import (
	"testing"

	"proa.dev/env"
	"proa.dev/store"
	"proa.dev/store/mem"
	"proa.dev/store/storetest"
)

func TestContract(t *testing.T) {
	storetest.Run(t, func(t testing.TB, o storetest.Options) store.Store {
		return mem.Open(mem.Config{Clock: o.Clock, Window: o.Window, WindowBytes: o.WindowBytes, Rings: rings(o)})
	})
}

func rings(o storetest.Options) []mem.Ring {
	if o.RingObjects == 0 && o.RingBytes == 0 {
		return nil
	}
	return []mem.Ring{{Prefix: o.RingPrefix, Objects: o.RingObjects, Bytes: o.RingBytes}}
}

var _ env.Clock = (*storetest.Clock)(nil)
