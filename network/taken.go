package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// How a connection is judged, see WaitTaken.
const (
	takenPause = 10 * time.Millisecond
	takenLooks = 2                      // one after the other, a pause between them
	takenYoung = time.Second            // a silent connection older than this is not waited for
	takenFresh = 500 * time.Millisecond // an unanswered request older than this is not waited for
	takenLimit = 3 * time.Second
)

// WaitTaken returns once the programs of a sandbox have taken up every TCP
// connection and request that has come to it: nothing waits to be accepted or
// read, no request has been read just now without a byte of an answer, and no
// connection is so young that its first bytes are still on their way. Most servers
// that are told to end drop exactly these: what they have not read yet is reset, and
// net/http closes on what it has read but not begun. Nobody must send new connections any
// more; packets that are on their way to the sandbox inside of this machine are
// waited for. A program that does not read what it is sent, or reads without end,
// is given three seconds; one that listens to nothing, none.
//
// A sandbox that this network does not know (of the host's network) is fine at
// once. The error is ctx's.
func (n *Network) WaitTaken(ctx context.Context, addr netip.Addr) error {
	path := ""
	n.mu.Lock()
	for _, r := range n.pool.records {
		if slices.Contains(r.IPs, addr) {
			path = r.Netns
		}
	}
	n.mu.Unlock()
	if path == "" {
		return nil
	}
	ns, err := netns.GetFromPath(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at connections of %s: %w", addr, err)
	}
	defer ns.Close()
	listens := false
	if err := inNetns(ns, func() (err error) { listens, err = listening(); return err }); err != nil {
		return fmt.Errorf("look at connections of %s: %w", addr, err)
	}
	if !listens {
		return nil
	}
	n.calm.wait()
	return inNetns(ns, func() error {
		t := time.NewTicker(takenPause)
		defer t.Stop()
		limit := time.NewTimer(takenLimit) // the kernel's time, not a decider's
		defer limit.Stop()
		for quiet := 0; ; {
			why, err := untaken()
			if err != nil {
				return fmt.Errorf("look at connections of %s: %w", addr, err)
			}
			quiet++
			if why != "" {
				quiet = 0
			}
			if quiet == takenLooks {
				return nil
			}
			select {
			case <-t.C:
			case <-limit.C:
				return nil
			case <-ctx.Done():
				return fmt.Errorf("wait for connections of %s to be taken up: %s: %w", addr, why, ctx.Err())
			}
		}
	})
}

// unanswered: the last bytes came in lately, and none went out since. Times are
// in steps of the kernel's clock (4 ms or so); a connection that has answered
// before gets the benefit of the doubt.
func unanswered(i *netlink.TCPInfo) bool {
	if i.Bytes_received == 0 || time.Duration(i.Last_data_recv)*time.Millisecond >= takenFresh {
		return false
	}
	return i.Bytes_sent == 0 || i.Last_data_recv < i.Last_data_sent
}

// listening: something in this thread's network namespace accepts connections.
func listening() (bool, error) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		list, err := netlink.SocketDiagTCP(family)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		for _, s := range list {
			if s.State == netlink.TCP_LISTEN {
				return true, nil
			}
		}
	}
	return false, nil
}

// untaken says what has come to this thread's network namespace and is not taken
// up, or "".
func untaken() (string, error) {
	var all []*netlink.InetDiagTCPInfoResp
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		list, err := netlink.SocketDiagTCPInfo(family)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			return "connections come and go", nil
		}
		if err != nil {
			return "", err
		}
		all = append(all, list...)
	}
	served := map[uint16]bool{}
	for _, s := range all {
		if s.InetDiagMsg.State == netlink.TCP_LISTEN {
			served[s.InetDiagMsg.ID.SourcePort] = true
		}
	}
	for _, s := range all {
		m := s.InetDiagMsg
		if !served[m.ID.SourcePort] {
			continue
		}
		switch m.State {
		case netlink.TCP_LISTEN:
			if m.RQueue > 0 {
				return fmt.Sprintf("%d connections to port %d wait to be accepted", m.RQueue, m.ID.SourcePort), nil
			}
		case netlink.TCP_SYN_RECV, netlink.TCP_NEW_SYN_REC:
			return fmt.Sprintf("a connection to port %d is being opened", m.ID.SourcePort), nil
		case netlink.TCP_ESTABLISHED, netlink.TCP_CLOSE_WAIT:
			unread := m.RQueue
			if m.State == netlink.TCP_CLOSE_WAIT && unread > 0 {
				unread-- // the peer's end counts as one
			}
			if unread > 0 {
				return fmt.Sprintf("%d bytes to port %d wait to be read", unread, m.ID.SourcePort), nil
			}
			if i := s.TCPInfo; i != nil && unanswered(i) {
				return fmt.Sprintf("a request to port %d has no answer yet", m.ID.SourcePort), nil
			}
			if i := s.TCPInfo; m.State == netlink.TCP_ESTABLISHED && i != nil && i.Bytes_received == 0 && time.Duration(i.Last_ack_recv)*time.Millisecond < takenYoung {
				return fmt.Sprintf("a connection to port %d has sent nothing yet", m.ID.SourcePort), nil
			}
		}
	}
	return "", nil
}
