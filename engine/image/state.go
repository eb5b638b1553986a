package image

import (
	"maps"
	"slices"
	"strings"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Source says where an image came from, and with that whether it may be
// collected: Pulled can be had again, Imported cannot.
type Source string

const (
	Pulled   Source = "pulled"
	Imported Source = "imported"
)

// An Image is one image as the store knows it. It is a copy; changing it changes
// nothing. Config is shared between copies: do not write to it.
type Image struct {
	ID         string    // digest of the config, "sha256:…"
	Names      []string  // full names with tag, sorted
	Digests    []string  // repository@digest, sorted; the digest is that of the manifest or index asked for
	Manifest   string    // digest of the image's own manifest; "" if a docker archive brought it
	SizeBytes  int64     // unpacked layers and config, layers shared with other images included
	Config     v1.Image  // the OCI image config
	Layers     []string  // chain IDs, lowest layer first
	Source     Source    // Imported stays Imported when the image is pulled as well
	ImportedAt time.Time // when the store got it
	UsedAt     time.Time // when a hold was last taken; ImportedAt if never. Not kept across Open
}

// record is an image as images.json has it.
type record struct {
	ID         string        `json:"id"`
	Names      []string      `json:"names,omitempty"`
	Digests    []string      `json:"digests,omitempty"`
	Manifest   string        `json:"manifest,omitempty"`
	Layers     []layerRecord `json:"layers"`
	Source     Source        `json:"source"`
	ImportedAt time.Time     `json:"importedAt"`
	// Removed: without names, and gone when its last hold ends.
	Removed bool `json:"removed,omitempty"`
}

type layerRecord struct {
	Chain string `json:"chain"`
	Diff  string `json:"diff"`
	Blob  string `json:"blob,omitempty"` // digest of the compressed layer, when it has one
}

func (r *record) clone() *record {
	c := *r
	c.Names, c.Digests = slices.Clone(r.Names), slices.Clone(r.Digests)
	return &c // Layers never change
}

func (r *record) chains() []string {
	chains := make([]string, len(r.Layers))
	for i, l := range r.Layers {
		chains[i] = l.Chain
	}
	return chains
}

// blobs lists the blobs that r keeps alive.
func (r *record) blobs() []string {
	list := []string{r.ID}
	if r.Manifest != "" {
		list = append(list, r.Manifest)
	}
	for _, l := range r.Layers {
		if l.Blob != "" {
			list = append(list, l.Blob)
		}
	}
	return list
}

// state is every record at one instant. A published state never changes:
// writers work on a clone, save it, then publish it.
type state struct {
	images  map[string]*record // by ID
	configs map[string]*v1.Image
	sizes   map[string]int64

	// derived
	names   map[string]string // full name → ID
	digests map[string]string // repository@digest → ID
	ids     []string          // of images that are not removed, sorted
}

func newState() *state {
	return &state{images: map[string]*record{}, configs: map[string]*v1.Image{}, sizes: map[string]int64{}}
}

func (st *state) clone() *state {
	return &state{images: maps.Clone(st.images), configs: maps.Clone(st.configs), sizes: maps.Clone(st.sizes)}
}

// edit returns a record of a cloned state that may be written to.
func (st *state) edit(id string) *record {
	r := st.images[id].clone()
	st.images[id] = r
	return r
}

func (st *state) drop(id string) {
	delete(st.images, id)
	delete(st.configs, id)
	delete(st.sizes, id)
}

// index makes the derived maps; it is the last step before a state is published.
func (st *state) index() {
	st.names, st.digests, st.ids = map[string]string{}, map[string]string{}, nil
	for id, r := range st.images {
		if r.Removed {
			continue
		}
		st.ids = append(st.ids, id)
		for _, n := range r.Names {
			st.names[n] = id
		}
		for _, d := range r.Digests {
			st.digests[d] = id
		}
	}
	slices.Sort(st.ids)
}

// resolve finds the ID that ref means: a full ID, a full or familiar name, a
// digest pin, or a prefix of an ID of at least minPrefix digits.
func (st *state) resolve(ref string) (string, error) {
	if r, found := st.images[ref]; found && !r.Removed {
		return ref, nil
	}
	if isHex(ref, 64) {
		if r, found := st.images["sha256:"+ref]; found && !r.Removed {
			return r.ID, nil
		}
		return "", ErrNotFound
	}
	parsed, parseErr := ParseReference(ref)
	if parseErr == nil {
		if id, found := st.names[parsed.String()]; found {
			return id, nil
		}
		if id, found := st.digests[parsed.String()]; found {
			return id, nil
		}
	}
	if prefix := strings.TrimPrefix(ref, "sha256:"); isHex(prefix, 0) && len(prefix) >= minPrefix {
		prefix = "sha256:" + prefix
		i, _ := slices.BinarySearch(st.ids, prefix)
		switch {
		case i == len(st.ids) || !strings.HasPrefix(st.ids[i], prefix):
		case i+1 < len(st.ids) && strings.HasPrefix(st.ids[i+1], prefix):
			return "", ErrAmbiguous
		default:
			return st.ids[i], nil
		}
		return "", ErrNotFound
	}
	if parseErr != nil && !isDigest(ref) {
		return "", parseErr
	}
	return "", ErrNotFound
}

// minPrefix is how many digits of an ID are taken for an ID rather than a
// coincidence with a name.
const minPrefix = 7

// take gives the names and digests to image id, away from whichever image has
// them now. It returns the imported images that lost their last name: nothing
// but their ID could reach them any more, and no collection would ever end that.
func (st *state) take(id string, names, digests []string) (orphans []string) {
	for other, r := range st.images {
		if other == id || r.Removed {
			continue
		}
		lost := func(list, taken []string) bool {
			return slices.ContainsFunc(list, func(n string) bool { return slices.Contains(taken, n) })
		}
		if !lost(r.Names, names) && !lost(r.Digests, digests) {
			continue
		}
		hadName := len(r.Names) > 0
		r = st.edit(other)
		r.Names = slices.DeleteFunc(r.Names, func(n string) bool { return slices.Contains(names, n) })
		r.Digests = slices.DeleteFunc(r.Digests, func(d string) bool { return slices.Contains(digests, d) })
		if hadName && len(r.Names) == 0 && r.Source == Imported {
			orphans = append(orphans, other)
		}
	}
	r := st.edit(id)
	r.Names = union(r.Names, names)
	r.Digests = union(r.Digests, digests)
	return orphans
}

func union(a, b []string) []string {
	all := append(slices.Clone(a), b...)
	slices.Sort(all)
	return slices.Compact(all)
}
