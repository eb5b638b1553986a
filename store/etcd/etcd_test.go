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

func TestContract(t *testing.T) {
	storetest.RunWith(t, storetest.Traits{Unbounded: true, Remote: true, RealTime: true, Slack: 5 * time.Second, MaxValue: store.MaxValueBytes - 4096}, func(t testing.TB, o storetest.Options) store.Store {
		s := etcdtest.Start(t)
		return open(t, etcd.Config{Endpoints: []string{s.URL}, Prefix: etcdtest.Prefix(), Raw: true})
	})
}
