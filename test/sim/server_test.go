package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/act"
	"proa.dev/apiserver"
	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/apitest"
	"proa.dev/apiserver/auth"
	"proa.dev/client"
	"proa.dev/control"
	"proa.dev/control/parts"
	"proa.dev/kind"
	"proa.dev/sched/loop"
	"proa.dev/sim"
	"proa.dev/store"
	"proa.dev/view"
	"proa.dev/view/feed"
)

var bg = context.Background()

// server is one life of the process that has the store, the verbs, the
// controllers and the scheduler.
type server struct {
	w     *world
	actor *sim.Actor
	store *pollStore
	view  *view.View
	feed  *feed.Feed
	api   *apiserver.Server
	admin client.Client

	parts   []control.Part
	clients []client.Client
	core    *control.Core
	kinds   []*kind.Kind // that the core follows
	cursor  map[*kind.Kind]int64
	working int  // plans whose actions are on their way
	woken   bool // the next decision is on its way
	sched   *loop.Scheduler
	placing bool
	timer   func() // stops the timer of the earliest plan
	due     time.Time

	streams  map[string]*stream // by machine
	events   int
	observed int64
}

// pollStore shows every write in the view before it is acknowledged, and to the
// invariants.
type pollStore struct {
	*sim.Store
	s *server
}

func (p *pollStore) Put(ctx context.Context, key string, value []byte, o store.PutOptions) (store.KV, error) {
	if p.s.w.plant == "unsynced" {
		o.Class = store.Buffered
	}
	kv, err := p.Store.Put(ctx, key, value, o)
	if err == nil {
		p.s.w.stats.writes++
		if isDurable(key) {
			p.s.w.acked[key] = kv.ModRevision
		}
		p.s.look()
	}
	return kv, err
}

func (p *pollStore) Delete(ctx context.Context, key string, o store.DeleteOptions) (store.KV, int64, error) {
	kv, rev, err := p.Store.Delete(ctx, key, o)
	if err == nil {
		p.s.w.stats.writes++
		delete(p.s.w.acked, key)
		p.s.look()
	}
	return kv, rev, err
}

// Revision also shows what has expired.
func (p *pollStore) Revision() int64 {
	p.s.look()
	return p.Store.Revision()
}

// isDurable: whatever is not an event or a heartbeat must survive.
func isDurable(key string) bool {
	return !strings.HasPrefix(key, feed.Prefix+"events/") && !strings.HasPrefix(key, feed.Prefix+"leases/")
}

// look takes over what the store has, checks it and lets the deciders know.
func (s *server) look() {
	if s.feed == nil {
		return
	}
	if _, err := s.feed.Poll(); err != nil {
		s.w.Fail(err)
	}
	s.observe()
	s.wake()
}

// wake makes sure that a decision follows.
func (s *server) wake() {
	if s.core == nil {
		return
	}
	if !s.woken {
		s.woken = true
		s.actor.After(s.w.between(0, 2*time.Millisecond), "decide", s.decide)
	}
	if !s.placing {
		s.placing = true
		s.actor.After(s.w.between(0, 10*time.Millisecond), "place", s.place)
	}
}

