package image

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxMembers      = 200_000
	maxArchiveLinks = 16
)

// Import brings every image of an archive into the store: what `docker save`
// writes or an OCI image layout in a tar, either of them compressed or not. A
// stream is spooled to disk first; an uncompressed file is read in place. Of a
// multi-platform index this machine's image is taken.
//
// Names come from manifest.json, or from the annotations io.containerd.image.name
// and org.opencontainers.image.ref.name; an image without one is known by its ID.
// When one image of several fails, those before it stay.
func (s *Store) Import(ctx context.Context, r io.Reader, progress func(Progress)) ([]Image, error) {
	images, err := s.importArchive(ctx, r, progress)
	if err != nil {
		return images, fmt.Errorf("import images: %w", err)
	}
	return images, nil
}

func (s *Store) importArchive(ctx context.Context, r io.Reader, progress func(Progress)) ([]Image, error) {
	f, remove, err := s.spool(ctx, r)
	if err != nil {
		return nil, err
	}
	defer remove()
	a, err := readArchive(f)
	if err != nil {
		return nil, err
	}
	isOCI := a.find("index.json") != nil && a.find("oci-layout") != nil
	isDocker := a.find("manifest.json") != nil
	var ins []func() (*incoming, error)
	switch {
	case isOCI:
		ins, err = s.readLayout(ctx, a, isDocker)
	case isDocker:
		ins, err = readDocker(a)
	default:
		err = errors.New("this is neither a docker archive (manifest.json) nor an OCI archive (oci-layout and index.json)")
	}
	if err != nil {
		return nil, err
	}
	var images []Image
	for _, next := range ins {
		in, err := next()
		if err != nil {
			return images, err
		}
		in.source = Imported
		label := digestOf(in.config)
		if len(in.names) > 0 {
			label = in.names[0]
		}
		img, err := s.install(ctx, in, newReporter(label, progress))
		if err != nil {
			return images, fmt.Errorf("image %q: %w", label, err)
		}
		images = append(images, img)
	}
	return images, nil
}

// spool returns the archive as an uncompressed file.
func (s *Store) spool(ctx context.Context, r io.Reader) (f *os.File, remove func(), err error) {
	if file, ok := r.(*os.File); ok {
		var head [6]byte
		info, err := file.Stat()
		if err == nil && info.Mode().IsRegular() {
			at, err := file.Seek(0, io.SeekCurrent)
			if err == nil && at == 0 {
				if n, _ := file.ReadAt(head[:], 0); n == len(head) && compression(head[:]) == "" {
					return file, func() {}, nil
				}
			}
		}
	}
	name := s.temp("spool")
	f, err = os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, err
	}
	os.Remove(name) // gone with the last descriptor, whatever happens
	src, err := decompress(bufio.NewReaderSize(&contextReader{ctx, r}, 256<<10))
	if err == nil {
		_, err = io.Copy(f, src)
		src.Close()
	}
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("read the archive: %w", err)
	}
	return f, func() { f.Close() }, nil
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// An archive is a tar with a directory of its members.
type archive struct {
	f       io.ReaderAt
	members map[string]*member
}

type member struct {
	offset, size int64
	link         string // of a symlink or hard link: the member it stands for
}

func readArchive(f *os.File) (*archive, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	a := &archive{f: f, members: map[string]*member{}}
	section := io.NewSectionReader(f, 0, info.Size())
	tr := tar.NewReader(section)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the archive: %w", err)
		}
		if len(a.members) == maxMembers {
			return nil, fmt.Errorf("the archive has more than %d members", maxMembers)
		}
		name, err := inside(hdr.Name)
		if err != nil {
			return nil, fmt.Errorf("archive member %q: %w", hdr.Name, err)
		}
		switch hdr.Typeflag {
		case tar.TypeReg:
			if sparse(hdr) {
				return nil, fmt.Errorf("archive member %q: it is sparse; write the archive without --sparse", hdr.Name)
			}
			// The reader has consumed whole headers and nothing of the content.
			offset, err := section.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			if offset+hdr.Size > info.Size() {
				return nil, fmt.Errorf("archive member %q: the archive is cut off", hdr.Name)
			}
			a.members[name] = &member{offset: offset, size: hdr.Size}
		case tar.TypeSymlink:
			a.members[name] = &member{link: path.Join(path.Dir(name), hdr.Linkname)}
		case tar.TypeLink:
			a.members[name] = &member{link: path.Clean(strings.TrimLeft(hdr.Linkname, "/"))}
		}
	}
	return a, nil
}

