// Package oidc authenticates JSON web tokens of outside issuers, as said by the
// jwt part of an AuthenticationConfiguration (Kubernetes docs, "Authenticating",
// using authentication configuration; KEP-3331) or by the older --oidc-* flags.
//
// A token is asked about only when its issuer is this one. Its signature is
// checked with the keys that the issuer publishes: they are fetched at the first
// token, again when a token names a key that is not known, and at most every five
// seconds, so that noise costs the issuer nothing. Claims become a user by names
// or CEL expressions. Errors say which step refused; they carry no secrets.
//
// Bounds: tokens up to 64 KiB, documents of the issuer up to 1 MiB, ten seconds a
// fetch. Distributed claims are refused with an error.
package oidc

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	celgo "github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
	"k8s.io/apimachinery/pkg/util/sets"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	config "k8s.io/apiserver/pkg/apis/apiserver/v1"
	authcel "k8s.io/apiserver/pkg/authentication/cel"
)

// Flags are the older way to say one issuer.
type Flags struct {
	IssuerURL, ClientID, CA                                  string // CA in PEM
	UsernameClaim, UsernamePrefix, GroupsClaim, GroupsPrefix string
	RequiredClaims                                           map[string]string
	SigningAlgs                                              []string
}

// JWT is what the flags mean in the newer words.
func (f Flags) JWT() config.JWTAuthenticator {
	claim, prefix, groups := f.UsernameClaim, f.UsernamePrefix, f.GroupsPrefix
	if claim == "" {
		claim = "sub"
	}
	switch {
	case prefix == "-":
		prefix = ""
	case prefix == "" && claim != "email":
		prefix = f.IssuerURL + "#"
	}
	j := config.JWTAuthenticator{Issuer: config.Issuer{URL: f.IssuerURL, Audiences: []string{f.ClientID}, CertificateAuthority: f.CA},
		ClaimMappings: config.ClaimMappings{Username: config.PrefixedClaimOrExpression{Claim: claim, Prefix: &prefix}}}
	if f.GroupsClaim != "" {
		j.ClaimMappings.Groups = config.PrefixedClaimOrExpression{Claim: f.GroupsClaim, Prefix: &groups}
	}
	for name, value := range f.RequiredClaims {
		j.ClaimValidationRules = append(j.ClaimValidationRules, config.ClaimValidationRule{Claim: name, RequiredValue: value})
	}
	slices.SortFunc(j.ClaimValidationRules, func(a, b config.ClaimValidationRule) int { return strings.Compare(a.Claim, b.Claim) })
	return j
}

// Validate a whole configuration: every issuer, and that no two are the same.
// disallowed are the issuers that the server itself uses.
func Validate(c *config.AuthenticationConfiguration, disallowed []string) error {
	var errs field.ErrorList
	root := field.NewPath("jwt")
	if len(c.JWT) > 64 {
		errs = append(errs, field.TooMany(root, len(c.JWT), 64))
	}
	urls, discovery := sets.New[string](), sets.New[string]()
	var compiler authcel.Compiler
	for i := range c.JWT {
		if compiler == nil {
			compiler = authcel.NewDefaultCompiler()
		}
		p, j := root.Index(i), &c.JWT[i]
		_, es := compile(compiler, j, p, disallowed)
		errs = append(errs, es...)
		if urls.Has(j.Issuer.URL) {
			errs = append(errs, field.Duplicate(p.Child("issuer", "url"), j.Issuer.URL))
		}
		urls.Insert(j.Issuer.URL)
		if d := j.Issuer.DiscoveryURL; d != nil && *d != "" {
			if discovery.Has(*d) {
				errs = append(errs, field.Duplicate(p.Child("issuer", "discoveryURL"), *d))
			}
			discovery.Insert(*d)
		}
	}
	if a := c.Anonymous; a != nil && !a.Enabled && len(a.Conditions) > 0 {
		errs = append(errs, field.Invalid(field.NewPath("anonymous", "conditions"), a.Conditions, "enabled should be set to true when conditions are defined"))
	}
	return errs.ToAggregate()
}

// mapper are the compiled expressions; nil: by claim.
type mapper struct {
	username, groups, uid *authcel.CompilationResult
	extra                 []authcel.CompilationResult
	claims, user          []authcel.CompilationResult
}

