// Package auth says who asks and whether they may: identities, authenticators
// (x509, bearer tokens), authorizers (Node, RBAC) and the attributes of a request.
package auth

import (
	"context"
	"net/http"

	authenticationv1 "k8s.io/api/authentication/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// Well-known names (Kubernetes docs, "Authenticating", "Using RBAC
// Authorization").
const (
	Anonymous          = "system:anonymous"
	AllUnauthenticated = "system:unauthenticated"
	AllAuthenticated   = "system:authenticated"
	Masters            = "system:masters"
	NodesGroup         = "system:nodes"
	NodePrefix         = "system:node:"
	ServiceAccounts    = "system:serviceaccounts"
	ServiceAccountUser = "system:serviceaccount:" // + namespace + ":" + name
)

// User is an authenticated identity.
type User struct {
	Name, UID string
	Groups    []string
	Extra     map[string][]string
}

// In reports membership of a group.
func (u User) In(group string) bool {
	for _, g := range u.Groups {
		if g == group {
			return true
		}
	}
	return false
}

// Info is the user as reviews and audit events show it.
func (u User) Info() authenticationv1.UserInfo {
	return authenticationv1.UserInfo{Username: u.Name, UID: u.UID, Groups: u.Groups, Extra: Extra[authenticationv1.ExtraValue](u.Extra)}
}

// Extra turns a user's extra fields into those of another type: API groups have one
// each. Nil when there are none; the values are shared.
func Extra[To, From ~[]string](in map[string]From) map[string]To {
	if len(in) == 0 {
		return nil
	}
	out := make(map[string]To, len(in))
	for k, v := range in {
		out[k] = To(v)
	}
	return out
}

// Authenticator finds out who sent a request. ok false without an error means
// "no credentials that I know"; an error means "bad credentials": 401.
type Authenticator interface {
	Authenticate(r *http.Request) (u User, ok bool, err error)
}

// TokenAuthenticator checks one bearer token for audiences (none: the API
// server's own); used by the HTTP authenticator and by TokenReview.
type TokenAuthenticator interface {
	AuthenticateToken(ctx context.Context, token string, audiences []string) (u User, matched []string, ok bool, err error)
}

// Attributes of one request, as authorizers see it. Verb is get, list, watch,
// create, update, patch, delete, deletecollection, or the lower-case HTTP method
// when Path is set (a non-resource request).
type Attributes struct {
	User                                                   User
	Verb                                                   string
	Group, Version, Resource, Subresource, Namespace, Name string
	Path                                                   string
	// FieldSelector and LabelSelector as sent with a list, watch or
	// deletecollection; authorizers that know them may use them. They only narrow.
	FieldSelector, LabelSelector string
}

// Decision of an authorizer.
type Decision uint8

// NoOpinion asks the next one; when all have none, the request is denied.
const (
	NoOpinion Decision = iota
	Allow
	Deny
)

// Authorizer decides from attributes.
type Authorizer interface {
	Authorize(ctx context.Context, a Attributes) (d Decision, reason string, err error)
}

// RuleResolver lists what a user may do in a namespace (SelfSubjectRulesReview,
// escalation checks). incomplete is true when an authorizer cannot list.
type RuleResolver interface {
	Rules(u User, namespace string) (rules []rbacv1.PolicyRule, incomplete bool, err error)
}

// Chain asks each in turn until one has an opinion.
type Chain []Authorizer

// Authorize implements Authorizer.
func (c Chain) Authorize(ctx context.Context, a Attributes) (Decision, string, error) {
	var reason string
	var first error
	for _, z := range c {
		d, why, err := z.Authorize(ctx, a)
		if d != NoOpinion {
			return d, why, err
		}
		if why != "" {
			if reason != "" {
				reason += ", "
			}
			reason += why
		}
		if first == nil {
			first = err
		}
	}
	return NoOpinion, reason, first
}

// Always says the same to all.
type Always Decision

// Authorize implements Authorizer.
func (a Always) Authorize(context.Context, Attributes) (Decision, string, error) {
	return Decision(a), "", nil
}
