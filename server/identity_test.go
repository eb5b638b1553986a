package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"proa.dev/apiserver/auth"
	"proa.dev/internal/await"
	"proa.dev/internal/locked"
	"proa.dev/kind"
)

// granted is what a user may by the default policy, by namespace ("": everywhere).
func granted(u auth.User) map[string][]rbacv1.PolicyRule {
	p, out := auth.Policy(), map[string][]rbacv1.PolicyRule{}
	is := func(list []rbacv1.Subject) bool {
		for _, s := range list {
			if s.Kind == "User" && s.Name == u.Name || s.Kind == "ServiceAccount" && auth.ServiceAccountUser+s.Namespace+":"+s.Name == u.Name {
				return true
			}
		}
		return false
	}
	for _, b := range p.ClusterRoleBindings {
		for _, r := range p.ClusterRoles {
			if r.Name == b.RoleRef.Name && is(b.Subjects) {
				out[""] = append(out[""], r.Rules...)
			}
		}
	}
	for _, b := range p.RoleBindings {
		for _, r := range p.Roles {
			if r.Name == b.RoleRef.Name && r.Namespace == b.Namespace && is(b.Subjects) {
				out[b.Namespace] = append(out[b.Namespace], r.Rules...)
			}
		}
	}
	return out
}

// Every decider acts as somebody, and may do by the default policy what it has
// declared as its writes.
func TestDecidersMay(t *testing.T) {
	for _, name := range Controllers() {
		if _, ok := DeciderUser(name); !ok {
			t.Errorf("%s has no identity", name)
		}
	}
	s, _, end := run(t, func(*Config) {})
	end()
	verbs := map[string]string{"touch": "patch", "evict": "create", "bind": "create"}
	subs := map[string]string{"evict": "eviction", "bind": "binding"}
	// What these write lies in one namespace, and they may nothing elsewhere.
	namespaces := map[string]string{"token-cleaner-controller": "kube-system", "bootstrap-signer-controller": "kube-public"}
	names := map[string]string{"bootstrap-signer-controller": "cluster-info"}
	for _, p := range s.parts {
		u, ok := DeciderUser(p.Name)
		if !ok {
			t.Errorf("%s acts as the server", p.Name)
			continue
		}
		all := granted(u)
		rules := append(all[""], all[namespaces[p.Name]]...)
		for _, w := range p.Writes {
			a := auth.Attributes{User: u, Group: "any.example.org", Resource: "things", Subresource: w.Sub, Name: names[p.Name]}
			if w.Kind != nil {
				a.Group, a.Resource = w.Kind.Group, w.Kind.Plural
			}
			for _, v := range w.Verbs {
				if a.Verb = v; verbs[v] != "" {
					a.Verb = verbs[v]
				}
				if subs[v] != "" {
					a.Subresource = subs[v]
				}
				allowed := false
				for i := range rules {
					allowed = allowed || auth.RuleAllows(&rules[i], &a)
				}
				if !allowed {
					t.Errorf("%s, which is %s, may not %s %s/%s of group %q", p.Name, u.Name, a.Verb, a.Resource, a.Subresource, a.Group)
				}
			}
		}
		// And no more than its account: what it has not declared is its account's alone.
		if len(all) == 0 {
			t.Errorf("%s: nothing is granted to %s", p.Name, u.Name)
		}
	}
}

