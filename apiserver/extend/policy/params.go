package policy

import (
	"errors"
	"fmt"

	admissionregv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"proa.dev/apiserver/extend/match"
	"proa.dev/kind"
)

// paramRow is the row of a policy's paramKind; nil when it has none.
func paramRow(q *match.Request, k *admissionregv1.ParamKind) (*kind.Kind, error) {
	if k == nil {
		return nil, nil
	}
	gv, err := schema.ParseGroupVersion(k.APIVersion)
	if err != nil {
		return nil, fmt.Errorf("failed to parse paramKind APIVersion: %w", err)
	}
	row := q.Snapshot.Table().ByKind(gv.WithKind(k.Kind))
	if row == nil || row.Virtual {
		return nil, fmt.Errorf("failed to find resource referenced by paramKind: '%v'", gv.WithKind(k.Kind))
	}
	return row, nil
}

// paramsFor are the objects that a binding evaluates its policy with; one nil when it
// is evaluated without.
func paramsFor(q *match.Request, row *kind.Kind, ref *admissionregv1.ParamRef) ([]runtime.Object, error) {
	if row == nil || ref == nil {
		return []runtime.Object{nil}, nil
	}
	space := ""
	switch {
	case row.Scope == kind.Cluster:
		if ref.Namespace != "" {
			return nil, errors.New("paramRef.namespace must not be provided for a cluster-scoped `paramKind`")
		}
	case ref.Namespace != "":
		space = ref.Namespace
	case q.Space == "":
		return nil, errors.New("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources")
	default:
		space = q.Space
	}
	var out []runtime.Object
	add := func(o kind.Object) error {
		if row.Stored != nil && row.FromStored != nil {
			c, err := row.FromStored(o)
			if err != nil {
				return fmt.Errorf("convert parameter %s %q to %s: %w", row, o.GetName(), row.Version, err)
			}
			o = c
		}
		if o.GetObjectKind().GroupVersionKind() != row.GVK() {
			o = o.DeepCopyObject().(kind.Object)
			o.GetObjectKind().SetGroupVersionKind(row.GVK())
		}
		out = append(out, o)
		return nil
	}
	switch {
	case ref.Name != "" && ref.Selector != nil:
		return nil, errors.New("paramRef.name and paramRef.selector are mutually exclusive")
	case ref.Name != "":
		if o := q.Snapshot.Get(row, space, ref.Name); o != nil {
			if err := add(o); err != nil {
				return nil, err
			}
		}
	case ref.Selector != nil:
		selector, err := metav1.LabelSelectorAsSelector(ref.Selector)
		if err != nil {
			return nil, err
		}
		for o := range q.Snapshot.All(row, space) {
			if selector.Matches(labels.Set(o.GetLabels())) {
				if err := add(o); err != nil {
					return nil, err
				}
			}
		}
	default:
		return nil, errors.New("one of name or selector must be provided")
	}
	if len(out) == 0 && ref.ParameterNotFoundAction != nil && *ref.ParameterNotFoundAction == admissionregv1.DenyAction {
		return nil, errors.New("no params found for policy binding with `Deny` parameterNotFoundAction")
	}
	return out, nil
}
