package fields

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// Set is a set of fields of an object: a tree of path elements as fieldsV1 spells
// them ("f:spec", `k:{"name":"web"}`, `v:"x"`; see metav1.FieldsV1). A Set that is
// in use is never changed; nil is the empty set.
//
// The operations mean what those of structured-merge-diff's fieldpath.Set mean:
// being a member and having children that are members are two things.
type Set struct{ items []item } // sorted by compareElements, none twice

type item struct {
	elem   string
	member bool
	kids   *Set // nil or not empty
}

// Empty says that no field is in s.
func (s *Set) Empty() bool { return s == nil || len(s.items) == 0 }

func (s *Set) at(elem string) (int, bool) {
	return slices.BinarySearchFunc(s.items, elem, func(i item, e string) int { return compareElements(i.elem, e) })
}

// has says whether the field at the path is a member.
func (s *Set) has(path ...string) bool {
	for i, elem := range path {
		if s == nil {
			return false
		}
		n, ok := s.at(elem)
		if !ok {
			return false
		}
		if i == len(path)-1 {
			return s.items[n].member
		}
		s = s.items[n].kids
	}
	return false
}

func (s *Set) orNil() *Set {
	if s.Empty() {
		return nil
	}
	return s
}

// union is a if it holds all of b.
func union(a, b *Set) *Set {
	if b.Empty() {
		return a.orNil()
	}
	if a.Empty() {
		return b
	}
	var out []item // nil as long as a's items do
	i := 0
	for _, y := range b.items {
		from := i
		for i < len(a.items) && compareElements(a.items[i].elem, y.elem) < 0 {
			i++
		}
		if out != nil {
			out = append(out, a.items[from:i]...)
		}
		z, known := y, i < len(a.items) && a.items[i].elem == y.elem
		if known {
			x := a.items[i]
			z = item{x.elem, x.member || y.member, union(x.kids, y.kids)}
			if z == x {
				if out != nil {
					out = append(out, z)
				}
				i++
				continue
			}
		}
		if out == nil {
			out = make([]item, i, len(a.items)+len(b.items))
			copy(out, a.items[:i])
		}
		out = append(out, z)
		if known {
			i++
		}
	}
	if out == nil {
		return a
	}
	return &Set{append(out, a.items[i:]...)}
}

// difference is what of a is not in b; a itself if that is all.
func difference(a, b *Set) *Set { return without(a, b, false) }

// below is difference that takes away everything below b's members, too.
func below(a, b *Set) *Set { return without(a, b, true) }

func without(a, b *Set, deep bool) *Set {
	if a.Empty() {
		return nil
	}
	if b.Empty() {
		return a
	}
	var out []item
	changed := false
	for _, y := range b.items {
		n, ok := slices.BinarySearchFunc(a.items, y.elem, func(i item, e string) int { return compareElements(i.elem, e) })
		if !ok {
			continue
		}
		x := a.items[n]
		z := item{x.elem, x.member && !y.member, without(x.kids, y.kids, deep)}
		if deep && y.member {
			z.kids = nil
		}
		if z == x {
			continue
		}
		if !changed {
			changed, out = true, slices.Clone(a.items)
		}
		out[n] = z
	}
	if !changed {
		return a
	}
	out = slices.DeleteFunc(out, func(i item) bool { return !i.member && i.kids == nil })
	if len(out) == 0 {
		return nil
	}
	return &Set{out}
}

// intersection is what is in both.
func intersection(a, b *Set) *Set {
	if a.Empty() || b.Empty() {
		return nil
	}
	if len(a.items) > len(b.items) {
		a, b = b, a
	}
	var out []item
	for _, x := range a.items {
		n, ok := b.at(x.elem)
		if !ok {
			continue
		}
		y := b.items[n]
		if z := (item{x.elem, x.member && y.member, intersection(x.kids, y.kids)}); z.member || z.kids != nil {
			out = append(out, z)
		}
	}
	if out == nil {
		return nil
	}
	return &Set{out}
}

// compareElements orders path elements as fieldpath does: names, then keys, then
// values, then indexes.
func compareElements(a, b string) int {
	if a == b {
		return 0
	}
	x, y := a[0], b[0]
	if x != y {
		return cmp.Compare(rank(x), rank(y))
	}
	switch x {
	case 'k', 'v':
		return compareJSON(a[2:], b[2:])
	case 'i':
		n, _ := strconv.Atoi(a[2:])
		m, _ := strconv.Atoi(b[2:])
		return cmp.Compare(n, m)
	}
	return strings.Compare(a, b)
}

