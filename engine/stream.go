package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/engine/bundle"
	"proa.dev/engine/term"
	"proa.dev/engine/wire"
)

const (
	// drainPatience is how long output may still come after a process has ended
	// (its children may hold the pipe).
	drainPatience = 2 * time.Second
	// execOutputLimit is how much of each stream ExecSync keeps.
	execOutputLimit = 16 << 20
)

// Size is a terminal's, in characters.
type Size = term.Size

// ExecStream runs a command in a running container and returns its exit code
// when it has ended. Absent streams are nil; with tty, stderr is not used. When
// ctx ends the process is killed. A Read of stdin may outlast the call: close
// the reader to release it.
func (e *Engine) ExecStream(ctx context.Context, containerID string, cmd []string, tty bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan Size) (int, error) {
	return e.exec(ctx, containerID, cmd, 0, execStreams{tty: tty, stdin: stdin, stdout: stdout, stderr: stderr, resize: resize})
}

// execStreams are what a process in a container reads and writes; nil: nothing.
type execStreams struct {
	tty            bool
	stdin          io.Reader
	stdout, stderr io.Writer
	resize         <-chan Size
}

// exec kills the process when the timeout has passed since its start; 0: never.
func (e *Engine) exec(ctx context.Context, containerID string, cmd []string, timeout time.Duration, s execStreams) (int, error) {
	c, l, err := e.running(ctx, "exec in", containerID)
	if err != nil {
		return 0, err
	}
	if len(cmd) == 0 {
		return 0, status.Errorf(codes.InvalidArgument, "exec in container %q: no command", c.id)
	}
	id := e.newID()
	file, err := e.writeExec(c, id, cmd, s.tty)
	if err != nil {
		return 0, fmt.Errorf("exec in container %q: %w", c.id, err)
	}
	defer os.Remove(file)
	ended := make(chan int, 1)
	e.mu.Lock()
	c.execs[id] = ended
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(c.execs, id)
		e.mu.Unlock()
	}()
	io_, err := newExecIO(s.tty, s.stdin != nil, s.stdout != nil, s.stderr != nil)
	if err != nil {
		return 0, err
	}
	defer io_.close()
	flags := ""
	if s.tty {
		flags = wire.FlagTTY
	}
	args := []string{id, c.id, e.cfg.RunnerPath, filepath.Join(e.runDir(c.sandbox.id), "lc"), file, flags}
	// The call is not interrupted: a process that has begun must be known.
	_, err = l.call(context.WithoutCancel(ctx), wire.Exec, args, io_.theirs...)
	if err == nil {
		err = io_.started()
	}
	if err != nil {
		return 0, fmt.Errorf("exec in container %q: %w", c.id, err)
	}
	outputs := io_.copy(s.stdin, s.stdout, s.stderr, s.resize)
	var late <-chan time.Time
	if timeout > 0 {
		t := e.clock.NewTimer(timeout)
		defer t.Stop()
		late = t.C()
	}
	var code int
	select {
	case code = <-ended:
	case <-l.done:
		return 0, fmt.Errorf("exec in container %q: %w", c.id, errMonitorGone)
	case <-ctx.Done():
		err = ctx.Err()
	case <-late:
		err = status.Errorf(codes.DeadlineExceeded, "exec in container %q: timeout of %s exceeded", c.id, timeout)
	}
	if err != nil {
		l.call(context.WithoutCancel(ctx), wire.KillExec, []string{id, strconv.Itoa(int(unix.SIGKILL))})
		select {
		case <-ended:
		case <-l.done:
		}
	}
	t := time.NewTimer(drainPatience)
	defer t.Stop()
	select {
	case <-outputs:
	case <-t.C:
	}
	return code, err
}

// writeExec writes down the process: as the container's own, but for the command.
func (e *Engine) writeExec(c *container, id string, cmd []string, tty bool) (string, error) {
	var run bundle.Run
	if err := bundle.Read(filepath.Join(e.bundleDir(c.id), bundle.RunFile), &run); err != nil {
		return "", err
	}
	p := run.Spec.Process
	p.Args, p.Terminal = cmd, tty
	if tty {
		env := newEnviron("TERM=xterm")
		for _, kv := range p.Env {
			env.set(kv)
		}
		p.Env = env.list
	}
	e.mu.Lock()
	u := c.status().GetUser().GetLinux()
	e.mu.Unlock()
	p.User = specs.User{UID: uint32(u.GetUid()), GID: uint32(u.GetGid())}
	for _, g := range u.GetSupplementalGroups() {
		p.User.AdditionalGids = append(p.User.AdditionalGids, uint32(g))
	}
	file := filepath.Join(e.runDir(c.sandbox.id), "exec-"+id+".json")
	return file, bundle.Write(file, bundle.Exec{Process: p})
}

