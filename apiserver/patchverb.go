package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"proa.dev/apiserver/fields"
	"proa.dev/apiserver/patch"
	"proa.dev/client/wire"
	"proa.dev/kind"
	"proa.dev/store"
)

// patch changes part of an object through the main door or a subresource.
func (s *Server) patch(ctx context.Context, c *call, t types.PatchType, data []byte, o metav1.PatchOptions) (obj kind.Object, created bool, err error) {
	if errs := metav1validation.ValidatePatchOptions(&o, t); len(errs) > 0 {
		return nil, false, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "PatchOptions"}, "", errs)
	}
	switch t {
	case types.JSONPatchType, types.MergePatchType:
	case types.StrategicMergePatchType:
		if c.kind.Custom {
			return nil, false, patch.UnsupportedOf(types.JSONPatchType, types.MergePatchType, types.ApplyYAMLPatchType)
		}
	case types.ApplyYAMLPatchType:
		return s.apply(ctx, c, data, o)
	default:
		if c.kind.Custom {
			return nil, false, patch.UnsupportedOf(types.JSONPatchType, types.MergePatchType, types.ApplyYAMLPatchType)
		}
		return nil, false, patch.Unsupported(true)
	}
	door, err := s.door(c)
	if err != nil {
		return nil, false, err
	}
	warned := false
	ch := change{door: door, options: &o, dryRun: isDryRun(o.DryRun), warnings: c.sub == "", tracks: true, manager: o.FieldManager,
		make: func(old kind.Object) (kind.Object, error) {
			out := c.kind.New()
			strictErrors, err := s.applyPatch(c, t, data, old, out, c.kind.GVK(), o.FieldValidation)
			if err != nil {
				return nil, err
			}
			if !warned {
				warned = true
				for _, e := range strictErrors {
					c.warn(e.Error())
				}
			}
			return out, nil
		}}
	obj, created, err = s.modify(ctx, c, ch)
	if errors.Is(err, store.ErrConflict) {
		err = modified(c, c.name)
	}
	return obj, created, err
}

// applyPatch writes old with the patch applied into out. It returns what is to
// be warned about; with fieldValidation=Strict that is an error.
func (s *Server) applyPatch(c *call, t types.PatchType, data []byte, old, out runtime.Object, gvk schema.GroupVersionKind, validation string) ([]error, error) {
	original, err := json.Marshal(wire.Typed(old, gvk))
	if err != nil {
		return nil, fmt.Errorf("encode %s %q for a patch: %w", c.kind, c.name, err)
	}
	strict := validation != metav1.FieldValidationIgnore
	patched, warnings, err := patch.Apply(t, original, data, old, strict)
	if err != nil {
		return nil, err
	}
	d, err := wire.Decode(wire.JSON, patched, out, strict)
	if err != nil {
		if t == types.JSONPatchType {
			return nil, patch.DecodeError(gvk.GroupKind(), c.name, data, err)
		}
		return nil, patch.DecodeError(gvk.GroupKind(), "", data, err)
	}
	if d.GVK != gvk {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)", d.GVK.GroupVersion(), gvk.GroupVersion()))
	}
	warnings = append(warnings, d.Strict...)
	if c.kind.Coerce != nil && gvk == c.kind.GVK() {
		more, err := coerce(c.kind, out.(kind.Object), strict)
		if err != nil {
			return nil, err
		}
		warnings = append(warnings, more...)
	}
	if validation == metav1.FieldValidationStrict && len(warnings) > 0 {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error when creating patch: %v", runtime.NewStrictDecodingError(warnings)))
	}
	return warnings, nil
}

// coerce brings a custom object into the form of its schema; unknown fields come
// back as errors when strict is set.
func coerce(k *kind.Kind, obj kind.Object, strict bool) ([]error, error) {
	unknown, err := k.Coerce(obj, strict)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	var out []error
	for _, path := range unknown {
		out = append(out, fmt.Errorf("unknown field %q", path))
	}
	return out, nil
}

// scaleOf is the Scale of an object.
func scaleOf(k *kind.Kind, obj kind.Object) *autoscalingv1.Scale {
	return &autoscalingv1.Scale{
		TypeMeta: metav1.TypeMeta{Kind: "Scale", APIVersion: "autoscaling/v1"},
		ObjectMeta: metav1.ObjectMeta{Name: obj.GetName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(),
			ResourceVersion: obj.GetResourceVersion(), CreationTimestamp: obj.GetCreationTimestamp()},
		Spec:   autoscalingv1.ScaleSpec{Replicas: k.Scale.SpecReplicas(obj)},
		Status: autoscalingv1.ScaleStatus{Replicas: k.Scale.StatusReplicas(obj), Selector: k.Scale.Selector(obj)},
	}
}

var scaleGVK = autoscalingv1.SchemeGroupVersion.WithKind("Scale")

