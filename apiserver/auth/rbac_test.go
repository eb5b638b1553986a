package auth

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
	"proa.dev/view"
)

func clusterRole(name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
}

func role(ns, name string, rules ...rbacv1.PolicyRule) *rbacv1.Role {
	return &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Rules: rules}
}

func bindCluster(name, role string, subjects ...rbacv1.Subject) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: role}, Subjects: subjects}
}

func bindIn(ns, name, roleKind, role string, subjects ...rbacv1.Subject) *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, RoleRef: rbacv1.RoleRef{Kind: roleKind, Name: role}, Subjects: subjects}
}

func named(r rbacv1.PolicyRule, names ...string) rbacv1.PolicyRule {
	r.ResourceNames = names
	return r
}

func urls(paths ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: v("get"), NonResourceURLs: paths}
}

func userSubject(n string) rbacv1.Subject  { return rbacv1.Subject{Kind: "User", Name: n} }
func groupSubject(n string) rbacv1.Subject { return rbacv1.Subject{Kind: "Group", Name: n} }

// loaded is a view at revision 1 with the objects.
func loaded(objects ...kind.Object) *view.View {
	v := view.New(kind.All, 0)
	for _, o := range objects {
		v.Load(kindOf(o), o)
	}
	v.Loaded(1)
	return v
}

func kindOf(o kind.Object) *kind.Kind {
	for _, k := range kind.All.Rows() {
		if k.Root() == k && fmt.Sprintf("%T", k.New()) == fmt.Sprintf("%T", o) {
			return k
		}
	}
	panic(fmt.Sprintf("no kind for %T", o))
}

// ask: "verb [-n ns] group/resource[/sub][:name]" or "verb /metrics…", "verb /logs…".
func ask(u User, text string) Attributes {
	f := strings.Fields(text)
	a := Attributes{User: u, Verb: f[0]}
	if strings.HasPrefix(f[1], "/metrics") || strings.HasPrefix(f[1], "/logs") {
		a.Path = f[1]
		return a
	}
	if f[1] == "-n" {
		a.Namespace, f = f[2], f[2:]
	}
	rest := f[1]
	rest, a.Name, _ = strings.Cut(rest, ":")
	a.Group, rest, _ = strings.Cut(rest, "/")
	a.Resource, a.Subresource, _ = strings.Cut(rest, "/")
	if len(f) > 2 {
		a.FieldSelector = f[2]
	}
	return a
}

func allowed(t *testing.T, z Authorizer, u User, text string) (bool, string) {
	t.Helper()
	d, why, err := z.Authorize(context.Background(), ask(u, text))
	if err != nil {
		t.Fatal(err)
	}
	return d == Allow, why
}

