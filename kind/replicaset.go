package kind

import (
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/utils/ptr"

	"proa.dev/kind/validate"
)

// ReplicaSet keeps a number of equal pods.
var ReplicaSet = define[appsv1.ReplicaSetList](Row[*appsv1.ReplicaSet]{
	Names: Names{
		Group: "apps", Version: "v1", Kind: "ReplicaSet", Plural: "replicasets",
		ShortNames: []string{"rs"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "replicasets",
	},
	Validate:            validate.ReplicaSet,
	ValidateUpdate:      validate.ReplicaSetUpdate,
	UnconditionalUpdate: true,
	Default: func(r *appsv1.ReplicaSet) {
		fillPtr(&r.Spec.Replicas, 1)
		defaultTemplate(&r.Spec.Template)
	},
	PrepareCreate: func(r *appsv1.ReplicaSet) {
		r.Generation, r.Status = 1, appsv1.ReplicaSetStatus{}
	},
	PrepareUpdate: func(new, old *appsv1.ReplicaSet) {
		new.Status = old.Status
		raiseIf(!same(new.Spec, old.Spec), new)
	},
	Warnings: func(new, old *appsv1.ReplicaSet) []string {
		if old == nil {
			return templateWarnings(templatePath, &new.Spec.Template, nil)
		}
		return templateWarnings(templatePath, &new.Spec.Template, &old.Spec.Template)
	},
	Status: &DoorOf[*appsv1.ReplicaSet]{
		ValidateUpdate: validate.ReplicaSetStatusUpdate,
		PrepareUpdate:  func(new, old *appsv1.ReplicaSet) { new.Spec = old.Spec },
	},
	Scale: &ScaleOf[*appsv1.ReplicaSet]{
		SpecReplicas:    func(r *appsv1.ReplicaSet) int32 { return ptr.Deref(r.Spec.Replicas, 0) },
		SetSpecReplicas: func(r *appsv1.ReplicaSet, n int32) { r.Spec.Replicas = &n },
		StatusReplicas:  func(r *appsv1.ReplicaSet) int32 { return r.Status.Replicas },
		Selector:        func(r *appsv1.ReplicaSet) string { return scaleSelector(r.Spec.Selector) },
	},
	Selectable: map[string]func(*appsv1.ReplicaSet) string{
		"status.replicas": func(r *appsv1.ReplicaSet) string { return strconv.Itoa(int(r.Status.Replicas)) },
	},
	Columns: columns("Desired:integer, Current:integer, Ready:integer | Containers, Images, Selector"),
	Cells: func(r *appsv1.ReplicaSet, now time.Time) []any {
		names, images := containerCells(r.Spec.Template.Spec.Containers)
		return []any{r.Name, int64(ptr.Deref(r.Spec.Replicas, 0)), int64(r.Status.Replicas), int64(r.Status.ReadyReplicas),
			age(r, now), names, images, selectorCell(r.Spec.Selector)}
	},
})
