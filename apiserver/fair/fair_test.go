package fair

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/apiserver/auth"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/view"
)

func user(name string, groups ...string) auth.User {
	return auth.User{Name: name, Groups: append(groups, auth.AllAuthenticated)}
}

func get(u auth.User, verb, group, resource, namespace string) *auth.Attributes {
	return &auth.Attributes{User: u, Verb: verb, Group: group, Version: "v1", Resource: resource, Namespace: namespace}
}

func TestClassify(t *testing.T) {
	d := New(Config{})
	for _, c := range []struct {
		a             *auth.Attributes
		schema, level string
	}{
		{get(user("root", auth.Masters), "list", "", "pods", ""), "exempt", "exempt"},
		{&auth.Attributes{User: user("x"), Verb: "get", Path: "/healthz"}, "probes", "exempt"},
		{&auth.Attributes{User: user("x"), Verb: "get", Path: "/metrics"}, "global-default", "global-default"},
		{func() *auth.Attributes {
			a := get(user("system:node:a", auth.NodesGroup), "patch", "", "nodes", "")
			a.Subresource = "status"
			return a
		}(), "system-node-high", "node-high"},
		{get(user("system:node:a", auth.NodesGroup), "update", "coordination.k8s.io", "leases", "kube-node-lease"), "system-node-high", "node-high"},
		{get(user("system:node:a", auth.NodesGroup), "list", "", "pods", ""), "system-nodes", "system"},
		{get(user("system:kube-scheduler"), "update", "coordination.k8s.io", "leases", "kube-system"), "system-leader-election", "leader-election"},
		{get(user("system:kube-scheduler"), "list", "", "pods", ""), "kube-scheduler", "workload-high"},
		{get(user("system:serviceaccount:kube-system:gc", auth.ServiceAccounts), "list", "", "pods", ""), "kube-system-service-accounts", "workload-high"},
		{get(user("system:serviceaccount:shop:app", auth.ServiceAccounts), "list", "", "pods", ""), "service-accounts", "workload-low"},
		{get(user("jane"), "list", "", "pods", "shop"), "global-default", "global-default"},
	} {
		got := d.Classify(c.a)
		if got.Schema != c.schema || got.Level != c.level {
			t.Errorf("%s %s%s by %s: schema %s at level %s, want %s at %s", c.a.Verb, c.a.Resource, c.a.Path, c.a.User.Name, got.Schema, got.Level, c.schema, c.level)
		}
	}
	d.Configure(nil, nil)
	if got := d.Classify(get(user("jane"), "list", "", "pods", "shop")); got.Schema != "catch-all" || got.Level != "catch-all" {
		t.Errorf("without objects: %s at %s, want the imagined catch-all", got.Schema, got.Level)
	}
}

func TestPathRules(t *testing.T) {
	for _, c := range []struct {
		rule, path string
		want       bool
	}{{"*", "/x", true}, {"/healthz", "/healthz", true}, {"/healthz", "/healthzz", false}, {"/healthz/*", "/healthz/etcd", true}, {"/debug", "/debug/pprof", true}, {"/debug/*", "/debug", false}} {
		if got := hasPath([]string{c.rule}, c.path); got != c.want {
			t.Errorf("rule %q on path %q: %v, want %v", c.rule, c.path, got, c.want)
		}
	}
}

// TestSeats: the limits of the default objects at 600 seats are those that
// Kubernetes' documentation and a running upstream server show.
func TestSeats(t *testing.T) {
	d := New(Config{Seats: 600})
	got := map[string][3]int{}
	for _, l := range d.config.Load().levels {
		got[l.name] = [3]int{l.nominal, l.lower, l.limit}
	}
	for name, want := range map[string][2]int{"system": {74, 50}, "node-high": {98, 73}, "leader-election": {25, 25}, "workload-high": {98, 49}, "workload-low": {245, 24}, "global-default": {49, 24}, "catch-all": {13, 13}, "exempt": {0, 0}} {
		if g := got[name]; g[0] != want[0] || g[1] != want[1] {
			t.Errorf("level %s: nominal %d, lower %d, want %d", name, g[0], g[1], want)
		}
	}
}

