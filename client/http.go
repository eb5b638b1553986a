package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"proa.dev/client/wire"
	"proa.dev/env"
	"proa.dev/kind"
)

// HTTPConfig says how to reach a server.
type HTTPConfig struct {
	// Servers are base URLs (https://10.0.0.1:6443). The first one that answers is
	// used; when it cannot be reached, the next one.
	Servers []string
	// TLS holds the CA and, if any, the client certificate (GetClientCertificate
	// for one that renews itself).
	TLS *tls.Config
	// Token returns the bearer token for each request; nil: none.
	Token func() (string, error)
	// JSON instead of Protobuf.
	JSON bool
	// Timeout of one request that is not a watch (0: 60 s).
	Timeout   time.Duration
	UserAgent string
	// Clock times the pauses that a busy server asks for; nil: the machine's.
	Clock env.Clock
	// Dial, if set, replaces the net dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// HTTP is a Client over HTTP/2 or HTTP/1.1. It is safe for concurrent use.
type HTTP struct {
	cfg       HTTPConfig
	bases     []*url.URL
	transport *http.Transport
	format    wire.Format

	mu   sync.Mutex
	base int // index of the server in use
}

var _ Client = (*HTTP)(nil)

// NewHTTP checks the configuration; it does not connect.
func NewHTTP(cfg HTTPConfig) (*HTTP, error) {
	if len(cfg.Servers) == 0 {
		return nil, errors.New("client config: no server is named")
	}
	c := &HTTP{cfg: cfg, format: wire.Protobuf}
	if cfg.JSON {
		c.format = wire.JSON
	}
	for _, s := range cfg.Servers {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
			return nil, fmt.Errorf("client config: server %q: want https://HOST:PORT", s)
		}
		c.bases = append(c.bases, u)
	}
	if c.cfg.Timeout == 0 {
		c.cfg.Timeout = time.Minute
	}
	if c.cfg.UserAgent == "" {
		c.cfg.UserAgent = "proa"
	}
	if c.cfg.Clock == nil {
		c.cfg.Clock = env.SystemClock()
	}
	dial := cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	c.transport = &http.Transport{DialContext: dial, TLSClientConfig: cfg.TLS, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout: 90 * time.Second, MaxIdleConnsPerHost: 32, DisableCompression: true,
		// A dead connection is found by pings, not after the kernel's minutes.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second}}
	return c, nil
}

// Close drops idle connections.
func (c *HTTP) Close() { c.transport.CloseIdleConnections() }

// Path of a resource on the server: collection (name ""), object or subresource.
func Path(k *kind.Kind, namespace, name, sub string) string {
	var b strings.Builder
	if k.Group == "" {
		b.WriteString("/api/")
	} else {
		b.WriteString("/apis/")
		b.WriteString(k.Group)
		b.WriteByte('/')
	}
	b.WriteString(k.Version)
	if k.Scope == kind.Namespaced && namespace != "" {
		b.WriteString("/namespaces/")
		b.WriteString(url.PathEscape(namespace))
	}
	b.WriteByte('/')
	b.WriteString(k.Plural)
	if name != "" {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(name))
	}
	if sub != "" {
		b.WriteByte('/')
		b.WriteString(sub)
	}
	return b.String()
}

// maxBusy bounds how often a request is sent again after 429.
const maxBusy = 8

