package wire

import (
	"encoding/binary"
	"math"
	"strconv"
	"unicode/utf8"
	"unsafe"
)

// plain says which bytes stand in a JSON string as they are: no control
// characters, quotes, backslashes, <, > or &, and only ASCII.
var plain = func() (t [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
	}
	return t
}()

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// plain8 says that eight bytes are plain. It may say no where they are, never yes
// where they are not.
func plain8(x uint64) bool {
	zero := func(v uint64) uint64 { return (v - ones) & ^v }
	return (x|(x-0x20*ones)|zero((x|0x02*ones)^0x3e*ones)|zero((x|0x04*ones)^0x26*ones)|zero(x^0x5c*ones))&highs == 0
}

// plainUpTo is how many bytes at the beginning are plain.
func plainUpTo(s []byte) int {
	i := 0
	for ; i+8 <= len(s) && plain8(binary.LittleEndian.Uint64(s[i:])); i += 8 {
	}
	for ; i < len(s) && plain[s[i]]; i++ {
	}
	return i
}

const hexDigits = "0123456789abcdef"

func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	src := unsafe.Slice(unsafe.StringData(s), len(s))
	for {
		n := plainUpTo(src)
		b = append(b, src[:n]...)
		if src = src[n:]; len(src) == 0 {
			return append(b, '"')
		}
		switch c := src[0]; {
		case c >= utf8.RuneSelf:
			r, size := utf8.DecodeRune(src)
			switch {
			case r == utf8.RuneError && size == 1:
				b = append(b, `\ufffd`...)
			case r == '\u2028' || r == '\u2029':
				b = append(b, '\\', 'u', '2', '0', '2', hexDigits[r&0xf])
			default:
				b = append(b, src[:size]...)
			}
			src = src[size:]
			continue
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\b':
			b = append(b, '\\', 'b')
		case c == '\f':
			b = append(b, '\\', 'f')
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\r':
			b = append(b, '\\', 'r')
		case c == '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xf])
		}
		src = src[1:]
	}
}

func appendBool(b []byte, v bool) []byte { return strconv.AppendBool(b, v) }

func appendInt(b []byte, v int64) []byte { return strconv.AppendInt(b, v, 10) }

// appendFloat writes as ES6 does, like encoding/json.
func appendFloat(b []byte, f float64, bits int) ([]byte, bool) {
	if math.IsInf(f, 0) || math.IsNaN(f) {
		return b, false
	}
	abs := math.Abs(f)
	format := byte('f')
	if abs != 0 && (bits == 64 && (abs < 1e-6 || abs >= 1e21) || bits == 32 && (float32(abs) < 1e-6 || float32(abs) >= 1e21)) {
		format = 'e'
	}
	b = strconv.AppendFloat(b, f, format, -1, bits)
	if n := len(b); format == 'e' && n >= 4 && b[n-4] == 'e' && (b[n-3] == '-' || b[n-3] == '+') && b[n-2] == '0' {
		b[n-2] = b[n-1] // e-09 is e-9
		b = b[:n-1]
	}
	return b, true
}

// maxRaw is how deep raw JSON may nest here; deeper is encoding/json's.
const maxRaw = 500

// appendRaw appends a JSON document that somebody else wrote: checked, without
// spaces, with <, >, & and the line separators escaped. ok is false if it is not
// JSON.
func appendRaw(b, raw []byte) (out []byte, ok bool) {
	r := rawJSON{b, raw}
	if !r.value(maxRaw) {
		return r.out, false
	}
	r.space()
	return r.out, len(r.in) == 0
}

type rawJSON struct{ out, in []byte }

func (r *rawJSON) space() {
	for len(r.in) > 0 && r.in[0] <= ' ' {
		switch r.in[0] {
		case ' ', '\t', '\r', '\n':
			r.in = r.in[1:]
		default:
			return
		}
	}
}

// take copies the next byte, if it is c.
func (r *rawJSON) take(c byte) bool {
	r.space()
	if len(r.in) == 0 || r.in[0] != c {
		return false
	}
	r.out, r.in = append(r.out, c), r.in[1:]
	return true
}

func (r *rawJSON) value(deep int) bool {
	if r.space(); len(r.in) == 0 || deep == 0 {
		return false
	}
	switch r.in[0] {
	case '{':
		r.take('{')
		if r.take('}') {
			return true
		}
		for {
			if r.space(); len(r.in) == 0 || r.in[0] != '"' || !r.text() || !r.take(':') || !r.value(deep-1) {
				return false
			}
			if r.take('}') {
				return true
			}
			if !r.take(',') {
				return false
			}
		}
	case '[':
		r.take('[')
		if r.take(']') {
			return true
		}
		for {
			if !r.value(deep - 1) {
				return false
			}
			if r.take(']') {
				return true
			}
			if !r.take(',') {
				return false
			}
		}
	case '"':
		return r.text()
	case 't':
		return r.word("true")
	case 'f':
		return r.word("false")
	case 'n':
		return r.word("null")
	}
	return r.number()
}

func (r *rawJSON) word(w string) bool {
	if len(r.in) < len(w) || string(r.in[:len(w)]) != w {
		return false
	}
	r.out, r.in = append(r.out, w...), r.in[len(w):]
	return true
}

func (r *rawJSON) number() bool {
	i := 0
	at := func() byte {
		if i < len(r.in) {
			return r.in[i]
		}
		return 0
	}
	digits := func() bool {
		from := i
		for c := at(); c >= '0' && c <= '9'; c = at() {
			i++
		}
		return i > from
	}
	if at() == '-' {
		i++
	}
	if at() == '0' {
		i++
	} else if !digits() {
		return false
	}
	if at() == '.' {
		if i++; !digits() {
			return false
		}
	}
	if c := at(); c == 'e' || c == 'E' {
		i++
		if c := at(); c == '+' || c == '-' {
			i++
		}
		if !digits() {
			return false
		}
	}
	r.out, r.in = append(r.out, r.in[:i]...), r.in[i:]
	return true
}

// text copies a string; r.in begins with its quote.
func (r *rawJSON) text() bool {
	r.out, r.in = append(r.out, '"'), r.in[1:]
	for {
		n := plainUpTo(r.in)
		r.out = append(r.out, r.in[:n]...)
		if r.in = r.in[n:]; len(r.in) == 0 {
			return false
		}
		n = 1
		switch c := r.in[0]; {
		case c == '"':
			r.out, r.in = append(r.out, '"'), r.in[1:]
			return true
		case c < ' ':
			return false
		case c == '\\':
			if n = escapeLen(r.in); n == 0 {
				return false
			}
			r.out = append(r.out, r.in[:n]...)
		case c == '<' || c == '>' || c == '&':
			r.out = append(r.out, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xf])
		case c == 0xe2 && len(r.in) >= 3 && r.in[1] == 0x80 && r.in[2]&^1 == 0xa8:
			r.out = append(r.out, '\\', 'u', '2', '0', '2', hexDigits[r.in[2]&0xf])
			n = 3
		default:
			r.out = append(r.out, c)
		}
		r.in = r.in[n:]
	}
}

// escapeLen is the length of the escape that s begins with; 0: it is none.
func escapeLen(s []byte) int {
	if len(s) < 2 {
		return 0
	}
	switch s[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(s) < 6 {
			return 0
		}
		for _, c := range s[2:6] {
			if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F') {
				return 0
			}
		}
		return 6
	}
	return 0
}
