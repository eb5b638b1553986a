package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An unpacker turns one layer's tar into a directory in overlayfs' form.
//
// Nothing a tar says reaches outside the root: parents are opened with openat2
// and RESOLVE_IN_ROOT, so that a symlink leads where it would lead inside the
// container, and the last element is made or removed with *at calls that never
// follow it. Names that climb out with ".." are refused; a leading "/" is not.
//
// Whiteouts (OCI image spec, layer.md): ".wh.name" hides name of lower layers,
// never of this one, whichever comes first in the tar; ".wh..wh..opq" hides all
// of the lower layers' entries in its directory.
type unpacker struct {
	root       *os.File
	maxBytes   int64
	maxEntries int64

	bytes, inodes int64 // as on disk
	logical       int64 // with the holes of sparse files
	entries       int64
	buf           []byte

	parentPath string // the last parent directory used
	parent     *os.File

	whiteouts map[string]bool     // paths that are whiteout nodes now
	implicit  map[string]bool     // directories made because a tar entry lies in them
	times     map[string][2]int64 // directories' times (ns), set when nothing changes them any more
	links     []hardLink          // whose target is not in this layer so far
	hideAll   bool                // the root itself is opaque
}

type hardLink struct{ name, target string }

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"
	paxXattr       = "SCHILY.xattr."
	maxNameBytes   = 4096
)

func newUnpacker(dir string, maxBytes, maxEntries int64) (*unpacker, error) {
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	u := &unpacker{
		root: root, maxBytes: maxBytes, maxEntries: maxEntries,
		inodes: 1, bytes: blockBytes, buf: make([]byte, 256<<10),
		whiteouts: map[string]bool{}, implicit: map[string]bool{".": true}, times: map[string][2]int64{},
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		root.Close()
		return nil, err
	}
	return u, nil
}

func (u *unpacker) close() {
	u.forget()
	u.root.Close()
}

const blockBytes = 4096

// unpack applies every entry of the tar.
func (u *unpacker) unpack(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if u.entries++; u.entries > u.maxEntries {
			return fmt.Errorf("the layer has more than %d entries", u.maxEntries)
		}
		if err := u.entry(hdr, tr); err != nil {
			return fmt.Errorf("entry %q: %w", hdr.Name, err)
		}
	}
}

var errClimbs = errors.New("the name climbs out of the root")

// inside turns a tar's name into a clean path relative to the root.
func inside(name string) (string, error) {
	if len(name) > maxNameBytes || strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("the name is too long or has a NUL byte")
	}
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", errClimbs
	}
	return clean, nil
}

