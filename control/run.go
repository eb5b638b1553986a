package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/act"
	"proa.dev/client"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/view"
)

// Config of the runtime.
type Config struct {
	Parts []Part
	View  *view.View
	// Client for a part's identity.
	Client func(part string) client.Client
	Clock  env.Clock
	// Record writes events about objects; it must not block.
	Record func(act.Event)
	Log    *slog.Logger
	// Workers plan and act at once for different objects; default 4.
	Workers int
	// Meter is told how long keys wait and are worked on; it must not block. Optional.
	Meter Meter
}

// Runtime plans and acts. New, then Run.
type Runtime struct {
	cfg  Config
	core *Core
	mu   sync.Mutex
	cond chan struct{}        // a token: something to do
	told map[string]time.Time // when it was logged that a part lacks a right
}

// New checks the configuration; it starts nothing.
func New(cfg Config) *Runtime {
	if cfg.Workers <= 0 {
		cfg.Workers = 4
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	r := &Runtime{cfg: cfg, core: NewCore(cfg.Parts), cond: make(chan struct{}, 1), told: map[string]time.Time{}}
	r.core.Meter = cfg.Meter
	return r
}

// Counts of the parts' keys, in the order of Config.Parts.
func (r *Runtime) Counts() []Count {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.core.Counts(r.cfg.Clock.Now())
}

// Run plans until ctx ends, and returns when every worker has.
func (r *Runtime) Run(ctx context.Context) error {
	r.cfg.Parts = Begun(r.cfg.Parts, r.cfg.Clock.Now())
	var wg sync.WaitGroup
	jobs := make(chan Key)
	for range r.cfg.Workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for k := range jobs {
				r.work(ctx, k)
			}
		}()
	}
	r.dispatch(ctx, jobs)
	close(jobs)
	wg.Wait()
	return ctx.Err()
}

// dispatch follows the view, wakes keys and hands them to workers.
func (r *Runtime) dispatch(ctx context.Context, jobs chan<- Key) {
	watched := r.core.Kinds()
	var table *kind.Table
	cursor := map[*kind.Kind]int64{}
	start := func() {
		s := r.cfg.View.Snapshot()
		r.mu.Lock()
		r.core.Tick(r.cfg.Clock.Now())
		r.core.Start(s)
		r.mu.Unlock()
		table = s.Table()
		for _, k := range watched {
			cursor[k] = s.Revision()
		}
	}
	start()
	timer := r.cfg.Clock.NewTimer(time.Hour)
	defer func() { timer.Stop() }()
	var armed time.Time
	for {
		_, moved := r.cfg.View.Moved()
		if s := r.cfg.View.Snapshot(); s.Table() != table {
			// What a new kind holds already was never reported as a change.
			for _, k := range s.Table().Came(table) {
				r.mu.Lock()
				r.core.StartKind(s, k)
				r.mu.Unlock()
			}
			table = s.Table()
		}
		for _, k := range watched {
			changes, progress, _, err := r.cfg.View.Changes(k, cursor[k])
			if errors.Is(err, view.ErrGone) {
				start()
				break
			}
			if len(changes) > 0 {
				s := r.cfg.View.Snapshot()
				r.mu.Lock()
				r.core.Tick(r.cfg.Clock.Now())
				for _, c := range changes {
					r.core.Changed(s, c)
				}
				r.mu.Unlock()
			}
			cursor[k] = progress
		}
		for {
			now := r.cfg.Clock.Now()
			r.mu.Lock()
			k, ok := r.core.Next(r.cfg.View.Snapshot().Revision(), now)
			r.mu.Unlock()
			if !ok {
				break
			}
			select {
			case jobs <- k:
			case <-ctx.Done():
				return
			}
		}
		r.mu.Lock()
		at := r.core.NextTimer()
		r.mu.Unlock()
		var due <-chan time.Time
		if !at.IsZero() {
			if !at.Equal(armed) {
				timer.Stop()
				timer = r.cfg.Clock.NewTimer(max(at.Sub(r.cfg.Clock.Now()), 0))
				armed = at
			}
			due = timer.C()
		}
		select {
		case <-moved:
		case <-r.cond:
		case <-due:
			armed = time.Time{}
		case <-ctx.Done():
			return
		}
	}
}

