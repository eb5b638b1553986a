package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Type says how the nft program prints a field of a set; the kernel ignores it.
type Type uint32

// Field types, with the numbers of the nft program.
const (
	Integer Type = 4
	IPv4    Type = 7
	IPv6    Type = 8
	Proto   Type = 12
	Port    Type = 13
	Mark    Type = 19
	IfName  Type = 41
)

// size in bytes of a field within a key.
func (t Type) size() int {
	switch t {
	case IPv6, IfName:
		return 16
	}
	return 4
}

// declared is the length that the nft program knows for a type.
func (t Type) declared() uint32 {
	switch t {
	case Proto:
		return 1
	case Port:
		return 2
	}
	return uint32(t.size())
}

func join(fields []Type) (magic, length uint32) {
	for _, f := range fields {
		magic = magic<<6 | uint32(f)
		length += uint32(f.size())
	}
	if len(fields) == 1 {
		length = fields[0].declared()
	}
	return magic, length
}

// Set is a named set, or a map when Data or Verdict is given.
type Set struct {
	Name    string
	Key     []Type
	Data    []Type // what a map holds
	Verdict bool   // a map to verdicts
	Dynamic bool   // rules add elements, with a timeout
	// Interval sets hold ranges: each element has a KeyEnd. Their changes cost the
	// size of the set.
	Interval bool
	Size     uint32 // bound of a dynamic set
	Timeout  time.Duration
}

// KeySize is the length of a key in bytes.
func (s *Set) KeySize() int { _, n := join(s.Key); return int(n) }

// DataSize is the length of a value in bytes.
func (s *Set) DataSize() int { _, n := join(s.Data); return int(n) }

// Element is a member of a set: Key, and for maps Data or Verdict.
type Element struct {
	Key     []byte
	KeyEnd  []byte // of an interval: its last key
	Data    []byte
	Verdict *expr.Verdict
}

// Chain is a base chain when Type is set, else one that is jumped to.
type Chain struct {
	Name     string
	Type     string // "filter" or "nat"
	Hook     uint32 // unix.NF_INET_…
	Priority int32
}

// Batch is a transaction in the making. Its methods keep order. The zero value
// is an empty batch.
type Batch struct {
	out    []byte
	starts []int
	deeds  []string
	err    error
	setIDs uint32
	rules  map[string]int
}

// Rules counts the rules that the batch adds, by chain.
func (b *Batch) Rules() map[string]int { return b.rules }

// Len is the number of messages in the batch.
func (b *Batch) Len() int { return len(b.deeds) }

func (b *Batch) begin(typ, flags uint16, deed string) int {
	at := len(b.out)
	b.starts = append(b.starts, at)
	b.deeds = append(b.deeds, deed)
	b.out = appendHeader(b.out, unix.NFNL_SUBSYS_NFTABLES<<8|typ, unix.NLM_F_REQUEST|flags, 0, unix.NFPROTO_INET, 0)
	return at
}

func (b *Batch) end(at int) { binary.NativeEndian.PutUint32(b.out[at:], uint32(len(b.out)-at)) }

func (b *Batch) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

func (b *Batch) bytes(typ uint16, data []byte) {
	size := 4 + len(data)
	if size > 0xffff {
		b.fail(fmt.Errorf("nftables: %s: attribute of %d bytes, at most 65535 fit", b.deeds[len(b.deeds)-1], size))
		return
	}
	b.out = binary.NativeEndian.AppendUint16(b.out, uint16(size))
	b.out = binary.NativeEndian.AppendUint16(b.out, typ)
	b.out = append(b.out, data...)
	for len(b.out)&3 != 0 {
		b.out = append(b.out, 0)
	}
}

func (b *Batch) text(typ uint16, s string) { b.bytes(typ, append([]byte(s), 0)) }

func (b *Batch) u32(typ uint16, v uint32) {
	b.bytes(typ, binary.BigEndian.AppendUint32(nil, v))
}

// nest starts a nested attribute; unnest ends it.
func (b *Batch) nest(typ uint16) int {
	at := len(b.out)
	b.out = binary.NativeEndian.AppendUint16(b.out, 0)
	b.out = binary.NativeEndian.AppendUint16(b.out, typ|unix.NLA_F_NESTED)
	return at
}

func (b *Batch) unnest(at int) {
	size := len(b.out) - at
	if size > 0xffff {
		b.fail(fmt.Errorf("nftables: %s: attribute of %d bytes, at most 65535 fit", b.deeds[len(b.deeds)-1], size))
		return
	}
	binary.NativeEndian.PutUint16(b.out[at:], uint16(size))
}

// AddTable makes a table; one that exists stays as it is.
func (b *Batch) AddTable(table string) {
	at := b.begin(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, "add table "+table)
	b.text(unix.NFTA_TABLE_NAME, table)
	b.u32(unix.NFTA_TABLE_FLAGS, 0)
	b.end(at)
}

