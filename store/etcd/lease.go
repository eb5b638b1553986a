package etcd

import (
	"context"
	"math"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// leaseKeys is how many keys share one lease at most.
const leaseKeys = 1000

// leases hands out one lease for many keys of the same TTL, as upstream does: etcd
// bears thousands of leases badly.
type leases struct {
	s  *Store
	mu sync.Mutex
	by map[time.Duration]*lease
}

type lease struct {
	id      clientv3.LeaseID
	ttl     time.Duration // of the keys
	expires time.Time
	keys    int
}

func (l *leases) init(s *Store) { l.s, l.by = s, map[time.Duration]*lease{} }

// reuse is how long after it was made a lease is given to more keys.
func reuse(ttl time.Duration) time.Duration {
	return min(max(ttl/20, time.Second), time.Minute)
}

// get returns a lease that lives ttl at least.
func (l *leases) get(ctx context.Context, ttl time.Duration) (*lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.s.clock.Now()
	if have := l.by[ttl]; have != nil && have.keys < leaseKeys && !now.Add(ttl).After(have.expires) {
		have.keys++
		return have, nil
	}
	whole := ttl + reuse(ttl)
	asked, cancel := l.s.request(ctx)
	defer cancel()
	resp, err := l.s.client.Grant(asked, int64(math.Ceil(whole.Seconds())))
	if err != nil {
		return nil, l.s.fault(ctx, err)
	}
	made := &lease{id: resp.ID, ttl: ttl, expires: now.Add(whole), keys: 1}
	l.by[ttl] = made
	return made, nil
}

// forget drops a lease that etcd does not know any more.
func (l *leases) forget(gone *lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by[gone.ttl] == gone {
		delete(l.by, gone.ttl)
	}
}
