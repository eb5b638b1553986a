package validate

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// APIService checks a new or changed registration of a server for a group version.
func APIService(a *apiregistrationv1.APIService) field.ErrorList {
	s, path := &a.Spec, spec()
	want := s.Version + "." + s.Group
	errs := ObjectMeta(&a.ObjectMeta, false, func(name string, prefix bool) []string {
		if msgs := NamePathSegment(name, prefix); len(msgs) > 0 {
			return msgs
		}
		if name != want {
			return []string{fmt.Sprintf("must be `spec.version+\".\"+spec.group`: %q", want)}
		}
		return nil
	}, meta())
	if s.Group == "" && s.Version != "v1" {
		errs = append(errs, field.Required(path.Child("group"), "only v1 may have an empty group and it better be legacy kube"))
	}
	if s.Group != "" {
		errs = append(errs, dnsSubdomain(s.Group, path.Child("group"))...)
	}
	errs = append(errs, invalid(path.Child("version"), s.Version, validation.IsDNS1035Label(s.Version))...)
	if n := s.GroupPriorityMinimum; n <= 0 || n > 20000 {
		errs = append(errs, field.Invalid(path.Child("groupPriorityMinimum"), n, "must be positive and less than 20000"))
	}
	if n := s.VersionPriority; n <= 0 || n > 1000 {
		errs = append(errs, field.Invalid(path.Child("versionPriority"), n, "must be positive and less than 1000"))
	}
	if s.Service == nil {
		if len(s.CABundle) != 0 {
			errs = append(errs, field.Invalid(path.Child("caBundle"), fmt.Sprintf("%d bytes", len(s.CABundle)), "local APIServices may not have a caBundle"))
		}
		if s.InsecureSkipTLSVerify {
			errs = append(errs, field.Invalid(path.Child("insecureSkipTLSVerify"), true, "local APIServices may not have insecureSkipTLSVerify"))
		}
		return errs
	}
	p := path.Child("service")
	errs = append(errs, required(s.Service.Namespace, p.Child("namespace"))...)
	errs = append(errs, required(s.Service.Name, p.Child("name"))...)
	port := deref(s.Service.Port)
	if msgs := validation.IsValidPortNum(int(port)); msgs != nil {
		errs = append(errs, field.Invalid(p.Child("port"), port, "port is not valid: "+strings.Join(msgs, ", ")))
	}
	if s.InsecureSkipTLSVerify && len(s.CABundle) > 0 {
		errs = append(errs, field.Invalid(path.Child("insecureSkipTLSVerify"), true, "may not be true if caBundle is present"))
	}
	return errs
}

// APIServiceUpdate checks an update of a registration.
func APIServiceUpdate(new, old *apiregistrationv1.APIService) field.ErrorList {
	return append(ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta()), APIService(new)...)
}

// APIServiceStatusUpdate checks an update of a registration's status.
func APIServiceStatusUpdate(new, old *apiregistrationv1.APIService) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	for i, c := range new.Status.Conditions {
		errs = append(errs, supported(c.Status, status().Child("conditions").Index(i).Child("status"),
			apiregistrationv1.ConditionFalse, apiregistrationv1.ConditionTrue, apiregistrationv1.ConditionUnknown)...)
	}
	return errs
}