func TestShare(t *testing.T) {
	seats, p := share(100, []claim{{10, 200, 40}, {5, 200, 40}, {20, 30, 120}})
	if got := seats[0] + seats[1] + seats[2]; got < 99.999 || got > 100.001 {
		t.Fatalf("shares %v add up to %v, want 100", seats, got)
	}
	if seats[2] != 30 || seats[0] < 34.999 || seats[0] != seats[1] || p < 0.874 || p > 0.876 {
		t.Fatalf("shares %v with p %v, want 35 35 30 with 0.875", seats, p)
	}
	if seats, _ := share(5, []claim{{10, 20, 10}, {3, 20, 10}}); seats[0] != 10 || seats[1] != 3 {
		t.Fatalf("shares %v below the lower bounds, want the lower bounds", seats)
	}
}

// level of four queues for direct tests of the decision.
func testLevel(limit int) *level {
	l := &level{name: "test", at: time.Unix(0, 0), limit: limit}
	l.reshape(Shape{Queues: 4, HandSize: 1, QueueLength: 3})
	return l
}

// TestTurns: two flows that wait in different queues take turns, whatever the
// one has put there before.
func TestTurns(t *testing.T) {
	l := testLevel(1)
	now := time.Unix(0, 0)
	send := func(hash uint64) *ticket {
		e := &ticket{seats: 1}
		if _, reason := l.arrive(now, hash, e); reason != "" {
			t.Fatalf("flow %d was rejected: %s", hash, reason)
		}
		return e
	}
	first := send(0)
	noisy := []*ticket{send(0), send(0), send(0)}
	if _, reason := l.arrive(now, 0, &ticket{seats: 1}); reason != ReasonFull {
		t.Fatalf("fourth in a queue of three: %q, want %q", reason, ReasonFull)
	}
	quiet := []*ticket{send(1), send(1)}
	var order []string
	running := first
	for range 5 {
		now = now.Add(10 * time.Millisecond)
		l.finish(now, running)
		running = nil
		for i, e := range noisy {
			if e.running && !slices.Contains(order, fmt.Sprint("noisy", i)) {
				running, order = e, append(order, fmt.Sprint("noisy", i))
			}
		}
		for i, e := range quiet {
			if e.running && !slices.Contains(order, fmt.Sprint("quiet", i)) {
				running, order = e, append(order, fmt.Sprint("quiet", i))
			}
		}
	}
	if got, want := strings.Join(order, " "), "quiet0 noisy0 quiet1 noisy1 noisy2"; got != want {
		t.Fatalf("order %s, want %s", got, want)
	}
	l.finish(now, running)
	if l.busy != 0 || l.seats != 0 || l.waiting != 0 || l.working != nil {
		t.Fatalf("after the last request: busy %d, seats %d, waiting %d", l.busy, l.seats, l.waiting)
	}
}

// TestWide: a wide request is not starved by narrow ones that would fit.
func TestWide(t *testing.T) {
	l := testLevel(4)
	now := time.Unix(0, 0)
	narrow := make([]*ticket, 4)
	for i := range narrow {
		narrow[i] = &ticket{seats: 1}
		l.arrive(now, 0, narrow[i])
	}
	wide, late := &ticket{seats: 4}, &ticket{seats: 1}
	l.arrive(now, 1, wide)
	l.finish(now.Add(20*time.Millisecond), narrow[0])
	l.arrive(now.Add(20*time.Millisecond), 0, late)
	if late.running {
		t.Fatal("a narrow request of a served flow went past the waiting wide one")
	}
	for _, e := range narrow[1:] {
		l.finish(now.Add(22*time.Millisecond), e)
	}
	if !wide.running {
		t.Fatal("the wide request does not run on free seats")
	}
	huge := &ticket{seats: 50}
	l.finish(now.Add(23*time.Millisecond), wide)
	if !late.running {
		t.Fatal("the narrow request does not run after the wide one")
	}
	l.finish(now.Add(24*time.Millisecond), late)
	if l.arrive(now.Add(24*time.Millisecond), 1, huge); !huge.running {
		t.Fatal("a request wider than its level never runs")
	}
}

