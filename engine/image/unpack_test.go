package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// unpackAll unpacks tars as the layers of one image and returns their
// directories, the lowest first.
func unpackAll(t testing.TB, tars ...[]byte) ([]string, error) {
	t.Helper()
	base := t.TempDir()
	var dirs, lowers []string
	for i, raw := range tars {
		dir := filepath.Join(base, string(rune('a'+i)))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unpackOne(dir, raw, lowers); err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
		lowers = append([]string{dir}, lowers...)
	}
	return dirs, nil
}

func unpackOne(dir string, raw []byte, lowers []string) error {
	u, err := newUnpacker(dir, 1<<20, 1000)
	if err != nil {
		return err
	}
	defer u.close()
	if err := u.unpack(context.Background(), bytes.NewReader(raw)); err != nil {
		return err
	}
	return u.finish(lowers)
}

func mustUnpack(t testing.TB, tars ...[]byte) []string {
	t.Helper()
	dirs, err := unpackAll(t, tars...)
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

func stat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

func isWhiteout(t testing.TB, path string) bool {
	st := stat(t, path)
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func isOpaque(path string) bool {
	var v [1]byte
	n, err := unix.Lgetxattr(path, opaqueXattr, v[:])
	return err == nil && n == 1 && v[0] == 'y'
}

// overlay mounts layers (lowest first) and returns the merged directory.
func overlay(t testing.TB, dirs []string) string {
	t.Helper()
	at := t.TempDir()
	top := t.TempDir()
	lowers := []string{top}
	for i := len(dirs) - 1; i >= 0; i-- {
		lowers = append(lowers, dirs[i])
	}
	if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lowers, ":")); err != nil {
		t.Fatalf("mount overlay: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at
}

func listing(t testing.TB, root string) string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		if p != root {
			names = append(names, strings.TrimPrefix(p, root+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}

func TestUnpackKeepsEverythingAFileHas(t *testing.T) {
	mtime := time.Unix(1_234_567_890, 987_000_000)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	dir := mustUnpack(t, tarOf(t,
		entry{name: "./", kind: tar.TypeDir, mode: 0o711, uid: 7},
		entry{name: "bin/", kind: tar.TypeDir, mode: 0o1777, uid: 12, mtime: mtime, records: map[string]string{"comment": "x"}},
		entry{name: "bin/su", body: "program", mode: 0o6755, uid: 33, mtime: mtime, records: map[string]string{
			"SCHILY.xattr.security.capability":       capability,
			"SCHILY.xattr.user.note":                 "hello",
			"SCHILY.xattr.trusted.overlay.redirect":  "/etc",
			"SCHILY.xattr.user.overlay.opaque":       "y",
			"SCHILY.xattr.security.selinux":          "label",
			"SCHILY.xattr.trusted.overlay.metacopy":  "",
			"SCHILY.xattr.system.posix_acl_nonsense": "x",
		}},
		entry{name: "bin/sh", kind: tar.TypeLink, link: "/bin/su"},
		entry{name: "dev/null", kind: tar.TypeChar, mode: 0o666, dev: [2]int64{1, 3}},
		entry{name: "dev/sda", kind: tar.TypeBlock, mode: 0o660, dev: [2]int64{8, 0}},
		entry{name: "run/pipe", kind: tar.TypeFifo, mode: 0o600, uid: 5},
		entry{name: "lib", kind: tar.TypeSymlink, link: "/usr/lib", uid: 9, mtime: mtime, records: map[string]string{"comment": "x"}},
		entry{name: "lib/x", body: "through the symlink"},
	))[0]

	if st := stat(t, dir); st.Mode&0o7777 != 0o711 || st.Uid != 7 {
		t.Errorf("root is %o of %d", st.Mode, st.Uid)
	}
	if st := stat(t, dir+"/bin"); st.Mode&0o7777 != 0o1777 || st.Uid != 12 || st.Mtim.Nano() != mtime.UnixNano() {
		t.Errorf("bin is %o of %d at %d", st.Mode, st.Uid, st.Mtim.Nano())
	}
	su := stat(t, dir+"/bin/su")
	if su.Mode&0o7777 != 0o6755 || su.Uid != 33 || su.Gid != 33 || su.Mtim.Nano() != mtime.UnixNano() {
		t.Errorf("su is %o of %d:%d at %d", su.Mode, su.Uid, su.Gid, su.Mtim.Nano())
	}
	if sh := stat(t, dir+"/bin/sh"); sh.Ino != su.Ino || sh.Nlink != 2 {
		t.Error("sh is not the same file as su")
	}
	buf := make([]byte, 256)
	if n, err := unix.Lgetxattr(dir+"/bin/su", "security.capability", buf); err != nil || string(buf[:n]) != capability {
		t.Errorf("capability: %v", err)
	}
	n, err := unix.Llistxattr(dir+"/bin/su", buf)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"overlay", "selinux\x00label"} {
		if strings.Contains(string(buf[:n]), bad) {
			t.Errorf("attribute %q was kept: %q", bad, buf[:n])
		}
	}
	if st := stat(t, dir+"/dev/null"); st.Rdev != unix.Mkdev(1, 3) || st.Mode != unix.S_IFCHR|0o666 {
		t.Errorf("null is %o %d", st.Mode, st.Rdev)
	}
	if st := stat(t, dir+"/dev/sda"); st.Rdev != unix.Mkdev(8, 0) || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		t.Errorf("sda is %o %d", st.Mode, st.Rdev)
	}
	if st := stat(t, dir+"/run/pipe"); st.Mode != unix.S_IFIFO|0o600 || st.Uid != 5 {
		t.Errorf("pipe is %o", st.Mode)
	}
	if st := stat(t, dir+"/lib"); st.Mode&unix.S_IFMT != unix.S_IFLNK || st.Uid != 9 || st.Mtim.Nano() != mtime.UnixNano() {
		t.Errorf("lib is %o of %d", st.Mode, st.Uid)
	}
	if raw, err := os.ReadFile(dir + "/usr/lib/x"); err != nil || string(raw) != "through the symlink" {
		t.Errorf("usr/lib/x: %q %v", raw, err)
	}
}

func TestWhiteouts(t *testing.T) {
	base := tarOf(t,
		entry{name: "a/", kind: tar.TypeDir}, entry{name: "a/gone", body: "1"}, entry{name: "a/stays", body: "1"},
		entry{name: "o/", kind: tar.TypeDir}, entry{name: "o/old", body: "1"},
		entry{name: "d/", kind: tar.TypeDir}, entry{name: "d/old", body: "1"},
		entry{name: "e/", kind: tar.TypeDir}, entry{name: "e/old", body: "1"},
		entry{name: "f/", kind: tar.TypeDir}, entry{name: "f/old", body: "1"},
		entry{name: "g", body: "old"},
	)
	top := tarOf(t,
		entry{name: "a/.wh.gone"},
		entry{name: "o/", kind: tar.TypeDir}, entry{name: "o/new", body: "2"}, entry{name: "o/.wh..wh..opq"},
		entry{name: ".wh.d"}, entry{name: "d/", kind: tar.TypeDir}, entry{name: "d/new", body: "2"}, // directory replaced
		entry{name: "e/", kind: tar.TypeDir}, entry{name: "e/new", body: "2"}, entry{name: ".wh.e"}, // the other way round
		entry{name: ".wh.f"}, entry{name: "f/new", body: "2"}, // directory never named
		entry{name: ".wh.g"}, entry{name: "g", body: "new"},
		entry{name: ".wh..wh.plnk", kind: tar.TypeDir}, entry{name: ".wh..wh.plnk/1.2", body: "aufs"},
	)
	dirs := mustUnpack(t, base, top)
	if !isWhiteout(t, dirs[1]+"/a/gone") {
		t.Error("a/gone is no whiteout")
	}
	for _, d := range []string{"o", "d", "e", "f"} {
		if !isOpaque(dirs[1] + "/" + d) {
			t.Errorf("%s is not opaque", d)
		}
	}
	merged := overlay(t, dirs)
	if got, want := listing(t, merged), "a a/stays d d/new e e/new f f/new g o o/new"; got != want {
		t.Errorf("merged: %s\n   want: %s", got, want)
	}
	if raw, _ := os.ReadFile(merged + "/g"); string(raw) != "new" {
		t.Errorf("g is %q", raw)
	}
}

func TestOpaqueRoot(t *testing.T) {
	dirs := mustUnpack(t,
		tarOf(t, entry{name: "x/old", body: "1"}, entry{name: "y", body: "1"}),
		tarOf(t, entry{name: ".wh..wh..opq"}, entry{name: "x/new", body: "2"}))
	if got := listing(t, overlay(t, dirs)); got != "x x/new" {
		t.Errorf("merged: %s", got)
	}
}

func TestDirectoriesWithoutAnEntryLookAsBelow(t *testing.T) {
	dirs := mustUnpack(t,
		tarOf(t, entry{name: "./", kind: tar.TypeDir, mode: 0o700, uid: 3}, entry{name: "tmp/", kind: tar.TypeDir, mode: 0o1777},
			entry{name: "home/u/", kind: tar.TypeDir, mode: 0o750, uid: 1000, records: map[string]string{"SCHILY.xattr.user.k": "v"}}),
		tarOf(t, entry{name: "unrelated", body: "x"}),
		tarOf(t, entry{name: "tmp/f", body: "x"}, entry{name: "home/u/.profile", body: "x"}, entry{name: "new/f", body: "x"}))
	top := dirs[2]
	for _, want := range []struct {
		path string
		mode uint32
		uid  uint32
	}{{top, 0o700, 3}, {top + "/tmp", 0o1777, 0}, {top + "/home/u", 0o750, 1000}, {top + "/new", 0o755, 0}} {
		if st := stat(t, want.path); st.Mode&0o7777 != want.mode || st.Uid != want.uid {
			t.Errorf("%s is %o of %d, want %o of %d", want.path, st.Mode&0o7777, st.Uid, want.mode, want.uid)
		}
	}
	var v [8]byte
	if n, err := unix.Lgetxattr(top+"/home/u", "user.k", v[:]); err != nil || string(v[:n]) != "v" {
		t.Errorf("attribute: %q %v", v[:n], err)
	}
}

func TestHardLinks(t *testing.T) {
	dirs := mustUnpack(t,
		tarOf(t, entry{name: "bin/busybox", body: "program", mode: 0o4755, uid: 2}),
		tarOf(t,
			entry{name: "bin/early", kind: tar.TypeLink, link: "bin/late"}, entry{name: "bin/late", body: "late"},
			entry{name: "bin/ls", kind: tar.TypeLink, link: "bin/busybox"}))
	top := dirs[1]
	if a, b := stat(t, top+"/bin/early"), stat(t, top+"/bin/late"); a.Ino != b.Ino {
		t.Error("a link before its target is not the same file")
	}
	a, b := stat(t, top+"/bin/ls"), stat(t, top+"/bin/busybox")
	if a.Ino != b.Ino || a.Mode&0o7777 != 0o4755 || a.Uid != 2 {
		t.Errorf("link to the layer below: %d %d, %o of %d", a.Ino, b.Ino, a.Mode, a.Uid)
	}
	for _, c := range []struct {
		below, link entry
		want        string
	}{
		{entry{name: "other", body: "x"}, entry{name: "l", kind: tar.TypeLink, link: "none"}, "in no layer"},
		{entry{name: "d/", kind: tar.TypeDir}, entry{name: "l", kind: tar.TypeLink, link: "d"}, "not a regular file"},
	} {
		_, err := unpackAll(t, tarOf(t, c.below), tarOf(t, c.link))
		wantError(t, err, c.want)
	}
	_, err := unpackAll(t, tarOf(t, entry{name: "gone", body: "x"}), tarOf(t, entry{name: ".wh.gone"}),
		tarOf(t, entry{name: "l", kind: tar.TypeLink, link: "gone"}))
	wantError(t, err, "in no layer")
}

func TestReplacements(t *testing.T) {
	dir := mustUnpack(t, tarOf(t,
		entry{name: "d/x/y", body: "1"}, entry{name: "d", body: "now a file"},
		entry{name: "f", body: "1"}, entry{name: "f/", kind: tar.TypeDir}, entry{name: "f/in", body: "2"},
		entry{name: "s", kind: tar.TypeSymlink, link: "f"}, entry{name: "s/", kind: tar.TypeDir}, entry{name: "s/own", body: "3"},
		entry{name: "w", body: "first"}, entry{name: "w", body: "second"},
	))[0]
	if got := listing(t, dir); got != "d f f/in s s/own w" {
		t.Errorf("listing: %s", got)
	}
	if raw, _ := os.ReadFile(dir + "/w"); string(raw) != "second" {
		t.Errorf("w: %q", raw)
	}
}

// A malicious layer must change nothing outside its directory, whether it is
// refused or led back inside.
func TestEscapes(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "outside")
	if err := os.MkdirAll(secret, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(secret+"/file", []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	sym := func(name, to string) entry { return entry{name: name, kind: tar.TypeSymlink, link: to} }
	cases := map[string]struct {
		entries []entry
		refused string
	}{
		"dot dot":              {[]entry{{name: "../outside/file", body: "x"}}, "climbs"},
		"dot dot inside":       {[]entry{{name: "a/../../outside/file", body: "x"}}, "climbs"},
		"absolute":             {[]entry{{name: secret + "/file", body: "x"}}, ""},
		"symlink parent":       {[]entry{sym("l", secret), {name: "l/file", body: "x"}}, ""},
		"relative parent":      {[]entry{sym("l", "../../../../../../../.."+secret), {name: "l/file", body: "x"}}, ""},
		"symlink chain":        {[]entry{sym("a", "/"), sym("b", "a/.."), sym("c", "b"+secret), {name: "c/file", body: "x"}}, ""},
		"file over symlink":    {[]entry{sym("l", secret+"/file"), {name: "l", body: "x"}}, ""},
		"dir over symlink":     {[]entry{sym("l", secret), {name: "l/", kind: tar.TypeDir, mode: 0o777, uid: 9}}, ""},
		"hard link out":        {[]entry{{name: "h", kind: tar.TypeLink, link: secret + "/file"}}, "in no layer"},
		"hard link climbs":     {[]entry{{name: "h", kind: tar.TypeLink, link: "../outside/file"}}, "climbs"},
		"hard link by symlink": {[]entry{sym("l", secret), {name: "h", kind: tar.TypeLink, link: "l/file"}}, "in no layer"},
		"write by hard link":   {[]entry{sym("l", secret+"/file"), {name: "h", kind: tar.TypeLink, link: "l"}, {name: "h", body: "x"}}, ""},
		"whiteout of dot dot":  {[]entry{{name: ".wh..."}}, "names nothing"},
		"whiteout of parent":   {[]entry{{name: "a/", kind: tar.TypeDir}, {name: "a/.wh..."}}, "names nothing"},
		"whiteout of dot":      {[]entry{{name: ".wh.."}}, "names nothing"},
		"whiteout of nothing":  {[]entry{{name: ".wh."}}, "names nothing"},
		"whiteout by symlink":  {[]entry{sym("l", secret), {name: "l/.wh.file"}}, ""},
		"opaque by symlink":    {[]entry{sym("l", secret), {name: "l/.wh..wh..opq"}}, ""},
		"in a whiteout":        {[]entry{{name: ".wh.x/y", body: "x"}}, "cannot have entries"},
		"symlink loop":         {[]entry{sym("a", "b"), sym("b", "a"), {name: "a/f", body: "x"}}, "too many levels"},
		"file as directory":    {[]entry{{name: "f", body: "x"}, {name: "f/x", body: "x"}}, "not a directory"},
		"root as file":         {[]entry{{name: ".", body: "x"}}, "root must be"},
		"proc link":            {[]entry{sym("l", "/proc/self/root"+secret), {name: "l/file", body: "x"}}, ""},
		"bad owner":            {[]entry{{name: "f", uid: 1 << 32}}, "out of range"},
		"device number":        {[]entry{{name: "d", kind: tar.TypeChar, dev: [2]int64{1 << 13, 1}}}, "out of range"},
		"too large":            {[]entry{{name: "f", body: strings.Repeat("x", 1<<20+1)}}, "larger than"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := unpackAll(t, tarOf(t, c.entries...))
			if c.refused != "" {
				wantError(t, err, c.refused)
			} else if err != nil {
				t.Errorf("refused: %v", err)
			}
			if raw, err := os.ReadFile(secret + "/file"); err != nil || string(raw) != "untouched" {
				t.Fatalf("the file outside is %q now: %v", raw, err)
			}
			if got := listing(t, secret); got != "file" {
				t.Fatalf("outside there is now: %s", got)
			}
			if st := stat(t, secret); st.Mode&0o7777 != 0o755 || st.Uid != 0 || isOpaque(secret) {
				t.Fatal("the directory outside was changed")
			}
		})
	}
}

func TestTooManyEntries(t *testing.T) {
	var entries []entry
	for range 1001 {
		entries = append(entries, entry{name: "f"})
	}
	_, err := unpackAll(t, tarOf(t, entries...))
	wantError(t, err, "more than 1000 entries")
}

// GNU tar writes the sparse formats; Go's writer cannot.
func TestSparseFiles(t *testing.T) {
	for _, format := range [][]string{{"--format=gnu"}, {"--format=posix", "--sparse-version=0.1"}, {"--format=posix", "--sparse-version=1.0"}} {
		src := t.TempDir()
		f, err := os.Create(src + "/image")
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt([]byte("start"), 0)
		f.WriteAt([]byte("end"), 600<<10)
		f.Close()
		raw, err := exec.Command("tar", append(format, "-S", "-C", src, "-cf", "-", "image")...).Output()
		if err != nil {
			t.Fatalf("tar: %v", err)
		}
		if len(raw) > 100<<10 {
			t.Fatalf("%v: the tar is not sparse", format)
		}
		dir := mustUnpack(t, raw)[0]
		got, _ := os.ReadFile(dir + "/image")
		want, _ := os.ReadFile(src + "/image")
		if !bytes.Equal(got, want) {
			t.Errorf("%v: content differs", format)
		}
		if st := stat(t, dir+"/image"); st.Blocks*512 > 64<<10 {
			t.Errorf("%v: %d bytes on disk", format, st.Blocks*512)
		}
	}
}

func TestLookupEndsAtWhiteouts(t *testing.T) {
	dirs := mustUnpack(t,
		tarOf(t, entry{name: "a/f", body: "1"}, entry{name: "b/f", body: "1"}),
		tarOf(t, entry{name: ".wh.a"}, entry{name: "b/.wh..wh..opq"}))
	for _, name := range []string{"a/f", "b/f", "c"} {
		if where, _, err := lookup([]string{dirs[1], dirs[0]}, name); err != nil || where != "" {
			t.Errorf("%s found at %q: %v", name, where, err)
		}
	}
	if where, _, err := lookup([]string{dirs[0]}, "a/f"); err != nil || where != dirs[0]+"/a/f" {
		t.Errorf("a/f: %q %v", where, err)
	}
}

func layerSeeds(t testing.TB) [][]byte {
	good := tarOf(t, entry{name: "a/b", body: "x"}, entry{name: "a/.wh.c"}, entry{name: "l", kind: tar.TypeSymlink, link: "../../x"},
		entry{name: "l/y", body: "z"}, entry{name: "h", kind: tar.TypeLink, link: "a/b"}, entry{name: "a/.wh..wh..opq"})
	cut := good[:len(good)-1500]
	noise := bytes.Clone(good)
	noise[700] ^= 0xff
	return [][]byte{good, cut, noise, nil, make([]byte, 1024), []byte("not a tar"), bytes.Repeat([]byte{0xff}, 2048)}
}

// checkLayer unpacks anything at all and looks whether it stayed inside.
func checkLayer(t testing.TB, raw []byte) {
	base, err := os.MkdirTemp("", "layer")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	if err := os.Mkdir(base+"/fs", 0o755); err != nil {
		t.Fatal(err)
	}
	err = unpackOne(base+"/fs", raw, nil)
	if errors.Is(err, unix.EBADF) {
		t.Fatalf("a descriptor was used after its end: %v", err)
	}
	entries, err := os.ReadDir(base)
	if err != nil || len(entries) != 1 {
		t.Fatalf("it left its directory: %v %v", entries, err)
	}
}

func TestLayerSeeds(t *testing.T) {
	for _, raw := range layerSeeds(t) {
		checkLayer(t, raw)
	}
}

func FuzzLayer(f *testing.F) {
	for _, raw := range layerSeeds(f) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) { checkLayer(t, raw) })
}
