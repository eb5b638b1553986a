package security

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"proa.dev/apiserver/auth"
	"proa.dev/cluster/pki"
	"proa.dev/kind"
	"proa.dev/node/stream"
	"proa.dev/view"
)

// TestNode: a node agent does its work, on its own things only.
func TestNode(t *testing.T) {
	p := start(t, nil)
	p.namespace("n")
	a, b := p.as("system:node:a", "system:nodes"), p.as("system:node:b", "system:nodes")
	admin := p.as("root", "system:masters")

	// What an agent does at its start.
	n, err := a.CoreV1().Nodes().Create(p.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"kubernetes.io/hostname": "a"}}}, metav1.CreateOptions{})
	must(t, err)
	if len(n.Spec.Taints) != 1 || n.Spec.Taints[0].Key != corev1.TaintNodeNotReady {
		t.Errorf("a new node takes pods at once: %+v", n.Spec.Taints)
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}}
	_, err = a.CoreV1().Nodes().UpdateStatus(p.ctx, n, metav1.UpdateOptions{})
	must(t, err)
	p.until("the taint to go", func() bool {
		n := view.Get[*corev1.Node](p.view.Snapshot(), kind.Node, "", "a")
		return n != nil && len(n.Spec.Taints) == 0
	})
	_, err = a.CoordinationV1().Leases("kube-node-lease").Create(p.ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.CreateOptions{})
	must(t, err)
	_, err = a.CoordinationV1().Leases("kube-node-lease").Create(p.ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "b"}}, metav1.CreateOptions{})
	denied(t, err, "can only access node lease with the same name as the requesting node")
	_, err = b.CoreV1().Nodes().Create(p.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "c"}}, metav1.CreateOptions{})
	denied(t, err, `nodes "c" is forbidden: node "b" is not allowed to modify node "c"`)
	_, err = b.CoreV1().Nodes().Patch(p.ctx, "a", types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{})
	denied(t, err, "can only modify its own Node")
	_, err = a.CoreV1().Nodes().Patch(p.ctx, "a", types.MergePatchType, []byte(`{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`), metav1.PatchOptions{})
	denied(t, err, "is not allowed to modify labels: node-role.kubernetes.io/control-plane")
	_, err = a.CoreV1().Nodes().Patch(p.ctx, "a", types.MergePatchType, []byte(`{"spec":{"taints":[{"key":"x","effect":"NoSchedule"}]}}`), metav1.PatchOptions{})
	denied(t, err, `node "a" is not allowed to modify taints`)

	// A pod on a gives a what it refers to, and b nothing.
	for _, name := range []string{"mine", "other"} {
		p.create(kind.Secret, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: name}})
	}
	_, err = a.CoreV1().Secrets("n").Get(p.ctx, "mine", metav1.GetOptions{})
	denied(t, err, `secrets "mine" is forbidden: User "system:node:a" cannot get resource "secrets" in API group "" in the namespace "n": no relationship found between node 'a' and this object`)
	pod, err := admin.CoreV1().Pods("n").Create(p.ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{NodeName: "a",
		Containers: []corev1.Container{{Name: "c", Image: "i", EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "mine"}}}}}}}}, metav1.CreateOptions{})
	must(t, err)
	_, err = a.CoreV1().Secrets("n").Get(p.ctx, "mine", metav1.GetOptions{})
	must(t, err)
	_, err = a.CoreV1().ConfigMaps("n").List(p.ctx, metav1.ListOptions{FieldSelector: "metadata.name=kube-root-ca.crt"})
	must(t, err)
	for _, err := range []error{
		func() error { _, err := a.CoreV1().Secrets("n").Get(p.ctx, "other", metav1.GetOptions{}); return err }(),
		func() error { _, err := a.CoreV1().Secrets("").List(p.ctx, metav1.ListOptions{}); return err }(),
		func() error { _, err := b.CoreV1().Secrets("n").Get(p.ctx, "mine", metav1.GetOptions{}); return err }(),
		func() error { _, err := b.CoreV1().Pods("n").Get(p.ctx, "p", metav1.GetOptions{}); return err }(),
		func() error { _, err := a.CoreV1().Pods("").List(p.ctx, metav1.ListOptions{}); return err }(),
		b.CoreV1().Pods("n").Delete(p.ctx, "p", metav1.DeleteOptions{}),
		func() error {
			_, err := b.CoreV1().Pods("n").UpdateStatus(p.ctx, pod, metav1.UpdateOptions{})
			return err
		}(),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%v", err)
		}
	}
	if l, err := a.CoreV1().Pods("").List(p.ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=a"}); err != nil || len(l.Items) != 1 {
		t.Errorf("%v", err)
	}
	token := func(spec authenticationv1.TokenRequestSpec) error {
		_, err := a.CoreV1().ServiceAccounts("n").CreateToken(p.ctx, "default", &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
		return err
	}
	must(t, token(authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "p", UID: pod.UID}}))
	denied(t, token(authenticationv1.TokenRequestSpec{}), "node requested token not bound to a pod")
	pod.Status.Phase = corev1.PodRunning
	pod, err = a.CoreV1().Pods("n").UpdateStatus(p.ctx, pod, metav1.UpdateOptions{})
	must(t, err)
	_, err = a.CoreV1().Events("n").Create(p.ctx, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "e"}, InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "n", Name: "p"}}, metav1.CreateOptions{})
	must(t, err)
	zero := int64(0)
	must(t, a.CoreV1().Pods("n").Delete(p.ctx, "p", metav1.DeleteOptions{GracePeriodSeconds: &zero}))
	_, err = a.CoreV1().Pods("n").Create(p.ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "m", Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "x"},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "a", UID: n.UID, Controller: new(true)}}},
		Spec: corev1.PodSpec{NodeName: "a", Containers: []corev1.Container{{Name: "c", Image: "i", EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "other"}}}}}}}}, metav1.CreateOptions{})
	denied(t, err, "reference secrets")
}