func (u *unpacker) entry(hdr *tar.Header, content io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := inside(hdr.Name)
	if err != nil {
		return err
	}
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	for part := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(part, whiteoutPrefix) {
			if strings.HasPrefix(part, whiteoutMeta) {
				return nil // inside one of aufs' own directories
			}
			return errors.New("a whiteout cannot have entries")
		}
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(dir, base)
	}
	if hdr.Uid < 0 || hdr.Gid < 0 || int64(hdr.Uid) > 1<<32-2 || int64(hdr.Gid) > 1<<32-2 {
		return fmt.Errorf("owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	if name == "." {
		if hdr.Typeflag != tar.TypeDir {
			return errors.New("the root must be a directory")
		}
		return u.describeDir(".", hdr)
	}
	if hdr.Typeflag == tar.TypeDir {
		return u.directory(name, hdr)
	}

	parent, err := u.parentDir(dir)
	if err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeLink {
		return u.link(name, hdr.Linkname)
	}
	if err := u.clear(parent, name); err != nil {
		return err
	}
	mode := uint32(hdr.Mode & 0o7777)
	at := int(parent.Fd())
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return u.regular(parent, name, hdr, content)
	case tar.TypeSymlink:
		if hdr.Linkname == "" || len(hdr.Linkname) >= maxNameBytes {
			return errors.New("the symlink's target is empty or too long")
		}
		err = unix.Symlinkat(hdr.Linkname, at, base)
	case tar.TypeChar, tar.TypeBlock:
		kind := uint32(unix.S_IFCHR)
		if hdr.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		if hdr.Devmajor < 0 || hdr.Devmajor > 1<<12-1 || hdr.Devminor < 0 || hdr.Devminor > 1<<20-1 {
			return fmt.Errorf("device number %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
		}
		err = unix.Mknodat(at, base, kind|mode, int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))))
	case tar.TypeFifo:
		err = unix.Mknodat(at, base, unix.S_IFIFO|mode, 0)
	default:
		return fmt.Errorf("tar entry type %q is not known", hdr.Typeflag)
	}
	if err != nil {
		return err
	}
	u.count(0)
	if err := unix.Fchownat(at, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeSymlink {
		// The node was made by this very call, so it is no symlink to follow.
		if err := unix.Fchmodat(at, base, mode, 0); err != nil {
			return err
		}
	}
	if err := setXattrs(procPath(parent, base), unix.Lsetxattr, hdr, hdr.Typeflag == tar.TypeSymlink); err != nil {
		return err
	}
	return unix.UtimesNanoAt(at, base, timesOf(hdr), unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) count(bytes int64) {
	u.inodes++
	u.bytes += (bytes + blockBytes - 1) / blockBytes * blockBytes
}

// whiteout hides what lower layers have.
func (u *unpacker) whiteout(dir, base string) error {
	if base == whiteoutOpaque {
		f, err := u.parentDir(dir)
		if err != nil {
			return err
		}
		if dir == "." {
			u.hideAll = true // overlayfs looks for the mark everywhere but here
			return nil
		}
		return makeOpaque(f)
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil // aufs' own records
	}
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return errors.New("the whiteout names nothing")
	}
	parent, err := u.parentDir(dir)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstatat(int(parent.Fd()), hidden, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		// This layer has a directory of that name; only what is below it hides.
		d, err := openDirAt(parent, hidden)
		if err != nil {
			return err
		}
		defer d.Close()
		return makeOpaque(d)
	case err == nil:
		return nil // this layer's own file hides the lower one already
	case !errors.Is(err, unix.ENOENT):
		return err
	}
	if err := mkWhiteout(parent, hidden); err != nil {
		return err
	}
	u.whiteouts[path.Join(dir, hidden)] = true
	u.inodes++
	return nil
}

func mkWhiteout(parent *os.File, name string) error {
	if err := unix.Mknodat(int(parent.Fd()), name, unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("make whiteout: %w", err)
	}
	return nil
}

func makeOpaque(dir *os.File) error {
	if err := unix.Setxattr(procPath(dir, ""), opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("mark directory opaque: %w; the store needs root and a file system with trusted attributes", err)
	}
	return nil
}

// directory makes or re-describes a directory.
func (u *unpacker) directory(name string, hdr *tar.Header) error {
	dir, base := path.Split(name)
	parent, err := u.parentDir(path.Clean(dir))
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstatat(int(parent.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		hidden := u.whiteouts[name]
		if err == nil {
			if err := u.clear(parent, name); err != nil {
				return err
			}
		}
		if err := u.mkdir(parent, name, hidden); err != nil {
			return err
		}
	}
	delete(u.implicit, name)
	return u.describeDir(name, hdr)
}

// mkdir makes a directory; one that takes a whiteout's place must go on hiding
// what the whiteout hid.
func (u *unpacker) mkdir(parent *os.File, name string, opaque bool) error {
	base := path.Base(name)
	if err := unix.Mkdirat(int(parent.Fd()), base, 0o755); err != nil {
		return err
	}
	u.count(blockBytes)
	d, err := openDirAt(parent, base)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Chmod(0o755); err != nil { // whatever the umask
		return err
	}
	if opaque {
		return makeOpaque(d)
	}
	return nil
}

func (u *unpacker) describeDir(name string, hdr *tar.Header) error {
	var d *os.File
	var err error
	if name == "." {
		d, err = u.open(".", unix.O_RDONLY|unix.O_DIRECTORY)
	} else {
		var parent *os.File
		if parent, err = u.parentDir(path.Dir(name)); err == nil {
			d, err = openDirAt(parent, path.Base(name))
		}
	}
	if err != nil {
		return err
	}
	defer d.Close()
	delete(u.implicit, name)
	fd := int(d.Fd())
	if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(hdr.Mode&0o7777)); err != nil {
		return err
	}
	ts := timesOf(hdr)
	u.times[name] = [2]int64{ts[0].Nano(), ts[1].Nano()}
	return setXattrs(procPath(d, ""), unix.Setxattr, hdr, false)
}

