// Package apiserver is the HTTP surface of the cluster and the verbs behind it.
//
// A verb is a plain method (get, list, watch, create, update, patch, delete,
// deletecollection) over a call: who asks for what. HTTP (Handler) and the
// in-process client (Local) both end there, so that admission, validation and
// authorization are the same for both.
//
// Reads come from the view: decoded, shared, immutable objects. A write goes
//
//	decode → default → mutating admission → prepare → validate →
//	validating admission → store.Put (conditional) → fence on the view → answer
//
// so that whoever got an answer sees the write in every later read.
//
// Errors are apimachinery StatusErrors with upstream's wording; anything else
// becomes an InternalError at the border.
package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/version"

	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/audit"
	"proa.dev/apiserver/auth"
	"proa.dev/apiserver/extend/aggregate"
	"proa.dev/apiserver/fair"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/store"
	"proa.dev/view"
)

// NodeTransport reaches the agents.
type NodeTransport interface {
	// RoundTripperFor returns the transport to a node's own HTTPS port and its base
	// URL (https://10.0.0.7:10250), with the server's client certificate. Its
	// requests may be upgrades. An error names the node and the way out.
	RoundTripperFor(nodeName string) (http.RoundTripper, *url.URL, error)
	// TransportFor returns the transport into the pod network: the proxy
	// subresources of pods and services, webhooks.
	PodTransport() http.RoundTripper
}

// Check is one named health check.
type Check struct {
	Name string
	Do   func(ctx context.Context) error
}

// Bounds of the requests in work, unless set otherwise.
const (
	DefaultInFlight         = 800
	DefaultMutatingInFlight = 400
)

// Config of a Server. Table, Store, View, Authn and Authz are needed.
type Config struct {
	Table *kind.Table
	Store store.Store
	View  *view.View
	Clock env.Clock // nil: the system's
	Rand  env.Rand  // nil: the system's

	Authn auth.Authenticator
	// Anonymous says which requests without credentials are let in as
	// system:anonymous; nil: all. The others are answered 401.
	Anonymous func(*http.Request) bool
	Tokens    auth.TokenAuthenticator // nil: TokenReview finds nobody
	Authz     auth.Authorizer
	Rules     auth.RuleResolver // nil: SelfSubjectRulesReview is incomplete
	Admit     admit.Chain
	Nodes     NodeTransport // nil: log, exec and proxy answer 503

	// Aggregate sends requests for other servers' group versions on; nil: there are
	// none. The caller runs it.
	Aggregate *aggregate.Aggregator

	// Held are the tokens that admission holds (the same that its plugins have); nil
	// where no other server writes the store.
	Held *Tokens

	// Written is the first revision whose value was written by this very program: from
	// there on what is stored is what it would encode, and lists are made of it. 0:
	// that is not known of any.
	Written int64

	// IssueToken fills the status of a TokenRequest for the service account in r.Old
	// (serviceaccounts/token). Nil: 501.
	IssueToken func(ctx context.Context, r *admit.Request, tr *authenticationv1.TokenRequest) error
	// OpenIDConfiguration and JWKS are the documents of the token issuer; nil: 404.
	OpenIDConfiguration, JWKS func() []byte

	Version version.Info
	// Live and Ready are added to the built-in checks.
	Live, Ready []Check

	// MaxInFlight and MaxMutatingInFlight bound the requests in work, streams and
	// watches not counted (0: 800 and 400).
	MaxInFlight, MaxMutatingInFlight int
	// Fair admits requests by Priority and Fairness instead; nil: only the two bounds
	// hold.
	Fair *fair.Dispatcher
	// Audit records requests; nil: nothing is recorded.
	Audit *audit.Log
	// Verbosity sets how much is logged, as klog's -v; nil: /debug/flags/v is not there.
	Verbosity func(v int)
	// Collectors are metrics of other parts that /metrics shows, too.
	Collectors []prometheus.Collector
	// NoProfiling turns /debug/pprof off.
	NoProfiling bool
	// RequestTimeout of everything but streams and watches (0: one minute).
	RequestTimeout time.Duration
	Log            *slog.Logger
}

