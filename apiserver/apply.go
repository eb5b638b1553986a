package apiserver

import (
	"context"
	"errors"
	"fmt"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/yaml"

	"proa.dev/apiserver/fields"
	"proa.dev/kind"
	"proa.dev/store"
)

// Server-side apply (Kubernetes docs, "Server-Side Apply"). What an object without
// managed fields holds, from before they were noted, belongs to the manager
// "before-first-apply".

// appliers and trackers are made on first use.
type appliers struct {
	mu       sync.Mutex
	byDoor   map[doorKey]*managedfields.FieldManager
	trackers sync.Map // of *fields.Tracker by doorKey
}

func (s *Server) fieldManager(k *kind.Kind, sub string) (*managedfields.FieldManager, error) {
	if k.Custom {
		e, ok := k.Extension.(interface {
			FieldManager(sub string) (*managedfields.FieldManager, error)
		})
		if !ok {
			return nil, fmt.Errorf("make field manager of %s: its schema is not known", k)
		}
		return e.FieldManager(sub)
	}
	a := &s.appliers
	a.mu.Lock()
	defer a.mu.Unlock()
	key := doorKey{k, sub}
	if m := a.byDoor[key]; m != nil {
		return m, nil
	}
	// What a door does not write is never owned through it.
	reset := map[fieldpath.APIVersion]fieldpath.Filter{}
	if f := filterOf(doorOf(k, sub)); f != nil {
		reset[fieldpath.APIVersion(k.APIVersion())] = f
	}
	scheme := kind.Scheme()
	m, err := managedfields.NewDefaultFieldManager(fields.BuiltIn(), versions{scheme}, noDefaults{}, scheme, k.GVK(), k.GVK().GroupVersion(), sub, reset)
	if err != nil {
		return nil, fmt.Errorf("make field manager of %s: %w", k, err)
	}
	if a.byDoor == nil {
		a.byDoor = map[doorKey]*managedfields.FieldManager{}
	}
	a.byDoor[key] = m
	return m, nil
}

// noDefaults: defaults are filled in later, on the way of every write.
type noDefaults struct{}

func (noDefaults) Default(runtime.Object) {}

// versions converts built-in objects between the versions of their kind.
type versions struct{ runtime.ObjectConvertor }

func (v versions) ConvertToVersion(in runtime.Object, to runtime.GroupVersioner) (runtime.Object, error) {
	from := in.GetObjectKind().GroupVersionKind()
	want, ok := to.KindForGroupVersionKinds([]schema.GroupVersionKind{from})
	if gv, is := to.(schema.GroupVersion); !ok && is {
		want, ok = gv.WithKind(from.Kind), true // events are in two groups
	}
	obj, isObject := in.(kind.Object)
	if !ok || !isObject || want.GroupVersion() == from.GroupVersion() {
		return v.ObjectConvertor.ConvertToVersion(in, to)
	}
	source := kind.All.ByKind(from)
	target := kind.All.ByKind(want)
	if source == nil || target == nil || source.Root() != target.Root() {
		return v.ObjectConvertor.ConvertToVersion(in, to)
	}
	stored, err := toStored(source, obj.DeepCopyObject().(kind.Object))
	if err != nil {
		return nil, err
	}
	out, err := served(target, stored)
	if err != nil {
		return nil, err
	}
	out.GetObjectKind().SetGroupVersionKind(target.GVK())
	return out, nil
}