// regular writes a file. Owner, then mode, then capabilities: each clears the
// next when set later.
func (u *unpacker) regular(parent *os.File, name string, hdr *tar.Header, content io.Reader) (err error) {
	if hdr.Size > u.maxBytes-u.logical {
		return fmt.Errorf("the unpacked layer is larger than %d bytes", u.maxBytes)
	}
	u.logical += hdr.Size
	fd, err := unix.Openat(int(parent.Fd()), path.Base(name), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	var written int64
	if sparse(hdr) {
		written, err = u.copySparse(f, content)
	} else {
		written, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{content}, u.buf)
	}
	if err != nil {
		return err
	}
	u.count(written)
	if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(hdr.Mode&0o7777)); err != nil {
		return err
	}
	if err := setXattrs(procPath(f, ""), unix.Setxattr, hdr, false); err != nil {
		return err
	}
	return unix.UtimesNanoAt(int(parent.Fd()), path.Base(name), timesOf(hdr), unix.AT_SYMLINK_NOFOLLOW)
}

func sparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// copySparse leaves holes where content is zero for a whole block, and returns
// the bytes that take space.
func (u *unpacker) copySparse(f *os.File, content io.Reader) (written int64, err error) {
	var size int64
	for {
		n, err := io.ReadFull(content, u.buf[:64<<10])
		for rest := u.buf[:n]; len(rest) > 0; {
			block := rest[:min(blockBytes, len(rest))]
			rest = rest[len(block):]
			if !allZero(block) {
				if _, err := f.WriteAt(block, size); err != nil {
					return written, err
				}
				written += int64(len(block))
			}
			size += int64(len(block))
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return written, f.Truncate(size)
		}
		if err != nil {
			return written, err
		}
	}
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// link makes a hard link, now if its target is there, else in finish.
func (u *unpacker) link(name, linkname string) error {
	target, err := inside(linkname)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", linkname, err)
	}
	if target == name {
		return nil
	}
	done, err := u.linkNow(name, target)
	if err == nil && !done {
		u.links = append(u.links, hardLink{name, target})
	}
	return err
}

func (u *unpacker) linkNow(name, target string) (done bool, err error) {
	from, err := u.open(path.Dir(target), unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer from.Close()
	var st unix.Stat_t
	err = unix.Fstatat(int(from.Fd()), path.Base(target), &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return false, fmt.Errorf("hard link to %q: it is a directory", target)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		return false, fmt.Errorf("hard link to %q: this layer removes it", target)
	}
	parent, err := u.parentDir(path.Dir(name))
	if err != nil {
		return false, err
	}
	var old unix.Stat_t
	if unix.Fstatat(int(parent.Fd()), path.Base(name), &old, unix.AT_SYMLINK_NOFOLLOW) == nil && old.Ino == st.Ino && old.Dev == st.Dev {
		return true, nil
	}
	if err := u.clear(parent, name); err != nil {
		return false, err
	}
	// Without AT_SYMLINK_FOLLOW a symlink itself is linked.
	if err := unix.Linkat(int(from.Fd()), path.Base(target), int(parent.Fd()), path.Base(name), 0); err != nil {
		return false, fmt.Errorf("hard link to %q: %w", target, err)
	}
	return true, nil
}

// clear removes what an entry of this layer is about to replace.
func (u *unpacker) clear(parent *os.File, name string) error {
	base := path.Base(name)
	err := unix.Unlinkat(int(parent.Fd()), base, 0)
	delete(u.whiteouts, name)
	switch {
	case err == nil:
		u.inodes--
		return nil
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EISDIR):
		// Directories below may be remembered under other paths: open anew.
		full := procPath(parent, base)
		if err := os.RemoveAll(full); err != nil {
			return err
		}
		below := name + "/"
		for _, m := range []map[string]bool{u.whiteouts, u.implicit} {
			for p := range m {
				if p == name || strings.HasPrefix(p, below) {
					delete(m, p)
				}
			}
		}
		if u.parent != nil && u.parent != parent {
			u.forget()
		}
		return nil
	}
	return err
}

func (u *unpacker) forget() {
	if u.parent != nil {
		u.parent.Close()
		u.parent, u.parentPath = nil, ""
	}
}

