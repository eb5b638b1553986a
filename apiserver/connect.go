package apiserver

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"proa.dev/apiserver/admit"
	"proa.dev/kind"
	"proa.dev/view"
)

// serveConnect joins the client with a node: it finds the pod and its node,
// asks admission, and hands the request over. Streams (SPDY, WebSocket) are
// tunnelled byte by byte; the node's server speaks the protocols.
func (q *request) serveConnect(ctx context.Context, c *call) error {
	if err := q.s.fresh(ctx); err != nil {
		return err
	}
	snap := q.s.view.Snapshot()
	if c.sub == "proxy" {
		return q.serveProxy(ctx, c, snap)
	}
	pod := view.Get[*corev1.Pod](snap, kind.Pod, c.namespace, c.name)
	if c.kind.Root() != kind.Pod {
		return errPath()
	}
	if pod == nil {
		return notFound(c, c.name)
	}
	container := ""
	if c.sub != "portforward" {
		var err error
		if container, err = pickContainer(pod, q.query.Get("container")); err != nil {
			return err
		}
	}
	if pod.Spec.NodeName == "" {
		if c.sub == "log" {
			// A pod that is not placed has written nothing yet.
			return q.plain(http.StatusOK, "text/plain", nil)
		}
		return apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", c.name))
	}
	if c.sub != "log" {
		op := q.connectOptions(c.sub, container)
		if err := q.s.connectAdmission(ctx, c, op, admit.Connect, nil); err != nil {
			return err
		}
	}
	var path string
	query := url.Values{}
	switch c.sub {
	case "log":
		path = "/containerLogs/" + c.namespace + "/" + c.name + "/" + container
		if err := q.logQuery(query); err != nil {
			return err
		}
	case "exec", "attach":
		path = "/" + c.sub + "/" + c.namespace + "/" + c.name + "/" + container
		for _, flag := range [][2]string{{"stdin", "input"}, {"stdout", "output"}, {"stderr", "error"}, {"tty", "tty"}} {
			if v, ok := boolParam(q.query, flag[0]); ok && v {
				query.Set(flag[1], "1")
			}
		}
		if c.sub == "exec" {
			if len(q.query["command"]) == 0 {
				return apierrors.NewBadRequest("you must specify at least 1 command for the container")
			}
			query["command"] = q.query["command"]
		}
		if query.Get("input") == "" && query.Get("output") == "" && query.Get("error") == "" {
			return apierrors.NewBadRequest("you must specify at least 1 of stdin, stdout, stderr")
		}
	case "portforward":
		path = "/portForward/" + c.namespace + "/" + c.name
		if ports := q.query["ports"]; len(ports) > 0 {
			query["port"] = strings.Split(strings.Join(ports, ","), ",")
		}
	}
	transport, base, err := q.node(pod.Spec.NodeName)
	if err != nil {
		return err
	}
	target := *base
	target.Path, target.RawQuery = strings.TrimSuffix(base.Path, "/")+path, query.Encode()
	if c.sub == "log" && isWebSocket(q.r) {
		return q.logWebSocket(ctx, transport, &target)
	}
	return q.forward(ctx, transport, &target)
}

func (q *request) node(name string) (http.RoundTripper, *url.URL, error) {
	if q.s.cfg.Nodes == nil {
		return nil, nil, apierrors.NewServiceUnavailable(fmt.Sprintf("this server has no way to reach node %q", name))
	}
	t, u, err := q.s.cfg.Nodes.RoundTripperFor(name)
	if err != nil {
		return nil, nil, apierrors.NewInternalError(err)
	}
	return t, u, nil
}

