package auth

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
	"proa.dev/view"
)

// Names around bootstrap tokens (Kubernetes docs, "Authenticating with Bootstrap
// Tokens").
const (
	BootstrapTokenType   corev1.SecretType = "bootstrap.kubernetes.io/token"
	bootstrapTokenPrefix                   = "bootstrap-token-"
	bootstrapUser                          = "system:bootstrap:"
	Bootstrappers                          = "system:bootstrappers"
)

var (
	bootstrapToken = regexp.MustCompile(`\A([a-z0-9]{6})\.([a-z0-9]{16})\z`)
	bootstrapGroup = regexp.MustCompile(`\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z`)
)

// BootstrapTokens authenticates the tokens with which machines join: each is a
// Secret kube-system/bootstrap-token-ID of its type, with a time to live, its uses
// and further groups.
type BootstrapTokens struct {
	Snapshot func() view.Snapshot
	Now      func() time.Time
}

// AuthenticateToken implements TokenAuthenticator. A wrong token is unknown
// without a reason: who guesses learns nothing.
func (b BootstrapTokens) AuthenticateToken(_ context.Context, token string, _ []string) (User, []string, bool, error) {
	m := bootstrapToken.FindStringSubmatch(token)
	if m == nil {
		return User{}, nil, false, nil
	}
	id, secret := m[1], m[2]
	s := view.Get[*corev1.Secret](b.Snapshot(), kind.Secret, metav1.NamespaceSystem, bootstrapTokenPrefix+id)
	if s == nil || s.DeletionTimestamp != nil || s.Type != BootstrapTokenType ||
		subtle.ConstantTimeCompare(s.Data["token-secret"], []byte(secret)) != 1 || string(s.Data["token-id"]) != id ||
		string(s.Data["usage-bootstrap-authentication"]) != "true" {
		return User{}, nil, false, nil
	}
	if at, ok := BootstrapTokenExpiry(s); ok && !b.Now().Before(at) {
		return User{}, nil, false, nil
	}
	groups, err := bootstrapGroups(s)
	if err != nil {
		return User{}, nil, false, fmt.Errorf("bootstrap token %q: %w", id, err)
	}
	return User{Name: bootstrapUser + id, Groups: groups}, nil, true, nil
}

// BootstrapTokenExpiry is when a token ends; false: never. A time that cannot be
// read is over.
func BootstrapTokenExpiry(s *corev1.Secret) (time.Time, bool) {
	text := s.Data["expiration"]
	if len(text) == 0 {
		return time.Time{}, false
	}
	at, err := time.Parse(time.RFC3339, string(text))
	if err != nil {
		return time.Time{}, true
	}
	return at, true
}

func bootstrapGroups(s *corev1.Secret) ([]string, error) {
	groups := []string{Bootstrappers}
	var bad []error
	for g := range strings.SplitSeq(string(s.Data["auth-extra-groups"]), ",") {
		switch {
		case g == "":
		case !bootstrapGroup.MatchString(g):
			bad = append(bad, fmt.Errorf("group %q does not begin with %s: and have lower-case letters, digits, colons and dashes", g, Bootstrappers))
		case !slices.Contains(groups, g):
			groups = append(groups, g)
		}
	}
	slices.Sort(groups)
	return groups, errors.Join(bad...)
}
