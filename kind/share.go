package kind

import (
	"strings"
	"sync"
	"sync/atomic"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Most objects have their managed fields in common with others: the pods of a set,
// the leases of all nodes. They share the bytes, and what was read from them.

// Fields are managed fields that objects share. Nobody changes them.
type Fields struct {
	V1 *metav1.FieldsV1
	// Note is what a reader has made of them.
	Note atomic.Pointer[any]
}

// sharing keeps what was seen lately, in two generations: what is not asked for
// while one fills is forgotten with it. Objects keep what they hold.
type sharing struct {
	mu       sync.RWMutex
	now, old map[string]*Fields
	bytes    int
}

// sharedBytes bounds a generation.
const sharedBytes = 1 << 20

// sharedMax is the size from which sets are not kept.
const sharedMax = 32 << 10

var allFields sharing

// ShareFields finds the managed fields with these bytes, which it copies if they are new.
func ShareFields(raw []byte) *Fields {
	s := &allFields
	s.mu.RLock()
	f := s.now[string(raw)]
	s.mu.RUnlock()
	if f != nil {
		return f
	}
	if len(raw) > sharedMax {
		return &Fields{V1: metav1.NewFieldsV1(string(raw))}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f = s.now[string(raw)]; f != nil {
		return f
	}
	key := string(raw)
	if f = s.old[key]; f == nil {
		f = &Fields{V1: metav1.NewFieldsV1(key)}
	}
	if s.bytes += 2*len(raw) + 200; s.now == nil || s.bytes > sharedBytes {
		s.now, s.old, s.bytes = map[string]*Fields{}, s.now, 2*len(raw)+200
	}
	s.now[key] = f
	return f
}

// words are the names in entries: managers, versions, subresources.
var words struct {
	mu   sync.RWMutex
	seen map[string]string
}

func shareWord(s string) string {
	switch s {
	case "":
		return ""
	case "status":
		return "status"
	case "v1":
		return "v1"
	}
	words.mu.RLock()
	have, ok := words.seen[s]
	words.mu.RUnlock()
	if ok {
		return have
	}
	words.mu.Lock()
	defer words.mu.Unlock()
	if words.seen == nil || len(words.seen) > 1000 {
		words.seen = map[string]string{}
	}
	s = strings.Clone(s)
	words.seen[s] = s
	return s
}

var lastTime atomic.Pointer[metav1.Time]

// ShareTime is t, in a place that entries of the same second share.
func ShareTime(t metav1.Time) *metav1.Time {
	if p := lastTime.Load(); p != nil && p.Time == t.Time {
		return p
	}
	lastTime.Store(&t)
	return &t
}

// shareEntries makes the entries of an object that was just decoded share what they can.
func shareEntries(obj Object) {
	entries := obj.GetManagedFields()
	for i := range entries {
		e := &entries[i]
		e.Manager, e.APIVersion, e.Subresource = shareWord(e.Manager), shareWord(e.APIVersion), shareWord(e.Subresource)
		if e.FieldsType == "FieldsV1" {
			e.FieldsType = "FieldsV1"
		}
		switch e.Operation {
		case metav1.ManagedFieldsOperationApply:
			e.Operation = metav1.ManagedFieldsOperationApply
		case metav1.ManagedFieldsOperationUpdate:
			e.Operation = metav1.ManagedFieldsOperationUpdate
		}
		if e.FieldsV1 != nil {
			e.FieldsV1 = ShareFields(e.FieldsV1.GetRawBytes()).V1
		}
		if e.Time != nil {
			e.Time = ShareTime(*e.Time)
		}
	}
}
