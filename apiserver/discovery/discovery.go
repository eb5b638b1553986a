// Package discovery derives the discovery documents from the table of kinds:
// /api, /apis, one resource list per group version, and the aggregated form
// (apidiscovery.k8s.io/v2 APIGroupDiscoveryList). Pure functions; the same table
// gives the same bytes.
package discovery

import (
	"crypto/sha256"
	"encoding/base64"
	"sort"
	"strings"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"proa.dev/kind"
)

// usual are the verbs of a row that names none, in alphabetical order as
// discovery shows them.
var usual = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

// doorVerbs are those of status and scale.
var doorVerbs = []string{"get", "patch", "update"}

// resource is one entry: a resource or a subresource.
type resource struct {
	name     string // "pods", "pods/log"
	gvk      schema.GroupVersionKind
	verbs    []string
	row      *kind.Kind
	isParent bool
}

// Group is one API group with its versions, the preferred one first.
type Group struct {
	Name     string
	Versions []string
}

// Groups of the table and of other servers, by priority; the core group is "" and
// comes first.
func Groups(t *kind.Table, remotes ...Remote) []Group {
	var groups []Group
	at := map[string]int{}
	add := func(group, ver string) {
		i, ok := at[group]
		if !ok {
			i = len(groups)
			at[group] = i
			groups = append(groups, Group{Name: group})
		}
		if !has(groups[i].Versions, ver) {
			groups[i].Versions = append(groups[i].Versions, ver)
		}
	}
	for _, k := range t.Rows() {
		add(k.Group, k.Version)
	}
	for i := range remotes {
		add(remotes[i].Group, remotes[i].Version)
	}
	order(groups, remotes)
	return groups
}

func has(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

func resources(t *kind.Table, group, ver string) []resource {
	var out []resource
	for _, k := range t.GroupVersion(group, ver) {
		verbs := append([]string(nil), k.Verbs...)
		if len(verbs) == 0 {
			verbs = usual
		}
		sort.Strings(verbs)
		out = append(out, resource{name: k.Plural, gvk: k.GVK(), verbs: verbs, row: k, isParent: true})
		if k.Status != nil {
			out = append(out, resource{name: k.Plural + "/status", gvk: k.GVK(), verbs: doorVerbs, row: k})
		}
		if k.Scale != nil {
			out = append(out, resource{name: k.Plural + "/scale", gvk: schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"}, verbs: doorVerbs, row: k})
		}
		for _, s := range k.Subresources {
			gvk := schema.GroupVersionKind{Group: s.Group, Version: s.Version, Kind: s.Kind}
			if s.Version == "" {
				gvk.Group, gvk.Version = k.Group, k.Version
			}
			verbs := append([]string(nil), s.Verbs...)
			sort.Strings(verbs)
			out = append(out, resource{name: k.Plural + "/" + s.Name, gvk: gvk, verbs: verbs, row: k})
		}
	}
	sort.SliceStable(out, func(a, b int) bool { return out[a].name < out[b].name })
	return out
}

// storageHash stands for the form in which a kind is stored: clients compare it
// to learn that it changed.
func storageHash(k *kind.Kind) string {
	r := k.Root()
	if k.Custom {
		// The root has no version of its own: objects are stored in that of the
		// definition, which the extension of the row knows.
		if v, ok := k.Extension.(interface{ StorageVersion() string }); ok {
			sum := sha256.Sum256([]byte(r.Group + "/" + v.StorageVersion() + "/" + r.Kind))
			return base64.StdEncoding.EncodeToString(sum[:])[:12]
		}
	}
	sum := sha256.Sum256([]byte(r.Group + "/" + r.Version + "/" + r.Kind))
	return base64.StdEncoding.EncodeToString(sum[:])[:12]
}

// ResourceList is the classic document of one group version; nil if not served.
func ResourceList(t *kind.Table, group, ver string) *metav1.APIResourceList {
	list := &metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList"},
		GroupVersion: schema.GroupVersion{Group: group, Version: ver}.String(), APIResources: []metav1.APIResource{}}
	if group != "" {
		list.APIVersion = "v1"
	}
	for _, r := range resources(t, group, ver) {
		a := metav1.APIResource{Name: r.name, Namespaced: r.row.Scope == kind.Namespaced, Kind: r.gvk.Kind, Verbs: r.verbs}
		if r.isParent {
			a.SingularName, a.ShortNames, a.Categories = r.row.Singular, r.row.ShortNames, r.row.Categories
			if !r.row.Virtual && r.row.Prefix != "" {
				a.StorageVersionHash = storageHash(r.row)
			}
		}
		if r.gvk.GroupVersion() != (schema.GroupVersion{Group: group, Version: ver}) {
			a.Group, a.Version = r.gvk.Group, r.gvk.Version
		}
		list.APIResources = append(list.APIResources, a)
	}
	if len(list.APIResources) == 0 {
		return nil
	}
	return list
}

// APIGroup is the classic document of one named group; nil if not served.
func APIGroup(t *kind.Table, name string, remotes ...Remote) *metav1.APIGroup {
	for _, g := range Groups(t, remotes...) {
		if g.Name == name && name != "" {
			a := apiGroup(g)
			a.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
			return &a
		}
	}
	return nil
}

func apiGroup(g Group) metav1.APIGroup {
	a := metav1.APIGroup{Name: g.Name}
	for _, v := range g.Versions {
		a.Versions = append(a.Versions, metav1.GroupVersionForDiscovery{GroupVersion: g.Name + "/" + v, Version: v})
	}
	a.PreferredVersion = a.Versions[0]
	return a
}

// APIGroupList is the classic /apis.
func APIGroupList(t *kind.Table, remotes ...Remote) *metav1.APIGroupList {
	l := &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{}}
	for _, g := range Groups(t, remotes...) {
		if g.Name != "" {
			l.Groups = append(l.Groups, apiGroup(g))
		}
	}
	return l
}

// APIVersions is the classic /api. address is where this client reaches the server.
func APIVersions(t *kind.Table, address string) *metav1.APIVersions {
	v := &metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"},
		ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: address}}}
	for _, g := range Groups(t) {
		if g.Name == "" {
			v.Versions = g.Versions
		}
	}
	return v
}

