package disk

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"

	"proa.dev/env"
)

// engineFS carries the engine's file operations to env.Files. It stands for one
// run of the engine: after fence, which follows a fatal error, nothing that this
// run still tries reaches the files, and the goroutines that try stay where they
// are; a failed run costs their stacks and the engine's buffers.
//
// When the disk is full it gives the reserve back and tries once more, so that
// what was accepted already can be finished. Any other error ends this run here:
// the engine would answer some of them with a panic, and others by trying again
// without a pause.
type engineFS struct {
	files   env.Files
	reserve *reserve
	die     func(error)

	mu     sync.RWMutex // held for reading during each operation that changes something
	isDead bool
}

// do carries out an operation that changes something.
func (e *engineFS) do(op func() error) error {
	e.mu.RLock()
	isDead := e.isDead
	var err error
	if !isDead {
		err = op()
		if errors.Is(err, syscall.ENOSPC) && e.reserve.release() {
			err = op()
		}
	}
	e.mu.RUnlock()
	return e.mustWork(err, isDead)
}

// mustWork ends the run at an error that says more than whether a name exists:
// the caller never comes back. (Ending its goroutine would run the engine's
// deferred functions, some of which unlock what is not locked at that moment.)
func (e *engineFS) mustWork(err error, isDead bool) error {
	if !isDead && (err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrExist)) {
		return err
	}
	if err != nil {
		e.die(err)
	}
	select {}
}

func (e *engineFS) fence() {
	e.mu.Lock()
	e.isDead = true
	e.mu.Unlock()
}

func (e *engineFS) create(op func() (env.File, error)) (vfs.File, error) {
	var f env.File
	err := e.do(func() (err error) { f, err = op(); return err })
	if err != nil {
		return nil, err
	}
	return &engineFile{File: f, fs: e}, nil
}

func (e *engineFS) Create(name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	return e.create(func() (env.File, error) { return e.files.Create(name) })
}

func (e *engineFS) OpenReadWrite(name string, _ vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return e.create(func() (env.File, error) { return e.files.OpenWrite(name) })
}

func (e *engineFS) ReuseForWrite(old, new string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	return e.create(func() (env.File, error) {
		if err := e.files.Rename(old, new); err != nil {
			return nil, err
		}
		return e.files.OpenWrite(new)
	})
}

func (e *engineFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := e.files.Open(name)
	if err != nil {
		return nil, err
	}
	return &engineFile{File: f, fs: e}, nil
}

func (e *engineFS) OpenDir(name string) (vfs.File, error) {
	if _, err := e.files.Stat(name); err != nil {
		return nil, err
	}
	return &engineDir{fs: e, name: name}, nil
}

func (e *engineFS) Link(old, new string) error {
	return e.do(func() error { return e.files.Link(old, new) })
}

func (e *engineFS) Remove(name string) error {
	return e.do(func() error { return e.files.Remove(name) })
}

func (e *engineFS) RemoveAll(name string) error {
	info, err := e.files.Stat(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		names, err := e.files.List(name)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := e.RemoveAll(filepath.Join(name, n)); err != nil {
				return err
			}
		}
	}
	return e.Remove(name)
}

func (e *engineFS) Rename(old, new string) error {
	return e.do(func() error { return e.files.Rename(old, new) })
}

func (e *engineFS) MkdirAll(dir string, _ os.FileMode) error {
	return e.do(func() error { return e.files.MkdirAll(dir) })
}

// Lock has nothing to do: the data directory is locked already.
func (e *engineFS) Lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }

func (e *engineFS) List(dir string) ([]string, error) { return e.files.List(dir) }

func (e *engineFS) Stat(name string) (vfs.FileInfo, error) { return wrapInfo(e.files.Stat(name)) }

func (e *engineFS) PathBase(path string) string    { return filepath.Base(path) }
func (e *engineFS) PathJoin(elem ...string) string { return filepath.Join(elem...) }
func (e *engineFS) PathDir(path string) string     { return filepath.Dir(path) }
func (e *engineFS) Unwrap() vfs.FS                 { return nil }
func (e *engineFS) GetDiskUsage(path string) (vfs.DiskUsage, error) {
	free, total, err := e.files.Free(path)
	return vfs.DiskUsage{AvailBytes: free, TotalBytes: total, UsedBytes: total - free}, err
}