// TestDealing: hands have different queues, and every queue is used.
func TestDealing(t *testing.T) {
	l := &level{limit: 1}
	l.reshape(Shape{Queues: 64, HandSize: 8, QueueLength: 50})
	used := map[int]bool{}
	for i := range 2000 {
		used[l.deal(mix(fnv(7, fmt.Sprint("user", i)))).index] = true
	}
	// With equal work the first of a hand is taken: all queues come up.
	if len(used) != 64 {
		t.Fatalf("%d of 64 queues are used", len(used))
	}
	// A hand of all queues finds the only empty one.
	l.reshape(Shape{Queues: 8, HandSize: 8, QueueLength: 50})
	for i, q := range l.queues {
		if q.seats = 1; i == 5 {
			q.seats = 0
		}
	}
	for i := range 100 {
		if got := l.deal(mix(uint64(i))).index; got != 5 {
			t.Fatalf("hash %d: queue %d, want the empty one", i, got)
		}
	}
}

// TestDeterministic: the same calls give the same dispatches, and random calls
// keep the books: nothing is lost and no seat is given twice.
func TestDeterministic(t *testing.T) {
	play := func(seed uint64) (log []string) {
		r := rand.New(rand.NewPCG(seed, 1))
		l := &level{name: "p", at: time.Unix(0, 0), limit: 5}
		l.reshape(Shape{Queues: 16, HandSize: 3, QueueLength: 10})
		now := time.Unix(0, 0)
		live := []*ticket{}
		for i := range 2000 {
			now = now.Add(time.Duration(r.IntN(3000)) * time.Microsecond)
			switch k := r.IntN(10); {
			case k < 5:
				e := &ticket{seats: 1 + r.IntN(3)}
				if _, reason := l.arrive(now, mix(uint64(r.IntN(20))), e); reason == "" {
					live = append(live, e)
				} else {
					log = append(log, fmt.Sprint(i, reason))
				}
			case k == 9 && r.IntN(20) == 0:
				l.relimit(now, 1+r.IntN(8))
			case len(live) > 0:
				n := r.IntN(len(live))
				e := live[n]
				if e.running {
					l.finish(now, e)
				} else if r.IntN(4) == 0 {
					l.leave(now, e, ReasonTimeout)
				} else {
					continue
				}
				live = slices.Delete(live, n, n+1)
			}
			seats, waiting, busy := 0, 0, map[*queue]bool{}
			for _, e := range live {
				if e.running {
					seats += e.seats
				} else {
					waiting++
				}
				busy[e.q] = true
			}
			if seats != l.seats || waiting != l.waiting || len(busy) != l.busy {
				t.Fatalf("seed %d step %d: books say %d seats, %d waiting, %d busy; true are %d, %d, %d", seed, i, l.seats, l.waiting, l.busy, seats, waiting, len(busy))
			}
			log = append(log, fmt.Sprint(i, seats, waiting))
		}
		return log
	}
	for seed := range uint64(20) {
		if !reflect.DeepEqual(play(seed), play(seed)) {
			t.Fatalf("seed %d: two plays differ", seed)
		}
	}
}

