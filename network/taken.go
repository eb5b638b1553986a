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
	takenLooks = 2           // one after the other, a pause between them
	takenYoung = time.Second // a silent connection older than this is not waited for
	takenLimit = 2 * time.Second
)

// WaitTaken returns once the programs of a sandbox have taken up every TCP
// connection and request that has come to it: nothing waits to be accepted or
// read, and no connection is so young that its first bytes are still on their way.
// Most servers that are told to end drop exactly these: what they have not read
// yet is reset. Nobody must send new connections any more. A program that does not
// read what it is sent, or reads without end, is given two seconds.
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
			if i := s.TCPInfo; m.State == netlink.TCP_ESTABLISHED && i != nil && i.Bytes_received == 0 && time.Duration(i.Last_ack_recv)*time.Millisecond < takenYoung {
				return fmt.Sprintf("a connection to port %d has sent nothing yet", m.ID.SourcePort), nil
			}
		}
	}
	return "", nil
}