func (w *world) startServer(a *sim.Actor) sim.Handler {
	s := &server{w: w, actor: a, view: view.New(kind.All, 512), cursor: map[*kind.Kind]int64{}, streams: map[string]*stream{}}
	w.server = s
	s.store = &pollStore{a.Disk().Open(), s}
	if rev := s.store.Store.Revision(); rev < w.revision {
		w.fail("the store is at revision %d after revision %d was seen", rev, w.revision)
	}
	for _, key := range sorted(w.acked) {
		if kv, _, err := s.store.Get(bg, key, 0); err != nil || kv.ModRevision < w.acked[key] {
			w.fail("%s: revision %d was acknowledged, after the crash it is at %d (%v)", key, w.acked[key], kv.ModRevision, err)
		}
	}
	f := feed.New(s.store, s.view, kind.DecodeStored, nil)
	if err := f.Load(bg); err != nil {
		w.Fail(err)
		return nil
	}
	s.feed = f
	clock, rnd := a.Clock(), a.Rand()
	addresses := &admit.Addresses{Range: netip.MustParsePrefix("10.96.0.0/16"), PortFirst: 30000, PortEnd: 32768, View: s.view, Rand: rnd}
	quota := &admit.Quota{View: s.view}
	var err error
	s.api, err = apiserver.New(apiserver.Config{Table: kind.All, Store: s.store, View: s.view, Clock: clock, Rand: rnd, Authn: apitest.Tokens{}, Authz: apitest.AdminOnly{},
		Admit: admit.Chain{admit.NamespaceLifecycle(), admit.LimitRanger(), admit.ServiceAccount(s.view, rnd), admit.NodeRestriction(),
			admit.DefaultTolerationSeconds(), admit.Priority(), addresses.Plugin(), quota.Plugin()}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.Fail(err)
		return nil
	}
	s.admin = s.api.Local(apitest.Admin)
	for _, name := range []string{"default", "kube-system", "kube-node-lease", "shop", "bank"} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := s.admin.Create(bg, kind.Namespace, ns, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) && name != "shop" && name != "bank" {
			w.Fail(err)
		}
	}
	for name, value := range map[string]int32{"high": 1000} {
		pc := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value}
		if _, err := s.admin.Create(bg, kind.PriorityClass, pc, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			w.Fail(err)
		}
	}
	s.parts = control.Begun(parts.All(kind.All, authority), clock.Now())
	for _, p := range s.parts {
		s.clients = append(s.clients, &flaky{s.as("kube-system:" + p.Name), s})
	}
	s.core = control.NewCore(s.parts)
	s.kinds = s.core.Kinds()
	snap := s.view.Snapshot()
	s.core.Start(snap)
	for _, k := range s.kinds {
		s.cursor[k] = snap.Revision()
	}
	s.sched = loop.New(loop.Config{View: s.view, Client: &flaky{s.as("kube-system:scheduler"), s}, Clock: clock, Record: s.record})
	s.observeAll()
	s.wake()
	s.ping()
	return s.message
}

func (s *server) as(name string) client.Client {
	return s.api.Local(auth.User{Name: auth.ServiceAccountUser + name, Groups: []string{auth.Masters, auth.AllAuthenticated}})
}

// follow wakes the parts for what has changed.
func (s *server) follow() {
	for _, k := range s.kinds {
		changes, progress, _, err := s.view.Changes(k, s.cursor[k])
		if errors.Is(err, view.ErrGone) {
			snap := s.view.Snapshot()
			s.core.Start(snap)
			for _, k := range s.kinds {
				s.cursor[k] = snap.Revision()
			}
			return
		}
		snap := s.view.Snapshot()
		for _, c := range changes {
			s.core.Changed(snap, c)
		}
		s.cursor[k] = progress
	}
}

// parallel is how many plans are carried out at once, as in the runtime.
const parallel = 4

// decide plans for one object; its actions follow one by one, so that others get
// in between.
func (s *server) decide() {
	s.woken = false
	s.follow()
	now := s.actor.Clock().Now()
	if s.working >= parallel {
		return
	}
	key, ok := s.core.Next(s.view.Snapshot().Revision(), now)
	if !ok {
		s.arm()
		return
	}
	s.w.stats.plans++
	p := &s.parts[key.Part]
	snap := s.view.Snapshot()
	actions, wake := p.Plan(snap, key.Ref, now)
	s.working++
	if len(actions) > 0 {
		s.actor.Logf("plan %s %s: %d actions, again in %v", p.Name, key.Ref, len(actions), wake.Sub(now))
	}
	s.carry(key, snap, actions, 0, 0, wake)
	s.wake()
}