func (r *Runtime) work(ctx context.Context, k Key) {
	p := r.cfg.Parts[k.Part]
	s := r.cfg.View.Snapshot()
	now := r.cfg.Clock.Now()
	actions, wake := p.Plan(s, k.Ref, now)
	c := r.cfg.Client(p.Name)
	fence, err := Carry(ctx, c, p, actions, r.cfg.Record)
	conflict := apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)
	if f := (*Failure)(nil); p.Failed != nil && !conflict && ctx.Err() == nil && errors.As(err, &f) {
		more, also := Carry(ctx, c, p, p.Failed(s, k.Ref, f.Action, f.Err, now), r.cfg.Record)
		fence = max(fence, more)
		if also != nil && !apierrors.IsConflict(also) {
			err = errors.Join(err, also)
		}
	}
	switch {
	case err == nil || ctx.Err() != nil:
	case denied(err):
		r.tellDenied(ctx, p.Name, k.Ref, err)
	default:
		level := slog.LevelWarn
		if conflict || apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			level = slog.LevelDebug
		}
		r.cfg.Log.Log(ctx, level, "plan again", "part", p.Name, "object", k.Ref.String(), "error", err)
	}
	r.mu.Lock()
	r.core.Done(k, r.cfg.Clock.Now(), r.cfg.View.Snapshot().Revision(), fence, wake, err, conflict)
	r.mu.Unlock()
	select {
	case r.cond <- struct{}{}:
	default:
	}
}

// denied says whether an action was refused by the authorizers, and not by
// admission, which answers Forbidden too (a quota, a webhook).
func denied(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), ` is forbidden: User "`)
}

// deniedPause lies between two lines about what a part may not do: each of its
// objects meets it again and again.
const deniedPause = time.Minute

func (r *Runtime) tellDenied(ctx context.Context, part string, ref view.Ref, err error) {
	now := r.cfg.Clock.Now()
	r.mu.Lock()
	last, before := r.told[part]
	tell := !before || now.Sub(last) >= deniedPause
	if tell {
		r.told[part] = now
	}
	r.mu.Unlock()
	level := slog.LevelDebug
	if tell {
		level = slog.LevelError
	}
	r.cfg.Log.Log(ctx, level, "a controller may not do its work; give its role the rule that it misses (a restart completes the default roles)", "part", part, "object", ref.String(), "error", err)
}

// parallelActs bounds how many creates, deletes or touches of one plan are under way at
// once, so that one group commit carries them.
const parallelActs = 16

// Carry does the actions of one plan in order; neighbouring creates,
// deletes and touches go side by side. It stops at the first error and returns
// the newest revision written.
func Carry(ctx context.Context, c client.Client, p Part, actions act.List, record func(act.Event)) (fence int64, err error) {
	for i := 0; i < len(actions); {
		j := i + 1
		for j < len(actions) && j-i < parallelActs && sameVerb(actions[i], actions[j]) {
			j++
		}
		if j == i+1 {
			rev, err := carry(ctx, c, p, actions[i], record)
			fence = max(fence, rev)
			if err != nil {
				return fence, err
			}
			i = j
			continue
		}
		revs, errs := make([]int64, j-i), make([]error, j-i)
		var wg sync.WaitGroup
		for n, a := range actions[i:j] {
			wg.Add(1)
			go func() {
				defer wg.Done()
				revs[n], errs[n] = carry(ctx, c, p, a, record)
			}()
		}
		wg.Wait()
		for n := range revs {
			fence = max(fence, revs[n])
			if err == nil {
				err = errs[n]
			}
		}
		if err != nil {
			return fence, err
		}
		i = j
	}
	return fence, nil
}

// Failure is an action that could not be carried out.
type Failure struct {
	Action act.Action
	Err    error
}

func (f *Failure) Error() string { return f.Action.String() + ": " + f.Err.Error() }

// Unwrap gives the API's answer.
func (f *Failure) Unwrap() error { return f.Err }

func sameVerb(a, b act.Action) bool {
	switch a.(type) {
	case act.Create:
		_, ok := b.(act.Create)
		return ok
	case act.Delete:
		_, ok := b.(act.Delete)
		return ok
	case act.Touch:
		_, ok := b.(act.Touch)
		return ok
	}
	return false
}

