package workload

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"reflect"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/rand"

	"proa.dev/act"
	"proa.dev/kind"
	"proa.dev/view"
)

// Revisions are the ControllerRevisions of an owner: its templates, numbered.
// kubectl shows them as history and rolls back to them.
type Revisions struct {
	// All that are stored, oldest first.
	All []*appsv1.ControllerRevision
	// Current is the one of the template as it is now; it is one of All or, until
	// it has been created, not.
	Current *appsv1.ControllerRevision
	// Actions that make Current true.
	Actions act.List
	// Collision: another owner's object has Current's name; the count in the status
	// has to be raised.
	Collision bool
}

// Hash of the current template: the label controller-revision-hash of its pods.
func (r *Revisions) Hash() string { return r.Current.Labels[appsv1.ControllerRevisionHashLabelKey] }

// History reads an owner's revisions and says what has to change.
func History(s view.Snapshot, k *kind.Kind, owner kind.Object, template *corev1.PodTemplateSpec, labels map[string]string, collisions *int32) Revisions {
	var r Revisions
	for o := range view.Owned[*appsv1.ControllerRevision](s, string(owner.GetUID()), kind.ControllerRevision) {
		if c := metav1.GetControllerOfNoCopy(o); c != nil && c.UID == owner.GetUID() {
			r.All = append(r.All, o)
		}
	}
	slices.SortStableFunc(r.All, func(a, b *appsv1.ControllerRevision) int {
		if a.Revision != b.Revision {
			return int(min(max(a.Revision-b.Revision, -1), 1))
		}
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	data := templatePatch(template)
	var next int64 = 1
	if n := len(r.All); n > 0 {
		next = r.All[n-1].Revision + 1
	}
	for _, o := range r.All {
		if sameJSON(o.Data.Raw, data) {
			r.Current = o
		}
	}
	if r.Current != nil {
		if r.Current.Revision != next-1 {
			// An old template again: it gets a new number.
			c := r.Current.DeepCopy()
			c.Revision = next
			r.Actions = act.List{act.Update{Kind: kind.ControllerRevision, Object: c, Note: fmt.Sprintf("revision %d→%d", r.Current.Revision, next), Reason: "rolled-back"}}
		}
		return r
	}
	hash := revisionHash(data, collisions)
	c := &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{Namespace: owner.GetNamespace(), Name: owner.GetName() + "-" + hash, Labels: map[string]string{},
			Annotations: map[string]string{}, OwnerReferences: []metav1.OwnerReference{OwnerRef(k, owner)}},
		Data: runtime.RawExtension{Raw: data}, Revision: next,
	}
	for key, v := range labels {
		c.Labels[key] = v
	}
	c.Labels[appsv1.ControllerRevisionHashLabelKey] = hash
	for key, v := range owner.GetAnnotations() {
		if key != corev1.LastAppliedConfigAnnotation {
			c.Annotations[key] = v
		}
	}
	r.Current = c
	if s.Get(kind.ControllerRevision, c.Namespace, c.Name) != nil {
		r.Collision = true
		return r
	}
	r.Actions = act.List{act.Create{Kind: kind.ControllerRevision, Object: c, Reason: "new-template"}}
	return r
}

// Prune deletes the oldest revisions beyond limit that no live one is.
func (r *Revisions) Prune(limit *int32, live func(hash string) bool) (actions act.List) {
	keep := 10
	if limit != nil {
		keep = int(*limit)
	}
	var unused []*appsv1.ControllerRevision
	for _, o := range r.All {
		if o.Name != r.Current.Name && o.DeletionTimestamp == nil && !live(o.Labels[appsv1.ControllerRevisionHashLabelKey]) {
			unused = append(unused, o)
		}
	}
	for i := 0; i < len(unused)-keep; i++ {
		actions = append(actions, act.Delete{Target: view.RefOf(kind.ControllerRevision, unused[i]), UID: unused[i].UID, Reason: "history-limit"})
	}
	return actions
}

// templatePatch is how upstream keeps a template: a patch that replaces it.
func templatePatch(t *corev1.PodTemplateSpec) []byte {
	var m map[string]any
	data, err := json.Marshal(t)
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err == nil {
		m["$patch"] = "replace"
		data, err = json.Marshal(map[string]any{"spec": map[string]any{"template": m}})
	}
	if err != nil {
		panic(fmt.Sprintf("workload: encode template: %v", err))
	}
	return data
}

func sameJSON(a, b []byte) bool {
	if string(a) == string(b) {
		return true
	}
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

func revisionHash(data []byte, collisions *int32) string {
	h := fnv.New32a()
	h.Write(data)
	if collisions != nil && *collisions > 0 {
		fmt.Fprintf(h, "/%d", *collisions)
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}
