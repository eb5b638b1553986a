package kind

import (
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind/validate"
)

// MutatingAdmissionPolicy changes objects by expressions on their way in.
var MutatingAdmissionPolicy = define[admissionv1.MutatingAdmissionPolicyList](Row[*admissionv1.MutatingAdmissionPolicy]{
	Names: Names{
		Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingAdmissionPolicy", Plural: "mutatingadmissionpolicies",
		Categories: []string{"api-extensions"},
		Scope:      Cluster,
		Prefix:     "mutatingadmissionpolicies",
	},
	Validate:       validate.MutatingAdmissionPolicy,
	ValidateUpdate: validate.MutatingAdmissionPolicyUpdate,
	Default: func(p *admissionv1.MutatingAdmissionPolicy) {
		fillPtr(&p.Spec.FailurePolicy, admissionv1.Fail)
		defaultMatch(p.Spec.MatchConstraints)
	},
	PrepareCreate: func(p *admissionv1.MutatingAdmissionPolicy) { p.Generation = 1 },
	PrepareUpdate: func(new, old *admissionv1.MutatingAdmissionPolicy) { raiseIf(!same(new.Spec, old.Spec), new) },
	Columns:       columns("Mutations:integer, ParamKind"),
	Cells: func(p *admissionv1.MutatingAdmissionPolicy, now time.Time) []any {
		return []any{p.Name, int64(len(p.Spec.Mutations)), paramKindCell(p.Spec.ParamKind), age(p, now)}
	},
})

// MutatingAdmissionPolicyBinding puts a policy to work.
var MutatingAdmissionPolicyBinding = define[admissionv1.MutatingAdmissionPolicyBindingList](Row[*admissionv1.MutatingAdmissionPolicyBinding]{
	Names: Names{
		Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingAdmissionPolicyBinding", Plural: "mutatingadmissionpolicybindings",
		Categories: []string{"api-extensions"},
		Scope:      Cluster,
		Prefix:     "mutatingadmissionpolicybindings",
	},
	Validate:       validate.MutatingAdmissionPolicyBinding,
	ValidateUpdate: validate.MutatingAdmissionPolicyBindingUpdate,
	Default:        func(b *admissionv1.MutatingAdmissionPolicyBinding) { defaultMatch(b.Spec.MatchResources) },
	PrepareCreate:  func(b *admissionv1.MutatingAdmissionPolicyBinding) { b.Generation = 1 },
	PrepareUpdate:  func(new, old *admissionv1.MutatingAdmissionPolicyBinding) { raiseIf(!same(new.Spec, old.Spec), new) },
	Columns:        columns("PolicyName, ParamRef"),
	Cells: func(b *admissionv1.MutatingAdmissionPolicyBinding, now time.Time) []any {
		return []any{b.Name, b.Spec.PolicyName, paramRefCell(b.Spec.ParamRef), age(b, now)}
	},
})

// MutatingWebhookConfiguration sends objects to servers that may change them.
var MutatingWebhookConfiguration = define[admissionv1.MutatingWebhookConfigurationList](Row[*admissionv1.MutatingWebhookConfiguration]{
	Names: Names{
		Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingWebhookConfiguration", Plural: "mutatingwebhookconfigurations",
		Categories: []string{"api-extensions"},
		Scope:      Cluster,
		Prefix:     "mutatingwebhookconfigurations",
	},
	Validate:       validate.MutatingWebhookConfiguration,
	ValidateUpdate: validate.MutatingWebhookConfigurationUpdate,
	Default: func(c *admissionv1.MutatingWebhookConfiguration) {
		for i := range c.Webhooks {
			w := &c.Webhooks[i]
			fillPtr(&w.FailurePolicy, admissionv1.Fail)
			fillPtr(&w.MatchPolicy, admissionv1.Equivalent)
			fillPtr(&w.NamespaceSelector, metav1.LabelSelector{})
			fillPtr(&w.ObjectSelector, metav1.LabelSelector{})
			fillPtr(&w.TimeoutSeconds, 10)
			fillPtr(&w.ReinvocationPolicy, admissionv1.NeverReinvocationPolicy)
			defaultHook(&w.ClientConfig, w.Rules)
		}
	},
	PrepareCreate: func(c *admissionv1.MutatingWebhookConfiguration) { c.Generation = 1 },
	PrepareUpdate: func(new, old *admissionv1.MutatingWebhookConfiguration) {
		raiseIf(!same(new.Webhooks, old.Webhooks), new)
	},
	Columns: columns("Webhooks:integer"),
	Cells: func(c *admissionv1.MutatingWebhookConfiguration, now time.Time) []any {
		return []any{c.Name, int64(len(c.Webhooks)), age(c, now)}
	},
})