func carry(ctx context.Context, c client.Client, p Part, a act.Action, record func(act.Event)) (int64, error) {
	if err := p.Allows(a); err != nil {
		return 0, &Failure{a, err}
	}
	o, err := Do(ctx, c, a, record)
	if err != nil {
		return 0, &Failure{a, err}
	}
	if o == nil {
		return 0, nil
	}
	rev, _ := strconv.ParseInt(o.GetResourceVersion(), 10, 64)
	return rev, nil
}

// Do carries out one action. A delete of what is gone already is done.
func Do(ctx context.Context, c client.Client, a act.Action, record func(act.Event)) (kind.Object, error) {
	switch a := a.(type) {
	case act.Create:
		return c.Create(ctx, a.Kind, a.Object, metav1.CreateOptions{})
	case act.Update:
		return c.Update(ctx, a.Kind, a.Object, a.Sub, metav1.UpdateOptions{})
	case act.Patch:
		return c.Patch(ctx, a.Target.Kind, a.Target.Namespace, a.Target.Name, types.MergePatchType, a.Merge, a.Sub, metav1.PatchOptions{})
	case act.Touch:
		merge := fmt.Appendf(nil, `{"metadata":{"uid":%q}}`, a.UID)
		_, err := c.Patch(ctx, a.Target.Kind, a.Target.Namespace, a.Target.Name, types.MergePatchType, merge, "", metav1.PatchOptions{})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			// Gone, or written by somebody else meanwhile.
			err = nil
		}
		return nil, err
	case act.Delete:
		o := metav1.DeleteOptions{GracePeriodSeconds: a.GraceSeconds, Preconditions: preconditions(a.UID, a.ResourceVersion)}
		if a.Propagation != "" {
			o.PropagationPolicy = &a.Propagation
		}
		err := c.Delete(ctx, a.Target.Kind, a.Target.Namespace, a.Target.Name, o)
		if apierrors.IsNotFound(err) {
			err = nil
		}
		return nil, err
	case act.Bind:
		_, err := c.Post(ctx, a.Target.Kind, a.Target.Namespace, a.Target.Name, "binding", &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Namespace: a.Target.Namespace, Name: a.Target.Name, UID: a.UID},
			Target:     corev1.ObjectReference{Kind: "Node", Name: a.Node},
		})
		return nil, err
	case act.Evict:
		_, err := c.Post(ctx, a.Target.Kind, a.Target.Namespace, a.Target.Name, "eviction", &policyv1.Eviction{
			ObjectMeta:    metav1.ObjectMeta{Namespace: a.Target.Namespace, Name: a.Target.Name},
			DeleteOptions: &metav1.DeleteOptions{Preconditions: preconditions(a.UID, "")},
		})
		return nil, err
	case act.Event:
		if record != nil {
			record(a)
		}
		return nil, nil
	}
	return nil, fmt.Errorf("carry out %T: no such action", a)
}

func preconditions(uid types.UID, rv string) *metav1.Preconditions {
	var p metav1.Preconditions
	if uid != "" {
		p.UID = &uid
	}
	if rv != "" {
		p.ResourceVersion = &rv
	}
	return &p
}

// Allows says whether the part has declared this write; the error names the rule.
func (p Part) Allows(a act.Action) error {
	verb, sub := "", ""
	switch a := a.(type) {
	case act.Event:
		return nil
	case act.Create:
		verb = "create"
	case act.Update:
		verb, sub = "update", a.Sub
	case act.Patch:
		verb, sub = "patch", a.Sub
	case act.Touch:
		verb = "touch"
	case act.Delete:
		verb = "delete"
	case act.Bind:
		verb = "bind"
	case act.Evict:
		verb = "evict"
	}
	k := a.Ref().Kind
	for _, w := range p.Writes {
		if (w.Kind == nil || w.Kind.Root() == k.Root()) && w.Sub == sub {
			for _, v := range w.Verbs {
				if v == verb {
					return nil
				}
			}
		}
	}
	return fmt.Errorf("part %q has not declared %s on %s (sub %q); add it to the part's Writes if it is to own that field", p.Name, verb, k, sub)
}
