// Package rule compiles services and their endpoints to the elements of a few
// maps, and says what a packet meets there. It is pure: same arguments, same
// result. Package proxy puts the elements into the kernel.
//
// The maps are those of docs/decisions/0006-service-proxy.md. A Key says where an
// element is, Data what stands there:
//
//	Services, Outside  Dest           → Group, Count, Timeout (Count 0: drop)
//	Endpoints          Group, Index   → To, Proto     Index < Count
//	Members            Group, To      → –             groups with affinity
//	Empty              Dest           → –             reject
//	Guarded            Dest           → –             only Allowed sources
//	Allowed            Dest, From     → –
//
// Behaviour: Kubernetes docs, "Virtual IPs and Service Proxies" and "Service
// Internal Traffic Policy"; KEP-1669 (terminating endpoints).
package rule

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Set names a map.
type Set uint8

// The maps.
const (
	Services Set = iota + 1
	Outside
	Endpoints
	Members
	Empty
	Guarded
	Allowed
)

var setNames = [...]string{"", "service", "outside", "endpoint", "member", "empty", "guarded", "allowed"}

func (s Set) String() string { return setNames[s] }

// Transport protocols, as IP numbers them.
const (
	TCP  uint8 = 6
	UDP  uint8 = 17
	SCTP uint8 = 132
)

func protoName(p uint8) string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprintf("protocol%d", p)
}

// Dest is where a client sends to. The unspecified address of a family stands for
// all addresses of the host.
type Dest struct {
	Addr  netip.Addr
	Port  uint16
	Proto uint8
}

func (d Dest) String() string {
	a := d.Addr.String()
	switch {
	case d.Addr.IsUnspecified() && d.Addr.Is4():
		a = "node"
	case d.Addr.IsUnspecified():
		a = "node6"
	case d.Addr.Is6():
		a = "[" + a + "]"
	}
	return fmt.Sprintf("%s:%d/%s", a, d.Port, protoName(d.Proto))
}

func (d Dest) compare(e Dest) int {
	return cmp.Or(d.Addr.Compare(e.Addr), cmp.Compare(d.Port, e.Port), cmp.Compare(d.Proto, e.Proto))
}

// Key is the place of an element. Fields that its Set does not use are zero.
type Key struct {
	Set   Set
	Dest  Dest
	From  netip.Prefix
	Group uint64
	Index uint32
	To    netip.AddrPort
}

// Compare orders keys by set, destination, group and index.
func (k Key) Compare(l Key) int {
	return cmp.Or(cmp.Compare(k.Set, l.Set), k.Dest.compare(l.Dest), cmp.Compare(k.Group, l.Group),
		cmp.Compare(k.Index, l.Index), k.To.Compare(l.To), k.From.Addr().Compare(l.From.Addr()), cmp.Compare(k.From.Bits(), l.From.Bits()))
}

// Is6 says that the element belongs to the maps of IPv6.
func (k Key) Is6(d Data) bool {
	switch k.Set {
	case Endpoints:
		return d.To.Addr().Is6()
	case Members:
		return k.To.Addr().Is6()
	}
	return k.Dest.Addr.Is6()
}

// Data is what an element holds. Fields that its Set does not use are zero.
type Data struct {
	Group   uint64
	Count   uint32 // number of endpoints of the group
	Timeout uint32 // seconds of session affinity; 0: none
	To      netip.AddrPort
	Proto   uint8 // of an endpoint; the kernel's map does not hold it
}

// Class of a service element: what decides the chain that packets go to.
type Class struct {
	Count, Timeout uint32
}

// Class of an element of Services or Outside.
func (d Data) Class() Class { return Class{d.Count, d.Timeout} }

// RuleSet is the contents of all maps.
type RuleSet map[Key]Data

// Change of one element; nil means absent.
type Change struct {
	Old, New *Data
}

// Delta is a set of changes.
type Delta map[Key]Change

// Diff is what leads from one rule set to another.
func Diff(old, new RuleSet) Delta {
	d := Delta{}
	for k, o := range old {
		n, ok := new[k]
		switch {
		case !ok:
			d[k] = Change{Old: &o}
		case n != o:
			d[k] = Change{Old: &o, New: &n}
		}
	}
	for k, n := range new {
		if _, ok := old[k]; !ok {
			d[k] = Change{New: &n}
		}
	}
	return d
}

// Apply carries changes out. It fails, changing nothing, when the rule set is not
// the one that the changes start from.
func (r RuleSet) Apply(d Delta) error {
	for k, c := range d {
		have, ok := r[k]
		if ok != (c.Old != nil) || ok && have != *c.Old {
			return fmt.Errorf("apply change of %s: it is %v there, not %v", k.text(nil), have, c.Old)
		}
	}
	for k, c := range d {
		if c.New == nil {
			delete(r, k)
		} else {
			r[k] = *c.New
		}
	}
	return nil
}

// Then joins later changes to d.
func (d Delta) Then(later Delta) {
	for k, c := range later {
		first, ok := d[k]
		if !ok {
			d[k] = c
			continue
		}
		c.Old = first.Old
		if c.Old == nil && c.New == nil || c.Old != nil && c.New != nil && *c.Old == *c.New {
			delete(d, k)
			continue
		}
		d[k] = c
	}
}

// Text prints a rule set, one element per line in a fixed order. names gives
// groups their names (State.Names); others appear by number.
func (r RuleSet) Text(names map[uint64]string) string {
	var b strings.Builder
	for _, k := range slices.SortedFunc(maps.Keys(r), func(x, y Key) int {
		return cmp.Or(cmp.Compare(x.Set, y.Set), x.Dest.compare(y.Dest), strings.Compare(group(x.Group, names), group(y.Group, names)), x.Compare(y))
	}) {
		fmt.Fprintln(&b, k.text(names)+r[k].text(k.Set, names))
	}
	return b.String()
}

// Text prints changes, removals first.
func (d Delta) Text(names map[uint64]string) string {
	var b strings.Builder
	keys := slices.SortedFunc(maps.Keys(d), Key.Compare)
	for _, k := range keys {
		if o := d[k].Old; o != nil {
			fmt.Fprintln(&b, "- "+k.text(names)+o.text(k.Set, names))
		}
	}
	for _, k := range keys {
		if n := d[k].New; n != nil {
			fmt.Fprintln(&b, "+ "+k.text(names)+n.text(k.Set, names))
		}
	}
	return b.String()
}

func group(id uint64, names map[uint64]string) string {
	if n, ok := names[id]; ok {
		return n
	}
	return fmt.Sprintf("%016x", id)
}

func (k Key) text(names map[uint64]string) string {
	switch k.Set {
	case Endpoints:
		return fmt.Sprintf("%-8s %s #%d", k.Set, group(k.Group, names), k.Index)
	case Members:
		return fmt.Sprintf("%-8s %s %s", k.Set, group(k.Group, names), k.To)
	case Allowed:
		return fmt.Sprintf("%-8s %s from %s", k.Set, k.Dest, k.From)
	}
	return fmt.Sprintf("%-8s %s", k.Set, k.Dest)
}

func (d Data) text(s Set, names map[uint64]string) string {
	switch s {
	case Services, Outside:
		switch {
		case d.Count == 0:
			return " → drop"
		case d.Timeout > 0:
			return fmt.Sprintf(" → %s of %d, affinity %ds", group(d.Group, names), d.Count, d.Timeout)
		}
		return fmt.Sprintf(" → %s of %d", group(d.Group, names), d.Count)
	case Endpoints:
		return " → " + d.To.String()
	}
	return ""
}
