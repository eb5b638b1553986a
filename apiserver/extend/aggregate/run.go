package aggregate

import (
	"context"
	"errors"
	"slices"
	"sort"
	"sync"
	"time"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"proa.dev/apiserver/discovery"
	"proa.dev/client"
	"proa.dev/kind"
	"proa.dev/view"
)

// known is what the loop knows of one APIService's server.
type known struct {
	svc       *apiregistrationv1.APIService
	resources []apidiscovery.APIResourceDiscovery
	current   bool
	v2, v3    *Document
	etag      [2]string // of the v2 document, and of the index of v3
	asked     time.Time // for documents

	wake chan struct{}
	stop context.CancelFunc
}

func (k *known) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run checks the servers behind APIServices until ctx ends; cl writes what it finds
// into their status. One goroutine for each APIService, all have ended when Run
// returns.
func (a *Aggregator) Run(ctx context.Context, cl client.Client) error {
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		for name, w := range a.ways {
			w.close()
			delete(a.ways, name)
		}
	}()
	all.Go(func() { a.emptying(ctx) })
	all.Go(func() { a.asking(ctx) })
	watched := []*kind.Kind{kind.APIService, kind.Service, kind.EndpointSlice}
	cursor := make([]int64, len(watched))
	fresh := true
	for ctx.Err() == nil {
		if fresh {
			s := a.cfg.View.Snapshot()
			for i := range cursor {
				cursor[i] = s.Revision()
			}
			fresh = false
			a.gather(ctx, s, &all, cl, true)
		}
		more := make([]<-chan struct{}, len(watched))
		moved := false
		for i, k := range watched {
			if i > 0 && a.count() == 0 {
				// Nobody waits for a Service.
				cursor[i] = a.cfg.View.Snapshot().Revision()
				continue
			}
			changes, progress, next, err := a.cfg.View.Changes(k, cursor[i])
			if errors.Is(err, view.ErrGone) {
				fresh = true
				break
			}
			cursor[i], more[i] = progress, next
			if len(changes) == 0 {
				continue
			}
			if i == 0 {
				moved = true
				continue
			}
			for _, c := range changes {
				a.concern(k, c.Old)
				a.concern(k, c.New)
			}
		}
		if fresh {
			continue
		}
		if moved {
			had := a.count()
			a.gather(ctx, a.cfg.View.Snapshot(), &all, cl, false)
			if (had == 0) != (a.count() == 0) {
				continue
			}
		}
		select {
		case <-more[0]:
		case <-more[1]:
		case <-more[2]:
		case <-ctx.Done():
		}
	}
	return nil
}

func (a *Aggregator) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.known)
}

