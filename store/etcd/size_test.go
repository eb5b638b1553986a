package etcd_test

import (
	"testing"

	"proa.dev/store"
	"proa.dev/store/etcd"
	"proa.dev/store/etcd/etcdtest"
)

// TestSize: the first endpoint that answers tells the size.
func TestSize(t *testing.T) {
	t.Parallel()
	e := etcdtest.Start(t)
	s := open(t, etcd.Config{Endpoints: []string{e.URL}, Prefix: etcdtest.Prefix(), Raw: true})
	defer s.Close()
	if name, n, err := store.Sized(s).Size(t.Context()); err != nil || name != "etcd-0" || n <= 0 {
		t.Errorf("%q %d %v", name, n, err)
	}
}
