package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound: no image of the store is meant.
	ErrNotFound = errors.New("not in the image store")
	// ErrAmbiguous: the ID prefix fits several images.
	ErrAmbiguous = errors.New("the ID prefix fits more than one image")
)

const (
	maxManifestBytes = 4 << 20
	maxConfigBytes   = 8 << 20
	maxLayers        = 500 // OVL_MAX_STACK in the kernel's overlayfs
	metadataFile     = "images.json"
	metadataVersion  = 1
)

// A Store is the images of one machine. All methods may be called at the same
// time.
type Store struct {
	cfg      Config
	platform v1.Platform
	lock     *os.File
	registry registryClients

	// now is the published state; readers take it without a lock.
	now atomic.Pointer[state]

	// mu orders everything that changes records, holds, pins or the set of
	// layers. It is held while images.json is written, not while layers are.
	mu     sync.Mutex
	closed bool
	layers map[string]*layer         // by chain ID: those on disk
	pins   map[string]int            // chain IDs and blobs that work in progress relies on
	holds  map[string]int            // by image ID: holds of this process
	owners map[string]map[string]int // by owner: image IDs of persistent holds

	usedMu sync.Mutex // under mu, or alone
	usedAt map[string]time.Time

	flights map[string]*flight // by chain ID: layers being made
	slots   chan struct{}      // bounds layers made at once
	serial  atomic.Uint64      // names of temporary files
}

// Open opens the store in cfg.Dir, making it if it is not there. It finishes
// what a killed process left: temporary files go, layers without an image go,
// and an image whose files are damaged is dropped with a warning, so that it is
// pulled or imported again rather than found and not startable.
func Open(cfg Config) (*Store, error) {
	cfg.fill()
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	s := &Store{
		cfg:      cfg,
		platform: v1.Platform{OS: "linux", Architecture: cfg.Architecture, Variant: cfg.Variant},
		layers:   map[string]*layer{},
		pins:     map[string]int{},
		holds:    map[string]int{},
		owners:   map[string]map[string]int{},
		usedAt:   map[string]time.Time{},
		flights:  map[string]*flight{},
		slots:    make(chan struct{}, cfg.Parallel),
	}
	if err := s.open(); err != nil {
		if s.lock != nil {
			s.lock.Close()
		}
		return nil, fmt.Errorf("open image store %q: %w", cfg.Dir, err)
	}
	return s, nil
}

func (s *Store) open() error {
	// 0700: a setuid program of an image must not be within reach of the
	// machine's own users.
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	s.lock = lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return errors.New("another process has it open; stop that one or choose another directory")
		}
		return fmt.Errorf("lock: %w", err)
	}
	if err := os.RemoveAll(s.path("tmp")); err != nil {
		return err
	}
	for _, dir := range []string{"tmp", "blobs/sha256", "layers", "holds", "layers/" + emptyLayer + "/fs"} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return err
		}
	}
	if err := os.Chmod(s.path("layers", emptyLayer, "fs"), 0o755); err != nil {
		return err
	}
	if err := s.readLayers(); err != nil {
		return err
	}
	if err := s.readHolds(); err != nil {
		return err
	}
	st, err := s.readImages()
	if err != nil {
		return err
	}
	st.index()
	s.now.Store(st)
	s.mu.Lock()
	trash := s.collect(st)
	s.mu.Unlock()
	s.empty(trash)
	return nil
}

// Close lets another Store open the directory. Work in progress must have ended.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.registry.closeIdle()
	return s.lock.Close()
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.cfg.Dir}, parts...)...)
}

func (s *Store) blobPath(digest string) string { return s.path("blobs", "sha256", hexOf(digest)) }

// temp returns a fresh path below tmp/.
func (s *Store) temp(kind string) string {
	return s.path("tmp", fmt.Sprintf("%s-%d", kind, s.serial.Add(1)))
}

type metadata struct {
	Version int       `json:"version"`
	Images  []*record `json:"images"`
}