// apply carries out one apply patch (application/apply-patch+yaml).
func (s *Server) apply(ctx context.Context, c *call, data []byte, o metav1.PatchOptions) (obj kind.Object, created bool, err error) {
	door, err := s.door(c)
	if err != nil {
		return nil, false, err
	}
	m, err := s.fieldManager(c.kind, c.sub)
	if err != nil {
		return nil, false, err
	}
	sent, warnings, err := appliedDocument(data, o.FieldValidation)
	if err != nil {
		return nil, false, err
	}
	for _, w := range warnings {
		c.warn(w)
	}
	force := o.Force != nil && *o.Force
	merge := func(live kind.Object) (kind.Object, error) {
		live.GetObjectKind().SetGroupVersionKind(c.kind.GVK())
		u := &unstructured.Unstructured{Object: runtime.DeepCopyJSON(sent)}
		if rv := u.GetResourceVersion(); rv != "" && rv != live.GetResourceVersion() {
			return nil, modified(c, c.name)
		}
		if u.GetName() == "" {
			u.SetName(c.name)
		}
		if u.GetNamespace() == "" && c.namespace != "" {
			u.SetNamespace(c.namespace)
		}
		out, err := m.Apply(live, u, o.FieldManager, force)
		if err != nil {
			return nil, mergeError(err)
		}
		made, ok := out.(kind.Object)
		if ok {
			made.SetManagedFields(s.ownTimes(made.GetManagedFields(), live.GetManagedFields()))
		}
		if ok && c.kind.Coerce != nil {
			strict, err := coerce(c.kind, made, o.FieldValidation != metav1.FieldValidationIgnore)
			if err != nil {
				return nil, err
			}
			if o.FieldValidation == metav1.FieldValidationStrict && len(strict) > 0 {
				return nil, apierrors.NewBadRequest(runtime.NewStrictDecodingError(strict).Error())
			}
			for _, e := range strict {
				c.warn(e.Error())
			}
		}
		if !ok || fmt.Sprintf("%T", made) != fmt.Sprintf("%T", live) {
			return nil, fmt.Errorf("apply %s %q: merging gave a %T", c.kind, c.name, out)
		}
		return made, nil
	}
	ch := change{door: door, options: &o, dryRun: isDryRun(o.DryRun), warnings: c.sub == "", applied: true, make: merge}
	if c.sub == "" {
		ch.createAbsent = func() (kind.Object, error) {
			if err := s.authorize(ctx, c, "create", ""); err != nil {
				return nil, err
			}
			made, err := merge(c.kind.New())
			if err != nil {
				return nil, err
			}
			if made.GetName() != c.name {
				return nil, apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", made.GetName(), c.name))
			}
			made.SetResourceVersion("")
			if made.GetUID() != "" {
				return nil, apierrors.NewConflict(schema.GroupResource{Group: c.kind.Group, Resource: c.kind.Plural}, c.name, fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", made.GetUID()))
			}
			owners := append([]metav1.ManagedFieldsEntry{}, made.GetManagedFields()...)
			return s.createManaged(ctx, c, made, metav1.CreateOptions{DryRun: o.DryRun, FieldManager: o.FieldManager}, owners)
		}
	}
	for try := 0; ; try++ {
		obj, created, err = s.modify(ctx, c, ch)
		// Somebody else created it in between: then it is an update.
		if apierrors.IsAlreadyExists(err) && try < 3 {
			continue
		}
		break
	}
	if errors.Is(err, store.ErrConflict) {
		err = modified(c, c.name)
	}
	return obj, created, err
}

// appliedDocument reads the body of an apply.
func appliedDocument(data []byte, validation string) (sent map[string]any, warnings []string, err error) {
	if err := yaml.Unmarshal(data, &sent); err != nil {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding YAML: %v", err))
	}
	if validation != metav1.FieldValidationIgnore {
		var again map[string]any
		if err := yaml.UnmarshalStrict(data, &again); err != nil {
			if validation == metav1.FieldValidationStrict {
				return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error strict decoding YAML: %v", err))
			}
			warnings = []string{err.Error()}
		}
	}
	return normal(sent), warnings, nil
}

// mergeError is the answer to a document that cannot be merged. What does not fit the
// schema is, as upstream has it, 500 with the words of the merge.
func mergeError(err error) error {
	var se *apierrors.StatusError
	if errors.As(err, &se) {
		return err
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: 500, Message: err.Error()}}
}

// normal turns the integers that YAML gives into what DeepCopyJSON takes.
func normal(v map[string]any) map[string]any {
	return normalValue(v).(map[string]any)
}

func normalValue(v any) any {
	switch t := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(t))
		for k, e := range t {
			out[k] = normalValue(e)
		}
		return out
	case []any:
		out := make([]any, len(t))
		for i, e := range t {
			out[i] = normalValue(e)
		}
		return out
	case int:
		return int64(t)
	case float64:
		if n := int64(t); float64(n) == t {
			return n
		}
	}
	return v
}
