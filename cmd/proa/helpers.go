package main

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// The helpers are separate executables inside this file: compressed, unpacked on
// first use under a name with their content's hash, so that a new proa never
// overwrites what a running container's monitor executes.
//
//go:embed all:embedded
var embedded embed.FS

// unpack puts a helper into dir and returns its path.
func unpack(name, dir string) (string, error) {
	packed, err := embedded.ReadFile("embedded/" + name + ".zst")
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("unpack %s: this proa was built without it; build with `make build`", name)
	}
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	path := filepath.Join(dir, name+"-"+nameOf(packed))
	if st, err := os.Stat(path); err == nil && st.Mode().Perm()&0o100 != 0 {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	defer dec.Close()
	data, err := dec.DecodeAll(packed, nil)
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	tmp, err := os.CreateTemp(dir, "."+name+"-")
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(0o755)
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return "", fmt.Errorf("unpack %s into %q: %w", name, dir, err)
	}
	return path, nil
}

// nameOf tells contents apart. Hashing all of kubectl would take longer than kubectl
// itself: the packed file ends with the checksum of what is in it.
func nameOf(packed []byte) string {
	const end = 4 << 10
	h := sha256.New()
	fmt.Fprintln(h, len(packed))
	h.Write(packed[:min(end, len(packed))])
	h.Write(packed[max(0, len(packed)-end):])
	return hex.EncodeToString(h.Sum(nil)[:6])
}

// helperDir is where kubectl goes for someone who may not have a cluster here:
// the system's directory for root, else the person's cache.
func helperDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/proa/.bin"
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "proa")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("proa-%d", os.Geteuid()))
}

// shortHash names something after its content.
func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}
