package fair

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/client"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/view"
)

// auto says by an annotation whether a suggested object's specification is kept
// as this server wants it (Kubernetes docs, "API Priority and Fairness",
// "Maintenance of the mandatory and suggested configuration objects").
const auto = flowcontrolv1.AutoUpdateAnnotationKey

// Write is one change of a configuration object. Print it with %v.
type Write struct {
	Kind *kind.Kind
	Verb string // create, update, delete, status
	Obj  kind.Object
}

func (w Write) String() string { return w.Verb + " " + w.Kind.String() + "/" + w.Obj.GetName() }

// Plan says what must be written so that the mandatory objects are as they must
// be, the suggested ones exist and follow this server where they may, those that an
// earlier server has suggested are gone, and every FlowSchema says whether its
// level exists.
func Plan(snap view.Snapshot, now time.Time) []Write {
	var out []Write
	emit := func(w Write) { out = append(out, w) }
	schemas, levels := Wanted()
	exists := map[string]bool{}
	for _, want := range levels {
		exists[want.Name] = true
	}
	maintain(snap, kind.PriorityLevelConfiguration, levels, emit,
		func(a, b *flowcontrolv1.PriorityLevelConfiguration) bool {
			return equality.Semantic.DeepEqual(a.Spec, b.Spec)
		},
		func(o, want *flowcontrolv1.PriorityLevelConfiguration) { want.Spec.DeepCopyInto(&o.Spec) },
		func(have *flowcontrolv1.PriorityLevelConfiguration) { exists[have.Name] = true })
	maintain(snap, kind.FlowSchema, schemas, emit,
		func(a, b *flowcontrolv1.FlowSchema) bool { return equality.Semantic.DeepEqual(a.Spec, b.Spec) },
		func(o, want *flowcontrolv1.FlowSchema) { want.Spec.DeepCopyInto(&o.Spec) },
		func(have *flowcontrolv1.FlowSchema) {
			if o := dangling(have, exists[have.Spec.PriorityLevelConfiguration.Name], now); o != nil {
				emit(Write{kind.FlowSchema, "status", o})
			}
		})
	return out
}

// maintain emits what makes the objects of one kind as wanted: first those that
// are missing are made, and those that follow this server get its specification
// (same compares, specify sets it); then those that are wanted no more go, and
// stays is called with every other one that is there.
func maintain[T kind.Object](snap view.Snapshot, k *kind.Kind, wanted []T, emit func(Write), same func(a, b T) bool, specify func(o, want T), stays func(T)) {
	names := map[string]bool{}
	for _, want := range wanted {
		name := want.GetName()
		names[name] = true
		have, ok := snap.Get(k, "", name).(T)
		if !ok {
			o := want.DeepCopyObject().(T)
			o.SetAnnotations(map[string]string{auto: "true"})
			emit(Write{k, "create", o})
			continue
		}
		follow := follows(have, name == flowcontrolv1.FlowSchemaNameExempt || name == flowcontrolv1.FlowSchemaNameCatchAll)
		if (!follow || same(have, want)) && have.GetAnnotations()[auto] == fmt.Sprint(follow) {
			continue
		}
		o := have.DeepCopyObject().(T)
		annotate(o, follow)
		if follow {
			specify(o, want)
		}
		emit(Write{k, "update", o})
	}
	for have := range view.List[T](snap, k, "") {
		if have.GetDeletionTimestamp() == nil && have.GetAnnotations()[auto] == "true" && !names[have.GetName()] {
			emit(Write{k, "delete", have})
			continue
		}
		stays(have)
	}
}

// follows: the annotation decides; without a clear one, an object whose
// specification nobody has changed since it was made does. Mandatory ones always
// do.
func follows(o metav1.Object, must bool) bool {
	if must {
		return true
	}
	switch o.GetAnnotations()[auto] {
	case "true":
		return true
	case "false":
		return false
	}
	return o.GetGeneration() == 1
}

func annotate(o metav1.Object, follow bool) {
	a := map[string]string{}
	for k, v := range o.GetAnnotations() {
		a[k] = v
	}
	a[auto] = fmt.Sprint(follow)
	o.SetAnnotations(a)
}

