package etcd

import (
	"context"
	"fmt"
	"strconv"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"proa.dev/env"
	"proa.dev/store"
)

// compactKey is where all API servers on one etcd, upstream's included, keep the
// revision that history is kept from. Its version, which grows by one with every
// write, is the time of their common clock: whoever moves it on compacts to the
// revision that was newest when it moved the last time.
const compactKey = "compact_rev_key"

// compactLoop compacts every CompactEvery. Whoever finds that another server was
// faster takes over its time and does nothing.
func (s *Store) compactLoop() {
	var version, rev int64
	for env.Sleep(s.ctx, s.clock, s.cfg.CompactEvery) {
		var err error
		if version, rev, err = s.compactOnce(s.ctx, version, rev); err != nil && s.ctx.Err() == nil {
			s.log.Warn("etcd was not compacted; it is tried again", "error", err)
		}
	}
}

// compactOnce moves the common clock on from version and compacts to rev, which
// was the newest revision at that time (0: nothing yet). It returns the clock and
// the revision for the next time.
func (s *Store) compactOnce(ctx context.Context, version, rev int64) (int64, int64, error) {
	asked, cancel := s.request(ctx)
	defer cancel()
	resp, err := s.client.Txn(asked).
		If(clientv3.Compare(clientv3.Version(compactKey), "=", version)).
		Then(clientv3.OpPut(compactKey, strconv.FormatInt(rev, 10))).
		Else(clientv3.OpGet(compactKey)).Commit()
	if err != nil {
		return version, rev, s.fault(ctx, err)
	}
	now := resp.Header.Revision
	s.note(now)
	if !resp.Succeeded {
		kvs := resp.Responses[0].GetResponseRange().Kvs
		if len(kvs) == 0 {
			return 0, now, nil
		}
		s.learnCompacted(kvs)
		return kvs[0].Version, now, nil
	}
	if rev == 0 {
		return version + 1, now, nil
	}
	if err := s.Compact(ctx, rev); err != nil {
		return version + 1, now, err
	}
	s.log.Debug("etcd is compacted", "revision", rev)
	return version + 1, now, nil
}

// learnCompacted reads what others have compacted.
func (s *Store) learnCompacted(kvs []*mvccpb.KeyValue) {
	if len(kvs) == 0 {
		return
	}
	if rev, err := strconv.ParseInt(string(kvs[0].Value), 10, 64); err == nil && rev <= s.Revision() {
		raise(&s.compacted, rev)
	}
}

// Compact implements store.Store.
func (s *Store) Compact(ctx context.Context, rev int64) error {
	if err := s.begin(ctx); err != nil {
		return fmt.Errorf("compact to revision %d: %w", rev, err)
	}
	asked, cancel := s.request(ctx)
	defer cancel()
	_, err := s.client.Compact(asked, rev)
	switch {
	case err == nil:
		raise(&s.compacted, rev)
	case rpctypes.Error(err) == rpctypes.ErrCompacted:
		// Somebody has done more already.
		raise(&s.compacted, rev)
	default:
		err = s.fault(ctx, err)
		if err == store.ErrFuture {
			return fmt.Errorf("compact to revision %d, the newest is %d: %w", rev, s.Revision(), err)
		}
		return fmt.Errorf("compact to revision %d: %w", rev, err)
	}
	return nil
}
