// Package aggregate is the way to API servers behind APIServices (Kubernetes docs,
// "Kubernetes API Aggregation Layer"; docs/decisions/0012).
//
// An Aggregator finds the APIService of a group version, opens connections to the
// ready endpoints of its Service, checks in the background whether it is available,
// and keeps its discovery and OpenAPI documents, so that no request but one for
// its own group version ever waits for it.
//
// Trust: the server's certificate must be one for NAME.NAMESPACE.svc, signed by
// spec.caBundle (the machine's own trust without one), unless
// insecureSkipTLSVerify. This server shows its certificate as front proxy; the user
// is in X-Remote-User, X-Remote-Uid, X-Remote-Group and X-Remote-Extra-*, and what
// a client sent under these names is taken out.
//
// Bounds: InFlight requests to one APIService at the same time, more are answered
// 429; a check has CheckTimeout, a document DocumentTimeout and MaxDocument bytes;
// checks are CheckEvery apart while all is well, and back off to that from
// RetryFirst while it is not. A change of the APIService, its Service or its
// endpoints is looked at at once.
package aggregate

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/transport"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"proa.dev/apiserver/auth"
	"proa.dev/apiserver/discovery"
	"proa.dev/apiserver/extend/hook"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/view"
)

// Bounds.
const (
	InFlight        = 400
	CheckTimeout    = 5 * time.Second
	CheckEvery      = 30 * time.Second
	RetryFirst      = 250 * time.Millisecond
	DocumentTimeout = 10 * time.Second
	DocumentsEvery  = time.Minute
	MaxDocument     = 16 << 20
)

// Identity of this server when it asks for itself.
var Identity = auth.User{Name: "system:kube-aggregator", Groups: []string{auth.Masters}}

// Config of an Aggregator. View is needed.
type Config struct {
	View  *view.View
	Clock env.Clock // nil: the system's
	Rand  env.Rand  // nil: the system's
	Log   *slog.Logger
	// Certificate of this server as front proxy; nil: none is shown.
	Certificate func() (*tls.Certificate, error)
	// Dial opens connections into the pod network; nil: the machine's own.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Aggregator knows the servers behind APIServices. New makes it; it starts nothing:
// Run does.
type Aggregator struct {
	cfg   Config
	state atomic.Pointer[State]
	meter *meter

	mu    sync.Mutex
	ways  map[string]*Way   // by name of the APIService
	known map[string]*known // by name of the APIService
	empty map[string]*Emptied
	asked chan struct{} // a token: a namespace is to be emptied
	// What is known of owners on other servers, and a token: somebody wants to know.
	owners map[ownerKey]*Owner
	wanted chan struct{}
}

// State is what is known of the servers; it does not change, a new one takes its
// place.
type State struct {
	Remotes []discovery.Remote
	// V3 are their OpenAPI v3 documents by path ("apis/GROUP/VERSION"), V2 the parts of
	// their v2 documents.
	V3 map[string]*Document
	V2 []*Document
}

// Document is kept compressed.
type Document struct {
	Gzip []byte
	Hash string
}

// New makes an Aggregator.
func New(cfg Config) *Aggregator {
	if cfg.Clock == nil {
		cfg.Clock = env.SystemClock()
	}
	if cfg.Rand == nil {
		cfg.Rand = env.SystemRand()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	a := &Aggregator{cfg: cfg, meter: newMeter(), ways: map[string]*Way{}, known: map[string]*known{}, empty: map[string]*Emptied{}, asked: make(chan struct{}, 1), wanted: make(chan struct{}, 1)}
	a.state.Store(&State{})
	return a
}

// State of now; never nil.
func (a *Aggregator) State() *State { return a.state.Load() }

// Find is the APIService that sends requests for a group version elsewhere; nil
// when the version is the server's own or nobody's. What the program brings along
// is never sent elsewhere; what definitions bring is, if an APIService says so.
func Find(s view.Snapshot, group, version string) *apiregistrationv1.APIService {
	if group == "" || version == "" {
		return nil
	}
	svc := view.Get[*apiregistrationv1.APIService](s, kind.APIService, "", version+"."+group)
	if svc == nil || svc.Spec.Service == nil || discovery.IsBuiltIn(s.Table(), group, version) {
		return nil
	}
	return svc
}

// IsAvailable says what the condition Available says.
func IsAvailable(svc *apiregistrationv1.APIService) bool {
	c := condition(svc)
	return c != nil && c.Status == apiregistrationv1.ConditionTrue
}

func condition(svc *apiregistrationv1.APIService) *apiregistrationv1.APIServiceCondition {
	for i := range svc.Status.Conditions {
		if c := &svc.Status.Conditions[i]; c.Type == apiregistrationv1.Available {
			return c
		}
	}
	return nil
}

// Way is how the server of one APIService is reached.
type Way struct {
	a       *Aggregator
	key     wayKey
	service hook.Service
	name    string // in its certificate
	// many speaks HTTP/2 where the server does; one is for upgrades, which need a
	// connection of their own.
	many, one *http.Transport
	slots     chan struct{}
}

type wayKey struct {
	uid      string
	service  hook.Service
	insecure bool
	bundle   [sha256.Size]byte
}

// Way to the server of an APIService. An error means that its trust bundle cannot be
// used.
func (a *Aggregator) Way(svc *apiregistrationv1.APIService) (*Way, error) {
	ref := svc.Spec.Service
	key := wayKey{uid: string(svc.UID), service: hook.Service{Namespace: ref.Namespace, Name: ref.Name, Port: 443}, insecure: svc.Spec.InsecureSkipTLSVerify,
		bundle: sha256.Sum256(svc.Spec.CABundle)}
	if ref.Port != nil {
		key.service.Port = *ref.Port
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.ways[svc.Name]; w != nil {
		if w.key == key {
			return w, nil
		}
		w.close()
		delete(a.ways, svc.Name)
	}
	w := &Way{a: a, key: key, service: key.service, name: ref.Name + "." + ref.Namespace + ".svc", slots: make(chan struct{}, InFlight)}
	conf := &tls.Config{ServerName: w.name, MinVersion: tls.VersionTLS12, InsecureSkipVerify: key.insecure}
	if len(svc.Spec.CABundle) > 0 {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(svc.Spec.CABundle) {
			return nil, errors.New("unable to load root certificates: unable to parse bytes as PEM block")
		}
	}
	if get := a.cfg.Certificate; get != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return get() }
	}
	tr := func(h2 bool) *http.Transport {
		c := conf.Clone()
		if !h2 {
			c.NextProtos = []string{"http/1.1"}
		}
		return &http.Transport{DialContext: a.cfg.Dial, TLSClientConfig: c, TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: h2, DisableCompression: true,
			MaxIdleConnsPerHost: 25, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: 1 << 20,
			HTTP2: &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second}}
	}
	w.many, w.one = tr(true), tr(false)
	a.ways[svc.Name] = w
	return w, nil
}

