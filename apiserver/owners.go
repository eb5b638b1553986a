package apiserver

import (
	"fmt"
	"reflect"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"proa.dev/apiserver/fields"
	"proa.dev/kind"
)

// Who owns which fields (Kubernetes docs, "Server-Side Apply", "Field management";
// docs/decisions/0014). Every writer is noted from an object's creation on, before
// admission changes what was sent: what plugins add belongs to nobody, as upstream.

// doorOf says what a subresource's door writes of an object.
func doorOf(k *kind.Kind, sub string) fields.Door {
	d := fields.Door{Subresource: sub}
	switch {
	case sub == "":
		if k.Status != nil {
			d.Reset = []string{"status"}
		}
	case sub == "status":
		d.Reset = append([]string{"spec"}, statusKeeps[kindOf(k)]...)
	case sub == "finalize":
		d.Reset = []string{"status"}
	case sub == "approval":
		d.Reset = []string{"spec", "status.certificate"}
	case sub == "scale":
		d.Only = []string{replicasPath(k)}
	case sub == "ephemeralcontainers":
		d.Only = []string{"spec.ephemeralContainers"}
	case sub == "resize":
		d.Only = []string{"spec.resources"}
		for _, list := range []string{"containers", "initContainers"} {
			d.Only = append(d.Only, "spec."+list+".*.resources", "spec."+list+".*.resizePolicy")
		}
	}
	return d
}

func kindOf(k *kind.Kind) string { return k.Group + "/" + k.Kind }

// statusKeeps is the metadata that status doors do not write.
var statusKeeps = map[string][]string{
	"/Pod":            {"metadata.deletionTimestamp", "metadata.ownerReferences"},
	"apps/Deployment": {"metadata.labels"},
	"apiextensions.k8s.io/CustomResourceDefinition":           {"metadata"},
	"flowcontrol.apiserver.k8s.io/FlowSchema":                 {"metadata"},
	"flowcontrol.apiserver.k8s.io/PriorityLevelConfiguration": {"metadata"},
	"storage.k8s.io/VolumeAttachment":                         {"metadata"},
	"storagemigration.k8s.io/StorageVersionMigration":         {"metadata"},
	"admissionregistration.k8s.io/ValidatingAdmissionPolicy":  {"metadata"},
	"certificates.k8s.io/PodCertificateRequest":               {"metadata"},
	"resource.k8s.io/ResourceClaim":                           {"metadata"},
	"resource.k8s.io/DeviceTaintRule":                         {"metadata"},
	"networking.k8s.io/ServiceCIDR":                           {"metadata"},
}

// filterOf is a door in the library's form.
func filterOf(d fields.Door) fieldpath.Filter {
	if len(d.Only) > 0 {
		var all *fieldpath.SetMatcher
		for _, path := range d.Only {
			var parts []any
			for _, p := range strings.Split(path, ".") {
				if p == "*" {
					parts = append(parts, fieldpath.MatchAnyPathElement())
				} else {
					parts = append(parts, p)
				}
			}
			if m := fieldpath.MakePrefixMatcherOrDie(parts...); all == nil {
				all = m
			} else {
				all = all.Merge(m)
			}
		}
		return fieldpath.NewIncludeMatcherFilter(all)
	}
	if len(d.Reset) == 0 {
		return nil
	}
	set := fieldpath.NewSet()
	for _, path := range d.Reset {
		var parts []any
		for _, p := range strings.Split(path, ".") {
			parts = append(parts, p)
		}
		set.Insert(fieldpath.MakePathOrDie(parts...))
	}
	return fieldpath.NewExcludeSetFilter(set)
}

type doorKey struct {
	kind *kind.Kind
	sub  string
}

func (s *Server) trackerOf(k *kind.Kind, sub string) *fields.Tracker {
	if k.Custom {
		return nil
	}
	key := doorKey{k, sub}
	if t, ok := s.appliers.trackers.Load(key); ok {
		return t.(*fields.Tracker)
	}
	t, _ := s.appliers.trackers.LoadOrStore(key, fields.NewTracker(k.New(), k.APIVersion(), doorOf(k, sub)))
	return t.(*fields.Tracker)
}

// looseOf is the tracker of a custom kind.
func looseOf(k *kind.Kind, sub string) *fields.Loose {
	e, ok := k.Extension.(interface {
		Tracker(sub string) (*fields.Loose, error)
	})
	if !ok {
		return nil
	}
	t, err := e.Tracker(sub)
	if err != nil {
		return nil
	}
	return t
}

// ownNew notes who makes obj, which is of c.kind, complete with defaults.
func (s *Server) ownNew(c *call, obj kind.Object, manager string) {
	now := kind.ShareTime(s.now())
	if u, custom := obj.(*unstructured.Unstructured); custom && len(fields.LooseEntries(u)) == 0 {
		if t := looseOf(c.kind, ""); t != nil && t.Created(u, manager, now) {
			return
		}
	}
	sent := obj.GetManagedFields()
	if t := s.trackerOf(c.kind, ""); t != nil && len(sent) == 0 {
		if entries, ok := t.Created(obj, manager, now); ok {
			obj.SetManagedFields(entries)
			return
		}
	}
	m, err := s.fieldManager(c.kind, "")
	if err != nil {
		obj.SetManagedFields(nil)
		return
	}
	// The library tells a new object by the empty uid of the old one.
	empty := c.kind.New()
	s.letLibrary(m, c.kind, empty, obj, manager, sent)
}

