package monitor

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"proa.dev/engine/wire"
)

// container is one container: running, or exited and not yet forgotten. Its
// fields are guarded by monitor.mu except where said.
type container struct {
	id       string
	flags    string
	pid      int
	user     string
	started  int64
	finished int64
	code     int
	oom      bool
	exited   bool
	exitPath string
	oomFile  string
	lists    []string // files with the process numbers of its cgroups

	log     *logFile
	streams sync.WaitGroup
	out     [2]*output // stdout (or terminal), stderr
	stdin   *os.File   // write side of the pipe, or nil
	pty     *os.File   // terminal, or nil
}

func (k *container) describe() []string {
	state, oom := "running", ""
	if k.exited {
		state = "exited"
	} else if k.pid == 0 {
		state = "starting"
	}
	if k.oom {
		oom = wire.FlagOOM
	}
	return []string{k.id, state, strconv.Itoa(k.pid), strconv.FormatInt(k.started, 10),
		strconv.Itoa(k.code), strconv.FormatInt(k.finished, 10), oom, k.user}
}

// start: id, runner, bundle, log path, exit path, flags, OOM file, lists (by newline).
func (m *monitor) start(msg wire.Message, _ []int) ([]string, error) {
	k := &container{id: msg.Arg(0), exitPath: msg.Arg(4), flags: msg.Arg(5), oomFile: msg.Arg(6)}
	if msg.Arg(7) != "" {
		k.lists = strings.Split(msg.Arg(7), "\n")
	}
	m.mu.Lock()
	if m.containers[k.id] != nil {
		m.mu.Unlock()
		return nil, failure("container was started before")
	}
	m.containers[k.id] = k
	m.mu.Unlock()

	result, err := m.launch(k, msg.Arg(1), msg.Arg(2), msg.Arg(3))
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.forked()
	if err != nil {
		k.closeStdio()
		delete(m.containers, k.id)
		return nil, err
	}
	pidText, user, _ := strings.Cut(result, " ")
	pid, err := strconv.Atoi(pidText)
	if err != nil {
		k.closeStdio()
		delete(m.containers, k.id)
		return nil, failure("runner named no process: " + result)
	}
	k.pid, k.user, k.started = pid, user, time.Now().UnixNano()
	m.watch(pid, func(ws unix.WaitStatus) { go m.ended(k, exitCode(ws)) })
	return []string{pidText, user, strconv.FormatInt(k.started, 10)}, nil
}

// launch opens log and stdio, forks the runner and waits for its word. On
// return m.starting counts this start, whatever the outcome.
func (m *monitor) launch(k *container, runner, bundle, logPath string) (string, error) {
	m.forking()
	log, err := openLog(logPath)
	if err != nil {
		return "", err
	}
	k.log = log
	var child []*os.File
	defer func() {
		for _, f := range child {
			f.Close()
		}
	}()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	child = append(child, null)
	files := []uintptr{null.Fd(), null.Fd(), null.Fd()}
	tty := wire.Has(k.flags, wire.FlagTTY)
	var console *os.File
	if tty {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		console = os.NewFile(uintptr(pair[0]), "console")
		defer console.Close()
		theirs := os.NewFile(uintptr(pair[1]), "console")
		child = append(child, theirs)
		files = append(files, 0, theirs.Fd())
	} else {
		if wire.Has(k.flags, wire.FlagStdin) {
			r, w, err := pipeOut()
			if err != nil {
				return "", err
			}
			child, k.stdin = append(child, r), w
			files[0] = r.Fd()
		}
		for i := range k.out {
			r, w, err := pipeIn()
			if err != nil {
				return "", err
			}
			child = append(child, w)
			files[1+i] = w.Fd()
			k.out[i] = &output{src: r, log: log, name: streamNames[i]}
		}
		files = append(files, 0)
	}
	rr, rw, err := pipeIn()
	if err != nil {
		return "", err
	}
	child = append(child, rw)
	files[3] = rw.Fd()

	for _, o := range k.out {
		if o != nil {
			k.streams.Add(1)
			go func() { o.copy(); k.streams.Done() }()
		}
	}
	if _, err := m.fork(runner, []string{"proa-runner", "run", bundle}, files, syscall.CLONE_NEWNS); err != nil {
		rr.Close()
		return "", err
	}
	for _, f := range child {
		f.Close()
	}
	child = nil
	if tty {
		// The terminal's other side arrives when the container has one; a runner
		// that fails closes the socket instead.
		if pty, err := receiveFile(console); err == nil {
			k.pty = pty
			k.out[0] = &output{src: pty, log: log, name: streamNames[0]}
			k.streams.Add(1)
			go func() { k.out[0].copy(); k.streams.Done() }()
		}
	}
	return verdict(rr)
}

