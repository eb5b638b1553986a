package env

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Files is a file system as a store needs it. What was written to a file
// survives a crash after Sync of the file, and a name after SyncDir of its
// directory. Errors wrap those of package syscall (ENOSPC, EROFS) and io/fs.
//
// The names of the operations, for failure injection, are those of the methods
// in lower case: open, create, openwrite, rename, remove, link, mkdirall, list,
// stat, syncdir, lock, free; of files read, readat, write, writeat, sync,
// truncate, allocate, close.
type Files interface {
	// Open opens for reading.
	Open(name string) (File, error)
	// Create makes a new empty file for reading and writing. A file that has the
	// name loses it; whoever has it open keeps it.
	Create(name string) (File, error)
	// OpenWrite opens for reading and writing and makes the file if need be.
	OpenWrite(name string) (File, error)
	// Rename gives a file another name, in the place of the file that has it.
	Rename(old, new string) error
	// Link gives a file a second name.
	Link(old, new string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// MkdirAll makes a directory (0700) and those above it.
	MkdirAll(dir string) error
	// List gives the names in a directory, sorted.
	List(dir string) ([]string, error)
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the names in a directory durable.
	SyncDir(dir string) error
	// Lock takes a lock that no other process (or caller) can have until it is
	// closed or the process ends. *LockedError when somebody has it.
	Lock(name string) (io.Closer, error)
	// Free tells how many bytes can still be written below dir, and how many there
	// are in all.
	Free(dir string) (free, total uint64, err error)
}

// File is one open file. Read and Write share one place, ReadAt and WriteAt
// have none.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.WriterAt
	io.Closer
	Stat() (fs.FileInfo, error)
	// Sync makes the content and the size durable.
	Sync() error
	Truncate(size int64) error
	// Allocate reserves room; the size stays. It may do nothing.
	Allocate(offset, length int64) error
}

// LockedError says who has a lock.
type LockedError struct {
	Name string
	PID  int // 0: not known
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("lock %q is held by another process", e.Name)
	}
	return fmt.Sprintf("lock %q is held by process %d", e.Name, e.PID)
}

// SystemFiles is the machine's file system.
func SystemFiles() Files { return systemFiles{} }

type systemFiles struct{}

type systemFile struct{ *os.File }

func (f systemFile) Sync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
		return nil
	}
}

func (f systemFile) Allocate(offset, length int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, offset, length)
	if err == unix.EOPNOTSUPP || err == unix.EINTR || err == unix.ENOSYS {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "fallocate", Path: f.Name(), Err: err}
	}
	return nil
}

func open(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return systemFile{f}, nil
}

func (systemFiles) Open(name string) (File, error) { return open(name, os.O_RDONLY) }
func (systemFiles) Create(name string) (File, error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return open(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
}
func (systemFiles) OpenWrite(name string) (File, error) {
	return open(name, os.O_RDWR|os.O_CREATE)
}
func (systemFiles) Rename(old, new string) error          { return os.Rename(old, new) }
func (systemFiles) Link(old, new string) error            { return os.Link(old, new) }
func (systemFiles) Remove(name string) error              { return os.Remove(name) }
func (systemFiles) MkdirAll(dir string) error             { return os.MkdirAll(dir, 0o700) }
func (systemFiles) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

func (systemFiles) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (systemFiles) SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (systemFiles) Free(dir string) (free, total uint64, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return s.Bavail * uint64(s.Bsize), s.Blocks * uint64(s.Bsize), nil
}

func (systemFiles) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Clean(name), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if err != unix.EWOULDBLOCK {
			return nil, &fs.PathError{Op: "flock", Path: name, Err: err}
		}
		buf := make([]byte, 32)
		n, _ := f.ReadAt(buf, 0)
		pid, _ := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
		return nil, &LockedError{name, pid}
	}
	// The content is only told to others; a full disk is no reason not to start.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	return f, nil
}

// Op is one operation that is about to happen.
type Op struct {
	Name string // "sync"
	Path string
	// Count is how often this operation has been asked for, this one included;
	// Index counts all operations.
	Count, Index int
}
