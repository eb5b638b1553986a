package kind

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// Stored is an object in the bytes under which it rests, ready to be served: it
// differs from the answer only in its resource version, which is not stored. With
// it an object is encoded without being looked at.
//
// It offers what generated messages do (Size, MarshalToSizedBuffer), and gives
// byte for byte what they would.
type Stored struct {
	raw []byte
	// metadata is the first field of every object: its content is raw[begin:end],
	// and the resource version is put in place of raw[from:to] within.
	begin, end, from, to int
	version              string
}

// resourceVersionField is the number of resourceVersion in ObjectMeta.
const resourceVersionField = 6

// Parse takes a stored value apart that is to be served with this resource
// version. It says no to whatever is not the Protobuf form of the root k itself.
func (s *Stored) Parse(k *Kind, value []byte, version string) bool {
	if k.Custom || k.StoredJSON || k.Stored != nil || !bytes.HasPrefix(value, envelopeMagic) {
		return false
	}
	apiVersion, kind, raw, err := splitEnvelope(value[len(envelopeMagic):])
	if err != nil || string(kind) != k.Kind || !k.isAPIVersion(apiVersion) || len(raw) < 2 || raw[0] != 0x0a {
		return false
	}
	size, n := binary.Uvarint(raw[1:])
	if n <= 0 || size > uint64(len(raw)-1-n) {
		return false
	}
	*s = Stored{raw: raw, begin: 1 + n, end: 1 + n + int(size), version: version}
	at := s.begin
	for at < s.end {
		head, n := binary.Uvarint(raw[at:s.end])
		if n <= 0 || head&7 != 2 || head>>3 > resourceVersionField {
			break
		}
		size, m := binary.Uvarint(raw[at+n : s.end])
		if m <= 0 || size > uint64(s.end-at-n-m) {
			*s = Stored{}
			return false
		}
		next := at + n + m + int(size)
		if head>>3 == resourceVersionField {
			s.from, s.to = at, next
			return true
		}
		at = next
	}
	s.from, s.to = at, at
	return true
}

// Is says whether Parse has taken a value.
func (s *Stored) Is() bool { return s.raw != nil }

// meta is the length of metadata's content with the version.
func (s *Stored) meta() int {
	return s.end - s.begin - (s.to - s.from) + 1 + varintLen(len(s.version)) + len(s.version)
}

// Size of the message with its version.
func (s *Stored) Size() int {
	meta := s.meta()
	return 1 + varintLen(meta) + meta + len(s.raw) - s.end
}

// Marshal returns the message with its version.
func (s *Stored) Marshal() ([]byte, error) { return s.appendTo(make([]byte, 0, s.Size())), nil }

// MarshalToSizedBuffer writes the message at the end of b and returns its length.
func (s *Stored) MarshalToSizedBuffer(b []byte) (int, error) {
	size := s.Size()
	if len(b) < size {
		return 0, errors.New("marshal a stored object: the buffer is too small")
	}
	s.appendTo(b[len(b)-size : len(b)-size])
	return size, nil
}

func (s *Stored) appendTo(b []byte) []byte {
	b = append(b, 0x0a)
	b = binary.AppendUvarint(b, uint64(s.meta()))
	b = append(b, s.raw[s.begin:s.from]...)
	b = appendString(b, resourceVersionField<<3|2, s.version)
	b = append(b, s.raw[s.to:s.end]...)
	return append(b, s.raw[s.end:]...)
}
