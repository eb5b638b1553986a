// Package uuid writes version 4 UUIDs (RFC 9562): 36 characters, lower case, from
// randomness that the caller brings.
package uuid

import (
	"encoding/hex"
	"io"
)

// New reads 16 bytes of r, which never fails (env.Rand), and makes a UUID of them.
func New(r io.Reader) string {
	var b [16]byte
	r.Read(b[:])
	return Of(b)
}

// Of makes a UUID of b; six bits of it give way to version and variant.
func Of(b [16]byte) string {
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	var out [36]byte
	hex.Encode(out[:8], b[:4])
	hex.Encode(out[9:13], b[4:6])
	hex.Encode(out[14:18], b[6:8])
	hex.Encode(out[19:23], b[8:10])
	hex.Encode(out[24:], b[10:])
	out[8], out[13], out[18], out[23] = '-', '-', '-', '-'
	return string(out[:])
}
