package validate

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	maxMatchConditions      = 64
	maxAuditAnnotations     = 20
	maxValueExpressionBytes = 5 << 10
)

// ValidatingWebhookConfiguration checks a new or changed configuration.
func ValidatingWebhookConfiguration(c *admissionv1.ValidatingWebhookConfiguration) field.ErrorList {
	errs := ObjectMeta(&c.ObjectMeta, false, NameDNSSubdomain, meta())
	names := sets.New[string]()
	for i := range c.Webhooks {
		w, p := &c.Webhooks[i], field.NewPath("webhooks").Index(i)
		errs = append(errs, webhook(w, p)...)
		errs = append(errs, uniqueName(names, w.Name, p)...)
	}
	return errs
}

// ValidatingWebhookConfigurationUpdate checks an update of a configuration.
func ValidatingWebhookConfigurationUpdate(new, old *admissionv1.ValidatingWebhookConfiguration) field.ErrorList {
	return append(ValidatingWebhookConfiguration(new), ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
}

// MutatingWebhookConfiguration checks a new or changed configuration.
func MutatingWebhookConfiguration(c *admissionv1.MutatingWebhookConfiguration) field.ErrorList {
	errs := ObjectMeta(&c.ObjectMeta, false, NameDNSSubdomain, meta())
	names := sets.New[string]()
	for i := range c.Webhooks {
		w, p := &c.Webhooks[i], field.NewPath("webhooks").Index(i)
		errs = append(errs, webhook(&admissionv1.ValidatingWebhook{Name: w.Name, ClientConfig: w.ClientConfig, Rules: w.Rules,
			FailurePolicy: w.FailurePolicy, MatchPolicy: w.MatchPolicy, NamespaceSelector: w.NamespaceSelector, ObjectSelector: w.ObjectSelector,
			SideEffects: w.SideEffects, TimeoutSeconds: w.TimeoutSeconds, AdmissionReviewVersions: w.AdmissionReviewVersions, MatchConditions: w.MatchConditions}, p)...)
		if r := w.ReinvocationPolicy; r != nil {
			errs = append(errs, supported(*r, p.Child("reinvocationPolicy"), admissionv1.IfNeededReinvocationPolicy, admissionv1.NeverReinvocationPolicy)...)
		}
		errs = append(errs, uniqueName(names, w.Name, p)...)
	}
	return errs
}

// MutatingWebhookConfigurationUpdate checks an update of a configuration.
func MutatingWebhookConfigurationUpdate(new, old *admissionv1.MutatingWebhookConfiguration) field.ErrorList {
	return append(MutatingWebhookConfiguration(new), ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
}

func uniqueName(seen sets.Set[string], name string, path *field.Path) field.ErrorList {
	if seen.Has(name) {
		return field.ErrorList{field.Duplicate(path.Child("name"), name)}
	}
	seen.Insert(name)
	return nil
}

func webhook(w *admissionv1.ValidatingWebhook, path *field.Path) field.ErrorList {
	errs := validation.IsFullyQualifiedName(path.Child("name"), w.Name)
	for i := range w.Rules {
		errs = append(errs, ruleWithOperations(&w.Rules[i], path.Child("rules").Index(i))...)
	}
	errs = append(errs, failureAndMatch(w.FailurePolicy, w.MatchPolicy, path)...)
	if w.SideEffects == nil {
		errs = append(errs, field.Required(path.Child("sideEffects"), fmt.Sprintf("must specify one of %s, %s", admissionv1.SideEffectClassNone, admissionv1.SideEffectClassNoneOnDryRun)))
	} else {
		errs = append(errs, supported(*w.SideEffects, path.Child("sideEffects"), admissionv1.SideEffectClassNone, admissionv1.SideEffectClassNoneOnDryRun)...)
	}
	if t := w.TimeoutSeconds; t != nil && (*t > 30 || *t < 1) {
		errs = append(errs, field.Invalid(path.Child("timeoutSeconds"), *t, "the timeout value must be between 1 and 30 seconds"))
	}
	errs = append(errs, labelSelector(w.NamespaceSelector, path.Child("namespaceSelector"))...)
	errs = append(errs, labelSelector(w.ObjectSelector, path.Child("objectSelector"))...)
	errs = append(errs, webhookClient(&w.ClientConfig, path.Child("clientConfig"))...)
	errs = append(errs, reviewVersions(w.AdmissionReviewVersions, path.Child("admissionReviewVersions"))...)
	return append(errs, matchConditions(w.MatchConditions, path.Child("matchConditions"))...)
}

func failureAndMatch(failure *admissionv1.FailurePolicyType, match *admissionv1.MatchPolicyType, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if failure != nil {
		errs = append(errs, supported(*failure, path.Child("failurePolicy"), admissionv1.Fail, admissionv1.Ignore)...)
	}
	if match != nil {
		errs = append(errs, supported(*match, path.Child("matchPolicy"), admissionv1.Equivalent, admissionv1.Exact)...)
	}
	return errs
}

func reviewVersions(versions []string, path *field.Path) field.ErrorList {
	if len(versions) == 0 {
		return field.ErrorList{field.Required(path, "must specify one of v1, v1beta1")}
	}
	var errs field.ErrorList
	seen, known := sets.New[string](), false
	for i, v := range versions {
		if seen.Has(v) {
			errs = append(errs, field.Invalid(path.Index(i), v, "duplicate version"))
			continue
		}
		seen.Insert(v)
		errs = append(errs, invalid(path.Index(i), v, validation.IsDNS1035Label(v))...)
		known = known || v == "v1" || v == "v1beta1"
	}
	if !known {
		errs = append(errs, field.Invalid(path, versions, "must include at least one of v1, v1beta1"))
	}
	return errs
}

func webhookClient(c *admissionv1.WebhookClientConfig, path *field.Path) field.ErrorList {
	switch {
	case (c.URL == nil) == (c.Service == nil):
		return field.ErrorList{field.Required(path, "exactly one of url or service is required")}
	case c.URL != nil:
		return webhookURL(*c.URL, path.Child("url"))
	}
	s, p := c.Service, path.Child("service")
	var errs field.ErrorList
	if s.Name == "" {
		errs = append(errs, field.Required(p.Child("name"), "service name is required"))
	}
	if s.Namespace == "" {
		errs = append(errs, field.Required(p.Child("namespace"), "service namespace is required"))
	}
	if s.Port != nil {
		for _, msg := range validation.IsValidPortNum(int(*s.Port)) {
			errs = append(errs, field.Invalid(p.Child("port"), *s.Port, "port is not valid: "+msg))
		}
	}
	if s.Path != nil {
		errs = append(errs, webhookPath(*s.Path, p.Child("path"))...)
	}
	return errs
}

const urlForm = "; desired format: https://host[/path]"

func webhookURL(raw string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	u, err := url.Parse(raw)
	if err != nil {
		return field.ErrorList{field.Required(path, "url must be a valid URL: "+err.Error()+urlForm)}
	}
	if u.Scheme != "https" {
		errs = append(errs, field.Invalid(path, u.Scheme, "'https' is the only allowed URL scheme"+urlForm))
	}
	if u.Host == "" {
		errs = append(errs, field.Invalid(path, u.Host, "host must be specified"+urlForm))
	}
	if u.User != nil {
		errs = append(errs, field.Invalid(path, u.User.String(), "user information is not permitted in the URL"))
	}
	if u.Fragment != "" {
		errs = append(errs, field.Invalid(path, u.Fragment, "fragments are not permitted in the URL"))
	}
	if u.RawQuery != "" {
		errs = append(errs, field.Invalid(path, u.RawQuery, "query parameters are not permitted in the URL"))
	}
	return errs
}

func webhookPath(value string, path *field.Path) field.ErrorList {
	if value == "/" || value == "" {
		return nil
	}
	var errs field.ErrorList
	if value == "//" {
		return field.ErrorList{field.Invalid(path, value, "segment[0] may not be empty")}
	}
	if !strings.HasPrefix(value, "/") {
		errs = append(errs, field.Invalid(path, value, "must start with a '/'"))
	}
	steps := strings.Split(strings.TrimSuffix(strings.TrimPrefix(value, "/"), "/"), "/")
	for i, step := range steps {
		if step == "" {
			errs = append(errs, field.Invalid(path, value, fmt.Sprintf("segment[%d] may not be empty", i)))
			continue
		}
		for _, msg := range validation.IsDNS1123Subdomain(step) {
			errs = append(errs, field.Invalid(path, value, fmt.Sprintf("segment[%d]: %v", i, msg)))
		}
	}
	return errs
}

var operations = []admissionv1.OperationType{admissionv1.OperationAll, admissionv1.Connect, admissionv1.Create, admissionv1.Delete, admissionv1.Update}

func ruleWithOperations(r *admissionv1.RuleWithOperations, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(r.Operations) == 0 {
		errs = append(errs, field.Required(path.Child("operations"), ""))
	}
	if len(r.Operations) > 1 && slices.Contains(r.Operations, admissionv1.OperationAll) {
		errs = append(errs, field.Invalid(path.Child("operations"), r.Operations, "if '*' is present, must not specify other operations"))
	}
	for i, o := range r.Operations {
		errs = append(errs, supported(o, path.Child("operations").Index(i), operations...)...)
	}
	for _, f := range []struct {
		name string
		list []string
	}{{"apiGroups", r.APIGroups}, {"apiVersions", r.APIVersions}} {
		p := path.Child(f.name)
		if len(f.list) == 0 {
			errs = append(errs, field.Required(p, ""))
		}
		if len(f.list) > 1 && slices.Contains(f.list, "*") {
			what := "API groups"
			if f.name == "apiVersions" {
				what = "API versions"
			}
			errs = append(errs, field.Invalid(p, f.list, "if '*' is present, must not specify other "+what))
		}
		for i, v := range f.list {
			if f.name == "apiVersions" && v == "" {
				errs = append(errs, field.Required(p.Index(i), ""))
			}
		}
	}
	errs = append(errs, ruleResources(r.Resources, path.Child("resources"))...)
	if r.Scope != nil {
		errs = append(errs, supported(*r.Scope, path.Child("scope"), admissionv1.AllScopes, admissionv1.ClusterScope, admissionv1.NamespacedScope)...)
	}
	return errs
}

func ruleResources(resources []string, path *field.Path) field.ErrorList {
	if len(resources) == 0 {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	wholes := sets.New[string]()  // x where x/* is present
	subWild := sets.New[string]() // y where */y is present
	for i, r := range resources {
		if r == "" {
			errs = append(errs, field.Required(path.Index(i), ""))
			continue
		}
		if r == "*/*" && len(resources) > 1 {
			errs = append(errs, field.Invalid(path.Index(i), r, "if '*/*' is present, must not specify other resources"))
		}
		base, sub, ok := strings.Cut(r, "/")
		if ok && subWild.Has(sub) {
			errs = append(errs, field.Invalid(path.Index(i), r, fmt.Sprintf("if '*/%s' is present, must not specify %s", sub, r)))
		}
		if ok && wholes.Has(base) {
			errs = append(errs, field.Invalid(path.Index(i), r, fmt.Sprintf("if '%s/*' is present, must not specify %s", base, r)))
		}
		if ok && sub == "*" {
			wholes.Insert(base)
		}
		if ok && base == "*" {
			subWild.Insert(sub)
		}
	}
	if slices.Contains(resources, "*") && slices.ContainsFunc(resources, func(r string) bool { return r != "*" && !strings.Contains(r, "/") }) {
		errs = append(errs, field.Invalid(path, resources, "if '*' is present, must not specify other resources without subresources"))
	}
	return errs
}

func matchConditions(list []admissionv1.MatchCondition, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(list) > maxMatchConditions {
		errs = append(errs, field.TooMany(path, len(list), maxMatchConditions))
	}
	seen := sets.New[string]()
	for i, c := range list {
		p := path.Index(i)
		if strings.TrimSpace(c.Expression) == "" {
			errs = append(errs, field.Required(p.Child("expression"), ""))
		}
		if c.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
			continue
		}
		errs = append(errs, qualifiedName(c.Name, p.Child("name"))...)
		if seen.Has(c.Name) {
			errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
		}
		seen.Insert(c.Name)
	}
	return errs
}

// ValidatingAdmissionPolicy checks a policy's form; its expressions are compiled elsewhere.
func ValidatingAdmissionPolicy(a *admissionv1.ValidatingAdmissionPolicy) field.ErrorList {
	errs := ObjectMeta(&a.ObjectMeta, false, NameDNSSubdomain, meta())
	s, path := &a.Spec, spec()
	if s.FailurePolicy == nil {
		errs = append(errs, field.Required(path.Child("failurePolicy"), ""))
	} else {
		errs = append(errs, failureAndMatch(s.FailurePolicy, nil, path)...)
	}
	errs = append(errs, paramKind(s.ParamKind, path.Child("paramKind"))...)
	errs = append(errs, matchConstraints(s.MatchConstraints, path.Child("matchConstraints"))...)
	errs = append(errs, matchConditions(s.MatchConditions, path.Child("matchConditions"))...)
	errs = append(errs, variables(s.Variables, path.Child("variables"))...)
	if len(s.Validations) == 0 && len(s.AuditAnnotations) == 0 {
		errs = append(errs, field.Required(path.Child("validations"), "validations or auditAnnotations must be set"))
		errs = append(errs, field.Required(path.Child("auditAnnotations"), "validations or auditAnnotations must be set"))
	}
	for i, v := range s.Validations {
		p := path.Child("validations").Index(i)
		trimmed := strings.TrimSpace(v.Message)
		if strings.TrimSpace(v.Expression) == "" {
			errs = append(errs, field.Required(p.Child("expression"), "expression is not specified"))
		}
		if v.MessageExpression != "" && strings.TrimSpace(v.MessageExpression) == "" {
			errs = append(errs, field.Invalid(p.Child("messageExpression"), v.MessageExpression, "must be non-empty if specified"))
		}
		if v.Message != "" && trimmed == "" {
			errs = append(errs, field.Invalid(p.Child("message"), v.Message, "message must be non-empty if specified"))
		} else if strings.Contains(trimmed, "\n") {
			errs = append(errs, field.Invalid(p.Child("message"), v.Message, "message must not contain line breaks"))
		} else if strings.Contains(v.Expression, "\n") && trimmed == "" {
			errs = append(errs, field.Required(p.Child("message"), "message must be specified if expression contains line breaks"))
		}
		if v.Reason != nil {
			errs = append(errs, supported(*v.Reason, p.Child("reason"), metav1.StatusReasonForbidden, metav1.StatusReasonInvalid, metav1.StatusReasonRequestEntityTooLarge, metav1.StatusReasonUnauthorized)...)
		}
	}
	if len(s.AuditAnnotations) > maxAuditAnnotations {
		errs = append(errs, field.Invalid(path.Child("auditAnnotations"), s.AuditAnnotations, fmt.Sprintf("must not have more than %d auditAnnotations", maxAuditAnnotations)))
	}
	keys := sets.New[string]()
	for i, ann := range s.AuditAnnotations {
		p := path.Child("auditAnnotations").Index(i)
		if keys.Has(ann.Key) {
			errs = append(errs, field.Duplicate(p.Child("key"), ann.Key))
		}
		keys.Insert(ann.Key)
		errs = append(errs, qualifiedName(a.Name+"/"+ann.Key, p.Child("key"))...)
		if t := strings.TrimSpace(ann.ValueExpression); t == "" {
			errs = append(errs, field.Required(p.Child("valueExpression"), "valueExpression is not specified"))
		} else if len(t) > maxValueExpressionBytes {
			errs = append(errs, field.Required(p.Child("valueExpression"), fmt.Sprintf("must not exceed %d bytes in length", maxValueExpressionBytes)))
		}
	}
	return errs
}

// ValidatingAdmissionPolicyUpdate checks an update of a policy, also of its status.
func ValidatingAdmissionPolicyUpdate(new, old *admissionv1.ValidatingAdmissionPolicy) field.ErrorList {
	return append(ValidatingAdmissionPolicy(new), ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
}

// MutatingAdmissionPolicy checks a policy's form; its expressions are compiled elsewhere.
func MutatingAdmissionPolicy(a *admissionv1.MutatingAdmissionPolicy) field.ErrorList {
	errs := ObjectMeta(&a.ObjectMeta, false, NameDNSSubdomain, meta())
	s, path := &a.Spec, spec()
	if s.FailurePolicy == nil {
		errs = append(errs, field.Required(path.Child("failurePolicy"), ""))
	} else {
		errs = append(errs, failureAndMatch(s.FailurePolicy, nil, path)...)
	}
	errs = append(errs, requiredSupported(s.ReinvocationPolicy, path.Child("reinvocationPolicy"), admissionv1.IfNeededReinvocationPolicy, admissionv1.NeverReinvocationPolicy)...)
	errs = append(errs, paramKind(s.ParamKind, path.Child("paramKind"))...)
	errs = append(errs, matchConstraints(s.MatchConstraints, path.Child("matchConstraints"))...)
	errs = append(errs, matchConditions(s.MatchConditions, path.Child("matchConditions"))...)
	errs = append(errs, variables(s.Variables, path.Child("variables"))...)
	if len(s.Mutations) == 0 {
		errs = append(errs, field.Required(path.Child("mutations"), "mutations must contain at least one item"))
	}
	for i := range s.Mutations {
		errs = append(errs, mutation(&s.Mutations[i], path.Child("mutations").Index(i))...)
	}
	return errs
}

func mutation(m *admissionv1.Mutation, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	json, apply := path.Child("jsonPatch"), path.Child("applyConfiguration")
	switch m.PatchType {
	case "":
		return field.ErrorList{field.Required(path.Child("patchType"), "")}
	case admissionv1.PatchTypeJSONPatch:
		if m.JSONPatch == nil {
			errs = append(errs, field.Required(json, "must be specified when patchType is JSONPatch"))
		} else if strings.TrimSpace(m.JSONPatch.Expression) == "" {
			errs = append(errs, field.Required(json.Child("expression"), ""))
		}
		if m.ApplyConfiguration != nil {
			errs = append(errs, field.Invalid(apply, "{applyConfiguration}", "must not be specified when patchType is JSONPatch"))
		}
	case admissionv1.PatchTypeApplyConfiguration:
		if m.ApplyConfiguration == nil {
			errs = append(errs, field.Required(apply, "must be specified when patchType is ApplyConfiguration"))
		} else if strings.TrimSpace(m.ApplyConfiguration.Expression) == "" {
			errs = append(errs, field.Required(apply.Child("expression"), ""))
		}
		if m.JSONPatch != nil {
			errs = append(errs, field.Invalid(json, "{jsonPatch}", "must not be specified when patchType is ApplyConfiguration"))
		}
	default:
		errs = append(errs, supported(m.PatchType, path.Child("patchType"), admissionv1.PatchTypeApplyConfiguration, admissionv1.PatchTypeJSONPatch)...)
	}
	return errs
}

// MutatingAdmissionPolicyUpdate checks an update of a policy.
func MutatingAdmissionPolicyUpdate(new, old *admissionv1.MutatingAdmissionPolicy) field.ErrorList {
	return append(MutatingAdmissionPolicy(new), ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
}

func paramKind(k *admissionv1.ParamKind, path *field.Path) field.ErrorList {
	if k == nil {
		return nil
	}
	var errs field.ErrorList
	if k.APIVersion == "" {
		errs = append(errs, field.Required(path.Child("apiVersion"), ""))
	} else if gv, err := schema.ParseGroupVersion(k.APIVersion); err != nil {
		errs = append(errs, field.Invalid(path.Child("apiVersion"), k.APIVersion, err.Error()))
	} else {
		if gv.Group != "" {
			errs = append(errs, invalid(path.Child("apiVersion"), gv.Group, validation.IsDNS1123Subdomain(gv.Group))...)
		}
		errs = append(errs, invalid(path.Child("apiVersion"), gv.Version, validation.IsDNS1035Label(gv.Version))...)
	}
	if k.Kind == "" {
		return append(errs, field.Required(path.Child("kind"), ""))
	}
	if msgs := validation.IsDNS1035Label(strings.ToLower(k.Kind)); len(msgs) > 0 {
		errs = append(errs, field.Invalid(path.Child("kind"), k.Kind, "may have mixed case, but should otherwise match: "+strings.Join(msgs, ",")))
	}
	return errs
}

func matchConstraints(m *admissionv1.MatchResources, path *field.Path) field.ErrorList {
	if m == nil {
		return field.ErrorList{field.Required(path, "")}
	}
	errs := matchResources(m, path)
	if len(m.ResourceRules) == 0 {
		errs = append(errs, field.Required(path.Child("resourceRules"), ""))
	}
	return errs
}

func matchResources(m *admissionv1.MatchResources, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	errs = append(errs, failureAndMatch(nil, m.MatchPolicy, path)...)
	errs = append(errs, labelSelector(m.NamespaceSelector, path.Child("namespaceSelector"))...)
	errs = append(errs, labelSelector(m.ObjectSelector, path.Child("objectSelector"))...)
	for i := range m.ResourceRules {
		errs = append(errs, ruleWithOperations(&m.ResourceRules[i].RuleWithOperations, path.Child("resourceRules").Index(i))...)
	}
	for i := range m.ExcludeResourceRules {
		errs = append(errs, ruleWithOperations(&m.ExcludeResourceRules[i].RuleWithOperations, path.Child("excludeResourceRules").Index(i))...)
	}
	return errs
}

// celReserved are words that look like identifiers and are none (CEL specification,
// "Syntax").
var celReserved = sets.New("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let",
	"loop", "package", "namespace", "return", "var", "void", "while")

func variables(list []admissionv1.Variable, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, v := range list {
		p := path.Index(i)
		if v.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), "name is not specified"))
		} else if len(validation.IsCIdentifier(v.Name)) > 0 || celReserved.Has(v.Name) {
			errs = append(errs, field.Invalid(p.Child("name"), v.Name, "name is not a valid CEL identifier"))
		}
		if strings.TrimSpace(v.Expression) == "" {
			errs = append(errs, field.Required(p.Child("expression"), "expression is not specified"))
		}
	}
	return errs
}

