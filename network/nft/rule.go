package nft

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// R is the number of the i-th 32-bit register (0 … 15).
func R(i int) uint32 { return unix.NFT_REG32_00 + uint32(i) }

// RegVerdict is the destination of lookups in verdict maps.
const RegVerdict = unix.NFT_REG_VERDICT

// Exprs joins expressions and lists of them to one rule.
func Exprs(parts ...any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		switch p := p.(type) {
		case nil:
		case expr.Any:
			out = append(out, p)
		case []expr.Any:
			out = append(out, p...)
		default:
			panic("nft: not an expression")
		}
	}
	return out
}

// Family4 and Family6 tell packets of the two families apart within inet tables.
func Family4() []expr.Any { return family(unix.NFPROTO_IPV4) }

// Family6 matches IPv6.
func Family6() []expr.Any { return family(unix.NFPROTO_IPV6) }

// FamilyOf matches the family of an address size: 4 or 16 bytes.
func FamilyOf(addrSize int) []expr.Any {
	if addrSize == 16 {
		return Family6()
	}
	return Family4()
}

func family(f byte) []expr.Any {
	return Exprs(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: R(0)}, eq(R(0), []byte{f}))
}

func eq(reg uint32, data []byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}
}

func neq(reg uint32, data []byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: data}
}

// Saddr loads the source address into registers from reg on.
func Saddr(addrSize int, reg int) expr.Any { return addr(addrSize, reg, 12, 8) }

// Daddr loads the destination address into registers from reg on.
func Daddr(addrSize int, reg int) expr.Any { return addr(addrSize, reg, 16, 24) }

func addr(size, reg int, at4, at6 uint32) expr.Any {
	offset := at4
	if size == 16 {
		offset = at6
	}
	return &expr.Payload{DestRegister: R(reg), Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(size)}
}

// Protocol loads the transport protocol's number.
func Protocol(reg int) expr.Any { return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: R(reg)} }

// Dport loads the destination port.
func Dport(reg int) expr.Any {
	return &expr.Payload{DestRegister: R(reg), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

// Immediate loads a constant.
func Immediate(reg int, data []byte) expr.Any {
	return &expr.Immediate{Register: R(reg), Data: data}
}

// In matches when the key that starts in register reg is in a set.
func In(set string, reg int) expr.Any { return &expr.Lookup{SourceRegister: R(reg), SetName: set} }

// Copy copies size bytes from one register to another.
func Copy(from, to, size int) expr.Any {
	mask := make([]byte, size)
	for i := range mask {
		mask[i] = 0xff
	}
	return &expr.Bitwise{SourceRegister: R(from), DestRegister: R(to), Len: uint32(size), Mask: mask, Xor: make([]byte, size)}
}

// Remember adds the element with the key from register key on and the data from
// register data on to a dynamic map, or renews its timeout; the data of an
// element that is there stays.
func Remember(set string, key, data int, timeout time.Duration) expr.Any {
	return &expr.Dynset{SetName: set, SrcRegKey: R(key), SrcRegData: R(data), Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: timeout}
}

// Forget removes an element from a dynamic map.
func Forget(set string, key, data int) expr.Any {
	return &expr.Dynset{SetName: set, SrcRegKey: R(key), SrcRegData: R(data), Operation: 2} // NFT_DYNSET_OP_DELETE
}

// NotIn matches when the key is not in the set.
func NotIn(set string, reg int) expr.Any {
	return &expr.Lookup{SourceRegister: R(reg), SetName: set, Invert: true}
}

// Map looks a key up and loads the data into registers from to on; it does not
// match when there is none.
func Map(set string, from, to int) expr.Any {
	return &expr.Lookup{SourceRegister: R(from), SetName: set, DestRegister: R(to), IsDestRegSet: true}
}

// VMap looks a verdict up and follows it.
func VMap(set string, from int) expr.Any {
	return &expr.Lookup{SourceRegister: R(from), SetName: set, DestRegister: RegVerdict, IsDestRegSet: true}
}

// IifPrefix matches packets that came in through a link whose name starts so.
func IifPrefix(prefix string) []expr.Any {
	return Exprs(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: R(0)}, eq(R(0), []byte(prefix)))
}

// OifPrefix matches packets that leave through a link whose name starts so.
func OifPrefix(prefix string) []expr.Any {
	return Exprs(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: R(0)}, eq(R(0), []byte(prefix)))
}