// logWebSocket sends a log as messages: binary ones, or base64 text for clients
// that ask for base64.binary.k8s.io.
func (q *request) logWebSocket(ctx context.Context, transport http.RoundTripper, target *url.URL) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("error dialing backend: %w", err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return apierrors.NewGenericServerResponse(resp.StatusCode, "get", q.route.kind.GroupResource(), q.route.name, strings.TrimSpace(string(text)), 0, true)
	}
	var h http.Header
	base64ed := false
	for _, p := range websocket.Subprotocols(q.r) {
		if p == "base64.binary.k8s.io" || p == "binary.k8s.io" {
			base64ed = p == "base64.binary.k8s.io"
			h = http.Header{"Sec-Websocket-Protocol": {p}}
			break
		}
	}
	conn, err := upgrader.Upgrade(q.w, q.r, h)
	if err != nil {
		q.code = max(q.code, http.StatusBadRequest)
		return nil
	}
	q.code = http.StatusSwitchingProtocols
	defer conn.Close()
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			if _, _, err := conn.NextReader(); err != nil {
				resp.Body.Close()
				return
			}
		}
	})
	defer reader.Wait()
	defer conn.Close()
	buf := make([]byte, 16<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			typ, data := websocket.BinaryMessage, buf[:n]
			if base64ed {
				typ, data = websocket.TextMessage, base64.StdEncoding.AppendEncode(nil, buf[:n])
			}
			if conn.WriteMessage(typ, data) != nil {
				return nil
			}
		}
		if err != nil {
			conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
			return nil
		}
	}
}

// pickContainer finds the container that is meant, as upstream does: the named
// one, the one that the default-container annotation names for logs by kubectl,
// or the only one.
func pickContainer(pod *corev1.Pod, name string) (string, error) {
	if name == "" {
		if len(pod.Spec.Containers) == 1 {
			return pod.Spec.Containers[0].Name, nil
		}
		var names, inits []string
		for _, c := range pod.Spec.Containers {
			names = append(names, c.Name)
		}
		for _, c := range pod.Spec.InitContainers {
			inits = append(inits, c.Name)
		}
		msg := fmt.Sprintf("a container name must be specified for pod %s, choose one of: %v", pod.Name, names)
		if len(inits) > 0 {
			msg += fmt.Sprintf(" or one of the init containers: %v", inits)
		}
		return "", apierrors.NewBadRequest(msg)
	}
	if hasContainer(pod, name) {
		return name, nil
	}
	for _, e := range pod.Spec.EphemeralContainers {
		if e.Name == name {
			return name, nil
		}
	}
	return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, pod.Name))
}

func (q *request) connectOptions(sub, container string) runtime.Object {
	flag := func(name string) bool { v, _ := boolParam(q.query, name); return v }
	switch sub {
	case "exec":
		return &corev1.PodExecOptions{Container: container, Command: q.query["command"], Stdin: flag("stdin"), Stdout: flag("stdout"), Stderr: flag("stderr"), TTY: flag("tty")}
	case "attach":
		return &corev1.PodAttachOptions{Container: container, Stdin: flag("stdin"), Stdout: flag("stdout"), Stderr: flag("stderr"), TTY: flag("tty")}
	case "portforward":
		o := &corev1.PodPortForwardOptions{}
		for _, p := range q.query["ports"] {
			if n, err := strconv.Atoi(p); err == nil {
				o.Ports = append(o.Ports, int32(n))
			}
		}
		return o
	}
	return nil
}

// logQuery checks the options of a log request and passes them on.
func (q *request) logQuery(out url.Values) error {
	bad := func(name, value, why string) error {
		return apierrors.NewBadRequest(fmt.Sprintf("%s: Invalid value: %q: %s", name, value, why))
	}
	for _, name := range []string{"follow", "previous", "timestamps", "insecureSkipTLSVerifyBackend"} {
		if v, ok := boolParam(q.query, name); ok && v && name != "insecureSkipTLSVerifyBackend" {
			out.Set(name, "true")
		}
	}
	for _, name := range []string{"tailLines", "limitBytes", "sinceSeconds"} {
		v := q.query.Get(name)
		if v == "" {
			continue
		}
		n, err := strconv.ParseInt(v, 10, 64)
		switch {
		case err != nil:
			return bad(name, v, err.Error())
		case n < 0 && name == "tailLines":
			return bad(name, v, "must be greater than or equal to 0")
		case n < 1 && name != "tailLines":
			return bad(name, v, "must be greater than 0")
		}
		out.Set(name, v)
	}
	if v := q.query.Get("sinceTime"); v != "" {
		if out.Get("sinceSeconds") != "" {
			return apierrors.NewBadRequest("at most one of `sinceTime` or `sinceSeconds` may be specified")
		}
		out.Set("sinceTime", v)
	}
	if v := q.query.Get("stream"); v != "" {
		if v != corev1.LogStreamAll && v != corev1.LogStreamStdout && v != corev1.LogStreamStderr {
			return bad("stream", v, "must be one of All, Stdout, Stderr")
		}
		out.Set("stream", v)
	}
	return nil
}