// concern wakes the checks of who is behind a Service or a slice that has changed.
func (a *Aggregator) concern(k *kind.Kind, o kind.Object) {
	if o == nil {
		return
	}
	name := o.GetName()
	if k == kind.EndpointSlice {
		name = o.GetLabels()[discoveryv1.LabelServiceName]
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.known {
		if ref := n.svc.Spec.Service; ref.Namespace == o.GetNamespace() && ref.Name == name {
			n.poke()
		}
	}
}

// gather compares what is known with the APIServices of a snapshot: new ones get a
// goroutine, changed ones are looked at again, others are forgotten.
func (a *Aggregator) gather(ctx context.Context, s view.Snapshot, all *sync.WaitGroup, cl client.Client, everything bool) {
	seen := map[string]bool{}
	for svc := range view.List[*apiregistrationv1.APIService](s, kind.APIService, "") {
		if Find(s, svc.Spec.Group, svc.Spec.Version) == nil {
			continue
		}
		seen[svc.Name] = true
		a.mu.Lock()
		n := a.known[svc.Name]
		if n != nil && n.svc.UID != svc.UID {
			n.stop()
			n = nil
		}
		if n == nil {
			n = &known{svc: svc, wake: make(chan struct{}, 1)}
			var sub context.Context
			sub, n.stop = context.WithCancel(ctx)
			a.known[svc.Name] = n
			all.Go(func() { a.keep(sub, n, cl) })
		} else {
			// Not for the status: a message may differ each time.
			isSame := apiequality.Semantic.DeepEqual(n.svc.Spec, svc.Spec)
			if n.svc = svc; !isSame || everything {
				n.poke()
			}
		}
		a.mu.Unlock()
	}
	a.mu.Lock()
	for name, n := range a.known {
		if !seen[name] {
			n.stop()
			delete(a.known, name)
			a.meter.unavailable.DeleteLabelValues(name)
		}
	}
	for name, w := range a.ways {
		if !seen[name] {
			w.close()
			delete(a.ways, name)
		}
	}
	a.mu.Unlock()
	a.publish()
}

// keep looks at one server until ctx ends.
func (a *Aggregator) keep(ctx context.Context, n *known, cl client.Client) {
	pause := RetryFirst
	var seen apiregistrationv1.APIServiceSpec
	for {
		a.mu.Lock()
		svc := n.svc
		a.mu.Unlock()
		if !apiequality.Semantic.DeepEqual(seen, svc.Spec) {
			seen, pause = svc.Spec, RetryFirst
			n.asked = time.Time{}
		}
		got := a.look(ctx, svc)
		if ctx.Err() != nil {
			return
		}
		good := got.condition.Status == apiregistrationv1.ConditionTrue
		a.heard(n, svc, got)
		if err := a.write(ctx, cl, svc.Name, got.condition); err != nil && ctx.Err() == nil {
			a.cfg.Log.Warn("status of an APIService was not written", "apiservice", svc.Name, "error", err)
			good = false
		}
		wait := CheckEvery
		if good {
			pause = RetryFirst
			if now := a.cfg.Clock.Now(); now.Sub(n.asked) >= DocumentsEvery {
				n.asked = now
				a.documents(ctx, n, svc)
			}
		} else {
			wait = pause
			pause = min(2*pause, CheckEvery)
		}
		t := a.cfg.Clock.NewTimer(wait)
		select {
		case <-t.C():
		case <-n.wake:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// heard keeps what a look gave.
func (a *Aggregator) heard(n *known, svc *apiregistrationv1.APIService, got answer) {
	good := got.condition.Status == apiregistrationv1.ConditionTrue && got.resources != nil
	a.mu.Lock()
	if a.known[svc.Name] != n {
		a.mu.Unlock()
		return
	}
	gauge := 0.0
	if got.condition.Status != apiregistrationv1.ConditionTrue {
		gauge = 1
	}
	a.meter.unavailable.WithLabelValues(svc.Name).Set(gauge)
	n.current = good
	if good {
		n.resources = discovery.FromList(svc.Spec.Group, svc.Spec.Version, got.resources)
	}
	a.mu.Unlock()
	a.publish()
}

// publish makes a new state if it differs.
func (a *Aggregator) publish() {
	a.mu.Lock()
	defer a.mu.Unlock()
	next := &State{V3: map[string]*Document{}}
	var names []string
	for name := range a.known {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		n := a.known[name]
		spec := &n.svc.Spec
		next.Remotes = append(next.Remotes, discovery.Remote{Group: spec.Group, Version: spec.Version, GroupPriority: spec.GroupPriorityMinimum,
			VersionPriority: spec.VersionPriority, Resources: n.resources, IsCurrent: n.current})
		if n.v3 != nil {
			next.V3["apis/"+spec.Group+"/"+spec.Version] = n.v3
		}
		if n.v2 != nil {
			next.V2 = append(next.V2, n.v2)
		}
	}
	old := a.state.Load()
	sameV3 := len(old.V3) == len(next.V3)
	for k, d := range next.V3 {
		sameV3 = sameV3 && old.V3[k] == d
	}
	if sameV3 && slices.Equal(old.V2, next.V2) && apiequality.Semantic.DeepEqual(old.Remotes, next.Remotes) {
		return
	}
	a.state.Store(next)
}

// write puts a condition into the status; another server may be faster.
func (a *Aggregator) write(ctx context.Context, cl client.Client, name string, c apiregistrationv1.APIServiceCondition) error {
	for range 5 {
		svc := view.Get[*apiregistrationv1.APIService](a.cfg.View.Snapshot(), kind.APIService, "", name)
		if svc == nil || svc.Spec.Service == nil {
			return nil
		}
		next := withCondition(svc, c, a.cfg.Clock.Now())
		if next == nil {
			return nil
		}
		if _, err := cl.Update(ctx, kind.APIService, next, "status", metav1.UpdateOptions{}); err != nil {
			if apierrors.IsConflict(err) {
				continue
			}
			if apierrors.IsNotFound(err) {
				return nil
			}
			return err
		}
		if IsAvailable(svc) && c.Status != apiregistrationv1.ConditionTrue {
			a.meter.total.WithLabelValues(name, c.Reason).Inc()
		}
		if have := condition(svc); have == nil || have.Status != c.Status {
			a.cfg.Log.Info("availability of an APIService has changed", "apiservice", name, "available", string(c.Status), "reason", c.Reason, "message", c.Message)
		}
		return nil
	}
	return nil
}
