package control_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/client"
	"proa.dev/control"
	"proa.dev/control/scenario"
	"proa.dev/env"
	"proa.dev/internal/await"
	"proa.dev/kind"
	"proa.dev/view"
)

var errTest = errors.New("as the test said")

// secretPerMap keeps a Secret for each ConfigMap, with its data's "n" as a label.
func secretPerMap() control.Part {
	return control.Part{
		Name: "secret-per-map", Kind: kind.ConfigMap,
		Wakes: []control.Wake{{Kind: kind.Secret, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
			return []view.Ref{{Kind: kind.ConfigMap, Namespace: o.GetNamespace(), Name: o.GetName()}}
		}}},
		Plan: func(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
			cm := view.Get[*corev1.ConfigMap](s, kind.ConfigMap, ref.Namespace, ref.Name)
			have := view.Get[*corev1.Secret](s, kind.Secret, ref.Namespace, ref.Name)
			switch {
			case cm == nil && have != nil:
				return act.List{act.Delete{Target: view.RefOf(kind.Secret, have), UID: have.UID}}, time.Time{}
			case cm == nil:
				return nil, time.Time{}
			case have == nil:
				return act.List{act.Create{Kind: kind.Secret, Object: &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name, Labels: cm.Data}}},
					act.Event{About: ref, Reason: "Made"}}, time.Time{}
			case have.Labels["n"] != cm.Data["n"]:
				want := have.DeepCopy()
				want.Labels = cm.Data
				return act.List{act.Update{Kind: kind.Secret, Object: want}}, time.Time{}
			}
			return nil, time.Time{}
		},
		Writes: []control.Write{{Kind: kind.Secret, Verbs: []string{"create", "update", "delete"}}},
	}
}

type lab struct {
	*testing.T
	model  *scenario.Model
	events atomic.Int32
	done   chan error
	stop   context.CancelFunc
}

func start(t *testing.T, parts ...control.Part) *lab {
	l := &lab{T: t, model: scenario.NewModel(kind.All, time.Now), done: make(chan error, 1)}
	rt := control.New(control.Config{Parts: parts, View: l.model.View(), Clock: env.SystemClock(), Log: slog.New(slog.DiscardHandler),
		Client: func(string) client.Client { return l.model }, Record: func(act.Event) { l.events.Add(1) }})
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	go func() { l.done <- rt.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-l.done:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("run ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("run did not end")
		}
	})
	return l
}

func (l *lab) put(name, n string) {
	l.Helper()
	_, err := l.model.Create(l.Context(), kind.ConfigMap, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: name}, Data: map[string]string{"n": n}}, metav1.CreateOptions{})
	if err != nil {
		l.Fatal(err)
	}
}

// until polls a condition on the view.
func (l *lab) until(what string, ok func(view.Snapshot) bool) {
	l.Helper()
	await.True(l, 20*time.Second, what, func() bool { return ok(l.model.View().Snapshot()) })
}

func TestRuntimeFollowsEverything(t *testing.T) {
	l := start(t, secretPerMap())
	const n = 200
	for i := range n {
		l.put(fmt.Sprint("m", i), "1")
	}
	l.until("a secret for each", func(s view.Snapshot) bool { return s.Len(kind.Secret) == n })
	for i := range n {
		if err := l.model.Change(view.Ref{Kind: kind.ConfigMap, Namespace: "n", Name: fmt.Sprint("m", i)}, func(o kind.Object) { o.(*corev1.ConfigMap).Data["n"] = "2" }); err != nil {
			t.Fatal(err)
		}
	}
	l.until("labels follow", func(s view.Snapshot) bool {
		for sec := range view.List[*corev1.Secret](s, kind.Secret, "") {
			if sec.Labels["n"] != "2" {
				return false
			}
		}
		return true
	})
	for i := range n {
		if err := l.model.Remove(view.Ref{Kind: kind.ConfigMap, Namespace: "n", Name: fmt.Sprint("m", i)}); err != nil {
			t.Fatal(err)
		}
	}
	l.until("all are gone", func(s view.Snapshot) bool { return s.Len(kind.Secret) == 0 })
	if got := l.events.Load(); got != n {
		t.Errorf("%d events, want %d: one for each secret that was made", got, n)
	}
}

