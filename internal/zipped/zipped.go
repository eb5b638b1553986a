// Package zipped packs documents that are large and rarely read (gzip, RFC 1952).
package zipped

import (
	"bytes"
	"io"

	"github.com/klauspost/compress/gzip"
)

// Of packs data.
func Of(data []byte) ([]byte, error) {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(data); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Open unpacks what Of has made, in memory.
func Open(packed []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}
