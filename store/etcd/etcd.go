// Package etcd is the store on an etcd cluster (v3.5 or newer) that several
// servers share. It holds no state of its own: every read asks etcd, and reads of
// the newest state are linearizable.
//
// # Layout
//
// The contract's /registry is Config.Prefix in etcd; what comes behind it is the
// same, and so are the values: a store written by proa can be read as upstream's
// API server's, and the other way round. The key compact_rev_key, which is below
// no prefix, is how all API servers of one etcd agree on compaction.
//
// # Writes
//
// A write is one transaction on the key's mod revision; both durability classes
// are the same here, since etcd syncs before it answers. When etcd cannot be
// reached, or answers that it could not decide in time, the error is
// store.ErrUnavailable, and whether a write was done is not known.
//
// # Reads of others' writes
//
// Latest asks etcd for the newest revision; callers that wait at the same time
// share a question that was sent after they asked. Revision is what this process
// has seen so far. A watch that has no events for a revision that somebody asked
// Latest for (another tenant's key, say) is told by etcd that there are none.
//
// # Watches
//
// A watch that loses its connection, its member or its leader goes on after the
// last revision that it has delivered. Its queue is bounded: one that nobody
// reads is ended in etcd and opened again when its queue is empty, and gets
// store.ErrCompacted only if that took longer than history is kept.
//
// What was attached to this process's last writes (attachedWrites of them) is
// handed on with their events; others' are decoded by whoever reads them.
//
// # TTL
//
// Keys with a TTL hang on leases that up to leaseKeys keys share: a key lives up
// to 5 % (at least one second, at most a minute) longer than its TTL, and etcd
// ends no lease before two seconds. The clock is etcd's.
//
// # Differences to the contract of package store
//
// No Rings: events are bounded by their TTL alone. History is kept until it is
// compacted, at least Config.CompactEvery, and not by a number of changes.
// Several removals by one expired lease have one revision, and are never split.
package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"proa.dev/env"
	"proa.dev/store"
)

// Registry is the contract's prefix, and what etcd has by default.
const Registry = "/registry"

// Defaults of Config.
const (
	DefaultCompactEvery   = 5 * time.Minute
	DefaultRequestTimeout = 10 * time.Second
	DefaultOpenTimeout    = 30 * time.Second
)

// Transform seals values at rest. key is the key in etcd, which upstream
// authenticates too.
type Transform interface {
	Seal(key string, plaintext []byte) ([]byte, error)
	Open(key string, sealed []byte) ([]byte, error)
}

// Sealed says which keys (of the contract) a Transform covers. Values that do not
// begin with "k8s:enc:" were written without one and are read as they are.
type Sealed struct {
	Prefix    string
	Transform Transform
}

// Config of Open. Only Endpoints must be set.
type Config struct {
	Endpoints []string    // https://10.0.0.1:2379
	TLS       *tls.Config // nil: as the endpoints' scheme says, with the system's roots
	Username  string
	Password  string
	Prefix    string // of all keys in etcd; "": Registry
	// Raw puts keys behind Prefix as they are, instead of replacing Registry: for
	// tests of the contract.
	Raw bool

	Sealed []Sealed

	// CompactEvery is the time between two compactions by this store's Run
	// (0: five minutes, as upstream; negative: none).
	CompactEvery time.Duration
	// RequestTimeout bounds each write, read of one key, and question for the newest
	// revision; OpenTimeout how long Open waits for etcd.
	RequestTimeout, OpenTimeout time.Duration

	Clock env.Clock // nil: the system's; of leases' reuse and compaction
	Log   *slog.Logger
}

// Store is a store.Shared. Open makes it.
type Store struct {
	cfg    Config
	client *clientv3.Client
	log    *slog.Logger
	clock  env.Clock

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	once   sync.Once
	err    error // of Close

	revision  atomic.Int64
	compacted atomic.Int64

	attached attachments
	leases   leases
	rounds   rounds

	mu      sync.Mutex
	closed  bool
	watches map[*watch]struct{}
	wanted  int64
	nudge   chan struct{}
}

var _ store.Shared = (*Store)(nil)