// DeleteTable removes a table with all that is in it. It must exist.
func (b *Batch) DeleteTable(table string) {
	at := b.begin(unix.NFT_MSG_DELTABLE, 0, "delete table "+table)
	b.text(unix.NFTA_TABLE_NAME, table)
	b.end(at)
}

// ReplaceTable empties a table, whether it exists or not.
func (b *Batch) ReplaceTable(table string) {
	b.AddTable(table)
	b.DeleteTable(table)
	b.AddTable(table)
}

// AddChain makes a chain; one that exists stays as it is.
func (b *Batch) AddChain(table string, c Chain) {
	at := b.begin(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, "add chain "+c.Name)
	b.text(unix.NFTA_CHAIN_TABLE, table)
	b.text(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Type != "" {
		n := b.nest(unix.NFTA_CHAIN_HOOK)
		b.u32(unix.NFTA_HOOK_HOOKNUM, c.Hook)
		b.u32(unix.NFTA_HOOK_PRIORITY, uint32(c.Priority))
		b.unnest(n)
		b.u32(unix.NFTA_CHAIN_POLICY, 1) // accept
		b.text(unix.NFTA_CHAIN_TYPE, c.Type)
	}
	b.end(at)
}

// DeleteChain removes a chain that nothing jumps to, with its rules.
func (b *Batch) DeleteChain(table, chain string) {
	at := b.begin(unix.NFT_MSG_DELRULE, 0, "empty chain "+chain)
	b.text(unix.NFTA_RULE_TABLE, table)
	b.text(unix.NFTA_RULE_CHAIN, chain)
	b.end(at)
	at = b.begin(unix.NFT_MSG_DELCHAIN, 0, "delete chain "+chain)
	b.text(unix.NFTA_CHAIN_TABLE, table)
	b.text(unix.NFTA_CHAIN_NAME, chain)
	b.end(at)
}

// AddRule appends a rule to a chain.
func (b *Batch) AddRule(table, chain string, exprs ...expr.Any) {
	if b.rules == nil {
		b.rules = map[string]int{}
	}
	b.rules[chain]++
	at := b.begin(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, "add rule to chain "+chain)
	b.text(unix.NFTA_RULE_TABLE, table)
	b.text(unix.NFTA_RULE_CHAIN, chain)
	n := b.nest(unix.NFTA_RULE_EXPRESSIONS)
	for _, e := range exprs {
		if o, ok := e.(originalDaddr); ok {
			o.encode(b)
			continue
		}
		data, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			b.fail(fmt.Errorf("nftables: encode %T for chain %s: %w", e, chain, err))
			return
		}
		b.bytes(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data)
	}
	b.unnest(n)
	b.end(at)
}

// Numbers of the kernel's headers that the unix package does not have.
const (
	objectCtTimeout  = 7 // NFT_OBJECT_CT_TIMEOUT
	ctTimeoutL3Proto = 1
	ctTimeoutL4Proto = 2
	ctTimeoutData    = 3
	ctTimeoutClose   = 8 // CTA_TIMEOUT_TCP_CLOSE
)

// AddCloseTimeout makes an object that, once a rule refers to it (CloseTimeout),
// lets the kernel forget a TCP connection so many seconds after its reset. The
// family is unix.NFPROTO_IPV4 or unix.NFPROTO_IPV6; an object that exists stays as
// it is.
func (b *Batch) AddCloseTimeout(table, object string, family byte, seconds uint32) {
	at := b.begin(unix.NFT_MSG_NEWOBJ, unix.NLM_F_CREATE, "add timeout "+object)
	b.text(unix.NFTA_OBJ_TABLE, table)
	b.text(unix.NFTA_OBJ_NAME, object)
	b.u32(unix.NFTA_OBJ_TYPE, objectCtTimeout)
	data := b.nest(unix.NFTA_OBJ_DATA)
	b.bytes(ctTimeoutL3Proto, []byte{0, family})
	b.bytes(ctTimeoutL4Proto, []byte{unix.IPPROTO_TCP})
	policy := b.nest(ctTimeoutData)
	b.u32(ctTimeoutClose, seconds)
	b.unnest(policy)
	b.unnest(data)
	b.end(at)
}

