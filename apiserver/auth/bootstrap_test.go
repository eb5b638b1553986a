package auth

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
)

// The default policy is the one of testdata/policy.txt: every right of every role
// and every subject of every binding, none more and none less.
func TestPolicy(t *testing.T) {
	data, err := os.ReadFile("testdata/policy.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := facts(t, string(data))
	have := map[string]map[string]bool{}
	p := Policy()
	for _, r := range p.ClusterRoles {
		id := "clusterrole " + r.Name
		have[id] = rights(r.Rules)
		if a := r.AggregationRule; a != nil {
			for k, v := range a.ClusterRoleSelectors[0].MatchLabels {
				have[id]["aggregates "+strings.TrimPrefix(k, "rbac.authorization.k8s.io/")+"="+v] = true
			}
		}
		for k, v := range r.Labels {
			if name, ok := strings.CutPrefix(k, "rbac.authorization.k8s.io/"); ok {
				have[id]["labelled "+name+"="+v] = true
			}
		}
	}
	for _, r := range p.Roles {
		have["role "+r.Namespace+"/"+r.Name] = rights(r.Rules)
	}
	for _, b := range p.ClusterRoleBindings {
		have["clusterbinding "+b.Name] = subjects(b.RoleRef, "ClusterRole", b.Subjects)
	}
	for _, b := range p.RoleBindings {
		have["binding "+b.Namespace+"/"+b.Name] = subjects(b.RoleRef, "Role", b.Subjects)
	}
	for _, id := range slices.Sorted(maps.Keys(want)) {
		if have[id] == nil {
			t.Errorf("%s is missing", id)
			continue
		}
		for _, r := range slices.Sorted(maps.Keys(want[id])) {
			if !have[id][r] {
				t.Errorf("%s lacks %s", id, r)
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(have)) {
		if want[id] == nil {
			t.Errorf("%s is not one of upstream's", id)
			continue
		}
		for _, r := range slices.Sorted(maps.Keys(have[id])) {
			if !want[id][r] {
				t.Errorf("%s has %s, which upstream does not give", id, r)
			}
		}
	}
	for _, r := range p.ClusterRoles {
		if r.Labels["kubernetes.io/bootstrapping"] != "rbac-defaults" || r.Annotations["rbac.authorization.kubernetes.io/autoupdate"] != "true" {
			t.Errorf("cluster role %s has labels %v and annotations %v", r.Name, r.Labels, r.Annotations)
		}
	}
}

// rights breaks rules into single ones.
func rights(rules []rbacv1.PolicyRule) map[string]bool {
	out := map[string]bool{}
	for _, r := range rules {
		for _, one := range split(r) {
			out[Describe(one)] = true
		}
	}
	return out
}

func subjects(ref rbacv1.RoleRef, kind string, list []rbacv1.Subject) map[string]bool {
	out := map[string]bool{"to " + ref.Kind + " " + ref.Name: true}
	if ref.Kind != kind || ref.APIGroup != "rbac.authorization.k8s.io" {
		out["with a wrong reference"] = true
	}
	for _, s := range list {
		switch s.Kind {
		case "ServiceAccount":
			out["account "+s.Namespace+"/"+s.Name] = true
		default:
			out[strings.ToLower(s.Kind)+" "+s.Name] = true
		}
	}
	return out
}

// facts reads testdata/policy.txt.
func facts(t *testing.T, text string) map[string]map[string]bool {
	words := func(s string) []string {
		var out []string
		for w := range strings.SplitSeq(s, ",") {
			switch w = strings.TrimSpace(w); w {
			case "read":
				out = append(out, "get", "list", "watch")
			case "write":
				out = append(out, "create", "delete", "deletecollection", "patch", "update")
			case "core":
				out = append(out, "")
			default:
				out = append(out, w)
			}
		}
		return out
	}
	out := map[string]map[string]bool{}
	var at map[string]bool
	begin := func(id string) {
		if out[id] != nil {
			t.Fatalf("testdata/policy.txt says %s twice", id)
		}
		at = map[string]bool{}
		out[id] = at
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		f := strings.Fields(line)
		switch {
		case line == "" || line[0] == '#':
		case f[0] == "clusterrole":
			begin("clusterrole " + f[1])
			for i := 2; i+1 < len(f); i += 2 {
				at[f[i]+" "+f[i+1]+"=true"] = true
			}
		case f[0] == "controller":
			begin("clusterbinding system:controller:" + f[1])
			at["to ClusterRole system:controller:"+f[1]] = true
			at["account kube-system/"+f[1]] = true
			begin("clusterrole system:controller:" + f[1])
		case f[0] == "role":
			begin(line)
		case f[0] == "clusterbinding" || f[0] == "binding":
			name, rest, _ := strings.Cut(line, " > ")
			begin(name)
			i := strings.LastIndex(rest, ":")
			role, list := rest[:i], rest[i+1:]
			if j := strings.Index(rest, ": "); j >= 0 {
				role, list = rest[:j], rest[j+2:]
			}
			at["to "+map[string]string{"clusterbinding": "ClusterRole", "binding": "Role"}[f[0]]+" "+role] = true
			for s := range strings.SplitSeq(list, ", ") {
				if s != "" {
					at[s] = true
				}
			}
		case line == "events":
			maps.Copy(at, rights([]rbacv1.PolicyRule{{Verbs: []string{"create", "patch", "update"}, APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}}}))
		default:
			p := strings.Split(line, " | ")
			if len(p) < 3 {
				t.Fatalf("testdata/policy.txt: %q is no rule", line)
			}
			r := rbacv1.PolicyRule{Verbs: words(p[0])}
			if p[1] == "url" {
				r.NonResourceURLs = strings.Fields(p[2])
			} else {
				r.APIGroups, r.Resources = words(p[1]), strings.Split(p[2], ",")
			}
			if len(p) > 3 {
				r.ResourceNames = strings.Split(p[3], ",")
			}
			maps.Copy(at, rights([]rbacv1.PolicyRule{r}))
		}
	}
	return out
}
