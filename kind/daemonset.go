package kind

import (
	"maps"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"proa.dev/kind/validate"
)

// DaemonSet keeps one pod on each matching node.
var DaemonSet = define[appsv1.DaemonSetList](Row[*appsv1.DaemonSet]{
	Names: Names{
		Group: "apps", Version: "v1", Kind: "DaemonSet", Plural: "daemonsets",
		ShortNames: []string{"ds"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "daemonsets",
	},
	Validate:            validate.DaemonSet,
	ValidateUpdate:      validate.DaemonSetUpdate,
	UnconditionalUpdate: true,
	Default:             defaultDaemonSet,
	PrepareCreate: func(d *appsv1.DaemonSet) {
		d.Generation, d.Status = 1, appsv1.DaemonSetStatus{}
		if templateGeneration(d) < 1 {
			setTemplateGeneration(d, 1)
		}
	},
	PrepareUpdate: func(new, old *appsv1.DaemonSet) {
		new.Status = old.Status
		generation := templateGeneration(old)
		if !same(new.Spec.Template, old.Spec.Template) {
			generation++
		}
		setTemplateGeneration(new, generation)
		raiseIf(!same(new.Spec, old.Spec), new)
	},
	Warnings: func(new, old *appsv1.DaemonSet) []string {
		if old == nil {
			return templateWarnings(templatePath, &new.Spec.Template, nil)
		}
		return templateWarnings(templatePath, &new.Spec.Template, &old.Spec.Template)
	},
	Status: &DoorOf[*appsv1.DaemonSet]{
		ValidateUpdate: validate.DaemonSetStatusUpdate,
		PrepareUpdate:  func(new, old *appsv1.DaemonSet) { new.Spec = old.Spec },
	},
	Columns: columns("Desired:integer, Current:integer, Ready:integer, Up-to-date:integer, Available:integer, Node Selector | Containers, Images, Selector"),
	Cells: func(d *appsv1.DaemonSet, now time.Time) []any {
		names, images := containerCells(d.Spec.Template.Spec.Containers)
		s := &d.Status
		return []any{d.Name, int64(s.DesiredNumberScheduled), int64(s.CurrentNumberScheduled), int64(s.NumberReady),
			int64(s.UpdatedNumberScheduled), int64(s.NumberAvailable), mapCell(d.Spec.Template.Spec.NodeSelector),
			age(d, now), names, images, selectorCell(d.Spec.Selector)}
	},
})

func defaultDaemonSet(d *appsv1.DaemonSet) {
	u := &d.Spec.UpdateStrategy
	fill(&u.Type, appsv1.RollingUpdateDaemonSetStrategyType)
	if u.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		if u.RollingUpdate == nil {
			u.RollingUpdate = &appsv1.RollingUpdateDaemonSet{}
		}
		fillPtr(&u.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
		fillPtr(&u.RollingUpdate.MaxSurge, intstr.FromInt32(0))
	}
	fillPtr(&d.Spec.RevisionHistoryLimit, 10)
	defaultTemplate(&d.Spec.Template)
}

// templateGeneration counts template changes in an annotation, where clients of
// the oldest API still look for it.
func templateGeneration(d *appsv1.DaemonSet) int64 {
	n, err := strconv.ParseInt(d.Annotations[appsv1.DeprecatedTemplateGeneration], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func setTemplateGeneration(d *appsv1.DaemonSet, n int64) {
	annotations := maps.Clone(d.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[appsv1.DeprecatedTemplateGeneration] = strconv.FormatInt(n, 10)
	d.Annotations = annotations
}