// Aggregated is /api (core true) or /apis in one document.
func Aggregated(t *kind.Table, core bool, remotes ...Remote) *apidiscovery.APIGroupDiscoveryList {
	l := &apidiscovery.APIGroupDiscoveryList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupDiscoveryList", APIVersion: "apidiscovery.k8s.io/v2"},
		Items: []apidiscovery.APIGroupDiscovery{}}
	for _, g := range Groups(t, remotes...) {
		if (g.Name == "") != core {
			continue
		}
		d := apidiscovery.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: g.Name}}
		for _, v := range g.Versions {
			if r := find(remotes, g.Name, v); r != nil {
				fresh := apidiscovery.DiscoveryFreshnessCurrent
				if !r.IsCurrent {
					fresh = apidiscovery.DiscoveryFreshnessStale
				}
				d.Versions = append(d.Versions, apidiscovery.APIVersionDiscovery{Version: v, Freshness: fresh, Resources: r.Resources})
				continue
			}
			d.Versions = append(d.Versions, apidiscovery.APIVersionDiscovery{Version: v, Freshness: apidiscovery.DiscoveryFreshnessCurrent, Resources: aggregatedResources(t, g.Name, v)})
		}
		l.Items = append(l.Items, d)
	}
	return l
}

func aggregatedResources(t *kind.Table, group, ver string) []apidiscovery.APIResourceDiscovery {
	var out []apidiscovery.APIResourceDiscovery
	at := map[string]int{}
	all := resources(t, group, ver)
	kindOf := func(gvk schema.GroupVersionKind) *metav1.GroupVersionKind {
		return &metav1.GroupVersionKind{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind}
	}
	for _, r := range all {
		if !r.isParent {
			continue
		}
		scope := apidiscovery.ScopeCluster
		if r.row.Scope == kind.Namespaced {
			scope = apidiscovery.ScopeNamespace
		}
		at[r.name] = len(out)
		out = append(out, apidiscovery.APIResourceDiscovery{Resource: r.name, ResponseKind: kindOf(r.gvk), Scope: scope,
			SingularResource: r.row.Singular, Verbs: r.verbs, ShortNames: r.row.ShortNames, Categories: r.row.Categories})
	}
	for _, r := range all {
		if r.isParent {
			continue
		}
		parent, sub, _ := strings.Cut(r.name, "/")
		if i, ok := at[parent]; ok {
			out[i].Subresources = append(out[i].Subresources, apidiscovery.APISubresourceDiscovery{Subresource: sub, ResponseKind: kindOf(r.gvk), Verbs: r.verbs})
		}
	}
	return out
}