// Do sends one request and returns its response, whose status is a success; the
// caller closes the body. Other statuses become StatusErrors.
func (c *HTTP) Do(ctx context.Context, method, path string, query url.Values, accept, contentType string, body []byte) (*http.Response, error) {
	for try := 0; ; try++ {
		c.mu.Lock()
		n := c.base
		c.mu.Unlock()
		u := *c.bases[n]
		u.Path = strings.TrimSuffix(u.Path, "/") + path
		if p, err := url.PathUnescape(u.Path); err == nil && p != u.Path {
			u.RawPath, u.Path = u.Path, p
		}
		u.RawQuery = query.Encode()
		var r io.Reader
		if body != nil {
			r = bytes.NewReader(body)
		}
		req, err := http.NewRequestWithContext(ctx, method, u.String(), r)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", strings.ToLower(method), path, err)
		}
		req.Header.Set("Accept", accept)
		req.Header.Set("User-Agent", c.cfg.UserAgent)
		if contentType != "" {
			req.Header.Set("Content-Type", contentType)
		}
		if c.cfg.Token != nil {
			token, err := c.cfg.Token()
			if err != nil {
				return nil, fmt.Errorf("read bearer token: %w", err)
			}
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := c.transport.RoundTrip(req)
		if err != nil {
			// Another server may know more. Only what surely did not arrive, or may
			// arrive twice, is sent again.
			var op *net.OpError
			dialed := errors.As(err, &op) && op.Op == "dial"
			if ctx.Err() == nil && len(c.bases) > 1 && try < 2*len(c.bases) && (dialed || method == http.MethodGet) {
				c.mu.Lock()
				if c.base == n {
					c.base = (n + 1) % len(c.bases)
				}
				c.mu.Unlock()
				continue
			}
			return nil, fmt.Errorf("%s %s: %w", strings.ToLower(method), u.String(), err)
		}
		if resp.StatusCode == http.StatusTooManyRequests && try < maxBusy && !strings.HasSuffix(path, "/eviction") {
			wait := time.Second
			if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
				wait = min(time.Duration(s)*time.Second, 30*time.Second)
			}
			resp.Body.Close()
			if !env.Sleep(ctx, c.cfg.Clock, wait) {
				return nil, ctx.Err()
			}
			continue
		}
		if resp.StatusCode >= 200 && resp.StatusCode < 300 {
			return resp, nil
		}
		defer resp.Body.Close()
		return nil, readStatus(resp, path)
	}
}

// readStatus makes an error of a failed answer.
func readStatus(resp *http.Response, path string) error {
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("read answer of %s: %w", path, err)
	}
	var st metav1.Status
	if f, ok := wire.BodyFormat(resp.Header.Get("Content-Type")); ok {
		if d, err := wire.Decode(f, data, &st, false); err == nil && d.GVK.Kind == "Status" {
			return &apierrors.StatusError{ErrStatus: st}
		}
	}
	retry, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	return apierrors.NewGenericServerResponse(resp.StatusCode, "", schema.GroupResource{}, path, strings.TrimSpace(string(data)), retry, true)
}

// accept is the Accept header of this client; JSON stays as a way out for
// objects without a Protobuf form.
func (c *HTTP) accept() string {
	if c.format == wire.Protobuf {
		return wire.ProtobufType + "," + wire.JSONType
	}
	return wire.JSONType
}

// send exchanges one object and decodes the answer into out (nil: dropped).
func (c *HTTP) send(ctx context.Context, method, path string, query url.Values, contentType string, body []byte, out runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	resp, err := c.Do(ctx, method, path, query, c.accept(), contentType, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read answer of %s: %w", path, err)
	}
	if out == nil {
		return nil
	}
	f, _ := wire.BodyFormat(resp.Header.Get("Content-Type"))
	if _, err := wire.Decode(f, data, out, false); err != nil {
		return fmt.Errorf("decode answer of %s: %w", path, err)
	}
	return nil
}

// encode writes a body in the client's format, or as JSON when the object has no
// other.
func (c *HTTP) encode(obj runtime.Object, gvk schema.GroupVersionKind) ([]byte, string, error) {
	b, err := wire.Encode(c.format, obj, gvk, false)
	if errors.Is(err, wire.ErrNoProto) {
		b, err = wire.Encode(wire.JSON, obj, gvk, false)
		return b, wire.JSONType, err
	}
	return b, c.format.ContentType(), err
}

func typed(k *kind.Kind, obj kind.Object) kind.Object {
	obj.GetObjectKind().SetGroupVersionKind(k.GVK())
	return obj
}

// Get implements Client.
func (c *HTTP) Get(ctx context.Context, k *kind.Kind, namespace, name string, o metav1.GetOptions) (kind.Object, error) {
	if name == "" {
		return nil, apierrors.NewBadRequest("resource name may not be empty")
	}
	query := url.Values{}
	set(query, "resourceVersion", o.ResourceVersion)
	obj := k.New()
	if err := c.send(ctx, http.MethodGet, Path(k, namespace, name, ""), query, "", nil, obj); err != nil {
		return nil, err
	}
	return typed(k, obj), nil
}

// List implements Client.
func (c *HTTP) List(ctx context.Context, k *kind.Kind, namespace string, o metav1.ListOptions) (List, error) {
	list := k.NewList()
	if err := c.send(ctx, http.MethodGet, Path(k, namespace, "", ""), listQuery(o, false), "", nil, list); err != nil {
		return List{}, err
	}
	m, err := apimeta.ListAccessor(list)
	if err != nil {
		return List{}, err
	}
	out := List{ResourceVersion: m.GetResourceVersion(), Continue: m.GetContinue(), Remaining: m.GetRemainingItemCount()}
	items, err := apimeta.ExtractList(list)
	if err != nil {
		return List{}, err
	}
	out.Items = make([]kind.Object, len(items))
	for i, item := range items {
		out.Items[i] = typed(k, item.(kind.Object))
	}
	return out, nil
}

