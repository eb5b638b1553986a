package discovery

import (
	"slices"
	"sort"
	"strings"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"

	"proa.dev/kind"
)

// Remote is a group version that another server has (an APIService with a
// Service); in the documents it stands in place of rows of the same group version.
type Remote struct {
	Group, Version string
	// GroupPriority and VersionPriority are the APIService's.
	GroupPriority, VersionPriority int32
	// Resources as last heard; IsCurrent is false when the server does not answer now.
	Resources []apidiscovery.APIResourceDiscovery
	IsCurrent bool
}

// Priorities of the group versions that the program brings along: order of the
// groups in discovery, order of the versions within them. They are upstream's, and
// so are those of definitions.
var priorities = map[string][2]int32{
	"v1":                              {18000, 1},
	"apiregistration.k8s.io/v1":       {18000, 18},
	"apps/v1":                         {17800, 15},
	"events.k8s.io/v1":                {17750, 15},
	"authentication.k8s.io/v1":        {17700, 15},
	"authorization.k8s.io/v1":         {17600, 15},
	"autoscaling/v1":                  {17500, 15},
	"autoscaling/v2":                  {17500, 30},
	"batch/v1":                        {17400, 15},
	"certificates.k8s.io/v1":          {17300, 15},
	"networking.k8s.io/v1":            {17200, 15},
	"policy/v1":                       {17100, 15},
	"rbac.authorization.k8s.io/v1":    {17000, 15},
	"storage.k8s.io/v1":               {16800, 15},
	"apiextensions.k8s.io/v1":         {16700, 15},
	"admissionregistration.k8s.io/v1": {16700, 15},
	"scheduling.k8s.io/v1":            {16600, 15},
	"coordination.k8s.io/v1":          {16500, 15},
	"node.k8s.io/v1":                  {16300, 15},
	"discovery.k8s.io/v1":             {16200, 15},
	"flowcontrol.apiserver.k8s.io/v1": {16100, 21},
	"resource.k8s.io/v1":              {15900, 20},
	"storagemigration.k8s.io/v1":      {15800, 15},
}

// CustomPriority is that of every definition.
const (
	CustomGroupPriority   = 1000
	CustomVersionPriority = 100
)

// Priority of a group version of the table.
func Priority(group, ver string) (groupMinimum, versionPriority int32) {
	key := ver
	if group != "" {
		key = group + "/" + ver
	}
	if p, ok := priorities[key]; ok {
		return p[0], p[1]
	}
	return CustomGroupPriority, CustomVersionPriority
}

// IsBuiltIn says that the table has a row of the program's own for the group
// version.
func IsBuiltIn(t *kind.Table, group, ver string) bool {
	return slices.ContainsFunc(t.BuiltIn(), func(k *kind.Kind) bool { return k.Group == group && k.Version == ver })
}

// order sorts groups by the highest priority of their versions and then by name,
// and versions by priority and then as Kubernetes compares versions.
func order(groups []Group, remotes []Remote) {
	of := func(group, ver string) (int32, int32) {
		if r := find(remotes, group, ver); r != nil {
			return r.GroupPriority, r.VersionPriority
		}
		return Priority(group, ver)
	}
	most := map[string]int32{}
	for _, g := range groups {
		for _, v := range g.Versions {
			p, _ := of(g.Name, v)
			most[g.Name] = max(most[g.Name], p)
		}
		sort.SliceStable(g.Versions, func(a, b int) bool {
			_, pa := of(g.Name, g.Versions[a])
			_, pb := of(g.Name, g.Versions[b])
			if pa != pb {
				return pa > pb
			}
			return version.CompareKubeAwareVersionStrings(g.Versions[a], g.Versions[b]) > 0
		})
	}
	// The registry of group versions itself leads, as upstream shows it.
	rank := func(name string) int {
		switch name {
		case "":
			return 0
		case "apiregistration.k8s.io":
			return 1
		}
		return 2
	}
	sort.SliceStable(groups, func(a, b int) bool {
		x, y := groups[a].Name, groups[b].Name
		if rank(x) != rank(y) {
			return rank(x) < rank(y)
		}
		if most[x] != most[y] {
			return most[x] > most[y]
		}
		return x < y
	})
}

func find(remotes []Remote, group, ver string) *Remote {
	for i := range remotes {
		if remotes[i].Group == group && remotes[i].Version == ver {
			return &remotes[i]
		}
	}
	return nil
}

// FromList turns the classic list of one group version into the aggregated form.
func FromList(group, ver string, list []metav1.APIResource) []apidiscovery.APIResourceDiscovery {
	var out []apidiscovery.APIResourceDiscovery
	at := map[string]int{}
	kindOf := func(r *metav1.APIResource) *metav1.GroupVersionKind {
		k := &metav1.GroupVersionKind{Group: group, Version: ver, Kind: r.Kind}
		if r.Version != "" {
			k.Group, k.Version = r.Group, r.Version
		}
		return k
	}
	sorted := slices.Clone(list)
	sort.SliceStable(sorted, func(a, b int) bool { return sorted[a].Name < sorted[b].Name })
	for i := range sorted {
		r := &sorted[i]
		if strings.Contains(r.Name, "/") || r.Name == "" {
			continue
		}
		scope := apidiscovery.ScopeCluster
		if r.Namespaced {
			scope = apidiscovery.ScopeNamespace
		}
		at[r.Name] = len(out)
		out = append(out, apidiscovery.APIResourceDiscovery{Resource: r.Name, ResponseKind: kindOf(r), Scope: scope, SingularResource: r.SingularName,
			Verbs: r.Verbs, ShortNames: r.ShortNames, Categories: r.Categories})
	}
	for i := range sorted {
		r := &sorted[i]
		parent, sub, ok := strings.Cut(r.Name, "/")
		if !ok {
			continue
		}
		n, known := at[parent]
		if !known {
			// A subresource whose parent is no resource of its own.
			scope := apidiscovery.ScopeCluster
			if r.Namespaced {
				scope = apidiscovery.ScopeNamespace
			}
			n = len(out)
			at[parent] = n
			out = append(out, apidiscovery.APIResourceDiscovery{Resource: parent, Scope: scope, ResponseKind: &metav1.GroupVersionKind{}})
		}
		out[n].Subresources = append(out[n].Subresources, apidiscovery.APISubresourceDiscovery{Subresource: sub, ResponseKind: kindOf(r), Verbs: r.Verbs})
	}
	return out
}