// execIO is the stdio of one exec: pipes, or a terminal that arrives by socket.
type execIO struct {
	theirs  []*os.File // go to the process
	in      *os.File   // our side of stdin
	out     [2]*os.File
	console *os.File
	pty     *os.File
}

// cloexecPipe has a blocking side for the child and a pollable one for us.
func cloexecPipe(ours int) (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	unix.SetNonblock(p[ours], true)
	return os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe"), nil
}

func newExecIO(tty, in, out, errOut bool) (*execIO, error) {
	x := &execIO{}
	if tty {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		x.console = os.NewFile(uintptr(pair[0]), "console")
		x.theirs = []*os.File{os.NewFile(uintptr(pair[1]), "console")}
		return x, nil
	}
	for i, want := range [3]bool{in, out, errOut} {
		if !want {
			null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
			if err != nil {
				x.close()
				return nil, err
			}
			x.theirs = append(x.theirs, null)
			continue
		}
		ours := 0
		if i == 0 {
			ours = 1
		}
		r, w, err := cloexecPipe(ours)
		if err != nil {
			x.close()
			return nil, err
		}
		if i == 0 {
			x.theirs, x.in = append(x.theirs, r), w
		} else {
			x.theirs, x.out[i-1] = append(x.theirs, w), r
		}
	}
	return x, nil
}

// started takes the terminal, if there is one, and gives up the other side.
func (x *execIO) started() error {
	for _, f := range x.theirs {
		f.Close()
	}
	x.theirs = nil
	if x.console == nil {
		return nil
	}
	var b [4096]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(x.console.Fd()), b[:], oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return fmt.Errorf("receive terminal: %w", err)
	}
	files := filesOf(oob[:n])
	if len(files) == 0 {
		return errors.New("receive terminal: none came")
	}
	x.pty = files[0]
	return nil
}

// copy moves data until the streams end; the channel closes when the outputs have.
func (x *execIO) copy(stdin io.Reader, stdout, stderr io.Writer, resize <-chan Size) <-chan struct{} {
	if x.pty != nil {
		x.in, x.out[0] = x.pty, x.pty
		go resizeFrom(x.pty, resize)
	}
	if stdin != nil && x.in != nil {
		go func() {
			io.Copy(x.in, stdin)
			if x.pty == nil {
				x.in.Close()
			}
		}()
	}
	var wg sync.WaitGroup
	for i, w := range [2]io.Writer{stdout, stderr} {
		if x.out[i] == nil {
			continue
		}
		if w == nil {
			w = io.Discard
		}
		wg.Add(1)
		go func() { defer wg.Done(); io.Copy(w, x.out[i]) }()
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	return done
}

func (x *execIO) close() {
	for _, f := range append(x.theirs, x.in, x.out[0], x.out[1], x.console, x.pty) {
		if f != nil {
			f.Close()
		}
	}
}

// resizeFrom sets the terminal's size until the channel or the terminal is closed.
func resizeFrom(pty *os.File, resize <-chan Size) {
	raw, err := pty.SyscallConn()
	if err != nil {
		return
	}
	for s := range resize {
		err := raw.Control(func(fd uintptr) {
			unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Height, Col: s.Width})
		})
		if err != nil {
			return
		}
	}
}