// readImages reads images.json and drops what cannot work any more.
func (s *Store) readImages() (*state, error) {
	st := newState()
	raw, err := os.ReadFile(s.path(metadataFile))
	if errors.Is(err, os.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return nil, err
	}
	var m metadata
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("read %s: %w; remove the file to start with an empty store", metadataFile, err)
	}
	if m.Version != metadataVersion {
		return nil, fmt.Errorf("read %s: version %d was written by another release of proa; this one knows version %d", metadataFile, m.Version, metadataVersion)
	}
	for _, r := range m.Images {
		config, err := s.loadRecord(r)
		if err != nil {
			s.cfg.Log.Warn("image dropped from the store: its files are damaged", "image", r.ID, "names", r.Names, "cause", err)
			if s.held(r.ID) { // what is left of it may be mounted
				for _, chain := range r.chains() {
					s.pins[chain]++
				}
			}
			continue
		}
		if r.Removed && !s.held(r.ID) {
			continue
		}
		st.images[r.ID] = r
		st.configs[r.ID] = config
		st.sizes[r.ID] = s.sizeOf(r)
	}
	return st, nil
}

// loadRecord checks one record against the disk and returns its config.
func (s *Store) loadRecord(r *record) (*v1.Image, error) {
	if !isDigest(r.ID) || r.Manifest != "" && !isDigest(r.Manifest) {
		return nil, errors.New("its ID is not a digest")
	}
	raw, err := s.readBlob(r.ID, maxConfigBytes)
	if err != nil {
		return nil, err
	}
	config, err := parseConfig(raw)
	if err != nil {
		return nil, err
	}
	for _, l := range r.Layers {
		if !isDigest(l.Chain) || l.Blob != "" && !isDigest(l.Blob) {
			return nil, errors.New("a layer's ID is not a digest")
		}
		if s.layers[l.Chain] == nil && !s.hasBlob(l.Blob) {
			return nil, fmt.Errorf("layer %q is missing", l.Chain)
		}
	}
	return config, nil
}

func (s *Store) sizeOf(r *record) int64 {
	var size int64
	if info, err := os.Stat(s.blobPath(r.ID)); err == nil {
		size = info.Size()
	}
	for _, l := range r.Layers {
		if have := s.layers[l.Chain]; have != nil {
			size += have.SizeBytes
		}
	}
	return size
}

// commit saves and publishes st, then removes from disk what it no longer
// names. The caller holds mu and empties the returned trash after letting go.
func (s *Store) commit(st *state) (trash []string, err error) {
	if s.closed {
		return nil, errors.New("the image store is closed")
	}
	m := metadata{Version: metadataVersion}
	for _, r := range st.images {
		m.Images = append(m.Images, r)
	}
	slices.SortFunc(m.Images, func(a, b *record) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	raw, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return nil, err
	}
	if err := s.writeFile(s.path(metadataFile), append(raw, '\n'), true); err != nil {
		return nil, fmt.Errorf("write %s: %w", metadataFile, err)
	}
	st.index()
	s.now.Store(st)
	s.usedMu.Lock()
	for id := range s.usedAt {
		if st.images[id] == nil && !s.held(id) {
			delete(s.usedAt, id)
		}
	}
	s.usedMu.Unlock()
	return s.collect(st), nil
}

