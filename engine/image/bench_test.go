package image

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// BenchmarkImport imports an image of four gzipped layers with 1,000 files of
// 16 KiB each, durably.
func BenchmarkImport(b *testing.B) {
	random := rand.NewChaCha8([32]byte{})
	var layers [][]byte
	for l := range 4 {
		var entries []entry
		for f := range 1000 {
			body := make([]byte, 16<<10)
			random.Read(body[:8<<10]) // half of it compresses
			entries = append(entries, entry{name: fmt.Sprintf("layer%d/dir%d/file%d", l, f/50, f), body: string(body)})
		}
		layers = append(layers, tarOf(b, entries...))
	}
	img := build(b, "", gzipped, layers...)
	archive := ociArchive(b, v1.Index{Manifests: []v1.Descriptor{named(img, "x:1")}}, img.all()...)
	s := openStore(b)
	b.SetBytes(4 * 1000 * 16 << 10)
	for b.Loop() {
		if _, err := s.Import(context.Background(), bytes.NewReader(archive), nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Remove("x:1"); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
