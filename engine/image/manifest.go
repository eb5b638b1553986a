package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxIndexDepth is how deep an index may lie in indexes.
const maxIndexDepth = 4

// A content is where manifests and blobs come from: a registry or an archive.
type content interface {
	// manifest returns a manifest's or index's bytes, verified.
	manifest(ctx context.Context, digest string) ([]byte, error)
	// blob opens a blob; the reader of it verifies.
	blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
	// has says whether it is worth asking for digest.
	has(digest string) bool
}

// document is a manifest or an index, Docker's or OCI's: the fields are the same.
type document struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        *v1.Descriptor  `json:"config"`
	Layers        []v1.Descriptor `json:"layers"`
	Manifests     []v1.Descriptor `json:"manifests"`
	FSLayers      json.RawMessage `json:"fsLayers"`
}

func parseDocument(raw []byte) (*document, error) {
	var d document
	if err := json.Unmarshal(raw, &d); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	switch {
	case d.SchemaVersion == 1 || len(d.FSLayers) > 0 && string(d.FSLayers) != "null":
		return nil, errors.New("the manifest is of Docker's schema 1, which is not supported; push the image again with a current tool")
	case d.Manifests != nil && (d.Layers != nil || d.Config != nil):
		return nil, errors.New("the manifest claims to be an index and an image at once")
	case d.Manifests != nil:
		return &d, nil
	case d.Config == nil:
		return nil, errors.New("the manifest names no config: it is not a container image")
	case len(d.Layers) > maxLayers:
		return nil, fmt.Errorf("the image has %d layers; overlayfs takes at most %d", len(d.Layers), maxLayers)
	}
	for _, l := range append([]v1.Descriptor{*d.Config}, d.Layers...) {
		if !isDigest(string(l.Digest)) {
			return nil, fmt.Errorf("the manifest has the digest %q: only sha256 digests are supported", l.Digest)
		}
	}
	return &d, nil
}

// pick follows indexes to the manifest for this platform.
func (s *Store) pick(ctx context.Context, from content, raw []byte, digest string) (*document, []byte, string, error) {
	for depth := 0; ; depth++ {
		d, err := parseDocument(raw)
		if err != nil {
			return nil, nil, "", err
		}
		if d.Manifests == nil {
			return d, raw, digest, nil
		}
		if depth == maxIndexDepth {
			return nil, nil, "", errors.New("the index has indexes too deep inside")
		}
		next, err := s.choose(d.Manifests, from.has)
		if err != nil {
			return nil, nil, "", err
		}
		digest = string(next.Digest)
		if raw, err = from.manifest(ctx, digest); err != nil {
			return nil, nil, "", err
		}
	}
}

// choose returns the entry of an index that suits this platform best; among
// equals the first one.
func (s *Store) choose(entries []v1.Descriptor, has func(string) bool) (v1.Descriptor, error) {
	best, bestScore := v1.Descriptor{}, 0
	var offered []string
	for _, e := range entries {
		if !isDigest(string(e.Digest)) || e.Annotations["vnd.docker.reference.type"] != "" {
			continue // an attestation
		}
		if e.Platform != nil {
			offered = append(offered, platformString(*e.Platform))
		}
		if score := suits(s.platform, e.Platform); score > bestScore && has(string(e.Digest)) {
			best, bestScore = e, score
		}
	}
	if bestScore == 0 {
		if len(offered) == 0 {
			return best, errors.New("the index has no image")
		}
		return best, fmt.Errorf("no image for platform %s; there is %s", platformString(s.platform), strings.Join(offered, ", "))
	}
	return best, nil
}

func platformString(p v1.Platform) string {
	parts := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		parts += "/" + p.Variant
	}
	return parts
}

// suits scores an offer: 0 cannot run here, more is better. An offer without
// platform may be anything and comes last.
func suits(want v1.Platform, offer *v1.Platform) int {
	if offer == nil {
		return 1
	}
	if offer.OS != want.OS || offer.Architecture != want.Architecture {
		return 0
	}
	have, need := variantNumber(*offer), variantNumber(want)
	switch {
	case have < 0 || need < 0:
		if offer.Variant == want.Variant {
			return 100
		}
		return 0
	case have > need:
		return 0 // needs instructions this machine may not have
	}
	return 100 - (need - have)
}