// Open connects, waits until etcd answers, and starts compaction. Close ends it.
func Open(ctx context.Context, c Config) (*Store, error) {
	if len(c.Endpoints) == 0 {
		return nil, errors.New("open etcd: no endpoint is given; name at least one, as http://10.0.0.1:2379")
	}
	if c.Prefix == "" {
		c.Prefix = Registry
	}
	c.Prefix = "/" + strings.Trim(c.Prefix, "/")
	if c.CompactEvery == 0 {
		c.CompactEvery = DefaultCompactEvery
	}
	if c.RequestTimeout <= 0 {
		c.RequestTimeout = DefaultRequestTimeout
	}
	if c.OpenTimeout <= 0 {
		c.OpenTimeout = DefaultOpenTimeout
	}
	if c.Clock == nil {
		c.Clock = env.SystemClock()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for _, e := range c.Endpoints {
		if strings.HasPrefix(e, "https://") && c.TLS == nil {
			c.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		}
	}
	life, cancel := context.WithCancel(context.Background())
	client, err := clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints, TLS: c.TLS, Username: c.Username, Password: c.Password, Context: life, Logger: zap.NewNop(),
		DialTimeout: 10 * time.Second, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second,
		MaxCallSendMsgSize: store.MaxValueBytes + (1 << 20),
	})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("open etcd at %s: %w", strings.Join(c.Endpoints, ", "), err)
	}
	s := &Store{cfg: c, client: client, log: c.Log, clock: c.Clock, ctx: life, cancel: cancel,
		watches: map[*watch]struct{}{}, nudge: make(chan struct{}, 1)}
	s.attached.init()
	s.leases.init(s)
	if err := s.connect(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.wg.Go(s.nudgeLoop)
	if c.CompactEvery > 0 {
		s.wg.Go(s.compactLoop)
	}
	return s, nil
}

// connect waits for the first answer, unless the certificates say that there will be
// none.
func (s *Store) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.OpenTimeout)
	defer cancel()
	var why error
	for {
		try, stop := context.WithTimeout(ctx, reasonAfter)
		_, err := s.Latest(try)
		stop()
		if err == nil {
			break
		}
		reason, final := s.reason(ctx)
		if why == nil || reason != nil && ctx.Err() == nil {
			why = cmp.Or(reason, err)
		}
		if final || !env.Sleep(ctx, s.clock, 200*time.Millisecond) {
			return fmt.Errorf("open etcd at %s: %w: %w; check that it runs and that endpoints and certificates are right",
				strings.Join(s.cfg.Endpoints, ", "), store.ErrUnavailable, why)
		}
	}
	resp, err := s.client.Get(ctx, compactKey)
	if err != nil {
		return fmt.Errorf("open etcd at %s: %w", strings.Join(s.cfg.Endpoints, ", "), s.fault(ctx, err))
	}
	s.learnCompacted(resp.Kvs)
	return nil
}

// request bounds one question to etcd.
func (s *Store) request(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.cfg.RequestTimeout)
}

// begin is what every call does first.
func (s *Store) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.ctx.Err() != nil {
		return store.ErrClosed
	}
	return nil
}