// TestBorrow: a level that needs more gets what idle ones lend, and they get it
// back when they need it.
func TestBorrow(t *testing.T) {
	clock := &hand{now: time.Unix(1000, 0)}
	d := New(Config{Seats: 600, Clock: clock})
	level := func(name string) *level {
		for _, l := range d.config.Load().levels {
			if l.name == name {
				return l
			}
		}
		t.Fatalf("no level %s", name)
		return nil
	}
	before := level("global-default").limit
	class := d.Classify(get(user("jane"), "list", "", "pods", "shop"))
	var open []Ticket
	for range before {
		e, err := d.Begin(context.Background(), class, get(user("jane"), "list", "", "pods", "shop"), 1, "regular")
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, e)
	}
	clock.now = clock.now.Add(period)
	d.Adjust(clock.now)
	if got := level("global-default").limit; got <= before {
		t.Fatalf("busy level has %d seats, want more than the %d before", got, before)
	}
	if l := level("workload-low"); l.limit < l.lower {
		t.Fatalf("idle level has %d seats, fewer than its %d", l.limit, l.lower)
	}
	sum := 0
	for _, l := range d.config.Load().levels {
		sum += l.limit
	}
	if n := d.config.Load().nominal; sum < n-4 || sum > n+4 {
		t.Fatalf("all levels together have %d seats, want %d", sum, n)
	}
	for i := range open {
		open[i].End()
	}
}

// hand is a clock that stands.
type hand struct{ now time.Time }

func (h *hand) Now() time.Time                     { return h.now }
func (h *hand) NewTimer(d time.Duration) env.Timer { return env.SystemClock().NewTimer(d) }

func TestRejections(t *testing.T) {
	d := New(Config{Seats: 600, WaitLimit: 5 * time.Millisecond})
	one := int32(1)
	none := int32(0)
	level := func(name string, shares *int32, queuing *flowcontrolv1.QueuingConfiguration) *flowcontrolv1.PriorityLevelConfiguration {
		r := flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeReject}
		if queuing != nil {
			r = flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeQueue, Queuing: queuing}
		}
		return &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "u-" + "1"},
			Spec: flowcontrolv1.PriorityLevelConfigurationSpec{Type: flowcontrolv1.PriorityLevelEnablementLimited,
				Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{NominalConcurrencyShares: shares, LimitResponse: r, BorrowingLimitPercent: &none}}}
	}
	schema := func(name, level string, precedence int32) *flowcontrolv1.FlowSchema {
		return &flowcontrolv1.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: flowcontrolv1.FlowSchemaSpec{MatchingPrecedence: precedence,
			PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: level},
			Rules: []flowcontrolv1.PolicyRulesWithSubjects{{Subjects: []flowcontrolv1.Subject{{Kind: flowcontrolv1.SubjectKindUser, User: &flowcontrolv1.UserSubject{Name: name}}},
				ResourceRules: []flowcontrolv1.ResourcePolicyRule{{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}, ClusterScope: true, Namespaces: []string{"*"}}}}}}}
	}
	d.Configure([]*flowcontrolv1.FlowSchema{schema("now", "jail", 5), schema("queue", "narrow", 6), schema("lost", "nowhere", 1)},
		[]*flowcontrolv1.PriorityLevelConfiguration{level("jail", &none, nil), level("narrow", &none, &flowcontrolv1.QueuingConfiguration{Queues: 1, HandSize: 1, QueueLengthLimit: 1}), level("big", &one, nil)})
	begin := func(ctx context.Context, name string) error {
		a := get(user(name), "list", "", "pods", "")
		e, err := d.Begin(ctx, d.Classify(a), a, 1, "regular")
		e.End()
		return err
	}
	reason := func(err error) string {
		var r *Rejected
		if !errors.As(err, &r) || r.RetryAfter < 1 {
			t.Fatalf("error %v, want a rejection with its Retry-After", err)
		}
		return r.Reason
	}
	if got := reason(begin(context.Background(), "now")); got != ReasonConcurrency {
		t.Errorf("level without queues and seats: %s, want %s", got, ReasonConcurrency)
	}
	if got := reason(begin(context.Background(), "queue")); got != ReasonTimeout {
		t.Errorf("level without seats: %s, want %s", got, ReasonTimeout)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if got := reason(begin(ctx, "queue")); got != ReasonCancelled && got != ReasonTimeout {
		t.Errorf("a request whose client went: %s, want %s", got, ReasonCancelled)
	}
	if got := d.Classify(get(user("lost"), "list", "", "pods", "")).Schema; got != "catch-all" {
		t.Errorf("a schema without level matched: %s", got)
	}
	for name, text := range map[string]string{"dump_priority_levels": "PriorityLevelName,", "dump_queues": "narrow,", "dump_requests": "FlowSchemaName,"} {
		var b strings.Builder
		if ok, err := d.Dump(&b, name, true); !ok || err != nil || !strings.Contains(b.String(), text) {
			t.Errorf("%s: %v %v %q, want %q in it", name, ok, err, b.String(), text)
		}
	}
}

