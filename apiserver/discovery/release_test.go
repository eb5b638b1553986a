package discovery

import (
	_ "embed"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"proa.dev/kind"
)

// release lists what the release of Kubernetes serves; its first lines say how to
// read it.
//
//go:embed testdata/api-ga-v1.37.tsv
var release string

// awaited are resources of the release that are not served yet, with the reason.
var awaited = map[string]string{}

// TestRelease compares discovery with the list: every group, version, resource,
// verb, subresource, short name, category and scope, and nothing besides.
func TestRelease(t *testing.T) {
	listed := map[string]bool{}
	for line := range strings.Lines(release) {
		line = strings.TrimRight(line, "\n")
		f := strings.Split(line, "\t")
		if strings.HasPrefix(line, "#") || f[0] == "groupVersion" {
			continue
		}
		if len(f) != 8 {
			t.Fatalf("%q: %d columns", line, len(f))
		}
		id := f[0] + " " + f[1]
		listed[id] = true
		gv, err := schema.ParseGroupVersion(f[0])
		if err != nil {
			t.Fatal(err)
		}
		resources := map[string]metav1.APIResource{}
		if l := ResourceList(kind.All, gv.Group, gv.Version); l != nil {
			for _, r := range l.APIResources {
				resources[r.Name] = r
			}
		}
		r, ok := resources[f[1]]
		if why := awaited[id]; why != "" {
			if ok {
				t.Errorf("%s is served: take it off the list of what is awaited", id)
			}
			continue
		}
		if !ok {
			t.Errorf("%s is not served", id)
			continue
		}
		same := func(what string, got, want []string) {
			got, want = slices.Clone(got), slices.Clone(want)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%s: %s %q, want %q", id, what, got, want)
			}
		}
		same("short names", r.ShortNames, words(f[2]))
		if r.Kind != f[3] || r.SingularName != strings.ToLower(f[3]) {
			t.Errorf("%s: kind %s, singular %s", id, r.Kind, r.SingularName)
		}
		if r.Namespaced != (f[4] == "N") {
			t.Errorf("%s: namespaced %v", id, r.Namespaced)
		}
		switch f[5] {
		case "*":
			same("verbs", r.Verbs, usual)
		case "*-dc":
			same("verbs", r.Verbs, slices.DeleteFunc(slices.Clone(usual), func(v string) bool { return v == "deletecollection" }))
		default:
			same("verbs", r.Verbs, words(f[5]))
		}
		var subs, want []string
		for name := range resources {
			if sub, ok := strings.CutPrefix(name, f[1]+"/"); ok {
				subs = append(subs, sub)
			}
		}
		for _, word := range words(f[6]) {
			name, verbs, special := strings.Cut(strings.TrimSuffix(word, ")"), "(")
			want = append(want, name)
			sub, ok := resources[f[1]+"/"+name]
			switch {
			case !ok:
			case !special:
				same(name+" verbs", sub.Verbs, doorVerbs)
			case verbs == "connect":
				if !slices.Contains(sub.Verbs, "get") || !slices.Contains(sub.Verbs, "create") {
					t.Errorf("%s: %s has the verbs %q", id, name, sub.Verbs)
				}
			default:
				same(name+" verbs", sub.Verbs, []string{verbs})
			}
		}
		same("subresources", subs, want)
		same("categories", r.Categories, words(f[7]))
	}
	for _, k := range kind.All.Rows() {
		if id := k.GVK().GroupVersion().String() + " " + k.Plural; !listed[id] {
			t.Errorf("%s is served and not in the release", id)
		}
	}
	for id := range awaited {
		if !listed[id] {
			t.Errorf("%s is awaited and not in the release", id)
		}
	}
}

func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}