// TestCertificateRequest: from a person's request to a certificate that works.
func TestCertificateRequest(t *testing.T) {
	p := start(t, nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	request := func(x *x509.CertificateRequest) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, x, key)
		must(t, err)
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	admin := p.as("root", "system:masters")
	// Who may ask is policy; nodes may.
	node := p.as("system:node:a", "system:nodes")
	_, err = p.as("joe").CertificatesV1().CertificateSigningRequests().Create(p.ctx, &certificatesv1.CertificateSigningRequest{}, metav1.CreateOptions{})
	denied(t, err, "forbidden")
	csr := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: certificatesv1.CertificateSigningRequestSpec{
		Request: request(&x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:a", Organization: []string{"system:nodes"}}}), SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName,
		Usages: []certificatesv1.KeyUsage{"digital signature", "client auth"}, Username: "root", Groups: []string{"system:masters"}}}
	made, err := node.CertificatesV1().CertificateSigningRequests().Create(p.ctx, csr, metav1.CreateOptions{})
	must(t, err)
	if made.Spec.Username != "system:node:a" || len(made.Spec.Groups) != 2 || made.Spec.Groups[0] != "system:nodes" {
		t.Fatalf("who asked is %q of %q", made.Spec.Username, made.Spec.Groups)
	}
	approve := func(c certificatesv1.CertificateSigningRequest) *certificatesv1.CertificateSigningRequest {
		c.Status.Conditions = append(c.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test"})
		return &c
	}
	_, err = node.CertificatesV1().CertificateSigningRequests().UpdateApproval(p.ctx, "c", approve(*made), metav1.UpdateOptions{})
	denied(t, err, "forbidden")
	ok, err := admin.CertificatesV1().CertificateSigningRequests().UpdateApproval(p.ctx, "c", approve(*made), metav1.UpdateOptions{})
	must(t, err)
	if c := ok.Status.Conditions[0]; c.LastUpdateTime.IsZero() || c.LastTransitionTime.IsZero() {
		t.Errorf("%+v", c)
	}
	find := func(name string) *certificatesv1.CertificateSigningRequest {
		return view.Get[*certificatesv1.CertificateSigningRequest](p.view.Snapshot(), kind.CertificateSigningRequest, "", name)
	}
	p.until("the certificate", func() bool { c := find("c"); return c != nil && len(c.Status.Certificate) > 0 })
	der, err := x509.MarshalECPrivateKey(key)
	must(t, err)
	me := p.with(rest.Config{TLSClientConfig: rest.TLSClientConfig{CertData: find("c").Status.Certificate, KeyData: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})}})
	who, err := me.AuthenticationV1().SelfSubjectReviews().Create(p.ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || who.Status.UserInfo.Username != "system:node:a" {
		t.Errorf("%v %v", who, err)
	}
	// An approval is final.
	gone := find("c").DeepCopy()
	gone.Status.Conditions = nil
	_, err = admin.CertificatesV1().CertificateSigningRequests().UpdateApproval(p.ctx, "c", gone, metav1.UpdateOptions{})
	denied(t, err, `updates may not remove a condition of type "Approved"`)

	csr.Name, csr.Spec.SignerName = "masters", certificatesv1.KubeAPIServerClientSignerName
	csr.Spec.Request = request(&x509.CertificateRequest{Subject: pkix.Name{CommonName: "x", Organization: []string{"system:masters"}}})
	_, err = admin.CertificatesV1().CertificateSigningRequests().Create(p.ctx, csr, metav1.CreateOptions{})
	denied(t, err, "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed")
	csr.Name, csr.Spec.SignerName = "bad", certificatesv1.KubeletServingSignerName
	csr.Spec.Request = request(&x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}})
	made, err = admin.CertificatesV1().CertificateSigningRequests().Create(p.ctx, csr, metav1.CreateOptions{})
	must(t, err)
	_, err = admin.CertificatesV1().CertificateSigningRequests().UpdateApproval(p.ctx, "bad", approve(*made), metav1.UpdateOptions{})
	must(t, err)
	p.until("the refusal", func() bool { return len(find("bad").Status.Conditions) == 2 })
	if c := find("bad").Status.Conditions[1]; c.Type != certificatesv1.CertificateFailed || c.Reason != "SignerValidationFailure" || len(find("bad").Status.Certificate) > 0 {
		t.Errorf("%+v", c)
	}
}

