// Command facts reads the markers in the comments of the API types (+optional,
// +listType, +listMapKey, +mapType, +structType, +default, +enum, +union) and
// prints the table that apiserver/openapi embeds. Reflection sees no comments.
//
//	P k8s.io/api/core/v1             the package of what follows
//	T Protocol enum=SCTP,TCP,UDP     a type, with facts about it
//	 ports list=map keys=containerPort,protocol
//	                                 a field of it by its JSON name; fields and types
//	                                 without facts are left out
//
// Facts of a type: enum=VALUES, atomic, union=JSON. Facts of a field: optional,
// required (where the JSON tag says otherwise), list=set|map|atomic, keys=NAMES,
// map=atomic|granular, default=JSON (always last).
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// sources are modules and, below them, patterns of folders with types that are served.
var sources = []struct{ module, pattern string }{
	{"k8s.io/api", "*/v[12]"},
	{"k8s.io/apimachinery", "pkg/apis/meta/v1"},
	{"k8s.io/apiextensions-apiserver", "pkg/apis/apiextensions/v1"},
	{"k8s.io/kube-aggregator", "pkg/apis/apiregistration/v1"},
}

func main() {
	var out bytes.Buffer
	for _, s := range sources {
		if err := module(&out, s.module, s.pattern); err != nil {
			fmt.Fprintln(os.Stderr, "facts:", err)
			os.Exit(1)
		}
	}
	if len(os.Args) == 2 {
		if err := os.WriteFile(os.Args[1], out.Bytes(), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "facts:", err)
			os.Exit(1)
		}
		return
	}
	os.Stdout.Write(out.Bytes())
}

func module(out *bytes.Buffer, module, pattern string) error {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return fmt.Errorf("find module %q: %w", module, err)
	}
	root := strings.TrimSpace(string(dir))
	folders, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil {
		return err
	}
	sort.Strings(folders)
	for _, f := range folders {
		rel, err := filepath.Rel(root, f)
		if err != nil {
			return err
		}
		if err := folder(out, f, module+"/"+filepath.ToSlash(rel)); err != nil {
			return err
		}
	}
	return nil
}

// pkg is what is known of one package.
type pkg struct {
	values map[string][]string // constants by type
	named  map[string]string   // constants by name, as JSON
}

func folder(out *bytes.Buffer, dir, path string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return err
	}
	set := token.NewFileSet()
	p := pkg{values: map[string][]string{}, named: map[string]string{}}
	var parsed []*ast.File
	for _, f := range files {
		base := filepath.Base(f)
		if strings.HasSuffix(base, "_test.go") || strings.HasPrefix(base, "zz_") || strings.HasPrefix(base, "generated") {
			continue
		}
		a, err := parser.ParseFile(set, f, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		parsed = append(parsed, a)
		p.constants(a)
	}
	fmt.Fprintln(out, "P", path)
	for _, f := range parsed {
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, s := range g.Specs {
				t := s.(*ast.TypeSpec)
				if err := p.typ(out, t, markersOf(f, set, g, t)); err != nil {
					return fmt.Errorf("%s.%s: %w", path, t.Name, err)
				}
			}
		}
	}
	return nil
}

func (p *pkg) constants(f *ast.File) {
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			for i, e := range v.Values {
				typ := ""
				if id, ok := v.Type.(*ast.Ident); ok {
					typ = id.Name
				}
				if c, ok := e.(*ast.CallExpr); ok && len(c.Args) == 1 {
					if id, ok := c.Fun.(*ast.Ident); ok {
						typ, e = id.Name, c.Args[0]
					}
				}
				lit, ok := e.(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					continue
				}
				text, err := strconv.Unquote(lit.Value)
				if err != nil {
					continue
				}
				quoted, _ := json.Marshal(text)
				p.named[v.Names[i].Name] = string(quoted)
				if typ != "" {
					p.values[typ] = append(p.values[typ], text)
				}
			}
		}
	}
}

