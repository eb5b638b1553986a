package env

import (
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// MemFiles is a file system in memory that keeps the promises of Files and no
// more: Crash loses what was not synced. It is safe for concurrent use.
//
// Directories that were made survive at once; everything else follows Sync and
// SyncDir. Use Fail to inject errors, SetCapacity for a full disk, and Flip for
// a flipped bit.
type MemFiles struct {
	mu       sync.Mutex
	dirs     map[string]*memDir
	locks    map[string]bool
	capacity int64 // 0: unbounded
	used     int64
	fail     func(Op) error
	counts   map[string]int
	index    int
	era      int // handles of an earlier era are dead
}

type memDir struct {
	files map[string]*memFile
	undo  []dirUndo // since the last SyncDir
}

type dirUndo struct {
	name string
	was  *memFile
}

type memFile struct {
	data  []byte
	links int
	undo  []fileUndo // since the last Sync
}

// fileUndo takes one write or truncation back: the file had size bytes, and was
// at offset.
type fileUndo struct {
	offset int64
	was    []byte
	size   int64
	wrote  int // bytes written, for a torn one
}

// NewMemFiles makes an empty file system.
func NewMemFiles() *MemFiles {
	return &MemFiles{dirs: map[string]*memDir{"/": {files: map[string]*memFile{}}, ".": {files: map[string]*memFile{}}},
		locks: map[string]bool{}, counts: map[string]int{}}
}

// Fail has before called for every operation that may change something or sync,
// and lets the operation fail with its error; nil ends that. before must not
// call the file system.
func (m *MemFiles) Fail(before func(Op) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail, m.index = before, 0
	clear(m.counts)
}

// FailNth makes the nth operation of a name from now on, and only that one, fail.
func (m *MemFiles) FailNth(name string, nth int, err error) {
	m.Fail(func(op Op) error {
		if op.Name == name && op.Count == nth {
			return err
		}
		return nil
	})
}

// SetCapacity bounds the bytes in all files; 0 lifts the bound.
func (m *MemFiles) SetCapacity(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.capacity = bytes
}

// Used counts the bytes in all files.
func (m *MemFiles) Used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}

// Flip flips one bit of a file.
func (m *MemFiles) Flip(name string, bit int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.lookup(name)
	if f == nil || bit/8 >= int64(len(f.data)) {
		return pathError("flip", name, fs.ErrNotExist)
	}
	f.data[bit/8] ^= 1 << (bit % 8)
	return nil
}

// Crash loses everything that was not synced: names, and content. All open
// handles and locks are dead afterwards. For each file with unsynced writes,
// keep, if not nil, says how many bytes of them, in the order in which they were
// written, reached the disk all the same; files come in the order of their names.
func (m *MemFiles) Crash(keep func(name string, unsynced int) int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.era++
	clear(m.locks)
	m.fail = nil
	seen := map[*memFile]bool{}
	for _, dir := range sortedKeys(m.dirs) {
		d := m.dirs[dir]
		for i := len(d.undo) - 1; i >= 0; i-- {
			u := d.undo[i]
			if u.was == nil {
				delete(d.files, u.name)
			} else {
				d.files[u.name] = u.was
			}
		}
		d.undo = nil
	}
	for _, dir := range sortedKeys(m.dirs) {
		d := m.dirs[dir]
		for _, name := range sortedKeys(d.files) {
			f := d.files[name]
			if seen[f] {
				continue
			}
			seen[f] = true
			f.crash(func(n int) int {
				if keep == nil {
					return 0
				}
				return keep(filepath.Join(dir, name), n)
			})
		}
	}
	m.used = 0
	for f := range seen {
		m.used += int64(len(f.data))
	}
}

