package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"proa.dev/cluster"
	"proa.dev/engine/image"
)

// The door is the server's own Unix socket for the command line on the same
// machine: images and shutdown. It needs no certificate that could expire: the
// kernel says who is there, and only root and the server's own user are let in.

// line is one line of an answer that takes long.
type line struct {
	Progress *image.Progress `json:"progress,omitempty"`
	Images   []image.Image   `json:"images,omitempty"`
	Message  string          `json:"message,omitempty"`
	Error    string          `json:"error,omitempty"`
	Done     bool            `json:"done,omitempty"`
}

func (s *server) startDoor() error {
	path := s.cl.Run("admin.sock")
	os.Remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("open the door %q: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return fmt.Errorf("open the door %q: %w", path, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /down", s.handleDown)
	mux.HandleFunc("GET /images", s.withImages(s.handleImages))
	mux.HandleFunc("POST /images/import", s.withImages(s.handleImport))
	mux.HandleFunc("POST /images/pull", s.withImages(s.handlePull))
	mux.HandleFunc("DELETE /images", s.withImages(s.handleRemove))
	web := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	s.group.Go("door", func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() {
			end, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			web.Shutdown(end)
		})
		defer stop()
		if err := web.Serve(checkedListener{l}); ctx.Err() == nil {
			return err
		}
		return nil
	})
	return nil
}

// checkedListener closes connections of others than root and the server's user.
type checkedListener struct{ *net.UnixListener }

func (l checkedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peer(c); err == nil && (uid == 0 || int(uid) == os.Geteuid()) {
			return c, nil
		}
		c.Close()
	}
}

func peer(c *net.UnixConn) (uid uint32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil {
		return 0, e
	}
	if err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// writer sends lines as they come.
func lines(w http.ResponseWriter) func(line) {
	enc := json.NewEncoder(w)
	return func(l line) {
		enc.Encode(l)
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
	}
}

func (s *server) handleDown(w http.ResponseWriter, r *http.Request) {
	say := lines(w)
	say(line{Message: "stopping containers"})
	if err := s.stopContainers(context.WithoutCancel(r.Context())); err != nil {
		say(line{Error: err.Error()})
		return
	}
	say(line{Done: true})
	s.group.End(errStopped)
}

func (s *server) withImages(f http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.node == nil || s.node.images == nil {
			lines(w)(line{Error: "this cluster has no node on this machine (--no-node), so it keeps no images"})
			return
		}
		f(w, r)
	}
}

func (s *server) handleImages(w http.ResponseWriter, _ *http.Request) {
	lines(w)(line{Images: s.node.images.List(), Done: true})
}

func (s *server) handleImport(w http.ResponseWriter, r *http.Request) {
	say := lines(w)
	http.NewResponseController(w).EnableFullDuplex()
	images, err := s.node.images.Import(r.Context(), r.Body, func(p image.Progress) { say(line{Progress: &p}) })
	finish(say, images, err)
}

func (s *server) handlePull(w http.ResponseWriter, r *http.Request) {
	say := lines(w)
	img, err := s.node.images.Pull(r.Context(), r.URL.Query().Get("ref"), nil, func(p image.Progress) { say(line{Progress: &p}) })
	finish(say, []image.Image{img}, err)
}

func (s *server) handleRemove(w http.ResponseWriter, r *http.Request) {
	finish(lines(w), nil, s.node.images.Remove(r.URL.Query().Get("ref")))
}

func finish(say func(line), images []image.Image, err error) {
	if err != nil {
		say(line{Error: err.Error()})
		return
	}
	say(line{Images: images, Done: true})
}

// knock asks the server of a cluster; each line of the answer goes to f.
func knock(ctx context.Context, cl cluster.Cluster, method, path string, body io.Reader, f func(line) error) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("reach cluster %q: only root may; run it with sudo", cl.Name)
	}
	if runningPID(cl) == 0 {
		return fmt.Errorf("reach cluster %q: it is not running; start it with `proa up%s`", cl.Name, nameFlag(cl.Name))
	}
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", cl.Run("admin.sock"))
	}}}
	req, err := http.NewRequestWithContext(ctx, method, "http://proa"+path, body)
	if err != nil {
		return err
	}
	res, err := c.Do(req)
	if err != nil {
		return fmt.Errorf("reach cluster %q: %w (%w)", cl.Name, err, errCut)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("reach cluster %q: it answered %s", cl.Name, res.Status)
	}
	dec := json.NewDecoder(res.Body)
	for {
		var l line
		if err := dec.Decode(&l); errors.Is(err, io.EOF) {
			return fmt.Errorf("reach cluster %q: the connection ended early (%w); see %s", cl.Name, errCut, cl.Path("proa.log"))
		} else if err != nil {
			return fmt.Errorf("reach cluster %q: %w (%w)", cl.Name, err, errCut)
		}
		if l.Error != "" {
			return errors.New(l.Error)
		}
		if err := f(l); err != nil {
			return err
		}
		if l.Done {
			return nil
		}
	}
}

// errCut says that the server gave no whole answer.
var errCut = errors.New("no whole answer")

func nameFlag(name string) string {
	if name == cluster.DefaultName {
		return ""
	}
	return " --name " + name
}
