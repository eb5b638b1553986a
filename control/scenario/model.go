package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"proa.dev/client"
	"proa.dev/kind"
	"proa.dev/view"
)

// Model is a small real API in memory: one object set under one revision, with
// defaults, preparation, validation, generations, UIDs, finalizers, graceful
// deletion and conflicts as rows say, and no admission, access control or HTTP. It
// is deterministic: UIDs and generated names count up. It is a client.Client
// (Watch is not offered: follow the View).
type Model struct {
	mu       sync.Mutex
	table    *kind.Table
	view     *view.View
	now      func() time.Time
	revision int64
	uid      int
	names    map[string]int
	failures []failure
	// CountNames gives objects with a generateName a counted name (web-1), also
	// when the planner chose one; Renamed tells which.
	CountNames bool
	renamed    map[string]string
}

type failure struct {
	verb, kind string
	err        error
	times      int
}

// NewModel makes an empty model at revision 1.
func NewModel(table *kind.Table, now func() time.Time) *Model {
	m := &Model{table: table, view: view.New(table, 0), now: now, names: map[string]int{}, renamed: map[string]string{}}
	m.revision = 1
	m.view.Advance(1)
	return m
}

// View that the model feeds.
func (m *Model) View() *view.View { return m.view }

// Fail makes the next times calls of verb ("create", "update", "patch", "delete")
// on a kind ("pods") fail with err.
func (m *Model) Fail(verb, kind string, err error, times int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures = append(m.failures, failure{verb, kind, err, times})
}

func (m *Model) failing(verb string, k *kind.Kind) error {
	for i := range m.failures {
		f := &m.failures[i]
		if f.verb == verb && f.kind == k.String() && f.times > 0 {
			f.times--
			return f.err
		}
	}
	return nil
}

func (m *Model) get(k *kind.Kind, namespace, name string) (kind.Object, error) {
	if o := m.view.Snapshot().Get(k, namespace, name); o != nil {
		return o, nil
	}
	return nil, apierrors.NewNotFound(k.GroupResource(), name)
}

// put stores o under the next revision; old nil creates.
func (m *Model) put(k *kind.Kind, o kind.Object) {
	m.revision++
	o.SetResourceVersion(strconv.FormatInt(m.revision, 10))
	o.GetObjectKind().SetGroupVersionKind(k.Root().GVK())
	m.view.Apply(view.Change{Kind: k.Root(), Revision: m.revision, New: o})
}

func (m *Model) remove(k *kind.Kind, o kind.Object) {
	m.revision++
	last := o.DeepCopyObject().(kind.Object)
	last.SetResourceVersion(strconv.FormatInt(m.revision, 10))
	m.view.Apply(view.Change{Kind: k.Root(), Revision: m.revision, Last: last})
}

func (m *Model) nextUID() types.UID {
	m.uid++
	return types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", m.uid))
}

func (m *Model) stamp() metav1.Time { return metav1.NewTime(m.now().Truncate(time.Second)) }

// Load stores an object as it is written, status included; what is missing is
// filled in.
func (m *Model) Load(k *kind.Kind, obj kind.Object) kind.Object {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := obj.DeepCopyObject().(kind.Object)
	if k.Default != nil {
		k.Default(o)
	}
	if o.GetUID() == "" {
		o.SetUID(m.nextUID())
	}
	if o.GetCreationTimestamp().Time.IsZero() {
		o.SetCreationTimestamp(m.stamp())
	}
	if o.GetGeneration() == 0 {
		o.SetGeneration(1)
	}
	m.put(k, o)
	return o
}

// Remove takes an object out, whatever holds it, as when a node confirms the end
// of a pod.
func (m *Model) Remove(r view.Ref) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, err := m.get(r.Kind, r.Namespace, r.Name)
	if err != nil {
		return err
	}
	m.remove(r.Kind, o)
	return nil
}

// Change replaces an object by what edit makes of a copy, through no door; as a
// node or a test does it.
func (m *Model) Change(r view.Ref, edit func(kind.Object)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, err := m.get(r.Kind, r.Namespace, r.Name)
	if err != nil {
		return err
	}
	o := old.DeepCopyObject().(kind.Object)
	edit(o)
	return m.settle(r.Kind, o, old)
}

// settle stores o, or takes it away when nothing holds it any more.
func (m *Model) settle(k *kind.Kind, o, old kind.Object) error {
	if o.GetDeletionTimestamp() != nil && !held(o) && (o.GetDeletionGracePeriodSeconds() == nil || *o.GetDeletionGracePeriodSeconds() == 0) {
		m.remove(k, o)
		return nil
	}
	if apiequality.Semantic.DeepEqual(o, old) {
		return nil
	}
	m.put(k, o)
	return nil
}