// AddSet makes a set; one that exists stays as it is (and must be of the same
// shape).
func (b *Batch) AddSet(table string, s *Set) {
	at := b.begin(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, "add set "+s.Name)
	keyType, keyLen := join(s.Key)
	var flags uint32
	if len(s.Key) > 1 {
		flags |= 0x80 // NFT_SET_CONCAT
	}
	if s.Dynamic {
		flags |= unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
	}
	if s.Interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	if s.Verdict || len(s.Data) > 0 {
		flags |= unix.NFT_SET_MAP
	}
	b.text(unix.NFTA_SET_TABLE, table)
	b.text(unix.NFTA_SET_NAME, s.Name)
	b.u32(unix.NFTA_SET_FLAGS, flags)
	b.u32(unix.NFTA_SET_KEY_TYPE, keyType)
	b.u32(unix.NFTA_SET_KEY_LEN, keyLen)
	b.setIDs++
	b.u32(unix.NFTA_SET_ID, b.setIDs)
	switch {
	case s.Verdict:
		b.u32(unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT)
		b.u32(unix.NFTA_SET_DATA_LEN, 0)
	case len(s.Data) > 0:
		dataType, dataLen := join(s.Data)
		b.u32(unix.NFTA_SET_DATA_TYPE, dataType)
		b.u32(unix.NFTA_SET_DATA_LEN, dataLen)
	}
	if s.Timeout > 0 {
		b.bytes(unix.NFTA_SET_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(s.Timeout.Milliseconds())))
	}
	if s.Size > 0 || len(s.Key) > 1 {
		desc := b.nest(unix.NFTA_SET_DESC)
		if s.Size > 0 {
			b.u32(unix.NFTA_SET_DESC_SIZE, s.Size)
		}
		if len(s.Key) > 1 {
			concat := b.nest(2) // NFTA_SET_DESC_CONCAT
			for _, f := range s.Key {
				one := b.nest(unix.NFTA_LIST_ELEM)
				b.u32(1, f.declared()) // NFTA_SET_FIELD_LEN
				b.unnest(one)
			}
			b.unnest(concat)
		}
		b.unnest(desc)
	}
	// The nft program prints numbers by the byte order noted here (1: host, 2: big
	// endian), as a list of type, length, value.
	order := byte(2)
	if s.Key[0] == Integer || s.Key[0] == Mark {
		order = 1
	}
	b.bytes(unix.NFTA_SET_USERDATA, []byte{0, 4, order, 0, 0, 0})
	b.end(at)
}

// DeleteSet removes a set that no rule uses.
func (b *Batch) DeleteSet(table, set string) {
	at := b.begin(unix.NFT_MSG_DELSET, 0, "delete set "+set)
	b.text(unix.NFTA_SET_TABLE, table)
	b.text(unix.NFTA_SET_NAME, set)
	b.end(at)
}

const elemKeyEnd = 10 // NFTA_SET_ELEM_KEY_END

// chunk bounds the attribute that holds a list of elements.
const chunk = 48 << 10

// Add puts elements into a set or map. One that is there with the same data is
// fine; with other data it must be deleted before, in the same batch.
func (b *Batch) Add(table, set string, elements ...Element) {
	b.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, "add element to "+set, table, set, elements, true)
}

// Delete takes elements out of a set by key. They must be there.
func (b *Batch) Delete(table, set string, elements ...Element) {
	b.elements(unix.NFT_MSG_DELSETELEM, 0, "delete element from "+set, table, set, elements, false)
}

// Flush empties a set.
func (b *Batch) Flush(table, set string) {
	at := b.begin(unix.NFT_MSG_DELSETELEM, 0, "empty set "+set)
	b.text(unix.NFTA_SET_ELEM_LIST_TABLE, table)
	b.text(unix.NFTA_SET_ELEM_LIST_SET, set)
	b.end(at)
}

func (b *Batch) elements(typ, flags uint16, deed, table, set string, elements []Element, withData bool) {
	for len(elements) > 0 {
		at := b.begin(typ, flags, deed)
		b.text(unix.NFTA_SET_ELEM_LIST_TABLE, table)
		b.text(unix.NFTA_SET_ELEM_LIST_SET, set)
		list := b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		n := 0
		for n < len(elements) && len(b.out)-list < chunk {
			e := &elements[n]
			one := b.nest(unix.NFTA_LIST_ELEM)
			key := b.nest(unix.NFTA_SET_ELEM_KEY)
			b.bytes(unix.NFTA_DATA_VALUE, e.Key)
			b.unnest(key)
			if len(e.KeyEnd) > 0 {
				end := b.nest(elemKeyEnd)
				b.bytes(unix.NFTA_DATA_VALUE, e.KeyEnd)
				b.unnest(end)
			}
			switch {
			case !withData:
			case e.Verdict != nil:
				data := b.nest(unix.NFTA_SET_ELEM_DATA)
				verdict := b.nest(unix.NFTA_DATA_VERDICT)
				b.u32(unix.NFTA_VERDICT_CODE, uint32(e.Verdict.Kind))
				if e.Verdict.Chain != "" {
					b.text(unix.NFTA_VERDICT_CHAIN, e.Verdict.Chain)
				}
				b.unnest(verdict)
				b.unnest(data)
			case len(e.Data) > 0:
				data := b.nest(unix.NFTA_SET_ELEM_DATA)
				b.bytes(unix.NFTA_DATA_VALUE, e.Data)
				b.unnest(data)
			}
			b.unnest(one)
			n++
		}
		b.unnest(list)
		b.end(at)
		elements = elements[n:]
	}
}

// attributes yields type (without flags) and payload of each attribute in b.
func attributes(b []byte) func(func(uint16, []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			size := int(binary.NativeEndian.Uint16(b))
			typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if size < 4 || size > len(b) || !yield(typ, b[4:size]) {
				return
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

func cString(b []byte) string { return string(bytes.TrimRight(b, "\x00")) }
