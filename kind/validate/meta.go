package validate

import (
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Words that many kinds share.
const (
	immutable    = apivalidation.FieldImmutableErrorMsg
	notPositive  = "must be greater than zero"
	notNegative  = apivalidation.IsNegativeErrorMsg
	onlyOneField = "may not have more than one field specified at a time"
)

// NameFunc tells what is wrong with a name; prefix is true for a generateName.
type NameFunc = apivalidation.ValidateNameFunc

// The name rules of the kinds.
var (
	NameDNSSubdomain NameFunc = apivalidation.NameIsDNSSubdomain
	NameDNSLabel     NameFunc = apivalidation.NameIsDNSLabel
	NameDNS1035Label NameFunc = apivalidation.NameIsDNS1035Label
	NamePathSegment  NameFunc = pathvalidation.ValidatePathSegmentName
)

// ObjectMeta checks the metadata of a new object.
func ObjectMeta(meta *metav1.ObjectMeta, namespaced bool, name NameFunc, path *field.Path) field.ErrorList {
	errs := apivalidation.ValidateObjectMeta(meta, namespaced, name, path)
	return append(errs, finalizers(meta.Finalizers, path.Child("finalizers"))...)
}

// ObjectMetaUpdate checks how the metadata of an object may change.
func ObjectMetaUpdate(new, old *metav1.ObjectMeta, path *field.Path) field.ErrorList {
	errs := apivalidation.ValidateObjectMetaUpdate(new, old, path)
	return append(errs, finalizers(new.Finalizers, path.Child("finalizers"))...)
}

var standardFinalizers = sets.New("kubernetes", metav1.FinalizerOrphanDependents, metav1.FinalizerDeleteDependents)

func finalizers(names []string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, name := range names {
		errs = append(errs, kubeFinalizer(name, path.Index(i))...)
	}
	return errs
}

func kubeFinalizer(name string, path *field.Path) field.ErrorList {
	if !strings.Contains(name, "/") && !standardFinalizers.Has(name) {
		return field.ErrorList{field.Invalid(path, name, "name is neither a standard finalizer name nor is it fully qualified")}
	}
	return nil
}

// DeleteOptions checks the options of a delete request.
func DeleteOptions(options *metav1.DeleteOptions) field.ErrorList {
	errs := metavalidation.ValidateDeleteOptions(options)
	return append(errs, metavalidation.ValidateIgnoreStoreReadError(field.NewPath("ignoreStoreReadErrorWithClusterBreakingPotential"), options)...)
}

func meta() *field.Path   { return field.NewPath("metadata") }
func spec() *field.Path   { return field.NewPath("spec") }
func status() *field.Path { return field.NewPath("status") }

// invalid makes one error of each message that a value rule returned.
func invalid(path *field.Path, value any, msgs []string) field.ErrorList {
	var errs field.ErrorList
	for _, msg := range msgs {
		errs = append(errs, field.Invalid(path, value, msg))
	}
	return errs
}

func nonNegative(value int64, path *field.Path) field.ErrorList {
	return apivalidation.ValidateNonnegativeField(value, path)
}

func positive(value int64, path *field.Path) field.ErrorList {
	if value <= 0 {
		return field.ErrorList{field.Invalid(path, value, notPositive)}
	}
	return nil
}

func unchanged(new, old any, path *field.Path) field.ErrorList {
	return apivalidation.ValidateImmutableField(new, old, path)
}

// fixed is unchanged for fields whose rule is declared in the API (+k8s:immutable):
// the value is not shown.
func fixed(new, old any, path *field.Path) field.ErrorList {
	if equality.Semantic.DeepEqual(new, old) {
		return nil
	}
	return field.ErrorList{field.Invalid(path, nil, immutable)}
}

func dnsLabel(value string, path *field.Path) field.ErrorList {
	return invalid(path, value, validation.IsDNS1123Label(value))
}

func dnsSubdomain(value string, path *field.Path) field.ErrorList {
	return invalid(path, value, validation.IsDNS1123Subdomain(value))
}

func qualifiedName(value string, path *field.Path) field.ErrorList {
	return invalid(path, value, validation.IsQualifiedName(value))
}

func portNumber(value int32, path *field.Path) field.ErrorList {
	return invalid(path, value, validation.IsValidPortNum(int(value)))
}

// legacyIP checks an address in a field that has always accepted unusual forms;
// old holds the values that were stored before.
func legacyIP(value string, path *field.Path, old []string) field.ErrorList {
	return validation.IsValidIPForLegacyField(path, value, true, old)
}

func labelSelector(sel *metav1.LabelSelector, path *field.Path) field.ErrorList {
	return metavalidation.ValidateLabelSelector(sel, metavalidation.LabelSelectorValidationOptions{}, path)
}

// lax lets values of labels pass that the old object has in its selector: they were
// not checked once.
func lax(old *metav1.LabelSelector) metavalidation.LabelSelectorValidationOptions {
	return metavalidation.LabelSelectorValidationOptions{AllowInvalidLabelValueInSelector: len(labelSelector(old, nil)) > 0}
}

func labels(values map[string]string, path *field.Path) field.ErrorList {
	return metavalidation.ValidateLabels(values, path)
}

func labelName(value string, path *field.Path) field.ErrorList {
	return metavalidation.ValidateLabelName(value, path)
}

// supported reports an unsupported value; the list is shown in the order given.
func supported[T ~string](value T, path *field.Path, values ...T) field.ErrorList {
	for _, v := range values {
		if v == value {
			return nil
		}
	}
	return field.ErrorList{field.NotSupported(path, value, values)}
}

// requiredSupported is supported with a "Required value" for the empty string.
func requiredSupported[T ~string](value T, path *field.Path, values ...T) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return supported(value, path, values...)
}

// required reports an empty string.
func required(value string, path *field.Path) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return nil
}

func annotations(values map[string]string, path *field.Path) field.ErrorList {
	return apivalidation.ValidateAnnotations(values, path)
}