func TestRBACDecides(t *testing.T) {
	v := loaded(
		clusterRole("reader", rule(v("get", "list"), "", "pods", "pods/log")),
		clusterRole("scaler", rule(v("update"), "apps", "*/scale")),
		clusterRole("one", named(rule(v("get", "create", "list"), "", "configmaps"), "only")),
		clusterRole("all", rule(v("*"), "*", "*")),
		clusterRole("web", urls("/metrics", "/logs/*")),
		role("a", "editor", rule(v("create"), "", "pods")),
		bindCluster("readers", "reader", groupSubject("devs")),
		bindCluster("scalers", "scaler", userSubject("sam")),
		bindCluster("ones", "one", userSubject("sam")),
		bindCluster("webs", "web", userSubject("sam")),
		bindCluster("gone", "absent", userSubject("sam")),
		bindCluster("nobody", "all", rbacv1.Subject{Kind: "User"}, rbacv1.Subject{Kind: "Machine", Name: "sam"}),
		bindIn("a", "editors", "Role", "editor", rbacv1.Subject{Kind: "ServiceAccount", Name: "bot"}),
		bindIn("b", "all", "ClusterRole", "all", rbacv1.Subject{Kind: "ServiceAccount", Name: "bot", Namespace: "a"}),
		bindIn("b", "wrong", "Role", "editor", userSubject("sam")), // no such role in b
	)
	z := &RBAC{View: v}
	dev, sam := User{Name: "d", Groups: []string{"devs"}}, User{Name: "sam"}
	bot := User{Name: "system:serviceaccount:a:bot"}
	for _, c := range []struct {
		u    User
		ask  string
		want bool
	}{
		{dev, "get -n x /pods:p", true}, {dev, "list /pods", true}, {dev, "get -n x /pods/log:p", true},
		{dev, "get -n x /pods/exec:p", false}, {dev, "delete -n x /pods:p", false}, {dev, "get -n x apps/pods:p", false},
		{sam, "update -n x apps/deployments/scale:d", true}, {sam, "update -n x apps/deployments:d", false},
		{sam, "update -n x batch/jobs/scale:d", false}, {sam, "get -n x apps/deployments/scale:d", false},
		{sam, "get -n x /configmaps:only", true}, {sam, "get -n x /configmaps:other", false},
		{sam, "create -n x /configmaps", false}, {sam, "list -n x /configmaps", false}, {sam, "list -n x /configmaps:only", true},
		{sam, "get /metrics", true}, {sam, "post /metrics", false}, {sam, "get /logs/a/b", true}, {sam, "get /logs", false}, {sam, "get /metricsx", false},
		{sam, "create -n b /pods", false}, {sam, "get -n x /secrets:s", false},
		{bot, "create -n a /pods", true}, {bot, "create -n c /pods", false}, {bot, "create /pods", false},
		{bot, "delete -n b /secrets:s", true}, {bot, "get -n b x.io/things/sub:s", true}, {bot, "get -n c /secrets:s", false}, {bot, "get /metrics", false},
		{User{}, "get -n x /secrets:s", false}, {User{Name: "system:serviceaccount:b:bot"}, "delete -n b /secrets:s", false},
		{User{Name: "root", Groups: []string{Masters}}, "delete -n z /secrets:s", true},
	} {
		if got, why := allowed(t, z, c.u, c.ask); got != c.want {
			t.Errorf("%s %s: %v (%s)", c.u.Name, c.ask, got, why)
		}
	}
	if _, why := allowed(t, z, dev, "get /pods:p"); why != `RBAC: allowed by ClusterRoleBinding "readers" of ClusterRole "reader" to Group "devs"` {
		t.Error(why)
	}
	if _, why := allowed(t, z, bot, "create -n a /pods"); why != `RBAC: allowed by RoleBinding "editors/a" of Role "editor" to ServiceAccount "bot/a"` {
		t.Error(why)
	}
	rules, _, _ := z.Rules(bot, "a")
	if len(rules) != 1 || rules[0].Verbs[0] != "create" {
		t.Errorf("%v", rules)
	}
}

// TestRBACFollowsTheView: whoever saw a write's answer meets the policy after it,
// however many ask at the same time.
func TestRBACFollowsTheView(t *testing.T) {
	v := loaded(clusterRole("r", rule(v("get"), "", "pods")))
	z := &RBAC{View: v}
	u := User{Name: "u"}
	var end atomic.Bool
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for !end.Load() {
				z.Authorize(context.Background(), ask(u, "get /pods:p"))
			}
		})
	}
	for i := range int64(300) {
		on := i%2 == 0
		c := view.Change{Kind: kind.ClusterRoleBinding, Revision: 10 + 2*i}
		if on {
			c.New = bindCluster("b", "r", userSubject("u"))
		} else {
			c.Last = bindCluster("b", "r", userSubject("u"))
		}
		v.Apply(c)
		v.Advance(11 + 2*i)
		if got, _ := allowed(t, z, u, "get /pods:p"); got != on {
			t.Fatalf("after change %d: allowed %v, want %v", i, got, on)
		}
	}
	end.Store(true)
	readers.Wait()
	// Rules of a role in use.
	v.Apply(view.Change{Kind: kind.ClusterRoleBinding, Revision: 2000, New: bindCluster("b", "r", userSubject("u"))})
	v.Apply(view.Change{Kind: kind.ClusterRole, Revision: 2001, New: clusterRole("r", rule(read, "", "secrets"))})
	if got, _ := allowed(t, z, u, "get /pods:p"); got {
		t.Error("the old rules hold")
	}
	if got, _ := allowed(t, z, u, "get /secrets:p"); !got {
		t.Error("the new rules do not hold")
	}
	if a, b := z.index.Load(), z.index.Load(); a != b || !a.holds() {
		t.Error("an index without changes is made again")
	}
	v.Apply(view.Change{Kind: kind.Pod, Revision: 2002, New: pod("n", "p", "")})
	if !z.index.Load().holds() {
		t.Error("a pod's change makes the index stale")
	}
}

