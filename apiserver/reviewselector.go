package apiserver

import (
	"fmt"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	labelop "k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// checkSelectors of an access review (KEP-4601): raw text or requirements, not
// both and not neither.
func checkSelectors(ra *authorizationv1.ResourceAttributes, p *field.Path) (errs field.ErrorList) {
	either := func(p *field.Path, raw string, n int) {
		if raw != "" && n > 0 {
			errs = append(errs, field.Invalid(p.Child("rawSelector"), raw, "may not specified at the same time as requirements"))
		}
		if raw == "" && n == 0 {
			errs = append(errs, field.Required(p.Child("requirements"), fmt.Sprintf("when %s is specified, requirements or rawSelector is required", p)))
		}
	}
	if f := ra.FieldSelector; f != nil {
		p := p.Child("fieldSelector")
		either(p, f.RawSelector, len(f.Requirements))
		for i, r := range f.Requirements {
			p := p.Child("requirements").Index(i)
			switch r.Operator {
			case metav1.FieldSelectorOpIn, metav1.FieldSelectorOpNotIn:
				if len(r.Values) == 0 {
					errs = append(errs, field.Required(p.Child("values"), "must be specified when `operator` is 'In' or 'NotIn'"))
				}
			case metav1.FieldSelectorOpExists, metav1.FieldSelectorOpDoesNotExist:
				if len(r.Values) > 0 {
					errs = append(errs, field.Forbidden(p.Child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"))
				}
			default:
				errs = append(errs, field.Invalid(p.Child("operator"), r.Operator, "not a valid selector operator"))
			}
			if r.Key == "" {
				errs = append(errs, field.Required(p.Child("key"), "must be specified"))
			}
		}
	}
	if l := ra.LabelSelector; l != nil {
		p := p.Child("labelSelector")
		either(p, l.RawSelector, len(l.Requirements))
		for i, r := range l.Requirements {
			errs = append(errs, metavalidation.ValidateLabelSelectorRequirement(r, metavalidation.LabelSelectorValidationOptions{}, p.Child("requirements").Index(i))...)
		}
	}
	return errs
}

// rawFields as a list would send them. Requirements that have no such form are
// left out: selectors only narrow.
func rawFields(f *authorizationv1.FieldSelectorAttributes) string {
	if f == nil || f.RawSelector != "" {
		if f != nil {
			return f.RawSelector
		}
		return ""
	}
	var terms []fields.Selector
	for _, r := range f.Requirements {
		if len(r.Values) != 1 {
			continue
		}
		switch r.Operator {
		case metav1.FieldSelectorOpIn:
			terms = append(terms, fields.OneTermEqualSelector(r.Key, r.Values[0]))
		case metav1.FieldSelectorOpNotIn:
			terms = append(terms, fields.OneTermNotEqualSelector(r.Key, r.Values[0]))
		}
	}
	return fields.AndSelectors(terms...).String()
}

func rawLabels(l *authorizationv1.LabelSelectorAttributes) string {
	if l == nil || l.RawSelector != "" {
		if l != nil {
			return l.RawSelector
		}
		return ""
	}
	var terms []string
	for _, r := range l.Requirements {
		op := labelop.Operator(strings.ToLower(string(r.Operator)))
		if r.Operator == metav1.LabelSelectorOpDoesNotExist {
			op = labelop.DoesNotExist
		}
		if q, err := labels.NewRequirement(r.Key, op, slices.Clone(r.Values)); err == nil {
			terms = append(terms, q.String())
		}
	}
	return strings.Join(terms, ",")
}