// setScale writes the replicas of a Scale; next makes it from the current one.
func (s *Server) setScale(ctx context.Context, c *call, next func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error), dryRun []string) (*autoscalingv1.Scale, error) {
	manager := c.manager
	if manager == "" {
		manager, _, _ = strings.Cut(c.agent, "/")
	}
	return s.scale(ctx, c, change{dryRun: isDryRun(dryRun), tracks: true, manager: manager}, next)
}

// scale makes a change through the scale door: next makes the Scale of what the
// object holds.
func (s *Server) scale(ctx context.Context, c *call, ch change, next func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error)) (*autoscalingv1.Scale, error) {
	if c.kind.Scale == nil {
		return nil, notFound(c, c.name)
	}
	through := *c
	through.sub = "scale"
	ch.door = mainDoor(working(c.kind))
	ch.make = func(old kind.Object) (kind.Object, error) {
		now := scaleOf(c.kind, old)
		if ch.applied {
			// Entries of an apply are those of the replicas.
			var err error
			if now.ManagedFields, err = scaleEntries(c.kind, old).ToSubresource(); err != nil {
				return nil, err
			}
		}
		sc, err := next(now.DeepCopy())
		if err != nil {
			return nil, err
		}
		if sc.Name != c.name {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", sc.Name, c.name))
		}
		if sc.Namespace != "" && sc.Namespace != c.namespace {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("the namespace of the object (%s) does not match the namespace on the request (%s)", sc.Namespace, c.namespace))
		}
		if sc.UID != "" && sc.UID != old.GetUID() {
			return nil, apierrors.NewConflict(c.kind.GroupResource(), c.name, fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", sc.UID, old.GetUID()))
		}
		if sc.Spec.Replicas < 0 {
			return nil, invalidScale(c.name, sc.Spec.Replicas)
		}
		if sc.ResourceVersion != "" && sc.ResourceVersion != now.ResourceVersion {
			return nil, modified(c, c.name)
		}
		if ch.applied {
			entries, err := scaleEntries(c.kind, old).ToParent(sc.ManagedFields)
			if err != nil {
				return nil, err
			}
			old.SetManagedFields(s.ownTimes(entries, old.GetManagedFields()))
		}
		c.kind.Scale.SetSpecReplicas(old, sc.Spec.Replicas)
		if sc.ResourceVersion == "" {
			old.SetResourceVersion("")
		}
		return old, nil
	}
	obj, _, err := s.modify(ctx, &through, ch)
	if err != nil {
		return nil, err
	}
	return scaleOf(c.kind, obj), nil
}

// scaleEntries turns the owners of an object's replicas into those of its Scale and
// back.
func scaleEntries(k *kind.Kind, obj kind.Object) *managedfields.ScaleHandler {
	var parts []any
	for _, p := range strings.Split(replicasPath(k), ".") {
		parts = append(parts, p)
	}
	return managedfields.NewScaleHandler(obj.GetManagedFields(), k.GVK().GroupVersion(),
		managedfields.ResourcePathMappings{k.APIVersion(): fieldpath.MakePathOrDie(parts...)})
}

// replicasPath is where an object has what its Scale sets.
func replicasPath(k *kind.Kind) string {
	if p, ok := k.Extension.(interface{ ReplicasPath() string }); ok {
		return p.ReplicasPath()
	}
	return "spec.replicas"
}

// applyScale carries out an apply patch of a Scale.
func (s *Server) applyScale(ctx context.Context, c *call, data []byte, o metav1.PatchOptions) (*autoscalingv1.Scale, error) {
	if errs := metav1validation.ValidatePatchOptions(&o, types.ApplyYAMLPatchType); len(errs) > 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "PatchOptions"}, "", errs)
	}
	m, err := managedfields.NewDefaultFieldManager(fields.BuiltIn(), versions{kind.Scheme()}, noDefaults{}, kind.Scheme(), scaleGVK, scaleGVK.GroupVersion(), "scale", nil)
	if err != nil {
		return nil, fmt.Errorf("make field manager of scales: %w", err)
	}
	sent, warnings, err := appliedDocument(data, o.FieldValidation)
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		c.warn(w)
	}
	return s.scale(ctx, c, change{dryRun: isDryRun(o.DryRun), options: &o, applied: true}, func(now *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
		u := &unstructured.Unstructured{Object: runtime.DeepCopyJSON(sent)}
		if u.GetName() == "" {
			u.SetName(c.name)
		}
		if u.GetNamespace() == "" {
			u.SetNamespace(c.namespace)
		}
		out, err := m.Apply(now, u, o.FieldManager, o.Force != nil && *o.Force)
		if err != nil {
			return nil, mergeError(err)
		}
		sc, ok := out.(*autoscalingv1.Scale)
		if !ok {
			return nil, fmt.Errorf("apply scale of %s %q: merging gave a %T", c.kind, c.name, out)
		}
		return sc, nil
	})
}
