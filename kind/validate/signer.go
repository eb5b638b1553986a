package validate

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// signerName checks a name of the form example.org/purpose.
func signerName(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	segments := strings.Split(name, "/")
	if len(segments) != 2 {
		return field.ErrorList{field.Invalid(path, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")}
	}
	errs := invalid(path, segments[0], validation.IsDNS1123Subdomain(segments[0]))
	if len(errs) == 0 && !strings.Contains(segments[0], ".") {
		errs = append(errs, field.Invalid(path, segments[0], "should be a domain with at least two segments separated by dots"))
	}
	errs = append(errs, invalid(path, segments[1], validation.IsDNS1123Subdomain(segments[1]))...)
	if limit := validation.DNS1035LabelMaxLength + 1 + validation.DNS1123SubdomainMaxLength*2 + 1; len(name) > limit {
		errs = append(errs, field.TooLong(path, "", limit))
	}
	return errs
}

// trustBundleName is the rule for names of cluster trust bundles: those that belong
// to a signer carry its name as a prefix, the others hold no colon.
func trustBundleName(signer string) NameFunc {
	return func(name string, prefix bool) []string {
		if signer == "" {
			if strings.Contains(name, ":") {
				return []string{"ClusterTrustBundle without signer name must not have \":\" in its name"}
			}
			return NameDNSSubdomain(name, prefix)
		}
		want := strings.ReplaceAll(signer, "/", ":") + ":"
		rest, ok := strings.CutPrefix(name, want)
		if !ok {
			return []string{fmt.Sprintf("ClusterTrustBundle for signerName %s must be named with prefix %s", signer, want)}
		}
		return NameDNSSubdomain(rest, prefix)
	}
}