// AttachStream connects to a running container's own streams until they end or
// ctx does. The end of stdin closes the container's if it asked for StdinOnce.
func (e *Engine) AttachStream(ctx context.Context, containerID string, stdin io.Reader, stdout, stderr io.Writer, resize <-chan Size) error {
	c, l, err := e.running(ctx, "attach to", containerID)
	if err != nil {
		return err
	}
	var flags []string
	var theirs, ours []*os.File
	var to []io.Writer
	defer func() {
		for _, f := range append(theirs, ours...) {
			f.Close()
		}
	}()
	for _, s := range []struct {
		w    io.Writer
		flag string
	}{{stdout, wire.FlagStdout}, {stderr, wire.FlagStderr}} {
		if s.w == nil {
			continue
		}
		r, w, err := cloexecPipe(0)
		if err != nil {
			return err
		}
		flags, theirs, ours, to = append(flags, s.flag), append(theirs, w), append(ours, r), append(to, s.w)
	}
	a, err := l.call(ctx, wire.Attach, []string{c.id, strings.Join(flags, ",")}, theirs...)
	if err != nil {
		return fmt.Errorf("attach to container %q: %w", c.id, err)
	}
	for _, f := range theirs {
		f.Close()
	}
	theirs = nil
	var wg sync.WaitGroup
	for i, r := range ours {
		wg.Add(1)
		go func() { defer wg.Done(); io.Copy(to[i], r) }()
	}
	outputs := make(chan struct{})
	go func() { wg.Wait(); close(outputs) }()
	inputEnded := make(chan struct{})
	if len(a.files) > 0 {
		in := a.files[0]
		defer in.Close()
		if c.config.Tty {
			go resizeFrom(in, resize)
		}
		if stdin != nil {
			go func() {
				defer close(inputEnded)
				io.Copy(in, stdin)
				if c.config.StdinOnce && !c.config.Tty {
					c.stdinOnce.Do(func() {
						in.Close()
						l.call(context.WithoutCancel(ctx), wire.CloseStdin, []string{c.id})
					})
				}
			}()
		}
	}
	if len(ours) == 0 {
		// Input only: it ends the attachment, as does the container.
		outputs = nil
	}
	select {
	case <-outputs:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.exited:
		if outputs != nil {
			t := time.NewTimer(drainPatience)
			defer t.Stop()
			select {
			case <-outputs:
			case <-t.C:
			}
		}
		return nil
	case <-l.done:
		return fmt.Errorf("attach to container %q: %w", c.id, errMonitorGone)
	case <-whenOnlyInput(outputs, inputEnded):
		return nil
	}
}

func whenOnlyInput(outputs, input chan struct{}) chan struct{} {
	if outputs != nil {
		return nil
	}
	return input
}

// ExecSync runs a command, waits for it and returns what it wrote, up to 16 MiB
// of each stream. A timeout, counted from the moment at which the process runs,
// kills it and is a DeadlineExceeded error.
func (e *Engine) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	var out, errOut capped
	code, err := e.exec(ctx, req.GetContainerId(), req.GetCmd(), time.Duration(req.GetTimeout())*time.Second, execStreams{stdout: &out, stderr: &errOut})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{Stdout: out.bytes(), Stderr: errOut.bytes(), ExitCode: int32(code)}, nil
}

// capped keeps the first execOutputLimit bytes and swallows the rest.
type capped struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (c *capped) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if room := execOutputLimit - c.b.Len(); room > 0 {
		c.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (c *capped) bytes() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.b.Bytes())
}

// dialInside connects to a port at a loopback address of a network namespace.
func dialInside(ctx context.Context, netns string, port int32) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, status.Errorf(codes.InvalidArgument, "connect to port %d: out of range", port)
	}
	var conn net.Conn
	var errs []error
	err := inNetns(netns, func() error {
		for _, a := range []struct{ network, host string }{{"tcp4", "127.0.0.1"}, {"tcp6", "::1"}} {
			var d net.Dialer
			c, err := d.DialContext(ctx, a.network, net.JoinHostPort(a.host, strconv.Itoa(int(port))))
			if err == nil {
				conn = c
				return nil
			}
			errs = append(errs, err)
		}
		return errs[0]
	})
	if err != nil {
		return nil, fmt.Errorf("connect to port %d inside sandbox: %w", port, err)
	}
	return conn, nil
}

// PortForwardStream carries bytes between rw and a port inside a sandbox until
// both directions have ended, or ctx has. rw is closed by it.
func (e *Engine) PortForwardStream(ctx context.Context, sandboxID string, port int32, rw io.ReadWriteCloser) error {
	defer rw.Close()
	conn, err := e.DialSandbox(ctx, sandboxID, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close(); rw.Close() })
	defer stop()
	inEnded, outEnded := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(inEnded)
		io.Copy(conn, rw)
		conn.(*net.TCPConn).CloseWrite()
	}()
	go func() {
		_, err := io.Copy(rw, conn)
		outEnded <- err
	}()
	// When the pod has said all, the client's side is over too.
	err = <-outEnded
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