// find returns a file of the archive, or nil.
func (a *archive) find(name string) *member {
	name = path.Clean(strings.TrimLeft(name, "/"))
	for range maxArchiveLinks {
		m := a.members[name]
		if m == nil || m.link == "" {
			return m
		}
		name = m.link
	}
	return nil
}

func (a *archive) open(name string) (io.ReadCloser, int64, error) {
	m := a.find(name)
	if m == nil {
		return nil, 0, fmt.Errorf("the archive has no member %q", name)
	}
	return io.NopCloser(io.NewSectionReader(a.f, m.offset, m.size)), m.size, nil
}

func (a *archive) read(name, digest string, limit int64) ([]byte, error) {
	rc, _, err := a.open(name)
	if err != nil {
		return nil, err
	}
	raw, err := readVerified(rc, digest, limit, "archive member")
	if err != nil {
		return nil, fmt.Errorf("archive member %q: %w", name, err)
	}
	return raw, nil
}

func layoutPath(digest string) string { return "blobs/sha256/" + hexOf(digest) }

func (a *archive) manifest(_ context.Context, digest string) ([]byte, error) {
	return a.read(layoutPath(digest), digest, maxManifestBytes)
}

func (a *archive) blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	rc, _, err := a.open(layoutPath(string(d.Digest)))
	return rc, err
}

func (a *archive) has(digest string) bool { return a.find(layoutPath(digest)) != nil }

// dockerEntry is one image of a docker archive's manifest.json.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func readDockerManifest(a *archive) ([]dockerEntry, error) {
	raw, err := a.read("manifest.json", "", maxManifestBytes)
	if err != nil {
		return nil, err
	}
	var entries []dockerEntry
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, fmt.Errorf("archive member %q: %w", "manifest.json", err)
	}
	return entries, nil
}

func readDocker(a *archive) ([]func() (*incoming, error), error) {
	entries, err := readDockerManifest(a)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, errors.New("the archive has no images")
	}
	var ins []func() (*incoming, error)
	for _, e := range entries {
		ins = append(ins, func() (*incoming, error) { return a.dockerImage(e) })
	}
	return ins, nil
}

func (a *archive) dockerImage(e dockerEntry) (*incoming, error) {
	config, err := a.read(e.Config, "", maxConfigBytes)
	if err != nil {
		return nil, err
	}
	parsed, err := parseConfig(config)
	if err != nil {
		return nil, fmt.Errorf("archive member %q: %w", e.Config, err)
	}
	// The config's name is its digest in everything that writes such archives.
	base := strings.TrimSuffix(path.Base(e.Config), ".json")
	if got := digestOf(config); isHex(base, 64) && got != "sha256:"+base {
		return nil, &DigestError{What: "image config", Want: "sha256:" + base, Got: got}
	}
	diffs := diffsOf(parsed)
	if len(diffs) != len(e.Layers) {
		return nil, fmt.Errorf("the archive lists %d layers for %q and its config %d", len(e.Layers), e.Config, len(diffs))
	}
	in := &incoming{config: config, parsedConfig: parsed}
	if in.names, err = normalizeAll(e.RepoTags); err != nil {
		return nil, err
	}
	for i, name := range e.Layers {
		m := a.find(name)
		if m == nil {
			return nil, fmt.Errorf("the archive has no member %q", name)
		}
		in.layers = append(in.layers, layerSource{diff: diffs[i], sizeBytes: m.size, open: func(context.Context) (io.ReadCloser, error) {
			rc, _, err := a.open(name)
			return rc, err
		}})
	}
	return in, nil
}