// TestReconfigure: requests in work and waiting survive any change of the
// configuration, also of the number of queues and the end of their level.
func TestReconfigure(t *testing.T) {
	d := New(Config{Seats: 10, WaitLimit: 10 * time.Second})
	schemas, levels := Wanted()
	var turn atomic.Pointer[chan struct{}] // closed by the next reconfiguration
	first := make(chan struct{})
	turn.Store(&first)
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			a := get(user(fmt.Sprint("u", i)), "list", "", "pods", "x")
			e, err := d.Begin(context.Background(), d.Classify(a), a, 1, "regular")
			var r *Rejected
			if err != nil && !errors.As(err, &r) {
				t.Error(err)
			}
			<-*turn.Load() // each lives through one reconfiguration at least
			e.End()
		})
	}
	ended := make(chan struct{})
	go func() { all.Wait(); close(ended) }()
	for i, over := 0, false; i < 20 || !over; i++ {
		ls := slices.Clone(levels)
		for j, l := range ls {
			if q := l.Spec.Limited; q != nil && q.LimitResponse.Queuing != nil {
				l = l.DeepCopy()
				l.Spec.Limited.LimitResponse.Queuing.Queues = int32(1 + i%3*40)
				l.Spec.Limited.LimitResponse.Queuing.HandSize = 1
				ls[j] = l
			}
		}
		if i%5 == 4 {
			ls = ls[:2]
		}
		d.Configure(schemas, ls)
		next := make(chan struct{})
		close(*turn.Swap(&next))
		select {
		case <-ended:
			over = true
		default:
		}
	}
	d.Configure(schemas, levels)
	for _, l := range d.config.Load().levels {
		if l.waiting+l.executing+l.seats+l.waitingSeats != 0 {
			t.Errorf("level %s: %d waiting, %d executing, %d seats after the end", l.name, l.waiting, l.executing, l.seats)
		}
	}
}

