// Package hook is the client of webhooks: it posts a JSON document to a server
// that a configuration object names by URL or by Service, over HTTPS, and returns
// the answer.
//
// A server behind a Service is reached through the ready endpoints of the Service,
// its certificate is checked against NAME.NAMESPACE.svc (Kubernetes docs, "Dynamic
// Admission Control", "Service reference"). Connections are kept for each endpoint
// and trust bundle; one that has gone out of the Service is not used again.
// Redirects are not followed. An answer has MaxAnswerBytes at most. The deadline of
// the context bounds a call and is sent along as the query parameter timeout.
//
// At most InFlight calls go to one target at the same time and as many more wait:
// a server that hangs holds no more of this process than that. Further ones get a
// TooManyRequests status at once, which clients try again by themselves.
//
// Errors are those of a client of the API in upstream's wording: a StatusError for an
// answer that is none of 2xx, else an *url.Error.
package hook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/view"
)

// Bounds of one target.
const (
	MaxAnswerBytes = 8 << 20
	InFlight       = 64
	maxClients     = 256
)

// Config of a Client.
type Config struct {
	View *view.View // where services and endpoints are looked up
	Rand env.Rand   // chooses among endpoints; nil: the system's
	// Dial opens connections into the pod network and to URLs; nil: the machine's own
	// network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Service names a Service that a webhook runs behind.
type Service struct {
	Namespace, Name, Path string
	Port                  int32 // 0: 443
}

// Target is where to post to: URL or Service.
type Target struct {
	URL      string
	Service  *Service
	CABundle []byte // PEM; empty: the machine's own trust
}

// Client posts to targets. It is safe for concurrent use and starts nothing.
type Client struct {
	cfg Config

	mu      sync.Mutex
	clients map[clientKey]*client
}

type clientKey struct {
	host   string // the server's name and port
	bundle [sha256.Size]byte
}

// client is the way to one server with one trust bundle.
type client struct {
	http  *http.Client
	slots chan struct{} // one for each call in work
	queue chan struct{} // one for each call in work or waiting
}

// New makes a Client.
func New(cfg Config) *Client {
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	if cfg.Rand == nil {
		cfg.Rand = env.SystemRand()
	}
	return &Client{cfg: cfg, clients: map[clientKey]*client{}}
}

// Prepare checks a target and its trust bundle without calling it.
func (c *Client) Prepare(t Target) error {
	_, _, err := c.client(t)
	return err
}

// Post sends body, a JSON document, and returns the answer's.
func (c *Client) Post(ctx context.Context, t Target, body []byte) ([]byte, error) {
	cl, u, err := c.client(t)
	if err != nil {
		return nil, err
	}
	select {
	case cl.queue <- struct{}{}:
	default:
		return nil, &busy{apierrors.NewTooManyRequests(fmt.Sprintf("%d calls of the webhook at %s are in work or waiting already", cap(cl.queue), u.Host), 1)}
	}
	defer func() { <-cl.queue }()
	select {
	case cl.slots <- struct{}{}:
		defer func() { <-cl.slots }()
	case <-ctx.Done():
		return nil, &url.Error{Op: "Post", URL: u.String(), Err: ctx.Err()}
	}
	if deadline, ok := ctx.Deadline(); ok {
		if left := time.Until(deadline); left > 0 {
			seconds := int64((left + time.Second - 1) / time.Second)
			u.RawQuery = "timeout=" + strconv.FormatInt(seconds, 10) + "s"
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("call webhook %q: %w", u.String(), err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, */*")
	req.Header.Set("User-Agent", "kube-apiserver-admission")
	resp, err := cl.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswerBytes+1))
	if err != nil {
		return nil, &url.Error{Op: "Post", URL: u.String(), Err: err}
	}
	if len(answer) > MaxAnswerBytes {
		return nil, &url.Error{Op: "Post", URL: u.String(), Err: fmt.Errorf("the answer is longer than %d bytes", MaxAnswerBytes)}
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, refused(resp, answer)
	}
	return answer, nil
}

// refused is the status of an answer that is none of 2xx.
func refused(resp *http.Response, body []byte) error {
	retry := 0
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		retry = n
	}
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		body = []byte("redirects are not followed")
	}
	const most = 2048
	text := strings.TrimSpace(string(body[:min(len(body), most)]))
	return apierrors.NewGenericServerResponse(resp.StatusCode, http.MethodPost, schema.GroupResource{}, "", text, retry, true)
}

func (c *Client) client(t Target) (*client, *url.URL, error) {
	u, name, err := address(t)
	if err != nil {
		return nil, nil, err
	}
	key := clientKey{u.Host, sha256.Sum256(t.CABundle)}
	if t.Service == nil {
		// A URL and a Service may have one name.
		key.host = "url " + key.host
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if cl := c.clients[key]; cl != nil {
		return cl, u, nil
	}
	cfg := &tls.Config{ServerName: name, MinVersion: tls.VersionTLS12}
	if len(t.CABundle) > 0 {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(t.CABundle) {
			return nil, nil, errors.New("unable to load root certificates: unable to parse bytes as PEM block")
		}
	}
	transport := &http.Transport{DialContext: c.cfg.Dial, TLSClientConfig: cfg, TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		// One connection for each call in work, as upstream does for all but local
		// webhooks: HTTP/2 would pin all calls to one of several endpoints.
		ForceAttemptHTTP2: t.Service == nil && local(u.Hostname())}
	if !transport.ForceAttemptHTTP2 {
		cfg.NextProtos = []string{"http/1.1"}
	}
	var rt http.RoundTripper = transport
	if t.Service != nil {
		rt = &through{next: transport, view: c.cfg.View, rand: c.cfg.Rand, service: *t.Service}
	}
	cl := &client{slots: make(chan struct{}, InFlight), queue: make(chan struct{}, 2*InFlight),
		http: &http.Client{Transport: rt, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	if len(c.clients) >= maxClients {
		// Configurations come and go; those that are in use are made again.
		for k, old := range c.clients {
			old.http.CloseIdleConnections()
			delete(c.clients, k)
		}
	}
	c.clients[key] = cl
	return cl, u, nil
}

// Close gives idle connections back.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cl := range c.clients {
		cl.http.CloseIdleConnections()
	}
}

// address is the URL of a target and the name that its certificate must have.
func address(t Target) (u *url.URL, name string, err error) {
	if s := t.Service; s != nil {
		port := s.Port
		if port == 0 {
			port = 443
		}
		name = s.Name + "." + s.Namespace + ".svc"
		return &url.URL{Scheme: "https", Host: net.JoinHostPort(name, strconv.Itoa(int(port))), Path: path.Join("/", s.Path)}, name, nil
	}
	if t.URL == "" {
		return nil, "", errors.New("webhook configuration must have either service or URL")
	}
	u, err = url.Parse(t.URL)
	if err != nil {
		return nil, "", fmt.Errorf("Unparsable URL: %w", err)
	}
	if u.Scheme != "https" || u.Host == "" {
		return nil, "", fmt.Errorf("call webhook %q: only https://host[/path] is possible", t.URL)
	}
	// The envtest of controller-runtime writes https://host:port//path, which a
	// server would answer with a redirect.
	u.Path, u.RawPath = path.Join("/", u.Path), ""
	return u, u.Hostname(), nil
}

func local(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// through sends requests to one of a Service's endpoints; connections are pooled
// by endpoint, since that is the host the transport sees.
type through struct {
	next    *http.Transport
	view    *view.View
	rand    env.Rand
	service Service
}

// RoundTrip implements http.RoundTripper.
func (t *through) RoundTrip(req *http.Request) (*http.Response, error) {
	host, err := t.endpoint()
	if err != nil {
		return nil, err
	}
	out := req.Clone(req.Context())
	if out.Host == "" {
		out.Host = req.URL.Host
	}
	out.URL.Host = host
	return t.next.RoundTrip(out)
}

// CloseIdleConnections lets http.Client do so.
func (t *through) CloseIdleConnections() { t.next.CloseIdleConnections() }

func (t *through) endpoint() (string, error) {
	hosts, err := Endpoints(t.view.Snapshot(), t.service)
	if err != nil {
		return "", err
	}
	return hosts[t.rand.Uint64()%uint64(len(hosts))], nil
}

// Endpoints are the addresses (host:port) behind a Service's port, one at least.
// The errors are those that upstream's resolver has.
func Endpoints(snap view.Snapshot, s Service) ([]string, error) {
	svc := view.Get[*corev1.Service](snap, kind.Service, s.Namespace, s.Name)
	if svc == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "service"}, s.Name)
	}
	want := s.Port
	if want == 0 {
		want = 443
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return []string{net.JoinHostPort(svc.Spec.ExternalName, strconv.Itoa(int(want)))}, nil
	}
	port := ""
	found := false
	for _, p := range svc.Spec.Ports {
		if p.Port == want && (p.Protocol == corev1.ProtocolTCP || p.Protocol == "") {
			port, found = p.Name, true
			break
		}
	}
	if !found {
		return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %d found for service %q", want, s.Name))
	}
	hosts := endpoints(snap, s.Namespace, s.Name, port)
	if len(hosts) == 0 {
		return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", s.Name))
	}
	return hosts, nil
}

// endpoints are the ready addresses of a service port.
func endpoints(snap view.Snapshot, namespace, name, port string) []string {
	var out []string
	for s := range view.List[*discoveryv1.EndpointSlice](snap, kind.EndpointSlice, namespace) {
		if s.Labels[discoveryv1.LabelServiceName] != name || s.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for _, p := range s.Ports {
			if p.Port == nil || p.Name != nil && *p.Name != port || p.Name == nil && port != "" || p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
				continue
			}
			for _, e := range s.Endpoints {
				if len(e.Addresses) > 0 && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
					out = append(out, net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	return out
}

// busy is this package's own refusal.
type busy struct{ *apierrors.StatusError }

// IsBusy says that err means too many calls at the same time, which is no failure
// of the webhook.
func IsBusy(err error) bool {
	var b *busy
	return errors.As(err, &b)
}
