package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"archive/tar"

	godigest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func simple(t testing.TB, compress codec, files ...string) built {
	t.Helper()
	var layers [][]byte
	for _, f := range files {
		layers = append(layers, tarOf(t, entry{name: f, body: "content of " + f}))
	}
	return build(t, "", compress, layers...)
}

func TestImportDockerArchive(t *testing.T) {
	s := openStore(t)
	b := simple(t, plainCodec, "one", "two")
	var steps []Progress
	images, err := s.Import(context.Background(), bytes.NewReader(dockerArchive(t, map[string]built{"web:1": b})), func(p Progress) { steps = append(steps, p) })
	if err != nil {
		t.Fatal(err)
	}
	if len(images) != 1 {
		t.Fatalf("images: %v", images)
	}
	img := images[0]
	if img.ID != b.id() || !slices.Equal(img.Names, []string{"docker.io/library/web:1"}) || img.Source != Imported || img.Config.Config.Cmd[0] != "/bin/true" {
		t.Errorf("image: %+v", img)
	}
	if last := steps[len(steps)-1]; !last.Done || last.LayersDone != 2 || last.Layers != 2 || last.Image != "docker.io/library/web:1" {
		t.Errorf("last step: %+v", last)
	}
	lowers, err := s.Lowers(img)
	if err != nil || len(lowers) != 2 {
		t.Fatalf("lowers: %v %v", lowers, err)
	}
	if raw, err := os.ReadFile(lowers[0] + "/two"); err != nil || string(raw) != "content of two" {
		t.Errorf("topmost layer: %q %v", raw, err)
	}
	for _, ref := range []string{"web:1", "docker.io/web:1", "docker.io/library/web:1", b.id(), hexOf(b.id()), hexOf(b.id())[:12], b.id()[:20]} {
		if got, found := s.Get(ref); !found || got.ID != b.id() {
			t.Errorf("Get(%q) finds nothing", ref)
		}
	}
	for _, ref := range []string{"web", "web:2", "x/web:1", hexOf(b.id())[:6], "sha256:" + someHex, "", "UPPER", strings.Repeat("0", 64)} {
		if _, found := s.Get(ref); found {
			t.Errorf("Get(%q) finds something", ref)
		}
	}
	bytesUsed, inodes := s.Usage()
	if bytesUsed < img.SizeBytes || inodes < 5 || img.SizeBytes < 16<<10 {
		t.Errorf("usage %d bytes, %d inodes; image %d bytes", bytesUsed, inodes, img.SizeBytes)
	}
	wantEmpty(t, s, "tmp")
}

// docker save of old writes layers as symlinks to those of other images.
func TestImportDockerArchiveWithLinksAndSharedLayers(t *testing.T) {
	s := openStore(t)
	shared := tarOf(t, entry{name: "base", body: "b"})
	one := build(t, "", plainCodec, shared)
	two := build(t, "", plainCodec, shared, tarOf(t, entry{name: "top", body: "t"}))
	manifest := []dockerEntry{
		{Config: hexOf(one.id()) + ".json", RepoTags: []string{"one:1"}, Layers: []string{"a/layer.tar"}},
		{Config: hexOf(two.id()) + ".json", RepoTags: nil, Layers: []string{"b/layer.tar", "c/layer.tar"}},
	}
	raw := tarOf(t,
		entry{name: "a/layer.tar", body: string(shared)},
		entry{name: "b/layer.tar", kind: tar.TypeSymlink, link: "../a/layer.tar"},
		entry{name: "c/layer.tar", body: string(gzipped(two.tars[1]))},
		entry{name: manifest[0].Config, body: string(one.config)}, entry{name: manifest[1].Config, body: string(two.config)},
		entry{name: "manifest.json", body: string(mustJSON(t, manifest))})
	images := imported(t, s, gzipped(raw))
	if len(images) != 2 || len(images[1].Names) != 0 || images[0].Layers[0] != images[1].Layers[0] {
		t.Fatalf("images: %+v", images)
	}
	if entries, _ := os.ReadDir(s.path("layers")); len(entries) != 3 {
		t.Errorf("%d layer directories for two layers and the empty one", len(entries))
	}
}