func normalizeAll(refs []string) ([]string, error) {
	var names []string
	for _, ref := range refs {
		r, err := ParseReference(ref)
		if err != nil {
			return nil, err
		}
		if r.Digest == "" {
			names = append(names, r.String())
		}
	}
	return union(nil, names), nil
}

// readLayout reads an OCI image layout. Entries of index.json with one name are
// one image for several platforms.
func (s *Store) readLayout(ctx context.Context, a *archive, withDocker bool) ([]func() (*incoming, error), error) {
	raw, err := a.read("index.json", "", maxManifestBytes)
	if err != nil {
		return nil, err
	}
	var index v1.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("archive member %q: %w", "index.json", err)
	}
	tags := map[string][]string{} // by config digest: names that manifest.json gives
	if withDocker {
		entries, err := readDockerManifest(a)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if config, err := a.read(e.Config, "", maxConfigBytes); err == nil {
				tags[digestOf(config)] = append(tags[digestOf(config)], e.RepoTags...)
			}
		}
	}
	var order []string
	groups := map[string][]v1.Descriptor{}
	for _, d := range index.Manifests {
		if d.Annotations["vnd.docker.reference.type"] != "" {
			continue
		}
		name, err := layoutName(d)
		if err != nil {
			return nil, err
		}
		key := name
		if key == "" {
			// Without names, entries for other platforms are no images of their own.
			key = "digest " + string(d.Digest)
			if d.Platform != nil {
				key = "unnamed"
			}
		}
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], d)
	}
	if len(order) == 0 {
		return nil, errors.New("the archive has no images")
	}
	var ins []func() (*incoming, error)
	for _, key := range order {
		ins = append(ins, func() (*incoming, error) { return s.layoutImage(ctx, a, groups[key], tags) })
	}
	return ins, nil
}

func (s *Store) layoutImage(ctx context.Context, a *archive, entries []v1.Descriptor, tags map[string][]string) (*incoming, error) {
	d := entries[0]
	if len(entries) > 1 {
		var err error
		if d, err = s.choose(entries, a.has); err != nil {
			return nil, err
		}
	}
	if !isDigest(string(d.Digest)) {
		return nil, fmt.Errorf("index.json has the digest %q: only sha256 digests are supported", d.Digest)
	}
	top, err := a.manifest(ctx, string(d.Digest))
	if err != nil {
		return nil, err
	}
	doc, raw, _, err := s.pick(ctx, a, top, string(d.Digest))
	if err != nil {
		return nil, err
	}
	in, err := fetch(ctx, a, doc, raw)
	if err != nil {
		return nil, err
	}
	name, err := layoutName(d)
	if err != nil {
		return nil, err
	}
	if name != "" {
		in.names = []string{name}
	}
	extra, err := normalizeAll(tags[digestOf(in.config)])
	if err != nil {
		return nil, err
	}
	in.names = union(in.names, extra)
	for _, n := range in.names {
		in.digests = append(in.digests, repositoryOf(n)+"@"+string(d.Digest))
	}
	in.digests = union(nil, in.digests)
	return in, nil
}

// layoutName is the full name that an entry's annotations give, or "". The
// specification lets org.opencontainers.image.ref.name be a bare tag, which names
// no repository; a bare word is one only if it looks like a version.
func layoutName(d v1.Descriptor) (string, error) {
	ref := d.Annotations["io.containerd.image.name"]
	if ref == "" {
		ref = d.Annotations[v1.AnnotationRefName]
		if !strings.ContainsAny(ref, "/:@") && looksLikeTag(ref) {
			return "", nil
		}
	}
	if ref == "" {
		return "", nil
	}
	r, err := ParseReference(ref)
	if err != nil {
		return "", err
	}
	if r.Digest != "" {
		return "", nil
	}
	return r.String(), nil
}

func looksLikeTag(word string) bool {
	if word == "" || word == "latest" {
		return true
	}
	word = strings.TrimPrefix(word, "v")
	return word != "" && '0' <= word[0] && word[0] <= '9'
}