// fork runs the runner. It is not waited for: its word comes by pipe, and the
// reaper collects it.
func (m *monitor) fork(runner string, args []string, files []uintptr, flags uintptr) (int, error) {
	pid, err := syscall.ForkExec(runner, args, &syscall.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=2", "GOGC=off", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Files: files,
		Sys: &syscall.SysProcAttr{Cloneflags: flags},
	})
	if err != nil {
		return 0, failure("start runner \"" + runner + "\": " + err.Error())
	}
	m.wakeReaper()
	return pid, nil
}

// verdict reads what a runner says before it exits: "+" and its result, or "-"
// and the error.
func verdict(r *os.File) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, 32<<10))
	r.Close()
	switch {
	case err != nil:
		return "", err
	case len(b) == 0:
		return "", failure("runner died without a word")
	case b[0] == '+':
		return string(b[1:]), nil
	}
	return "", failure(string(b[1:]))
}

// ended does what follows the death of a container's first process.
func (m *monitor) ended(k *container, code int) {
	finished := time.Now().UnixNano()
	if wire.Has(k.flags, wire.FlagShared) {
		k.killAll(unix.SIGKILL)
	}
	oom := oomKills(k.oomFile) > 0
	drained := make(chan struct{})
	go func() { k.streams.Wait(); close(drained) }()
	t := time.NewTimer(drainTimeout)
	select {
	case <-drained:
	case <-t.C:
		for _, o := range k.out {
			if o != nil {
				o.src.SetReadDeadline(time.Now())
			}
		}
		<-drained
	}
	t.Stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	k.finished, k.code, k.oom, k.exited = finished, code, oom, true
	k.closeStdio()
	d := k.describe()
	if err := writeDurably(k.exitPath, strings.Join(d[3:7], " ")); err != nil {
		os.Stderr.WriteString("record exit of " + k.id + ": " + err.Error() + "\n")
	}
	m.tell(wire.Message{Type: wire.Exit, Args: []string{k.id, d[4], d[5], d[6], d[2], d[3]}})
}

// closeStdio lets go of all descriptors. The streams have ended or end by it.
func (k *container) closeStdio() {
	for _, o := range k.out {
		if o != nil {
			o.close()
		}
	}
	if k.stdin != nil {
		k.stdin.Close()
		k.stdin = nil
	}
	if k.pty != nil {
		k.pty.Close()
		k.pty = nil
	}
	if k.log != nil {
		k.log.close()
	}
}

// killAll signals every process of the container's cgroups, again and again
// until none is left (for SIGKILL) or once.
func (k *container) killAll(sig unix.Signal) {
	for range 50 {
		n := 0
		for _, list := range k.lists {
			if sig == unix.SIGKILL && strings.HasSuffix(list, "/cgroup.kill") {
				os.WriteFile(list, []byte("1"), 0)
				continue
			}
			b, err := os.ReadFile(list)
			if err != nil {
				continue
			}
			for _, w := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(w); err == nil && pid > 1 && pid != os.Getpid() {
					if unix.Kill(pid, sig) == nil {
						n++
					}
				}
			}
		}
		if n == 0 || sig != unix.SIGKILL {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// oomKills reads the counter from memory.oom_control (v1) or memory.events (v2).
func oomKills(file string) int {
	if file == "" {
		return 0
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.Atoi(v)
			return n
		}
	}
	return 0
}

// writeDurably replaces path by a file that survives a power cut.
func writeDurably(path, text string) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text + "\n")
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	return err
}

// execution is a process beside a container's own.
type execution struct{ pid int }

