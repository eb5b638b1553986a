package conformance

import (
	_ "embed"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/auth"
	"proa.dev/control"
	"proa.dev/control/parts"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/server"
	"proa.dev/view"
)

//go:embed testdata/behaviours.tsv
var table string

// behaviour is one line of the table.
type behaviour struct {
	file, release, name string
	do                  func(t *testing.T, c *cluster)
	needs               []need
	serial              bool
	live                bool // about containers: tried with -kubeconfig alone
}

// need says what is missing, or "".
type need func() string

// row needs kinds to be served.
func row(kinds ...*kind.Kind) need {
	return func() string {
		for _, k := range kinds {
			if !slices.Contains(kind.All.Rows(), k) {
				return k.Kind + " is not served"
			}
		}
		return ""
	}
}

// part needs controllers.
func part(names ...string) need {
	return func() string {
		for _, n := range names {
			if !slices.ContainsFunc(parts.All(kind.All, ""), func(p control.Part) bool { return p.Name == n }) {
				return "controller " + n
			}
		}
		return ""
	}
}

// missingFeature is something that nothing in the tables above stands for.
func missingFeature(what string) need { return func() string { return what } }

// plugin needs admission plugins.
func plugin(names ...string) need {
	return func() string {
		v := view.New(kind.All, 0)
		chain, err := server.Admission{View: v, Rand: env.SystemRand(), Authz: auth.Chain{}, Rules: &auth.RBAC{View: v}, Services: netip.MustParsePrefix("10.96.0.0/16")}.Chain()
		if err != nil {
			return err.Error()
		}
		for _, n := range names {
			if !slices.ContainsFunc(chain, func(p admit.Plugin) bool { return p.Name == n }) {
				return "admission plugin " + n
			}
		}
		return ""
	}
}

var behaviours = func() []*behaviour {
	var out []*behaviour
	for line := range strings.Lines(table) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 3 {
			panic("behaviours.tsv: " + line)
		}
		out = append(out, &behaviour{file: f[0], release: f[1], name: f[2]})
	}
	return out
}()

// must gives the one behaviour whose name contains words.
func must(words string) *behaviour {
	var found *behaviour
	for _, b := range behaviours {
		if strings.HasSuffix(b.name, words) {
			return b.free()
		}
	}
	for _, b := range behaviours {
		if strings.Contains(b.name, words) {
			if found != nil {
				panic(fmt.Sprintf("%q is in the names of two behaviours: %q and %q", words, found.name, b.name))
			}
			found = b
		}
	}
	if found == nil {
		panic(fmt.Sprintf("no behaviour is named %q", words))
	}
	return found.free()
}

func (b *behaviour) free() *behaviour {
	if b.do != nil {
		panic(fmt.Sprintf("behaviour %q has two tests", b.name))
	}
	return b
}

// it registers the test of a behaviour.
func it(words string, do func(t *testing.T, c *cluster), needs ...need) *behaviour {
	b := must(words)
	b.do, b.needs = do, needs
	return b
}

// alone makes a behaviour run while no other does.
func (b *behaviour) alone() *behaviour { b.serial = true; return b }

// missing says why a behaviour is not tested yet, or "".
func (b *behaviour) missing() string {
	if b.do == nil {
		return unwritten(b)
	}
	if b.live && *kubeconfig == "" {
		return "needs a node: has a test"
	}
	for _, n := range b.needs {
		if why := n(); why != "" {
			return "not yet: " + why
		}
	}
	return ""
}

// unwritten classes the behaviours without a test here by what they are about.
func unwritten(b *behaviour) string {
	for _, c := range [...]struct{ prefix, why string }{
		{"apimachinery/aggregator", "not yet: aggregated API servers"},
		{"auth/projected_podcertificate", "needs a node: not yet, nodes do not project certificates of pods"},
		{"auth/projected_clustertrustbundle", "needs a node: not yet, nodes do not project trust bundles"},
	} {
		if strings.HasPrefix(b.file, c.prefix) {
			return c.why
		}
	}
	return "needs a node: test/machine, or not yet"
}

// results are what this run has found.
type results struct {
	sync.Mutex
	state map[*behaviour]string
}

func TestConformance(t *testing.T) {
	c := start(t)
	found := results{state: map[*behaviour]string{}}
	group := func(name string, serial bool) {
		t.Run(name, func(t *testing.T) {
			for _, b := range behaviours {
				if b.serial != serial || b.missing() != "" {
					continue
				}
				t.Run(b.name, func(t *testing.T) {
					if !serial {
						t.Parallel()
					}
					defer func() {
						found.Lock()
						defer found.Unlock()
						found.state[b] = "passes"
						if t.Failed() {
							found.state[b] = "fails"
						}
					}()
					b.do(t, c)
				})
			}
		})
	}
	group("alone", true)
	group("together", false)
	if *kubeconfig == "" {
		found.compare(t)
	}
}

// compare holds docs/CONFORMANCE.md to what was found, if everything was run.
func (r *results) compare(t *testing.T) {
	count := map[string]int{}
	var rows strings.Builder
	file := ""
	for _, b := range behaviours {
		state := b.missing()
		if state == "" {
			if state = r.state[b]; state == "" {
				return // -run left something out
			}
		}
		word, _, _ := strings.Cut(state, ":")
		count[word]++
		if b.file != file {
			file = b.file
			fmt.Fprintf(&rows, "\n### %s\n\n| behaviour | since | state |\n|---|---|---|\n", strings.TrimSuffix(file, ".go"))
		}
		fmt.Fprintf(&rows, "| %s | %s | %s |\n", strings.ReplaceAll(b.name, "|", "\\|"), b.release, state)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "# Conformance\n\nThe %d conformance behaviours of Kubernetes v1.37. This page is written by\n`go test ./test/conformance -update`.\n\n", len(behaviours))
	text.WriteString("*passes*: proved by a test in `test/conformance` against the API server, all controllers and the\n" +
		"scheduler, with nodes that say what a kubelet would say and run nothing. *needs a node*: is about\n" +
		"running containers; *has a test* that is run on a cluster, as [recipes/conformance.md](recipes/conformance.md) says, and of\n" +
		"the others `test/machine` covers a part. *not yet*: what is missing follows.\n\n| state | behaviours |\n|---|---|\n")
	for _, word := range []string{"passes", "fails", "needs a node", "not yet"} {
		fmt.Fprintf(&text, "| %s | %d |\n", word, count[word])
	}
	text.WriteString(rows.String())
	t.Logf("%v", count)
	path := filepath.Join("..", "..", "docs", "CONFORMANCE.md")
	if *update {
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != text.String() {
		t.Errorf("%s says something else than this run; -update writes it", path)
	}
}
