package kind

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
)

var Event = define[corev1.EventList](Row[*corev1.Event]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Event", Plural: "events",
		ShortNames: []string{"ev"},
		Scope:      Namespaced,
		Prefix:     "events",
	},
	Buffered: true, TTL: time.Hour,
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
})

var EventsEvent = define[eventsv1.EventList](Row[*eventsv1.Event]{
	Names: Names{
		Group: "events.k8s.io", Version: "v1", Kind: "Event", Plural: "events",
		ShortNames: []string{"ev"},
		Scope:      Namespaced,
		Prefix:     "events",
	},
	Stored:   Event,
	Buffered: true, TTL: time.Hour,
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
})
