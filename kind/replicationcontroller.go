package kind

import (
	"maps"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"

	"proa.dev/kind/validate"
)

// ReplicationController is ReplicaSet's elder: the same with an equality selector.
var ReplicationController = define[corev1.ReplicationControllerList](Row[*corev1.ReplicationController]{
	Names: Names{
		Group: "", Version: "v1", Kind: "ReplicationController", Plural: "replicationcontrollers",
		ShortNames: []string{"rc"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "controllers",
	},
	Validate:            validate.ReplicationController,
	ValidateUpdate:      validate.ReplicationControllerUpdate,
	UnconditionalUpdate: true,
	Default:             defaultReplicationController,
	PrepareCreate: func(r *corev1.ReplicationController) {
		r.Generation, r.Status = 1, corev1.ReplicationControllerStatus{}
	},
	PrepareUpdate: func(new, old *corev1.ReplicationController) {
		new.Status = old.Status
		raiseIf(!same(new.Spec, old.Spec), new)
	},
	Warnings: func(new, old *corev1.ReplicationController) []string {
		if new.Spec.Template == nil {
			return nil
		}
		if old == nil {
			return templateWarnings(templatePath, new.Spec.Template, nil)
		}
		return templateWarnings(templatePath, new.Spec.Template, old.Spec.Template)
	},
	Status: &DoorOf[*corev1.ReplicationController]{
		ValidateUpdate: validate.ReplicationControllerStatusUpdate,
		PrepareUpdate:  func(new, old *corev1.ReplicationController) { new.Spec = old.Spec },
	},
	Scale: &ScaleOf[*corev1.ReplicationController]{
		SpecReplicas:    func(r *corev1.ReplicationController) int32 { return ptr.Deref(r.Spec.Replicas, 0) },
		SetSpecReplicas: func(r *corev1.ReplicationController, n int32) { r.Spec.Replicas = &n },
		StatusReplicas:  func(r *corev1.ReplicationController) int32 { return r.Status.Replicas },
		Selector: func(r *corev1.ReplicationController) string {
			return labels.SelectorFromSet(r.Spec.Selector).String()
		},
	},
	Selectable: map[string]func(*corev1.ReplicationController) string{
		"status.replicas": func(r *corev1.ReplicationController) string { return strconv.Itoa(int(r.Status.Replicas)) },
	},
	Columns: columns("Desired:integer, Current:integer, Ready:integer | Containers, Images, Selector"),
	Cells: func(r *corev1.ReplicationController, now time.Time) []any {
		names, images := "", ""
		if r.Spec.Template != nil {
			names, images = containerCells(r.Spec.Template.Spec.Containers)
		}
		return []any{r.Name, int64(ptr.Deref(r.Spec.Replicas, 0)), int64(r.Status.Replicas), int64(r.Status.ReadyReplicas),
			age(r, now), names, images, mapCell(r.Spec.Selector)}
	},
})

// defaultReplicationController takes selector and labels from the template.
func defaultReplicationController(r *corev1.ReplicationController) {
	fillPtr(&r.Spec.Replicas, 1)
	if t := r.Spec.Template; t != nil {
		if len(t.Labels) > 0 {
			if len(r.Spec.Selector) == 0 {
				r.Spec.Selector = maps.Clone(t.Labels)
			}
			if len(r.Labels) == 0 {
				r.Labels = maps.Clone(t.Labels)
			}
		}
		defaultTemplate(t)
	}
}
