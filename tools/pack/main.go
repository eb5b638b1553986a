// Command pack compresses files with zstd for embedding: pack OUTDIR FILE...
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: pack OUTDIR FILE...")
		os.Exit(2)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		fail(err)
	}
	for _, f := range os.Args[2:] {
		data, err := os.ReadFile(f)
		if err != nil {
			fail(err)
		}
		out := filepath.Join(os.Args[1], filepath.Base(f)+".zst")
		if err := os.WriteFile(out, enc.EncodeAll(data, nil), 0o644); err != nil {
			fail(err)
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "pack:", err)
	os.Exit(1)
}
