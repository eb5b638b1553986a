package etcd_test

import (
	"log/slog"
	"testing"
	"time"

	"proa.dev/store"
	"proa.dev/store/etcd"
	"proa.dev/store/etcd/etcdtest"
	"proa.dev/store/storetest"
)

func open(t testing.TB, c etcd.Config) *etcd.Store {
	t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s, err := etcd.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestContract: the store keeps its promises on the newest etcd and on the oldest
// that is supported.
func TestContract(t *testing.T) {
	for _, v := range []etcdtest.Version{etcdtest.Newest, etcdtest.Oldest} {
		t.Run(string(v), func(t *testing.T) {
			storetest.RunWith(t, storetest.Traits{Unbounded: true, Remote: true, RealTime: true, Slack: 5 * time.Second, MaxValue: store.MaxValueBytes - 4096}, func(t testing.TB, o storetest.Options) store.Store {
				s := etcdtest.StartVersion(t, v)
				return open(t, etcd.Config{Endpoints: []string{s.URL}, Prefix: etcdtest.Prefix(), Raw: true})
			})
		})
	}
}