func (s *server) carry(key control.Key, snap view.Snapshot, actions act.List, at int, fence int64, wake time.Time) {
	end := func(err error) {
		s.working--
		conflict := apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)
		s.core.Done(key, s.actor.Clock().Now(), s.view.Snapshot().Revision(), fence, wake, err, conflict)
		s.wake()
	}
	if at == len(actions) {
		end(nil)
		return
	}
	s.actor.After(s.w.between(0, 3*time.Millisecond), "act", func() {
		p, a := &s.parts[key.Part], actions[at]
		rev, err := s.do(key.Part, a)
		if err == nil {
			s.carry(key, snap, actions, at+1, max(fence, rev), wake)
			return
		}
		if p.Failed != nil && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			for _, more := range p.Failed(snap, key.Ref, a, err, s.actor.Clock().Now()) {
				if rev, also := s.do(key.Part, more); also == nil {
					fence = max(fence, rev)
				}
			}
		}
		end(err)
	})
}

func (s *server) do(part int, a act.Action) (int64, error) {
	s.w.stats.actions++
	if err := s.parts[part].Allows(a); err != nil {
		s.w.Fail(err)
		return 0, err
	}
	o, err := control.Do(bg, s.clients[part], a, s.record)
	if c, ok := a.(act.Create); ok && s.w.plant == "doubled" && c.Kind == kind.Pod {
		more := c.Object.DeepCopyObject().(kind.Object)
		more.SetName(more.GetName() + "x")
		control.Do(bg, s.clients[part], act.Create{Kind: c.Kind, Object: more}, s.record)
	}
	if _, isEvent := a.(act.Event); !isEvent {
		s.actor.Logf("%s%s", a, errorText(err))
	}
	if err != nil {
		s.w.stats.refused++
		if s.w.why != nil {
			s.w.why[a.Ref().Kind.String()+": "+err.Error()]++
		}
		if apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) {
			s.w.fail("part %s asked for what is not valid: %s: %v", s.parts[part].Name, a, err)
		}
		return 0, err
	}
	if o == nil {
		return 0, nil
	}
	rev, _ := strconv.ParseInt(o.GetResourceVersion(), 10, 64)
	return rev, nil
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// arm sets the timer of the earliest plan.
func (s *server) arm() {
	at := s.core.NextTimer()
	if at.Equal(s.due) {
		return
	}
	if s.timer != nil {
		s.timer()
		s.timer = nil
	}
	if s.due = at; !at.IsZero() {
		s.timer = s.actor.After(at.Sub(s.actor.Clock().Now()), "plan", func() {
			s.due = time.Time{}
			s.wake()
		})
	}
}

// place lets the scheduler do what is to be done.
func (s *server) place() {
	s.placing = false
	before := s.view.Snapshot().Revision()
	again := s.sched.Step(bg)
	if s.view.Snapshot().Revision() != before || again < time.Minute {
		s.actor.After(min(again, time.Minute), "place later", func() {
			if !s.placing {
				s.placing = true
				s.place()
			}
		})
	}
}

// record makes an Event, unless the cluster has other worries.
func (s *server) record(e act.Event) {
	s.events++
	ns := e.About.Namespace
	if ns == "" {
		ns = "default"
	}
	now := metav1.NewTime(s.actor.Clock().Now().Truncate(time.Second))
	o := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("%s.%x", e.About.Name, s.actor.Rand().Uint64())},
		InvolvedObject: corev1.ObjectReference{Kind: e.About.Kind.Kind, APIVersion: e.About.Kind.GVK().GroupVersion().String(), Namespace: e.About.Namespace, Name: e.About.Name, UID: e.UID},
		Reason:         e.Reason, Message: e.Message, Type: e.Type, Source: corev1.EventSource{Component: e.Source}, FirstTimestamp: now, LastTimestamp: now, Count: 1}
	if _, err := s.admin.Create(bg, kind.Event, o, metav1.CreateOptions{}); err != nil && (apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)) {
		s.w.fail("event about %s is not valid: %v", e.About, err)
	}
	if e.Reason == "Preempted" {
		s.w.stats.preempted++
	}
}

