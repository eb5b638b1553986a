package access

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"k8s.io/apimachinery/pkg/util/sets"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	config "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"sigs.k8s.io/yaml"

	"proa.dev/apiserver/auth"
	"proa.dev/apiserver/auth/oidc"
	"proa.dev/apiserver/auth/webhook"
)

// decode a configuration strictly; its versions have the same fields.
func decode(data []byte, kind string, into any) error {
	var t struct{ APIVersion, Kind string }
	if err := yaml.Unmarshal(data, &t); err != nil {
		return err
	}
	group, version, _ := strings.Cut(t.APIVersion, "/")
	if group != "apiserver.config.k8s.io" || !slices.Contains([]string{"v1", "v1beta1", "v1alpha1"}, version) || t.Kind != kind {
		return fmt.Errorf("is %s of %s: it must be %s of apiserver.config.k8s.io/v1", t.Kind, t.APIVersion, kind)
	}
	return yaml.UnmarshalStrict(data, into)
}

func (a *Access) loadAuthentication(data []byte) error {
	var c config.AuthenticationConfiguration
	if err := decode(data, "AuthenticationConfiguration", &c); err != nil {
		return err
	}
	if err := oidc.Validate(&c, a.disallowed()); err != nil {
		return err
	}
	st, err := a.issuers(c.JWT, nil)
	if err != nil {
		return err
	}
	st.anonymous = c.Anonymous
	if old := a.authnC.Swap(st); old != nil {
		for _, i := range old.issuers {
			i.Close()
		}
	}
	return nil
}

// disallowed are the issuers of the cluster's own tokens.
func (a *Access) disallowed() []string {
	if t := a.c.ServiceAccounts; t != nil {
		return append([]string{t.Issuer}, t.AlsoIssuers...)
	}
	return nil
}

// tokenTTL is how long an OIDC token's user is remembered: expressions and
// signatures cost, and a revoked configuration replaces all.
const tokenTTL = 10 * time.Second

func (a *Access) issuers(list []config.JWTAuthenticator, algs []string) (*authnState, error) {
	st := new(authnState)
	var use []jose.SignatureAlgorithm
	for _, alg := range algs {
		use = append(use, jose.SignatureAlgorithm(alg))
	}
	if a.c.OIDC != nil && len(use) == 0 {
		use = []jose.SignatureAlgorithm{jose.RS256} // the flag's default
	}
	for _, j := range list {
		i, err := oidc.New(j, oidc.Options{Algorithms: use, Disallowed: a.disallowed(), Now: a.c.Clock.Now})
		if err != nil {
			return nil, err
		}
		st.issuers = append(st.issuers, i)
		st.tokens = append(st.tokens, &auth.CachedTokens{TokenAuthenticator: auth.Agnostic{TokenAuthenticator: i, API: a.c.Audiences}, TTL: tokenTTL, Now: a.c.Clock.Now})
	}
	return st, nil
}

func (a *Access) authorizers() error {
	c := &a.c
	if c.AuthorizationFile != "" {
		return a.follow(c.AuthorizationFile, a.loadAuthorization)
	}
	modes := c.Modes
	if modes == nil {
		modes = []string{"Node", "RBAC"}
	}
	list := make([]config.AuthorizerConfiguration, 0, len(modes))
	for _, m := range modes {
		item := config.AuthorizerConfiguration{Type: m, Name: strings.ToLower(m)}
		if m == "Webhook" {
			w := c.AuthorizationWebhook
			if w.ConfigFile == "" {
				return errors.New("mode Webhook needs --authorization-webhook-config-file")
			}
			path, err := filepath.Abs(w.ConfigFile)
			if err != nil {
				return err
			}
			version := w.Version
			if version == "" {
				version = "v1beta1"
			}
			item.Webhook = &config.WebhookConfiguration{SubjectAccessReviewVersion: version, FailurePolicy: config.FailurePolicyNoOpinion,
				ConnectionInfo: config.WebhookConnectionInfo{Type: config.AuthorizationWebhookConnectionInfoTypeKubeConfigFile, KubeConfigFile: &path}}
			item.Webhook.Timeout.Duration, item.Webhook.AuthorizedTTL.Duration, item.Webhook.UnauthorizedTTL.Duration = 30*time.Second, w.AuthorizedTTL, w.UnauthorizedTTL
		}
		list = append(list, item)
	}
	return a.chain(list)
}

func (a *Access) loadAuthorization(data []byte) error {
	var c config.AuthorizationConfiguration
	if err := decode(data, "AuthorizationConfiguration", &c); err != nil {
		return err
	}
	return a.chain(c.Authorizers)
}

// abac is why that mode is not there.
const abac = "mode ABAC is not part of proa: its policy file can only be changed with a restart and gives what RBAC gives; write the lines as ClusterRoleBindings"

