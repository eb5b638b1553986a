package webhook

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/apiserver/auth"
)

// TokenConfig of NewTokens.
type TokenConfig struct {
	KubeConfig string // path
	Version    string // of TokenReview: v1, or v1beta1; "": v1
	// Audiences of the API server: what an answer without audiences is good for.
	Audiences []string
	Timeout   time.Duration // 0: 10 s
	Retry     Retry
}

// Tokens asks a service about tokens. It remembers nothing: wrap it in
// auth.CachedTokens.
type Tokens struct {
	*service
	version   string
	audiences []string
}

// NewTokens reads the configuration; it connects to nothing.
func NewTokens(c TokenConfig) (*Tokens, error) {
	if c.Version == "" {
		c.Version = "v1"
	}
	if c.Version != "v1" && c.Version != "v1beta1" {
		return nil, fmt.Errorf("webhook token authentication: version %q of TokenReview: use v1 or v1beta1", c.Version)
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	s, err := open(c.KubeConfig, c.Timeout, c.Retry)
	if err != nil {
		return nil, fmt.Errorf("webhook token authentication: %w", err)
	}
	return &Tokens{s, c.Version, c.Audiences}, nil
}

// AuthenticateToken implements auth.TokenAuthenticator.
func (t *Tokens) AuthenticateToken(ctx context.Context, token string, audiences []string) (auth.User, []string, bool, error) {
	ask := authenticationv1.TokenReview{TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/" + t.version, Kind: "TokenReview"},
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences}}
	if len(audiences) == 0 {
		ask.Spec.Audiences = t.audiences
	}
	var answer authenticationv1.TokenReview
	if err := t.ask(ctx, ask, &answer); err != nil {
		return auth.User{}, nil, false, fmt.Errorf("ask webhook about a token: %w", err)
	}
	st := answer.Status
	if !st.Authenticated {
		if st.Error != "" {
			return auth.User{}, nil, false, errors.New(st.Error)
		}
		return auth.User{}, nil, false, nil
	}
	// A service that knows no audiences speaks of the API server's own.
	good := st.Audiences
	if len(good) == 0 {
		good = t.audiences
	}
	var matched []string
	for _, a := range ask.Spec.Audiences {
		if slices.Contains(good, a) {
			matched = append(matched, a)
		}
	}
	if len(ask.Spec.Audiences) > 0 && len(matched) == 0 {
		return auth.User{}, nil, false, nil
	}
	return auth.User{Name: st.User.Username, UID: st.User.UID, Groups: st.User.Groups, Extra: auth.Extra[[]string](st.User.Extra)}, matched, true, nil
}