// NotOifPrefix matches packets that leave through any other link.
func NotOifPrefix(prefix string) []expr.Any {
	return Exprs(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: R(0)}, neq(R(0), []byte(prefix)))
}

// NotIif matches packets that did not come in through the link of this name.
func NotIif(name string) []expr.Any {
	return Exprs(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: R(0)}, neq(R(0), pad16(name)))
}

func pad16(s string) []byte {
	b := make([]byte, 16)
	copy(b, s)
	return b
}

// SaddrWithin matches sources inside a prefix; the family is matched too.
func SaddrWithin(p netip.Prefix) []expr.Any { return within(p, 12, 8, true) }

// DaddrWithin matches destinations inside a prefix; the family is matched too.
func DaddrWithin(p netip.Prefix) []expr.Any { return within(p, 16, 24, true) }

// DaddrOutside matches destinations of the prefix's family outside of it.
func DaddrOutside(p netip.Prefix) []expr.Any { return within(p, 16, 24, false) }

// SaddrOutside matches sources of the prefix's family outside of it.
func SaddrOutside(p netip.Prefix) []expr.Any { return within(p, 12, 8, false) }

func within(p netip.Prefix, at4, at6 uint32, inside bool) []expr.Any {
	p = p.Masked()
	size := p.Addr().BitLen() / 8
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	cmp := eq(R(0), p.Addr().AsSlice())
	if !inside {
		cmp.Op = expr.CmpOpNeq
	}
	return Exprs(FamilyOf(size), addr(size, 0, at4, at6),
		&expr.Bitwise{SourceRegister: R(0), DestRegister: R(0), Len: uint32(size), Mask: mask, Xor: make([]byte, size)},
		cmp)
}

// DaddrLocal matches packets to an address of this host, by the kernel's own
// routing tables.
func DaddrLocal() []expr.Any {
	return Exprs(&expr.Fib{Register: R(0), FlagDADDR: true, ResultADDRTYPE: true},
		eq(R(0), binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)))
}

// SaddrLocal matches packets from an address of this host.
func SaddrLocal() []expr.Any {
	return Exprs(&expr.Fib{Register: R(0), FlagSADDR: true, ResultADDRTYPE: true},
		eq(R(0), binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)))
}

// SaddrNotLocal matches packets from other hosts and from pods.
func SaddrNotLocal() []expr.Any {
	return Exprs(&expr.Fib{Register: R(0), FlagSADDR: true, ResultADDRTYPE: true},
		neq(R(0), binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)))
}

// Conntrack status bits (linux/netfilter/nf_conntrack_common.h).
const ctStatusDNAT = 1 << 5

// WasDNAT matches connections whose destination has been rewritten.
func WasDNAT() []expr.Any { return ctStatus(expr.CmpOpNeq) }

// NotDNAT matches packets whose destination has not been rewritten, tracked or not.
func NotDNAT() []expr.Any { return ctStatus(expr.CmpOpEq) }

func ctStatus(op expr.CmpOp) []expr.Any {
	zero := make([]byte, 4)
	return Exprs(&expr.Ct{Key: expr.CtKeySTATUS, Register: R(0)},
		&expr.Bitwise{SourceRegister: R(0), DestRegister: R(0), Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, ctStatusDNAT), Xor: zero},
		&expr.Cmp{Op: op, Register: R(0), Data: zero})
}

// IsNew matches the first packets of a connection.
func IsNew() []expr.Any {
	zero := make([]byte, 4)
	return Exprs(&expr.Ct{Key: expr.CtKeySTATE, Register: R(0)},
		&expr.Bitwise{SourceRegister: R(0), DestRegister: R(0), Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, expr.CtStateBitNEW), Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: R(0), Data: zero})
}

// originalDaddr is `ct original ip daddr`, which google/nftables cannot encode; the
// expression without a family has no length for the nft program, which aborts
// when it is part of a key.
type originalDaddr struct {
	*expr.Ct // only for the interface
	addrSize int
	reg      int
}

