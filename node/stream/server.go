package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"

	"proa.dev/env"
)

// Size of a terminal in characters.
type Size struct{ Width, Height uint16 }

// Streams are an engine's interactive calls. They return when the process or the
// connection has ended, or ctx has. Nil streams are not connected.
type Streams interface {
	// Exec returns the exit code of the command.
	Exec(ctx context.Context, containerID string, cmd []string, tty bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan Size) (exit int, err error)
	Attach(ctx context.Context, containerID string, tty bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan Size) error
	PortForward(ctx context.Context, sandboxID string, port int32, rw io.ReadWriteCloser) error
}

// Backend knows the node's pods. Errors are apimachinery's: NotFound and
// BadRequest reach the client with their message.
type Backend interface {
	// Pods are those of this node with their newest status.
	Pods() []*corev1.Pod
	// Container is the engine's ID of a running container; uid may be "".
	Container(namespace, pod, uid, container string) (id string, err error)
	// Sandbox is the engine's ID of a pod's sandbox.
	Sandbox(namespace, pod, uid string) (id string, err error)
	// Log is where a container's output lies; previous means the attempt before.
	Log(namespace, pod, container string, previous bool) (LogSource, error)
	Summary(ctx context.Context) (*statsv1alpha1.Summary, error)
	// Config is shown at /configz.
	Config() any
	// Metrics writes the Prometheus text of one page: "", "resource", "cadvisor", "probes".
	Metrics(ctx context.Context, page string, w io.Writer) error
}

// User is who asks.
type User struct {
	Name   string
	UID    string
	Groups []string
}

// Config of the handler. Backend is required.
type Config struct {
	Backend Backend
	Streams Streams
	// Authenticate says who sends a request; false: nobody known.
	Authenticate func(r *http.Request) (User, bool)
	// Authorize says whether user may do verb on nodes/<subresource> of this node.
	Authorize func(ctx context.Context, user User, verb, subresource string) bool
	Clock     env.Clock
	Log       *slog.Logger
	// IdleTimeout of streams without traffic; default 4 h.
	IdleTimeout time.Duration
	// CreationTimeout of the streams that an SPDY client owes after its upgrade;
	// default 30 s.
	CreationTimeout time.Duration
}

type server struct{ Config }

// Handler serves the node's HTTP surface.
func Handler(cfg Config) http.Handler {
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = 4 * time.Hour
	}
	if cfg.CreationTimeout == 0 {
		cfg.CreationTimeout = 30 * time.Second
	}
	if cfg.Clock == nil {
		cfg.Clock = env.SystemClock()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &server{cfg}
	mux := http.NewServeMux()
	on := func(pattern, subresource string, h http.HandlerFunc) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if s.allowed(w, r, subresource) {
				h(w, r)
			}
		})
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") })
	on("GET /pods", "pods", s.pods)
	on("GET /pods/", "pods", s.pods)
	on("GET /runningpods/", "proxy", s.runningPods)
	on("GET /configz", "configz", s.configz)
	on("GET /stats/summary", "stats", s.summary)
	on("GET /stats/", "stats", s.summary)
	for path, page := range map[string]string{"/metrics": "", "/metrics/resource": "resource", "/metrics/cadvisor": "cadvisor", "/metrics/probes": "probes"} {
		on("GET "+path, "metrics", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
			if err := s.Backend.Metrics(r.Context(), page, w); err != nil {
				s.fail(w, err)
			}
		})
	}
	on("GET /containerLogs/{namespace}/{pod}/{container}", "proxy", s.logs)
	for _, method := range []string{"GET", "POST"} {
		on(method+" /exec/{namespace}/{pod}/{container}", "proxy", s.exec)
		on(method+" /exec/{namespace}/{pod}/{uid}/{container}", "proxy", s.exec)
		on(method+" /attach/{namespace}/{pod}/{container}", "proxy", s.attach)
		on(method+" /attach/{namespace}/{pod}/{uid}/{container}", "proxy", s.attach)
		on(method+" /portForward/{namespace}/{pod}", "proxy", s.portForward)
		on(method+" /portForward/{namespace}/{pod}/{uid}", "proxy", s.portForward)
	}
	return mux
}

// allowed authenticates and authorizes; it has answered when it says no.
func (s *server) allowed(w http.ResponseWriter, r *http.Request, subresource string) bool {
	if s.Authenticate == nil || s.Authorize == nil {
		http.Error(w, "Unauthorized", http.StatusUnauthorized)
		return false
	}
	u, ok := s.Authenticate(r)
	if !ok {
		http.Error(w, "Unauthorized", http.StatusUnauthorized)
		return false
	}
	verb := map[string]string{"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[r.Method]
	if s.Authorize(r.Context(), u, verb, subresource) || subresource != "proxy" && s.Authorize(r.Context(), u, verb, "proxy") {
		return true
	}
	http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=[%s])", u.Name, verb, subresource), http.StatusForbidden)
	return false
}