func rank(c byte) int { return strings.IndexByte("fkvi", c) }

// compareJSON orders keys ({"name":value,…}, sorted by name) and values. Numbers
// come before strings, strings before booleans.
func compareJSON(a, b string) int {
	for {
		for len(a) > 0 && len(b) > 0 && a[0] == b[0] && strings.IndexByte("{:,", a[0]) >= 0 {
			a, b = a[1:], b[1:]
		}
		if a == "" || b == "" || a[0] == '}' || b[0] == '}' {
			// The shorter of two lists comes first.
			return cmp.Compare(len(strings.TrimLeft(a, "}")), len(strings.TrimLeft(b, "}")))
		}
		x, restA := token(a)
		y, restB := token(b)
		if x != y {
			return compareTokens(x, y)
		}
		a, b = restA, restB
	}
}

// token takes one JSON scalar off s.
func token(s string) (string, string) {
	if s[0] == '"' {
		for i := 1; i < len(s); i++ {
			switch s[i] {
			case '\\':
				i++
			case '"':
				return s[:i+1], s[i+1:]
			}
		}
		return s, ""
	}
	if i := strings.IndexAny(s, ",}"); i > 0 {
		return s[:i], s[i:]
	}
	return s, ""
}

func compareTokens(a, b string) int {
	x, y := tokenRank(a), tokenRank(b)
	if x != y {
		return cmp.Compare(x, y)
	}
	switch x {
	case 0:
		n, err := strconv.ParseInt(a, 10, 64)
		m, err2 := strconv.ParseInt(b, 10, 64)
		if err == nil && err2 == nil {
			return cmp.Compare(n, m)
		}
		f, _ := strconv.ParseFloat(a, 64)
		g, _ := strconv.ParseFloat(b, 64)
		return cmp.Compare(f, g)
	case 1:
		if strings.IndexByte(a, '\\') < 0 && strings.IndexByte(b, '\\') < 0 {
			return strings.Compare(a[1:len(a)-1], b[1:len(b)-1])
		}
		var s, t string
		json.Unmarshal([]byte(a), &s)
		json.Unmarshal([]byte(b), &t)
		return strings.Compare(s, t)
	}
	return strings.Compare(a, b) // false, true
}

func tokenRank(s string) int {
	switch s[0] {
	case '"':
		return 1
	case 't', 'f', 'n':
		return 2
	}
	return 0
}

// appendTo writes s as fieldsV1.
func (s *Set) appendTo(b []byte) []byte {
	b = append(b, '{')
	if s != nil {
		for i := range s.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = s.items[i].appendTo(b)
		}
	}
	return append(b, '}')
}

func (i *item) appendTo(b []byte) []byte {
	b = appendQuoted(b, i.elem)
	if i.kids == nil {
		return append(b, ":{}"...)
	}
	if i.member {
		b = append(b, `:{".":{},`...)
	} else {
		b = append(b, ":{"...)
	}
	for n := range i.kids.items {
		if n > 0 {
			b = append(b, ',')
		}
		b = i.kids.items[n].appendTo(b)
	}
	return append(b, '}')
}

const hexDigits = "0123456789abcdef"

// appendQuoted writes s as a JSON string without escapes for HTML, as the library
// writes path elements.
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	from := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, `\u00`...)
			b = append(b, hexDigits[c>>4], hexDigits[c&15])
		}
		from = i + 1
	}
	b = append(b, s[from:]...)
	return append(b, '"')
}

var errFields = errors.New("not the form of fieldsV1")