// serveProxy is the proxy subresource of pods, services and nodes.
func (q *request) serveProxy(ctx context.Context, c *call, snap view.Snapshot) error {
	scheme, name, port, ok := utilnet.SplitSchemeNamePort(c.name)
	if !ok {
		return apierrors.NewBadRequest(fmt.Sprintf("invalid proxy target %q: want [SCHEME:]NAME[:PORT]", c.name))
	}
	if q.route.rest == "" && !strings.HasSuffix(q.r.URL.Path, "/") && (q.r.Method == http.MethodGet || q.r.Method == http.MethodHead) {
		// Relative links of the page behind need the slash.
		to := q.r.URL.Path + "/"
		if q.r.URL.RawQuery != "" {
			to += "?" + q.r.URL.RawQuery
		}
		q.w.Header().Set("Location", to)
		q.w.WriteHeader(http.StatusMovedPermanently)
		return nil
	}
	if scheme == "" {
		scheme = "http"
	}
	var options runtime.Object = &corev1.PodProxyOptions{Path: q.route.rest}
	switch c.kind.Root() {
	case kind.Node:
		options = &corev1.NodeProxyOptions{Path: q.route.rest}
	case kind.Service:
		options = &corev1.ServiceProxyOptions{Path: q.route.rest}
	}
	if err := q.s.connectAdmission(ctx, c, options, admit.Connect, nil); err != nil {
		return err
	}
	target := &url.URL{Path: q.route.rest, RawPath: escapedRest(q.r.URL, q.route.rest), RawQuery: q.r.URL.RawQuery}
	var transport http.RoundTripper
	switch c.kind.Root() {
	case kind.Node:
		if snap.Get(kind.Node, "", name) == nil {
			return notFound(c, name)
		}
		t, base, err := q.node(name)
		if err != nil {
			return err
		}
		target.Scheme, target.Host, transport = base.Scheme, base.Host, t
	case kind.Pod:
		pod := view.Get[*corev1.Pod](snap, kind.Pod, c.namespace, name)
		if pod == nil {
			return notFound(c, name)
		}
		if port == "" {
			port = firstPort(pod)
		}
		if !proxyable(pod.Status.PodIP) {
			return apierrors.NewBadRequest("address not allowed")
		}
		target.Scheme, target.Host = scheme, net.JoinHostPort(pod.Status.PodIP, orDefault(port, "80"))
	case kind.Service:
		host, err := endpointOf(snap, c, name, port, q.s.rand.Uint64())
		if err != nil {
			return err
		}
		target.Scheme, target.Host = scheme, host
	default:
		return errPath()
	}
	if transport == nil {
		if q.s.cfg.Nodes == nil {
			return apierrors.NewServiceUnavailable("this server has no way into the pod network")
		}
		transport = q.s.cfg.Nodes.PodTransport()
	}
	return q.forward(ctx, transport, target)
}

// escapedRest is the end of a path, rest, as the client escaped it: a backend may
// tell %2F from a slash.
func escapedRest(u *url.URL, rest string) string {
	escaped := u.EscapedPath()
	for range strings.Count(strings.TrimSuffix(u.Path, rest), "/") {
		_, escaped, _ = strings.Cut(escaped, "/")
	}
	if i := strings.IndexByte(escaped, '/'); i >= 0 {
		return escaped[i:]
	}
	return ""
}

// proxyable are addresses that a pod can have: not this machine's own ones,
// which whoever writes a pod's status could reach through the server.
func proxyable(ip string) bool {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return false
	}
	a = a.Unmap()
	return !a.IsUnspecified() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast()
}

