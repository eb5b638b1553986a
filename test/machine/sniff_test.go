package machine

import (
	order "encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// sniffer remembers how connections of the machine begin and how they are refused:
// the last SYNs and RSTs that any link has seen, and, for each SYN that was
// answered by a reset or by an ICMP error, what the kernel's table of connections held right
// then. It tells who refused a connection and why.
type sniffer struct {
	fd   int
	done chan struct{}

	mu       sync.Mutex
	ring     []segment
	next     int
	refusals []refusal
}

// segment is the head of one packet.
type segment struct {
	at       time.Time
	link     int
	out      bool
	from, to netip.AddrPort
	flags    byte // of TCP; 0 for ICMP
	seq, ack uint32
	icmp     [2]byte // type and code
}

// refusal of a connection.
type refusal struct {
	segment
	flow   string    // the connection as the kernel knew it
	before []segment // what the same two ends said before
}

const (
	flagFIN, flagSYN, flagRST, flagACK = 1, 2, 4, 16
	sniffed                            = 1 << 15 // segments that are remembered
	refusalLimit                       = 500
)

// beginnings lets SYNs, RSTs and ICMP's unreachable messages of IPv4 through.
var beginnings = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 0},
	{Code: unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K, K: 4},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 4, Jf: 11},
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 6},
	{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: 0x1fff, Jt: 9},
	{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 9},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_ICMP, Jf: 2},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: 0},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 3, Jt: 3, Jf: 4},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_TCP, Jf: 3},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: 13},
	{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: flagSYN | flagRST, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 128},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

// sniff begins; the test's end ends it.
func sniff(t testing.TB) *sniffer {
	t.Helper()
	s := &sniffer{done: make(chan struct{}), ring: make([]segment, sniffed)}
	must := func(err error) {
		if err != nil {
			t.Fatalf("watch packets: %v", err)
		}
	}
	all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8)
	var err error
	s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(err)
	must(unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(beginnings)), Filter: &beginnings[0]}))
	must(unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
	must(unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1))
	must(unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	must(unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: all}))
	stop := make(chan struct{})
	go s.run(stop)
	t.Cleanup(func() {
		close(stop)
		<-s.done
		unix.Close(s.fd)
	})
	return s
}

func (s *sniffer) run(stop chan struct{}) {
	defer close(s.done)
	buf, oob := make([]byte, 256), make([]byte, 128)
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, oobn, _, from, err := unix.Recvmsg(s.fd, buf, oob, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		g, ok := parseSegment(buf[:n])
		if !ok {
			continue
		}
		g.at = stampOf(oob[:oobn])
		if ll, ok := from.(*unix.SockaddrLinklayer); ok {
			g.link, g.out = ll.Ifindex, ll.Pkttype == unix.PACKET_OUTGOING
		}
		s.mu.Lock()
		if g.refuses() && len(s.refusals) < refusalLimit {
			r := refusal{segment: g}
			r.flow = flowOf(g.from, g.to)
			for i := range s.ring {
				b := s.ring[(s.next+i)%len(s.ring)]
				if b.from == g.from && b.to == g.to || b.from == g.to && b.to == g.from {
					r.before = append(r.before, b)
				}
			}
			s.refusals = append(s.refusals, r)
		}
		s.ring[s.next] = g
		s.next = (s.next + 1) % len(s.ring)
		s.mu.Unlock()
	}
}

