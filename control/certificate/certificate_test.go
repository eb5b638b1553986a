package certificate_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/certificate"
	"proa.dev/control/scenario"
	"proa.dev/kind"
	"proa.dev/view"
)

func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txtar", func() []control.Part {
		return []control.Part{certificate.CleanerPart(), certificate.PodCleanerPart()}
	})
}

func request(t *testing.T, change func(*x509.CertificateRequest, *certificatesv1.CertificateSigningRequest)) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	x := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:n1", Organization: []string{"system:nodes"}}}
	r := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: "r", UID: "r1"}, Spec: certificatesv1.CertificateSigningRequestSpec{
		SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName, Username: "system:bootstrap:abcdef",
		Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}}}
	if change != nil {
		change(x, r)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, x, key)
	if err != nil {
		t.Fatal(err)
	}
	r.Spec.Request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	return r
}

func TestApprove(t *testing.T) {
	type rq = certificatesv1.CertificateSigningRequest
	type x = x509.CertificateRequest
	for name, c := range map[string]struct {
		change func(*x, *rq)
		may    string // "": nothing
		want   string
	}{
		"joining node":     {nil, "nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."},
		"renewal":          {func(_ *x, r *rq) { r.Spec.Username = "system:node:n1" }, "selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."},
		"another's":        {func(_ *x, r *rq) { r.Spec.Username = "system:node:n2" }, "selfnodeclient", ""},
		"not allowed":      {nil, "", ""},
		"encipherment":     {func(_ *x, r *rq) { r.Spec.Usages = append(r.Spec.Usages, certificatesv1.UsageKeyEncipherment) }, "nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."},
		"server too":       {func(_ *x, r *rq) { r.Spec.Usages = append(r.Spec.Usages, certificatesv1.UsageServerAuth) }, "nodeclient", ""},
		"other signer":     {func(_ *x, r *rq) { r.Spec.SignerName = certificatesv1.KubeAPIServerClientSignerName }, "nodeclient", ""},
		"administrators":   {func(c *x, _ *rq) { c.Subject.Organization = []string{"system:masters"} }, "nodeclient", ""},
		"more groups":      {func(c *x, _ *rq) { c.Subject.Organization = []string{"system:nodes", "system:masters"} }, "nodeclient", ""},
		"alternative name": {func(c *x, _ *rq) { c.DNSNames = []string{"a"} }, "nodeclient", ""},
		"no node":          {func(c *x, _ *rq) { c.Subject.CommonName = "jane" }, "nodeclient", ""},
		"denied": {func(_ *x, r *rq) {
			r.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateDenied}}
		}, "nodeclient", ""},
	} {
		s := view.Build(1, kind.All, request(t, c.change))
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		actions, wake := certificate.Approve(s, view.Ref{Kind: kind.CertificateSigningRequest, Name: "r"}, now, func(_ *certificatesv1.CertificateSigningRequestSpec, sub string) bool { return sub == c.may })
		got := ""
		if len(actions) == 1 {
			got = approvalOf(actions[0])
		}
		if got != c.want {
			t.Errorf("%s: %q", name, got)
		}
		if name == "not allowed" && wake.IsZero() {
			t.Error("a request is not looked at again")
		}
	}
	broken := request(t, nil)
	broken.Spec.Request = []byte("x")
	if actions, _ := certificate.Approve(view.Build(1, kind.All, broken), view.Ref{Kind: kind.CertificateSigningRequest, Name: "r"}, time.Now(), func(*certificatesv1.CertificateSigningRequestSpec, string) bool { return true }); len(actions) != 0 {
		t.Error("noise is approved")
	}
}

func approvalOf(a act.Action) string {
	u, ok := a.(act.Update)
	if !ok || u.Sub != "approval" {
		return ""
	}
	c := u.Object.(*certificatesv1.CertificateSigningRequest).Status.Conditions
	if len(c) != 1 || c[0].Type != certificatesv1.CertificateApproved || c[0].Reason != "AutoApproved" {
		return ""
	}
	return c[0].Message
}

func TestPublish(t *testing.T) {
	bundle := func(name, signer, text string) *certificatesv1.ClusterTrustBundle {
		return &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "u"}, Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: signer, TrustBundle: text}}
	}
	const name = "kubernetes.io:kube-apiserver-serving:a2c8e30c4841756751ea8eca"
	for _, c := range []struct {
		have []kind.Object
		want string
	}{
		{nil, "create clustertrustbundles.certificates.k8s.io/" + name + " because=\"the API server's authority\"\n"},
		{[]kind.Object{bundle(name, certificate.ServingSigner, "AUTHORITY")}, ""},
		{[]kind.Object{bundle(name, certificate.ServingSigner, "other"), bundle("mine", "", "x")}, "update clustertrustbundles.certificates.k8s.io/" + name + " because=\"content was changed\"\n"},
		{[]kind.Object{bundle(name, certificate.ServingSigner, "AUTHORITY"), bundle("kubernetes.io:kube-apiserver-serving:old", certificate.ServingSigner, "x")},
			"delete clustertrustbundles.certificates.k8s.io/kubernetes.io:kube-apiserver-serving:old because=\"of an earlier authority\"\n"},
	} {
		if got := certificate.Publish(view.Build(1, kind.All, c.have...), "AUTHORITY").String(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}