type engineInfo struct{ os.FileInfo }

func (engineInfo) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }

func wrapInfo(info os.FileInfo, err error) (vfs.FileInfo, error) {
	if err != nil {
		return nil, err
	}
	return engineInfo{info}, nil
}

type engineFile struct {
	env.File
	fs *engineFS
}

func (f *engineFile) Write(p []byte) (n int, err error) {
	err = f.fs.do(func() error {
		m, err := f.File.Write(p[n:])
		n += m
		return err
	})
	return n, err
}

func (f *engineFile) WriteAt(p []byte, offset int64) (n int, err error) {
	err = f.fs.do(func() error {
		n, err = f.File.WriteAt(p, offset)
		return err
	})
	return n, err
}

// Preallocate is a hint; a full disk shows when something is written.
func (f *engineFile) Preallocate(offset, length int64) error {
	return f.fs.do(func() error {
		if err := f.File.Allocate(offset, length); !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		return nil
	})
}

// Sync is not tried again: after a failed sync nobody knows what is on the disk.
func (f *engineFile) Sync() error {
	f.fs.mu.RLock()
	isDead := f.fs.isDead
	var err error
	if !isDead {
		err = f.File.Sync()
	}
	f.fs.mu.RUnlock()
	return f.fs.mustWork(err, isDead)
}

func (f *engineFile) SyncData() error                     { return f.Sync() }
func (f *engineFile) SyncTo(int64) (bool, error)          { return false, nil }
func (f *engineFile) Prefetch(offset, length int64) error { return nil }
func (f *engineFile) Fd() uintptr                         { return vfs.InvalidFd }
func (f *engineFile) Stat() (vfs.FileInfo, error)         { return wrapInfo(f.File.Stat()) }

// engineDir is a directory that can be synced.
type engineDir struct {
	fs   *engineFS
	name string
}

var errIsDir = errors.New("is a directory")

func (d *engineDir) Sync() error {
	return d.fs.do(func() error { return d.fs.files.SyncDir(d.name) })
}
func (d *engineDir) SyncData() error                    { return d.Sync() }
func (d *engineDir) SyncTo(int64) (bool, error)         { return false, nil }
func (d *engineDir) Close() error                       { return nil }
func (d *engineDir) Read([]byte) (int, error)           { return 0, errIsDir }
func (d *engineDir) ReadAt([]byte, int64) (int, error)  { return 0, errIsDir }
func (d *engineDir) Write([]byte) (int, error)          { return 0, errIsDir }
func (d *engineDir) WriteAt([]byte, int64) (int, error) { return 0, errIsDir }
func (d *engineDir) Preallocate(int64, int64) error     { return nil }
func (d *engineDir) Prefetch(int64, int64) error        { return nil }
func (d *engineDir) Fd() uintptr                        { return vfs.InvalidFd }
func (d *engineDir) Stat() (vfs.FileInfo, error)        { return wrapInfo(d.fs.files.Stat(d.name)) }

// reserve is a file that does nothing but keep room: it is given back when the
// disk is full, so that the engine can finish what was accepted.
type reserve struct {
	files env.Files
	name  string
	size  int64
	held  atomic.Bool
}

// take makes the file anew.
func (r *reserve) take() error {
	if r.size <= 0 || r.held.Load() {
		return nil
	}
	f, err := r.files.OpenWrite(r.name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != r.size {
		// Allocation without content is not room on every file system; writing is.
		zeros := make([]byte, 64<<10)
		for at := int64(0); at < r.size; at += int64(len(zeros)) {
			if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), r.size-at)], at); err != nil {
				return errors.Join(err, r.files.Remove(r.name))
			}
		}
	}
	r.held.Store(true)
	return nil
}

// release gives the room back and reports whether there was any.
func (r *reserve) release() bool {
	if !r.held.CompareAndSwap(true, false) {
		return false
	}
	return r.files.Remove(r.name) == nil
}

// isWhole reports whether the room is there, or none is wanted.
func (r *reserve) isWhole() bool { return r.size <= 0 || r.held.Load() }
