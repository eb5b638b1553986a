// Package customresource decides about CustomResourceDefinitions: which names they
// get, when they are served, and how they end (Kubernetes docs, "Custom Resources";
// conditions, reasons and messages as upstream's).
//
// Names are given out for a whole API group at once: the group is planned under
// one key, so that two definitions which ask for the same name at the same time
// never both get it. A definition whose names are accepted is established; one that
// once was established stays so when it loses a later conflict, under the names that
// it had.
//
// A definition that is deleted keeps its finalizer until its objects, whose own
// finalizers count, are gone.
package customresource

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

type definition = apiextensionsv1.CustomResourceDefinition

// groupKey opens the name under which a group is planned; no definition is called
// so.
const groupKey = "group/"

// Parts are the controllers of definitions. Every server runs them, also one that
// runs no other controllers.
func Parts() []control.Part {
	return []control.Part{{
		Name: "customresource-naming", Kind: kind.CustomResourceDefinition,
		When: func(old, new kind.Object) bool { return false },
		Wakes: []control.Wake{{Kind: kind.CustomResourceDefinition, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
			return []view.Ref{{Kind: kind.CustomResourceDefinition, Name: groupKey + o.(*definition).Spec.Group}}
		}}},
		Plan: func(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
			group, ok := strings.CutPrefix(ref.Name, groupKey)
			if !ok {
				return nil, time.Time{}
			}
			return Names(s, group, now), time.Time{}
		},
		Writes: []control.Write{{Kind: kind.CustomResourceDefinition, Sub: "status", Verbs: []string{"update"}}},
	}, {
		Name: "customresource-finalizer", Kind: kind.CustomResourceDefinition,
		When: func(_, new kind.Object) bool { return new != nil && new.GetDeletionTimestamp() != nil },
		Wakes: []control.Wake{{Custom: true, When: func(old, new kind.Object) bool { return new == nil },
			To: func(s view.Snapshot, o kind.Object) []view.Ref {
				gvk := o.GetObjectKind().GroupVersionKind()
				row := s.Table().ByKind(gvk)
				if row == nil {
					for d := range s.Table().Group(gvk.Group) {
						for _, k := range d.Rows {
							if k.Kind == gvk.Kind {
								row = k
							}
						}
					}
				}
				if row == nil {
					return nil
				}
				return []view.Ref{{Kind: kind.CustomResourceDefinition, Name: row.Plural + "." + row.Group}}
			}}},
		Plan: func(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
			return Finalize(s, ref, now), time.Time{}
		},
		Writes: []control.Write{
			{Verbs: []string{"delete"}},
			{Kind: kind.CustomResourceDefinition, Sub: "status", Verbs: []string{"update"}},
		},
	}}
}