// open opens a path below the root; symlinks lead where they would with the
// root as "/".
func (u *unpacker) open(name string, flags uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(int(u.root.Fd()), name, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case (errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN)) && try < 100:
			// EAGAIN: a rename somewhere on the machine raced with "..".
		case errors.Is(err, unix.ENOSYS):
			return nil, fmt.Errorf("openat2: %w; Linux 5.6 or newer is needed", err)
		default:
			return nil, err
		}
	}
}

func openDirAt(parent *os.File, base string) (*os.File, error) {
	fd, err := unix.Openat(int(parent.Fd()), base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), base), nil
}

// parentDir opens the directory an entry lies in, making it if needed. The
// unpacker keeps it open for the next entry; the caller does not close it.
func (u *unpacker) parentDir(dir string) (*os.File, error) {
	if u.parent != nil && u.parentPath == dir {
		return u.parent, nil
	}
	f, err := u.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		if err = u.makeDirs(dir, 0); err == nil {
			f, err = u.open(dir, unix.O_PATH|unix.O_DIRECTORY)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("directory %q: %w", dir, err)
	}
	u.forget()
	u.parent, u.parentPath = f, dir
	return f, nil
}

// makeDirs makes a directory and those above it. Where the path leads through a
// symlink that points nowhere yet, what it points to is made.
func (u *unpacker) makeDirs(dir string, depth int) error {
	if depth > 40 {
		return unix.ELOOP
	}
	if dir == "." || dir == "/" || dir == "" {
		return nil
	}
	above := path.Dir(dir)
	parent, err := u.open(above, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		if err := u.makeDirs(above, depth+1); err != nil {
			return err
		}
		parent, err = u.open(above, unix.O_PATH|unix.O_DIRECTORY)
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	base := path.Base(dir)
	var st unix.Stat_t
	err = unix.Fstatat(int(parent.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	kind := st.Mode & unix.S_IFMT
	switch {
	case err != nil && !errors.Is(err, unix.ENOENT):
		return err
	case err == nil && kind == unix.S_IFDIR:
		return nil
	case err == nil && kind == unix.S_IFLNK:
		buf := make([]byte, maxNameBytes)
		n, err := unix.Readlinkat(int(parent.Fd()), base, buf)
		if err != nil {
			return err
		}
		to := string(buf[:n])
		if !path.IsAbs(to) {
			to = path.Join("/", above, to)
		}
		return u.makeDirs(strings.TrimPrefix(path.Clean(to), "/"), depth+1)
	case err == nil && !u.whiteouts[dir]:
		return unix.ENOTDIR
	}
	hidden := u.whiteouts[dir]
	if hidden {
		if err := u.clear(parent, dir); err != nil {
			return err
		}
	}
	if err := u.mkdir(parent, dir, hidden); err != nil {
		return err
	}
	if !hidden {
		u.implicit[dir] = true
	}
	return nil
}

// finish completes the layer with what the layers below it know, the topmost
// first: the look of directories that the tar has entries in but does not
// describe, and hard links whose target is below.
func (u *unpacker) finish(lowers []string) error {
	if u.hideAll {
		if err := u.hide(lowers); err != nil {
			return fmt.Errorf("hide the layers below: %w", err)
		}
		lowers = nil
	}
	for _, l := range u.links {
		if err := u.lateLink(l, lowers); err != nil {
			return fmt.Errorf("entry %q: %w", l.name, err)
		}
	}
	dirs := make([]string, 0, len(u.implicit))
	for dir := range u.implicit {
		dirs = append(dirs, dir)
	}
	slices.Sort(dirs)
	for _, dir := range dirs {
		if err := u.inherit(dir, lowers); err != nil {
			return fmt.Errorf("directory %q: %w", dir, err)
		}
	}
	u.forget()
	for dir, ns := range u.times {
		d, err := u.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue // replaced later in the tar
		}
		if err != nil {
			return fmt.Errorf("directory %q: %w", dir, err)
		}
		err = unix.UtimesNanoAt(unix.AT_FDCWD, procPath(d, ""), []unix.Timespec{unix.NsecToTimespec(ns[0]), unix.NsecToTimespec(ns[1])}, 0)
		d.Close()
		if err != nil {
			return fmt.Errorf("directory %q: %w", dir, err)
		}
	}
	return nil
}

// hide does for the root what an opaque mark does for other directories.
func (u *unpacker) hide(lowers []string) error {
	for _, lower := range lowers {
		entries, err := os.ReadDir(lower)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := u.whiteout(".", whiteoutPrefix+e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// inherit gives a directory the look it has in the layers below.
func (u *unpacker) inherit(dir string, lowers []string) error {
	src, st, err := lookup(lowers, dir)
	if err != nil || src == "" || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	d, err := u.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Fchown(int(d.Fd()), int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(int(d.Fd()), st.Mode&0o7777); err != nil {
		return err
	}
	u.times[dir] = [2]int64{st.Atim.Nano(), st.Mtim.Nano()}
	return copyXattrs(src, procPath(d, ""))
}

// lateLink links to a target that came later in the tar, or that is a file of a
// lower layer: that one is copied up first, so that both names are one file.
func (u *unpacker) lateLink(l hardLink, lowers []string) error {
	done, err := u.linkNow(l.name, l.target)
	if done || err != nil {
		return err
	}
	src, st, err := lookup(lowers, l.target)
	if err != nil {
		return err
	}
	if src == "" {
		return fmt.Errorf("hard link to %q: it is in no layer", l.target)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("hard link to %q: it is not a regular file of the layers below", l.target)
	}
	parent, err := u.parentDir(path.Dir(l.target))
	if err != nil {
		return err
	}
	if err := u.copyUp(parent, path.Base(l.target), src, st); err != nil {
		return fmt.Errorf("hard link to %q: copy it from the layer below: %w", l.target, err)
	}
	done, err = u.linkNow(l.name, l.target)
	if err == nil && !done {
		err = unix.ENOENT
	}
	return err
}

func (u *unpacker) copyUp(parent *os.File, base, src string, st unix.Stat_t) (err error) {
	in, err := os.OpenFile(src, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	if st.Size > u.maxBytes-u.logical {
		return fmt.Errorf("the unpacked layer is larger than %d bytes", u.maxBytes)
	}
	u.logical += st.Size
	fd, err := unix.Openat(int(parent.Fd()), base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), base)
	defer func() {
		if e := out.Close(); err == nil {
			err = e
		}
	}()
	n, err := io.Copy(out, in)
	if err != nil {
		return err
	}
	u.count(n)
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyXattrs(src, procPath(out, "")); err != nil {
		return err
	}
	return unix.UtimesNanoAt(int(parent.Fd()), base, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// lookup finds name in unpacked layers, the topmost first, as overlayfs would:
// whiteouts and opaque directories end the search. Symlinks are not followed.
func lookup(lowers []string, name string) (where string, st unix.Stat_t, err error) {
	for _, lower := range lowers {
		at, opaque := lower, false
		parts := strings.Split(name, "/")
		if name == "." {
			parts = []string{"."}
		}
		for i, part := range parts {
			at += "/" + part
			if err := unix.Lstat(at, &st); err != nil {
				if errors.Is(err, unix.ENOENT) {
					break
				}
				return "", st, err
			}
			kind := st.Mode & unix.S_IFMT
			if kind == unix.S_IFCHR && st.Rdev == 0 {
				return "", st, nil
			}
			if i == len(parts)-1 {
				return at, st, nil
			}
			if kind != unix.S_IFDIR {
				return "", st, nil
			}
			var value [1]byte
			if n, err := unix.Lgetxattr(at, opaqueXattr, value[:]); err == nil && n == 1 && value[0] == 'y' {
				opaque = true
			}
		}
		if opaque {
			return "", st, nil
		}
	}
	return "", st, nil
}

func procPath(dir *os.File, base string) string {
	p := "/proc/self/fd/" + strconv.Itoa(int(dir.Fd()))
	if base != "" {
		p += "/" + base
	}
	return p
}

func timesOf(hdr *tar.Header) []unix.Timespec {
	m := hdr.ModTime
	if m.IsZero() {
		m = time.Unix(0, 0)
	}
	a := hdr.AccessTime
	if a.IsZero() {
		a = m
	}
	return []unix.Timespec{{Sec: a.Unix(), Nsec: int64(a.Nanosecond())}, {Sec: m.Unix(), Nsec: int64(m.Nanosecond())}}
}