// ValidatingAdmissionPolicyBinding checks a new or changed binding.
func ValidatingAdmissionPolicyBinding(b *admissionv1.ValidatingAdmissionPolicyBinding) field.ErrorList {
	errs := ObjectMeta(&b.ObjectMeta, false, NameDNSSubdomain, meta())
	errs = append(errs, policyBinding(b.Spec.PolicyName, b.Spec.ParamRef, b.Spec.MatchResources)...)
	p := spec().Child("validationActions")
	if len(b.Spec.ValidationActions) == 0 {
		errs = append(errs, field.Required(p, "at least one validation action is required"))
	}
	seen := sets.New[admissionv1.ValidationAction]()
	for i, a := range b.Spec.ValidationActions {
		errs = append(errs, supported(a, p.Index(i), admissionv1.Audit, admissionv1.Deny, admissionv1.Warn)...)
		if seen.Has(a) {
			errs = append(errs, field.Duplicate(p.Index(i), a))
		}
		seen.Insert(a)
	}
	if seen.HasAll(admissionv1.Deny, admissionv1.Warn) {
		errs = append(errs, field.Invalid(p, b.Spec.ValidationActions, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"))
	}
	return errs
}

// ValidatingAdmissionPolicyBindingUpdate checks an update of a binding.
func ValidatingAdmissionPolicyBindingUpdate(new, old *admissionv1.ValidatingAdmissionPolicyBinding) field.ErrorList {
	return append(ValidatingAdmissionPolicyBinding(new), ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
}

// MutatingAdmissionPolicyBinding checks a new or changed binding.
func MutatingAdmissionPolicyBinding(b *admissionv1.MutatingAdmissionPolicyBinding) field.ErrorList {
	errs := ObjectMeta(&b.ObjectMeta, false, NameDNSSubdomain, meta())
	return append(errs, policyBinding(b.Spec.PolicyName, b.Spec.ParamRef, b.Spec.MatchResources)...)
}

// MutatingAdmissionPolicyBindingUpdate checks an update of a binding.
func MutatingAdmissionPolicyBindingUpdate(new, old *admissionv1.MutatingAdmissionPolicyBinding) field.ErrorList {
	return append(MutatingAdmissionPolicyBinding(new), ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
}

func policyBinding(policy string, ref *admissionv1.ParamRef, match *admissionv1.MatchResources) field.ErrorList {
	var errs field.ErrorList
	if policy == "" {
		errs = append(errs, field.Required(spec().Child("policyName"), ""))
	} else {
		errs = append(errs, invalid(spec().Child("policyName"), policy, NameDNSSubdomain(policy, false))...)
	}
	if ref != nil {
		p := spec().Child("paramRef")
		switch {
		case ref.Name != "" && ref.Selector != nil:
			errs = append(errs, field.Forbidden(p.Child("name"), "name and selector are mutually exclusive"),
				field.Forbidden(p.Child("selector"), "name and selector are mutually exclusive"))
		case ref.Name != "":
			errs = append(errs, invalid(p.Child("name"), ref.Name, NamePathSegment(ref.Name, false))...)
		case ref.Selector != nil:
			errs = append(errs, labelSelector(ref.Selector, p.Child("selector"))...)
		default:
			errs = append(errs, field.Required(p, "one of name or selector must be specified"))
		}
		if ref.ParameterNotFoundAction == nil {
			errs = append(errs, field.Required(p.Child("parameterNotFoundAction"), ""))
		} else {
			errs = append(errs, supported(*ref.ParameterNotFoundAction, p.Child("parameterNotFoundAction"), admissionv1.AllowAction, admissionv1.DenyAction)...)
		}
	}
	if match != nil {
		errs = append(errs, matchResources(match, spec().Child("matchResources"))...)
	}
	return errs
}