func (s *server) fail(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	var st apierrors.APIStatus
	if errors.As(err, &st) {
		code = int(st.Status().Code)
	}
	http.Error(w, err.Error(), code)
}

func (s *server) json(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

func (s *server) pods(w http.ResponseWriter, r *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	for _, p := range s.Backend.Pods() {
		list.Items = append(list.Items, *p)
	}
	s.json(w, &list)
}

func (s *server) runningPods(w http.ResponseWriter, r *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	for _, p := range s.Backend.Pods() {
		if p.Status.Phase == corev1.PodRunning {
			list.Items = append(list.Items, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, UID: p.UID}, Spec: p.Spec})
		}
	}
	s.json(w, &list)
}

func (s *server) configz(w http.ResponseWriter, r *http.Request) {
	s.json(w, map[string]any{"kubeletconfig": s.Backend.Config()})
}

func (s *server) summary(w http.ResponseWriter, r *http.Request) {
	sum, err := s.Backend.Summary(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	s.json(w, sum)
}

// ParseLogOptions reads the query of a log request, as pods/log has it.
func ParseLogOptions(q map[string][]string, now time.Time) (o LogOptions, previous bool, err error) {
	one := func(k string) string {
		if v := q[k]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	boolean := func(k string) bool {
		v, set := q[k]
		if !set || len(v) == 0 {
			return false
		}
		b, perr := strconv.ParseBool(v[0])
		return perr == nil && b || v[0] == ""
	}
	number := func(k string, least int64) *int64 {
		v := one(k)
		if v == "" {
			return nil
		}
		n, perr := strconv.ParseInt(v, 10, 64)
		if perr != nil || n < least {
			err = errors.Join(err, fmt.Errorf("%s: invalid value %q: must be a number of at least %d", k, v, least))
			return nil
		}
		return &n
	}
	o.Follow, o.Timestamps, previous = boolean("follow"), boolean("timestamps"), boolean("previous")
	o.TailLines = number("tailLines", 0)
	o.LimitBytes = number("limitBytes", 1)
	if n := number("sinceSeconds", 1); n != nil {
		o.Since = now.Add(-time.Duration(*n) * time.Second)
	}
	if v := one("sinceTime"); v != "" {
		t, perr := time.Parse(time.RFC3339, v)
		if perr != nil {
			err = errors.Join(err, fmt.Errorf("sinceTime: invalid value %q: %w", v, perr))
		}
		if !o.Since.IsZero() {
			err = errors.Join(err, errors.New("at most one of `sinceTime` or `sinceSeconds` may be specified"))
		}
		o.Since = t
	}
	switch v := one("stream"); v {
	case "", "All":
	case "Stdout", "Stderr":
		o.Stream = strings.ToLower(v)
	default:
		err = errors.Join(err, fmt.Errorf("stream: unsupported value %q: supported values: All, Stdout, Stderr", v))
	}
	return o, previous, err
}

func (s *server) logs(w http.ResponseWriter, r *http.Request) {
	o, previous, err := ParseLogOptions(r.URL.Query(), s.Clock.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	src, err := s.Backend.Log(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container"), previous)
	if err != nil {
		s.fail(w, err)
		return
	}
	src.Clock = s.Clock
	w.Header().Set("Content-Type", "text/plain")
	out := &flushing{ResponseWriter: w, each: o.Follow}
	if o.Follow {
		w.Header().Set("Transfer-Encoding", "chunked")
		w.WriteHeader(http.StatusOK)
		out.Flush()
	}
	if err := WriteLog(r.Context(), src, o, out); err != nil && r.Context().Err() == nil {
		s.Log.Warn("log is cut short", "pod", r.PathValue("namespace")+"/"+r.PathValue("pod"), "err", err)
		if !out.wrote {
			s.fail(w, err)
		}
	}
}

// flushing hands lines out when WriteLog pauses.
type flushing struct {
	http.ResponseWriter
	each, wrote bool
}

func (f *flushing) Write(p []byte) (int, error) {
	f.wrote = true
	return f.ResponseWriter.Write(p)
}

func (f *flushing) Flush() {
	if fl, ok := f.ResponseWriter.(http.Flusher); ok {
		fl.Flush()
	}
}

// options of exec and attach; kubectl's names (stdin) and the kubelet's (input).
func options(r *http.Request) (*remotecommand.Options, error) {
	q := r.URL.Query()
	on := func(names ...string) bool {
		for _, n := range names {
			if v := q.Get(n); v == "1" || v == "true" {
				return true
			}
		}
		return false
	}
	o := &remotecommand.Options{Stdin: on("input", "stdin"), Stdout: on("output", "stdout"), Stderr: on("error", "stderr"), TTY: on("tty")}
	if o.TTY {
		o.Stderr = false // one stream out of a terminal
	}
	if !o.Stdin && !o.Stdout && !o.Stderr {
		return nil, errors.New("you must specify at least 1 of stdin, stdout, stderr")
	}
	return o, nil
}

func (s *server) exec(w http.ResponseWriter, r *http.Request) {
	o, id, ok := s.target(w, r)
	if !ok {
		return
	}
	cmd := r.URL.Query()["command"]
	if len(cmd) == 0 {
		http.Error(w, "you must specify at least 1 command", http.StatusBadRequest)
		return
	}
	if wsstream.IsWebSocketRequest(r) && speaksChannels(r) {
		s.channels(w, r, o, func(ctx context.Context, c *channelConn) error {
			return exitError(s.Streams.Exec(ctx, id, cmd, o.TTY, c.in(), c.out(chStdout, o.Stdout), c.out(chStderr, o.Stderr), c.resize))
		})
		return
	}
	u := &upgraded{ResponseWriter: w}
	defer u.end()
	remotecommand.ServeExec(u, r, commands{s.Streams}, "", "", id, cmd, o, s.IdleTimeout, s.CreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *server) attach(w http.ResponseWriter, r *http.Request) {
	o, id, ok := s.target(w, r)
	if !ok {
		return
	}
	if wsstream.IsWebSocketRequest(r) && speaksChannels(r) {
		s.channels(w, r, o, func(ctx context.Context, c *channelConn) error {
			return s.Streams.Attach(ctx, id, o.TTY, c.in(), c.out(chStdout, o.Stdout), c.out(chStderr, o.Stderr), c.resize)
		})
		return
	}
	u := &upgraded{ResponseWriter: w}
	defer u.end()
	remotecommand.ServeAttach(u, r, commands{s.Streams}, "", "", id, o, s.IdleTimeout, s.CreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *server) target(w http.ResponseWriter, r *http.Request) (*remotecommand.Options, string, bool) {
	if s.Streams == nil {
		http.Error(w, "this node's engine has no streams", http.StatusNotImplemented)
		return nil, "", false
	}
	o, err := options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return nil, "", false
	}
	id, err := s.Backend.Container(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("uid"), r.PathValue("container"))
	if err != nil {
		s.fail(w, err)
		return nil, "", false
	}
	return o, id, true
}

// exitError turns an exit code into what the stream protocols report.
func exitError(exit int, err error) error {
	if err != nil {
		return err
	}
	if exit != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", exit), Code: exit}
	}
	return nil
}

// commands is Streams in the form of the streaming library.
type commands struct{ s Streams }

// ExecInContainer runs a command for the SPDY carrier.
func (c commands) ExecInContainer(ctx context.Context, _, _, id string, cmd []string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, timeout time.Duration) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return exitError(c.s.Exec(ctx, id, cmd, tty, reader(in), writer(out), writer(err), sizes(ctx, resize)))
}

// AttachContainer attaches for the SPDY carrier.
func (c commands) AttachContainer(ctx context.Context, _, _, id string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return c.s.Attach(ctx, id, tty, reader(in), writer(out), writer(err), sizes(ctx, resize))
}

// PortForward connects one stream.
func (c commands) PortForward(ctx context.Context, name, uid string, port int32, stream io.ReadWriteCloser) error {
	return c.s.PortForward(ctx, name, port, stream)
}

// reader and writer keep a nil stream nil: the library hands out typed nils.
func reader(r io.Reader) io.Reader {
	if c, ok := r.(io.ReadCloser); ok && c == nil || r == nil {
		return nil
	}
	return r
}

func writer(w io.WriteCloser) io.Writer {
	if w == nil {
		return nil
	}
	return w
}

func sizes(ctx context.Context, in <-chan remotecommand.TerminalSize) <-chan Size {
	if in == nil {
		return nil
	}
	out := make(chan Size)
	go func() {
		defer close(out)
		for {
			select {
			case v, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- Size{v.Width, v.Height}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func (s *server) portForward(w http.ResponseWriter, r *http.Request) {
	if s.Streams == nil {
		http.Error(w, "this node's engine has no streams", http.StatusNotImplemented)
		return
	}
	id, err := s.Backend.Sandbox(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("uid"))
	if err != nil {
		s.fail(w, err)
		return
	}
	if wsstream.IsWebSocketRequest(r) && wantsTunnel(r) {
		s.tunnel(w, r, id)
		return
	}
	o, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	u := &upgraded{ResponseWriter: w}
	defer u.end()
	portforward.ServePortForward(u, r, commands{s.Streams}, id, "", o, s.IdleTimeout, s.CreationTimeout, portforward.SupportedProtocols)
}