func held(o kind.Object) bool {
	ns, ok := o.(*corev1.Namespace)
	return len(o.GetFinalizers()) > 0 || ok && len(ns.Spec.Finalizers) > 0
}

// Get returns one object.
func (m *Model) Get(_ context.Context, k *kind.Kind, namespace, name string, _ metav1.GetOptions) (kind.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.get(k, namespace, name)
}

// List returns all objects of a namespace; selectors are not offered.
func (m *Model) List(_ context.Context, k *kind.Kind, namespace string, o metav1.ListOptions) (client.List, error) {
	if o.LabelSelector != "" || o.FieldSelector != "" {
		return client.List{}, fmt.Errorf("list %s: the model knows no selectors", k)
	}
	s := m.view.Snapshot()
	l := client.List{ResourceVersion: strconv.FormatInt(s.Revision(), 10)}
	for o := range s.All(k, namespace) {
		l.Items = append(l.Items, o)
	}
	return l, nil
}

// Watch is not offered.
func (m *Model) Watch(context.Context, *kind.Kind, string, metav1.ListOptions) (watch.Interface, error) {
	return nil, fmt.Errorf("watch: the model has none; follow its view")
}

// Create stores a new object.
func (m *Model) Create(_ context.Context, k *kind.Kind, obj kind.Object, _ metav1.CreateOptions) (kind.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.failing("create", k); err != nil {
		return nil, err
	}
	o := obj.DeepCopyObject().(kind.Object)
	if k.Default != nil {
		k.Default(o)
	}
	o.SetUID(m.nextUID())
	o.SetCreationTimestamp(m.stamp())
	o.SetGeneration(0)
	if g := o.GetGenerateName(); g != "" && (o.GetName() == "" || m.CountNames) {
		planned := o.GetName()
		for {
			m.names[g]++
			o.SetName(g + strconv.Itoa(m.names[g]))
			if m.view.Snapshot().Get(k, o.GetNamespace(), o.GetName()) == nil {
				break
			}
		}
		if planned != "" {
			m.renamed[planned] = o.GetName()
		}
	}
	if k.PrepareCreate != nil {
		k.PrepareCreate(o)
	}
	if k.Validate != nil {
		if errs := k.Validate(o); len(errs) > 0 {
			return nil, apierrors.NewInvalid(k.GVK().GroupKind(), o.GetName(), errs)
		}
	}
	if m.view.Snapshot().Get(k, o.GetNamespace(), o.GetName()) != nil {
		return nil, apierrors.NewAlreadyExists(k.GroupResource(), o.GetName())
	}
	m.put(k, o)
	return o, nil
}

// Renamed is the counted name of a planned one; the name itself otherwise.
func (m *Model) Renamed(text string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for from, to := range m.renamed {
		text = strings.ReplaceAll(text, from, to)
	}
	return text
}

func door(k *kind.Kind, sub string) *kind.Door {
	switch sub {
	case "":
		return &kind.Door{PrepareUpdate: k.PrepareUpdate, ValidateUpdate: k.ValidateUpdate}
	case "status":
		return k.Status
	}
	for _, s := range k.Subresources {
		if s.Name == sub {
			return s.Door
		}
	}
	return nil
}

