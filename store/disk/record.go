package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"proa.dev/store"
	"proa.dev/store/internal/tree"
)

// A record begins with these bytes.
const (
	recordVersion = 1

	flagBuffered = 1 << 0
	flagSealed   = 1 << 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendRecord appends the record of e with value, which is sealed or not.
func appendRecord(b []byte, e *tree.Entry, value []byte, isSealed bool) []byte {
	start := len(b)
	var flags byte
	if e.Class == store.Buffered {
		flags |= flagBuffered
	}
	if isSealed {
		flags |= flagSealed
	}
	b = append(b, recordVersion, flags)
	b = binary.AppendUvarint(b, uint64(e.KV.CreateRevision))
	b = binary.AppendUvarint(b, uint64(e.KV.ModRevision))
	b = binary.AppendVarint(b, e.Expiry)
	crc := crc32.Update(0, castagnoli, []byte(e.KV.Key))
	crc = crc32.Update(crc, castagnoli, b[start:])
	crc = crc32.Update(crc, castagnoli, value)
	b = binary.LittleEndian.AppendUint32(b, crc)
	return append(b, value...)
}

// parseRecord reads a record; value aliases b.
func parseRecord(key, b []byte) (e *tree.Entry, value []byte, isSealed bool, err error) {
	if len(b) < 2 {
		return nil, nil, false, errors.New("record is cut off")
	}
	if b[0] != recordVersion {
		return nil, nil, false, fmt.Errorf("record has version %d, this program knows %d", b[0], recordVersion)
	}
	e = &tree.Entry{}
	if b[1]&flagBuffered != 0 {
		e.Class = store.Buffered
	}
	rest := b[2:]
	create, n := binary.Uvarint(rest)
	rest = rest[max(n, 0):]
	mod, m := binary.Uvarint(rest)
	rest = rest[max(m, 0):]
	expiry, k := binary.Varint(rest)
	rest = rest[max(k, 0):]
	if n <= 0 || m <= 0 || k <= 0 || len(rest) < 4 {
		return nil, nil, false, errors.New("record is cut off")
	}
	want := binary.LittleEndian.Uint32(rest)
	value = rest[4:]
	crc := crc32.Update(0, castagnoli, key)
	crc = crc32.Update(crc, castagnoli, b[:len(b)-len(rest)])
	crc = crc32.Update(crc, castagnoli, value)
	if crc != want {
		return nil, nil, false, fmt.Errorf("checksum is %08x, the record says %08x", crc, want)
	}
	e.KV.CreateRevision, e.KV.ModRevision, e.Expiry = int64(create), int64(mod), expiry
	return e, value, b[1]&flagSealed != 0, nil
}

// marker says what the files hold. It is written with every batch, so that a
// part that got lost, however it happened, shows at the next start.
type marker struct {
	// revision up to which numbers may have been given out; with isExact that is
	// the newest one.
	revision int64
	isExact  bool
	sum      sum
	// group numbers the batches; synced is the last one that was known to be
	// durable when this one was written.
	group, synced int64
}

// sum is of the live keys: how many, and the sum of a hash of each with its
// revision.
type sum struct {
	keys int64
	hash uint64
}

func (s *sum) add(e *tree.Entry) {
	s.keys++
	s.hash += hashOf(e)
}

// apply counts a write of e, which replaces prev.
func (s *sum) apply(e, prev *tree.Entry) {
	if prev != nil && !prev.Deleted {
		s.keys--
		s.hash -= hashOf(prev)
	}
	if !e.Deleted {
		s.add(e)
	}
}

// hashOf is FNV-1a of the key, mixed with the revision.
func hashOf(e *tree.Entry) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(e.KV.Key) {
		h = (h ^ uint64(e.KV.Key[i])) * 1099511628211
	}
	h ^= uint64(e.KV.ModRevision) * 0x9e3779b97f4a7c15
	h = (h ^ h>>32) * 0xd6e8feb86659fd93
	return h ^ h>>32
}

const markerBytes = 2 + 5*8 + 4

func (m marker) append(b []byte) []byte {
	start := len(b)
	b = append(b, recordVersion, 0)
	if m.isExact {
		b[start+1] = 1
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(m.revision))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.sum.keys))
	b = binary.LittleEndian.AppendUint64(b, m.sum.hash)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.group))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.synced))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func parseMarker(b []byte) (m marker, err error) {
	if len(b) != markerBytes || b[0] != recordVersion {
		return m, fmt.Errorf("marker of %d bytes is not one", len(b))
	}
	n := markerBytes - 4
	if crc := crc32.Checksum(b[:n], castagnoli); crc != binary.LittleEndian.Uint32(b[n:]) {
		return m, fmt.Errorf("marker has checksum %08x, it says %08x", crc, binary.LittleEndian.Uint32(b[n:]))
	}
	m.isExact = b[1] == 1
	m.revision = int64(binary.LittleEndian.Uint64(b[2:]))
	m.sum.keys = int64(binary.LittleEndian.Uint64(b[10:]))
	m.sum.hash = binary.LittleEndian.Uint64(b[18:])
	m.group = int64(binary.LittleEndian.Uint64(b[26:]))
	m.synced = int64(binary.LittleEndian.Uint64(b[34:]))
	return m, nil
}

// lastSynced looks for markers in the raw bytes of a log of the engine, whole or
// damaged, and returns the highest group that one of them calls durable. Logs
// are used again, so old ones may be among them; they only say less.
func lastSynced(b []byte) (group int64) {
	for {
		i := bytes.Index(b, markerKey)
		if i < 0 {
			return group
		}
		b = b[i+len(markerKey):]
		if len(b) > markerBytes && b[0] == markerBytes {
			if m, err := parseMarker(b[1 : 1+markerBytes]); err == nil {
				group = max(group, m.synced)
			}
		}
	}
}