func TestPlan(t *testing.T) {
	table := kind.NewTable(kind.FlowSchema, kind.PriorityLevelConfiguration)
	now := time.Unix(1000, 0)
	snap := view.Build(1, table)
	writes := Plan(snap, now)
	if len(writes) != 8+11 {
		t.Fatalf("%d writes in an empty cluster, want 19: %v", len(writes), writes)
	}
	var objects []kind.Object
	for _, w := range writes {
		o := w.Obj.DeepCopyObject().(kind.Object)
		o.SetGeneration(1)
		o.GetObjectKind().SetGroupVersionKind(w.Kind.GVK())
		objects = append(objects, o)
	}
	for _, w := range Plan(view.Build(2, table, objects...), now) {
		if w.Verb != "status" && w.Kind != kind.FlowSchema {
			t.Errorf("after all was created: %v", w)
		}
	}
	// What somebody has changed stays; the mandatory object comes back; what nobody
	// suggests any more goes.
	for i, o := range objects {
		switch o := o.(type) {
		case *flowcontrolv1.FlowSchema:
			switch o.Name {
			case "global-default":
				o.Spec.MatchingPrecedence = 9000
				o.Annotations[auto] = "false"
			case "catch-all":
				o.Spec.MatchingPrecedence = 9000
				o.Annotations[auto] = "false"
			case "service-accounts":
				o.Spec.MatchingPrecedence, o.Annotations, o.Generation = 9001, nil, 2
			case "probes":
				o.Name = "old-suggestion"
			case "kube-scheduler":
				o.Spec.PriorityLevelConfiguration.Name = "gone"
				o.Annotations[auto] = "false"
			}
			objects[i] = o
		}
	}
	var got []string
	for _, w := range Plan(view.Build(3, table, objects...), now) {
		if w.Verb == "status" && w.Obj.(*flowcontrolv1.FlowSchema).Status.Conditions[0].Status == flowcontrolv1.ConditionFalse {
			continue
		}
		got = append(got, w.String())
	}
	slices.Sort(got)
	want := []string{"create flowschemas.flowcontrol.apiserver.k8s.io/probes", "delete flowschemas.flowcontrol.apiserver.k8s.io/old-suggestion",
		"status flowschemas.flowcontrol.apiserver.k8s.io/kube-scheduler", "update flowschemas.flowcontrol.apiserver.k8s.io/catch-all", "update flowschemas.flowcontrol.apiserver.k8s.io/service-accounts"}
	if !slices.Equal(got, want) {
		t.Fatalf("writes\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestIsolation: a client that keeps 200 requests in the air does not harm
// another's p99; without fairness (one queue for all) it does. Time is simulated:
// the server works on 20 requests of 5 ms at a time.
func TestIsolation(t *testing.T) {
	fairly, together := isolation(Shape{Queues: 64, HandSize: 8, QueueLength: 50}), isolation(Shape{Queues: 1, HandSize: 1, QueueLength: 1000})
	t.Logf("p99 of the quiet client: %v with fairness, %v without", fairly, together)
	if fairly > 15*time.Millisecond {
		t.Errorf("with fairness the quiet client's p99 is %v, want at most 15ms", fairly)
	}
	if together < 40*time.Millisecond {
		t.Errorf("without fairness the quiet client's p99 is %v: the test shows nothing", together)
	}
}

func isolation(shape Shape) time.Duration {
	const work = 5 * time.Millisecond
	l := &level{name: "sim", at: time.Unix(0, 0), limit: 20}
	l.reshape(shape)
	now := time.Unix(0, 0)
	type job struct {
		*ticket
		quiet bool
	}
	var jobs []*job
	var waits []time.Duration
	noisy, quiet := mix(fnv(1, "noisy")), mix(fnv(1, "quiet"))
	for step := range 5000 {
		now = now.Add(100 * time.Microsecond)
		for i := 0; i < len(jobs); i++ {
			if j := jobs[i]; j.running && now.Sub(j.started) >= work {
				l.finish(now, j.ticket)
				if j.quiet {
					waits = append(waits, now.Sub(j.arrived))
				}
				jobs = slices.Delete(jobs, i, i+1)
				i--
			}
		}
		flood := 0
		for _, j := range jobs {
			if !j.quiet {
				flood++
			}
		}
		for ; flood < 200; flood++ {
			j := &job{ticket: &ticket{seats: 1}}
			if _, reason := l.arrive(now, noisy, j.ticket); reason == "" {
				jobs = append(jobs, j)
			}
		}
		if step%100 == 0 {
			j := &job{ticket: &ticket{seats: 1}, quiet: true}
			if _, reason := l.arrive(now, quiet, j.ticket); reason == "" {
				jobs = append(jobs, j)
			} else {
				waits = append(waits, time.Second)
			}
		}
	}
	slices.Sort(waits)
	return waits[len(waits)*99/100]
}

// BenchmarkUncontended: classification, begin and end of one request.
func BenchmarkUncontended(b *testing.B) {
	d := New(Config{})
	a := get(user("system:serviceaccount:shop:app", auth.ServiceAccounts, auth.ServiceAccounts+":shop"), "create", "", "configmaps", "shop")
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		c := d.Classify(a)
		t, err := d.Begin(ctx, c, a, 1, "regular")
		if err != nil {
			b.Fatal(err)
		}
		t.End()
	}
}