// markersOf collects the markers in the comments right above a type, also those
// that an empty line parts from its documentation.
func markersOf(f *ast.File, set *token.FileSet, g *ast.GenDecl, t *ast.TypeSpec) markers {
	m := markers{}
	m.read(t.Doc)
	m.read(g.Doc)
	at := g.Pos()
	if g.Doc != nil {
		at = g.Doc.Pos()
	}
	for i := len(f.Comments) - 1; i >= 0; i-- {
		c := f.Comments[i]
		if c.End() < at && set.Position(at).Line-set.Position(c.End()).Line <= 2 {
			m.read(c)
			break
		}
	}
	return m
}

// markers by name, in order.
type markers map[string][]string

func (m markers) read(c *ast.CommentGroup) {
	if c == nil {
		return
	}
	for _, l := range c.List {
		text, ok := strings.CutPrefix(strings.TrimSpace(strings.TrimPrefix(l.Text, "//")), "+")
		if !ok || strings.HasPrefix(text, "k8s:") {
			continue
		}
		name, value, _ := strings.Cut(text, "=")
		m[name] = append(m[name], value)
	}
}

func (m markers) first(name string) string {
	if len(m[name]) == 0 {
		return ""
	}
	return m[name][0]
}

func (p *pkg) typ(out *bytes.Buffer, t *ast.TypeSpec, m markers) error {
	var facts, lines []string
	if _, ok := m["enum"]; ok {
		values := slices.Clone(p.values[t.Name.Name])
		slices.Sort(values)
		facts = append(facts, "enum="+strings.Join(slices.Compact(values), ","))
	}
	if m.first("structType") == "atomic" || m.first("mapType") == "atomic" {
		facts = append(facts, "atomic")
	}
	if s, ok := t.Type.(*ast.StructType); ok {
		fields, union, err := p.fields(s)
		if err != nil {
			return err
		}
		lines = fields
		if _, ok := m["union"]; ok {
			text, err := json.Marshal(union)
			if err != nil {
				return err
			}
			facts = append(facts, "union="+string(text))
		}
	}
	if len(facts) == 0 && len(lines) == 0 {
		return nil
	}
	fmt.Fprintln(out, strings.Join(append([]string{"T", t.Name.Name}, facts...), " "))
	for _, l := range lines {
		fmt.Fprintln(out, l)
	}
	return nil
}

func (p *pkg) fields(s *ast.StructType) (lines []string, union map[string]any, err error) {
	members := map[string]string{}
	union = map[string]any{"fields-to-discriminateBy": members}
	for _, f := range s.Fields.List {
		if f.Tag == nil || len(f.Names) == 0 {
			continue
		}
		tag, err := strconv.Unquote(f.Tag.Value)
		if err != nil {
			return nil, nil, err
		}
		name, options, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		m := markers{}
		m.read(f.Doc)
		if _, ok := m["unionDiscriminator"]; ok {
			union["discriminator"] = name
		} else {
			members[name] = f.Names[0].Name
		}
		var facts []string
		omits := strings.Contains(options, "omitempty") || strings.Contains(options, "omitzero")
		_, optional := m["optional"]
		_, required := m["required"]
		if optional && !omits {
			facts = append(facts, "optional")
		}
		if required && omits && !optional {
			facts = append(facts, "required")
		}
		if l := m.first("listType"); l != "" {
			facts = append(facts, "list="+l)
		}
		if len(m["listMapKey"]) > 0 {
			facts = append(facts, "keys="+strings.Join(m["listMapKey"], ","))
		}
		if t := m.first("mapType"); t != "" {
			facts = append(facts, "map="+t)
		} else if t := m.first("structType"); t != "" {
			facts = append(facts, "map="+t)
		}
		if len(m["default"]) > 0 {
			d := m.first("default")
			if ref, ok := strings.CutPrefix(d, "ref("); ok {
				ref = strings.TrimSuffix(ref, ")")
				ref = ref[strings.LastIndexByte(ref, '.')+1:]
				if d = p.named[ref]; d == "" {
					return nil, nil, fmt.Errorf("field %s: default %s is no constant of the package", name, ref)
				}
			}
			if !json.Valid([]byte(d)) {
				return nil, nil, fmt.Errorf("field %s: default %s is not JSON", name, d)
			}
			facts = append(facts, "default="+d)
		}
		if len(facts) > 0 {
			lines = append(lines, " "+name+" "+strings.Join(facts, " "))
		}
	}
	return lines, union, nil
}
