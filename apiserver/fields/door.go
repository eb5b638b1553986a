package fields

// door is a way into the objects of one version: what it writes, and how a change
// through it moves ownership.
type door struct {
	apiVersion  string
	subresource string
	reset       *Set // what this door does not write, with all below
	only        *Set // what alone it writes, with all below; nil = everything
}

func newDoor(apiVersion string, d Door) door {
	out := door{apiVersion: apiVersion, subresource: d.Subresource}
	for _, path := range d.Reset {
		out.reset = union(out.reset, setOf(path))
	}
	for _, path := range d.Only {
		out.only = union(out.only, setOf(path))
	}
	return out
}

// seen is what a door really changes of what a request says.
func (d *door) seen(c changes) changes {
	if d.only != nil {
		return changes{d.only.filter(c.added), d.only.filter(c.modified), d.only.filter(c.removed)}
	}
	return changes{below(c.added, d.reset), below(c.modified, d.reset), below(c.removed, d.reset)}
}

// maxUpdates is how many entries of updates an object keeps: older ones go together
// into one of "ancient-changes".
const maxUpdates = 10

// owner is one entry of an object's managed fields.
type owner struct {
	manager, operation, apiVersion, subresource string

	set     *Set
	from    int  // which entry it was before, -1: none
	changed bool // set is another one than before
	acted   bool // this change is its manager's
}

const (
	byUpdate = "Update"
	byApply  = "Apply"
)

// own says whether the entries are all ones that change understands: of the door's version,
// none twice.
func (d *door) own(owners []owner) bool {
	for i := range owners {
		o := &owners[i]
		if o.apiVersion != d.apiVersion || o.operation != byUpdate && o.operation != byApply {
			return false
		}
		for j := range owners[:i] {
			if p := &owners[j]; p.manager == o.manager && p.operation == o.operation && p.subresource == o.subresource {
				return false
			}
		}
	}
	return true
}

// change gives the owners after manager has made changes through the door: what is
// modified or added becomes its own, and nobody owns what is removed.
func (d *door) change(owners []owner, c changes, manager string) ([]owner, bool) {
	if manager == "" {
		manager = "unknown"
	}
	taken := union(c.modified, c.added)
	mine, nobodys := difference(taken, unowned), intersection(taken, unowned)
	updates, kept := 0, owners[:0]
	for _, o := range owners {
		was := o.set
		if mine != nil && o.operation == byUpdate && o.manager == manager && o.subresource == d.subresource {
			o.set = union(difference(difference(was, c.removed), nobodys), mine)
			o.acted, mine = true, nil
		} else {
			o.set = difference(difference(was, taken), c.removed)
		}
		o.changed = o.set != was
		if o.set.Empty() {
			continue
		}
		if o.operation == byUpdate {
			updates++
		}
		kept = append(kept, o)
	}
	if mine != nil {
		updates++
		kept = append(kept, owner{manager: manager, operation: byUpdate, apiVersion: d.apiVersion, subresource: d.subresource, set: mine, from: -1, acted: true})
	}
	// More are joined by the library: it is rare.
	return kept, updates <= maxUpdates
}
