package uuid

import (
	"bytes"
	"testing"
)

func TestText(t *testing.T) {
	// RFC 9562, appendix A.3: the bits of version and variant are already there.
	example := [16]byte{0x91, 0x91, 0x08, 0xf7, 0x52, 0xd1, 0x43, 0x20, 0x9b, 0xac, 0xf8, 0x47, 0xdb, 0x41, 0x48, 0xa8}
	for _, c := range []struct {
		in   [16]byte
		want string
	}{
		{example, "919108f7-52d1-4320-9bac-f847db4148a8"},
		{[16]byte{}, "00000000-0000-4000-8000-000000000000"},
		{[16]byte(bytes.Repeat([]byte{0xff}, 16)), "ffffffff-ffff-4fff-bfff-ffffffffffff"},
	} {
		if got := Of(c.in); got != c.want {
			t.Errorf("Of(%x) = %s, want %s", c.in, got, c.want)
		}
		if got := New(bytes.NewReader(c.in[:])); got != c.want {
			t.Errorf("New of %x = %s, want %s", c.in, got, c.want)
		}
	}
}