func compile(compiler authcel.Compiler, j *config.JWTAuthenticator, p *field.Path, disallowed []string) (mapper, field.ErrorList) {
	var m mapper
	errs := validateIssuer(&j.Issuer, p.Child("issuer"), disallowed)
	claims := func(p *field.Path, e authcel.ExpressionAccessor) *authcel.CompilationResult {
		r, err := compiler.CompileClaimsExpression(e)
		if err != nil {
			errs = append(errs, field.Invalid(p, e.GetExpression(), detail(err)))
			return nil
		}
		return &r
	}
	verified := false // some expression looks at claims.email_verified
	seen := sets.New[string]()
	for i, rule := range j.ClaimValidationRules {
		p := p.Child("claimValidationRules").Index(i)
		switch {
		case rule.Claim != "" && rule.Expression != "":
			errs = append(errs, field.Invalid(p, rule.Claim, "claim and expression can't both be set"))
		case rule.Claim == "" && rule.Expression == "":
			errs = append(errs, field.Required(p, "claim or expression is required"))
		case rule.Claim != "":
			if rule.Message != "" {
				errs = append(errs, field.Invalid(p.Child("message"), rule.Message, "may not be specified when claim is set"))
			}
			if seen.Has("claim " + rule.Claim) {
				errs = append(errs, field.Duplicate(p.Child("claim"), rule.Claim))
			}
			seen.Insert("claim " + rule.Claim)
		default:
			if rule.RequiredValue != "" {
				errs = append(errs, field.Invalid(p.Child("requiredValue"), rule.RequiredValue, "may not be specified when expression is set"))
			}
			if seen.Has(rule.Expression) {
				errs = append(errs, field.Duplicate(p.Child("expression"), rule.Expression))
				continue
			}
			seen.Insert(rule.Expression)
			if r := claims(p.Child("expression"), &authcel.ClaimValidationCondition{Expression: rule.Expression, Message: rule.Message}); r != nil {
				m.claims = append(m.claims, *r)
				verified = verified || selects(r.AST, "email_verified")
			}
		}
	}
	maps := p.Child("claimMappings")
	mapped := func(p *field.Path, c *config.PrefixedClaimOrExpression, required bool) *authcel.CompilationResult {
		switch {
		case c.Claim != "" && c.Expression != "":
			errs = append(errs, field.Invalid(p, "", "claim and expression can't both be set"))
		case c.Claim == "" && c.Expression == "":
			if required {
				errs = append(errs, field.Required(p, "claim or expression is required"))
			} else if c.Prefix != nil {
				errs = append(errs, field.Invalid(p.Child("prefix"), *c.Prefix, "may not be specified when claim is not set"))
			}
		case c.Expression != "":
			if c.Prefix != nil {
				errs = append(errs, field.Invalid(p.Child("prefix"), *c.Prefix, "may not be specified when expression is set"))
			}
			return claims(p.Child("expression"), &authcel.ClaimMappingExpression{Expression: c.Expression})
		case c.Prefix == nil:
			errs = append(errs, field.Required(p.Child("prefix"), "prefix is required when claim is set. It can be set to an empty string to disable prefixing"))
		}
		return nil
	}
	m.username = mapped(maps.Child("username"), &j.ClaimMappings.Username, true)
	m.groups = mapped(maps.Child("groups"), &j.ClaimMappings.Groups, false)
	switch uid := j.ClaimMappings.UID; {
	case uid.Claim != "" && uid.Expression != "":
		errs = append(errs, field.Invalid(maps.Child("uid"), "", "claim and expression can't both be set"))
	case uid.Expression != "":
		m.uid = claims(maps.Child("uid", "expression"), &authcel.ClaimMappingExpression{Expression: uid.Expression})
	}
	keys := sets.New[string]()
	for i, x := range j.ClaimMappings.Extra {
		p := maps.Child("extra").Index(i)
		for _, msg := range utilvalidation.IsDomainPrefixedPath(p.Child("key"), x.Key) {
			errs = append(errs, msg)
		}
		if x.Key != strings.ToLower(x.Key) {
			errs = append(errs, field.Invalid(p.Child("key"), x.Key, "must be lowercase"))
		}
		domain, _, _ := strings.Cut(x.Key, "/")
		for _, d := range []string{"k8s.io", "kubernetes.io"} {
			if domain == d || strings.HasSuffix(domain, "."+d) {
				errs = append(errs, field.Invalid(p.Child("key"), x.Key, "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use"))
			}
		}
		if keys.Has(x.Key) {
			errs = append(errs, field.Duplicate(p.Child("key"), x.Key))
			continue
		}
		keys.Insert(x.Key)
		if x.ValueExpression == "" {
			errs = append(errs, field.Required(p.Child("valueExpression"), ""))
			continue
		}
		if r := claims(p.Child("valueExpression"), &authcel.ExtraMappingExpression{Key: x.Key, Expression: x.ValueExpression}); r != nil {
			m.extra = append(m.extra, *r)
			verified = verified || selects(r.AST, "email_verified")
		}
	}
	// Who logs in by an address that nobody has proved can be anybody.
	if m.username != nil && selects(m.username.AST, "email") && !verified && !selects(m.username.AST, "email_verified") {
		errs = append(errs, field.Invalid(maps.Child("username", "expression"), j.ClaimMappings.Username.Expression,
			"claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression"))
	}
	users := sets.New[string]()
	for i, rule := range j.UserValidationRules {
		p := p.Child("userValidationRules").Index(i)
		if rule.Expression == "" {
			errs = append(errs, field.Required(p.Child("expression"), ""))
			continue
		}
		if users.Has(rule.Expression) {
			errs = append(errs, field.Duplicate(p.Child("expression"), rule.Expression))
			continue
		}
		users.Insert(rule.Expression)
		r, err := compiler.CompileUserExpression(&authcel.UserValidationCondition{Expression: rule.Expression, Message: rule.Message})
		if err != nil {
			errs = append(errs, field.Invalid(p.Child("expression"), rule.Expression, detail(err)))
			continue
		}
		m.user = append(m.user, r)
	}
	return m, errs
}

