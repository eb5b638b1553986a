// Package imports holds the house's import policy as a test: the rules and their
// reasons are in policy.txt.
package imports

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "proa.dev/"

type rule struct {
	room   string
	words  []string
	reason string
}

type file struct {
	room    string // folder
	name    string
	imports []string
	test    bool
	ast     *ast.File
}

func TestImportPolicy(t *testing.T) {
	allow, deny := policy(t)
	files := load(t)
	used := map[string]bool{}
	for _, f := range files {
		if f.test {
			continue // tests may drive other rooms
		}
		r, ok := find(allow, f.room)
		if !ok {
			t.Errorf("%s: folder %q has no rule in tools/imports/policy.txt: say which rooms it may import, and why", f.name, f.room)
			continue
		}
		used[r.room] = true
		for _, imp := range f.imports {
			to, ours := strings.CutPrefix(imp, module)
			if ours && !allowed(r, f.room, to) {
				t.Errorf("%s imports %s: %s may import only [%s]: %s", f.name, to, r.room, strings.Join(r.words, " "), r.reason)
			}
			if d, ok := find(deny, f.room); ok && !ours {
				for _, w := range d.words {
					if imp == w || strings.Contains(w, ".") && strings.HasPrefix(imp, w+"/") {
						t.Errorf("%s imports %s: denied in %s: %s", f.name, imp, d.room, d.reason)
					}
				}
			}
			if strings.HasPrefix(imp, "k8s.io/kubernetes") {
				t.Errorf("%s imports %s: never", f.name, imp)
			}
		}
	}
	for _, r := range allow {
		if !used[r.room] && r.room != "internal" {
			t.Errorf("policy.txt: the rule for %q is stale: no such folder", r.room)
		}
	}
}

// What is installed links no testing, so neither internal/await: a file of cmd may not
// reach a package that imports one of them.
func TestProgramsLinkNoTesting(t *testing.T) {
	rooms := map[string][]string{} // folder → what its non-test files import
	for _, f := range load(t) {
		if !f.test {
			rooms[f.room] = append(rooms[f.room], f.imports...)
		}
	}
	seen := map[string]bool{}
	var walk func(room, way string)
	walk = func(room, way string) {
		if seen[room] {
			return
		}
		seen[room] = true
		for _, imp := range rooms[room] {
			if imp == "testing" {
				t.Errorf("%s imports testing: what is for tests goes into a _test.go file or a room that no program imports", way)
			}
			if to, ours := strings.CutPrefix(imp, module); ours {
				walk(to, way+" → "+to)
			}
		}
	}
	for room := range rooms {
		if within(room, "cmd") {
			walk(room, room)
		}
	}
	if len(seen) < 50 || !seen["internal/group"] {
		t.Errorf("cmd reaches %d rooms: this test sees nothing", len(seen))
	}
}

// deciders may not read the clock: now is an argument.
func TestDecidersReadNoClock(t *testing.T) {
	for _, f := range load(t) {
		decider := strings.HasPrefix(f.room, "control/") || f.room == "sched" || strings.HasPrefix(f.room, "sched/") || f.room == "node/pod"
		if !decider || f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if p, ok := s.X.(*ast.Ident); ok && p.Name == "time" && (s.Sel.Name == "Now" || s.Sel.Name == "Since" || s.Sel.Name == "Until" || s.Sel.Name == "Sleep" || s.Sel.Name == "After") {
					t.Errorf("%s calls time.%s: pass now as an argument: the same snapshot must give the same plan", f.name, s.Sel.Name)
				}
			}
			return true
		})
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	said := map[string]bool{}
	for _, f := range load(t) {
		if f.test {
			continue
		}
		said[f.room] = said[f.room] || f.ast.Doc != nil
		for _, bad := range []string{"util", "utils", "common", "helpers", "misc"} {
			if f.ast.Name.Name == bad {
				t.Errorf("%s: package %q: name it after what it holds", f.name, bad)
			}
		}
	}
	for room, ok := range said {
		if !ok {
			t.Errorf("folder %s: no package comment: say what it promises, with units, bounds and sources", room)
		}
	}
}

func allowed(r rule, from, to string) bool {
	root := strings.SplitN(r.room, "/", 2)[0]
	if within(to, r.room) || within(to, from) || strings.HasPrefix(r.room, root) && !strings.Contains(r.room, "/") && within(to, root) {
		return true
	}
	for _, w := range r.words {
		if w == "*" || within(to, w) {
			return true
		}
	}
	return false
}

func within(p, room string) bool {
	if base, ok := strings.CutSuffix(room, "/*"); ok {
		return strings.HasPrefix(p, base+"/")
	}
	return p == room || strings.HasPrefix(p, room+"/")
}

// find takes the longest rule that speaks for a folder.
func find(rules []rule, room string) (best rule, ok bool) {
	for _, r := range rules {
		if within(room, r.room) && (!ok || len(r.room) > len(best.room)) {
			best, ok = r, true
		}
	}
	return best, ok
}

func policy(t *testing.T) (allow, deny []rule) {
	data, err := os.ReadFile("policy.txt")
	if err != nil {
		t.Fatal(err)
	}
	for n, line := range strings.Split(string(data), "\n") {
		body, reason, _ := strings.Cut(line, "#")
		body = strings.TrimSpace(body)
		if body == "" {
			continue
		}
		room, words, ok := strings.Cut(body, ":")
		if !ok {
			t.Fatalf("policy.txt:%d: no colon", n+1)
		}
		r := rule{strings.TrimSpace(room), strings.Fields(words), strings.TrimSpace(reason)}
		if to, ok := strings.CutPrefix(r.room, "deny "); ok {
			r.room = strings.TrimSpace(to)
			deny = append(deny, r)
		} else {
			allow = append(allow, r)
		}
	}
	return allow, deny
}

func load(t *testing.T) []file {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var out []file
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		if d.IsDir() {
			if n := d.Name(); p != root && (strings.HasPrefix(n, ".") || n == "testdata" || n == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		a, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ParseComments)
		if err != nil {
			t.Errorf("%s: %v", rel, err)
			return nil
		}
		f := file{room: path.Dir(filepath.ToSlash(rel)), name: rel, test: strings.HasSuffix(p, "_test.go"), ast: a}
		for _, i := range a.Imports {
			s, _ := strconv.Unquote(i.Path.Value)
			f.imports = append(f.imports, s)
		}
		out = append(out, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
