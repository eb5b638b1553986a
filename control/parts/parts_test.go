package parts_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"proa.dev/control"
	"proa.dev/control/parts"
	"proa.dev/control/scenario"
	"proa.dev/kind"
)

func all() []control.Part { return parts.All(kind.All, "CERTIFICATE") }

// All controllers together come to rest, and do not undo each other's work.
func TestScenarios(t *testing.T) { scenario.Run(t, "testdata/*.txtar", all) }

func TestPartsAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range all() {
		if p.Name == "" || seen[p.Name] {
			t.Errorf("part %q: the name is missing or taken", p.Name)
		}
		seen[p.Name] = true
		if (p.Plan == nil) == (p.Begin == nil) {
			t.Errorf("part %q: want Plan or Begin", p.Name)
		}
		if (p.Kind == nil) == (len(p.Kinds) == 0) {
			t.Errorf("part %q: want Kind or Kinds", p.Name)
		}
		if len(p.Writes) == 0 {
			t.Errorf("part %q writes nothing", p.Name)
		}
	}
}

// shared doors have more than one writer, each with fields of its own.
var shared = map[string]string{
	"configmaps":                      "each its own objects, by name: kube-root-ca.crt in every namespace, cluster-info in kube-public",
	"controllerrevisions.apps":        "each its own sets' revisions, by owner",
	"endpointslices.discovery.k8s.io": "each its own slices, by the label managed-by",
	"persistentvolumeclaims":          "finalizers; owners that the sets' retention policy says",
	"pods/status":                     "Ready=False of silent nodes; DisruptionTarget of evictions; phase Failed of pods that no node will finish",
}

// Each field has one writer: two parts may update one door only if it is said why.
func TestOneWriterPerDoor(t *testing.T) {
	writers := map[string][]string{}
	for _, p := range all() {
		for _, w := range p.Writes {
			if w.Kind != nil && slices.Contains(w.Verbs, "update") {
				d := door(w)
				writers[d] = append(writers[d], p.Name)
			}
		}
	}
	for d, names := range writers {
		if len(names) > 1 && shared[d] == "" {
			t.Errorf("%s is updated by %v: say in shared which fields each owns", d, names)
		}
	}
}

func door(w control.Write) string {
	name := "every kind"
	if w.Kind != nil {
		name = w.Kind.String()
	}
	if w.Sub != "" {
		name += "/" + w.Sub
	}
	return name
}

// docs/writers.md is generated from the declarations (-update).
func TestWritersPage(t *testing.T) {
	type line struct{ door, part, verbs string }
	var lines []line
	for _, p := range all() {
		for _, w := range p.Writes {
			lines = append(lines, line{door(w), p.Name, strings.Join(w.Verbs, ", ")})
		}
	}
	slices.SortFunc(lines, func(a, b line) int { return strings.Compare(a.door+"\x00"+a.part, b.door+"\x00"+b.part) })
	var b strings.Builder
	b.WriteString("# Who writes what\n\nGenerated from the controllers' declarations by `go test ./control/parts -update`. An action outside\nof its part's declaration is refused. Clients, the scheduler (`pods/binding`) and the nodes\n(`pods/status`, `nodes/status`, leases) write besides.\n\n| door | controller | verbs |\n|---|---|---|\n")
	for _, l := range lines {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", l.door, l.part, l.verbs)
	}
	const page = "../../docs/writers.md"
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(page)
	if err != nil || string(have) != b.String() {
		t.Errorf("docs/writers.md is out of date (%v): run go test ./control/parts -update", err)
	}
}