func TestRBACBeforeTheViewIsLoaded(t *testing.T) {
	w := view.New(kind.All, 0)
	z := &RBAC{View: w}
	if got, _ := allowed(t, z, User{Name: "u"}, "get /pods:p"); got {
		t.Fatal("allowed from nothing")
	}
	w.Load(kind.ClusterRole, clusterRole("r", rule(v("get"), "", "pods")))
	w.Load(kind.ClusterRoleBinding, bindCluster("b", "r", userSubject("u")))
	w.Loaded(5)
	if got, _ := allowed(t, z, User{Name: "u"}, "get /pods:p"); !got {
		t.Fatal("what was loaded is not seen")
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		name          string
		owned, wanted []rbacv1.PolicyRule
		missing       string
	}{
		{"same", []rbacv1.PolicyRule{rule(read, "", "pods")}, []rbacv1.PolicyRule{rule(read, "", "pods")}, ""},
		{"spread over rules", []rbacv1.PolicyRule{rule(v("get"), "", "pods"), rule(v("list"), "", "pods")}, []rbacv1.PolicyRule{rule(v("get", "list"), "", "pods")}, ""},
		{"a verb more", []rbacv1.PolicyRule{rule(v("get"), "", "pods")}, []rbacv1.PolicyRule{rule(v("get", "delete", "watch"), "", "pods")},
			`{APIGroups:[""], Resources:["pods"], Verbs:["delete" "watch"]}`},
		{"all verbs are more than all known ones", []rbacv1.PolicyRule{rule(append(v("get", "list", "watch"), v("create", "delete", "deletecollection", "patch", "update")...), "", "pods")}, []rbacv1.PolicyRule{rule(v("*"), "", "pods")},
			`{APIGroups:[""], Resources:["pods"], Verbs:["*"]}`},
		{"subresources are not covered by their parent", []rbacv1.PolicyRule{rule(v("get"), "", "pods")}, []rbacv1.PolicyRule{rule(v("get"), "", "pods/exec")},
			`{APIGroups:[""], Resources:["pods/exec"], Verbs:["get"]}`},
		{"all of a subresource", []rbacv1.PolicyRule{rule(v("get"), "*", "*/scale")}, []rbacv1.PolicyRule{rule(v("get"), "apps", "deployments/scale"), rule(v("get"), "apps", "*/scale")}, ""},
		{"all resources", []rbacv1.PolicyRule{rule(v("*"), "*", "*")}, []rbacv1.PolicyRule{rule(v("*"), "*", "*"), named(rule(v("get"), "", "secrets"), "x")}, ""},
		{"one name is not all", []rbacv1.PolicyRule{named(rule(v("get"), "", "secrets"), "a", "b")},
			[]rbacv1.PolicyRule{named(rule(v("get"), "", "secrets"), "b", "c"), rule(v("get"), "", "secrets")},
			`{APIGroups:[""], Resources:["secrets"], ResourceNames:["c"], Verbs:["get"]}` + "\n" + `{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}`},
		{"paths", []rbacv1.PolicyRule{urls("/logs/*", "/version")}, []rbacv1.PolicyRule{urls("/logs/a/*", "/version", "/metrics", "*")},
			`{NonResourceURLs:["/metrics"], Verbs:["get"]}` + "\n" + `{NonResourceURLs:["*"], Verbs:["get"]}`},
		{"paths are no resources", []rbacv1.PolicyRule{rule(v("*"), "*", "*")}, []rbacv1.PolicyRule{urls("/metrics")}, `{NonResourceURLs:["/metrics"], Verbs:["get"]}`},
	} {
		var lines []string
		for _, m := range Compact(Covers(c.owned, c.wanted)) {
			lines = append(lines, Describe(m))
		}
		if got := strings.Join(lines, "\n"); got != c.missing {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.missing)
		}
	}
}