func stampOf(oob []byte) time.Time {
	msgs, _ := unix.ParseSocketControlMessage(oob)
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(order.NativeEndian.Uint64(m.Data)), int64(order.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	return time.Now()
}

func parseSegment(p []byte) (g segment, ok bool) {
	if len(p) < 20 {
		return g, false
	}
	head := int(p[0]&15) * 4
	src, _ := netip.AddrFromSlice(p[12:16])
	dst, _ := netip.AddrFromSlice(p[16:20])
	rest := p[min(head, len(p)):]
	if p[9] == unix.IPPROTO_ICMP {
		// What it is about follows, from the sender's point of view.
		if len(rest) < 8 {
			return g, false
		}
		inner, ok := parseHead(rest[8:])
		return segment{from: inner.to, to: inner.from, icmp: [2]byte{rest[0], rest[1]}}, ok
	}
	if len(rest) < 20 {
		return g, false
	}
	return segment{from: netip.AddrPortFrom(src, order.BigEndian.Uint16(rest)), to: netip.AddrPortFrom(dst, order.BigEndian.Uint16(rest[2:])),
		seq: order.BigEndian.Uint32(rest[4:]), ack: order.BigEndian.Uint32(rest[8:]), flags: rest[13]}, true
}

// parseHead reads the addresses and ports of a TCP packet inside of an ICMP message.
func parseHead(p []byte) (g segment, ok bool) {
	if len(p) < 20 || p[9] != unix.IPPROTO_TCP {
		return g, false
	}
	rest := p[min(int(p[0]&15)*4, len(p)):]
	if len(rest) < 4 {
		return g, false
	}
	src, _ := netip.AddrFromSlice(p[12:16])
	dst, _ := netip.AddrFromSlice(p[16:20])
	return segment{from: netip.AddrPortFrom(src, order.BigEndian.Uint16(rest)), to: netip.AddrPortFrom(dst, order.BigEndian.Uint16(rest[2:]))}, true
}

// refuses: the answer to a SYN (its sequence number is 0, as nothing was
// acknowledged), and not within the machine's own 127.0.0.0/8.
func (g segment) refuses() bool {
	if g.from.Addr().IsLoopback() {
		return false
	}
	return g.flags == 0 && g.icmp[0] == 3 || g.flags&(flagSYN|flagRST|flagACK) == flagRST|flagACK && g.seq == 0
}

func (g segment) String() string {
	dir := "in"
	if g.out {
		dir = "out"
	}
	what := fmt.Sprintf("ICMP %d/%d about", g.icmp[0], g.icmp[1])
	if g.flags != 0 {
		what = ""
		for i, f := range []string{"FIN", "SYN", "RST", "PSH", "ACK"} {
			if g.flags&(1<<i) != 0 {
				what += f + " "
			}
		}
		what = fmt.Sprintf("%sseq %d ack %d", what, g.seq, g.ack)
	}
	return fmt.Sprintf("%s link %d %s %s > %s %s", g.at.UTC().Format("15:04:05.000000"), g.link, dir, g.from, g.to, what)
}

// flowOf asks the kernel for the connection whose answers go from one end to the
// other. A connection that is refused at once is forgotten at once.
func flowOf(from, to netip.AddrPort) string {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|int(nl.IPCTNL_MSG_CT_GET), 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	tuple := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_REPLY, nil)
	ip := tuple.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil)
	ip.AddRtAttr(nl.CTA_IP_V4_SRC, from.Addr().AsSlice())
	ip.AddRtAttr(nl.CTA_IP_V4_DST, to.Addr().AsSlice())
	proto := tuple.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_TCP})
	proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, order.BigEndian.AppendUint16(nil, from.Port()))
	proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, order.BigEndian.AppendUint16(nil, to.Port()))
	req.AddData(tuple)
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil || len(msgs) == 0 {
		return fmt.Sprint("unknown to the kernel: ", err)
	}
	var src, dst netip.AddrPort
	state, timeout, status := -1, uint32(0), uint32(0)
	var walk func(b []byte, path string)
	walk = func(b []byte, path string) {
		attrs, _ := nl.ParseRouteAttr(b)
		for _, a := range attrs {
			at := fmt.Sprintf("%s/%d", path, a.Attr.Type&0x3fff)
			v := a.Value
			switch at {
			case "/1", "/1/1", "/1/2", "/4", "/4/1":
				walk(v, at)
			case "/1/1/1", "/1/1/2":
				addr, _ := netip.AddrFromSlice(v)
				if at == "/1/1/1" {
					src = netip.AddrPortFrom(addr, src.Port())
				} else {
					dst = netip.AddrPortFrom(addr, dst.Port())
				}
			case "/1/2/2":
				src = netip.AddrPortFrom(src.Addr(), order.BigEndian.Uint16(v))
			case "/1/2/3":
				dst = netip.AddrPortFrom(dst.Addr(), order.BigEndian.Uint16(v))
			case "/4/1/1":
				state = int(v[0])
			case "/3":
				status = order.BigEndian.Uint32(v)
			case "/7":
				timeout = order.BigEndian.Uint32(v)
			}
		}
	}
	walk(msgs[0][4:], "")
	return fmt.Sprintf("%s > %s, TCP state %d, status %#x, %d s left", src, dst, state, status, timeout)
}

// report shows the refusals around the given instants and what the server did then.
// Others are no failures: a probe asks before the program listens.
func (s *sniffer) report(t testing.TB, b *box, failures []time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, _ := os.ReadFile(filepath.Join(b.data, "proa.log"))
	lines := strings.Split(string(data), "\n")
	shown := 0
	for _, r := range s.refusals {
		if !slices.ContainsFunc(failures, func(at time.Time) bool { return r.at.Sub(at).Abs() < 50*time.Millisecond }) {
			continue
		}
		shown++
		out := []string{"refused: " + r.segment.String(), "  the connection: " + r.flow}
		for _, g := range r.before {
			out = append(out, "  before:  "+g.String())
		}
		for _, l := range lines {
			if at, err := time.Parse(time.RFC3339Nano, strings.TrimPrefix(strings.Split(l, " ")[0], "time=")); err == nil && r.at.Sub(at).Abs() < 150*time.Millisecond {
				out = append(out, "  server:  "+l)
			}
		}
		t.Log(strings.Join(out, "\n"))
	}
	t.Logf("packets: %d of %d refusals were at the time of one of %d failures", shown, len(s.refusals), len(failures))
}
