package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
)

// cutter forgets UDP flows to endpoints that are gone, beside Run: the kernel
// walks its whole table of connections for it, which takes some milliseconds.
type cutter struct {
	kernel *Kernel
	log    *slog.Logger
	wake   chan struct{}

	mu     sync.Mutex
	gone   []netip.AddrPort
	wanted uint64 // number of the newest request
	done   uint64 // number of the newest request that is carried out
	moved  chan struct{}
}

func newCutter(k *Kernel, log *slog.Logger) *cutter {
	return &cutter{kernel: k, log: log, wake: make(chan struct{}, 1), moved: make(chan struct{})}
}

func (c *cutter) add(gone []netip.AddrPort) {
	if len(gone) == 0 {
		return
	}
	c.mu.Lock()
	c.gone = append(c.gone, gone...)
	c.wanted++
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *cutter) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		c.mu.Lock()
		gone, number := c.gone, c.wanted
		c.gone = nil
		c.mu.Unlock()
		n, err := c.kernel.CutUDP(gone)
		if err != nil {
			c.log.Warn("UDP clients may keep talking to endpoints that are gone", "endpoints", len(gone), "err", err)
		} else if n > 0 {
			c.log.Debug("UDP flows cut", "flows", n)
		}
		c.mu.Lock()
		c.done = number
		close(c.moved)
		c.moved = make(chan struct{})
		c.mu.Unlock()
	}
}

// wait returns once everything that was asked for before has been carried out.
func (c *cutter) wait(ctx context.Context) error {
	c.mu.Lock()
	target := c.wanted
	c.mu.Unlock()
	for {
		c.mu.Lock()
		done, moved := c.done, c.moved
		c.mu.Unlock()
		if done >= target {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for UDP flows to be cut: %w", ctx.Err())
		}
	}
}