// fault turns an error of the client into one of the contract.
func (s *Store) fault(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if s.ctx.Err() != nil {
		return store.ErrClosed
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch rpctypes.Error(err) {
	case rpctypes.ErrCompacted:
		return store.ErrCompacted
	case rpctypes.ErrFutureRev:
		return store.ErrFuture
	case rpctypes.ErrRequestTooLarge:
		return fmt.Errorf("%w: %w", store.ErrTooLarge, err)
	case rpctypes.ErrNoSpace:
		return fmt.Errorf("%w: %w", store.ErrNoSpace, err)
	}
	return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
}

// note remembers the newest revision that was seen.
func (s *Store) note(rev int64) { raise(&s.revision, rev) }

func raise(a *atomic.Int64, to int64) {
	for {
		have := a.Load()
		if have >= to || a.CompareAndSwap(have, to) {
			return
		}
	}
}

// key in etcd of a key of the contract.
func (s *Store) key(k string) string {
	if !s.cfg.Raw {
		k = strings.TrimPrefix(k, Registry)
	}
	return s.cfg.Prefix + k
}

// name is the contract's key of one in etcd.
func (s *Store) name(k []byte) string {
	rest := string(k[min(len(s.cfg.Prefix), len(k)):])
	if s.cfg.Raw {
		return rest
	}
	return Registry + rest
}

// span is the range in etcd of one of the contract: never beyond the prefix.
func (s *Store) span(start, end string) (string, string) {
	first, last := s.cfg.Prefix+"/", s.cfg.Prefix+"0"
	from, to := first, last
	if start != "" {
		from = max(first, s.key(start))
	}
	if end != "" {
		to = min(last, s.key(end))
	}
	return from, to
}

func (s *Store) transform(name string) Transform {
	for _, x := range s.cfg.Sealed {
		if strings.HasPrefix(name, x.Prefix) {
			return x.Transform
		}
	}
	return nil
}

func (s *Store) seal(name, key string, value []byte) ([]byte, error) {
	t := s.transform(name)
	if t == nil {
		return value, nil
	}
	return t.Seal(key, value)
}

// kv is what etcd has, as the contract says it. A value that cannot be opened is
// left as it is, and err says why.
func (s *Store) kv(in *mvccpb.KeyValue) (store.KV, error) {
	name := s.name(in.Key)
	out := store.KV{Key: name, Value: in.Value, ModRevision: in.ModRevision, CreateRevision: in.CreateRevision}
	if out.Value == nil {
		out.Value = []byte{}
	}
	out.Attached = s.attached.get(name, in.ModRevision)
	if t := s.transform(name); t != nil && strings.HasPrefix(string(in.Value[:min(len(in.Value), 8)]), "k8s:enc:") {
		plain, err := t.Open(string(in.Key), in.Value)
		if err != nil {
			return out, fmt.Errorf("value of %q: %w", name, err)
		}
		out.Value = plain
	} else if t, ok := t.(ager); ok { // it learns of a plain one
		t.Open(string(in.Key), in.Value)
	}
	return out, nil
}

// ager is a Transform that can say whether a value would be sealed in another way
// now; it gives plain values back as they are.
type ager interface {
	Transform
	Stale(key string, revision int64) bool
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, value []byte, o store.PutOptions) (store.KV, error) {
	if key == "" {
		return store.KV{}, errors.New(`put "": key is empty`)
	}
	if len(value) > store.MaxValueBytes {
		return store.KV{}, fmt.Errorf("put %q of %d bytes, more than %d: %w", key, len(value), store.MaxValueBytes, store.ErrTooLarge)
	}
	if err := s.begin(ctx); err != nil {
		return store.KV{}, fmt.Errorf("put %q: %w", key, err)
	}
	if value == nil {
		value = []byte{}
	}
	at := s.key(key)
	sealed, err := s.seal(key, at, value)
	if err != nil {
		return store.KV{}, fmt.Errorf("put %q: %w", key, err)
	}
	p := s.attached.begin(key, o.Attached)
	defer s.attached.end(p)
	resp, err := s.put(ctx, at, string(sealed), o)
	if err != nil {
		return store.KV{}, fmt.Errorf("put %q: %w", key, err)
	}
	if !resp.Succeeded {
		s.note(resp.Header.Revision)
		return store.KV{}, refused("put", key, o.Expect, resp)
	}
	kv := store.KV{Key: key, Value: value, ModRevision: resp.Header.Revision, CreateRevision: resp.Header.Revision, Attached: o.Attached}
	if o.Expect != store.Absent {
		kv.CreateRevision = resp.Responses[1].GetResponseRange().Kvs[0].CreateRevision
	}
	if o.Stamp != nil {
		o.Stamp(kv.ModRevision)
	}
	s.attached.put(p, kv.ModRevision)
	s.note(kv.ModRevision)
	return kv, nil
}

// put carries the transaction out, with a lease if need be.
func (s *Store) put(ctx context.Context, at, value string, o store.PutOptions) (*clientv3.TxnResponse, error) {
	for try := 0; ; try++ {
		var opts []clientv3.OpOption
		var l *lease
		if o.TTL > 0 {
			var err error
			if l, err = s.leases.get(ctx, max(o.TTL, time.Second)); err != nil {
				return nil, err
			}
			opts = append(opts, clientv3.WithLease(l.id))
		}
		then := []clientv3.Op{clientv3.OpPut(at, value, opts...)}
		if o.Expect != store.Absent {
			then = append(then, clientv3.OpGet(at, clientv3.WithKeysOnly()))
		}
		resp, err := s.txn(ctx, at, o.Expect, then, o.Guards...)
		if l != nil && err != nil && rpctypes.Error(err) == rpctypes.ErrLeaseNotFound && try < 3 {
			s.leases.forget(l)
			continue
		}
		return resp, s.fault(ctx, err)
	}
}

// txn does then if the key is at the revision that is expected and the guards
// hold, and asks for its revision otherwise.
func (s *Store) txn(ctx context.Context, at string, expect int64, then []clientv3.Op, guards ...store.Guard) (*clientv3.TxnResponse, error) {
	ctx, cancel := s.request(ctx)
	defer cancel()
	t := s.client.Txn(ctx)
	var conditions []clientv3.Cmp
	if expect != store.Any {
		conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(at), "=", expect))
	}
	for _, g := range guards {
		if g.Revision != 0 {
			conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(s.key(g.Key)), "=", g.Revision))
			continue
		}
		conditions = append(conditions, clientv3.Compare(clientv3.Value(s.key(g.Key)), "=", g.Value))
	}
	if len(conditions) == 0 {
		return t.Then(then...).Commit()
	}
	return t.If(conditions...).
		Then(then...).Else(clientv3.OpGet(at, clientv3.WithKeysOnly())).Commit()
}

