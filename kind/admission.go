package kind

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"

	"proa.dev/kind/validate"
)

var MutatingAdmissionPolicy = define[admissionv1.MutatingAdmissionPolicyList](Row[*admissionv1.MutatingAdmissionPolicy]{
	Names: Names{
		Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingAdmissionPolicy", Plural: "mutatingadmissionpolicies",
		Categories: []string{"api-extensions"},
		Scope:      Cluster,
		Prefix:     "mutatingadmissionpolicies",
	},
	Validate:       validate.MutatingAdmissionPolicy,
	ValidateUpdate: validate.MutatingAdmissionPolicyUpdate,
})

var MutatingAdmissionPolicyBinding = define[admissionv1.MutatingAdmissionPolicyBindingList](Row[*admissionv1.MutatingAdmissionPolicyBinding]{
	Names: Names{
		Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingAdmissionPolicyBinding", Plural: "mutatingadmissionpolicybindings",
		Categories: []string{"api-extensions"},
		Scope:      Cluster,
		Prefix:     "mutatingadmissionpolicybindings",
	},
	Validate:       validate.MutatingAdmissionPolicyBinding,
	ValidateUpdate: validate.MutatingAdmissionPolicyBindingUpdate,
})

var MutatingWebhookConfiguration = define[admissionv1.MutatingWebhookConfigurationList](Row[*admissionv1.MutatingWebhookConfiguration]{
	Names: Names{
		Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingWebhookConfiguration", Plural: "mutatingwebhookconfigurations",
		Categories: []string{"api-extensions"},
		Scope:      Cluster,
		Prefix:     "mutatingwebhookconfigurations",
	},
	Validate:       validate.MutatingWebhookConfiguration,
	ValidateUpdate: validate.MutatingWebhookConfigurationUpdate,
})

var ValidatingAdmissionPolicy = define[admissionv1.ValidatingAdmissionPolicyList](Row[*admissionv1.ValidatingAdmissionPolicy]{
	Names: Names{
		Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingAdmissionPolicy", Plural: "validatingadmissionpolicies",
		Categories: []string{"api-extensions"},
		Scope:      Cluster,
		Prefix:     "validatingadmissionpolicies",
	},
	Validate:       validate.ValidatingAdmissionPolicy,
	ValidateUpdate: validate.ValidatingAdmissionPolicyUpdate,
	Status:         &DoorOf[*admissionv1.ValidatingAdmissionPolicy]{},
})

var ValidatingAdmissionPolicyBinding = define[admissionv1.ValidatingAdmissionPolicyBindingList](Row[*admissionv1.ValidatingAdmissionPolicyBinding]{
	Names: Names{
		Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingAdmissionPolicyBinding", Plural: "validatingadmissionpolicybindings",
		Categories: []string{"api-extensions"},
		Scope:      Cluster,
		Prefix:     "validatingadmissionpolicybindings",
	},
	Validate:       validate.ValidatingAdmissionPolicyBinding,
	ValidateUpdate: validate.ValidatingAdmissionPolicyBindingUpdate,
})

var ValidatingWebhookConfiguration = define[admissionv1.ValidatingWebhookConfigurationList](Row[*admissionv1.ValidatingWebhookConfiguration]{
	Names: Names{
		Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingWebhookConfiguration", Plural: "validatingwebhookconfigurations",
		Categories: []string{"api-extensions"},
		Scope:      Cluster,
		Prefix:     "validatingwebhookconfigurations",
	},
	Validate:       validate.ValidatingWebhookConfiguration,
	ValidateUpdate: validate.ValidatingWebhookConfigurationUpdate,
})