// dangling returns the schema with its new condition, nil when it is true already.
func dangling(s *flowcontrolv1.FlowSchema, found bool, now time.Time) *flowcontrolv1.FlowSchema {
	name := s.Spec.PriorityLevelConfiguration.Name
	want := flowcontrolv1.FlowSchemaCondition{Type: flowcontrolv1.FlowSchemaConditionDangling, Status: flowcontrolv1.ConditionFalse, Reason: "Found",
		Message: fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q and it exists", name)}
	if !found {
		want.Status, want.Reason = flowcontrolv1.ConditionTrue, "NotFound"
		want.Message = fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q but there is no such object", name)
	}
	i := slices.IndexFunc(s.Status.Conditions, func(c flowcontrolv1.FlowSchemaCondition) bool { return c.Type == want.Type })
	want.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
	if i >= 0 {
		have := s.Status.Conditions[i]
		if have.Status == want.Status && have.Reason == want.Reason && have.Message == want.Message {
			return nil
		}
		if have.Status == want.Status {
			want.LastTransitionTime = have.LastTransitionTime
		}
	}
	o := s.DeepCopy()
	if i >= 0 {
		o.Status.Conditions[i] = want
	} else {
		o.Status.Conditions = append(o.Status.Conditions, want)
	}
	return o
}

// Keeper feeds a Dispatcher from the view and carries Plan out. Every server of
// several runs one: they write the same.
type Keeper struct {
	Dispatcher *Dispatcher // nil: only the objects are kept
	View       *view.View
	Client     client.Client
	Clock      env.Clock
	Log        *slog.Logger
}

// Run works until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	tick := k.Clock.NewTimer(period)
	defer tick.Stop()
	var configured [2]int64
	first := true
	retry := time.Duration(0)
	for {
		_, schemas, levels := k.moved(configured)
		snap := k.View.Snapshot()
		if schemas || levels || first {
			first = false
			configured = [2]int64{snap.Revision(), snap.Revision()}
			k.configure(snap)
		}
		ok := true
		for _, w := range Plan(snap, k.Clock.Now()) {
			if err := k.write(ctx, w); err != nil && ctx.Err() == nil {
				ok = false
				k.Log.Warn("flow control object was not written", "write", w.String(), "error", err)
			}
		}
		if ok {
			retry = 0
		} else {
			retry = min(max(2*retry, time.Second), time.Minute)
		}
		if !k.pause(ctx, tick, configured, retry) {
			return nil
		}
	}
}

// moved says whether objects of the two kinds have changed since the revisions.
func (k *Keeper) moved(since [2]int64) (more [2]<-chan struct{}, schemas, levels bool) {
	changed := func(row *kind.Kind, from int64) (bool, <-chan struct{}) {
		c, _, more, err := k.View.Changes(row, from)
		return len(c) > 0 || errors.Is(err, view.ErrGone), more
	}
	schemas, more[0] = changed(kind.FlowSchema, since[0])
	levels, more[1] = changed(kind.PriorityLevelConfiguration, since[1])
	return more, schemas, levels
}

// pause waits for a change, for the retry, and shares seats anew in between.
func (k *Keeper) pause(ctx context.Context, tick env.Timer, since [2]int64, retry time.Duration) bool {
	var again <-chan time.Time
	if retry > 0 {
		t := k.Clock.NewTimer(retry)
		defer t.Stop()
		again = t.C()
	}
	for {
		more, schemas, levels := k.moved(since)
		if schemas || levels {
			return ctx.Err() == nil
		}
		select {
		case <-more[0]:
		case <-more[1]:
		case <-again:
			return true
		case <-tick.C():
			tick.Reset(period)
			if k.Dispatcher != nil {
				k.Dispatcher.Adjust(k.Clock.Now())
			}
		case <-ctx.Done():
			return false
		}
	}
}

func (k *Keeper) configure(snap view.Snapshot) {
	if k.Dispatcher == nil {
		return
	}
	var schemas []*flowcontrolv1.FlowSchema
	var levels []*flowcontrolv1.PriorityLevelConfiguration
	for s := range view.List[*flowcontrolv1.FlowSchema](snap, kind.FlowSchema, "") {
		schemas = append(schemas, s)
	}
	for l := range view.List[*flowcontrolv1.PriorityLevelConfiguration](snap, kind.PriorityLevelConfiguration, "") {
		levels = append(levels, l)
	}
	if len(schemas) == 0 && len(levels) == 0 {
		// A new cluster: what will be there in a moment.
		schemas, levels = Wanted()
	}
	k.Dispatcher.Configure(schemas, levels)
}

func (k *Keeper) write(ctx context.Context, w Write) error {
	var err error
	const manager = "api-priority-and-fairness-config-producer-v1"
	switch w.Verb {
	case "create":
		_, err = k.Client.Create(ctx, w.Kind, w.Obj, metav1.CreateOptions{FieldManager: manager})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
	case "update":
		_, err = k.Client.Update(ctx, w.Kind, w.Obj, "", metav1.UpdateOptions{FieldManager: manager})
	case "status":
		_, err = k.Client.Update(ctx, w.Kind, w.Obj, "status", metav1.UpdateOptions{FieldManager: "api-priority-and-fairness-config-consumer-v1"})
	case "delete":
		uid, rv := w.Obj.GetUID(), w.Obj.GetResourceVersion()
		err = k.Client.Delete(ctx, w.Kind, "", w.Obj.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &rv}})
	}
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // somebody was faster; the change wakes the next plan
	}
	return err
}