// flaky is a client whose calls fail at times: before anything happened, or after
// everything did, with the answer lost.
type flaky struct {
	client.Client
	s *server
}

var errLost = errors.New("the answer was lost")

func (f *flaky) fails(before bool) error {
	if f.s.w.stormy && f.s.w.Rand().Percent(1) {
		if before {
			return apierrors.NewServiceUnavailable("not now")
		}
		return errLost
	}
	return nil
}

func (f *flaky) Create(ctx context.Context, k *kind.Kind, o kind.Object, c metav1.CreateOptions) (kind.Object, error) {
	if err := f.fails(true); err != nil {
		return nil, err
	}
	out, err := f.Client.Create(ctx, k, o, c)
	if lost := f.fails(false); lost != nil {
		return nil, lost
	}
	return out, err
}

func (f *flaky) Update(ctx context.Context, k *kind.Kind, o kind.Object, sub string, u metav1.UpdateOptions) (kind.Object, error) {
	if err := f.fails(true); err != nil {
		return nil, err
	}
	out, err := f.Client.Update(ctx, k, o, sub, u)
	if lost := f.fails(false); lost != nil {
		return nil, lost
	}
	return out, err
}

func (f *flaky) Patch(ctx context.Context, k *kind.Kind, ns, name string, t types.PatchType, data []byte, sub string, o metav1.PatchOptions) (kind.Object, error) {
	if err := f.fails(true); err != nil {
		return nil, err
	}
	out, err := f.Client.Patch(ctx, k, ns, name, t, data, sub, o)
	if lost := f.fails(false); lost != nil {
		return nil, lost
	}
	return out, err
}

func (f *flaky) Delete(ctx context.Context, k *kind.Kind, ns, name string, o metav1.DeleteOptions) error {
	if err := f.fails(true); err != nil {
		return err
	}
	err := f.Client.Delete(ctx, k, ns, name, o)
	if lost := f.fails(false); lost != nil {
		return lost
	}
	return err
}

func (f *flaky) Post(ctx context.Context, k *kind.Kind, ns, name, sub string, body runtime.Object) (runtime.Object, error) {
	if err := f.fails(true); err != nil {
		return nil, err
	}
	out, err := f.Client.Post(ctx, k, ns, name, sub, body)
	if lost := f.fails(false); lost != nil {
		return nil, lost
	}
	return out, err
}

// authority of the simulated cluster: a real certificate, as publishers check it.
// The key is nowhere; the certificate holds for a hundred years.
const authority = `-----BEGIN CERTIFICATE-----
MIIBRDCB96ADAgECAhRKc06onEQWq36HIp0zhBT7CL0ezTAFBgMrZXAwFzEVMBMG
A1UEAwwMc2ltdWxhdGVkLWNhMCAXDTI2MTEyMTA4MTUwMVoYDzIxMjYxMDI4MDgx
NTAxWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQtY2EwKjAFBgMrZXADIQDp3TqYFFCh
mt3BmCDNCwmLXcn6sYpkExePfvMa+pG2zqNTMFEwHQYDVR0OBBYEFMU96pKPyMiY
ZXFQBEjpdiRcjEZQMB8GA1UdIwQYMBaAFMU96pKPyMiYZXFQBEjpdiRcjEZQMA8G
A1UdEwEB/wQFMAMBAf8wBQYDK2VwA0EAq73lpfcW0B3BwcWiC1Fo82WUDbz5C4KJ
QJM2Gf7luznSpzthMzWFqkADXZh4i8wgBxJp2StO0cZmgjw8xRy+Ag==
-----END CERTIFICATE-----
`
