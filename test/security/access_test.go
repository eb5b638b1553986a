package security

import (
	"encoding/base64"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/cluster/first"
	"proa.dev/kind"
	"proa.dev/view"
)

// TestAnonymous: without credentials health and version answer, and nothing else.
func TestAnonymous(t *testing.T) {
	p := start(t, nil)
	for _, path := range []string{"/healthz", "/livez", "/readyz", "/version"} {
		if code, body := p.get(path); code != 200 {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	for _, path := range []string{"/", "/api", "/apis", "/api/v1", "/api/v1/pods", "/api/v1/namespaces/kube-system/secrets", "/apis/apps/v1/deployments", "/metrics", "/openapi/v2",
		"/openapi/v3", "/debug/pprof/", "/logs", "/.well-known/openid-configuration", "/openid/v1/jwks", "/livez/ping", "/api/v1/nodes/x/proxy/", "/api/v1/namespaces/kube-public/configmaps/cluster-info"} {
		code, body := p.get(path)
		if code != 403 || !strings.Contains(body, `User \"system:anonymous\" cannot get`) && !strings.Contains(body, `User \"system:anonymous\" cannot list`) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	// Bad credentials are refused even where none are needed.
	for _, h := range []string{"Authorization: Bearer nonsense", "Authorization: Bearer a.b.c"} {
		if code, body := p.get("/livez", h); code != 401 || !strings.Contains(body, "Unauthorized") {
			t.Errorf("%s: %d %s", h, code, body)
		}
	}
	if code, _ := p.get("/api/v1/secrets", "Impersonate-User: system:admin", "Impersonate-Group: system:masters"); code != 403 {
		t.Errorf("anonymous impersonation: %d", code)
	}
	for _, h := range []string{"X-Remote-User: admin", "X-Forwarded-User: admin", "Authorization: Basic YWRtaW46YWRtaW4="} {
		if code, _ := p.get("/api/v1/secrets", h); code != 403 {
			t.Errorf("%s: %d", h, code)
		}
	}
	if who, err := p.as("joe").AuthenticationV1().SelfSubjectReviews().Create(p.ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{}); err != nil || who.Status.UserInfo.Username != "joe" {
		t.Errorf("%v %v", who, err)
	}
	if err := p.as("joe").RESTClient().Get().AbsPath("/metrics").Do(p.ctx).Error(); !apierrors.IsForbidden(err) {
		t.Errorf("metrics for anybody: %v", err)
	}
	if err := p.as("prometheus", "system:monitoring").RESTClient().Get().AbsPath("/metrics").Do(p.ctx).Error(); err != nil {
		t.Errorf("metrics for monitoring: %v", err)
	}
	if err := p.as("joe").RESTClient().Get().AbsPath("/apis").Do(p.ctx).Error(); err != nil {
		t.Errorf("discovery for who is known: %v", err)
	}
}

// TestServiceAccountToken: what a pod's credential may, and when it ends.
func TestServiceAccountToken(t *testing.T) {
	p := start(t, nil)
	p.namespace("n")
	admin := p.as("root", "system:masters")
	pod, err := admin.CoreV1().Pods("n").Create(p.ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
	must(t, err)
	ask := func(spec authenticationv1.TokenRequestSpec) (*authenticationv1.TokenRequest, error) {
		return admin.CoreV1().ServiceAccounts("n").CreateToken(p.ctx, "default", &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	}
	tr, err := ask(authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "p", UID: pod.UID}})
	must(t, err)
	me := p.bearer(tr.Status.Token)
	_, err = me.CoreV1().Pods("n").List(p.ctx, metav1.ListOptions{})
	denied(t, err, `pods is forbidden: User "system:serviceaccount:n:default" cannot list resource "pods" in API group "" in the namespace "n"`)
	_, err = me.CoreV1().Secrets("kube-system").Get(p.ctx, "x", metav1.GetOptions{})
	denied(t, err, `secrets "x" is forbidden`)
	p.create(kind.RoleBinding, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "read"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "default", Namespace: "n"}}})
	// The role view is a sum that its controller makes.
	p.until("the role view", func() bool {
		r := view.Get[*rbacv1.ClusterRole](p.view.Snapshot(), kind.ClusterRole, "", "view")
		return r != nil && len(r.Rules) > 0
	})
	if l, err := me.CoreV1().Pods("n").List(p.ctx, metav1.ListOptions{}); err != nil || len(l.Items) != 1 {
		t.Errorf("%v", err)
	}
	_, err = me.CoreV1().Secrets("n").List(p.ctx, metav1.ListOptions{})
	denied(t, err, "forbidden")
	_, err = me.CoreV1().Pods("default").List(p.ctx, metav1.ListOptions{})
	denied(t, err, "forbidden")

	// The same token over a WebSocket's subprotocol, as a browser sends it.
	proto := "Sec-WebSocket-Protocol: v5.channel.k8s.io, base64url.bearer.authorization.k8s.io." + base64.RawURLEncoding.EncodeToString([]byte(tr.Status.Token))
	if code, _ := p.get("/api/v1/namespaces/n/pods", proto, "Upgrade: websocket"); code != 200 {
		t.Errorf("token in the subprotocol: %d", code)
	}

	other, err := ask(authenticationv1.TokenRequestSpec{Audiences: []string{"vault"}})
	must(t, err)
	_, err = p.bearer(other.Status.Token).CoreV1().Pods("n").List(p.ctx, metav1.ListOptions{})
	if !apierrors.IsUnauthorized(err) {
		t.Errorf("a token for another audience: %v", err)
	}
	review, err := admin.AuthenticationV1().TokenReviews().Create(p.ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: other.Status.Token, Audiences: []string{"vault"}}}, metav1.CreateOptions{})
	if err != nil || !review.Status.Authenticated || review.Status.User.Username != "system:serviceaccount:n:default" {
		t.Errorf("%+v %v", review.Status, err)
	}
	_, err = ask(authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "none"}})
	if !apierrors.IsNotFound(err) {
		t.Errorf("bound to no pod: %v", err)
	}

	zero := int64(0)
	must(t, admin.CoreV1().Pods("n").Delete(p.ctx, "p", metav1.DeleteOptions{GracePeriodSeconds: &zero}))
	if _, err := me.CoreV1().Pods("n").List(p.ctx, metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("the pod is gone: %v", err)
	}
	plain, err := ask(authenticationv1.TokenRequestSpec{})
	must(t, err)
	if _, err := p.bearer(plain.Status.Token).CoreV1().Pods("n").List(p.ctx, metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
	old := p.view.Snapshot().Get(kind.ServiceAccount, "n", "default").GetUID()
	must(t, admin.CoreV1().ServiceAccounts("n").Delete(p.ctx, "default", metav1.DeleteOptions{}))
	p.until("the account to be made again", func() bool {
		sa := p.view.Snapshot().Get(kind.ServiceAccount, "n", "default")
		return sa != nil && sa.GetUID() != old
	})
	if _, err := p.bearer(plain.Status.Token).CoreV1().Pods("n").List(p.ctx, metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("the account was made again: %v", err)
	}
}

