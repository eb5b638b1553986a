package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"path"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// writeArchive puts manifest.json first: whoever wants to know what is inside
// need not read further.
func writeArchive(w io.Writer, name string, config v1.ImageConfig, l *layer) error {
	var diff bytes.Buffer
	if err := l.write(&diff); err != nil {
		return err
	}
	epoch := time.Unix(0, 0).UTC()
	layerDesc := describe(v1.MediaTypeImageLayer, diff.Bytes())
	image := v1.Image{Created: &epoch, Platform: v1.Platform{Architecture: runtime.GOARCH, OS: "linux"}, Config: config,
		RootFS:  v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{layerDesc.Digest}},
		History: []v1.History{{Created: &epoch, CreatedBy: "mkimage"}}}
	configJSON, err := json.Marshal(image)
	if err != nil {
		return err
	}
	configDesc := describe(v1.MediaTypeImageConfig, configJSON)
	manifest, err := json.Marshal(v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: configDesc, Layers: []v1.Descriptor{layerDesc}})
	if err != nil {
		return err
	}
	desc := describe(v1.MediaTypeImageManifest, manifest)
	desc.Platform = &v1.Platform{Architecture: runtime.GOARCH, OS: "linux"}
	desc.Annotations = map[string]string{v1.AnnotationRefName: name, "io.containerd.image.name": name}
	index, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{desc}})
	if err != nil {
		return err
	}
	docker, err := json.Marshal([]map[string]any{{"Config": blob(configDesc), "RepoTags": []string{name}, "Layers": []string{blob(layerDesc)}}})
	if err != nil {
		return err
	}
	layout, err := json.Marshal(v1.ImageLayout{Version: v1.ImageLayoutVersion})
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	for _, m := range []struct {
		name string
		data []byte
	}{{"manifest.json", docker}, {"oci-layout", layout}, {"index.json", index},
		{blob(desc), manifest}, {blob(configDesc), configJSON}, {blob(layerDesc), diff.Bytes()}} {
		if err := tw.WriteHeader(&tar.Header{Name: m.name, Mode: 0o644, Size: int64(len(m.data)), ModTime: epoch, Format: tar.FormatPAX}); err != nil {
			return err
		}
		if _, err := tw.Write(m.data); err != nil {
			return err
		}
	}
	return tw.Close()
}

func describe(mediaType string, data []byte) v1.Descriptor {
	sum := sha256.Sum256(data)
	return v1.Descriptor{MediaType: mediaType, Digest: digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(sum[:])), Size: int64(len(data))}
}

func blob(d v1.Descriptor) string { return path.Join("blobs/sha256", d.Digest.Encoded()) }
