package wire

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	for _, m := range []Message{
		{Type: Hello, Seq: 1},
		{Type: Start, Seq: 1<<32 - 1, Args: []string{"id", "", "a,b", "\x00\n"}},
		{Type: Exit, Args: []string{""}},
	} {
		b, err := Append(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("Parse(Append(%v)) = %v, %v", m, got, err)
		}
		// Whatever is cut off is either a shorter message or an error, never a panic.
		for i := range b {
			if _, err := Parse(b[:i]); err != nil && !errors.Is(err, ErrMalformed) {
				t.Errorf("cut at %d: %v", i, err)
			}
		}
	}
}

func TestBounds(t *testing.T) {
	if _, err := Append(nil, Message{Args: []string{strings.Repeat("x", MaxBytes)}}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("an oversized message gave %v", err)
	}
	if _, err := Parse([]byte{1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}); !errors.Is(err, ErrMalformed) {
		t.Errorf("a length past the end gave %v", err)
	}
}

func TestHas(t *testing.T) {
	for _, c := range []struct {
		set, flag string
		want      bool
	}{{"", "tty", false}, {"tty", "tty", true}, {"stdin,tty", "tty", true}, {"stdin,tty", "std", false}, {"once,stdin", "stdin", true}} {
		if got := Has(c.set, c.flag); got != c.want {
			t.Errorf("Has(%q, %q) = %v", c.set, c.flag, got)
		}
	}
}
