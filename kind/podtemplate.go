package kind

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"proa.dev/kind/validate"
)

// PodTemplate is a template kept by itself.
var PodTemplate = define[corev1.PodTemplateList](Row[*corev1.PodTemplate]{
	Names: Names{
		Group: "", Version: "v1", Kind: "PodTemplate", Plural: "podtemplates",
		Scope:  Namespaced,
		Prefix: "podtemplates",
	},
	Validate:            validate.PodTemplate,
	ValidateUpdate:      validate.PodTemplateUpdate,
	UnconditionalUpdate: true,
	Default:             func(t *corev1.PodTemplate) { defaultTemplate(&t.Template) },
	PrepareCreate:       func(t *corev1.PodTemplate) { t.Generation = 1 },
	PrepareUpdate: func(new, old *corev1.PodTemplate) {
		raiseIf(!same(new.Template, old.Template), new)
	},
	Warnings: func(new, old *corev1.PodTemplate) []string {
		if old == nil {
			return templateWarnings(field.NewPath("template"), &new.Template, nil)
		}
		return templateWarnings(field.NewPath("template"), &new.Template, &old.Template)
	},
	Columns: columnsExactly("Name, Containers, Images, Pod Labels"),
	Cells: func(t *corev1.PodTemplate, _ time.Time) []any {
		names, images := containerCells(t.Template.Spec.Containers)
		return []any{t.Name, names, images, mapCell(t.Template.Labels)}
	},
})
