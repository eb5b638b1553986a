// Package wire is the form of what the engine and a monitor say to each other:
// one SOCK_SEQPACKET packet per message, with file descriptors beside it. The
// meaning of each message stands in docs/decisions/0005-monitor-protocol.md.
//
//	0        1                5         9
//	┌────────┬────────────────┬─────────┬───────────┬─────────┬─────
//	│ type   │ sequence LE 32 │ len LE  │ argument  │ len LE  │ …
//	└────────┴────────────────┴─────────┴───────────┴─────────┴─────
//
// Bounds: MaxBytes per packet, MaxFiles descriptors. A packet that does not
// parse is an error of the peer; the connection is then of no use.
//
// It is linked into the monitor, so it imports nothing that costs memory.
package wire

import (
	"encoding/binary"
	"errors"
)

const (
	MaxBytes = 64 << 10
	MaxFiles = 4
)

// Types of message.
const (
	Hello byte = iota + 1
	Start
	Kill
	Exec
	KillExec
	Attach
	CloseStdin
	Reopen
	Forget
	Quit

	OK        byte = 64 // reply: the request was carried out
	Error     byte = 65 // reply: argument 0 says why not
	Container byte = 66 // reply to Hello, before OK: one container

	Exit     byte = 96 // event
	ExecExit byte = 97 // event
)

// Flags of Start and Attach, joined by commas.
const (
	FlagStdin     = "stdin"
	FlagStdinOnce = "once"
	FlagTTY       = "tty"
	FlagStdout    = "stdout"
	FlagStderr    = "stderr"
	FlagOOM       = "oom"
	FlagAll       = "all"
	FlagShared    = "shared" // the container has no process namespace of its own
)

// Message is one packet. Seq ties a reply to its request; 0 marks an event.
type Message struct {
	Type byte
	Seq  uint32
	Args []string
}

// ErrMalformed says that a packet is no message.
var ErrMalformed = errors.New("malformed monitor message")

// ErrTooLarge says that a message does not fit into one packet.
var ErrTooLarge = errors.New("monitor message too large")

// Append encodes m after b.
func Append(b []byte, m Message) ([]byte, error) {
	start := len(b)
	b = append(b, m.Type)
	b = binary.LittleEndian.AppendUint32(b, m.Seq)
	for _, a := range m.Args {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(a)))
		b = append(b, a...)
	}
	if len(b)-start > MaxBytes {
		return b[:start], ErrTooLarge
	}
	return b, nil
}

// Parse decodes one packet; the message does not alias p.
func Parse(p []byte) (Message, error) {
	if len(p) < 5 {
		return Message{}, ErrMalformed
	}
	m := Message{Type: p[0], Seq: binary.LittleEndian.Uint32(p[1:])}
	for p = p[5:]; len(p) > 0; {
		if len(p) < 4 {
			return Message{}, ErrMalformed
		}
		n := uint64(binary.LittleEndian.Uint32(p))
		if p = p[4:]; n > uint64(len(p)) {
			return Message{}, ErrMalformed
		}
		m.Args = append(m.Args, string(p[:n]))
		p = p[n:]
	}
	return m, nil
}

// Arg returns argument i, or "" if there are fewer.
func (m Message) Arg(i int) string {
	if i < len(m.Args) {
		return m.Args[i]
	}
	return ""
}

// Has reports whether flag is one of the comma-joined words of set.
func Has(set, flag string) bool {
	for len(set) > 0 {
		word := set
		for i := 0; i < len(set); i++ {
			if set[i] == ',' {
				word = set[:i]
				break
			}
		}
		if word == flag {
			return true
		}
		if len(word) == len(set) {
			return false
		}
		set = set[len(word)+1:]
	}
	return false
}
