package kind

import (
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"

	"proa.dev/kind/validate"
)

var SelfSubjectReview = defineVirtual(Row[*authenticationv1.SelfSubjectReview]{
	Names: Names{
		Group: "authentication.k8s.io", Version: "v1", Kind: "SelfSubjectReview", Plural: "selfsubjectreviews",
		Scope: Cluster,
	},
	Verbs: []string{"create"},
})

var TokenReview = defineVirtual(Row[*authenticationv1.TokenReview]{
	Names: Names{
		Group: "authentication.k8s.io", Version: "v1", Kind: "TokenReview", Plural: "tokenreviews",
		Scope: Cluster,
	},
	Validate: validate.TokenReview,
	Verbs:    []string{"create"},
})

var LocalSubjectAccessReview = defineVirtual(Row[*authorizationv1.LocalSubjectAccessReview]{
	Names: Names{
		Group: "authorization.k8s.io", Version: "v1", Kind: "LocalSubjectAccessReview", Plural: "localsubjectaccessreviews",
		Scope: Namespaced,
	},
	Validate: validate.LocalSubjectAccessReview,
	Verbs:    []string{"create"},
})

var SelfSubjectAccessReview = defineVirtual(Row[*authorizationv1.SelfSubjectAccessReview]{
	Names: Names{
		Group: "authorization.k8s.io", Version: "v1", Kind: "SelfSubjectAccessReview", Plural: "selfsubjectaccessreviews",
		Scope: Cluster,
	},
	Validate: validate.SelfSubjectAccessReview,
	Verbs:    []string{"create"},
})

var SelfSubjectRulesReview = defineVirtual(Row[*authorizationv1.SelfSubjectRulesReview]{
	Names: Names{
		Group: "authorization.k8s.io", Version: "v1", Kind: "SelfSubjectRulesReview", Plural: "selfsubjectrulesreviews",
		Scope: Cluster,
	},
	Verbs: []string{"create"},
})

var SubjectAccessReview = defineVirtual(Row[*authorizationv1.SubjectAccessReview]{
	Names: Names{
		Group: "authorization.k8s.io", Version: "v1", Kind: "SubjectAccessReview", Plural: "subjectaccessreviews",
		Scope: Cluster,
	},
	Validate: validate.SubjectAccessReview,
	Verbs:    []string{"create"},
})
