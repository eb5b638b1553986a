package main

import (
	"archive/tar"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// layer collects members by path ("usr/bin/redis-server"); parents are made as
// needed. Contents stay where they are until the layer is written.
type layer struct {
	members map[string]*entry
}

type entry struct {
	hdr    tar.Header
	file   string // content: this file,
	offset int64  // from here on
}

func newLayer() *layer { return &layer{members: map[string]*entry{}} }

func clean(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }

func (l *layer) put(p string, e *entry) {
	e.hdr.Name = clean(p)
	e.hdr.Uname, e.hdr.Gname = "", ""
	e.hdr.ModTime, e.hdr.AccessTime, e.hdr.ChangeTime = time.Unix(0, 0), time.Time{}, time.Time{}
	e.hdr.Format = tar.FormatPAX
	for dir := path.Dir(e.hdr.Name); dir != "."; dir = path.Dir(dir) {
		if l.members[dir] == nil {
			l.members[dir] = &entry{hdr: tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}}
		}
	}
	l.members[e.hdr.Name] = e
}

func (l *layer) addDir(p string, a attr) {
	l.put(p, &entry{hdr: tar.Header{Typeflag: tar.TypeDir, Mode: a.mode, Uid: a.uid, Gid: a.gid}})
}

func (l *layer) addFile(source, p string, a attr) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("add %q: it is not a regular file", source)
	}
	l.put(p, &entry{hdr: tar.Header{Typeflag: tar.TypeReg, Mode: a.mode, Uid: a.uid, Gid: a.gid, Size: info.Size()}, file: source})
	return nil
}

func (l *layer) addLink(target, p string) error {
	t := l.members[clean(target)]
	if t == nil || t.hdr.Typeflag != tar.TypeReg {
		return fmt.Errorf("link %q: %q is not an added file", p, target)
	}
	l.put(p, &entry{hdr: tar.Header{Typeflag: tar.TypeLink, Linkname: t.hdr.Name, Mode: t.hdr.Mode, Uid: t.hdr.Uid, Gid: t.hdr.Gid}})
	return nil
}

// addTar takes a whole root file system but for what the patterns name: device
// files never, since the engine makes its own.
func (l *layer) addTar(file string, prunes []string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	tr := tar.NewReader(f)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return l.complete()
		}
		if err != nil {
			return fmt.Errorf("read %q: %w", file, err)
		}
		name := clean(hdr.Name)
		if name == "" || pruned(name, prunes) {
			continue
		}
		e := &entry{hdr: tar.Header{Typeflag: hdr.Typeflag, Mode: hdr.Mode & 0o7777, Uid: hdr.Uid, Gid: hdr.Gid, Size: hdr.Size, Linkname: hdr.Linkname}}
		for k, v := range hdr.PAXRecords {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				if e.hdr.PAXRecords == nil {
					e.hdr.PAXRecords = map[string]string{}
				}
				e.hdr.PAXRecords[k] = v
			}
		}
		switch hdr.Typeflag {
		case tar.TypeReg:
			e.file = file
			if e.offset, err = f.Seek(0, io.SeekCurrent); err != nil {
				return err
			}
		case tar.TypeLink:
			e.hdr.Linkname = clean(hdr.Linkname)
		case tar.TypeDir, tar.TypeSymlink:
		default:
			continue
		}
		l.put(name, e)
	}
}

func pruned(name string, prunes []string) bool {
	for _, p := range prunes {
		p = clean(p)
		for at := name; at != "."; at = path.Dir(at) {
			if ok, _ := path.Match(p, at); ok {
				return true
			}
		}
	}
	return false
}

// complete refuses hard links whose target was pruned, since the
// content is gone with it.
func (l *layer) complete() error {
	for name, e := range l.members {
		if e.hdr.Typeflag == tar.TypeLink && l.members[e.hdr.Linkname] == nil {
			return fmt.Errorf("%q is a hard link to %q, which is pruned; prune both or none", name, e.hdr.Linkname)
		}
	}
	return nil
}

// write makes the tar: sorted, hard links after everything else.
func (l *layer) write(w io.Writer) error {
	names := make([]string, 0, len(l.members))
	for name := range l.members {
		names = append(names, name)
	}
	late := func(n string) int {
		if l.members[n].hdr.Typeflag == tar.TypeLink {
			return 1
		}
		return 0
	}
	slices.SortFunc(names, func(a, b string) int {
		if c := late(a) - late(b); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	tw := tar.NewWriter(w)
	for _, name := range names {
		if err := l.members[name].write(tw); err != nil {
			return fmt.Errorf("layer member %q: %w", name, err)
		}
	}
	return tw.Close()
}

func (e *entry) write(tw *tar.Writer) error {
	hdr := e.hdr
	if hdr.Typeflag == tar.TypeDir {
		hdr.Name += "/"
	}
	if err := tw.WriteHeader(&hdr); err != nil || e.file == "" {
		return err
	}
	f, err := os.Open(e.file)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(tw, io.NewSectionReader(f, e.offset, hdr.Size))
	if err == nil && n != hdr.Size {
		err = errors.New("the file was cut off meanwhile")
	}
	return err
}

func checkStatic(file string) error {
	f, err := elf.Open(file)
	if err != nil {
		return nil // a script or data
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			loader, _ := io.ReadAll(p.Open())
			return fmt.Errorf("add %q: it is linked dynamically and needs %s, which the image would not have; link it statically (CGO_ENABLED=0)", file, strings.TrimRight(string(loader), "\x00"))
		}
	}
	return nil
}