// refused says why a transaction did nothing.
func refused(deed, key string, expect int64, resp *clientv3.TxnResponse) error {
	kvs := resp.Responses[0].GetResponseRange().Kvs
	switch {
	case expect == store.Any, len(kvs) == 0 && expect == store.Absent, len(kvs) > 0 && kvs[0].ModRevision == expect:
		return fmt.Errorf("%s %q: %w", deed, key, store.ErrGuard)
	case len(kvs) == 0:
		return fmt.Errorf("%s %q expecting revision %d: %w", deed, key, expect, store.ErrNotFound)
	case expect == store.Absent:
		return fmt.Errorf("%s %q, which is at revision %d already: %w", deed, key, kvs[0].ModRevision, store.ErrExists)
	}
	return fmt.Errorf("%s %q expecting revision %d, it is at %d: %w", deed, key, expect, kvs[0].ModRevision, store.ErrConflict)
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string, o store.DeleteOptions) (store.KV, int64, error) {
	if err := s.begin(ctx); err != nil {
		return store.KV{}, 0, fmt.Errorf("delete %q: %w", key, err)
	}
	expect := o.Expect
	if expect == 0 {
		expect = store.Any
	}
	at := s.key(key)
	p := s.attached.begin(key, o.Attached)
	defer s.attached.end(p)
	resp, err := s.txn(ctx, at, expect, []clientv3.Op{clientv3.OpDelete(at, clientv3.WithPrevKV())})
	if err != nil {
		return store.KV{}, 0, fmt.Errorf("delete %q: %w", key, s.fault(ctx, err))
	}
	rev := resp.Header.Revision
	if !resp.Succeeded {
		s.note(rev)
		return store.KV{}, 0, refused("delete", key, expect, resp)
	}
	gone := resp.Responses[0].GetResponseDeleteRange()
	if gone.Deleted == 0 {
		s.note(rev)
		return store.KV{}, 0, fmt.Errorf("delete %q: %w", key, store.ErrNotFound)
	}
	prev, err := s.kv(gone.PrevKvs[0])
	if err != nil {
		s.log.Error("removed value cannot be decrypted", "key", key, "error", err)
	}
	if o.Stamp != nil {
		o.Stamp(rev)
	}
	s.attached.put(p, rev)
	s.note(rev)
	return prev, rev, nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, at int64) (store.KV, int64, error) {
	if err := s.begin(ctx); err != nil {
		return store.KV{}, 0, fmt.Errorf("get %q: %w", key, err)
	}
	if at != 0 && at < s.compacted.Load() {
		return store.KV{}, s.Revision(), fmt.Errorf("get %q at revision %d: %w", key, at, store.ErrCompacted)
	}
	asked, cancel := s.request(ctx)
	defer cancel()
	resp, err := s.client.Get(asked, s.key(key), clientv3.WithRev(at))
	if err != nil {
		return store.KV{}, s.Revision(), fmt.Errorf("get %q at revision %d: %w", key, at, s.fault(ctx, err))
	}
	s.note(resp.Header.Revision)
	if at == 0 {
		at = resp.Header.Revision
	}
	if len(resp.Kvs) == 0 {
		return store.KV{}, at, fmt.Errorf("get %q: %w", key, store.ErrNotFound)
	}
	kv, err := s.kv(resp.Kvs[0])
	if err != nil {
		return store.KV{}, at, fmt.Errorf("get %q: %w", key, err)
	}
	if t, ok := s.transform(key).(ager); ok {
		kv.Stale = t.Stale(s.key(key), kv.ModRevision)
	}
	return kv, at, nil
}

