// Package etcdtest runs a real etcd of one member for tests: its data in a
// temporary directory, its ports on the loopback interface, its process ended by
// the test.
//
// The programs are bin/etcd and bin/etcd35, which `make etcd` builds from the
// modules in test; Binary builds one when it is missing. PROA_TEST_ETCD names
// another program, of another version, say, in place of both.
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

// Version is a module in the folder test that builds an etcd.
type Version string

// The newest release and the oldest that is supported.
const (
	Newest Version = "etcd"
	Oldest Version = "etcd35"
)

var built struct {
	sync.Mutex
	paths map[Version]string
}

// Binary is the path of the etcd program.
func Binary(v Version) (string, error) {
	built.Lock()
	defer built.Unlock()
	if p, ok := built.paths[v]; ok {
		return p, nil
	}
	p, err := binary(v)
	if err != nil {
		return "", err
	}
	if built.paths == nil {
		built.paths = map[Version]string{}
	}
	built.paths[v] = p
	return p, nil
}

func binary(v Version) (string, error) {
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
			if _, err := os.Stat(filepath.Join(here, "test", string(v), "go.mod")); err == nil {
				break
			}
			if here == filepath.Dir(here) {
				return "", fmt.Errorf("find test/%s above %q: it is not there; name an etcd program in PROA_TEST_ETCD", v, wd)
			}
		}
	} else {
		here = filepath.Join(filepath.Dir(here), "..", "..", "..")
	}
	path := filepath.Join(here, "bin", string(v))
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
	build.Dir = filepath.Join(here, "test", string(v))
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build test/%s: %w: %s", v, err, out)
	}
	return path, nil
}

// Server is one etcd.
type Server struct {
	URL     string // of clients
	Dir     string
	t       testing.TB
	version Version
	args    []string
	cmd     *exec.Cmd
	log     bytes.Buffer
	done    chan error
}

// Start runs the newest etcd until the test ends, with more arguments if need be.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, Newest, "http", args...)
}

// StartVersion is Start with another version.
func StartVersion(t testing.TB, v Version, args ...string) *Server {
	t.Helper()
	return start(t, v, "http", args...)
}

// StartTLS is Start with certificates: clients must have one of the authority in
// ca. The files are PEM.
func StartTLS(t testing.TB, ca, cert, key string) *Server {
	t.Helper()
	return start(t, Newest, "https", "--client-cert-auth", "--trusted-ca-file", ca, "--cert-file", cert, "--key-file", key)
}

func start(t testing.TB, v Version, scheme string, args ...string) *Server {
	t.Helper()
	s := &Server{t: t, version: v, Dir: t.TempDir()}
	s.URL = fmt.Sprintf("%s://127.0.0.1:%d", scheme, port(t))
	peer := fmt.Sprintf("http://127.0.0.1:%d", port(t))
	s.args = append([]string{"--data-dir", s.Dir, "--name", "t", "--listen-client-urls", s.URL, "--advertise-client-urls", s.URL,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "t=" + peer,
		"--log-level", "error", "--heartbeat-interval", "20", "--election-timeout", "200"}, args...)
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
	path, err := Binary(s.version)
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