// exec: exec id, container id, runner, state dir, process file, flags.
func (m *monitor) exec(msg wire.Message, files []int) ([]string, error) {
	id := msg.Arg(0)
	m.mu.Lock()
	k := m.containers[msg.Arg(1)]
	if k == nil || k.exited || k.pid == 0 {
		m.mu.Unlock()
		return nil, failure("container is not running")
	}
	m.mu.Unlock()
	tty := wire.Has(msg.Arg(5), wire.FlagTTY)
	if want := 3; (tty && len(files) != 1) || (!tty && len(files) != want) {
		return nil, failure("wrong number of files")
	}
	rr, rw, err := pipeIn()
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		rr.Close()
		rw.Close()
		return nil, err
	}
	fds := []uintptr{null.Fd(), null.Fd(), null.Fd(), rw.Fd()}
	if tty {
		fds = append(fds, uintptr(files[0]))
	} else {
		for i, f := range files {
			fds[i] = uintptr(f)
		}
	}
	m.forking()
	_, err = m.fork(msg.Arg(2), []string{"proa-runner", "exec", msg.Arg(3), msg.Arg(1), msg.Arg(4)}, fds, 0)
	rw.Close()
	null.Close()
	// The process holds its own copies; the engine must see the end of its output.
	closeAll(files)
	for i := range files {
		files[i] = -1
	}
	var text string
	if err == nil {
		text, err = verdict(rr)
	} else {
		rr.Close()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.forked()
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(text)
	if err != nil {
		return nil, failure("runner named no process: " + text)
	}
	m.execs[id] = &execution{pid: pid}
	m.watch(pid, func(ws unix.WaitStatus) {
		delete(m.execs, id)
		// Behind the reply: the engine must know the execution first.
		go func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.tell(wire.Message{Type: wire.ExecExit, Args: []string{id, strconv.Itoa(exitCode(ws))}})
		}()
	})
	return []string{text}, nil
}

// simple carries out the requests that neither fork nor pass files.
func (m *monitor) simple(msg wire.Message, _ []int) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if msg.Type == wire.KillExec {
		sig, err := strconv.Atoi(msg.Arg(1))
		if err != nil {
			return nil, err
		}
		if x := m.execs[msg.Arg(0)]; x != nil {
			return nil, ignoreGone(unix.Kill(x.pid, unix.Signal(sig)))
		}
		return nil, nil
	}
	k := m.containers[msg.Arg(0)]
	if k == nil {
		return nil, failure("no such container in this pod")
	}
	switch msg.Type {
	case wire.Kill:
		sig, err := strconv.Atoi(msg.Arg(1))
		if err != nil {
			return nil, err
		}
		if k.exited || k.pid == 0 {
			return nil, nil
		}
		if wire.Has(msg.Arg(2), wire.FlagAll) {
			go k.killAll(unix.Signal(sig))
		}
		if m.byPid[k.pid] == nil {
			return nil, nil // ended, its number may be another's
		}
		return nil, ignoreGone(unix.Kill(k.pid, unix.Signal(sig)))
	case wire.CloseStdin:
		if k.stdin != nil {
			k.stdin.Close()
			k.stdin = nil
		}
		return nil, nil
	case wire.Reopen:
		if k.exited {
			return nil, failure("container is not running")
		}
		return nil, k.log.reopen()
	case wire.Forget:
		if !k.exited {
			return nil, failure("container is running")
		}
		delete(m.containers, k.id)
		return nil, nil
	}
	return nil, failure("unknown request " + strconv.Itoa(int(msg.Type)))
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// attach hands out stdin and adds the given files to the outputs.
func (m *monitor) attach(c *conn, msg wire.Message, files []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	flags := msg.Arg(1)
	k := m.containers[msg.Arg(0)]
	if k == nil || k.exited || k.pid == 0 {
		closeAll(files)
		c.send(wire.Message{Type: wire.Error, Seq: msg.Seq, Args: []string{"container is not running"}})
		return
	}
	next := files
	for i, flag := range [2]string{wire.FlagStdout, wire.FlagStderr} {
		if !wire.Has(flags, flag) || len(next) == 0 {
			continue
		}
		if k.out[i] == nil {
			unix.Close(next[0]) // a terminal has no stderr
		} else {
			unix.SetNonblock(next[0], true)
			k.out[i].attach(os.NewFile(uintptr(next[0]), "attachment"))
		}
		next = next[1:]
	}
	closeAll(next)
	reply := wire.Message{Type: wire.OK, Seq: msg.Seq}
	in := k.stdin
	if k.pty != nil {
		in = k.pty
	}
	if in == nil {
		c.send(reply)
		return
	}
	// The file stays in non-blocking mode: its flags are shared with the copy.
	raw, err := in.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { err = c.send(reply, int(fd)) })
	}
	if err != nil {
		c.send(wire.Message{Type: wire.Error, Seq: msg.Seq, Args: []string{err.Error()}})
	}
}