// Create implements Client.
func (c *HTTP) Create(ctx context.Context, k *kind.Kind, obj kind.Object, o metav1.CreateOptions) (kind.Object, error) {
	body, ct, err := c.encode(obj, k.GVK())
	if err != nil {
		return nil, err
	}
	query := writeQuery(o.DryRun, o.FieldManager, o.FieldValidation)
	out := k.New()
	if err := c.send(ctx, http.MethodPost, Path(k, obj.GetNamespace(), "", ""), query, ct, body, out); err != nil {
		return nil, err
	}
	return typed(k, out), nil
}

// Update implements Client.
func (c *HTTP) Update(ctx context.Context, k *kind.Kind, obj kind.Object, sub string, o metav1.UpdateOptions) (kind.Object, error) {
	body, ct, err := c.encode(obj, k.GVK())
	if err != nil {
		return nil, err
	}
	query := writeQuery(o.DryRun, o.FieldManager, o.FieldValidation)
	out := k.New()
	if err := c.send(ctx, http.MethodPut, Path(k, obj.GetNamespace(), obj.GetName(), sub), query, ct, body, out); err != nil {
		return nil, err
	}
	return typed(k, out), nil
}

// Patch implements Client. With sub "scale" the answer is an autoscaling/v1 Scale.
func (c *HTTP) Patch(ctx context.Context, k *kind.Kind, namespace, name string, t types.PatchType, data []byte, sub string, o metav1.PatchOptions) (kind.Object, error) {
	query := writeQuery(o.DryRun, o.FieldManager, o.FieldValidation)
	if o.Force != nil {
		query.Set("force", strconv.FormatBool(*o.Force))
	}
	if sub == "scale" {
		out := new(autoscalingv1.Scale)
		return out, c.send(ctx, http.MethodPatch, Path(k, namespace, name, sub), query, string(t), data, out)
	}
	out := k.New()
	if err := c.send(ctx, http.MethodPatch, Path(k, namespace, name, sub), query, string(t), data, out); err != nil {
		return nil, err
	}
	return typed(k, out), nil
}

// Delete implements Client.
func (c *HTTP) Delete(ctx context.Context, k *kind.Kind, namespace, name string, o metav1.DeleteOptions) error {
	if name == "" {
		return apierrors.NewBadRequest("resource name may not be empty")
	}
	body, err := wire.Encode(wire.JSON, &o, schema.GroupVersionKind{Version: "v1", Kind: "DeleteOptions"}, false)
	if err != nil {
		return err
	}
	return c.send(ctx, http.MethodDelete, Path(k, namespace, name, ""), nil, wire.JSONType, body, nil)
}

// Post implements Client. An autoscaling/v1 Scale for sub "scale" is PUT.
func (c *HTTP) Post(ctx context.Context, k *kind.Kind, namespace, name, sub string, body runtime.Object) (runtime.Object, error) {
	method := http.MethodPost
	var out runtime.Object = new(metav1.Status)
	var gvk schema.GroupVersionKind
	switch body.(type) {
	case *corev1.Binding:
		gvk = corev1.SchemeGroupVersion.WithKind("Binding")
	case *policyv1.Eviction:
		gvk = policyv1.SchemeGroupVersion.WithKind("Eviction")
	case *authenticationv1.TokenRequest:
		gvk, out = authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"), new(authenticationv1.TokenRequest)
	case *autoscalingv1.Scale:
		gvk, out, method = autoscalingv1.SchemeGroupVersion.WithKind("Scale"), new(autoscalingv1.Scale), http.MethodPut
	default:
		return nil, apierrors.NewBadRequest(fmt.Sprintf("%T cannot be sent to %s/%s", body, k, sub))
	}
	data, ct, err := c.encode(body, gvk)
	if err != nil {
		return nil, err
	}
	if err := c.send(ctx, method, Path(k, namespace, name, sub), nil, ct, data, out); err != nil {
		return nil, err
	}
	return out, nil
}

func set(q url.Values, name, value string) {
	if value != "" {
		q.Set(name, value)
	}
}

