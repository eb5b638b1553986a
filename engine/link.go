package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"proa.dev/engine/wire"
)

const socketName = "monitor.sock"

// link is the connection to one monitor.
type link struct {
	conn    *net.UnixConn
	onEvent func(wire.Message)
	pid     int // of process 1 of a shared process namespace, after hello

	mu      sync.Mutex
	seq     uint32
	waiting map[uint32]chan answer
	err     error // why there is no connection any more
	done    chan struct{}
}

type answer struct {
	msg   wire.Message
	files []*os.File
}

// monitorGone is under every error of a call whose monitor has ended.
var errMonitorGone = errors.New("the pod's monitor is gone")

// spawnMonitor starts a monitor in dir and returns the link to it. The caller runs follow.
func (e *Engine) spawnMonitor(dir string, sharedPids bool, onEvent func(wire.Message)) (*link, error) {
	listener, err := listenAt(dir)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "monitor"), os.NewFile(uintptr(pair[1]), "monitor")
	defer ours.Close()
	defer theirs.Close()
	log, err := os.OpenFile(filepath.Join(dir, "monitor.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(e.cfg.MonitorPath, "run")
	if sharedPids {
		cmd.Args = append(cmd.Args, "pid")
	}
	cmd.Dir, cmd.Env = dir, []string{"GOMAXPROCS=1", "GOTRACEBACK=single"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{listener, theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start monitor: %w", err)
	}
	if score := e.limits.monitorScore(); score != "" {
		os.WriteFile("/proc/"+strconv.Itoa(cmd.Process.Pid)+"/oom_score_adj", []byte(score), 0)
	}
	os.WriteFile(filepath.Join(dir, "monitor.pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
	e.group.Add(1)
	go func() {
		defer e.group.Done()
		waitChild(e.runCtx, cmd)
	}()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	return newLink(conn.(*net.UnixConn), onEvent), nil
}

// waitChild collects a monitor that ends while we run. When we end first,
// somebody else inherits it.
func waitChild(ctx context.Context, cmd *exec.Cmd) {
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
	}
}

// listenAt binds the socket in dir. Its name is short whatever dir's is.
func listenAt(dir string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), socketName)}); err != nil {
		f.Close()
		return nil, fmt.Errorf("bind monitor's socket: %w", err)
	}
	if err := unix.Listen(fd, 8); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// dialMonitor connects to the monitor that lives in dir.
func dialMonitor(dir string, onEvent func(wire.Message)) (*link, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), socketName)})
	if err != nil {
		return nil, err
	}
	return newLink(c, onEvent), nil
}

func newLink(c *net.UnixConn, onEvent func(wire.Message)) *link {
	return &link{conn: c, onEvent: onEvent, waiting: map[uint32]chan answer{}, done: make(chan struct{})}
}

// follow reads until the connection ends. Events are handed on in order.
func (l *link) follow() {
	buf := make([]byte, wire.MaxBytes)
	oob := make([]byte, unix.CmsgSpace(4*wire.MaxFiles))
	var cause error
	for {
		n, oobn, _, _, err := l.conn.ReadMsgUnix(buf, oob)
		if err == nil && n == 0 {
			err = errMonitorGone
		}
		if err != nil {
			cause = err
			break
		}
		msg, err := wire.Parse(buf[:n])
		if err != nil {
			cause = err
			break
		}
		if msg.Seq == 0 {
			l.onEvent(msg)
			continue
		}
		l.mu.Lock()
		ch := l.waiting[msg.Seq]
		l.mu.Unlock()
		files := filesOf(oob[:oobn])
		if ch == nil {
			for _, f := range files {
				f.Close()
			}
			continue
		}
		ch <- answer{msg, files}
	}
	l.mu.Lock()
	l.err = cause
	l.mu.Unlock()
	close(l.done)
	l.conn.Close()
}

func filesOf(oob []byte) []*os.File {
	cms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var out []*os.File
	for i := range cms {
		fds, err := unix.ParseUnixRights(&cms[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			unix.SetNonblock(fd, true)
			out = append(out, os.NewFile(uintptr(fd), "monitor"))
		}
	}
	return out
}

func (l *link) close() { l.conn.Close() }

func (l *link) closed() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// call sends a request and waits for its answer.
func (l *link) call(ctx context.Context, kind byte, args []string, files ...*os.File) (answer, error) {
	var got answer
	err := l.each(ctx, kind, args, files, func(a answer) { got = a })
	return got, err
}

// each is call for requests with several replies; the last one is OK.
func (l *link) each(ctx context.Context, kind byte, args []string, files []*os.File, f func(answer)) error {
	ch := make(chan answer, 64)
	l.mu.Lock()
	l.seq++
	if l.seq == 0 {
		l.seq++
	}
	seq := l.seq
	l.waiting[seq] = ch
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.waiting, seq)
		l.mu.Unlock()
	}()
	b, err := wire.Append(nil, wire.Message{Type: kind, Seq: seq, Args: args})
	if err != nil {
		return err
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, h := range files {
			fds[i] = int(h.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := l.conn.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("%w: %w", errMonitorGone, err)
	}
	for {
		select {
		case a := <-ch:
			if a.msg.Type == wire.Error {
				return errors.New(a.msg.Arg(0))
			}
			f(a)
			if a.msg.Type == wire.OK {
				return nil
			}
		case <-l.done:
			return errMonitorGone
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