// TestPolicyIsWhole: every binding has its role, every name is there once, and
// the roles that upstream documents exist.
func TestPolicyIsWhole(t *testing.T) {
	p := Policy()
	roles := map[string]*rbacv1.ClusterRole{}
	for _, r := range p.ClusterRoles {
		if roles[r.Name] != nil {
			t.Errorf("ClusterRole %q twice", r.Name)
		}
		roles[r.Name] = r
		if len(r.Rules) == 0 && r.AggregationRule == nil {
			t.Errorf("ClusterRole %q has no rules", r.Name)
		}
		for _, ru := range r.Rules {
			if len(ru.Verbs) == 0 || len(ru.NonResourceURLs) == 0 && (len(ru.APIGroups) == 0 || len(ru.Resources) == 0) || slices.Contains(ru.Verbs, "") {
				t.Errorf("ClusterRole %q: %s", r.Name, Describe(ru))
			}
		}
		if errs := kind.ClusterRole.Validate(r); len(errs) > 0 {
			t.Errorf("ClusterRole %q: %v", r.Name, errs)
		}
	}
	seen := map[string]bool{}
	for _, b := range p.ClusterRoleBindings {
		if seen[b.Name] || roles[b.RoleRef.Name] == nil {
			t.Errorf("ClusterRoleBinding %q: twice or of no role", b.Name)
		}
		seen[b.Name] = true
		if errs := kind.ClusterRoleBinding.Validate(b); len(errs) > 0 {
			t.Errorf("ClusterRoleBinding %q: %v", b.Name, errs)
		}
		for _, s := range b.Subjects {
			if s.Name == AllUnauthenticated && b.Name != "system:public-info-viewer" {
				t.Errorf("ClusterRoleBinding %q lets anybody in", b.Name)
			}
		}
	}
	if b := p.ClusterRoleBindings[slices.IndexFunc(p.ClusterRoleBindings, func(b *rbacv1.ClusterRoleBinding) bool { return b.Name == "system:node" })]; len(b.Subjects) != 0 {
		t.Error("nodes are bound to system:node: they would read every secret")
	}
	for _, b := range p.RoleBindings {
		if !slices.ContainsFunc(p.Roles, func(r *rbacv1.Role) bool { return r.Name == b.RoleRef.Name && r.Namespace == b.Namespace }) {
			t.Errorf("RoleBinding %s/%s of no role", b.Namespace, b.Name)
		}
	}
	for _, name := range []string{"cluster-admin", "admin", "edit", "view", "system:discovery", "system:basic-user", "system:public-info-viewer", "system:monitoring",
		"system:node", "system:node-proxier", "system:node-bootstrapper", "system:node-problem-detector", "system:kubelet-api-admin", "system:auth-delegator",
		"system:kube-aggregator", "system:kube-dns", "system:persistent-volume-provisioner", "system:volume-scheduler", "system:kube-scheduler",
		"system:kube-controller-manager", "system:heapster", "system:service-account-issuer-discovery",
		"system:controller:attachdetach-controller", "system:controller:certificate-controller", "system:controller:clusterrole-aggregation-controller",
		"system:controller:cronjob-controller", "system:controller:daemon-set-controller", "system:controller:deployment-controller", "system:controller:disruption-controller",
		"system:controller:endpoint-controller", "system:controller:expand-controller", "system:controller:generic-garbage-collector", "system:controller:horizontal-pod-autoscaler",
		"system:controller:job-controller", "system:controller:namespace-controller", "system:controller:node-controller", "system:controller:persistent-volume-binder",
		"system:controller:pod-garbage-collector", "system:controller:pv-protection-controller", "system:controller:pvc-protection-controller",
		"system:controller:replicaset-controller", "system:controller:replication-controller", "system:controller:resourcequota-controller",
		"system:controller:root-ca-cert-publisher", "system:controller:route-controller", "system:controller:service-account-controller",
		"system:controller:service-controller", "system:controller:statefulset-controller", "system:controller:ttl-controller"} {
		if roles[name] == nil {
			t.Errorf("ClusterRole %q is missing", name)
		}
	}
	if got := Describe(roles["system:controller:cronjob-controller"].Rules[0]); got != `{APIGroups:["batch"], Resources:["cronjobs"], Verbs:["get" "list" "update" "watch"]}` {
		t.Error(got)
	}
	// view shows no secrets and no roles, edit none of the roles.
	for _, c := range []struct {
		role, resource string
	}{{"system:aggregate-to-view", "/secrets"}, {"system:aggregate-to-view", "rbac.authorization.k8s.io/roles"}, {"system:aggregate-to-edit", "rbac.authorization.k8s.io/rolebindings"},
		{"system:aggregate-to-edit", "/namespaces"}, {"system:aggregate-to-edit", "/resourcequotas"}, {"system:aggregate-to-edit", "/limitranges"}} {
		for _, verb := range []string{"get", "list", "create", "update", "delete"} {
			a := ask(User{}, verb+" -n x "+c.resource)
			for _, ru := range roles[c.role].Rules {
				if RuleAllows(&ru, &a) {
					t.Errorf("%s allows %s %s", c.role, verb, c.resource)
				}
			}
		}
	}
}