// TestRBAC: a person's way through the policy, and what a namespace's
// administrator may give away.
func TestRBAC(t *testing.T) {
	p := start(t, nil)
	p.namespace("team")
	p.namespace("other")
	bind := func(ns, name, role string, who rbacv1.Subject) {
		p.create(kind.RoleBinding, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}, Subjects: []rbacv1.Subject{who}})
	}
	bind("team", "admins", "admin", rbacv1.Subject{Kind: "User", APIGroup: rbacv1.GroupName, Name: "ann"})
	bind("team", "editors", "edit", rbacv1.Subject{Kind: "Group", APIGroup: rbacv1.GroupName, Name: "devs"})
	p.until("the role admin", func() bool {
		r := view.Get[*rbacv1.ClusterRole](p.view.Snapshot(), kind.ClusterRole, "", "admin")
		return r != nil && len(r.Rules) > 20
	})
	ann, dev := p.as("ann"), p.as("dan", "devs")
	one := int32(1)
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}}}
	_, err := dev.AppsV1().Deployments("team").Create(p.ctx, d, metav1.CreateOptions{})
	must(t, err)
	_, err = dev.AppsV1().Deployments("team").Patch(p.ctx, "web", types.MergePatchType, []byte(`{"spec":{"replicas":2}}`), metav1.PatchOptions{}, "scale")
	must(t, err)
	_, err = dev.AppsV1().Deployments("other").Create(p.ctx, d, metav1.CreateOptions{})
	denied(t, err, `deployments.apps is forbidden: User "dan" cannot create resource "deployments" in API group "apps" in the namespace "other"`)
	_, err = dev.CoreV1().Nodes().List(p.ctx, metav1.ListOptions{})
	denied(t, err, `nodes is forbidden: User "dan" cannot list resource "nodes" in API group "" at the cluster scope`)
	_, err = dev.RbacV1().Roles("team").List(p.ctx, metav1.ListOptions{})
	denied(t, err, "forbidden")

	// kubectl auth can-i.
	can := func(verb, group, res, sub, ns string) bool {
		r, err := dev.AuthorizationV1().SelfSubjectAccessReviews().Create(p.ctx, &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Group: group, Resource: res, Subresource: sub, Namespace: ns}}}, metav1.CreateOptions{})
		must(t, err)
		return r.Status.Allowed
	}
	if !can("create", "", "pods", "exec", "team") || can("create", "", "pods", "exec", "other") || can("*", "*", "*", "", "") || !can("get", "", "secrets", "", "team") {
		t.Error("can-i says something else than the policy")
	}

	// Ann gives what she has, not more.
	role := func(name string, rules ...rbacv1.PolicyRule) *rbacv1.Role {
		return &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
	}
	_, err = ann.RbacV1().Roles("team").Create(p.ctx, role("reader", rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods", "secrets"}, Verbs: []string{"get", "list"}}), metav1.CreateOptions{})
	must(t, err)
	_, err = ann.RbacV1().Roles("team").Create(p.ctx, role("taints", rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get", "update"}}), metav1.CreateOptions{})
	denied(t, err, "roles.rbac.authorization.k8s.io \"taints\" is forbidden: user \"ann\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n"+
		`{APIGroups:[""], Resources:["nodes"], Verbs:["get" "update"]}`)
	binding := func(role string) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "x"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}, Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "ann"}}}
	}
	_, err = ann.RbacV1().RoleBindings("team").Create(p.ctx, binding("cluster-admin"), metav1.CreateOptions{})
	denied(t, err, "is attempting to grant RBAC permissions not currently held")
	_, err = ann.RbacV1().RoleBindings("team").Create(p.ctx, binding("made-later"), metav1.CreateOptions{})
	denied(t, err, `clusterroles.rbac.authorization.k8s.io "made-later" not found`)
	_, err = ann.RbacV1().ClusterRoleBindings().Create(p.ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "x"}, RoleRef: binding("cluster-admin").RoleRef}, metav1.CreateOptions{})
	denied(t, err, "forbidden")

	// Impersonation needs to be given, name by name.
	err = ann.RESTClient().Get().AbsPath("/api/v1/namespaces/team/pods").SetHeader("Impersonate-User", "root").SetHeader("Impersonate-Group", "system:masters").Do(p.ctx).Error()
	denied(t, err, `users "root" is forbidden: User "ann" cannot impersonate resource "users" in API group "" at the cluster scope`)
	err = ann.RESTClient().Get().AbsPath("/api/v1/namespaces/team/pods").SetHeader("Impersonate-User", "system:serviceaccount:other:default").Do(p.ctx).Error()
	denied(t, err, `serviceaccounts "default" is forbidden: User "ann" cannot impersonate resource "serviceaccounts"`)
	err = ann.RESTClient().Get().AbsPath("/api/v1/namespaces/team/secrets").SetHeader("Impersonate-User", "system:serviceaccount:team:default").Do(p.ctx).Error()
	denied(t, err, `User "system:serviceaccount:team:default" cannot list resource "secrets"`)

	// A change is in force for the request after its answer.
	for range 20 {
		must(t, p.admin.Delete(p.ctx, kind.RoleBinding, "team", "editors", metav1.DeleteOptions{}))
		if _, err := dev.CoreV1().Pods("team").List(p.ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Fatalf("after the binding is gone: %v", err)
		}
		bind("team", "editors", "edit", rbacv1.Subject{Kind: "Group", APIGroup: rbacv1.GroupName, Name: "devs"})
		if _, err := dev.CoreV1().Pods("team").List(p.ctx, metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPolicyIsReconciled: each start completes the default policy, keeps what
// people added, and leaves alone what opts out.
func TestPolicyIsReconciled(t *testing.T) {
	p := start(t, nil)
	admin := p.as("root", "system:masters")
	roles, bindings := admin.RbacV1().ClusterRoles(), admin.RbacV1().ClusterRoleBindings()
	r, err := roles.Get(p.ctx, "system:discovery", metav1.GetOptions{})
	must(t, err)
	r.Rules = []rbacv1.PolicyRule{{Verbs: []string{"get"}, NonResourceURLs: []string{"/mine"}}}
	delete(r.Labels, "kubernetes.io/bootstrapping")
	_, err = roles.Update(p.ctx, r, metav1.UpdateOptions{})
	must(t, err)
	off, err := roles.Get(p.ctx, "system:monitoring", metav1.GetOptions{})
	must(t, err)
	off.Annotations["rbac.authorization.kubernetes.io/autoupdate"], off.Rules = "false", nil
	_, err = roles.Update(p.ctx, off, metav1.UpdateOptions{})
	must(t, err)
	edit, err := roles.Get(p.ctx, "edit", metav1.GetOptions{})
	must(t, err)
	edit.Labels, edit.AggregationRule.ClusterRoleSelectors = nil, []metav1.LabelSelector{{MatchLabels: map[string]string{"mine": "yes"}}}
	_, err = roles.Update(p.ctx, edit, metav1.UpdateOptions{})
	must(t, err)
	b, err := bindings.Get(p.ctx, "system:basic-user", metav1.GetOptions{})
	must(t, err)
	b.Subjects = []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "guest"}}
	_, err = bindings.Update(p.ctx, b, metav1.UpdateOptions{})
	must(t, err)
	must(t, bindings.Delete(p.ctx, "system:monitoring", metav1.DeleteOptions{}))
	must(t, bindings.Delete(p.ctx, "system:discovery", metav1.DeleteOptions{}))
	_, err = bindings.Create(p.ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "system:discovery"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"}}, metav1.CreateOptions{})
	must(t, err)

	must(t, first.Ensure(p.ctx, p.admin, p.cfg))
	r, err = roles.Get(p.ctx, "system:discovery", metav1.GetOptions{})
	must(t, err)
	paths := map[string]bool{}
	for _, ru := range r.Rules {
		for _, u := range ru.NonResourceURLs {
			paths[u] = true
		}
	}
	if !paths["/mine"] || !paths["/apis/*"] || r.Labels["kubernetes.io/bootstrapping"] != "rbac-defaults" {
		t.Errorf("%+v", r)
	}
	if off, err = roles.Get(p.ctx, "system:monitoring", metav1.GetOptions{}); err != nil || len(off.Rules) != 0 {
		t.Errorf("opted out: %+v %v", off, err)
	}
	if edit, err = roles.Get(p.ctx, "edit", metav1.GetOptions{}); err != nil || len(edit.AggregationRule.ClusterRoleSelectors) != 2 || edit.Labels["rbac.authorization.k8s.io/aggregate-to-admin"] != "true" {
		t.Errorf("%+v %v", edit, err)
	}
	if b, err = bindings.Get(p.ctx, "system:basic-user", metav1.GetOptions{}); err != nil || len(b.Subjects) != 2 {
		t.Errorf("%+v %v", b, err)
	}
	if b, err = bindings.Get(p.ctx, "system:discovery", metav1.GetOptions{}); err != nil || b.RoleRef.Name != "system:discovery" {
		t.Errorf("%+v %v", b, err)
	}
	if _, err = bindings.Get(p.ctx, "system:monitoring", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	// Again: nothing to do, nothing written.
	before := p.view.Snapshot().Revision()
	must(t, first.Ensure(p.ctx, p.admin, p.cfg))
	for _, k := range []*kind.Kind{kind.ClusterRole, kind.ClusterRoleBinding, kind.Role, kind.RoleBinding, kind.Service, kind.ConfigMap, kind.Namespace} {
		changes, _, _, err := p.view.Changes(k, before)
		if err != nil || len(changes) > 0 && k != kind.ClusterRole {
			t.Errorf("%s: %d writes for nothing, %v", k, len(changes), err)
		}
	}
}