// variantNumber is n of a variant "vn", with the number that its absence means.
func variantNumber(p v1.Platform) int {
	if p.Variant == "" {
		switch p.Architecture {
		case "arm64":
			return 8
		case "arm":
			return 7
		}
		return 1
	}
	n, err := strconv.Atoi(strings.TrimPrefix(p.Variant, "v"))
	if err != nil || n < 0 || n > 99 {
		return -1
	}
	return n
}

// parseConfig reads an image config and checks what the store builds upon.
func parseConfig(raw []byte) (*v1.Image, error) {
	var c v1.Image
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&c); err != nil {
		return nil, fmt.Errorf("read image config: %w", err)
	}
	if c.RootFS.Type != "layers" {
		return nil, errors.New("the config describes no root file system: it is not a container image")
	}
	if len(c.RootFS.DiffIDs) > maxLayers {
		return nil, fmt.Errorf("the image has %d layers; overlayfs takes at most %d", len(c.RootFS.DiffIDs), maxLayers)
	}
	for _, d := range c.RootFS.DiffIDs {
		if !isDigest(string(d)) {
			return nil, fmt.Errorf("the config has the layer digest %q: only sha256 digests are supported", d)
		}
	}
	return &c, nil
}

func diffsOf(c *v1.Image) []string {
	diffs := make([]string, len(c.RootFS.DiffIDs))
	for i, d := range c.RootFS.DiffIDs {
		diffs[i] = string(d)
	}
	return diffs
}

// incoming is an image on its way into the store.
type incoming struct {
	config       []byte
	manifest     []byte // nil if there is none
	layers       []layerSource
	names        []string
	digests      []string
	source       Source
	parsedConfig *v1.Image
}

// fetch turns a manifest into an incoming image.
func fetch(ctx context.Context, from content, d *document, raw []byte) (*incoming, error) {
	rc, err := from.blob(ctx, *d.Config)
	if err != nil {
		return nil, err
	}
	config, err := readVerified(rc, string(d.Config.Digest), maxConfigBytes, "image config")
	rc.Close()
	if err != nil {
		return nil, err
	}
	parsed, err := parseConfig(config)
	if err != nil {
		if d.Config.MediaType != "" {
			err = fmt.Errorf("%w (config of type %q)", err, d.Config.MediaType)
		}
		return nil, err
	}
	diffs := diffsOf(parsed)
	if len(diffs) != len(d.Layers) {
		return nil, fmt.Errorf("the manifest has %d layers and the config %d", len(d.Layers), len(diffs))
	}
	in := &incoming{config: config, parsedConfig: parsed, manifest: raw}
	for i, l := range d.Layers {
		in.layers = append(in.layers, layerSource{
			diff: diffs[i], blob: string(l.Digest), sizeBytes: l.Size,
			open: func(ctx context.Context) (io.ReadCloser, error) { return from.blob(ctx, l) },
		})
	}
	return in, nil
}

// install unpacks what is missing and makes the image known.
func (s *Store) install(ctx context.Context, in *incoming, report *reporter) (img Image, err error) {
	r := &record{ID: digestOf(in.config), Names: in.names, Digests: in.digests, Source: in.source}
	pins := []string{r.ID}
	if in.manifest != nil {
		r.Manifest = digestOf(in.manifest)
		pins = append(pins, r.Manifest)
	}
	chains := chainsOf(diffsOf(in.parsedConfig))
	for i, src := range in.layers {
		r.Layers = append(r.Layers, layerRecord{Chain: chains[i], Diff: src.diff, Blob: src.blob})
		pins = append(pins, chains[i])
		if src.blob != "" {
			pins = append(pins, src.blob)
		}
	}
	unpin := s.pin(pins...)
	defer func() {
		unpin()
		if err != nil {
			s.sweep()
		}
	}()
	report.begin(len(in.layers))
	if err := s.makeLayers(ctx, in.layers, report); err != nil {
		return Image{}, err
	}
	if err := s.writeBlob(r.ID, in.config); err != nil {
		return Image{}, err
	}
	if in.manifest != nil {
		if err := s.writeBlob(r.Manifest, in.manifest); err != nil {
			return Image{}, err
		}
	}
	if img, err = s.add(r, in.parsedConfig); err != nil {
		return Image{}, err
	}
	report.finished()
	return img, nil
}