func TestRuntimeTriesAgain(t *testing.T) {
	l := start(t, secretPerMap())
	l.model.Fail("create", "secrets", apierrors.NewInternalError(errTest), 3)
	l.put("a", "1")
	l.until("the secret, after three failures", func(s view.Snapshot) bool { return s.Len(kind.Secret) == 1 })
	l.model.Fail("update", "secrets", apierrors.NewConflict(kind.Secret.GroupResource(), "a", errTest), 2)
	if err := l.model.Change(view.Ref{Kind: kind.ConfigMap, Namespace: "n", Name: "a"}, func(o kind.Object) { o.(*corev1.ConfigMap).Data["n"] = "2" }); err != nil {
		t.Fatal(err)
	}
	l.until("the label, after two conflicts", func(s view.Snapshot) bool {
		return view.Get[*corev1.Secret](s, kind.Secret, "n", "a").Labels["n"] == "2"
	})
}

func TestRuntimeWakesByTime(t *testing.T) {
	due := time.Now().Add(50 * time.Millisecond)
	p := secretPerMap()
	plan := p.Plan
	p.Plan = func(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
		if now.Before(due) {
			return nil, due
		}
		return plan(s, ref, now)
	}
	l := start(t, p)
	l.put("a", "1")
	l.until("the secret, in time", func(s view.Snapshot) bool { return s.Len(kind.Secret) == 1 })
	if time.Now().Before(due) {
		t.Error("it came too early")
	}
}

func TestRuntimeTellsThePartWhatFailed(t *testing.T) {
	p := secretPerMap()
	p.Failed = func(_ view.Snapshot, ref view.Ref, failed act.Action, err error, _ time.Time) act.List {
		if _, ok := failed.(act.Create); !ok || !apierrors.IsForbidden(err) {
			t.Errorf("told of %v: %v", failed, err)
		}
		return act.List{act.Event{About: ref, Reason: "FailedCreate"}}
	}
	l := start(t, p)
	l.model.Fail("create", "secrets", apierrors.NewForbidden(kind.Secret.GroupResource(), "a", errTest), 2)
	l.put("a", "1")
	l.until("the secret", func(s view.Snapshot) bool { return s.Len(kind.Secret) == 1 && l.events.Load() == 3 })
}

func TestBeginKnowsWhenTheRuntimeStarted(t *testing.T) {
	before := time.Now()
	p := secretPerMap()
	plan := p.Plan
	p.Plan = nil
	p.Begin = func(started time.Time) control.Plan {
		if started.Before(before) {
			t.Errorf("started at %v", started)
		}
		return plan
	}
	l := start(t, p)
	l.put("a", "1")
	l.until("the secret", func(s view.Snapshot) bool { return s.Len(kind.Secret) == 1 })
}

// What a part has not declared is refused, with its name and the way out.
func TestUndeclaredWritesAreRefused(t *testing.T) {
	p := control.Part{Name: "p", Writes: []control.Write{
		{Kind: kind.Pod, Verbs: []string{"create"}}, {Kind: kind.Pod, Sub: "status", Verbs: []string{"update"}}, {Verbs: []string{"patch"}}}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p"}}
	ref := view.RefOf(kind.Pod, pod)
	for _, c := range []struct {
		action act.Action
		ok     bool
	}{
		{act.Create{Kind: kind.Pod, Object: pod}, true},
		{act.Create{Kind: kind.Secret, Object: &corev1.Secret{}}, false},
		{act.Update{Kind: kind.Pod, Object: pod, Sub: "status"}, true},
		{act.Update{Kind: kind.Pod, Object: pod}, false},
		{act.Delete{Target: ref}, false},
		{act.Bind{Target: ref}, false},
		{act.Evict{Target: ref}, false},
		{act.Patch{Target: view.Ref{Kind: kind.Secret, Name: "x"}}, true},
		{act.Patch{Target: ref, Sub: "status"}, false},
		{act.Event{About: ref}, true},
	} {
		err := p.Allows(c.action)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.action, err)
		}
		if err != nil && (!strings.Contains(err.Error(), `part "p" has not declared`) || !strings.Contains(err.Error(), "Writes")) {
			t.Errorf("%s: the error does not say what to do: %v", c.action, err)
		}
	}
	model := scenario.NewModel(kind.All, time.Now)
	_, err := control.Carry(t.Context(), model, p, act.List{act.Create{Kind: kind.Pod, Object: &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}}, act.Delete{Target: ref}}, nil)
	var f *control.Failure
	if !errors.As(err, &f) || f.Action.(act.Delete).Target != ref || model.View().Snapshot().Len(kind.Pod) != 1 {
		t.Errorf("carry: %v", err)
	}
}