// writeFile replaces the file at path in one step; durable also brings it to
// disk before it takes its place.
func (s *Store) writeFile(path string, data []byte, durable bool) error {
	temp := s.temp("file")
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	if durable {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// collect takes layers and blobs that nothing needs out of the store. Layers
// are moved to tmp/ here, under mu, and deleted by empty, outside it.
// What cannot be moved or deleted is logged and stays until the next time.
func (s *Store) collect(st *state) (trash []string) {
	var err error
	needed := map[string]bool{}
	for _, r := range st.images {
		for _, l := range r.Layers {
			needed[l.Chain] = true
		}
		for _, b := range r.blobs() {
			needed[b] = true
		}
	}
	keep := func(digest string) bool { return needed[digest] || s.pins[digest] > 0 }
	for chain := range s.layers {
		if keep(chain) {
			continue
		}
		to := s.temp("trash")
		if e := os.Rename(s.path("layers", hexOf(chain)), to); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
			continue
		}
		delete(s.layers, chain)
		trash = append(trash, to)
	}
	entries, e := os.ReadDir(s.path("blobs", "sha256"))
	err = errors.Join(err, e)
	for _, entry := range entries {
		if digest := "sha256:" + entry.Name(); !keep(digest) {
			if e := os.Remove(s.blobPath(digest)); e != nil && !errors.Is(e, os.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
	}
	if err != nil {
		s.cfg.Log.Warn("unused layers stay in the image store", "cause", err)
	}
	return trash
}

// empty deletes what collect set aside; what it cannot delete, Open will.
func (s *Store) empty(trash []string) {
	for _, path := range trash {
		if err := os.RemoveAll(path); err != nil {
			s.cfg.Log.Warn("unused layer stays in tmp", "path", path, "cause", err)
		}
	}
}

// change runs edit on a clone of the state, under mu, and commits the clone.
func (s *Store) change(edit func(st *state) error) error {
	s.mu.Lock()
	st := s.now.Load().clone()
	st.index()
	err := edit(st)
	var trash []string
	if err == nil {
		trash, err = s.commit(st)
	}
	s.mu.Unlock()
	s.empty(trash)
	return err
}

// pin keeps layers and blobs from being collected until unpinned.
func (s *Store) pin(digests ...string) (unpin func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range digests {
		s.pins[d]++
	}
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, d := range digests {
			if s.pins[d]--; s.pins[d] == 0 {
				delete(s.pins, d)
			}
		}
	})
}

// sweep collects what a failed pull or import pinned and left.
func (s *Store) sweep() {
	s.mu.Lock()
	var trash []string
	if !s.closed {
		trash = s.collect(s.now.Load())
	}
	s.mu.Unlock()
	s.empty(trash)
}

// add makes r an image of the store, or gives its names to the image that is
// there already.
func (s *Store) add(r *record, config *v1.Image) (Image, error) {
	err := s.change(func(st *state) error {
		for _, l := range r.Layers {
			if s.layers[l.Chain] == nil {
				return fmt.Errorf("layer %q is missing", l.Chain)
			}
		}
		if old := st.images[r.ID]; old != nil {
			kept := old.clone()
			kept.Removed = false
			if r.Source == Imported {
				kept.Source = Imported
			}
			if r.Manifest != "" {
				kept.Manifest, kept.Layers = r.Manifest, r.Layers
			}
			st.images[r.ID] = kept
		} else {
			fresh := r.clone()
			fresh.Names, fresh.Digests = nil, nil
			fresh.ImportedAt = s.cfg.Now().UTC()
			st.images[r.ID] = fresh
		}
		st.configs[r.ID] = config
		st.sizes[r.ID] = s.sizeOf(r)
		for _, orphan := range st.take(r.ID, r.Names, r.Digests) {
			s.discard(st, orphan)
		}
		return nil
	})
	if err != nil {
		return Image{}, err
	}
	img, found := s.image(s.now.Load(), r.ID)
	if !found {
		return Image{}, fmt.Errorf("image %q was removed at the same time: %w", r.ID, ErrNotFound)
	}
	return img, nil
}

// discard takes an image out of st, or out of sight while it is held.
func (s *Store) discard(st *state, id string) {
	if !s.held(id) {
		st.drop(id)
		return
	}
	r := st.edit(id)
	r.Names, r.Digests, r.Removed = nil, nil, true
}

func (s *Store) image(st *state, id string) (Image, bool) {
	r, found := st.images[id]
	if !found || r.Removed {
		return Image{}, false
	}
	return asImage(st, r, s.lastUsed(id)), true
}

func asImage(st *state, r *record, used time.Time) Image {
	if used.Before(r.ImportedAt) {
		used = r.ImportedAt
	}
	return Image{
		ID: r.ID, Names: slices.Clone(r.Names), Digests: slices.Clone(r.Digests), Manifest: r.Manifest,
		SizeBytes: st.sizes[r.ID], Config: *st.configs[r.ID], Layers: r.chains(),
		Source: r.Source, ImportedAt: r.ImportedAt, UsedAt: used,
	}
}

// Get finds an image by familiar or full name, ID, a prefix of an ID of at least
// seven digits, or name@digest.
func (s *Store) Get(ref string) (Image, bool) {
	st := s.now.Load()
	id, err := st.resolve(ref)
	if err != nil {
		return Image{}, false
	}
	return s.image(st, id)
}

// List returns all images, ordered by ID.
func (s *Store) List() []Image {
	st := s.now.Load()
	list := make([]Image, 0, len(st.ids))
	for _, id := range st.ids {
		if img, found := s.image(st, id); found {
			list = append(list, img)
		}
	}
	return list
}

// Candidates returns the images that automatic collection may remove: pulled
// and not held, the longest unused first.
func (s *Store) Candidates() []Image {
	st := s.now.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Image
	for _, id := range st.ids {
		if r := st.images[id]; r.Source == Pulled && !s.held(id) {
			list = append(list, asImage(st, r, s.lastUsed(id)))
		}
	}
	slices.SortStableFunc(list, func(a, b Image) int { return a.UsedAt.Compare(b.UsedAt) })
	return list
}

// Tag gives the image that src means the name dst, away from any other image.
func (s *Store) Tag(src, dst string) error {
	to, err := ParseReference(dst)
	if err == nil && to.Digest != "" {
		err = fmt.Errorf("%w: a digest cannot be given, it is what the image has", ErrReference)
	}
	if err == nil {
		err = s.change(func(st *state) error {
			id, err := st.resolve(src)
			if err != nil {
				return err
			}
			for _, orphan := range st.take(id, []string{to.String()}, nil) {
				s.discard(st, orphan)
			}
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("tag image %q as %q: %w", src, dst, err)
	}
	return nil
}

// Remove takes a name off an image, and removes the image itself with its last
// name or when ref is its ID or a prefix of it. Layers go when no image and no
// hold needs them.
func (s *Store) Remove(ref string) error {
	err := s.change(func(st *state) error {
		id, err := st.resolve(ref)
		if err != nil {
			return err
		}
		r := st.images[id]
		full := ""
		if parsed, err := ParseReference(ref); err == nil {
			full = parsed.String()
		}
		switch {
		case slices.Contains(r.Names, full):
			r = st.edit(id)
			r.Names = slices.DeleteFunc(r.Names, func(n string) bool { return n == full })
			r.Digests = slices.DeleteFunc(r.Digests, func(d string) bool {
				return repositoryOf(d) == repositoryOf(full) && !slices.ContainsFunc(r.Names, func(n string) bool {
					return repositoryOf(n) == repositoryOf(d)
				})
			})
		case slices.Contains(r.Digests, full):
			r = st.edit(id)
			r.Digests = slices.DeleteFunc(r.Digests, func(d string) bool { return d == full })
		default: // by ID
			s.discard(st, id)
			return nil
		}
		if len(r.Names) == 0 && len(r.Digests) == 0 {
			s.discard(st, id)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove image %q: %w", ref, err)
	}
	return nil
}

// repositoryOf cuts tag or digest off a full name.
func repositoryOf(full string) string {
	r, err := ParseReference(full)
	if err != nil {
		return full
	}
	return r.Repository()
}

// Lowers returns the directories for overlayfs' lowerdir, the topmost first; an
// image without layers has one empty directory. Take a hold before, and keep it
// for as long as the mount lives. A layer that is missing is unpacked again if
// its blob was kept.
func (s *Store) Lowers(img Image) ([]string, error) {
	if len(img.Layers) == 0 {
		return []string{s.path("layers", emptyLayer, "fs")}, nil
	}
	dirs := make([]string, len(img.Layers))
	for i, chain := range img.Layers {
		dir := s.layerDir(chain)
		if _, err := os.Lstat(dir); err != nil {
			if err := s.restore(context.Background(), img.ID, i); err != nil {
				return nil, fmt.Errorf("layers of image %q: %w", img.ID, err)
			}
		}
		dirs[len(dirs)-1-i] = dir
	}
	return dirs, nil
}

// Usage returns the bytes and inodes of all layers and blobs.
func (s *Store) Usage() (bytes, inodes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.layers {
		bytes += l.SizeBytes
		inodes += l.Inodes
	}
	entries, err := os.ReadDir(s.path("blobs", "sha256"))
	if err != nil {
		return bytes, inodes
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			bytes += info.Size()
			inodes++
		}
	}
	return bytes, inodes
}