type noPods struct{}

func (noPods) Pods() []*corev1.Pod { return nil }
func (noPods) Container(string, string, string, string) (string, error) {
	return "", apierrors.NewNotFound(kind.Pod.GroupResource(), "x")
}
func (noPods) Sandbox(string, string, string) (string, error) {
	return "", apierrors.NewNotFound(kind.Pod.GroupResource(), "x")
}
func (noPods) Log(string, string, string, bool) (stream.LogSource, error) {
	return stream.LogSource{}, apierrors.NewNotFound(kind.Pod.GroupResource(), "x")
}
func (noPods) Summary(context.Context) (*statsv1alpha1.Summary, error) {
	return &statsv1alpha1.Summary{}, nil
}
func (noPods) Config() any                                            { return nil }
func (noPods) Metrics(_ context.Context, _ string, w io.Writer) error { return nil }

// TestNodePort: the node's own port knows nobody without credentials, and asks
// the policy about everybody else.
func TestNodePort(t *testing.T) {
	p := start(t, nil)
	handler := stream.Handler(stream.Config{Backend: noPods{},
		Authenticate: func(r *http.Request) (stream.User, bool) {
			u, ok, err := p.authn.Authenticate(r)
			return stream.User{Name: u.Name, UID: u.UID, Groups: u.Groups}, ok && err == nil
		},
		Authorize: func(ctx context.Context, u stream.User, verb, sub string) bool {
			d, _, err := p.authz.Authorize(ctx, auth.Attributes{User: auth.User{Name: u.Name, UID: u.UID, Groups: u.Groups}, Verb: verb, Version: "v1", Resource: "nodes", Subresource: sub, Name: "a"})
			return d == auth.Allow && err == nil
		}})
	s := httptest.NewUnstartedServer(handler)
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	defer s.Close()
	ask := func(path, name string, groups ...string) int {
		tr := s.Client().Transport.(*http.Transport).Clone()
		defer tr.CloseIdleConnections()
		if name != "" {
			c, err := p.ca.Issue(pki.Names{CommonName: name, Organizations: groups, Client: true}, time.Hour)
			must(t, err)
			tr.TLSClientConfig.Certificates = []tls.Certificate{c}
		}
		resp, err := (&http.Client{Transport: tr}).Get(s.URL + path)
		must(t, err)
		resp.Body.Close()
		return resp.StatusCode
	}
	paths := []string{"/pods", "/runningpods/", "/configz", "/stats/summary", "/metrics", "/metrics/cadvisor", "/containerLogs/n/p/c", "/exec/n/p/c?command=id&output=1", "/attach/n/p/c?output=1", "/portForward/n/p"}
	for _, path := range paths {
		if code := ask(path, ""); code != 401 {
			t.Errorf("%s: %d for nobody", path, code)
		}
		if code := ask(path, "joe"); code != 403 {
			t.Errorf("%s: %d for anybody", path, code)
		}
		if code := ask(path, "system:node:b", "system:nodes"); code != 403 {
			t.Errorf("%s: %d for another node", path, code)
		}
		if code := ask(path, "kube-apiserver-kubelet-client", "system:masters"); code == 401 || code == 403 {
			t.Errorf("%s: %d for the API server", path, code)
		}
	}
	other, err := pki.Open(t.TempDir(), time.Now)
	must(t, err)
	c, err := other.Issue(pki.Names{CommonName: "x", Organizations: []string{"system:masters"}, Client: true}, time.Hour)
	must(t, err)
	tr := s.Client().Transport.(*http.Transport).Clone()
	tr.TLSClientConfig.Certificates = []tls.Certificate{c}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get(s.URL + "/pods")
	must(t, err)
	resp.Body.Close()
	if resp.StatusCode != 401 {
		t.Errorf("%d for a certificate of another authority", resp.StatusCode)
	}
}