func orDefault(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func firstPort(pod *corev1.Pod) string {
	for _, c := range pod.Spec.Containers {
		if len(c.Ports) > 0 {
			return strconv.Itoa(int(c.Ports[0].ContainerPort))
		}
	}
	return ""
}

// endpointOf picks a ready address behind a service port.
func endpointOf(snap view.Snapshot, c *call, name, port string, random uint64) (string, error) {
	svc := view.Get[*corev1.Service](snap, kind.Service, c.namespace, name)
	if svc == nil {
		return "", notFound(c, name)
	}
	if port == "" && len(svc.Spec.Ports) == 1 {
		port = svc.Spec.Ports[0].Name
	}
	if n, err := strconv.Atoi(port); err == nil {
		found := false
		for _, p := range svc.Spec.Ports {
			if int(p.Port) == n {
				port, found = p.Name, true
				break
			}
		}
		if !found {
			return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %d found for service %q", n, name))
		}
	}
	hosts := serviceEndpoints(snap, c.namespace, name, port)
	if len(hosts) == 0 {
		return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
	}
	return hosts[random%uint64(len(hosts))], nil
}

// forward hands the request to target and the answer back. Upgrades become a
// tunnel.
func (q *request) forward(ctx context.Context, transport http.RoundTripper, target *url.URL) error {
	if q.r.Header.Get("Upgrade") != "" {
		return q.tunnel(ctx, transport, target)
	}
	failed := q.carry(ctx, transport, target, nil, func(resp *http.Response) {
		if q.route.sub == "proxy" {
			q.relocate(resp, target)
		}
	})
	if failed != nil && ctx.Err() == nil {
		return apierrors.NewServiceUnavailable(fmt.Sprintf("error trying to reach service: %v", failed))
	}
	return nil
}

// relocate turns redirects of the backend into redirects through the proxy.
func (q *request) relocate(resp *http.Response, target *url.URL) {
	loc := resp.Header.Get("Location")
	if loc == "" {
		return
	}
	u, err := url.Parse(loc)
	if err != nil || (u.Host != "" && u.Host != target.Host) || (u.Host == "" && !strings.HasPrefix(u.Path, "/")) {
		return
	}
	prefix := strings.TrimSuffix(q.r.URL.Path, q.route.rest)
	u.Scheme, u.Host, u.Path = "", "", strings.TrimSuffix(prefix, "/")+u.Path
	resp.Header.Set("Location", u.String())
}

// tunnel carries an upgraded connection: the node answers 101 and from then on
// bytes are copied both ways.
func (q *request) tunnel(ctx context.Context, transport http.RoundTripper, target *url.URL) error {
	// The answer is a raw connection, which only HTTP/1.1 can give.
	if q.r.ProtoMajor != 1 {
		return apierrors.NewBadRequest("upgrades need HTTP/1.1")
	}
	out := (&http.Request{Method: q.r.Method, URL: target, Host: target.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: q.r.Header.Clone(), Body: http.NoBody}).WithContext(ctx)
	out.Header.Del("Authorization")
	out.Header.Set("Connection", "Upgrade")
	for i, v := range out.Header["Sec-Websocket-Protocol"] {
		out.Header["Sec-Websocket-Protocol"][i] = withoutToken(v)
	}
	resp, err := transport.RoundTrip(out)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("error dialing backend: %w", err))
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		for k, v := range resp.Header {
			q.w.Header()[k] = v
		}
		q.w.Header().Del("Connection")
		q.w.WriteHeader(resp.StatusCode)
		io.Copy(q.w, io.LimitReader(resp.Body, MaxBody))
		return nil
	}
	back, ok := resp.Body.(io.ReadWriteCloser)
	if !ok {
		resp.Body.Close()
		return apierrors.NewInternalError(errors.New("node's connection cannot be written to after the upgrade"))
	}
	defer back.Close()
	conn, rw, err := http.NewResponseController(q.w).Hijack()
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("take over the client's connection: %w", err))
	}
	defer conn.Close()
	q.code = http.StatusSwitchingProtocols
	if err := writeSwitch(rw.Writer, resp); err != nil {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { conn.Close(); back.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() {
		io.Copy(back, rw.Reader)
		// The client has nothing more to say; half-close so that answers still come.
		if h, ok := back.(interface{ CloseWrite() error }); ok {
			h.CloseWrite()
		} else {
			back.Close()
		}
	})
	io.Copy(conn, back)
	conn.Close()
	back.Close()
	both.Wait()
	return nil
}

func writeSwitch(w *bufio.Writer, resp *http.Response) error {
	fmt.Fprintf(w, "HTTP/1.1 101 Switching Protocols\r\n")
	resp.Header.Write(w)
	w.WriteString("\r\n")
	return w.Flush()
}

// withoutToken takes a bearer token out of a list of subprotocols.
func withoutToken(list string) string {
	var kept []string
	for _, p := range strings.Split(list, ",") {
		if p = strings.TrimSpace(p); !strings.HasPrefix(p, "base64url.bearer.") {
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, ", ")
}
