package kind

import (
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"proa.dev/kind/validate"
)

// ControllerRevision keeps one past state of a DaemonSet or StatefulSet.
var ControllerRevision = define[appsv1.ControllerRevisionList](Row[*appsv1.ControllerRevision]{
	Names: Names{
		Group: "apps", Version: "v1", Kind: "ControllerRevision", Plural: "controllerrevisions",
		Scope:  Namespaced,
		Prefix: "controllerrevisions",
	},
	Validate:            validate.ControllerRevision,
	ValidateUpdate:      validate.ControllerRevisionUpdate,
	UnconditionalUpdate: true,
	Columns:             columns("Controller, Revision"),
	Cells: func(r *appsv1.ControllerRevision, now time.Time) []any {
		controller := none
		if ref := metav1.GetControllerOf(r); ref != nil {
			gk := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind).GroupKind()
			controller = strings.ToLower(gk.String()) + "/" + ref.Name
		}
		return []any{r.Name, controller, r.Revision, age(r, now)}
	},
})

// StatefulSet keeps pods with lasting names and volumes.
var StatefulSet = define[appsv1.StatefulSetList](Row[*appsv1.StatefulSet]{
	Names: Names{
		Group: "apps", Version: "v1", Kind: "StatefulSet", Plural: "statefulsets",
		ShortNames: []string{"sts"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "statefulsets",
	},
	Validate:            validate.StatefulSet,
	ValidateUpdate:      validate.StatefulSetUpdate,
	UnconditionalUpdate: true,
	Default:             defaultStatefulSet,
	PrepareCreate: func(s *appsv1.StatefulSet) {
		s.Generation, s.Status = 1, appsv1.StatefulSetStatus{}
	},
	PrepareUpdate: func(new, old *appsv1.StatefulSet) {
		new.Status = old.Status
		raiseIf(!same(new.Spec, old.Spec), new)
	},
	Warnings: func(new, old *appsv1.StatefulSet) []string {
		if old == nil {
			return templateWarnings(templatePath, &new.Spec.Template, nil)
		}
		return templateWarnings(templatePath, &new.Spec.Template, &old.Spec.Template)
	},
	Status: &DoorOf[*appsv1.StatefulSet]{
		ValidateUpdate: validate.StatefulSetStatusUpdate,
		PrepareUpdate:  func(new, old *appsv1.StatefulSet) { new.Spec = old.Spec },
	},
	Scale: &ScaleOf[*appsv1.StatefulSet]{
		SpecReplicas:    func(s *appsv1.StatefulSet) int32 { return ptr.Deref(s.Spec.Replicas, 0) },
		SetSpecReplicas: func(s *appsv1.StatefulSet, n int32) { s.Spec.Replicas = &n },
		StatusReplicas:  func(s *appsv1.StatefulSet) int32 { return s.Status.Replicas },
		Selector:        func(s *appsv1.StatefulSet) string { return scaleSelector(s.Spec.Selector) },
	},
	Columns: columns("Ready | Containers, Images"),
	Cells: func(s *appsv1.StatefulSet, now time.Time) []any {
		names, images := containerCells(s.Spec.Template.Spec.Containers)
		return []any{s.Name, fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, ptr.Deref(s.Spec.Replicas, 0)), age(s, now), names, images}
	},
})

func defaultStatefulSet(s *appsv1.StatefulSet) {
	fill(&s.Spec.PodManagementPolicy, appsv1.OrderedReadyPodManagement)
	u := &s.Spec.UpdateStrategy
	if u.Type == "" {
		u.Type = appsv1.RollingUpdateStatefulSetStrategyType
		if u.RollingUpdate == nil {
			u.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{}
		}
	}
	if u.Type == appsv1.RollingUpdateStatefulSetStrategyType && u.RollingUpdate != nil {
		fillPtr(&u.RollingUpdate.Partition, 0)
		fillPtr(&u.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
	}
	if s.Spec.PersistentVolumeClaimRetentionPolicy == nil {
		s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{}
	}
	fill(&s.Spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	fill(&s.Spec.PersistentVolumeClaimRetentionPolicy.WhenScaled, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	fillPtr(&s.Spec.Replicas, 1)
	fillPtr(&s.Spec.RevisionHistoryLimit, 10)
	defaultTemplate(&s.Spec.Template)
	for i := range s.Spec.VolumeClaimTemplates {
		c := &s.Spec.VolumeClaimTemplates[i]
		c.APIVersion, c.Kind = "v1", "PersistentVolumeClaim"
		fill(&c.Status.Phase, corev1.ClaimPending)
		defaultClaimSpec(&c.Spec)
	}
}