// Controllers and scheduler act under names of their own: in the audit log, and
// before RBAC, which gives them what they need and whose refusal is told.
func TestIdentities(t *testing.T) {
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(policy, []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- level: Metadata\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log locked.Buffer
	s, _, end := run(t, func(c *Config) {
		c.Audit.PolicyFile, c.Audit.LogPath = policy, filepath.Join(dir, "audit.log")
		c.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	defer end()
	c, ctx := s.Admin(), t.Context()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelHostname: "n1"}}}
	n.Status.Capacity = corev1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("8Gi"), "pods": resource.MustParse("110")}
	n.Status.Allocatable = n.Status.Capacity
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}
	if _, err := c.Create(ctx, kind.Node, n, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Update(ctx, kind.Node, s.View.Snapshot().Get(kind.Node, "", "n1"), "", metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	kubelet := s.Client("kubelet", auth.User{Name: auth.NodePrefix + "n1", Groups: []string{auth.NodesGroup, auth.AllAuthenticated}})
	n = s.View.Snapshot().Get(kind.Node, "", "n1").DeepCopyObject().(*corev1.Node)
	n.Status.Phase = corev1.NodeRunning
	updated, err := kubelet.Update(ctx, kind.Node, n, "status", metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(updated.GetManagedFields(), func(e metav1.ManagedFieldsEntry) bool {
		return e.Manager == "kubelet" && e.Subresource == "status"
	}) {
		t.Errorf("the kubelet's write is %v's", updated.GetManagedFields())
	}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}}
	d.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	d.Spec.Template.Labels = d.Spec.Selector.MatchLabels
	d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "web", Image: "web:1"}}
	if _, err := c.Create(ctx, kind.Deployment, d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await.Nil(t, 20*time.Second, "the pod is bound", func() error {
		for o := range s.View.Snapshot().All(kind.Pod, "default") {
			if o.(*corev1.Pod).Spec.NodeName == "n1" {
				return nil
			}
		}
		return errors.New("there is none on n1")
	})
	for _, want := range []struct{ user, agent, verb, resource, sub string }{
		{"system:serviceaccount:kube-system:deployment-controller", "kube-controller-manager/", "create", "replicasets", ""},
		{"system:serviceaccount:kube-system:replicaset-controller", "kube-controller-manager/", "create", "pods", ""},
		{"system:serviceaccount:kube-system:replicaset-controller", "kube-controller-manager/", "create", "events", ""},
		{"system:serviceaccount:kube-system:root-ca-cert-publisher", "kube-controller-manager/", "create", "configmaps", ""},
		{"system:kube-scheduler", "kube-scheduler/", "create", "pods", "binding"},
		{"system:kube-scheduler", "kube-scheduler/", "create", "events", ""},
		{"system:apiserver", "kube-apiserver/", "create", "clusterroles", ""},
		{"system:node:n1", "kubelet/", "update", "nodes", "status"},
	} {
		await.Nil(t, 10*time.Second, "the audit log has "+fmt.Sprint(want), func() error {
			data, err := os.ReadFile(filepath.Join(dir, "audit.log"))
			if err != nil {
				return err
			}
			for line := range bytes.Lines(data) {
				var e auditv1.Event
				if json.Unmarshal(line, &e) == nil && e.User.Username == want.user && strings.HasPrefix(e.UserAgent, want.agent) && e.Verb == want.verb &&
					e.ObjectRef.Resource == want.resource && e.ObjectRef.Subresource == want.sub && (e.ResponseStatus.Code == 201 || want.verb != "create" && e.ResponseStatus.Code == 200) && e.Annotations["authorization.k8s.io/decision"] == "allow" {
					return nil
				}
			}
			return errors.New("it has not")
		})
	}
	if strings.Contains(log.String(), "may not do its work") {
		t.Errorf("the default policy lacks something:\n%s", log.String())
	}

	// Without its role a controller can do nothing, and that is said.
	if err := c.Delete(ctx, kind.ClusterRole, "", "system:controller:replicaset-controller", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	d.Name = "more"
	if _, err := c.Create(ctx, kind.Deployment, d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await.True(t, 10*time.Second, "the log says what the controller may not", func() bool {
		return strings.Contains(log.String(), "may not do its work") && strings.Contains(log.String(), `User \"system:serviceaccount:kube-system:replicaset-controller\" cannot create resource \"pods\"`)
	})
}

// denyAll has an opinion about everybody.
type denyAll struct{}

func (denyAll) Authorize(context.Context, auth.Attributes) (auth.Decision, string, error) {
	return auth.Deny, "nobody may", nil
}

// Where RBAC is not asked, controllers still do their work.
func TestDecidersWithoutRBAC(t *testing.T) {
	for _, change := range []func(*Config){
		func(c *Config) { c.Authorization = []string{"AlwaysAllow"} },
		func(c *Config) { c.Authorization = []string{"AlwaysDeny"} },
		func(c *Config) { c.Authorization, c.Authorizers = []string{"Node"}, []auth.Authorizer{denyAll{}} },
	} {
		s, _, end := run(t, change)
		if _, err := s.Admin().Create(t.Context(), kind.Namespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "fresh"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		await.True(t, 10*time.Second, "a new namespace has its account", func() bool {
			return s.View.Snapshot().Get(kind.ServiceAccount, "fresh", "default") != nil
		})
		end()
	}
}

// BenchmarkDecider is what a write of a controller costs in process: as a member of
// system:masters (nobody is asked) and as its account (RBAC is).
func BenchmarkDecider(b *testing.B) {
	for _, c := range []struct {
		name  string
		modes []string
	}{{"masters", []string{"AlwaysAllow"}}, {"account", nil}} {
		b.Run(c.name, func(b *testing.B) {
			s, _, end := run(b, func(cfg *Config) { cfg.Authorization, cfg.Controllers = c.modes, []string{} })
			defer end()
			door := s.as("replicaset-controller")
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", GenerateName: "web-"}}
			pod.Spec.Containers = []corev1.Container{{Name: "web", Image: "web:1"}}
			if _, err := s.Admin().Create(b.Context(), kind.ServiceAccount, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}}, metav1.CreateOptions{}); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := door.Create(b.Context(), kind.Pod, pod, metav1.CreateOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
