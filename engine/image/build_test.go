package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	godigest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// An entry is one line of a test's tar; the zero type is a regular file.
type entry struct {
	name    string
	kind    byte
	body    string
	link    string
	mode    int64
	uid     int
	dev     [2]int64
	records map[string]string
	mtime   time.Time
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, Uid: e.uid, Gid: e.uid,
			Size: int64(len(e.body)), Devmajor: e.dev[0], Devminor: e.dev[1], PAXRecords: e.records, ModTime: e.mtime}
		if e.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if e.mode == 0 {
			h.Mode = 0o644
			if e.kind == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if e.mtime.IsZero() {
			h.ModTime = time.Unix(1_600_000_000, 0)
		}
		if len(e.records) > 0 {
			h.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(data []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(data)
	w.Close()
	return buf.Bytes()
}

func zstded(t testing.TB, data []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}

// A built image has everything a registry or an archive needs.
type built struct {
	config, manifest []byte
	tars, blobs      [][]byte
	manifestType     string
}

func (b built) id() string     { return digestOf(b.config) }
func (b built) digest() string { return digestOf(b.manifest) }

type codec func([]byte) []byte

func plainCodec(data []byte) []byte { return data }

// build makes an image; arch "" is this machine's.
func build(t testing.TB, arch string, compress codec, layers ...[]byte) built {
	t.Helper()
	if arch == "" {
		arch = Default().Architecture
	}
	var b built
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: arch}}
	config.Config.Cmd = []string{"/bin/true"}
	config.RootFS = v1.RootFS{Type: "layers", DiffIDs: []godigest.Digest{}}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{}}
	m.SchemaVersion = 2
	for _, l := range layers {
		blob := compress(l)
		b.tars, b.blobs = append(b.tars, l), append(b.blobs, blob)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, godigest.Digest(digestOf(l)))
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: godigest.Digest(digestOf(blob)), Size: int64(len(blob))})
	}
	b.config = mustJSON(t, config)
	m.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: godigest.Digest(b.id()), Size: int64(len(b.config))}
	b.manifest = mustJSON(t, m)
	b.manifestType = v1.MediaTypeImageManifest
	return b
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func dockerArchive(t testing.TB, images map[string]built) []byte {
	t.Helper()
	var entries []entry
	var manifest []dockerEntry
	for tag, b := range images {
		d := dockerEntry{Config: hexOf(b.id()) + ".json"}
		if tag != "" {
			d.RepoTags = []string{tag}
		}
		entries = append(entries, entry{name: d.Config, body: string(b.config)})
		for i, l := range b.tars {
			name := fmt.Sprintf("%s-%d/layer.tar", hexOf(b.id()), i)
			entries = append(entries, entry{name: name, body: string(l)})
			d.Layers = append(d.Layers, name)
		}
		manifest = append(manifest, d)
	}
	entries = append(entries, entry{name: "manifest.json", body: string(mustJSON(t, manifest))})
	return tarOf(t, entries...)
}

func ociArchive(t testing.TB, index v1.Index, blobs ...[]byte) []byte {
	t.Helper()
	index.SchemaVersion = 2
	entries := []entry{{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`}, {name: "index.json", body: string(mustJSON(t, index))}}
	for _, b := range blobs {
		entries = append(entries, entry{name: "./blobs/sha256/" + hexOf(digestOf(b)), body: string(b)})
	}
	return tarOf(t, entries...)
}

func named(b built, name string) v1.Descriptor {
	return v1.Descriptor{MediaType: b.manifestType, Digest: godigest.Digest(b.digest()), Size: int64(len(b.manifest)),
		Annotations: map[string]string{v1.AnnotationRefName: name}}
}

func (b built) all() [][]byte { return append([][]byte{b.config, b.manifest}, b.blobs...) }

func openStore(t testing.TB, edit ...func(*Config)) *Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("unpacking layers needs root: owners, devices and trusted attributes")
	}
	cfg := Default()
	cfg.Dir = filepath.Join(t.TempDir(), "images")
	cfg.RetryWait = time.Millisecond
	cfg.Log = slog.New(slog.DiscardHandler)
	for _, e := range edit {
		e(&cfg)
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func reopen(t testing.TB, s *Store) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Close() })
	return again
}

func imported(t testing.TB, s *Store, archive []byte) []Image {
	t.Helper()
	images, err := s.Import(context.Background(), bytes.NewReader(archive), nil)
	if err != nil {
		t.Fatal(err)
	}
	return images
}

func wantError(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q lacks %q", err, p)
		}
	}
}

// emptyDirs fails if anything lies around that no image needs.
func wantEmpty(t testing.TB, s *Store, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		entries, err := os.ReadDir(s.path(dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != emptyLayer {
				t.Errorf("%s/%s is left over", dir, e.Name())
			}
		}
	}
}