// write puts o through a door over old.
func (m *Model) write(k *kind.Kind, o, old kind.Object, sub string) (kind.Object, error) {
	d := door(k, sub)
	if d == nil {
		return nil, fmt.Errorf("write %s/%s %q: no such subresource", k, sub, o.GetName())
	}
	if v := o.GetResourceVersion(); v != "" && v != old.GetResourceVersion() {
		return nil, apierrors.NewConflict(k.GroupResource(), o.GetName(), fmt.Errorf("the object has been modified; please apply your changes to the latest version and try again"))
	}
	if u := o.GetUID(); u != "" && u != old.GetUID() {
		return nil, apierrors.NewConflict(k.GroupResource(), o.GetName(), fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", u))
	}
	o.SetUID(old.GetUID())
	o.SetCreationTimestamp(old.GetCreationTimestamp())
	o.SetDeletionTimestamp(old.GetDeletionTimestamp())
	o.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	if k.Default != nil {
		k.Default(o)
	}
	if d.PrepareUpdate != nil {
		d.PrepareUpdate(o, old)
	}
	o.SetDeletionTimestamp(old.GetDeletionTimestamp())
	o.SetResourceVersion(old.GetResourceVersion())
	o.GetObjectKind().SetGroupVersionKind(old.GetObjectKind().GroupVersionKind())
	if d.ValidateUpdate != nil {
		if errs := d.ValidateUpdate(o, old); len(errs) > 0 {
			return nil, apierrors.NewInvalid(k.GVK().GroupKind(), o.GetName(), errs)
		}
	}
	return o, m.settle(k, o, old)
}

// Update writes through a door.
func (m *Model) Update(_ context.Context, k *kind.Kind, obj kind.Object, sub string, _ metav1.UpdateOptions) (kind.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.failing("update", k); err != nil {
		return nil, err
	}
	old, err := m.get(k, obj.GetNamespace(), obj.GetName())
	if err != nil {
		return nil, err
	}
	return m.write(k, obj.DeepCopyObject().(kind.Object), old, sub)
}

// Patch applies a JSON merge patch through a door.
func (m *Model) Patch(_ context.Context, k *kind.Kind, namespace, name string, t types.PatchType, data []byte, sub string, _ metav1.PatchOptions) (kind.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.failing("patch", k); err != nil {
		return nil, err
	}
	if t != types.MergePatchType {
		return nil, fmt.Errorf("patch %s %q: the model knows merge patches only, not %s", k, name, t)
	}
	old, err := m.get(k, namespace, name)
	if err != nil {
		return nil, err
	}
	o, err := merge(k, old, data)
	if err != nil {
		return nil, err
	}
	return m.write(k, o, old, sub)
}

func merge(k *kind.Kind, old kind.Object, data []byte) (kind.Object, error) {
	before, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	after, err := jsonpatch.MergePatch(before, data)
	if err != nil {
		return nil, fmt.Errorf("patch %s %q: %w", k, old.GetName(), err)
	}
	o := k.Root().New()
	if err := json.Unmarshal(after, o); err != nil {
		return nil, fmt.Errorf("patch %s %q: %w", k, old.GetName(), err)
	}
	return o, nil
}

// Delete marks or removes, as grace period and finalizers say.
func (m *Model) Delete(_ context.Context, k *kind.Kind, namespace, name string, o metav1.DeleteOptions) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.failing("delete", k); err != nil {
		return err
	}
	old, err := m.get(k, namespace, name)
	if err != nil {
		return err
	}
	if p := o.Preconditions; p != nil && (p.UID != nil && *p.UID != old.GetUID() || p.ResourceVersion != nil && *p.ResourceVersion != old.GetResourceVersion()) {
		return apierrors.NewConflict(k.GroupResource(), name, fmt.Errorf("the precondition does not match"))
	}
	obj := old.DeepCopyObject().(kind.Object)
	if o.PropagationPolicy != nil {
		var keep []string
		for _, f := range obj.GetFinalizers() {
			if f != metav1.FinalizerOrphanDependents && f != metav1.FinalizerDeleteDependents {
				keep = append(keep, f)
			}
		}
		switch *o.PropagationPolicy {
		case metav1.DeletePropagationForeground:
			keep = append(keep, metav1.FinalizerDeleteDependents)
		case metav1.DeletePropagationOrphan:
			keep = append(keep, metav1.FinalizerOrphanDependents)
		}
		obj.SetFinalizers(keep)
	}
	var grace *int64
	if k.Grace != nil {
		grace = k.Grace(old, o.GracePeriodSeconds)
	}
	seconds := int64(0)
	if grace != nil {
		seconds = *grace
	}
	left := old.GetDeletionGracePeriodSeconds()
	switch {
	case old.GetDeletionTimestamp() == nil:
		if seconds == 0 && !held(obj) {
			m.remove(k, obj)
			return nil
		}
		at := metav1.NewTime(m.stamp().Add(time.Duration(seconds) * time.Second))
		obj.SetDeletionTimestamp(&at)
		obj.SetDeletionGracePeriodSeconds(&seconds)
		if obj.GetGeneration() > 0 {
			obj.SetGeneration(obj.GetGeneration() + 1)
		}
		if ns, ok := obj.(*corev1.Namespace); ok {
			ns.Status.Phase = corev1.NamespaceTerminating
		}
	case left != nil && seconds < *left && (o.GracePeriodSeconds != nil || grace == nil):
		obj.SetDeletionGracePeriodSeconds(&seconds)
	}
	return m.settle(k, obj, old)
}

// Post knows pods/binding and pods/eviction.
func (m *Model) Post(ctx context.Context, k *kind.Kind, namespace, name, sub string, body runtime.Object) (runtime.Object, error) {
	switch b := body.(type) {
	case *corev1.Binding:
		return b, m.Change(view.Ref{Kind: k, Namespace: namespace, Name: name}, func(o kind.Object) {
			o.(*corev1.Pod).Spec.NodeName = b.Target.Name
		})
	}
	if sub == "eviction" {
		return body, m.Delete(ctx, k, namespace, name, metav1.DeleteOptions{})
	}
	return nil, fmt.Errorf("post %s/%s %q: the model does not know it", k, sub, name)
}

var _ client.Client = (*Model)(nil)

// zero empties the value that o points to.
func zero(o kind.Object) {
	v := reflect.ValueOf(o).Elem()
	v.Set(reflect.Zero(v.Type()))
}