// ValidatingAdmissionPolicy refuses objects by expressions.
var ValidatingAdmissionPolicy = define[admissionv1.ValidatingAdmissionPolicyList](Row[*admissionv1.ValidatingAdmissionPolicy]{
	Names: Names{
		Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingAdmissionPolicy", Plural: "validatingadmissionpolicies",
		Categories: []string{"api-extensions"},
		Scope:      Cluster,
		Prefix:     "validatingadmissionpolicies",
	},
	Validate:       validate.ValidatingAdmissionPolicy,
	ValidateUpdate: validate.ValidatingAdmissionPolicyUpdate,
	Default: func(p *admissionv1.ValidatingAdmissionPolicy) {
		fillPtr(&p.Spec.FailurePolicy, admissionv1.Fail)
		defaultMatch(p.Spec.MatchConstraints)
	},
	PrepareCreate: func(p *admissionv1.ValidatingAdmissionPolicy) {
		p.Generation, p.Status = 1, admissionv1.ValidatingAdmissionPolicyStatus{}
	},
	PrepareUpdate: func(new, old *admissionv1.ValidatingAdmissionPolicy) {
		new.Status = old.Status
		raiseIf(!same(new.Spec, old.Spec), new)
	},
	Status: &DoorOf[*admissionv1.ValidatingAdmissionPolicy]{
		ValidateUpdate: validate.ValidatingAdmissionPolicyUpdate,
		PrepareUpdate:  func(new, old *admissionv1.ValidatingAdmissionPolicy) { new.Spec = old.Spec },
	},
	Columns: columns("Validations:integer, ParamKind"),
	Cells: func(p *admissionv1.ValidatingAdmissionPolicy, now time.Time) []any {
		return []any{p.Name, int64(len(p.Spec.Validations)), paramKindCell(p.Spec.ParamKind), age(p, now)}
	},
})

// ValidatingAdmissionPolicyBinding puts a policy to work.
var ValidatingAdmissionPolicyBinding = define[admissionv1.ValidatingAdmissionPolicyBindingList](Row[*admissionv1.ValidatingAdmissionPolicyBinding]{
	Names: Names{
		Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingAdmissionPolicyBinding", Plural: "validatingadmissionpolicybindings",
		Categories: []string{"api-extensions"},
		Scope:      Cluster,
		Prefix:     "validatingadmissionpolicybindings",
	},
	Validate:       validate.ValidatingAdmissionPolicyBinding,
	ValidateUpdate: validate.ValidatingAdmissionPolicyBindingUpdate,
	Default:        func(b *admissionv1.ValidatingAdmissionPolicyBinding) { defaultMatch(b.Spec.MatchResources) },
	PrepareCreate:  func(b *admissionv1.ValidatingAdmissionPolicyBinding) { b.Generation = 1 },
	PrepareUpdate: func(new, old *admissionv1.ValidatingAdmissionPolicyBinding) {
		raiseIf(!same(new.Spec, old.Spec), new)
	},
	Columns: columns("PolicyName, ParamRef"),
	Cells: func(b *admissionv1.ValidatingAdmissionPolicyBinding, now time.Time) []any {
		return []any{b.Name, b.Spec.PolicyName, paramRefCell(b.Spec.ParamRef), age(b, now)}
	},
})

// ValidatingWebhookConfiguration sends objects to servers that may refuse them.
var ValidatingWebhookConfiguration = define[admissionv1.ValidatingWebhookConfigurationList](Row[*admissionv1.ValidatingWebhookConfiguration]{
	Names: Names{
		Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingWebhookConfiguration", Plural: "validatingwebhookconfigurations",
		Categories: []string{"api-extensions"},
		Scope:      Cluster,
		Prefix:     "validatingwebhookconfigurations",
	},
	Validate:       validate.ValidatingWebhookConfiguration,
	ValidateUpdate: validate.ValidatingWebhookConfigurationUpdate,
	Default: func(c *admissionv1.ValidatingWebhookConfiguration) {
		for i := range c.Webhooks {
			w := &c.Webhooks[i]
			fillPtr(&w.FailurePolicy, admissionv1.Fail)
			fillPtr(&w.MatchPolicy, admissionv1.Equivalent)
			fillPtr(&w.NamespaceSelector, metav1.LabelSelector{})
			fillPtr(&w.ObjectSelector, metav1.LabelSelector{})
			fillPtr(&w.TimeoutSeconds, 10)
			defaultHook(&w.ClientConfig, w.Rules)
		}
	},
	PrepareCreate: func(c *admissionv1.ValidatingWebhookConfiguration) { c.Generation = 1 },
	PrepareUpdate: func(new, old *admissionv1.ValidatingWebhookConfiguration) {
		raiseIf(!same(new.Webhooks, old.Webhooks), new)
	},
	Columns: columns("Webhooks:integer"),
	Cells: func(c *admissionv1.ValidatingWebhookConfiguration, now time.Time) []any {
		return []any{c.Name, int64(len(c.Webhooks)), age(c, now)}
	},
})

func defaultHook(c *admissionv1.WebhookClientConfig, rules []admissionv1.RuleWithOperations) {
	if c.Service != nil {
		fillPtr(&c.Service.Port, 443)
	}
	for i := range rules {
		fillPtr(&rules[i].Scope, admissionv1.AllScopes)
	}
}

func defaultMatch(m *admissionv1.MatchResources) {
	if m == nil {
		return
	}
	fillPtr(&m.MatchPolicy, admissionv1.Equivalent)
	fillPtr(&m.NamespaceSelector, metav1.LabelSelector{})
	fillPtr(&m.ObjectSelector, metav1.LabelSelector{})
	for _, rules := range [][]admissionv1.NamedRuleWithOperations{m.ResourceRules, m.ExcludeResourceRules} {
		for i := range rules {
			fillPtr(&rules[i].Scope, admissionv1.AllScopes)
		}
	}
}

func paramKindCell(k *admissionv1.ParamKind) string {
	if k == nil {
		return unset
	}
	return k.APIVersion + "/" + k.Kind
}

// paramRefCell names the parameters, or says by which labels they are found.
func paramRefCell(r *admissionv1.ParamRef) string {
	switch {
	case r == nil:
		return unset
	case r.Name != "" && r.Namespace != "":
		return r.Namespace + "/" + r.Name
	case r.Name != "":
		return "*/" + r.Name
	}
	return metav1.FormatLabelSelector(r.Selector)
}
