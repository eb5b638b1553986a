// Package protection keeps claims, volumes and volume attribute classes that are
// in use from going away (Kubernetes docs, "Storage Object in Use Protection"): the
// admission plugin StorageObjectInUseProtection gives each a finalizer, and this
// takes it away from one that is being deleted when nothing uses it any more. An
// object from before the plugin gets the finalizer here.
//
//	claim   used by a pod that has a node, ended or not
//	volume  used while it is bound
//	class   used by claims and volumes that name it
package protection

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

// The finalizers.
const (
	Claim  = "kubernetes.io/pvc-protection"
	Volume = "kubernetes.io/pv-protection"
	Class  = "kubernetes.io/vac-protection"
)

// plan for one object: present without the finalizer: add it; going and unused:
// take it away.
func plan(k *kind.Kind, o kind.Object, finalizer string, used func() bool) act.List {
	has := slices.Contains(o.GetFinalizers(), finalizer)
	var reason string
	switch {
	case o.GetDeletionTimestamp() == nil && !has:
		reason = "it is to be protected"
	case o.GetDeletionTimestamp() != nil && has && !used():
		reason = "nothing uses it"
	default:
		return nil
	}
	want := o.DeepCopyObject().(kind.Object)
	if has {
		want.SetFinalizers(slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool { return f == finalizer }))
	} else {
		want.SetFinalizers(append(slices.Clone(o.GetFinalizers()), finalizer))
	}
	return act.List{act.Update{Kind: k, Object: want, Reason: reason}}
}

// changed is what matters of the object itself.
func changed(old, new kind.Object) bool {
	return new != nil && (old == nil || new.GetDeletionTimestamp() != nil || len(new.GetFinalizers()) != len(old.GetFinalizers()))
}

// claims that a pod uses.
func claims(p *corev1.Pod) []string {
	var out []string
	for _, v := range p.Spec.Volumes {
		switch {
		case v.PersistentVolumeClaim != nil:
			out = append(out, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			out = append(out, p.Name+"-"+v.Name)
		}
	}
	return out
}

// ClaimPart registers the protection of claims.
func ClaimPart() control.Part {
	return control.Part{Name: "persistentvolumeclaim-protection-controller", Kind: kind.PersistentVolumeClaim, When: changed, Plan: PlanClaim,
		Wakes: []control.Wake{{Kind: kind.Pod, When: func(_, new kind.Object) bool { return new == nil }, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
			var refs []view.Ref
			for _, name := range claims(o.(*corev1.Pod)) {
				refs = append(refs, view.Ref{Kind: kind.PersistentVolumeClaim, Namespace: o.GetNamespace(), Name: name})
			}
			return refs
		}}},
		Writes: []control.Write{{Kind: kind.PersistentVolumeClaim, Verbs: []string{"update"}}}}
}

// PlanClaim of one claim.
func PlanClaim(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
	c := view.Get[*corev1.PersistentVolumeClaim](s, kind.PersistentVolumeClaim, ref.Namespace, ref.Name)
	if c == nil {
		return nil, time.Time{}
	}
	return plan(kind.PersistentVolumeClaim, c, Claim, func() bool {
		for p := range view.List[*corev1.Pod](s, kind.Pod, ref.Namespace) {
			if p.Spec.NodeName != "" && slices.Contains(claims(p), c.Name) {
				return true
			}
		}
		return false
	}), time.Time{}
}

// VolumePart registers the protection of volumes.
func VolumePart() control.Part {
	return control.Part{Name: "persistentvolume-protection-controller", Kind: kind.PersistentVolume, When: changed, Plan: PlanVolume,
		Writes: []control.Write{{Kind: kind.PersistentVolume, Verbs: []string{"update"}}}}
}

// PlanVolume of one volume.
func PlanVolume(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
	v := view.Get[*corev1.PersistentVolume](s, kind.PersistentVolume, "", ref.Name)
	if v == nil {
		return nil, time.Time{}
	}
	return plan(kind.PersistentVolume, v, Volume, func() bool { return v.Status.Phase == corev1.VolumeBound }), time.Time{}
}

// ClassPart registers the protection of volume attribute classes.
func ClassPart() control.Part {
	named := func(names ...*string) []view.Ref {
		var refs []view.Ref
		for _, n := range names {
			if n != nil && *n != "" {
				refs = append(refs, view.Ref{Kind: kind.VolumeAttributesClass, Name: *n})
			}
		}
		return refs
	}
	return control.Part{Name: "volumeattributesclass-protection-controller", Kind: kind.VolumeAttributesClass, When: changed, Plan: PlanClass,
		Wakes: []control.Wake{
			{Kind: kind.PersistentVolumeClaim, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
				c := o.(*corev1.PersistentVolumeClaim)
				return named(c.Spec.VolumeAttributesClassName, c.Status.CurrentVolumeAttributesClassName)
			}},
			{Kind: kind.PersistentVolume, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
				return named(o.(*corev1.PersistentVolume).Spec.VolumeAttributesClassName)
			}},
		},
		Writes: []control.Write{{Kind: kind.VolumeAttributesClass, Verbs: []string{"update"}}}}
}

// PlanClass of one class.
func PlanClass(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
	c := view.Get[*storagev1.VolumeAttributesClass](s, kind.VolumeAttributesClass, "", ref.Name)
	if c == nil {
		return nil, time.Time{}
	}
	is := func(n *string) bool { return n != nil && *n == c.Name }
	return plan(kind.VolumeAttributesClass, c, Class, func() bool {
		for pvc := range view.List[*corev1.PersistentVolumeClaim](s, kind.PersistentVolumeClaim, "") {
			modify := pvc.Status.ModifyVolumeStatus
			if is(pvc.Spec.VolumeAttributesClassName) || is(pvc.Status.CurrentVolumeAttributesClassName) || modify != nil && modify.TargetVolumeAttributesClassName == c.Name {
				return true
			}
		}
		for pv := range view.List[*corev1.PersistentVolume](s, kind.PersistentVolume, "") {
			if is(pv.Spec.VolumeAttributesClassName) {
				return true
			}
		}
		return false
	}), time.Time{}
}