// Server answers the API. New makes it; it starts nothing by itself.
type Server struct {
	cfg   Config
	table *kind.Table // built-in kinds; kinds() has all
	store store.Store
	view  *view.View
	clock env.Clock
	rand  env.Rand
	log   *slog.Logger

	pages    pageCache
	docs     documents // of the built-in kinds
	newest   atomic.Pointer[documentsOf]
	appliers appliers
	metrics  *metrics
	reading  atomic.Int64
	writing  atomic.Int64
	ids      *ids
	crowd    crowd

	draining  chan struct{}
	drainOnce sync.Once
}

// New checks the configuration and makes a Server.
func New(cfg Config) (*Server, error) {
	var problems []error
	for _, need := range []struct {
		missing bool
		name    string
	}{{cfg.Table == nil, "Table"}, {cfg.Store == nil, "Store"}, {cfg.View == nil, "View"}, {cfg.Authn == nil, "Authn"}, {cfg.Authz == nil, "Authz"}} {
		if need.missing {
			problems = append(problems, fmt.Errorf("apiserver config: %s is not set", need.name))
		}
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	if cfg.Clock == nil {
		cfg.Clock = env.SystemClock()
	}
	if cfg.Rand == nil {
		cfg.Rand = env.SystemRand()
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = DefaultInFlight
	}
	if cfg.MaxMutatingInFlight == 0 {
		cfg.MaxMutatingInFlight = DefaultMutatingInFlight
	}
	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = time.Minute
	}
	s := &Server{cfg: cfg, table: cfg.Table, store: cfg.Store, view: cfg.View, clock: cfg.Clock, rand: cfg.Rand, log: cfg.Log,
		draining: make(chan struct{})}
	s.pages.now = cfg.Clock.Now
	s.ids = newIDs(cfg.Rand)
	s.metrics = newMetrics(s)
	return s, nil
}

// kinds is the table of the kinds that are served now.
func (s *Server) kinds() *kind.Table { return s.view.Table() }

// documentsOf are the documents about one table and other servers.
type documentsOf struct {
	table   *kind.Table
	remotes *aggregate.State
	documents
}

// remotes are what is known of other servers.
func (s *Server) remotes() *aggregate.State {
	if s.cfg.Aggregate == nil {
		return noRemotes
	}
	return s.cfg.Aggregate.State()
}

var noRemotes = &aggregate.State{}

// documents about the kinds that are served now.
func (s *Server) documents() *documentsOf {
	t, remotes := s.kinds(), s.remotes()
	d := s.newest.Load()
	if d == nil || d.table != t || d.remotes != remotes {
		d = &documentsOf{table: t, remotes: remotes}
		s.newest.Store(d)
	}
	return d
}

// Drain ends all watches and makes /readyz fail, so that clients go elsewhere;
// other requests are still answered.
func (s *Server) Drain() { s.drainOnce.Do(func() { close(s.draining) }) }

// HTTPServer carries Handler with the limits that suit it: slow headers are cut
// off, a request and its answer have 90 seconds together (watches and streams
// have limits of their own), connections without work go after three minutes,
// HTTP/2 streams are as many as a client library with many watches needs. The
// caller listens, serves and shuts down.
func (s *Server) HTTPServer(tlsConfig *tls.Config) *http.Server {
	whole := s.cfg.RequestTimeout + 30*time.Second
	errors := slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)
	errors.SetOutput(&handshakes{s.metrics.tls, errors.Writer()})
	return &http.Server{Handler: s.Handler(), TLSConfig: tlsConfig, ReadHeaderTimeout: 30 * time.Second, ReadTimeout: whole, WriteTimeout: whole, IdleTimeout: 3 * time.Minute,
		MaxHeaderBytes: 1 << 20, ErrorLog: errors,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1000, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second}}
}