// Pages that a Range reads at once: they grow to the larger one unless the values
// are large.
const (
	firstPage   = 1000
	largestPage = 10_000
	pageBytes   = 16 << 20
)

// Range implements store.Store. A whole range is read in pages at one revision.
func (s *Store) Range(ctx context.Context, start, end string, limit int, at int64) (store.Page, error) {
	if err := s.begin(ctx); err != nil {
		return store.Page{}, fmt.Errorf("range %q: %w", start, err)
	}
	if at != 0 && at < s.compacted.Load() {
		return store.Page{Revision: s.Revision()}, fmt.Errorf("range %q at revision %d: %w", start, at, store.ErrCompacted)
	}
	for try := 0; ; try++ {
		p, err := s.readRange(ctx, start, end, limit, at)
		if at == 0 && try < 2 && errors.Is(err, store.ErrCompacted) {
			continue // compacted between two pages
		}
		if err != nil {
			return p, fmt.Errorf("range %q at revision %d: %w", start, at, err)
		}
		return p, nil
	}
}

func (s *Store) readRange(ctx context.Context, start, end string, limit int, at int64) (store.Page, error) {
	from, to := s.span(start, end)
	p := store.Page{Revision: at}
	page := firstPage
	for from < to {
		n := page
		if limit > 0 {
			n = min(page, limit-len(p.KVs))
		}
		resp, err := s.client.Get(ctx, from, clientv3.WithRange(to), clientv3.WithRev(p.Revision), clientv3.WithLimit(int64(n)))
		if err != nil {
			return store.Page{Revision: s.Revision()}, s.fault(ctx, err)
		}
		s.note(resp.Header.Revision)
		if p.Revision == 0 {
			p.Revision = resp.Header.Revision
		}
		if p.KVs == nil {
			p.KVs = make([]store.KV, 0, min(int(resp.Count), max(limit, 0)+len(resp.Kvs)))
			if limit == 0 {
				p.KVs = make([]store.KV, 0, resp.Count)
			}
		}
		bytes := 0
		for _, in := range resp.Kvs {
			bytes += len(in.Value)
			kv, err := s.kv(in)
			if err != nil {
				s.log.Error("value cannot be decrypted", "key", kv.Key, "error", err)
			}
			p.KVs = append(p.KVs, kv)
		}
		if !resp.More {
			return p, nil
		}
		if limit > 0 && len(p.KVs) == limit {
			p.More, p.Remaining = true, resp.Count-int64(len(resp.Kvs))
			return p, nil
		}
		if bytes > pageBytes {
			page = max(page/2, 100)
		} else if bytes < pageBytes/2 {
			page = min(2*page, largestPage)
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
	if p.Revision == 0 {
		rev, err := s.Latest(ctx)
		if err != nil {
			return p, err
		}
		p.Revision = rev
	}
	return p, nil
}

// Revision implements store.Store: the newest that this process has seen.
func (s *Store) Revision() int64 { return s.revision.Load() }

// Compacted implements store.Store: the newest that this process knows of.
func (s *Store) Compacted() int64 { return s.compacted.Load() }

// Sync implements store.Store: etcd has synced what it has answered.
func (s *Store) Sync(context.Context) error {
	if s.ctx.Err() != nil {
		return fmt.Errorf("sync: %w", store.ErrClosed)
	}
	return nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.once.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.cancel()
		s.wg.Wait()
		if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
			s.err = fmt.Errorf("close etcd: %w", err)
		}
	})
	return s.err
}
