package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func members(t *testing.T, r io.Reader) (names []string, content map[string][]byte, headers map[string]*tar.Header) {
	t.Helper()
	content, headers = map[string][]byte{}, map[string]*tar.Header{}
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return names, content, headers
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, hdr.Name)
		headers[hdr.Name] = hdr
		if content[hdr.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}

func TestArchive(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root.tar")
	var base bytes.Buffer
	tw := tar.NewWriter(&base)
	for _, h := range []tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./usr/bin/tool", Mode: 0o4755, Size: 4, Typeflag: tar.TypeReg, Uid: 7, Uname: "seven"},
		{Name: "./usr/bin/same", Typeflag: tar.TypeLink, Linkname: "./usr/bin/tool"},
		{Name: "./bin", Typeflag: tar.TypeSymlink, Linkname: "usr/bin"},
		{Name: "./usr/share/doc/tool/README", Mode: 0o644, Typeflag: tar.TypeReg},
		{Name: "./dev/null", Typeflag: tar.TypeChar},
	} {
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			tw.Write([]byte("tool"))
		}
	}
	tw.Close()
	script := filepath.Join(dir, "start")
	for _, err := range []error{os.WriteFile(root, base.Bytes(), 0o600), os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var archives [2][]byte
	for i := range archives {
		out := filepath.Join(dir, "out.tar")
		err := run([]string{"-o", out, "-name", "some/thing:v1", "-tar", root, "-prune", "usr/share/doc", "-file", script + ":/start::5:6",
			"-link", "/start:/sbin/begin", "-dir", "/data:1777:999:999", "-entrypoint", "/start", "-cmd", "a", "-cmd", "b", "-user", "5:6", "-port", "80/tcp"})
		if err != nil {
			t.Fatal(err)
		}
		if archives[i], err = os.ReadFile(out); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the same input gave two archives")
	}
	_, files, _ := members(t, bytes.NewReader(archives[0]))
	var index v1.Index
	var manifest v1.Manifest
	var image v1.Image
	read := func(name string, to any) {
		t.Helper()
		if err := json.Unmarshal(files[name], to); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	read("index.json", &index)
	if got := index.Manifests[0].Annotations[v1.AnnotationRefName]; got != "docker.io/some/thing:v1" {
		t.Errorf("the index names %q", got)
	}
	read(blob(index.Manifests[0]), &manifest)
	read(blob(manifest.Config), &image)
	if got := describe("", files[blob(manifest.Layers[0])]); got.Digest != manifest.Layers[0].Digest || got.Digest != image.RootFS.DiffIDs[0] {
		t.Errorf("layer digest %s, manifest says %s, config %s", got.Digest, manifest.Layers[0].Digest, image.RootFS.DiffIDs[0])
	}
	if !slices.Equal(image.Config.Cmd, []string{"a", "b"}) || image.Config.User != "5:6" {
		t.Errorf("config %+v", image.Config)
	}
	names, content, headers := members(t, bytes.NewReader(files[blob(manifest.Layers[0])]))
	if want := []string{"bin", "data/", "sbin/", "start", "usr/", "usr/bin/", "usr/bin/tool", "sbin/begin", "usr/bin/same"}; !slices.Equal(names, want) {
		t.Errorf("members\n got %q\nwant %q", names, want)
	}
	if h := headers["usr/bin/tool"]; h.Mode != 0o4755 || h.Uid != 7 || h.Uname != "" || string(content["usr/bin/tool"]) != "tool" || h.ModTime.Unix() != 0 {
		t.Errorf("tool: %+v %q", h, content["usr/bin/tool"])
	}
	if h := headers["start"]; h.Mode != 0o755 || h.Uid != 5 || h.Gid != 6 {
		t.Errorf("start: %+v", h)
	}
	if h := headers["data/"]; h.Mode != 0o1777 || h.Uid != 999 {
		t.Errorf("data: %+v", h)
	}
	if h := headers["sbin/begin"]; h.Typeflag != tar.TypeLink || h.Linkname != "start" {
		t.Errorf("begin: %+v", h)
	}
}

func TestProblems(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct{ args, want string }{
		{"-name a:1", "-o FILE"},
		{"-o x -name A:1", "lower case"},
		{"-o x -name a:1 -file /absent:/a", "no such file"},
		{"-o x -name a:1 -file /etc/passwd:/a:999999", "octal"},
		{"-o x -name a:1 -link /a:/b", "not an added file"},
		{"-o x -name a:1 -file /bin/bash:/a", "link it statically"},
	} {
		err := run(strings.Fields(strings.Replace(tt.args, "-o x", "-o "+filepath.Join(dir, "x"), 1)))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.args, err, tt.want)
		}
	}
}

func TestFullName(t *testing.T) {
	for in, want := range map[string]string{
		"nginx":              "docker.io/library/nginx:latest",
		"dockercoins/rng:v1": "docker.io/dockercoins/rng:v1",
		"localhost/x:1":      "localhost/x:1",
		"reg.example:5000/x": "reg.example:5000/x:latest",
	} {
		if got, err := fullName(in); err != nil || got != want {
			t.Errorf("%s: %s %v, want %s", in, got, err, want)
		}
	}
}
