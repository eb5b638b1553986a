// Package monitor is the small process that every pod has: the parent of its
// containers, owner of their output, and the one who knows how they ended.
//
//	engine ──(seqpacket: requests, files)──▶ monitor ──fork──▶ proa-runner run|exec ──▶ init
//	   ▲                                      │  ▲                    │ exits at once      │
//	   └────────(replies, events)─────────────┘  └──── reparented ◀───┴────────────────────┘
//
//	   container's stdout, stderr (pipes) or terminal ──▶ monitor ──▶ CRI log file
//	                                                        └──▶ attachments (pipes of the engine)
//
// Messages and the order of things at an exit are in
// docs/decisions/0005-monitor-protocol.md; their form is package engine/wire.
//
// It outlives the engine: it runs in its own session, is a child subreaper, and
// a closed connection ends nothing. It ends on a quit request only, after
// killing what is left.
//
// Bounds: about one megabyte of private memory. Therefore no net, fmt, json or
// os/exec here; buffers of 16 KiB per output stream, alive while the stream is.
//
// Invocation: proa-monitor run (file 3: listening socket, file 4: first
// connection), or proa-monitor init (process 1 of a shared process namespace).
package monitor

import (
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"proa.dev/engine/wire"
)

// drainTimeout bounds the wait for output that a vanished container may still
// have in its pipes (somebody outside may hold the other end).
const drainTimeout = 2 * time.Second

// sendPatience is how long an engine may leave its socket full before it is
// cut off; it can come back and ask.
const sendPatience = 10 * time.Second

// Main runs the monitor and returns the exit code of the process.
func Main(args []string) int {
	if len(args) == 1 && args[0] == "init" {
		return initMain()
	}
	if len(args) < 1 || args[0] != "run" {
		os.Stderr.WriteString("usage: proa-monitor run; started by proa's engine only\n")
		return 2
	}
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(20)
	debug.SetMemoryLimit(4 << 20)
	// No signal is ignored here: containers would inherit that.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		os.Stderr.WriteString("become child subreaper: " + err.Error() + "\n")
		return 1
	}
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	m := &monitor{
		containers: map[string]*container{},
		execs:      map[string]*execution{},
		byPid:      map[int]func(unix.WaitStatus){},
		strays:     map[int]unix.WaitStatus{},
		born:       make(chan struct{}, 1),
		quit:       make(chan struct{}),
	}
	if len(args) > 1 && args[1] == "pid" {
		if err := m.startInit(); err != nil {
			os.Stderr.WriteString("start process 1 of the pod: " + err.Error() + "\n")
			return 1
		}
	}
	go m.reap()
	go m.serve(newConn(4))
	go m.listen(3)
	<-m.quit
	return 0
}

// initMain is process 1 of a shared process namespace: it only exists, and the
// kernel reaps its orphans because it ignores SIGCHLD.
func initMain() int {
	signal.Ignore()
	// An ignored SIGCHLD makes the kernel discard children as they end.
	runtime.GOMAXPROCS(1)
	select {
	case <-make(chan struct{}):
	case <-time.After(1 << 62): // keeps the runtime from calling this a deadlock
	}
	return 0
}

type monitor struct {
	mu         sync.Mutex
	containers map[string]*container
	execs      map[string]*execution
	conns      []*conn
	byPid      map[int]func(unix.WaitStatus) // called with mu held; starts, does not wait
	strays     map[int]unix.WaitStatus       // reaped while a runner was still about to name its child
	starting   int
	born       chan struct{} // a child may exist now
	quit       chan struct{}
	initPid    int
}

// startInit forks process 1 of a shared process namespace.
func (m *monitor) startInit() error {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	fd := null.Fd()
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"proa-monitor", "init"}, &syscall.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=1"}, Files: []uintptr{fd, fd, fd},
		Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Setsid: true},
	})
	if err != nil {
		return err
	}
	m.initPid = pid
	m.byPid[pid] = func(unix.WaitStatus) { m.initPid = 0 }
	return os.WriteFile("init.pid", []byte(strconv.Itoa(pid)), 0o644)
}

// reap waits for every child, own or adopted, for as long as the process lives.
func (m *monitor) reap() {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil: // no child at all: sleep until one is forked
			<-m.born
			continue
		}
		if !ws.Exited() && !ws.Signaled() {
			continue
		}
		m.mu.Lock()
		if f := m.byPid[pid]; f != nil {
			delete(m.byPid, pid)
			f(ws)
		} else if m.starting > 0 {
			m.strays[pid] = ws
		}
		m.mu.Unlock()
	}
}

// watch arranges that f is called when pid has ended; it may have already.
// m.mu is held.
func (m *monitor) watch(pid int, f func(unix.WaitStatus)) {
	if ws, ok := m.strays[pid]; ok {
		delete(m.strays, pid)
		f(ws)
		return
	}
	m.byPid[pid] = f
}

// forking and forked bracket the time in which a child may be reaped before its
// number is known.
func (m *monitor) forking() {
	m.mu.Lock()
	m.starting++
	m.mu.Unlock()
}

// m.mu is held.
func (m *monitor) forked() {
	if m.starting--; m.starting == 0 {
		clear(m.strays)
	}
}

func (m *monitor) wakeReaper() {
	select {
	case m.born <- struct{}{}:
	default:
	}
}

