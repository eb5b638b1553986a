package kind

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind/validate"
)

// Event tells that something happened to an object. It goes after an hour.
var Event = define[corev1.EventList](Row[*corev1.Event]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Event", Plural: "events",
		ShortNames: []string{"ev"},
		Scope:      Namespaced,
		Prefix:     "events",
	},
	Validate:       validate.Event,
	ValidateUpdate: validate.EventUpdate,
	Buffered:       true, TTL: time.Hour,
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
	Selectable: map[string]func(*corev1.Event) string{
		"involvedObject.kind":            func(e *corev1.Event) string { return e.InvolvedObject.Kind },
		"involvedObject.namespace":       func(e *corev1.Event) string { return e.InvolvedObject.Namespace },
		"involvedObject.name":            func(e *corev1.Event) string { return e.InvolvedObject.Name },
		"involvedObject.uid":             func(e *corev1.Event) string { return string(e.InvolvedObject.UID) },
		"involvedObject.apiVersion":      func(e *corev1.Event) string { return e.InvolvedObject.APIVersion },
		"involvedObject.resourceVersion": func(e *corev1.Event) string { return e.InvolvedObject.ResourceVersion },
		"involvedObject.fieldPath":       func(e *corev1.Event) string { return e.InvolvedObject.FieldPath },
		"reason":                         func(e *corev1.Event) string { return e.Reason },
		"reportingComponent":             func(e *corev1.Event) string { return e.ReportingController },
		"source":                         eventSource,
		"type":                           func(e *corev1.Event) string { return e.Type },
	},
	Columns: eventColumns,
	Cells:   eventCells,
})

// EventsEvent is the same event in the newer group's words.
var EventsEvent = define[eventsv1.EventList](Row[*eventsv1.Event]{
	Names: Names{
		Group: "events.k8s.io", Version: "v1", Kind: "Event", Plural: "events",
		ShortNames: []string{"ev"},
		Scope:      Namespaced,
		Prefix:     "events",
	},
	Validate:       validate.EventsEvent,
	ValidateUpdate: validate.EventsEventUpdate,
	Buffered:       true, TTL: time.Hour,
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
	Selectable: map[string]func(*eventsv1.Event) string{
		"regarding.kind":            func(e *eventsv1.Event) string { return e.Regarding.Kind },
		"regarding.namespace":       func(e *eventsv1.Event) string { return e.Regarding.Namespace },
		"regarding.name":            func(e *eventsv1.Event) string { return e.Regarding.Name },
		"regarding.uid":             func(e *eventsv1.Event) string { return string(e.Regarding.UID) },
		"regarding.apiVersion":      func(e *eventsv1.Event) string { return e.Regarding.APIVersion },
		"regarding.resourceVersion": func(e *eventsv1.Event) string { return e.Regarding.ResourceVersion },
		"regarding.fieldPath":       func(e *eventsv1.Event) string { return e.Regarding.FieldPath },
		"reason":                    func(e *eventsv1.Event) string { return e.Reason },
		"reportingController":       func(e *eventsv1.Event) string { return e.ReportingController },
		"type":                      func(e *eventsv1.Event) string { return e.Type },
	},
	Stored:     Event,
	ToStored:   func(e *eventsv1.Event) (Object, error) { return coreEvent(e), nil },
	FromStored: eventsEvent,
	Columns:    eventColumns,
	Cells:      func(e *eventsv1.Event, now time.Time) []any { return eventCells(coreEvent(e), now) },
})

var eventColumns = []Column{
	{Name: "Last Seen", Type: "string"},
	{Name: "Type", Type: "string"},
	{Name: "Reason", Type: "string"},
	{Name: "Object", Type: "string"},
	{Name: "Subobject", Type: "string", Priority: 1},
	{Name: "Source", Type: "string", Priority: 1},
	{Name: "Message", Type: "string"},
	{Name: "First Seen", Type: "string", Priority: 1},
	{Name: "Count", Type: "string", Priority: 1},
	{Name: "Name", Type: "string", Format: "name", Priority: 1},
}

// coreEvent says e in the words of the core group. Slices and pointers are shared.
func coreEvent(e *eventsv1.Event) *corev1.Event {
	c := &corev1.Event{
		ObjectMeta: e.ObjectMeta, InvolvedObject: e.Regarding, Related: e.Related,
		Reason: e.Reason, Message: e.Note, Type: e.Type, Action: e.Action, EventTime: e.EventTime,
		ReportingController: e.ReportingController, ReportingInstance: e.ReportingInstance,
		Source: e.DeprecatedSource, FirstTimestamp: e.DeprecatedFirstTimestamp,
		LastTimestamp: e.DeprecatedLastTimestamp, Count: e.DeprecatedCount,
	}
	if e.Series != nil {
		c.Series = &corev1.EventSeries{Count: e.Series.Count, LastObservedTime: e.Series.LastObservedTime}
	}
	c.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Event"))
	return c
}

func eventsEvent(obj Object) (*eventsv1.Event, error) {
	c, ok := obj.(*corev1.Event)
	if !ok {
		return nil, fmt.Errorf("convert %T to an event of events.k8s.io: only a core event can be", obj)
	}
	e := &eventsv1.Event{
		ObjectMeta: c.ObjectMeta, Regarding: c.InvolvedObject, Related: c.Related,
		Reason: c.Reason, Note: c.Message, Type: c.Type, Action: c.Action, EventTime: c.EventTime,
		ReportingController: c.ReportingController, ReportingInstance: c.ReportingInstance,
		DeprecatedSource: c.Source, DeprecatedFirstTimestamp: c.FirstTimestamp,
		DeprecatedLastTimestamp: c.LastTimestamp, DeprecatedCount: c.Count,
	}
	if c.Series != nil {
		e.Series = &eventsv1.EventSeries{Count: c.Series.Count, LastObservedTime: c.Series.LastObservedTime}
	}
	e.SetGroupVersionKind(eventsv1.SchemeGroupVersion.WithKind("Event"))
	return e, nil
}

// eventSource is who reported, in whichever of the two places it stands.
func eventSource(e *corev1.Event) string {
	if e.Source.Component != "" {
		return e.Source.Component
	}
	return e.ReportingController
}

func eventCells(e *corev1.Event, now time.Time) []any {
	first := since(e.FirstTimestamp, now)
	if e.FirstTimestamp.IsZero() {
		first = since(metav1.NewTime(e.EventTime.Time), now)
	}
	last := first
	if !e.LastTimestamp.IsZero() {
		last = since(e.LastTimestamp, now)
	}
	count := e.Count
	if e.Series != nil {
		last, count = since(metav1.NewTime(e.Series.LastObservedTime.Time), now), e.Series.Count
	}
	fill(&count, 1)
	source, instance := eventSource(e), e.Source.Host
	fill(&instance, e.ReportingInstance)
	if instance != "" {
		source += ", " + instance
	}
	object := strings.ToLower(e.InvolvedObject.Kind)
	if e.InvolvedObject.Name != "" {
		object += "/" + e.InvolvedObject.Name
	}
	return []any{last, e.Type, e.Reason, object, e.InvolvedObject.FieldPath, source, strings.TrimSpace(e.Message), first, int64(count), e.Name}
}