// chain puts a list of authorizers into force.
func (a *Access) chain(list []config.AuthorizerConfiguration) error {
	for i := range list {
		if w := list[i].Webhook; w != nil {
			for _, d := range []struct {
				of  *time.Duration
				def time.Duration
			}{{&w.AuthorizedTTL.Duration, 5 * time.Minute}, {&w.UnauthorizedTTL.Duration, 30 * time.Second}} {
				if *d.of == 0 {
					*d.of = d.def
				}
			}
		}
	}
	if errs := validate(list); len(errs) > 0 {
		return errs.ToAggregate()
	}
	st := &authzState{chain: append(auth.Chain{}, a.c.Authorizers...)}
	for _, z := range list {
		switch z.Type {
		case "AlwaysAllow":
			st.chain = append(st.chain, auth.Always(auth.Allow))
		case "AlwaysDeny":
			st.chain = append(st.chain, auth.Always(auth.NoOpinion))
		case "Node":
			st.chain, st.node = append(st.chain, auth.Node{Snapshot: a.c.View.Snapshot}), true
		case "RBAC":
			st.chain, st.rbac = append(st.chain, a.rbac), true
		case "Webhook":
			w := z.Webhook
			conf := webhook.AuthorizerConfig{Version: w.SubjectAccessReviewVersion, AuthorizedTTL: w.AuthorizedTTL.Duration, UnauthorizedTTL: w.UnauthorizedTTL.Duration,
				Timeout: w.Timeout.Duration, Deny: w.FailurePolicy == config.FailurePolicyDeny, Retry: a.c.Retry, Now: a.c.Clock.Now}
			if f := w.ConnectionInfo.KubeConfigFile; f != nil {
				conf.KubeConfig = *f
			}
			if no := w.CacheAuthorizedRequests; no != nil && !*no {
				conf.AuthorizedTTL = -1
			}
			if no := w.CacheUnauthorizedRequests; no != nil && !*no {
				conf.UnauthorizedTTL = -1
			}
			for _, m := range w.MatchConditions {
				conf.Match = append(conf.Match, m.Expression)
			}
			h, err := webhook.NewAuthorizer(conf)
			if err != nil {
				return fmt.Errorf("authorizer %q: %w", z.Name, err)
			}
			st.chain, st.hooks = append(st.chain, h), append(st.hooks, h)
			st.incomplete = errors.New("webhook authorizer does not support user rule resolution")
		}
	}
	if old := a.authzC.Swap(st); old != nil {
		for _, h := range old.hooks {
			h.Close()
		}
	}
	return nil
}

func validate(list []config.AuthorizerConfiguration) (errs field.ErrorList) {
	root := field.NewPath("authorizers")
	if len(list) == 0 {
		errs = append(errs, field.Required(root, "at least one authorization mode must be defined"))
	}
	known := []string{"AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"}
	types, names := sets.New[string](), sets.New[string]()
	for i, z := range list {
		p := root.Index(i)
		switch {
		case z.Type == "":
			errs = append(errs, field.Required(p.Child("type"), ""))
			continue
		case z.Type == "ABAC":
			errs = append(errs, field.Invalid(p.Child("type"), z.Type, abac))
			continue
		case !slices.Contains(known, z.Type):
			errs = append(errs, field.NotSupported(p.Child("type"), z.Type, known))
			continue
		case types.Has(z.Type) && z.Type != "Webhook":
			errs = append(errs, field.Duplicate(p.Child("type"), z.Type))
			continue
		}
		types.Insert(z.Type)
		switch {
		case z.Name == "":
			errs = append(errs, field.Required(p.Child("name"), ""))
		case names.Has(z.Name):
			errs = append(errs, field.Duplicate(p.Child("name"), z.Name))
		default:
			if bad := utilvalidation.IsDNS1123Subdomain(z.Name); len(bad) > 0 {
				errs = append(errs, field.Invalid(p.Child("name"), z.Name, "authorizer name is invalid: "+strings.Join(bad, ", ")))
			}
		}
		names.Insert(z.Name)
		w := p.Child("webhook")
		switch {
		case z.Type == "Webhook" && z.Webhook == nil:
			errs = append(errs, field.Required(w, "required when type=Webhook"))
		case z.Type == "Webhook":
			errs = append(errs, validateWebhook(w, z.Webhook)...)
		case z.Webhook != nil:
			errs = append(errs, field.Invalid(w, "non-null", "may only be specified when type=Webhook"))
		}
	}
	return errs
}