// OriginalDaddr loads where the connection's first packet was sent to. Packets of
// the other family end the rule.
func OriginalDaddr(addrSize, reg int) expr.Any {
	return originalDaddr{&expr.Ct{}, addrSize, reg}
}

// encode is the attribute of a list of expressions.
func (o originalDaddr) encode(b *Batch) {
	key := uint32(20) // NFT_CT_DST_IP
	if o.addrSize == 16 {
		key = 22 // NFT_CT_DST_IP6
	}
	e := b.nest(unix.NFTA_LIST_ELEM)
	b.text(unix.NFTA_EXPR_NAME, "ct")
	data := b.nest(unix.NFTA_EXPR_DATA)
	b.u32(unix.NFTA_CT_KEY, key)
	b.u32(unix.NFTA_CT_DREG, R(o.reg))
	b.bytes(unix.NFTA_CT_DIRECTION, []byte{0}) // original
	b.unnest(data)
	b.unnest(e)
}

// OriginalDport loads the port that the connection's first packet was sent to.
func OriginalDport(reg int) expr.Any {
	return &expr.Ct{Key: expr.CtKeyPROTODST, Register: R(reg), Direction: 0}
}

// Random loads a number below modulus, each equally likely, in host byte order.
func Random(modulus uint32, reg int) expr.Any {
	return &expr.Numgen{Register: R(reg), Modulus: modulus, Type: unix.NFT_NG_RANDOM}
}

// DNAT sends the packet to address and port, which stand in registers from reg on.
func DNAT(addrSize, reg int) expr.Any {
	fam := uint32(unix.NFPROTO_IPV4)
	if addrSize == 16 {
		fam = unix.NFPROTO_IPV6
	}
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: fam, RegAddrMin: R(reg), RegProtoMin: R(reg + addrSize/4), Specified: true}
}

// CloseTimeout puts a new connection under an object of Batch.AddCloseTimeout.
func CloseTimeout(object string) expr.Any { return &expr.Objref{Type: objectCtTimeout, Name: object} }

// Masquerade gives the packet this host's address as its source.
func Masquerade() expr.Any { return &expr.Masq{FullyRandom: true} }

// Verdicts.
func Accept() expr.Any { return &expr.Verdict{Kind: expr.VerdictAccept} }

// Drop discards the packet silently.
func Drop() expr.Any { return &expr.Verdict{Kind: expr.VerdictDrop} }

// Jump goes to a chain and comes back.
func Jump(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictJump, Chain: chain} }

// Goto goes to a chain for good.
func Goto(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }

// Return leaves the chain.
func Return() expr.Any { return &expr.Verdict{Kind: expr.VerdictReturn} }

// Reset rejects a TCP packet with a reset; it must be preceded by a match of TCP.
func Reset() expr.Any { return &expr.Reject{Type: unix.NFT_REJECT_TCP_RST} }

// Unreachable rejects a packet with "port unreachable" of its family.
func Unreachable() expr.Any {
	return &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}
}

// IsTCP matches TCP packets.
func IsTCP() []expr.Any { return IsProtocol(unix.IPPROTO_TCP) }

// IsProtocol matches packets of one transport protocol.
func IsProtocol(p byte) []expr.Any { return Exprs(Protocol(0), eq(R(0), []byte{p})) }

// AddrBytes is the 4 or 16 bytes of an address.
func AddrBytes(a netip.Addr) []byte { return a.Unmap().AsSlice() }

// PortBytes is a port as it stands in a key: two bytes and two of padding.
func PortBytes(p uint16) []byte { return []byte{byte(p >> 8), byte(p), 0, 0} }

// ProtoBytes is a protocol number as it stands in a key.
func ProtoBytes(p uint8) []byte { return []byte{p, 0, 0, 0} }

// NumberBytes is a number in host byte order.
func NumberBytes(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// Key joins fields.
func Key(fields ...[]byte) []byte {
	var out []byte
	for _, f := range fields {
		out = append(out, f...)
	}
	return out
}