func (w *Way) close() {
	w.many.CloseIdleConnections()
	w.one.CloseIdleConnections()
}

// Enter takes one of the places for requests in work; false: all are taken. Leave
// gives it back.
func (w *Way) Enter() bool {
	select {
	case w.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

// Leave gives back what Enter took.
func (w *Way) Leave() { <-w.slots }

// Host is what requests name as host.
func (w *Way) Host() string {
	if w.service.Port == 443 {
		return w.name
	}
	return net.JoinHostPort(w.name, strconv.Itoa(int(w.service.Port)))
}

// For is the transport of one user. Requests go to one of the endpoints, whatever
// their URL's host.
func (w *Way) For(u auth.User, upgrade bool) http.RoundTripper {
	next := w.many
	if upgrade {
		next = w.one
	}
	return transport.NewAuthProxyRoundTripper(u.Name, u.UID, u.Groups, u.Extra, &through{w, next, ""})
}

// through sends requests to an endpoint.
type through struct {
	w    *Way
	next *http.Transport
	host string // "": one of those that are ready
}

// RoundTrip implements http.RoundTripper.
func (t *through) RoundTrip(req *http.Request) (*http.Response, error) {
	host := t.host
	if host == "" {
		hosts, err := hook.Endpoints(t.w.a.cfg.View.Snapshot(), t.w.service)
		if err != nil {
			return nil, &Unresolved{err}
		}
		host = hosts[t.w.a.cfg.Rand.Uint64()%uint64(len(hosts))]
	}
	out := req.Clone(req.Context())
	out.Host = t.w.Host()
	out.URL = &url.URL{Scheme: "https", Host: host, Path: req.URL.Path, RawPath: req.URL.RawPath, RawQuery: req.URL.RawQuery}
	return t.next.RoundTrip(out)
}

// Unresolved says that there is nothing behind the Service.
type Unresolved struct{ Err error }

func (u *Unresolved) Error() string { return u.Err.Error() }
func (u *Unresolved) Unwrap() error { return u.Err }