func (f *memFile) crash(keep func(int) int) {
	total := 0
	for _, u := range f.undo {
		total += u.wrote
	}
	kept := 0
	if total > 0 {
		kept = min(max(keep(total), 0), total)
	}
	// What survives: whole writes while there is room, then a part of one.
	type patch struct {
		offset int64
		data   []byte
	}
	var patches []patch
	size := int64(-1)
	left := kept
	for _, u := range f.undo {
		if left <= 0 || u.wrote == 0 {
			break
		}
		n := min(left, u.wrote)
		end := min(u.offset+int64(n), int64(len(f.data)))
		if u.offset < end {
			patches = append(patches, patch{u.offset, slices.Clone(f.data[u.offset:end])})
			size = max(size, end)
		}
		left -= n
	}
	for i := len(f.undo) - 1; i >= 0; i-- {
		u := f.undo[i]
		f.resize(u.size)
		copy(f.data[min(u.offset, u.size):], u.was)
	}
	f.undo = nil
	if size > int64(len(f.data)) {
		f.resize(size)
	}
	for _, p := range patches {
		copy(f.data[p.offset:], p.data)
	}
}

func (f *memFile) resize(size int64) {
	if size <= int64(len(f.data)) {
		clear(f.data[size:])
		f.data = f.data[:size]
		return
	}
	f.data = append(f.data, make([]byte, size-int64(len(f.data)))...)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func pathError(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// begin counts an operation and lets it fail. Under mu.
func (m *MemFiles) begin(op, path string) error {
	m.index++
	m.counts[op]++
	if m.fail != nil {
		if err := m.fail(Op{op, path, m.counts[op], m.index}); err != nil {
			return pathError(op, path, err)
		}
	}
	return nil
}

func split(name string) (dir, base string) {
	name = filepath.Clean(name)
	return filepath.Dir(name), filepath.Base(name)
}

func (m *MemFiles) lookup(name string) *memFile {
	dir, base := split(name)
	if d := m.dirs[dir]; d != nil {
		return d.files[base]
	}
	return nil
}

// set gives a name to f, or removes it with nil. Under mu.
func (m *MemFiles) set(op, name string, f *memFile) error {
	dir, base := split(name)
	d := m.dirs[dir]
	if d == nil {
		return pathError(op, name, fs.ErrNotExist)
	}
	was := d.files[base]
	d.undo = append(d.undo, dirUndo{base, was})
	if was != nil {
		if was.links--; was.links == 0 {
			m.used -= int64(len(was.data))
		}
	}
	if f == nil {
		delete(d.files, base)
		return nil
	}
	if f.links++; f.links == 1 {
		m.used += int64(len(f.data))
	}
	d.files[base] = f
	return nil
}

// Open implements Files.
func (m *MemFiles) Open(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.lookup(name)
	if f == nil {
		return nil, pathError("open", name, fs.ErrNotExist)
	}
	return &memHandle{m: m, f: f, name: name, era: m.era}, nil
}

// Create implements Files.
func (m *MemFiles) Create(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.create("create", name)
}

func (m *MemFiles) create(op, name string) (File, error) {
	if err := m.begin(op, name); err != nil {
		return nil, err
	}
	f := &memFile{}
	if err := m.set(op, name, f); err != nil {
		return nil, err
	}
	return &memHandle{m: m, f: f, name: name, era: m.era, canWrite: true}, nil
}

// OpenWrite implements Files.
func (m *MemFiles) OpenWrite(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.lookup(name)
	if f == nil {
		return m.create("openwrite", name)
	}
	if err := m.begin("openwrite", name); err != nil {
		return nil, err
	}
	return &memHandle{m: m, f: f, name: name, era: m.era, canWrite: true}, nil
}

// Rename implements Files.
func (m *MemFiles) Rename(old, new string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin("rename", new); err != nil {
		return err
	}
	f := m.lookup(old)
	if f == nil {
		return pathError("rename", old, fs.ErrNotExist)
	}
	if err := m.set("rename", new, f); err != nil {
		return err
	}
	return m.set("rename", old, nil)
}

// Link implements Files.
func (m *MemFiles) Link(old, new string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin("link", new); err != nil {
		return err
	}
	f := m.lookup(old)
	if f == nil {
		return pathError("link", old, fs.ErrNotExist)
	}
	if m.lookup(new) != nil {
		return pathError("link", new, fs.ErrExist)
	}
	return m.set("link", new, f)
}

// Remove implements Files.
func (m *MemFiles) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin("remove", name); err != nil {
		return err
	}
	if m.lookup(name) != nil {
		return m.set("remove", name, nil)
	}
	name = filepath.Clean(name)
	d := m.dirs[name]
	if d == nil {
		return pathError("remove", name, fs.ErrNotExist)
	}
	if len(m.list(name)) > 0 {
		return pathError("remove", name, syscall.ENOTEMPTY)
	}
	delete(m.dirs, name)
	return nil
}

// MkdirAll implements Files.
func (m *MemFiles) MkdirAll(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin("mkdirall", dir); err != nil {
		return err
	}
	for dir = filepath.Clean(dir); m.dirs[dir] == nil; dir = filepath.Dir(dir) {
		if m.lookup(dir) != nil {
			return pathError("mkdir", dir, syscall.ENOTDIR)
		}
		m.dirs[dir] = &memDir{files: map[string]*memFile{}}
	}
	return nil
}

func (m *MemFiles) list(dir string) []string {
	names := sortedKeys(m.dirs[dir].files)
	for d := range m.dirs {
		if d != dir && filepath.Dir(d) == dir {
			names = append(names, filepath.Base(d))
		}
	}
	slices.SortFunc(names, cmp.Compare[string])
	return names
}

// List implements Files.
func (m *MemFiles) List(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir = filepath.Clean(dir)
	if m.dirs[dir] == nil {
		return nil, pathError("list", dir, fs.ErrNotExist)
	}
	return m.list(dir), nil
}

// Stat implements Files.
func (m *MemFiles) Stat(name string) (fs.FileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.lookup(name); f != nil {
		return memInfo{filepath.Base(name), int64(len(f.data)), false}, nil
	}
	if m.dirs[filepath.Clean(name)] != nil {
		return memInfo{filepath.Base(name), 0, true}, nil
	}
	return nil, pathError("stat", name, fs.ErrNotExist)
}

// SyncDir implements Files.
func (m *MemFiles) SyncDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin("syncdir", dir); err != nil {
		return err
	}
	d := m.dirs[filepath.Clean(dir)]
	if d == nil {
		return pathError("syncdir", dir, fs.ErrNotExist)
	}
	d.undo = nil
	return nil
}

