package rule

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// State is the rules of all services, kept up service by service. The zero State
// is not ready: use NewState. Not safe for concurrent use.
type State struct {
	node    Node
	entries map[types.NamespacedName]*entry
	// winner holds each destination that someone claims; rivals the others who
	// claim it too.
	winner map[Dest]*entry
	rivals map[Dest][]*entry
	names  map[uint64]string
}

type entry struct {
	name    types.NamespacedName
	created int64
	part    *Part
	lost    map[Dest]bool // claimed, and held by another service
}

// before says who keeps a destination that both claim.
func (e *entry) before(f *entry) bool {
	return cmp.Or(cmp.Compare(e.created, f.created), strings.Compare(e.name.Namespace, f.name.Namespace), strings.Compare(e.name.Name, f.name.Name)) < 0
}

// rules of the entry without those of destinations that it has lost.
func (e *entry) rules() RuleSet {
	if e == nil || e.part == nil {
		return nil
	}
	if len(e.lost) == 0 {
		return e.part.Rules
	}
	out := RuleSet{}
	for k, d := range e.part.Rules {
		if !e.lost[k.Dest] {
			out[k] = d
		}
	}
	return out
}

// NewState is a state without services.
func NewState(node Node) *State {
	return &State{node: node, entries: map[types.NamespacedName]*entry{},
		winner: map[Dest]*entry{}, rivals: map[Dest][]*entry{}, names: map[uint64]string{}}
}

// Node that the rules are for.
func (s *State) Node() Node { return s.node }

// Set compiles one service anew and returns what changes. in.Service nil removes
// it.
func (s *State) Set(name types.NamespacedName, in Service) Delta {
	e := s.entries[name]
	if e == nil {
		if in.Service == nil {
			return nil
		}
		e = &entry{name: name}
		s.entries[name] = e
	}
	rulesBefore := map[*entry]RuleSet{e: e.rules()}
	touch := func(f *entry) {
		if _, ok := rulesBefore[f]; !ok {
			rulesBefore[f] = f.rules()
		}
	}

	partBefore := e.part
	after := Compile(in, s.node, partBefore)
	for d := range destsOf(partBefore) {
		s.drop(d, e, touch)
	}
	e.lost = nil
	e.part = after
	if in.Service != nil {
		e.created = in.Service.CreationTimestamp.Unix()
		for d := range destsOf(after) {
			s.claim(d, e, touch)
		}
	} else {
		delete(s.entries, name)
	}

	if partBefore != nil {
		for _, g := range partBefore.Groups {
			delete(s.names, g.ID)
		}
	}
	for _, g := range after.Groups {
		s.names[g.ID] = g.Name
	}
	out := Delta{}
	// Removals of one may be additions of another: whoever loses goes first.
	entries := slices.SortedFunc(maps.Keys(rulesBefore), func(a, b *entry) int { return len(b.lost) - len(a.lost) })
	merged := map[Key]Change{}
	for _, f := range entries {
		for k, c := range Diff(rulesBefore[f], f.rules()) {
			m := merged[k]
			if c.Old != nil {
				m.Old = c.Old
			}
			if c.New != nil {
				m.New = c.New
			}
			merged[k] = m
		}
	}
	for k, c := range merged {
		if c.Old != nil && c.New != nil && *c.Old == *c.New {
			continue
		}
		out[k] = c
	}
	return out
}

func destsOf(p *Part) map[Dest]bool {
	out := map[Dest]bool{}
	if p != nil {
		for k := range p.Rules {
			if k.Dest.Port != 0 {
				out[k.Dest] = true
			}
		}
	}
	return out
}

func (s *State) claim(d Dest, e *entry, touch func(*entry)) {
	w := s.winner[d]
	if w == nil {
		s.winner[d] = e
		return
	}
	touch(w)
	if e.before(w) {
		s.winner[d] = e
		e, w = w, e
	}
	if e.lost == nil {
		e.lost = map[Dest]bool{}
	}
	e.lost[d] = true
	s.rivals[d] = append(s.rivals[d], e)
}

func (s *State) drop(d Dest, e *entry, touch func(*entry)) {
	rivals := s.rivals[d]
	if s.winner[d] != e {
		if i := slices.Index(rivals, e); i >= 0 {
			s.setRivals(d, slices.Delete(rivals, i, i+1))
		}
		return
	}
	delete(s.winner, d)
	if len(rivals) == 0 {
		return
	}
	best := 0
	for i, r := range rivals {
		if r.before(rivals[best]) {
			best = i
		}
	}
	next := rivals[best]
	touch(next)
	delete(next.lost, d)
	s.winner[d] = next
	s.setRivals(d, slices.Delete(rivals, best, best+1))
}

func (s *State) setRivals(d Dest, r []*entry) {
	if len(r) == 0 {
		delete(s.rivals, d)
	} else {
		s.rivals[d] = r
	}
}

// Part of one service, or nil.
func (s *State) Part(name types.NamespacedName) *Part {
	if e := s.entries[name]; e != nil {
		return e.part
	}
	return nil
}

// Parts yields every service's part.
func (s *State) Parts() func(func(types.NamespacedName, *Part) bool) {
	return func(yield func(types.NamespacedName, *Part) bool) {
		for n, e := range s.entries {
			if !yield(n, e.part) {
				return
			}
		}
	}
}

// Lost lists the destinations that a service claims and another one holds.
func (s *State) Lost(name types.NamespacedName) []Dest {
	e := s.entries[name]
	if e == nil {
		return nil
	}
	return slices.SortedFunc(maps.Keys(e.lost), Dest.compare)
}

// Rules of all services together.
func (s *State) Rules() RuleSet {
	out := RuleSet{}
	for _, e := range s.entries {
		maps.Copy(out, e.rules())
	}
	return out
}

// Names of the groups in use, for printing.
func (s *State) Names() map[uint64]string { return s.names }

// UDPEndpoints lists the UDP endpoints that a delta stops sending to: flows that
// exist must be cut loose from them, because UDP clients never open new ones.
func (d Delta) UDPEndpoints() []netip.AddrPort {
	stays := map[netip.AddrPort]bool{}
	for k, c := range d {
		if k.Set == Endpoints && c.New != nil && c.New.Proto == UDP {
			stays[c.New.To] = true
		}
	}
	var out []netip.AddrPort
	for k, c := range d {
		if k.Set == Endpoints && c.Old != nil && c.Old.Proto == UDP && !stays[c.Old.To] && !slices.Contains(out, c.Old.To) {
			out = append(out, c.Old.To)
		}
	}
	return out
}
