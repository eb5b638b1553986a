package record

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"proa.dev/act"
	"proa.dev/control/scenario"
	"proa.dev/env"
	"proa.dev/internal/await"
	"proa.dev/kind"
	"proa.dev/view"
)

// clock stands still until it is moved; timers fire at once and move it.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func (c *clock) NewTimer(d time.Duration) env.Timer {
	c.move(d)
	return timer{env.SystemClock().NewTimer(0)}
}

type timer struct{ env.Timer }

// lab is a recorder on a model.
type lab struct {
	*testing.T
	clock *clock
	model *scenario.Model
	*Recorder
}

func newLab(t *testing.T) *lab {
	l := &lab{T: t, clock: &clock{now: scenario.Epoch}}
	l.model = scenario.NewModel(kind.All, l.clock.Now)
	l.Recorder = New(l.model, l.clock, env.SystemRand(), "kubelet", "n1")
	return l
}

func about(name string) act.Event {
	return act.Event{About: view.Ref{Kind: kind.Pod, Namespace: "shop", Name: name}, UID: "u", Type: corev1.EventTypeNormal, Reason: "Pulled", Message: "Image is present"}
}

// tell writes what is waiting, as Run does.
func (l *lab) tell(events ...act.Event) {
	for _, e := range events {
		l.Emit(e)
	}
	for len(l.queue) > 0 {
		l.write(l.Context(), <-l.queue)
	}
}

func (l *lab) all() []*corev1.Event {
	return slices.Collect(view.List[*corev1.Event](l.model.View().Snapshot(), kind.Event, ""))
}

func TestFirstEventIsComplete(t *testing.T) {
	l := newLab(t)
	e := about("web-0")
	e.Field, e.ResourceVersion = "spec.containers{app}", "7"
	l.tell(e)
	got := l.all()
	if len(got) != 1 {
		t.Fatalf("%d events", len(got))
	}
	g := got[0]
	if want := fmt.Sprintf("web-0.%x", scenario.Epoch.UnixNano()); g.Name != want {
		t.Errorf("name %q, want %q", g.Name, want)
	}
	if g.InvolvedObject != (corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: "shop", Name: "web-0", UID: "u", ResourceVersion: "7", FieldPath: "spec.containers{app}"}) {
		t.Errorf("involved object: %+v", g.InvolvedObject)
	}
	if g.Source != (corev1.EventSource{Component: "kubelet", Host: "n1"}) || g.ReportingController != "kubelet" || g.Count != 1 || !g.FirstTimestamp.Time.Equal(scenario.Epoch) {
		t.Errorf("got %+v", g)
	}
}

func TestEqualEventsCount(t *testing.T) {
	l := newLab(t)
	for range 4 {
		l.tell(about("web-0"))
		l.clock.move(time.Minute)
	}
	got := l.all()
	if len(got) != 1 || got[0].Count != 4 || got[0].LastTimestamp.Sub(got[0].FirstTimestamp.Time) != 3*time.Minute {
		t.Fatalf("got %+v", got)
	}
	// The first has expired: the next is a new one.
	if err := l.model.Remove(view.RefOf(kind.Event, got[0])); err != nil {
		t.Fatal(err)
	}
	l.tell(about("web-0"))
	if got := l.all(); len(got) != 1 || got[0].Count != 1 {
		t.Fatalf("after it expired: %+v", got)
	}
}

func TestSimilarEventsCombine(t *testing.T) {
	l := newLab(t)
	for i := range 15 {
		e := about("web-0")
		e.Message = fmt.Sprint("try ", i)
		l.tell(e)
	}
	got := l.all()
	var combined []*corev1.Event
	for _, e := range got {
		if strings.HasPrefix(e.Message, "(combined from similar events): ") {
			combined = append(combined, e)
		}
	}
	if len(got) != 11 || len(combined) != 1 || combined[0].Count != 5 || combined[0].Message != "(combined from similar events): try 14" {
		t.Errorf("%d events, combined: %+v", len(got), combined)
	}
}

func TestSpamIsDropped(t *testing.T) {
	l := newLab(t)
	for i := range 40 {
		e := about("web-0")
		e.Reason = fmt.Sprint("R", i)
		l.tell(e)
	}
	if n := len(l.all()); n != 25 || l.Dropped() != 15 {
		t.Errorf("%d events, %d dropped; want 25 and 15", n, l.Dropped())
	}
	// Another object has tokens of its own; this one gets one in five minutes.
	l.tell(about("web-1"))
	l.clock.move(5 * time.Minute)
	l.tell(about("web-0"), about("web-0"))
	if n := len(l.all()); n != 27 {
		t.Errorf("%d events, want 27", n)
	}
}

func TestOddNamesAndClusterObjects(t *testing.T) {
	l := newLab(t)
	l.tell(act.Event{About: view.Ref{Kind: kind.ClusterRole, Name: "system:odd"}, Type: "Normal", Reason: "R", Message: "m", Source: "other"})
	got := l.all()
	if len(got) != 1 || got[0].Namespace != "default" || !strings.HasPrefix(got[0].Name, "event.") || got[0].Source != (corev1.EventSource{Component: "other"}) {
		t.Fatalf("got %+v", got)
	}
}

func TestServerThatCannotAnswer(t *testing.T) {
	l := newLab(t)
	l.model.Fail("create", "events", apierrors.NewInternalError(errors.New("no")), 3)
	l.tell(about("web-0"))
	if n := len(l.all()); n != 1 {
		t.Errorf("after three failures: %d events", n)
	}
	l.model.Fail("create", "events", apierrors.NewForbidden(kind.Event.GroupResource(), "x", errors.New("namespace is going")), 1)
	l.tell(about("web-1"))
	if n := len(l.all()); n != 1 {
		t.Errorf("a refused event was written: %d", n)
	}
}

func TestEmitNeverBlocksAndRunEnds(t *testing.T) {
	l := newLab(t)
	for i := range queueLength + 10 {
		l.Emit(about(fmt.Sprint("p", i)))
	}
	if l.Dropped() != 10 {
		t.Errorf("dropped %d, want 10", l.Dropped())
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Recorder.Run(ctx) }()
	await.True(t, 10*time.Second, "the queue is empty", func() bool { return len(l.queue) == 0 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("run: %v", err)
	}
}