func exitCode(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// conn is one engine's connection.
type conn struct {
	f   *os.File
	raw syscall.RawConn
	wmu sync.Mutex

	greeted bool // hears events
}

func newConn(fd int) *conn {
	unix.SetNonblock(fd, true)
	f := os.NewFile(uintptr(fd), "engine")
	raw, _ := f.SyscallConn()
	return &conn{f: f, raw: raw}
}

func (c *conn) send(msg wire.Message, files ...int) error {
	b, err := wire.Append(nil, msg)
	if err != nil {
		b, _ = wire.Append(nil, wire.Message{Type: wire.Error, Seq: msg.Seq, Args: []string{err.Error()}})
	}
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	// An engine that stands still must not hold up the pod.
	c.f.SetWriteDeadline(time.Now().Add(sendPatience))
	var serr error
	err = c.raw.Write(func(fd uintptr) bool {
		serr = unix.Sendmsg(int(fd), b, oob, nil, unix.MSG_NOSIGNAL)
		return serr != unix.EAGAIN
	})
	if err == nil {
		err = serr
	}
	if err != nil {
		c.f.Close()
	}
	return err
}

func (c *conn) receive(buf, oob []byte) (wire.Message, []int, error) {
	var n, oobn int
	var rerr error
	err := c.raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, rerr = unix.Recvmsg(int(fd), buf, oob, unix.MSG_CMSG_CLOEXEC)
		return rerr != unix.EAGAIN && rerr != unix.EINTR
	})
	if err == nil {
		err = rerr
	}
	if err == nil && n == 0 {
		err = os.ErrClosed
	}
	if err != nil {
		return wire.Message{}, nil, err
	}
	var files []int
	if oobn > 0 {
		if cms, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
			for i := range cms {
				if fds, err := unix.ParseUnixRights(&cms[i]); err == nil {
					files = append(files, fds...)
				}
			}
		}
	}
	msg, err := wire.Parse(buf[:n])
	if err != nil {
		closeAll(files)
	}
	return msg, files, err
}

func (m *monitor) listen(fd int) {
	unix.SetNonblock(fd, true)
	f := os.NewFile(uintptr(fd), "listener")
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	for {
		var nfd int
		var aerr error
		err := raw.Read(func(fd uintptr) bool {
			nfd, _, aerr = unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return aerr != unix.EAGAIN
		})
		if err != nil {
			return
		}
		if aerr != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors: let some go
			continue
		}
		go m.serve(newConn(nfd))
	}
}

// serve answers one connection until it ends. Requests that fork run beside it,
// so that a slow start does not hold up a kill.
func (m *monitor) serve(c *conn) {
	buf := make([]byte, 4<<10)
	oob := make([]byte, unix.CmsgSpace(4*wire.MaxFiles))
	for {
		msg, files, err := c.receive(buf, oob)
		if err != nil {
			break
		}
		switch msg.Type {
		case wire.Start:
			go m.answer(c, msg, files, m.start)
		case wire.Exec:
			go m.answer(c, msg, files, m.exec)
		case wire.Hello:
			m.hello(c, msg)
			closeAll(files)
		case wire.Attach:
			m.attach(c, msg, files)
		case wire.Quit:
			closeAll(files)
			m.stop()
			c.send(wire.Message{Type: wire.OK, Seq: msg.Seq})
			close(m.quit)
			return
		default:
			m.answer(c, msg, files, m.simple)
		}
	}
	m.mu.Lock()
	for i, o := range m.conns {
		if o == c {
			m.conns = append(m.conns[:i], m.conns[i+1:]...)
			break
		}
	}
	m.mu.Unlock()
	c.f.Close()
}

// answer carries a request out and replies; its files are closed afterwards.
func (m *monitor) answer(c *conn, msg wire.Message, files []int, do func(wire.Message, []int) ([]string, error)) {
	args, err := do(msg, files)
	closeAll(files)
	reply := wire.Message{Type: wire.OK, Seq: msg.Seq, Args: args}
	if err != nil {
		reply.Type, reply.Args = wire.Error, []string{err.Error()}
	}
	c.send(reply)
}

// hello tells c all containers and lets it hear events from now on.
func (m *monitor) hello(c *conn, msg wire.Message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.containers {
		c.send(wire.Message{Type: wire.Container, Seq: msg.Seq, Args: k.describe()})
	}
	if !c.greeted {
		c.greeted = true
		m.conns = append(m.conns, c)
	}
	c.send(wire.Message{Type: wire.OK, Seq: msg.Seq, Args: []string{strconv.Itoa(os.Getpid()), strconv.Itoa(m.initPid)}})
}

// tell sends an event to everybody who said hello. m.mu is held.
func (m *monitor) tell(msg wire.Message) {
	for _, c := range m.conns {
		c.send(msg)
	}
}

// stop kills everything that is left, process 1 of the pod with it, and waits
// a moment so that nothing is left to be reaped by somebody else.
func (m *monitor) stop() {
	m.killRest()
	for range 500 {
		m.mu.Lock()
		n := len(m.byPid)
		m.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (m *monitor) killRest() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.containers {
		if !k.exited {
			k.killAll(unix.SIGKILL)
			if k.pid > 0 {
				unix.Kill(k.pid, unix.SIGKILL)
			}
		}
	}
	if m.initPid > 0 {
		unix.Kill(m.initPid, unix.SIGKILL)
	}
}

func closeAll(files []int) {
	for _, f := range files {
		unix.Close(f)
	}
}

type failure string

func (f failure) Error() string { return string(f) }