func TestImportOCIArchive(t *testing.T) {
	for name, compress := range map[string]codec{"gzip": gzipped, "zstd": func(b []byte) []byte { return zstded(t, b) }, "plain": plainCodec} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			b := simple(t, compress, "one", "two")
			images := imported(t, s, ociArchive(t, v1.Index{Manifests: []v1.Descriptor{named(b, "docker.io/library/nginx:latest")}}, b.all()...))
			if len(images) != 1 || images[0].ID != b.id() || images[0].Manifest != b.digest() {
				t.Fatalf("images: %+v", images)
			}
			if _, found := s.Get("nginx@" + b.digest()); !found {
				t.Error("not found by digest")
			}
			if _, found := s.Get("nginx:whatever@" + b.digest()); !found {
				t.Error("not found by tag and digest")
			}
		})
	}
}

func TestImportChoosesThePlatform(t *testing.T) {
	s := openStore(t)
	mine, other := simple(t, gzipped, "mine"), build(t, "riscv64", gzipped, tarOf(t, entry{name: "other", body: "x"}))
	d, o := named(mine, ""), named(other, "")
	d.Annotations, o.Annotations = nil, nil
	d.Platform, o.Platform = &v1.Platform{OS: "linux", Architecture: s.cfg.Architecture}, &v1.Platform{OS: "linux", Architecture: "riscv64"}
	attestation := v1.Descriptor{Digest: godigest.Digest("sha256:" + someHex), Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"}}
	inner := mustJSON(t, v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{attestation, o, d}})
	outer := v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: godigest.Digest(digestOf(inner)), Annotations: map[string]string{"io.containerd.image.name": "docker.io/a/multi:1"}}
	images := imported(t, s, ociArchive(t, v1.Index{Manifests: []v1.Descriptor{outer}}, append(append(mine.all(), other.all()...), inner)...))
	if len(images) != 1 || images[0].ID != mine.id() || !slices.Equal(images[0].Digests, []string{"docker.io/a/multi@" + digestOf(inner)}) {
		t.Fatalf("images: %+v", images)
	}

	foreign := mustJSON(t, v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{o}})
	outer.Digest = godigest.Digest(digestOf(foreign))
	_, err := s.Import(context.Background(), bytes.NewReader(ociArchive(t, v1.Index{Manifests: []v1.Descriptor{outer}}, append(other.all(), foreign)...)), nil)
	wantError(t, err, "no image for platform linux/"+s.cfg.Architecture, "there is linux/riscv64")
}

func TestSuits(t *testing.T) {
	p := func(arch, variant string) v1.Platform {
		return v1.Platform{OS: "linux", Architecture: arch, Variant: variant}
	}
	for _, c := range []struct {
		want, better, worse v1.Platform
	}{
		{p("amd64", ""), p("amd64", ""), p("amd64", "v2")},
		{p("arm64", "v8"), p("arm64", ""), p("arm64", "v9")},
		{p("arm", "v7"), p("arm", "v7"), p("arm", "v6")},
		{p("arm", "v6"), p("arm", "v5"), p("arm", "v7")},
		{p("amd64", ""), p("amd64", "v1"), p("386", "")},
	} {
		if a, b := suits(c.want, &c.better), suits(c.want, &c.worse); a <= b || a == 0 {
			t.Errorf("%v: %v scores %d, %v scores %d", c.want, c.better, a, c.worse, b)
		}
	}
}

