package conformance

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

func init() {
	it("ServiceAccounts should create a serviceAccountToken and ensure a successful TokenReview", tokenReview)
	it("ServiceAccounts should guarantee kube-root-ca.crt exist in any namespace", rootCA)
	it("ServiceAccounts should update a ServiceAccount", accountUpdate)
	it("ServiceAccounts should allow opting out of API token automount", automount)
	it("SubjectReview should support SubjectReview API operations", subjectReview)
	it("ServiceAccountIssuerDiscovery should support OIDC discovery of service account issuer", issuerDiscovery)
}

func (c *cluster) account(t *testing.T, ns, name string) *corev1.ServiceAccount {
	t.Helper()
	sa, err := c.CoreV1().ServiceAccounts(ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	ok(t, err)
	return sa
}

func (c *cluster) token(t *testing.T, ns, name string) string {
	t.Helper()
	tr, err := c.CoreV1().ServiceAccounts(ns).CreateToken(t.Context(), name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	ok(t, err)
	if tr.Status.Token == "" || tr.Status.ExpirationTimestamp.IsZero() {
		t.Fatalf("no token: %+v", tr.Status)
	}
	return tr.Status.Token
}

func tokenReview(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	sa := c.account(t, ns, "reviewed")
	token := c.token(t, ns, "reviewed")
	r, err := c.AuthenticationV1().TokenReviews().Create(t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	ok(t, err)
	if !r.Status.Authenticated || r.Status.Error != "" {
		t.Fatalf("status: %+v", r.Status)
	}
	same(t, "user", r.Status.User.Username, "system:serviceaccount:"+ns+":reviewed")
	same(t, "UID", r.Status.User.UID, string(sa.UID))
	if !slices.Contains(r.Status.User.Groups, "system:serviceaccounts:"+ns) {
		t.Errorf("groups: %v", r.Status.User.Groups)
	}
	// The token is good for requests as long as its account lives.
	me := c.as(t, func(cfg *rest.Config) {
		cfg.TLSClientConfig.CertData, cfg.TLSClientConfig.KeyData, cfg.TLSClientConfig.CertFile, cfg.TLSClientConfig.KeyFile = nil, nil, "", ""
		cfg.BearerToken = token
	})
	who, err := me.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	ok(t, err)
	same(t, "self", who.Status.UserInfo.Username, r.Status.User.Username)
	ok(t, c.CoreV1().ServiceAccounts(ns).Delete(t.Context(), "reviewed", metav1.DeleteOptions{}))
	if _, err := me.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("a token of a deleted account: %v, want 401", err)
	}
}

func rootCA(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().ConfigMaps(ns)
	data := ""
	present := func() string {
		cm, err := api.Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if have := cm.Data["ca.crt"]; len(cm.Data) != 1 || have == "" || data != "" && have != data {
			return fmt.Sprintf("data: %v", cm.Data)
		}
		data = cm.Data["ca.crt"]
		return ""
	}
	eventually(t, present)
	ok(t, api.Delete(t.Context(), "kube-root-ca.crt", metav1.DeleteOptions{}))
	eventually(t, present)
	cm, err := api.Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
	ok(t, err)
	cm.Data = map[string]string{"ca.crt": ""}
	_, err = api.Update(t.Context(), cm, metav1.UpdateOptions{})
	ok(t, err)
	eventually(t, present)
}

func accountUpdate(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	sa := c.account(t, ns, "updated")
	if sa.AutomountServiceAccountToken != nil {
		t.Fatal("automount is set")
	}
	sa.AutomountServiceAccountToken = new(false)
	sa, err := c.CoreV1().ServiceAccounts(ns).Update(t.Context(), sa, metav1.UpdateOptions{})
	ok(t, err)
	if sa.AutomountServiceAccountToken == nil || *sa.AutomountServiceAccountToken {
		t.Error("automount is not false")
	}
}

func automount(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	yes, no := new(true), new(false)
	for name, account := range map[string]*bool{"default-account": nil, "mount": yes, "nomount": no} {
		sa := c.account(t, ns, name)
		sa.AutomountServiceAccountToken = account
		_, err := c.CoreV1().ServiceAccounts(ns).Update(t.Context(), sa, metav1.UpdateOptions{})
		ok(t, err)
		for suffix, spec := range map[string]*bool{"": nil, "-yes": yes, "-no": no} {
			p := pausePod(name + suffix)
			p.Spec.ServiceAccountName, p.Spec.AutomountServiceAccountToken = name, spec
			p = c.pod(t, ns, p)
			want := spec != nil && *spec || spec == nil && (account == nil || *account)
			mounted := slices.ContainsFunc(p.Spec.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
				return m.MountPath == "/var/run/secrets/kubernetes.io/serviceaccount"
			})
			same(t, p.Name+" mounts a token", mounted, want)
		}
	}
}

func subjectReview(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.account(t, ns, "reviewed")
	user := "system:serviceaccount:" + ns + ":reviewed"
	groups := []string{"system:authenticated", "system:serviceaccounts", "system:serviceaccounts:" + ns}
	me := c.as(t, func(cfg *rest.Config) { cfg.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: groups} })
	for _, granted := range []bool{false, true} {
		if granted {
			_, err := c.RbacV1().RoleBindings(ns).Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "view"},
				RoleRef:  rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: "view"},
				Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: ns, Name: "reviewed"}}}, metav1.CreateOptions{})
			ok(t, err)
			eventually(t, func() string {
				if _, err := me.CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{}); err != nil {
					return err.Error()
				}
				return ""
			})
		}
		attributes := &authorizationv1.ResourceAttributes{Namespace: ns, Verb: "list", Resource: "configmaps", Version: "v1"}
		spec := authorizationv1.SubjectAccessReviewSpec{User: user, Groups: groups, ResourceAttributes: attributes}
		_, err := me.CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil && !apierrors.IsForbidden(err) {
			t.Fatal(err)
		}
		same(t, "the request is allowed", err == nil, granted)
		r, err := c.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
		ok(t, err)
		same(t, "SubjectAccessReview", r.Status.Allowed, granted)
		l, err := c.AuthorizationV1().LocalSubjectAccessReviews(ns).Create(t.Context(), &authorizationv1.LocalSubjectAccessReview{ObjectMeta: metav1.ObjectMeta{Namespace: ns}, Spec: spec}, metav1.CreateOptions{})
		ok(t, err)
		same(t, "LocalSubjectAccessReview", l.Status.Allowed, granted)
		s, err := me.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: attributes}}, metav1.CreateOptions{})
		ok(t, err)
		same(t, "SelfSubjectAccessReview", s.Status.Allowed, granted)
	}
}

