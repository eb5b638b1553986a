package monitor

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lineLimit is the longest piece of a line in one log entry.
	lineLimit = 16 << 10
	// attachPatience is how long an attachment may take nothing in.
	attachPatience = 30 * time.Second
	timeLayout     = "2006-01-02T15:04:05.000000000Z07:00"
)

var streamNames = [2]string{"stdout", "stderr"}

// logFile is a CRI log: lines of "time stream F|P text". F ends a line of the
// container, P goes on in the next entry of the same stream.
type logFile struct {
	mu   sync.Mutex
	path string
	f    *os.File
}

// openLog opens for appending; an empty path means no log.
func openLog(path string) (*logFile, error) {
	l := &logFile{path: path}
	if path == "" {
		return l, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	l.f = f
	return l, nil
}

func (l *logFile) reopen() error {
	n, err := openLog(l.path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	old := l.f
	l.f = n.f
	l.mu.Unlock()
	if old != nil {
		old.Close()
	}
	return nil
}

// write appends whole entries. A full disk loses entries, not the container.
func (l *logFile) write(b []byte) {
	l.mu.Lock()
	if l.f != nil {
		l.f.Write(b)
	}
	l.mu.Unlock()
}

func (l *logFile) close() {
	l.mu.Lock()
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
	l.mu.Unlock()
}

// output is one stream of a container on its way to the log and to attachments.
type output struct {
	src      *os.File
	log      *logFile
	name     string
	mu       sync.Mutex
	attached []*os.File
	ended    bool
}

// copy runs until the stream ends. Between reads the tail of an unfinished line
// stays in the buffer.
func (o *output) copy() {
	buf := make([]byte, lineLimit)
	entry := make([]byte, 0, 4<<10)
	have := 0
	for {
		n, err := o.src.Read(buf[have:])
		if n > 0 {
			o.forward(buf[have : have+n])
			entry, have = o.entries(entry[:0], buf, have, have+n)
			o.log.write(entry)
			if cap(entry) > 64<<10 {
				entry = make([]byte, 0, 4<<10)
			}
		}
		if err != nil {
			break
		}
	}
	if have > 0 {
		o.log.write(appendEntry(entry[:0], time.Now(), o.name, 'P', buf[:have]))
	}
	o.mu.Lock()
	o.ended = true
	for _, a := range o.attached {
		a.Close()
	}
	o.attached = nil
	o.mu.Unlock()
}

// entries appends the log entries of the complete lines in buf[:end], of which
// the part before old holds no line end, and moves the rest to the front. A
// full buffer without a line end becomes a partial entry.
func (o *output) entries(entry, buf []byte, old, end int) ([]byte, int) {
	now := time.Now()
	from := 0
	for i := old; i < end; i++ {
		if buf[i] == '\n' {
			entry = appendEntry(entry, now, o.name, 'F', buf[from:i])
			from = i + 1
		}
	}
	if from == 0 && end == len(buf) {
		return appendEntry(entry, now, o.name, 'P', buf), 0
	}
	return entry, copy(buf, buf[from:end])
}

func appendEntry(b []byte, now time.Time, stream string, tag byte, text []byte) []byte {
	b = now.UTC().AppendFormat(b, timeLayout)
	b = append(b, ' ')
	b = append(b, stream...)
	b = append(b, ' ', tag, ' ')
	b = append(b, text...)
	return append(b, '\n')
}

func (o *output) attach(f *os.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		f.Close()
		return
	}
	o.attached = append(o.attached, f)
}

// forward writes to all attachments; who fails or stands still is dropped.
func (o *output) forward(b []byte) {
	o.mu.Lock()
	list := o.attached
	o.mu.Unlock()
	if len(list) == 0 {
		return
	}
	var lost []*os.File
	for _, a := range list {
		a.SetWriteDeadline(time.Now().Add(attachPatience))
		if _, err := a.Write(b); err != nil {
			lost = append(lost, a)
		}
	}
	if lost == nil {
		return
	}
	o.mu.Lock()
	kept := make([]*os.File, 0, len(o.attached))
	for _, a := range o.attached {
		keep := true
		for _, l := range lost {
			keep = keep && a != l
		}
		if keep {
			kept = append(kept, a)
		} else {
			a.Close()
		}
	}
	o.attached = kept
	o.mu.Unlock()
}

func (o *output) close() {
	o.src.Close()
}

// pipeIn is a pipe for reading from a child: the parent's side r can be waited
// for without a thread, the child's side blocks, as programs expect. Nothing is
// inherited unasked.
func pipeIn() (r, w *os.File, err error) { return pipe(0) }

// pipeOut is a pipe for writing to a child.
func pipeOut() (r, w *os.File, err error) { return pipe(1) }

func pipe(ours int) (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	unix.SetNonblock(p[ours], true)
	return os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe"), nil
}

// receiveFile takes one file that arrives over a stream socket.
func receiveFile(s *os.File) (*os.File, error) {
	var b [4096]byte
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(int(s.Fd()), b[:], oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 && oobn == 0 {
			return nil, os.ErrClosed
		}
		cms, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(cms) == 0 {
			return nil, failure("no terminal arrived")
		}
		fds, err := unix.ParseUnixRights(&cms[0])
		if err != nil || len(fds) == 0 {
			return nil, failure("no terminal arrived")
		}
		unix.SetNonblock(fds[0], true)
		return os.NewFile(uintptr(fds[0]), "terminal"), nil
	}
}