func validateWebhook(p *field.Path, c *config.WebhookConfiguration) (errs field.ErrorList) {
	switch d := c.Timeout.Duration; {
	case d == 0:
		errs = append(errs, field.Required(p.Child("timeout"), ""))
	case d < 0 || d > 30*time.Second:
		errs = append(errs, field.Invalid(p.Child("timeout"), d.String(), "must be > 0s and <= 30s"))
	}
	for _, t := range []struct {
		name string
		d    time.Duration
	}{{"authorizedTTL", c.AuthorizedTTL.Duration}, {"unauthorizedTTL", c.UnauthorizedTTL.Duration}} {
		if t.d <= 0 {
			errs = append(errs, field.Invalid(p.Child(t.name), t.d.String(), "must be > 0s"))
		}
	}
	switch v := c.SubjectAccessReviewVersion; v {
	case "":
		errs = append(errs, field.Required(p.Child("subjectAccessReviewVersion"), ""))
	case "v1", "v1beta1":
	default:
		errs = append(errs, field.NotSupported(p.Child("subjectAccessReviewVersion"), v, []string{"v1", "v1beta1"}))
	}
	switch v := c.MatchConditionSubjectAccessReviewVersion; {
	case v == "" && len(c.MatchConditions) > 0:
		errs = append(errs, field.Required(p.Child("matchConditionSubjectAccessReviewVersion"), "required if match conditions are specified"))
	case v != "" && v != "v1":
		errs = append(errs, field.NotSupported(p.Child("matchConditionSubjectAccessReviewVersion"), v, []string{"v1"}))
	}
	switch v := c.FailurePolicy; v {
	case "":
		errs = append(errs, field.Required(p.Child("failurePolicy"), ""))
	case config.FailurePolicyNoOpinion, config.FailurePolicyDeny:
	default:
		errs = append(errs, field.NotSupported(p.Child("failurePolicy"), v, []string{"NoOpinion", "Deny"}))
	}
	info, ip := c.ConnectionInfo, p.Child("connectionInfo")
	path := ip.Child("kubeConfigFile")
	switch info.Type {
	case "":
		errs = append(errs, field.Required(ip.Child("type"), ""))
	case config.AuthorizationWebhookConnectionInfoTypeInCluster:
		if info.KubeConfigFile != nil {
			errs = append(errs, field.Invalid(path, *info.KubeConfigFile, "can only be set when type=KubeConfigFile"))
		}
	case config.AuthorizationWebhookConnectionInfoTypeKubeConfigFile:
		switch f := info.KubeConfigFile; {
		case f == nil || *f == "":
			errs = append(errs, field.Required(path, ""))
		case !filepath.IsAbs(*f):
			errs = append(errs, field.Invalid(path, *f, "must be an absolute path"))
		default:
			if st, err := os.Stat(*f); err != nil {
				errs = append(errs, field.Invalid(path, *f, fmt.Sprintf("error loading file: %v", err)))
			} else if !st.Mode().IsRegular() {
				errs = append(errs, field.Invalid(path, *f, "must be a regular file"))
			}
		}
	default:
		errs = append(errs, field.NotSupported(ip.Child("type"), info.Type, []string{config.AuthorizationWebhookConnectionInfoTypeInCluster, config.AuthorizationWebhookConnectionInfoTypeKubeConfigFile}))
	}
	return errs
}

// tokenFile holds static tokens by their hashes.
type tokenFile map[[sha256.Size]byte]staticToken

type staticToken struct {
	token string
	user  auth.User
}

// AuthenticateToken implements auth.TokenAuthenticator.
func (f tokenFile) AuthenticateToken(_ context.Context, token string, _ []string) (auth.User, []string, bool, error) {
	s, ok := f[sha256.Sum256([]byte(token))]
	if !ok || subtle.ConstantTimeCompare([]byte(s.token), []byte(token)) != 1 {
		return auth.User{}, nil, false, nil
	}
	return s.user, nil, true, nil
}

// parseTokenFile reads lines of token, user, UID and groups.
func parseTokenFile(data []byte) (tokenFile, error) {
	out := tokenFile{}
	r := csv.NewReader(bytes.NewReader(data))
	r.FieldsPerRecord = -1
	for line := 1; ; line++ {
		rec, err := r.Read()
		switch {
		case err == io.EOF:
			return out, nil
		case err != nil:
			return nil, err
		case len(rec) < 3:
			return nil, fmt.Errorf("line %d: token file must have at least 3 columns (token, user name, user uid), found %d", line, len(rec))
		case rec[0] == "":
			return nil, fmt.Errorf("line %d: the token is empty", line)
		}
		u := auth.User{Name: rec[1], UID: rec[2]}
		if len(rec) > 3 {
			for g := range strings.SplitSeq(rec[3], ",") {
				u.Groups = append(u.Groups, strings.TrimSpace(g))
			}
		}
		out[sha256.Sum256([]byte(rec[0]))] = staticToken{rec[0], u}
	}
}