// issuerDiscovery checks a token by the documents, as somebody outside would.
func issuerDiscovery(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.account(t, ns, "oidc")
	me := c.as(t, func(cfg *rest.Config) {
		cfg.TLSClientConfig.CertData, cfg.TLSClientConfig.KeyData, cfg.TLSClientConfig.CertFile, cfg.TLSClientConfig.KeyFile = nil, nil, "", ""
		cfg.BearerToken = c.token(t, ns, "oidc")
	})
	var doc struct {
		Issuer        string   `json:"issuer"`
		JWKS          string   `json:"jwks_uri"`
		ResponseTypes []string `json:"response_types_supported"`
		Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	}
	raw, err := me.CoreV1().RESTClient().Get().AbsPath("/.well-known/openid-configuration").DoRaw(t.Context())
	ok(t, err)
	ok(t, json.Unmarshal(raw, &doc))
	claims := claimsOf(t, me.config.BearerToken)
	same(t, "issuer", doc.Issuer, fmt.Sprint(claims["iss"]))
	if !strings.HasSuffix(doc.JWKS, "/openid/v1/jwks") || !slices.Contains(doc.ResponseTypes, "id_token") || len(doc.Algorithms) == 0 {
		t.Errorf("document: %s", raw)
	}
	raw, err = me.CoreV1().RESTClient().Get().AbsPath("/openid/v1/jwks").DoRaw(t.Context())
	ok(t, err)
	ok(t, verify(me.config.BearerToken, raw))
	same(t, "subject", fmt.Sprint(claims["sub"]), "system:serviceaccount:"+ns+":oidc")
}
