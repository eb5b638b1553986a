// Package nft changes nftables over netlink, without the nft program: a Batch is
// one transaction, and the kernel carries it out whole or not at all.
//
// The package knows tables of the inet family only. Expressions of rules come
// from google/nftables; tables, sets and elements are encoded here, because a
// batch must be able to hold hundreds of thousands of elements (one netlink
// attribute holds 64 KB), and because acknowledging only the last message keeps
// a transaction at one send and one receive.
//
// Fields of keys and data are four bytes or a multiple of it, as in the kernel's
// registers: an address of IPv4 takes 4 bytes, of IPv6 16, a protocol number or
// a port 4 with the value in front.
//
// Source: linux/netfilter/nf_tables.h, nfnetlink.h (5.10 and newer).
package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// replyTimeout bounds the wait for the kernel's answer to one request. The
// kernel answers within the send call, so that running into it means a lost
// message.
const replyTimeout = 30 * time.Second

// Conn is a netlink socket of one network namespace. It may be used by several
// goroutines.
type Conn struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf []byte
}

// Open connects to the network namespace of the calling thread.
func Open() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", os.NewSyscallError("socket", err))
	}
	c := &Conn{fd: fd, buf: make([]byte, 1<<18)}
	// A first fill of 100,000 services is one message of about 30 MB. Forcing the
	// size takes CAP_NET_ADMIN, which changing rules needs anyway.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 256<<20) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	}
	tv := unix.NsecToTimeval(int64(replyTimeout))
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	return c, nil
}

// Close ends the connection; tables stay.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil
	}
	err := unix.Close(c.fd)
	c.fd = -1
	return err
}

// Error is the kernel's refusal of one message of a batch.
type Error struct {
	Deed  string // such as "add element services4"
	Errno unix.Errno
}

func (e *Error) Error() string { return "nftables: " + e.Deed + ": " + e.Errno.Error() }
func (e *Error) Unwrap() error { return e.Errno }

// Apply carries out a batch: all of it, or nothing and the refusals as *Error,
// joined. When it returns nil, the packets that arrive from then on meet the new
// rules. An empty batch does nothing.
func (c *Conn) Apply(b *Batch) error {
	if b.err != nil {
		return b.err
	}
	if len(b.deeds) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return fmt.Errorf("change nftables: %w", os.ErrClosed)
	}

	// begin = first, deeds = first+1 … last, end = last+1
	first := c.seq + 1
	last := first + uint32(len(b.deeds))
	c.seq = last + 1
	out := make([]byte, 0, len(b.out)+64)
	out = appendHeader(out, unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, first, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	start := len(out)
	out = append(out, b.out...)
	for i, at := range b.starts {
		binary.NativeEndian.PutUint32(out[start+at+8:], first+1+uint32(i))
	}
	lastAt := start + b.starts[len(b.starts)-1]
	flags := binary.NativeEndian.Uint16(out[lastAt+6:])
	binary.NativeEndian.PutUint16(out[lastAt+6:], flags|unix.NLM_F_ACK)
	out = appendHeader(out, unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, last+1, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)

	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("change nftables: send %d bytes: %w", len(out), err)
	}
	var refused []error
	for {
		n, err := c.receive()
		if err != nil {
			return fmt.Errorf("change nftables: %w", err)
		}
		done := false
		for m := range messages(c.buf[:n]) {
			if m.typ != unix.NLMSG_ERROR || m.seq < first || m.seq > last+1 || len(m.data) < 4 {
				continue
			}
			if code := int32(binary.NativeEndian.Uint32(m.data)); code != 0 {
				deed := "commit"
				if m.seq > first && m.seq <= last {
					deed = b.deeds[m.seq-first-1]
				}
				if len(refused) < 20 {
					refused = append(refused, &Error{deed, unix.Errno(-code)})
				}
			}
			// A refusal of the whole batch is addressed to its first message; answers
			// that follow it are skipped by their number the next time.
			done = done || m.seq == last || m.seq == first
		}
		if done {
			return errors.Join(refused...)
		}
	}
}

func (c *Conn) receive() (int, error) {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return 0, fmt.Errorf("no answer from the kernel within %s", replyTimeout)
		case err != nil:
			return 0, os.NewSyscallError("recvfrom", err)
		default:
			return n, nil
		}
	}
}

// dump sends one request and calls each with the attributes of every answer.
func (c *Conn) dump(typ uint16, attrs []byte, each func(family uint8, attrs []byte)) error {
	return c.dumpOf(typ, unix.NFPROTO_INET, attrs, each)
}

func (c *Conn) dumpFamily(typ uint16, family uint8, each func(family uint8, attrs []byte)) error {
	return c.dumpOf(typ, family, nil, each)
}

func (c *Conn) dumpOf(typ uint16, family uint8, attrs []byte, each func(family uint8, attrs []byte)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return os.ErrClosed
	}
	// The rules may change while they are read; the kernel then says so, and the
	// answer is of no use.
	for try := 0; ; try++ {
		c.seq++
		out := appendHeader(nil, typ, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, c.seq, family, 0)
		out = append(out, attrs...)
		binary.NativeEndian.PutUint32(out, uint32(len(out)))
		if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return os.NewSyscallError("sendto", err)
		}
		var got []message
		interrupted, err := c.collect(&got)
		if err != nil {
			return err
		}
		if interrupted && try < 10 {
			continue
		}
		if interrupted {
			return fmt.Errorf("read nftables: rules changed during each of %d readings", try+1)
		}
		for _, m := range got {
			if len(m.data) >= 4 {
				each(m.data[0], m.data[4:])
			}
		}
		return nil
	}
}

func (c *Conn) collect(got *[]message) (interrupted bool, err error) {
	for {
		n, err := c.receive()
		if err != nil {
			return false, err
		}
		part := append([]byte(nil), c.buf[:n]...)
		for m := range messages(part) {
			if m.seq != c.seq {
				continue
			}
			interrupted = interrupted || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.typ {
			case unix.NLMSG_DONE:
				return interrupted, nil
			case unix.NLMSG_ERROR:
				if len(m.data) >= 4 {
					code := int32(binary.NativeEndian.Uint32(m.data))
					if unix.Errno(-code) == unix.EINTR || unix.Errno(-code) == unix.EAGAIN {
						return true, nil
					}
					if code != 0 {
						return false, unix.Errno(-code)
					}
					return interrupted, nil
				}
			default:
				*got = append(*got, m)
			}
		}
	}
}

type message struct {
	typ, flags uint16
	seq        uint32
	data       []byte
}

func messages(b []byte) func(func(message) bool) {
	return func(yield func(message) bool) {
		for len(b) >= unix.NLMSG_HDRLEN {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return
			}
			m := message{
				typ:   binary.NativeEndian.Uint16(b[4:]),
				flags: binary.NativeEndian.Uint16(b[6:]),
				seq:   binary.NativeEndian.Uint32(b[8:]),
				data:  b[unix.NLMSG_HDRLEN:size],
			}
			if !yield(m) {
				return
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

// appendHeader starts a netlink message with the netfilter header behind it.
func appendHeader(b []byte, typ, flags uint16, seq uint32, family uint8, resource uint16) []byte {
	b = binary.NativeEndian.AppendUint32(b, unix.NLMSG_HDRLEN+4)
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, family, unix.NFNETLINK_V0)
	return binary.BigEndian.AppendUint16(b, resource)
}