// detail of a compiler's error, without the type's name before it.
func detail(err error) string {
	_, rest, ok := strings.Cut(err.Error(), ": ")
	if ok && strings.HasPrefix(err.Error(), "Internal") {
		return rest
	}
	return err.Error()
}

// selects says whether an expression uses claims.NAME, claims["NAME"] or
// claims.?NAME.
func selects(a *celgo.Ast, name string) bool {
	found := false
	isClaims := func(e ast.Expr) bool { return e.Kind() == ast.IdentKind && e.AsIdent() == "claims" }
	ast.PreOrderVisit(a.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.SelectKind:
			found = found || e.AsSelect().FieldName() == name && isClaims(e.AsSelect().Operand())
		case ast.CallKind:
			args := e.AsCall().Args()
			if len(args) == 2 && isClaims(args[0]) && args[1].Kind() == ast.LiteralKind {
				s, _ := args[1].AsLiteral().Value().(string)
				found = found || s == name
			}
		}
	}))
	return found
}

func validateIssuer(i *config.Issuer, p *field.Path, disallowed []string) field.ErrorList {
	errs := validateURL(i.URL, p.Child("url"), disallowed)
	if d := i.DiscoveryURL; d != nil && *d != "" {
		dp := p.Child("discoveryURL")
		if i.URL != "" && strings.TrimRight(i.URL, "/") == strings.TrimRight(*d, "/") {
			errs = append(errs, field.Invalid(dp, *d, "discoveryURL must be different from URL"))
		}
		errs = append(errs, validateURL(*d, dp, nil)...)
	}
	ap := p.Child("audiences")
	if len(i.Audiences) == 0 {
		errs = append(errs, field.Required(ap, fmt.Sprintf("at least one %s is required", ap)))
	}
	seen := sets.New[string]()
	for n, a := range i.Audiences {
		switch {
		case a == "":
			errs = append(errs, field.Required(ap.Index(n), ""))
		case seen.Has(a):
			errs = append(errs, field.Duplicate(ap.Index(n), a))
		}
		seen.Insert(a)
	}
	mp := p.Child("audienceMatchPolicy")
	if len(i.Audiences) > 1 && i.AudienceMatchPolicy != config.AudienceMatchPolicyMatchAny {
		errs = append(errs, field.Invalid(mp, i.AudienceMatchPolicy, "audienceMatchPolicy must be MatchAny for multiple audiences"))
	}
	if len(i.Audiences) == 1 && i.AudienceMatchPolicy != "" && i.AudienceMatchPolicy != config.AudienceMatchPolicyMatchAny {
		errs = append(errs, field.Invalid(mp, i.AudienceMatchPolicy, "audienceMatchPolicy must be empty or MatchAny for single audience"))
	}
	if i.CertificateAuthority != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(i.CertificateAuthority)) {
		errs = append(errs, field.Invalid(p.Child("certificateAuthority"), "<omitted>", "data does not contain any valid RSA or ECDSA certificates"))
	}
	if i.EgressSelectorType != "" {
		errs = append(errs, field.Invalid(p.Child("egressSelectorType"), i.EgressSelectorType, "egress selectors are not part of this server; leave it empty"))
	}
	return errs
}

func validateURL(text string, p *field.Path, disallowed []string) field.ErrorList {
	if text == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	if slices.Contains(disallowed, text) {
		return field.ErrorList{field.Invalid(p, text, fmt.Sprintf("URL must not overlap with disallowed issuers: %s", disallowed))}
	}
	u, err := url.Parse(text)
	if err != nil {
		return field.ErrorList{field.Invalid(p, text, err.Error())}
	}
	var errs field.ErrorList
	for _, c := range []struct {
		bad  bool
		says string
	}{{u.Scheme != "https", "URL scheme must be https"}, {u.User != nil, "URL must not contain a username or password"},
		{u.RawQuery != "", "URL must not contain a query"}, {u.Fragment != "", "URL must not contain a fragment"}} {
		if c.bad {
			errs = append(errs, field.Invalid(p, text, c.says))
		}
	}
	return errs
}

var errIncomplete = errors.New("the claim expression returned nothing")
