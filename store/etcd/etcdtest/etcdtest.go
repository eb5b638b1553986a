// Package etcdtest runs a real etcd of one member for tests: its data in a
// temporary directory, its ports on the loopback interface, its process ended by
// the test.
//
// The program is bin/etcd, which `make etcd` builds from the module in test/etcd;
// Binary builds it when it is missing. PROA_TEST_ETCD names another one, of
// another version, say.
package etcdtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

var built struct {
	sync.Once
	path string
	err  error
}

// Binary is the path of the etcd program.
func Binary() (string, error) {
	built.Do(func() { built.path, built.err = binary() })
	return built.path, built.err
}

func binary() (string, error) {
	if p := os.Getenv("PROA_TEST_ETCD"); p != "" {
		return p, nil
	}
	_, here, _, _ := runtime.Caller(0)
	if !filepath.IsAbs(here) { // built with -trimpath
		wd, err := os.Getwd()
		if err != nil {
			return "", err
		}
		for here = wd; ; here = filepath.Dir(here) {
			if _, err := os.Stat(filepath.Join(here, "test", "etcd", "go.mod")); err == nil {
				break
			}
			if here == filepath.Dir(here) {
				return "", fmt.Errorf("find test/etcd above %q: it is not there; name an etcd program in PROA_TEST_ETCD", wd)
			}
		}
	} else {
		here = filepath.Join(filepath.Dir(here), "..", "..", "..")
	}
	path := filepath.Join(here, "bin", "etcd")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	// One build at a time, whichever package's tests come first.
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	build := exec.Command("go", "build", "-trimpath", "-o", path, ".")
	build.Dir = filepath.Join(here, "test", "etcd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build etcd for tests: %w: %s", err, out)
	}
	return path, nil
}

// Server is one etcd.
type Server struct {
	URL  string // of clients
	Dir  string
	t    testing.TB
	args []string
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan error
}

// Start runs an etcd until the test ends, with more arguments if need be.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s := &Server{t: t, Dir: t.TempDir(), args: args}
	client, peer := port(t), port(t)
	s.URL = fmt.Sprintf("http://127.0.0.1:%d", client)
	s.args = append([]string{"--data-dir", s.Dir, "--name", "t", "--listen-client-urls", s.URL, "--advertise-client-urls", s.URL,
		"--listen-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", peer), "--initial-advertise-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", peer),
		"--initial-cluster", fmt.Sprintf("t=http://127.0.0.1:%d", peer), "--log-level", "error", "--heartbeat-interval", "20", "--election-timeout", "200"}, args...)
	t.Cleanup(s.Stop)
	s.Restart()
	return s
}

// StartTLS is Start with certificates: clients must have one of the authority in
// ca. The files are PEM.
func StartTLS(t testing.TB, ca, cert, key string) *Server {
	t.Helper()
	s := &Server{t: t, Dir: t.TempDir()}
	client, peer := port(t), port(t)
	s.URL = fmt.Sprintf("https://127.0.0.1:%d", client)
	s.args = []string{"--data-dir", s.Dir, "--name", "t", "--listen-client-urls", s.URL, "--advertise-client-urls", s.URL,
		"--listen-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", peer), "--initial-advertise-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", peer),
		"--initial-cluster", fmt.Sprintf("t=http://127.0.0.1:%d", peer), "--log-level", "error", "--heartbeat-interval", "20", "--election-timeout", "200",
		"--client-cert-auth", "--trusted-ca-file", ca, "--cert-file", cert, "--key-file", key}
	t.Cleanup(s.Stop)
	s.Restart()
	return s
}

func port(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// Restart starts the etcd again after Stop, with its data and ports, and waits
// until it listens.
func (s *Server) Restart() {
	s.t.Helper()
	path, err := Binary()
	if err != nil {
		s.t.Fatal(err)
	}
	s.log.Reset()
	s.cmd = exec.Command(path, s.args...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	done := make(chan error, 1)
	s.done = done
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread ends that started the process.
		runtime.LockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			done <- s.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		s.t.Fatalf("start etcd: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	addr := s.URL[len("http://"):]
	if s.URL[:5] == "https" {
		addr = s.URL[len("https://"):]
	}
	for {
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", addr)
		if err == nil {
			c.Close()
			return
		}
		select {
		case err := <-done:
			s.cmd = nil
			s.t.Fatalf("etcd ended: %v\n%s", err, s.log.String())
		case <-ctx.Done():
			s.t.Fatalf("etcd does not listen: %v\n%s", err, s.log.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Stop kills the etcd; its data stays.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Kill()
	<-s.done
	s.cmd = nil
}

// Pause stops the process in its tracks: connections stay and nothing answers, as
// behind a broken network. Resume lets it go on.
func (s *Server) Pause() { s.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (s *Server) Resume() { s.cmd.Process.Signal(syscall.SIGCONT) }

var shared struct {
	sync.Mutex
	n int
}

// Prefix is a key prefix that no other test of this process uses.
func Prefix() string {
	shared.Lock()
	defer shared.Unlock()
	shared.n++
	return fmt.Sprintf("/t%d", shared.n)
}
