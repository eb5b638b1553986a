package network

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// calm waits until the kernel has delivered the packets that were on their way
// inside of this machine. A change of the rules is live when the kernel has
// answered, for packets that arrive from then on; one that was being looked up at that
// instant still goes to where the old rules sent it, and may wait in a processor's
// backlog before it gets there, on a busy machine for tens of milliseconds.
type calm struct {
	begun atomic.Uint64
	mu    sync.Mutex // held during a round
}

// calmLimit bounds the wait for the backlogs.
const calmLimit = 500 * time.Millisecond

// wait returns after a round that began after the call. Callers share rounds.
func (c *calm) wait() {
	want := c.begun.Load() + 1
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.begun.Load() >= want {
		return
	}
	c.begun.Add(1)
	passReaders()
	drainBacklogs()
	passReaders()
}

// passReaders returns when everything that the kernel was doing under its
// read-side lock, evaluation and handing on of packets among it, has ended
// (membarrier(2), MEMBARRIER_CMD_GLOBAL). It takes some 10 ms. Where the call does not
// exist nothing is waited for.
func passReaders() { _, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, 1, 0, 0) }

// drainBacklogs returns when the backlog of each processor has been empty once, or
// has been worked off as far as it was filled at first.
func drainBacklogs() {
	first, err := readBacklogs()
	if err != nil {
		return // this kernel does not tell
	}
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	limit := time.NewTimer(calmLimit) // the kernel's time, not a decider's
	defer limit.Stop()
	for {
		now, err := readBacklogs()
		if err != nil {
			return
		}
		waiting := false
		for cpu, b := range first {
			if b.length == 0 || now[cpu].length == 0 || now[cpu].done-b.done >= b.length {
				delete(first, cpu)
				continue
			}
			waiting = true
		}
		if !waiting {
			return
		}
		select {
		case <-t.C:
		case <-limit.C:
			return
		}
	}
}

// backlog of one processor.
type backlog struct {
	done   uint32 // packets processed so far
	length uint32 // packets that wait
}

// readBacklogs reads /proc/net/softnet_stat: hexadecimal columns, of which the
// first is the number of packets processed, the 12th the backlog's length (Linux
// 5.14), the 13th the processor.
func readBacklogs() (map[uint32]backlog, error) {
	data, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		return nil, err
	}
	return parseBacklogs(data)
}

func parseBacklogs(data []byte) (map[uint32]backlog, error) {
	out := map[uint32]backlog{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		fields := bytes.Fields(lines.Bytes())
		if len(fields) < 13 {
			return nil, unix.ENOTSUP
		}
		var v [3]uint32
		for i, column := range []int{0, 11, 12} {
			n, err := strconv.ParseUint(string(fields[column]), 16, 32)
			if err != nil {
				return nil, err
			}
			v[i] = uint32(n)
		}
		out[v[2]] = backlog{done: v[0], length: v[1]}
	}
	return out, lines.Err()
}
