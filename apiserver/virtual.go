package apiserver

import (
	"context"
	"fmt"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"proa.dev/apiserver/auth"
	"proa.dev/kind"
)

// answer computes what a virtual kind asks for.
func (s *Server) answer(ctx context.Context, c *call, obj kind.Object) (kind.Object, error) {
	switch o := obj.(type) {
	case *authenticationv1.SelfSubjectReview:
		o.CreationTimestamp = s.now()
		o.Status.UserInfo = c.user.Info()
		return o, nil
	case *authenticationv1.TokenReview:
		return s.reviewToken(ctx, o)
	case *authorizationv1.SubjectAccessReview:
		return o, s.reviewAccess(ctx, "SubjectAccessReview", &o.Spec, &o.Status)
	case *authorizationv1.LocalSubjectAccessReview:
		ra := o.Spec.ResourceAttributes
		spec := field.NewPath("spec")
		var errs field.ErrorList
		if ra == nil {
			errs = append(errs, field.Required(spec.Child("resourceAttributes"), "must be specified for a namespaced review"))
		} else if ra.Namespace != o.Namespace {
			errs = append(errs, field.Invalid(spec.Child("resourceAttributes", "namespace"), ra.Namespace, "must match metadata.namespace"))
		}
		if o.Spec.NonResourceAttributes != nil {
			errs = append(errs, field.Invalid(spec.Child("nonResourceAttributes"), o.Spec.NonResourceAttributes, "disallowed on this kind of request"))
		}
		if len(errs) > 0 {
			return nil, apierrors.NewInvalid(schema.GroupKind{Group: "authorization.k8s.io", Kind: "LocalSubjectAccessReview"}, "", errs)
		}
		return o, s.reviewAccess(ctx, "LocalSubjectAccessReview", &o.Spec, &o.Status)
	case *authorizationv1.SelfSubjectAccessReview:
		spec := authorizationv1.SubjectAccessReviewSpec{ResourceAttributes: o.Spec.ResourceAttributes, NonResourceAttributes: o.Spec.NonResourceAttributes,
			User: c.user.Name, Groups: c.user.Groups, UID: c.user.UID, Extra: auth.Extra[authorizationv1.ExtraValue](c.user.Extra)}
		return o, s.reviewAccess(ctx, "SelfSubjectAccessReview", &spec, &o.Status)
	case *authorizationv1.SelfSubjectRulesReview:
		return s.reviewRules(c, o)
	}
	return nil, errMethod
}

func (s *Server) reviewToken(ctx context.Context, o *authenticationv1.TokenReview) (kind.Object, error) {
	if o.Spec.Token == "" {
		return nil, apierrors.NewBadRequest("token is required for TokenReview in authentication")
	}
	o.Status = authenticationv1.TokenReviewStatus{}
	if s.cfg.Tokens == nil {
		return o, nil
	}
	u, matched, ok, err := s.cfg.Tokens.AuthenticateToken(ctx, o.Spec.Token, o.Spec.Audiences)
	if err != nil {
		o.Status.Error = err.Error()
	}
	if err == nil && ok {
		if !u.In(auth.AllAuthenticated) {
			u.Groups = append(slices.Clone(u.Groups), auth.AllAuthenticated)
		}
		o.Status.Authenticated, o.Status.User, o.Status.Audiences = true, u.Info(), matched
	}
	return o, nil
}

func (s *Server) reviewAccess(ctx context.Context, kindName string, spec *authorizationv1.SubjectAccessReviewSpec, status *authorizationv1.SubjectAccessReviewStatus) error {
	path := field.NewPath("spec")
	var errs field.ErrorList
	ra, nra := spec.ResourceAttributes, spec.NonResourceAttributes
	if ra != nil && nra != nil {
		errs = append(errs, field.Invalid(path.Child("nonResourceAttributes"), nra, "cannot be specified in combination with resourceAttributes"))
	}
	if ra == nil && nra == nil {
		errs = append(errs, field.Invalid(path.Child("resourceAttributes"), ra, "exactly one of nonResourceAttributes or resourceAttributes must be specified"))
	}
	if spec.User == "" && len(spec.Groups) == 0 {
		errs = append(errs, field.Invalid(path.Child("user"), spec.User, "at least one of user or group must be specified"))
	}
	if ra != nil {
		errs = append(errs, checkSelectors(ra, path.Child("resourceAttributes"))...)
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: "authorization.k8s.io", Kind: kindName}, "", errs)
	}
	a := auth.Attributes{User: auth.User{Name: spec.User, UID: spec.UID, Groups: spec.Groups, Extra: auth.Extra[[]string](spec.Extra)}}
	if ra != nil {
		a.Verb, a.Group, a.Version, a.Resource, a.Subresource = ra.Verb, ra.Group, ra.Version, ra.Resource, ra.Subresource
		a.Namespace, a.Name = ra.Namespace, ra.Name
		a.FieldSelector, a.LabelSelector = rawFields(ra.FieldSelector), rawLabels(ra.LabelSelector)
	} else {
		a.Verb, a.Path = nra.Verb, nra.Path
	}
	d, reason, err := s.cfg.Authz.Authorize(ctx, a)
	*status = authorizationv1.SubjectAccessReviewStatus{Allowed: d == auth.Allow, Denied: d == auth.Deny, Reason: reason}
	if err != nil {
		status.EvaluationError = err.Error()
	}
	return nil
}

func (s *Server) reviewRules(c *call, o *authorizationv1.SelfSubjectRulesReview) (kind.Object, error) {
	if o.Spec.Namespace == "" {
		return nil, apierrors.NewBadRequest("no namespace on request")
	}
	o.Status = authorizationv1.SubjectRulesReviewStatus{ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{}}
	if s.cfg.Rules == nil {
		o.Status.Incomplete, o.Status.EvaluationError = true, "the authorizers of this server cannot list rules"
		return o, nil
	}
	rules, incomplete, err := s.cfg.Rules.Rules(c.user, o.Spec.Namespace)
	o.Status.Incomplete = incomplete
	if err != nil {
		o.Status.EvaluationError = fmt.Sprint(err)
	}
	for _, r := range rules {
		if len(r.Resources) > 0 {
			o.Status.ResourceRules = append(o.Status.ResourceRules, authorizationv1.ResourceRule{Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames})
		}
		if len(r.NonResourceURLs) > 0 {
			o.Status.NonResourceRules = append(o.Status.NonResourceRules, authorizationv1.NonResourceRule{Verbs: r.Verbs, NonResourceURLs: r.NonResourceURLs})
		}
	}
	return o, nil
}