// Lock implements Files.
func (m *MemFiles) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin("lock", name); err != nil {
		return nil, err
	}
	name = filepath.Clean(name)
	if m.locks[name] {
		return nil, &LockedError{Name: name}
	}
	m.locks[name] = true
	return &memLock{m, name, m.era}, nil
}

type memLock struct {
	m    *MemFiles
	name string
	era  int
}

func (l *memLock) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.era == l.m.era {
		delete(l.m.locks, l.name)
	}
	return nil
}

// Free implements Files.
func (m *MemFiles) Free(dir string) (free, total uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.capacity == 0 {
		return 1 << 50, 1 << 50, nil
	}
	return uint64(max(m.capacity-m.used, 0)), uint64(m.capacity), nil
}

// Tree lists all files with their sizes, for messages.
func (m *MemFiles) Tree() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b strings.Builder
	for _, dir := range sortedKeys(m.dirs) {
		for _, name := range sortedKeys(m.dirs[dir].files) {
			fmt.Fprintf(&b, "%s %d\n", filepath.Join(dir, name), len(m.dirs[dir].files[name].data))
		}
	}
	return b.String()
}

type memInfo struct {
	name  string
	size  int64
	isDir bool
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return i.isDir }
func (i memInfo) Sys() any           { return nil }
func (i memInfo) Mode() fs.FileMode {
	if i.isDir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}

