package disk

import (
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

// The marker under 'm' + "revision" says up to where revisions may have been
// given out, and whether that is exactly the newest one.
func appendMarker(b []byte, revision int64, isExact bool) []byte {
	start := len(b)
	b = append(b, recordVersion, 0)
	if isExact {
		b[start+1] = 1
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(revision))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func parseMarker(b []byte) (revision int64, isExact bool, err error) {
	if len(b) != 14 || b[0] != recordVersion {
		return 0, false, fmt.Errorf("revision marker of %d bytes is not one", len(b))
	}
	if crc := crc32.Checksum(b[:10], castagnoli); crc != binary.LittleEndian.Uint32(b[10:]) {
		return 0, false, fmt.Errorf("revision marker has checksum %08x, it says %08x", crc, binary.LittleEndian.Uint32(b[10:]))
	}
	return int64(binary.LittleEndian.Uint64(b[2:])), b[1] == 1, nil
}