// parse reads fieldsV1. Elements of a kind that is not known are left out.
func parse(raw []byte) (*Set, error) {
	p := parser{b: raw}
	s, _, err := p.set()
	if err == nil {
		if p.space(); p.i < len(p.b) {
			err = errFields
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read managed fields: %w", err)
	}
	return s, nil
}

type parser struct {
	b     []byte
	i     int
	depth int
}

func (p *parser) space() {
	for p.i < len(p.b) && (p.b[p.i] == ' ' || p.b[p.i] == '\n' || p.b[p.i] == '\t' || p.b[p.i] == '\r') {
		p.i++
	}
}

func (p *parser) next(c byte) bool {
	if p.space(); p.i < len(p.b) && p.b[p.i] == c {
		p.i++
		return true
	}
	return false
}

const maxDepth = 1000

// set reads one object: what is below an element, and whether the element itself is
// a member.
func (p *parser) set() (s *Set, member bool, err error) {
	if p.depth++; p.depth > maxDepth {
		return nil, false, errFields
	}
	defer func() { p.depth-- }()
	if !p.next('{') {
		return nil, false, errFields
	}
	var items []item
	sorted := true
	for first := true; !p.next('}'); first = false {
		if !first && !p.next(',') {
			return nil, false, errFields
		}
		elem, err := p.text()
		if err != nil {
			return nil, false, err
		}
		if !p.next(':') {
			return nil, false, errFields
		}
		kids, is, err := p.set()
		if err != nil {
			return nil, false, err
		}
		if elem == "." {
			member = true
			continue
		}
		elem, known, err := canonical(elem)
		if err != nil {
			return nil, false, err
		}
		if !known {
			continue
		}
		sorted = sorted && (len(items) == 0 || compareElements(items[len(items)-1].elem, elem) < 0)
		items = append(items, item{elem, is, kids})
	}
	if len(items) == 0 {
		return nil, true, nil
	}
	if !sorted {
		merged := (*Set)(nil)
		for i := range items {
			merged = union(merged, &Set{items[i : i+1 : i+1]})
		}
		return merged, member, nil
	}
	return &Set{items}, member, nil
}

func (p *parser) text() (string, error) {
	if !p.next('"') {
		return "", errFields
	}
	from := p.i
	for p.i < len(p.b) {
		switch p.b[p.i] {
		case '"':
			s := string(p.b[from:p.i])
			p.i++
			if strings.IndexByte(s, '\\') < 0 && utf8.ValidString(s) {
				return s, nil
			}
			var out string
			if err := json.Unmarshal(p.b[from-1:p.i], &out); err != nil {
				return "", errFields
			}
			return out, nil
		case '\\':
			p.i++
		}
		p.i++
	}
	return "", errFields
}

// canonical spells an element as the library would.
func canonical(elem string) (string, bool, error) {
	if len(elem) < 2 || elem[1] != ':' {
		return "", false, errFields
	}
	switch elem[0] {
	case 'f':
		return elem, true, nil
	case 'k', 'v', 'i':
		if elem[0] == 'v' && plain(elem[2:]) {
			return elem, true, nil
		}
		if elem[0] == 'k' && plainKey(elem[2:]) {
			return elem, true, nil
		}
		e, err := fieldpath.DeserializePathElement(elem)
		if err != nil {
			return "", false, errFields
		}
		out, err := fieldpath.SerializePathElement(e)
		if err != nil {
			return "", false, errFields
		}
		return out, true, nil
	}
	return "", false, nil
}

// plain says that s is a JSON string or whole number without anything special.
func plain(s string) bool {
	if len(s) < 2 || s[0] != '"' {
		if s == "" || len(s) > 15 || s[0] == '0' && len(s) > 1 {
			return false
		}
		for i := range len(s) {
			if s[i] < '0' || s[i] > '9' {
				return false
			}
		}
		return true
	}
	if s[len(s)-1] != '"' {
		return false
	}
	for i := 1; i < len(s)-1; i++ {
		if c := s[i]; c < ' ' || c > '~' || strings.IndexByte(`"\<>&`, c) >= 0 {
			return false
		}
	}
	return true
}

// plainKey says that s is {"name":plain,…}, sorted by name and without spaces.
func plainKey(s string) bool {
	if len(s) < 2 || s[0] != '{' || s[len(s)-1] != '}' {
		return false
	}
	s = s[1 : len(s)-1]
	last := ""
	for {
		if s == "" || s[0] != '"' {
			return false
		}
		name, rest := token(s)
		if !plain(name) || name <= last || rest == "" || rest[0] != ':' || len(rest) < 2 {
			return false
		}
		last = name
		var value string
		value, s = token(rest[1:])
		if !plain(value) {
			return false
		}
		if s == "" {
			return true
		}
		if s[0] != ',' {
			return false
		}
		s = s[1:]
	}
}