type memHandle struct {
	m        *MemFiles
	f        *memFile
	name     string
	era      int
	pos      int64
	canWrite bool
	closed   bool
}

// use checks the handle. Under mu.
func (h *memHandle) use(op string, isWrite bool) error {
	switch {
	case h.closed:
		return pathError(op, h.name, fs.ErrClosed)
	case h.era != h.m.era:
		return pathError(op, h.name, syscall.ESTALE)
	case isWrite && !h.canWrite && op != "sync":
		return pathError(op, h.name, syscall.EBADF)
	}
	if isWrite {
		return h.m.begin(op, h.name)
	}
	return nil
}

func (h *memHandle) Read(p []byte) (int, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if err := h.use("read", false); err != nil {
		return 0, err
	}
	n, err := h.f.readAt(p, h.pos)
	h.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (f *memFile) readAt(p []byte, offset int64) (int, error) {
	if offset >= int64(len(f.data)) {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	n := copy(p, f.data[offset:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *memHandle) ReadAt(p []byte, offset int64) (int, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if err := h.use("readat", false); err != nil {
		return 0, err
	}
	return h.f.readAt(p, offset)
}

func (h *memHandle) Write(p []byte) (int, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if err := h.use("write", true); err != nil {
		return 0, err
	}
	n, err := h.writeAt(p, h.pos)
	h.pos += int64(n)
	return n, err
}

func (h *memHandle) WriteAt(p []byte, offset int64) (int, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if err := h.use("writeat", true); err != nil {
		return 0, err
	}
	return h.writeAt(p, offset)
}

// writeAt writes as much as the capacity allows.
func (h *memHandle) writeAt(p []byte, offset int64) (n int, err error) {
	m, f := h.m, h.f
	size := int64(len(f.data))
	grow := max(offset+int64(len(p))-size, 0)
	if m.capacity > 0 && grow > 0 && f.links > 0 {
		if room := max(m.capacity-m.used, 0); grow > room {
			err = pathError("write", h.name, syscall.ENOSPC)
			p = p[:max(size+room-offset, 0)]
			grow = max(offset+int64(len(p))-size, 0)
		}
	}
	if len(p) == 0 {
		return 0, err
	}
	u := fileUndo{offset: offset, size: size, wrote: len(p)}
	if offset < size {
		u.was = slices.Clone(f.data[offset:min(offset+int64(len(p)), size)])
	}
	f.undo = append(f.undo, u)
	if grow > 0 {
		f.resize(size + grow)
		if f.links > 0 {
			m.used += grow
		}
	}
	return copy(f.data[offset:], p), err
}

func (h *memHandle) Close() error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if h.closed {
		return pathError("close", h.name, fs.ErrClosed)
	}
	h.closed = true
	return nil
}

func (h *memHandle) Stat() (fs.FileInfo, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	return memInfo{filepath.Base(h.name), int64(len(h.f.data)), false}, nil
}

func (h *memHandle) Sync() error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if err := h.use("sync", true); err != nil {
		return err
	}
	h.f.undo = nil
	return nil
}

func (h *memHandle) Truncate(size int64) error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if err := h.use("truncate", true); err != nil {
		return err
	}
	f := h.f
	u := fileUndo{offset: size, size: int64(len(f.data))}
	if size < u.size {
		u.was = slices.Clone(f.data[size:])
	}
	f.undo = append(f.undo, u)
	if f.links > 0 {
		h.m.used += size - u.size
	}
	f.resize(size)
	return nil
}

func (h *memHandle) Allocate(offset, length int64) error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if err := h.use("allocate", true); err != nil {
		return err
	}
	grow := offset + length - int64(len(h.f.data))
	if h.m.capacity > 0 && grow > h.m.capacity-h.m.used {
		return pathError("allocate", h.name, syscall.ENOSPC)
	}
	return nil
}