// ownChange notes who changes old into obj, both of c.kind.
func (s *Server) ownChange(c *call, old, obj kind.Object, manager string) {
	if u, custom := obj.(*unstructured.Unstructured); custom {
		o := old.(*unstructured.Unstructured)
		entries := fields.LooseEntries(u)
		if c.sub != "" || len(entries) == 0 || reflect.DeepEqual(entries, fields.LooseEntries(o)) {
			if t := looseOf(c.kind, c.sub); t != nil && t.Updated(o, u, manager, kind.ShareTime(s.now())) {
				return
			}
		}
	}
	was, sent := old.GetManagedFields(), obj.GetManagedFields()
	edited := false
	if c.sub == "" {
		if resets(sent) {
			obj.SetManagedFields(nil)
			return
		}
		edited = len(sent) > 0 && !sameEntries(was, sent)
	}
	if len(was) == 0 && !edited {
		obj.SetManagedFields(nil) // not tracked, until somebody applies
		return
	}
	if t := s.trackerOf(c.kind, c.sub); t != nil && !edited {
		if entries, ok := t.Updated(old, obj, was, manager, kind.ShareTime(s.now())); ok {
			obj.SetManagedFields(entries)
			return
		}
	}
	m, err := s.fieldManager(c.kind, c.sub)
	if err != nil {
		obj.SetManagedFields(was)
		return
	}
	live := old.DeepCopyObject().(kind.Object)
	s.letLibrary(m, c.kind, live, obj, manager, was)
}

// letLibrary leaves it to apimachinery, whose clock is not this server's: was are
// the entries before.
func (s *Server) letLibrary(m *managedfields.FieldManager, k *kind.Kind, live, obj kind.Object, manager string, was []metav1.ManagedFieldsEntry) {
	live.GetObjectKind().SetGroupVersionKind(k.GVK())
	obj.GetObjectKind().SetGroupVersionKind(k.GVK())
	if out, ok := m.UpdateNoErrors(live, obj, manager).(kind.Object); ok {
		obj.SetManagedFields(s.ownTimes(out.GetManagedFields(), was))
	}
}

// ownTimes puts this server's time where the library has put its own.
func (s *Server) ownTimes(entries, was []metav1.ManagedFieldsEntry) []metav1.ManagedFieldsEntry {
	now := kind.ShareTime(s.now())
	for i := range entries {
		e := &entries[i]
		if e.Time == nil {
			continue
		}
		old := false
		for j := range was {
			w := &was[j]
			old = old || w.Manager == e.Manager && w.Operation == e.Operation && w.APIVersion == e.APIVersion && w.Subresource == e.Subresource &&
				w.Time != nil && w.Time.Equal(e.Time)
		}
		if !old {
			e.Time = now
		}
	}
	fields.SortEntries(entries)
	return entries
}

// resets says that a client asks to forget the managers: by an empty list or by one
// empty entry.
func resets(entries []metav1.ManagedFieldsEntry) bool {
	return entries != nil && len(entries) == 0 || len(entries) == 1 && entries[0] == metav1.ManagedFieldsEntry{}
}

func sameEntries(a, b []metav1.ManagedFieldsEntry) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := &a[i], &b[i]
		if x.Manager != y.Manager || x.Operation != y.Operation || x.APIVersion != y.APIVersion || x.Subresource != y.Subresource ||
			x.FieldsType != y.FieldsType || (x.Time == nil) != (y.Time == nil) || x.Time != nil && x.Time.Unix() != y.Time.Unix() ||
			x.FieldsV1 != y.FieldsV1 && (x.FieldsV1 == nil || y.FieldsV1 == nil || !x.FieldsV1.Equal(*y.FieldsV1)) {
			return false
		}
	}
	return true
}

// entriesOf are the managed fields of a built-in object; those of a custom one cost a
// conversion and are looked at where they matter.
func entriesOf(obj kind.Object) []metav1.ManagedFieldsEntry {
	if _, custom := obj.(*unstructured.Unstructured); custom {
		return nil
	}
	return obj.GetManagedFields()
}

// sound keeps what admission has left of an object's managed fields if it can be
// read; else those before it.
func sound(c *call, obj, sent kind.Object, before []metav1.ManagedFieldsEntry) {
	after := obj.GetManagedFields()
	if before == nil {
		before = sent.GetManagedFields()
	}
	if len(after) == 0 && len(before) == 0 || len(after) == len(before) && &after[0] == &before[0] {
		return
	}
	if err := managedfields.ValidateManagedFields(after); err != nil {
		obj.SetManagedFields(before)
		c.warn(fmt.Sprintf(".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission controller; please fix your requests: %v", err))
	}
}

// calm takes the times of old entries over where nothing but times has changed.
func calm(entries, old []metav1.ManagedFieldsEntry) []metav1.ManagedFieldsEntry {
	if len(entries) != len(old) {
		return entries
	}
	for i := range entries {
		x, y := entries[i], old[i]
		x.Time = y.Time
		if !sameEntries([]metav1.ManagedFieldsEntry{x}, []metav1.ManagedFieldsEntry{y}) {
			return entries
		}
	}
	return old
}