func TestImportFromFileAndPipe(t *testing.T) {
	s := openStore(t)
	b := simple(t, gzipped, "one")
	archive := ociArchive(t, v1.Index{Manifests: []v1.Descriptor{named(b, "x:1")}}, b.all()...)
	name := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(name, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := s.Import(context.Background(), f, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("x:1"); err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	go func() {
		_, err := w.Write(zstded(t, archive))
		w.CloseWithError(err)
	}()
	if _, err := s.Import(context.Background(), r, nil); err != nil {
		t.Fatal(err)
	}
}

func TestImportRefusesDamage(t *testing.T) {
	b := simple(t, gzipped, "one")
	index := v1.Index{Manifests: []v1.Descriptor{named(b, "x:1")}}
	good := ociArchive(t, index, b.all()...)
	lying := b
	lying.tars = [][]byte{tarOf(t, entry{name: "evil", body: "x"})}
	wrongBlob := tarOf(t, entry{name: "oci-layout", body: "{}"}, entry{name: "index.json", body: string(mustJSON(t, index))},
		entry{name: layoutPath(b.digest()), body: string(b.manifest)}, entry{name: layoutPath(b.id()), body: string(b.config)},
		entry{name: layoutPath(digestOf(b.blobs[0])), body: string(gzipped(lying.tars[0]))})
	manyLayers := mustJSON(t, document{SchemaVersion: 2, Config: &v1.Descriptor{Digest: godigest.Digest(b.id())}, Layers: make([]v1.Descriptor, 501)})
	for name, c := range map[string]struct {
		archive []byte
		want    string
	}{
		"cut off":         {good[:len(good)/2], "import images"},
		"not an archive":  {tarOf(t, entry{name: "x", body: "y"}), "neither a docker archive"},
		"no tar at all":   {bytes.Repeat([]byte("nonsense"), 200), "read the archive"},
		"empty":           {nil, "neither"},
		"wrong diff ID":   {dockerArchive(t, map[string]built{"x:1": lying}), "unpacked layer has the digest"},
		"wrong blob":      {wrongBlob, "has the digest"},
		"missing blob":    {ociArchive(t, index, b.config, b.manifest), "no member"},
		"xz":              {append([]byte("\xfd7zXZ\x00"), good...), "compressed with xz"},
		"climbing member": {tarOf(t, entry{name: "../x", body: "y"}), "climbs"},
		"too many layers": {ociArchive(t, v1.Index{Manifests: []v1.Descriptor{{Digest: godigest.Digest(digestOf(manyLayers))}}}, manyLayers), "overlayfs takes at most 500"},
		"huge manifest":   {tarOf(t, entry{name: "manifest.json", body: strings.Repeat(" ", maxManifestBytes+1)}), "larger than allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			_, err := s.Import(context.Background(), bytes.NewReader(c.archive), nil)
			wantError(t, err, c.want)
			if len(s.List()) != 0 {
				t.Error("an image came out of it")
			}
			wantEmpty(t, s, "tmp", "layers", "blobs/sha256")
		})
	}
}

func TestImageWithoutLayers(t *testing.T) {
	s := openStore(t)
	img := imported(t, s, dockerArchive(t, map[string]built{"scratch:1": build(t, "", plainCodec)}))[0]
	lowers, err := s.Lowers(img)
	if err != nil || len(lowers) != 1 {
		t.Fatalf("lowers: %v %v", lowers, err)
	}
	if entries, err := os.ReadDir(lowers[0]); err != nil || len(entries) != 0 {
		t.Errorf("the lower directory has %v, %v", entries, err)
	}
}

func TestTagAndRemove(t *testing.T) {
	s := openStore(t)
	b := simple(t, plainCodec, "one")
	imported(t, s, dockerArchive(t, map[string]built{"web:1": b}))
	if err := s.Tag("web:1", "reg.example/web:2"); err != nil {
		t.Fatal(err)
	}
	wantError(t, s.Tag("none", "x"), "tag image", "not in the image store")
	wantError(t, s.Tag("web:1", "x@sha256:"+someHex), "digest cannot be given")
	if err := s.Remove("web:1"); err != nil {
		t.Fatal(err)
	}
	if img, found := s.Get("reg.example/web:2"); !found || len(img.Names) != 1 {
		t.Fatalf("after removing one of two names: %+v", img)
	}
	s = reopen(t, s)
	if err := s.Remove("reg.example/web:2"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("reg.example/web:2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("second removal: %v", err)
	}
	wantEmpty(t, s, "tmp", "layers", "blobs/sha256")
	if used, inodes := s.Usage(); used != 0 || inodes != 0 {
		t.Errorf("usage of nothing: %d bytes, %d inodes", used, inodes)
	}
}

func TestRemoveByIDTakesAllNames(t *testing.T) {
	s := openStore(t)
	b := simple(t, plainCodec, "one")
	imported(t, s, dockerArchive(t, map[string]built{"web:1": b}))
	if err := s.Tag("web:1", "web:2"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(hexOf(b.id())[:12]); err != nil {
		t.Fatal(err)
	}
	if len(s.List()) != 0 {
		t.Error("it is still there")
	}
}

func TestAmbiguousPrefix(t *testing.T) {
	st := newState()
	for _, last := range []string{"0", "1"} {
		id := "sha256:" + someHex[:63] + last
		st.images[id] = &record{ID: id}
	}
	st.index()
	if _, err := st.resolve(someHex[:12]); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("resolve: %v", err)
	}
	if id, err := st.resolve(someHex[:63] + "1"); err != nil || !strings.HasSuffix(id, "1") {
		t.Errorf("resolve: %q %v", id, err)
	}
}

func TestNewImportTakesTheNameAndTheOldImageGoes(t *testing.T) {
	s := openStore(t)
	old, fresh := simple(t, plainCodec, "one"), simple(t, plainCodec, "two")
	oldImage := imported(t, s, dockerArchive(t, map[string]built{"web:1": old}))[0]
	release := s.Hold(old.id())
	imported(t, s, dockerArchive(t, map[string]built{"web:1": fresh}))
	if img, _ := s.Get("web:1"); img.ID != fresh.id() {
		t.Fatal("the name was not taken")
	}
	if len(s.List()) != 1 {
		t.Errorf("list: %v", s.List())
	}
	lowers, err := s.Lowers(oldImage)
	if err != nil {
		t.Fatal(err)
	}
	release()
	release()
	if _, err := os.Stat(lowers[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old layer is still there after the last hold: %v", err)
	}
}

func TestHolds(t *testing.T) {
	s := openStore(t)
	b := simple(t, plainCodec, "one")
	archive := dockerArchive(t, map[string]built{"web:1": b})
	img := imported(t, s, archive)[0]
	if err := s.HoldFor("pod/../c 1", img.ID); err != nil {
		t.Fatal(err)
	}
	wantError(t, s.HoldFor("c2", "sha256:"+someHex), "not in the image store")
	if err := s.Remove("web:1"); err != nil {
		t.Fatal(err)
	}
	if _, found := s.Get(img.ID); found {
		t.Error("a removed image is found")
	}
	s = reopen(t, s)
	lowers, err := s.Lowers(img)
	if err != nil {
		t.Fatalf("held layers after a restart: %v", err)
	}
	if got := s.Owners(); !slices.Equal(got, []string{"pod/../c 1"}) {
		t.Errorf("owners: %q", got)
	}
	imported(t, s, archive) // comes back
	if err := s.ReleaseFor("pod/../c 1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(lowers[0]); err != nil {
		t.Error("the layer of an image that came back is gone")
	}
	if err := s.HoldFor("c1", img.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(img.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.ReleaseFor("c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.ReleaseFor("c1"); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, s, "tmp", "layers", "blobs/sha256", "holds")
}

func TestCandidates(t *testing.T) {
	clock := time.Unix(1_700_000_000, 0)
	s := openStore(t, func(c *Config) { c.Now = func() time.Time { clock = clock.Add(time.Second); return clock } })
	imported(t, s, dockerArchive(t, map[string]built{"mine:1": simple(t, plainCodec, "one")}))
	var ids []string
	for _, name := range []string{"a", "b", "c"} {
		b := simple(t, plainCodec, name)
		in := &incoming{config: b.config, parsedConfig: must(parseConfig(b.config)), names: []string{"docker.io/library/" + name + ":1"}, source: Pulled}
		in.layers = []layerSource{{diff: digestOf(b.tars[0]), open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.tars[0])), nil }}}
		img, err := s.install(context.Background(), in, newReporter("", nil))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, img.ID)
	}
	s.Hold(ids[0])() // used last
	defer s.Hold(ids[1])()
	var got []string
	for _, img := range s.Candidates() {
		got = append(got, img.ID)
	}
	if want := []string{ids[2], ids[0]}; !slices.Equal(got, want) {
		t.Errorf("candidates %v, want %v", got, want)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestOpenCleansUpAfterACrash(t *testing.T) {
	s := openStore(t)
	kept := imported(t, s, dockerArchive(t, map[string]built{"kept:1": simple(t, plainCodec, "one")}))[0]
	damaged := imported(t, s, dockerArchive(t, map[string]built{"damaged:1": simple(t, plainCodec, "two")}))[0]
	forged := imported(t, s, dockerArchive(t, map[string]built{"forged:1": simple(t, plainCodec, "three")}))[0]
	s.Close()
	for path, content := range map[string]string{
		"tmp/layer-9/fs/file":                   "half",
		"tmp/file-3":                            "half",
		"layers/" + someHex + "/fs/x":           "published without a record",
		"blobs/sha256/" + someHex:               "no image needs it",
		"blobs/sha256/" + hexOf(forged.ID):      "not the config",
		"layers/" + hexOf(damaged.Layers[0]):    "",
		"layers/" + someHex[:60] + "/half.json": "{",
	} {
		full := s.path(path)
		if content == "" {
			if err := os.RemoveAll(full); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = reopen(t, s)
	if list := s.List(); len(list) != 1 || list[0].ID != kept.ID {
		t.Errorf("list: %+v", list)
	}
	if _, err := s.Lowers(kept); err != nil {
		t.Error(err)
	}
	wantEmpty(t, s, "tmp")
	if entries, _ := os.ReadDir(s.path("layers")); len(entries) != 2 {
		t.Errorf("layers: %v", entries)
	}
	if entries, _ := os.ReadDir(s.path("blobs/sha256")); len(entries) != 1 {
		t.Errorf("blobs: %v", entries)
	}
}

func TestOpenRefuses(t *testing.T) {
	s := openStore(t)
	_, err := Open(s.cfg)
	wantError(t, err, "open image store", "another process has it open")
	s.Close()
	if err := os.WriteFile(s.path(metadataFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(s.cfg)
	wantError(t, err, "images.json", "remove the file")
	_, err = Open(Config{Dir: "relative", Mirrors: map[string][]Mirror{"docker.io": {{Endpoint: "http://10.0.0.1:5000"}, {Endpoint: "ftp://x"}}}})
	wantError(t, err, "absolute", "plain http", "must begin with http")
}

func TestLowersRestoresFromKeptBlobs(t *testing.T) {
	for _, keep := range []bool{true, false} {
		s := openStore(t, func(c *Config) { c.KeepBlobs = keep })
		b := simple(t, gzipped, "one", "two")
		img := imported(t, s, ociArchive(t, v1.Index{Manifests: []v1.Descriptor{named(b, "x:1")}}, b.all()...))[0]
		if err := os.RemoveAll(filepath.Dir(s.layerDir(img.Layers[1]))); err != nil {
			t.Fatal(err)
		}
		lowers, err := s.Lowers(img)
		if !keep {
			wantError(t, err, "is missing", "pull or import it again")
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(lowers[0] + "/two"); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(filepath.Dir(s.layerDir(img.Layers[0]))); err != nil {
			t.Fatal(err)
		}
		s = reopen(t, s)
		if _, err := s.Lowers(img); err != nil {
			t.Error(err)
		}
	}
}

// A full disk fails the import and leaves the store as it was.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := mountTmpfs(t, dir, "1m"); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, func(c *Config) { c.Dir = dir + "/images" })
	small := imported(t, s, dockerArchive(t, map[string]built{"small:1": simple(t, plainCodec, "one")}))[0]
	big := build(t, "", gzipped, tarOf(t, entry{name: "zeros", body: strings.Repeat("\x00", 2<<20)}))
	_, err := s.Import(context.Background(), bytes.NewReader(ociArchive(t, v1.Index{Manifests: []v1.Descriptor{named(big, "big:1")}}, big.all()...)), nil)
	wantError(t, err, "no space left on device", `"zeros"`)
	wantEmpty(t, s, "tmp")
	s = reopen(t, s)
	if list := s.List(); len(list) != 1 || list[0].ID != small.ID {
		t.Errorf("list: %+v", list)
	}
}

// Many imports, tags and removals of images that share layers end with either
// everything or nothing on disk.
func TestConcurrency(t *testing.T) {
	s := openStore(t)
	base := tarOf(t, entry{name: "base", body: "b"})
	var archives [][]byte
	for i := range 4 {
		b := build(t, "", gzipped, base, tarOf(t, entry{name: fmt.Sprint("top", i), body: "t"}))
		archives = append(archives, ociArchive(t, v1.Index{Manifests: []v1.Descriptor{named(b, fmt.Sprint("img:", i))}}, b.all()...))
	}
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for round := range 5 {
				i := (worker + round) % len(archives)
				images, err := s.Import(context.Background(), bytes.NewReader(archives[i]), nil)
				if err != nil {
					if !errors.Is(err, ErrNotFound) { // removed by another worker in between
						t.Error(err)
					}
					continue
				}
				release := s.Hold(images[0].ID)
				if _, found := s.Get(images[0].ID); found {
					lowers, err := s.Lowers(images[0])
					if err != nil {
						t.Errorf("held and found, yet: %v", err)
					}
					for _, l := range lowers {
						if entries, err := os.ReadDir(l); err != nil || len(entries) != 1 {
							t.Errorf("held layer: %v %v", entries, err)
						}
					}
				}
				if err := s.Remove(fmt.Sprint("img:", i)); err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
				release()
			}
		})
	}
	wg.Wait()
	for _, img := range s.List() {
		if err := s.Remove(img.ID); err != nil {
			t.Error(err)
		}
	}
	wantEmpty(t, s, "tmp", "layers", "blobs/sha256")
	if len(s.pins) != 0 || len(s.holds) != 0 || len(s.flights) != 0 {
		t.Errorf("pins %v, holds %v, flights %v", s.pins, s.holds, s.flights)
	}
}