func writeQuery(dryRun []string, manager, validation string) url.Values {
	q := url.Values{}
	if len(dryRun) > 0 {
		q["dryRun"] = dryRun
	}
	set(q, "fieldManager", manager)
	set(q, "fieldValidation", validation)
	return q
}

func listQuery(o metav1.ListOptions, watching bool) url.Values {
	q := url.Values{}
	set(q, "labelSelector", o.LabelSelector)
	set(q, "fieldSelector", o.FieldSelector)
	set(q, "resourceVersion", o.ResourceVersion)
	set(q, "resourceVersionMatch", string(o.ResourceVersionMatch))
	set(q, "continue", o.Continue)
	if o.Limit > 0 {
		q.Set("limit", strconv.FormatInt(o.Limit, 10))
	}
	if o.TimeoutSeconds != nil {
		q.Set("timeoutSeconds", strconv.FormatInt(*o.TimeoutSeconds, 10))
	}
	if watching {
		q.Set("watch", "true")
		if o.AllowWatchBookmarks {
			q.Set("allowWatchBookmarks", "true")
		}
		if o.SendInitialEvents != nil {
			q.Set("sendInitialEvents", strconv.FormatBool(*o.SendInitialEvents))
		}
	}
	return q
}

// Watch implements Client.
func (c *HTTP) Watch(ctx context.Context, k *kind.Kind, namespace string, o metav1.ListOptions) (watch.Interface, error) {
	ctx, cancel := context.WithCancel(ctx)
	accept := wire.JSONType
	if c.format == wire.Protobuf {
		accept = wire.ProtobufType + ";stream=watch," + wire.JSONType
	}
	resp, err := c.Do(ctx, http.MethodGet, Path(k, namespace, "", ""), listQuery(o, true), accept, "", nil)
	if err != nil {
		cancel()
		return nil, err
	}
	f, _ := wire.BodyFormat(resp.Header.Get("Content-Type"))
	w := &httpWatch{events: make(chan watch.Event, 64), cancel: cancel, done: make(chan struct{})}
	go w.run(ctx, k, f, resp.Body)
	return w, nil
}

type httpWatch struct {
	events chan watch.Event
	cancel context.CancelFunc
	done   chan struct{}
}

func (w *httpWatch) ResultChan() <-chan watch.Event { return w.events }

// Stop ends the watch and waits for its goroutine.
func (w *httpWatch) Stop() {
	w.cancel()
	<-w.done
}

// maxFrame bounds one watch frame: far more than any stored object.
const maxFrame = 16 << 20

func (w *httpWatch) run(ctx context.Context, k *kind.Kind, f wire.Format, body io.ReadCloser) {
	defer close(w.done)
	defer close(w.events)
	defer body.Close()
	defer w.cancel()
	next := jsonFrames(body)
	if f == wire.Protobuf {
		next = protoFrames(body)
	}
	for {
		typ, data, err := next()
		if err != nil {
			// The end of the stream is the end of the watch; callers start again from
			// the last version they saw.
			return
		}
		e := watch.Event{Type: watch.EventType(typ)}
		if e.Type == watch.Error {
			st := new(metav1.Status)
			_, err = wire.Decode(f, data, st, false)
			e.Object = st
		} else {
			obj := k.New()
			if _, err = wire.Decode(f, data, obj, false); err == nil {
				e.Object = typed(k, obj)
			}
		}
		if err != nil {
			st := apierrors.NewInternalError(fmt.Errorf("decode watch event of %s: %w", k, err)).Status()
			e = watch.Event{Type: watch.Error, Object: &st}
		}
		select {
		case w.events <- e:
		case <-ctx.Done():
			return
		}
		if e.Type == watch.Error {
			return
		}
	}
}

func jsonFrames(r io.Reader) func() (string, []byte, error) {
	d := json.NewDecoder(r)
	return func() (string, []byte, error) {
		var e struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		err := d.Decode(&e)
		return e.Type, e.Object, err
	}
}

func protoFrames(r io.Reader) func() (string, []byte, error) {
	return func() (string, []byte, error) {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return "", nil, err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > maxFrame {
			return "", nil, fmt.Errorf("watch frame of %d bytes is larger than %d", n, maxFrame)
		}
		buf := make([]byte, n)
		if _, err := io.ReadFull(r, buf); err != nil {
			return "", nil, err
		}
		var e metav1.WatchEvent
		if err := e.Unmarshal(buf); err != nil {
			return "", nil, err
		}
		return e.Type, e.Object.Raw, nil
	}
}
