package zipped

import (
	"bytes"
	"testing"
)

func TestBackAndForth(t *testing.T) {
	for _, data := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte("a document "), 10000)} {
		packed, err := Of(data)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 100 && len(packed) > len(data)/10 {
			t.Errorf("%d bytes are %d when packed", len(data), len(packed))
		}
		if back, err := Open(packed); err != nil || !bytes.Equal(back, data) {
			t.Errorf("%d bytes came back as %d: %v", len(data), len(back), err)
		}
	}
	if _, err := Open([]byte("no gzip")); err == nil {
		t.Error("opened what is not packed")
	}
}
