package suffix

import (
	"strings"
	"testing"
)

func TestAppend(t *testing.T) {
	long := strings.Repeat("x", 70)
	for _, c := range []struct {
		base string
		v    uint64
		want string
	}{
		{"web-", 0, "web-bbbbb"},
		{"", 1, "cbbbb"},
		{"web-", 26 + 27*26, "web-99bbb"},
		{long, 0, long[:58] + "bbbbb"},
	} {
		if got := Append(c.base, c.v); got != c.want {
			t.Errorf("Append(%q, %d) = %q, want %q", c.base, c.v, got, c.want)
		}
	}
}
