package validate

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Bounds of an event's texts, in bytes.
const (
	maxReportingInstance = 128
	maxAction            = 128
	maxReason            = 128
	maxNote              = 1024
)

// Event checks a new event of the core group, which asks for little.
func Event(e *corev1.Event) field.ErrorList { return legacyEvent(e) }

// EventUpdate checks an update of an event of the core group.
func EventUpdate(new, old *corev1.Event) field.ErrorList { return legacyEvent(new) }

func legacyEvent(e *corev1.Event) field.ErrorList {
	errs := eventTexts(e)
	path := field.NewPath("involvedObject", "namespace")
	// Events about things without a namespace live in the default one.
	if ns := e.InvolvedObject.Namespace; ns == "" {
		if e.Namespace != "" && e.Namespace != corev1.NamespaceDefault {
			errs = append(errs, field.Invalid(path, ns, "does not match event.namespace"))
		}
	} else if e.Namespace != ns {
		errs = append(errs, field.Invalid(path, ns, "does not match event.namespace"))
	}
	return append(errs, dnsSubdomain(e.Namespace, field.NewPath("namespace"))...)
}

// eventTexts checks the fields of events that were made the new way.
func eventTexts(e *corev1.Event) field.ErrorList {
	if e.EventTime.IsZero() {
		return nil
	}
	var errs field.ErrorList
	if e.ReportingController == "" {
		errs = append(errs, field.Required(field.NewPath("reportingController"), ""))
	}
	errs = append(errs, qualifiedName(e.ReportingController, field.NewPath("reportingController"))...)
	for _, f := range []struct {
		name, value string
		limit       int
	}{{"reportingInstance", e.ReportingInstance, maxReportingInstance}, {"action", e.Action, maxAction}, {"reason", e.Reason, maxReason}} {
		if f.value == "" {
			errs = append(errs, field.Required(field.NewPath(f.name), ""))
		}
		if len(f.value) > f.limit {
			errs = append(errs, field.Invalid(field.NewPath(f.name), "", fmt.Sprintf("can have at most %v characters", f.limit)))
		}
	}
	if len(e.Message) > maxNote {
		errs = append(errs, field.Invalid(field.NewPath("message"), "", fmt.Sprintf("can have at most %v characters", maxNote)))
	}
	return errs
}

// coreEvent is the same record in the older kind's words, which are also those of
// upstream's field paths.
func coreEvent(e *eventsv1.Event) *corev1.Event {
	out := &corev1.Event{ObjectMeta: e.ObjectMeta, InvolvedObject: e.Regarding, Reason: e.Reason, Message: e.Note,
		Source: e.DeprecatedSource, FirstTimestamp: e.DeprecatedFirstTimestamp, LastTimestamp: e.DeprecatedLastTimestamp,
		Count: e.DeprecatedCount, Type: e.Type, EventTime: e.EventTime, Action: e.Action, Related: e.Related,
		ReportingController: e.ReportingController, ReportingInstance: e.ReportingInstance}
	if e.Series != nil {
		out.Series = &corev1.EventSeries{Count: e.Series.Count, LastObservedTime: e.Series.LastObservedTime}
	}
	return out
}

// EventsEvent checks a new event of the events.k8s.io group.
func EventsEvent(event *eventsv1.Event) field.ErrorList {
	e := coreEvent(event)
	errs := legacyEvent(e)
	errs = append(errs, ObjectMeta(&e.ObjectMeta, true, NameDNSSubdomain, meta())...)
	errs = append(errs, eventSeries(e)...)
	if e.EventTime.IsZero() {
		errs = append(errs, field.Required(field.NewPath("eventTime"), ""))
	}
	if e.Type != corev1.EventTypeNormal && e.Type != corev1.EventTypeWarning {
		errs = append(errs, field.Invalid(field.NewPath("type"), "", fmt.Sprintf("has invalid value: %v", e.Type)))
	}
	const unset = "needs to be unset"
	if !e.FirstTimestamp.IsZero() {
		errs = append(errs, field.Invalid(field.NewPath("firstTimestamp"), "", unset))
	}
	if !e.LastTimestamp.IsZero() {
		errs = append(errs, field.Invalid(field.NewPath("lastTimestamp"), "", unset))
	}
	if e.Count != 0 {
		errs = append(errs, field.Invalid(field.NewPath("count"), "", unset))
	}
	if e.Source != (corev1.EventSource{}) {
		errs = append(errs, field.Invalid(field.NewPath("source"), "", unset))
	}
	return errs
}

func eventSeries(e *corev1.Event) field.ErrorList {
	if e.Series == nil {
		return nil
	}
	var errs field.ErrorList
	if e.Series.Count < 2 {
		errs = append(errs, field.Invalid(field.NewPath("series.count"), "", "should be at least 2"))
	}
	if e.Series.LastObservedTime.IsZero() {
		errs = append(errs, field.Required(field.NewPath("series.lastObservedTime"), ""))
	}
	return errs
}

// EventsEventUpdate checks an update of an event of the events.k8s.io group: only its
// series and labels change.
func EventsEventUpdate(newEvent, oldEvent *eventsv1.Event) field.ErrorList {
	new, old := coreEvent(newEvent), coreEvent(oldEvent)
	errs := legacyEvent(new)
	errs = append(errs, ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
	if new.Series != nil && (old.Series == nil || *new.Series != *old.Series) {
		errs = append(errs, eventSeries(new)...)
	}
	for _, f := range []struct {
		name     string
		new, old any
	}{
		{"involvedObject", new.InvolvedObject, old.InvolvedObject}, {"reason", new.Reason, old.Reason}, {"message", new.Message, old.Message},
		{"source", new.Source, old.Source}, {"firstTimestamp", new.FirstTimestamp, old.FirstTimestamp}, {"lastTimestamp", new.LastTimestamp, old.LastTimestamp},
		{"count", new.Count, old.Count}, {"type", new.Type, old.Type}, {"eventTime", new.EventTime, old.EventTime}, {"action", new.Action, old.Action},
		{"related", new.Related, old.Related}, {"reportingController", new.ReportingController, old.ReportingController},
		{"reportingInstance", new.ReportingInstance, old.ReportingInstance},
	} {
		errs = append(errs, unchanged(f.new, f.old, field.NewPath(f.name))...)
	}
	return errs
}
