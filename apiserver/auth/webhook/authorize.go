package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"proa.dev/apiserver/auth"
)

// AuthorizerConfig of NewAuthorizer.
type AuthorizerConfig struct {
	KubeConfig string // path; "": inside the cluster
	Version    string // of SubjectAccessReview: v1 or v1beta1; "": v1
	// AuthorizedTTL and UnauthorizedTTL are how long answers are remembered; negative:
	// not at all. 0: five minutes and thirty seconds.
	AuthorizedTTL, UnauthorizedTTL time.Duration
	Timeout                        time.Duration // 0: 30 s
	// Deny says what an error means: denied, or (false) no opinion.
	Deny bool
	// Match are CEL expressions over the review's spec, in the variable request: the
	// service is asked only about requests for which all are true.
	Match []string
	Retry Retry
	Now   func() time.Time
}

// Authorizer asks a service about requests.
type Authorizer struct {
	*service
	conf  AuthorizerConfig
	match *Matcher

	mu   sync.Mutex
	kept map[string]answer
}

type answer struct {
	status authorizationv1.SubjectAccessReviewStatus
	until  time.Time
}

// maxKept answers; maxQuestion bytes of names in one that is remembered.
const maxKept, maxQuestion = 8192, 10000

// NewAuthorizer reads the configuration; it connects to nothing.
func NewAuthorizer(c AuthorizerConfig) (*Authorizer, error) {
	for _, d := range []struct {
		of  *time.Duration
		def time.Duration
	}{{&c.AuthorizedTTL, 5 * time.Minute}, {&c.UnauthorizedTTL, 30 * time.Second}, {&c.Timeout, 30 * time.Second}} {
		if *d.of == 0 {
			*d.of = d.def
		}
	}
	if c.Version == "" {
		c.Version = "v1"
	}
	if c.Version != "v1" && c.Version != "v1beta1" {
		return nil, fmt.Errorf("webhook authorization: version %q of SubjectAccessReview: use v1 or v1beta1", c.Version)
	}
	m, err := NewMatcher(c.Match)
	if err != nil {
		return nil, fmt.Errorf("webhook authorization: %w", err)
	}
	s, err := open(c.KubeConfig, c.Timeout, c.Retry)
	if err != nil {
		return nil, fmt.Errorf("webhook authorization: %w", err)
	}
	return &Authorizer{service: s, conf: c, match: m, kept: map[string]answer{}}, nil
}

// Spec of the review that asks about a request.
func Spec(a *auth.Attributes) authorizationv1.SubjectAccessReviewSpec {
	s := authorizationv1.SubjectAccessReviewSpec{User: a.User.Name, UID: a.User.UID, Groups: a.User.Groups, Extra: auth.Extra[authorizationv1.ExtraValue](a.User.Extra)}
	if a.Path != "" {
		s.NonResourceAttributes = &authorizationv1.NonResourceAttributes{Path: a.Path, Verb: a.Verb}
		return s
	}
	s.ResourceAttributes = &authorizationv1.ResourceAttributes{Namespace: a.Namespace, Verb: a.Verb, Group: a.Group, Version: a.Version,
		Resource: a.Resource, Subresource: a.Subresource, Name: a.Name}
	if sel, err := fields.ParseSelector(a.FieldSelector); err == nil && !sel.Empty() {
		f := &authorizationv1.FieldSelectorAttributes{}
		for _, r := range sel.Requirements() {
			op := metav1.FieldSelectorOpIn
			if r.Operator == "!=" {
				op = metav1.FieldSelectorOpNotIn
			}
			f.Requirements = append(f.Requirements, metav1.FieldSelectorRequirement{Key: r.Field, Operator: op, Values: []string{r.Value}})
		}
		s.ResourceAttributes.FieldSelector = f
	}
	if sel, err := labels.Parse(a.LabelSelector); err == nil && !sel.Empty() {
		l := &authorizationv1.LabelSelectorAttributes{}
		rs, _ := sel.Requirements()
		for _, r := range rs {
			ops := map[string]metav1.LabelSelectorOperator{"=": "In", "==": "In", "in": "In", "!=": "NotIn", "notin": "NotIn", "exists": "Exists", "!": "DoesNotExist"}
			if op := ops[string(r.Operator())]; op != "" { // gt and lt have no words there
				l.Requirements = append(l.Requirements, metav1.LabelSelectorRequirement{Key: r.Key(), Operator: op, Values: r.ValuesUnsorted()})
			}
		}
		if len(l.Requirements) > 0 {
			s.ResourceAttributes.LabelSelector = l
		}
	}
	return s
}

// Authorize implements auth.Authorizer.
func (z *Authorizer) Authorize(ctx context.Context, a auth.Attributes) (auth.Decision, string, error) {
	onError := auth.NoOpinion
	if z.conf.Deny {
		onError = auth.Deny
	}
	spec := Spec(&a)
	matches, err := z.match.Match(ctx, &spec)
	if err != nil {
		return onError, "", err
	}
	if !matches {
		return auth.NoOpinion, "", nil
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return onError, "", err
	}
	key, now := string(raw), z.conf.Now()
	z.mu.Lock()
	kept, ok := z.kept[key]
	z.mu.Unlock()
	if !ok || !now.Before(kept.until) {
		ask := authorizationv1.SubjectAccessReview{TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/" + z.conf.Version, Kind: "SubjectAccessReview"}, Spec: spec}
		var question any = ask
		if z.conf.Version == "v1beta1" {
			question = beta(ask)
		}
		var got authorizationv1.SubjectAccessReview
		if err := z.ask(ctx, question, &got); err != nil {
			return onError, "", fmt.Errorf("ask webhook about a request: %w", err)
		}
		kept.status = got.Status
		z.remember(key, &a, got.Status)
	}
	switch st := kept.status; {
	case st.Denied && st.Allowed:
		return auth.Deny, st.Reason, errors.New("webhook subject access review returned both allow and deny response")
	case st.Denied:
		return auth.Deny, st.Reason, nil
	case st.Allowed:
		return auth.Allow, st.Reason, nil
	default:
		return auth.NoOpinion, st.Reason, nil
	}
}

func (z *Authorizer) remember(key string, a *auth.Attributes, st authorizationv1.SubjectAccessReviewStatus) {
	ttl := z.conf.UnauthorizedTTL
	if st.Allowed {
		ttl = z.conf.AuthorizedTTL
	}
	// What a client can make long as it likes is not kept.
	if long := len(a.Namespace) + len(a.Verb) + len(a.Group) + len(a.Version) + len(a.Resource) + len(a.Subresource) + len(a.Name) + len(a.Path); ttl <= 0 || long >= maxQuestion || len(key) >= 4*maxQuestion {
		return
	}
	now := z.conf.Now()
	z.mu.Lock()
	defer z.mu.Unlock()
	if len(z.kept) >= maxKept {
		for k, v := range z.kept {
			if !now.Before(v.until) {
				delete(z.kept, k)
			}
		}
		if len(z.kept) >= maxKept {
			clear(z.kept)
		}
	}
	z.kept[key] = answer{st, now.Add(ttl)}
}

// beta is the review in its older words: groups are called group.
func beta(r authorizationv1.SubjectAccessReview) any {
	return map[string]any{"apiVersion": r.APIVersion, "kind": r.Kind, "spec": map[string]any{
		"user": r.Spec.User, "group": r.Spec.Groups, "uid": r.Spec.UID, "extra": r.Spec.Extra,
		"resourceAttributes": r.Spec.ResourceAttributes, "nonResourceAttributes": r.Spec.NonResourceAttributes}}
}
