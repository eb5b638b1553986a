package kind

import (
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"proa.dev/kind/validate"
)

// Deployment keeps replicas of a template running and changes them gradually.
var Deployment = define[appsv1.DeploymentList](Row[*appsv1.Deployment]{
	Names: Names{
		Group: "apps", Version: "v1", Kind: "Deployment", Plural: "deployments",
		ShortNames: []string{"deploy"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "deployments",
	},
	Validate:            validate.Deployment,
	ValidateUpdate:      validate.DeploymentUpdate,
	UnconditionalUpdate: true,
	Default:             defaultDeployment,
	PrepareCreate: func(d *appsv1.Deployment) {
		d.Generation, d.Status = 1, appsv1.DeploymentStatus{}
	},
	PrepareUpdate: func(new, old *appsv1.Deployment) {
		new.Status = old.Status
		raiseIf(!same(new.Spec, old.Spec) || !same(new.Annotations, old.Annotations), new)
	},
	Warnings: func(new, old *appsv1.Deployment) []string {
		if old == nil {
			return templateWarnings(templatePath, &new.Spec.Template, nil)
		}
		return templateWarnings(templatePath, &new.Spec.Template, &old.Spec.Template)
	},
	Status: &DoorOf[*appsv1.Deployment]{
		ValidateUpdate: validate.DeploymentStatusUpdate,
		PrepareUpdate:  func(new, old *appsv1.Deployment) { new.Spec, new.Labels = old.Spec, old.Labels },
	},
	Scale: &ScaleOf[*appsv1.Deployment]{
		SpecReplicas:    func(d *appsv1.Deployment) int32 { return ptr.Deref(d.Spec.Replicas, 0) },
		SetSpecReplicas: func(d *appsv1.Deployment, n int32) { d.Spec.Replicas = &n },
		StatusReplicas:  func(d *appsv1.Deployment) int32 { return d.Status.Replicas },
		Selector:        func(d *appsv1.Deployment) string { return scaleSelector(d.Spec.Selector) },
	},
	Columns: columns("Ready, Up-to-date, Available | Containers, Images, Selector"),
	Cells: func(d *appsv1.Deployment, now time.Time) []any {
		names, images := containerCells(d.Spec.Template.Spec.Containers)
		return []any{d.Name, fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, ptr.Deref(d.Spec.Replicas, 0)),
			int64(d.Status.UpdatedReplicas), int64(d.Status.AvailableReplicas), age(d, now),
			names, images, selectorCell(d.Spec.Selector)}
	},
})

var templatePath = field.NewPath("spec", "template")

func defaultDeployment(d *appsv1.Deployment) {
	s := &d.Spec
	fillPtr(&s.Replicas, 1)
	fill(&s.Strategy.Type, appsv1.RollingUpdateDeploymentStrategyType)
	if s.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		if s.Strategy.RollingUpdate == nil {
			s.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{}
		}
		fillPtr(&s.Strategy.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
		fillPtr(&s.Strategy.RollingUpdate.MaxSurge, intstr.FromString("25%"))
	}
	fillPtr(&s.RevisionHistoryLimit, 10)
	fillPtr(&s.ProgressDeadlineSeconds, 600)
	defaultTemplate(&s.Template)
}

// scaleSelector is the string form that autoscalers parse.
func scaleSelector(s *metav1.LabelSelector) string {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return ""
	}
	return selector.String()
}

func selectorCell(s *metav1.LabelSelector) string { return orNone(metav1.FormatLabelSelector(s)) }