// Names decides about the names and conditions of a group's definitions.
func Names(s view.Snapshot, group string, now time.Time) act.List {
	var list []*definition
	for d := range view.List[*definition](s, kind.CustomResourceDefinition, "") {
		if d.Spec.Group == group {
			list = append(list, d)
		}
	}
	// Who was first comes first; the name decides within one second.
	slices.SortStableFunc(list, func(a, b *definition) int {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	accepted := make([]apiextensionsv1.CustomResourceDefinitionNames, len(list))
	for i, d := range list {
		accepted[i] = d.Status.AcceptedNames
	}
	var actions act.List
	for i, d := range list {
		want := withStatus(d)
		judge(want, i, accepted)
		accepted[i] = want.Status.AcceptedNames
		approve(want)
		if want.Spec.PreserveUnknownFields {
			set(want, apiextensionsv1.NonStructuralSchema, true, "Violations", "spec.preserveUnknownFields: Invalid value: true: must be false")
		} else {
			apihelpers.RemoveCRDCondition(want, apiextensionsv1.NonStructuralSchema)
		}
		stamp(want, now)
		if !apiequality.Semantic.DeepEqual(want.Status, d.Status) {
			actions = append(actions, act.Update{Kind: kind.CustomResourceDefinition, Object: want, Sub: "status", Reason: "names", Note: note(want)})
		}
	}
	return actions
}

// withStatus is a copy of d that shares everything but the status.
func withStatus(d *definition) *definition {
	c := *d
	c.Status = *d.Status.DeepCopy()
	return &c
}

func note(d *definition) string {
	for _, t := range []apiextensionsv1.CustomResourceDefinitionConditionType{apiextensionsv1.NamesAccepted, apiextensionsv1.Established} {
		if c := apihelpers.FindCRDCondition(d, t); c != nil && c.Status != apiextensionsv1.ConditionTrue {
			return string(t) + "=" + string(c.Status) + " " + c.Reason
		}
	}
	return "established"
}

// judge gives d, the i-th, the names that nobody else in its group has.
func judge(d *definition, i int, accepted []apiextensionsv1.CustomResourceDefinitionNames) {
	resources, kinds := map[string]bool{}, map[string]bool{}
	for j, n := range accepted {
		if j == i {
			continue
		}
		for _, name := range append([]string{n.Plural, n.Singular}, n.ShortNames...) {
			resources[name] = true
		}
		kinds[n.Kind], kinds[n.ListKind] = true, true
	}
	asked, have := d.Spec.Names, &d.Status.AcceptedNames
	reason, message := "", ""
	take := func(asked string, have *string, used map[string]bool, why string) {
		if asked == *have || !used[asked] {
			*have = asked
			return
		}
		reason, message = why, fmt.Sprintf("%q is already in use", asked)
	}
	take(asked.Plural, &have.Plural, resources, "PluralConflict")
	take(asked.Singular, &have.Singular, resources, "SingularConflict")
	var taken []string
	for _, short := range asked.ShortNames {
		if !slices.Contains(have.ShortNames, short) && resources[short] {
			taken = append(taken, fmt.Sprintf("%q is already in use", short))
		}
	}
	switch len(taken) {
	case 0:
		have.ShortNames = slices.Clone(asked.ShortNames)
	case 1:
		reason, message = "ShortNamesConflict", taken[0]
	default:
		reason, message = "ShortNamesConflict", "["+strings.Join(taken, ", ")+"]"
	}
	take(asked.Kind, &have.Kind, kinds, "KindConflict")
	take(asked.ListKind, &have.ListKind, kinds, "ListKindConflict")
	have.Categories = slices.Clone(asked.Categories)
	if reason != "" {
		set(d, apiextensionsv1.NamesAccepted, false, reason, message)
		if apihelpers.FindCRDCondition(d, apiextensionsv1.Established) == nil {
			set(d, apiextensionsv1.Established, false, "NotAccepted", "not all names are accepted")
		}
		return
	}
	set(d, apiextensionsv1.NamesAccepted, true, "NoConflicts", "no conflicts found")
	set(d, apiextensionsv1.Established, true, "InitialNamesAccepted", "the initial names have been accepted")
}

// approve judges the annotation that groups of the Kubernetes community need.
func approve(d *definition) {
	if !apihelpers.IsProtectedCommunityGroup(d.Spec.Group) {
		return
	}
	state, message := apihelpers.GetAPIApprovalState(d.Annotations)
	reason := map[apihelpers.APIApprovalState]string{
		apihelpers.APIApprovalInvalid: "InvalidAnnotation", apihelpers.APIApprovalMissing: "MissingAnnotation",
		apihelpers.APIApproved: "ApprovedAnnotation", apihelpers.APIApprovalBypassed: "UnapprovedAnnotation"}[state]
	set(d, apiextensionsv1.KubernetesAPIApprovalPolicyConformant, state == apihelpers.APIApproved, reason, message)
}

// Finalize deletes what a deleted definition's kind holds, then lets it go.
func Finalize(s view.Snapshot, ref view.Ref, now time.Time) act.List {
	d := view.Get[*definition](s, kind.CustomResourceDefinition, "", ref.Name)
	if d == nil || d.DeletionTimestamp == nil || !apihelpers.CRDHasFinalizer(d, apiextensionsv1.CustomResourceCleanupFinalizer) {
		return nil
	}
	want := d.DeepCopy()
	status := func() act.Action {
		stamp(want, now)
		return act.Update{Kind: kind.CustomResourceDefinition, Object: want, Sub: "status", Reason: "deleted", Note: apihelpers.FindCRDCondition(want, apiextensionsv1.Terminating).Reason}
	}
	root := rootOf(s, d)
	switch {
	case root == nil && apihelpers.IsCRDConditionTrue(d, apiextensionsv1.Established):
		// Established, but a built-in kind has its place.
		set(want, apiextensionsv1.Terminating, false, "OverlappingBuiltInResource", "instances overlap with built-in resources in storage")
	case root == nil:
		set(want, apiextensionsv1.Terminating, false, "NeverEstablished", "resource was never established")
	case s.Len(root) > 0:
		if c := apihelpers.FindCRDCondition(d, apiextensionsv1.Terminating); c == nil || c.Reason != "InstanceDeletionInProgress" {
			// Said first, so that nothing is created from here on.
			set(want, apiextensionsv1.Terminating, true, "InstanceDeletionInProgress", "CustomResource deletion is in progress")
			return act.List{status()}
		}
		var actions act.List
		for o := range s.All(root, "") {
			if o.GetDeletionTimestamp() == nil {
				actions = append(actions, act.Delete{Target: view.RefOf(root, o), UID: o.GetUID(), Propagation: metav1.DeletePropagationBackground, Reason: "definition-deleted"})
			}
		}
		return actions
	default:
		if c := apihelpers.FindCRDCondition(d, apiextensionsv1.Terminating); c == nil || c.Reason != "InstanceDeletionInProgress" {
			set(want, apiextensionsv1.Terminating, true, "InstanceDeletionInProgress", "CustomResource deletion is in progress")
			return act.List{status()}
		}
		set(want, apiextensionsv1.Terminating, false, "InstanceDeletionCompleted", "removed all instances")
	}
	apihelpers.CRDRemoveFinalizer(want, apiextensionsv1.CustomResourceCleanupFinalizer)
	return act.List{status()}
}

// rootOf is the row that holds the definition's objects; nil when it has none.
func rootOf(s view.Snapshot, d *definition) *kind.Kind {
	if have := s.Table().Definition(d.Spec.Group, d.Spec.Names.Plural); have != nil {
		return have.Root
	}
	return nil
}

func set(d *definition, t apiextensionsv1.CustomResourceDefinitionConditionType, is bool, reason, message string) {
	status := apiextensionsv1.ConditionFalse
	if is {
		status = apiextensionsv1.ConditionTrue
	}
	c := apiextensionsv1.CustomResourceDefinitionCondition{Type: t, Status: status, Reason: reason, Message: message}
	for i := range d.Status.Conditions {
		if have := &d.Status.Conditions[i]; have.Type == t {
			if have.Status == status {
				c.LastTransitionTime = have.LastTransitionTime
			}
			c.ObservedGeneration = have.ObservedGeneration
			*have = c
			return
		}
	}
	d.Status.Conditions = append(d.Status.Conditions, c)
}

// stamp dates the conditions that have turned.
func stamp(d *definition, now time.Time) {
	for i := range d.Status.Conditions {
		if c := &d.Status.Conditions[i]; c.LastTransitionTime.IsZero() {
			c.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
		}
	}
}
