// Package server is one server of a cluster: API server, store and deciders in one
// process. The binary, the public package envtest, the tests and the benchmarks
// all assemble it here, so that they are the same thing.
//
// New opens the store and loads the view; Run starts all else, blocks until its
// context ends, and ends everything in reverse: clients, deciders, store, view.
// The caller brings what is of the machine: listeners with their TLS, the way to
// nodes, the authority with its keys.
//
// Order of a start: store, view, first objects, listeners, deciders. Who connects
// to a listener before that waits in its queue, so that the first answer already
// has the namespaces and the policy in it. When the first objects cannot all be
// made (a webhook that is down may refuse them), the server serves without them,
// says so, is not ready, and tries again.
package server

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	utilversion "k8s.io/apimachinery/pkg/version"

	"proa.dev/act"
	"proa.dev/apiserver"
	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/audit"
	"proa.dev/apiserver/auth"
	"proa.dev/apiserver/auth/access"
	"proa.dev/apiserver/discovery"
	"proa.dev/apiserver/extend/aggregate"
	"proa.dev/apiserver/extend/crd"
	"proa.dev/apiserver/extend/hook"
	"proa.dev/apiserver/extend/policy"
	"proa.dev/apiserver/fair"
	"proa.dev/client"
	"proa.dev/client/record"
	"proa.dev/cluster/first"
	"proa.dev/cluster/pki"
	"proa.dev/cluster/signer"
	"proa.dev/control"
	"proa.dev/control/admissionpolicy"
	"proa.dev/control/apiservice"
	"proa.dev/control/certificate"
	"proa.dev/control/customresource"
	"proa.dev/control/garbage"
	"proa.dev/control/namespace"
	"proa.dev/control/parts"
	"proa.dev/control/serviceaddress"
	"proa.dev/env"
	"proa.dev/internal/group"
	"proa.dev/internal/uuid"
	"proa.dev/kind"
	"proa.dev/sched/loop"
	"proa.dev/server/elect"
	"proa.dev/server/meter"
	"proa.dev/store"
	"proa.dev/store/disk"
	"proa.dev/store/mem"
	"proa.dev/store/seal"
	"proa.dev/view"
	"proa.dev/view/feed"
)

// KubernetesVersion is the API's.
const KubernetesVersion = "v1.37.2"

// Issuer of service account tokens, unless chosen otherwise.
const Issuer = "https://kubernetes.default.svc." + first.Domain

// Listener is one place where the API is served; without TLS it is plain HTTP.
type Listener struct {
	net.Listener
	TLS *tls.Config
}

// Opener opens the store; Config has clock, randomness and log by then.
type Opener func(ctx context.Context, c *Config) (store.Store, error)

// Config of a Server. Services is needed, and Authority or what stands for it:
// ClientCAs, TokenKey, First.CA.
type Config struct {
	Clock env.Clock // nil: the system's
	Rand  env.Rand  // nil: the system's
	Log   *slog.Logger
	// Level of Log, for /debug/flags/v: debug lines are written from 4 on. Nil: it is
	// fixed.
	Level *slog.LevelVar

	// Store opens the state: Memory (also when nil), Disk, or the caller's own.
	Store Opener
	// Authority signs service account tokens and what the CSR signers sign; its
	// certificates authenticate clients. Without one, the signer does not run.
	Authority *pki.Authority
	// ClientCAs authenticate clients by certificate; nil: the Authority.
	ClientCAs *x509.CertPool
	// TokenKey signs service account tokens (nil: the Authority's), TokenVerifyKeys
	// check them besides.
	TokenKey        crypto.Signer
	TokenVerifyKeys []crypto.PublicKey
	// Services is the network of cluster IPs; node ports are [PortFirst, PortEnd) (0:
	// upstream's).
	Services           netip.Prefix
	PortFirst, PortEnd int32
	// First are the objects that each start completes; API, APIPort, CA and PublicURL
	// are the caller's, the rest follows from Services where it is not set.
	First first.Config

	Listeners []Listener
	// Nodes reaches the agents; nil: log, exec and proxy answer 503.
	Nodes apiserver.NodeTransport

	// EncryptionFile is an EncryptionConfiguration (--encryption-provider-config); "":
	// Secrets are sealed with the Authority's key. Seal is made from both by New and
	// used by Disk and Etcd, unless it is given.
	EncryptionFile string
	Seal           *seal.Set

	// FrontProxy is the certificate with which this server shows servers behind
	// APIServices that it may speak for users, and FrontProxyCA what signed it (PEM);
	// nil: from the Authority. They are told in kube-system/extension-apiserver-authentication.
	FrontProxy   func() (*tls.Certificate, error)
	FrontProxyCA []byte
	// Dial opens connections to servers behind APIServices; nil: the machine's own
	// network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Access is the rest of authentication and authorization: files, front proxy, OIDC,
	// webhooks. What it has in common with the fields here is taken from these.
	Access access.Config
	// Authenticators are asked after client certificates and tokens of service
	// accounts.
	Authenticators []auth.Authenticator
	// Issuer and Audiences of service account tokens ("": Issuer; nil: the issuer).
	Issuer    string
	Audiences []string
	// AlsoIssuers, MaxTokenExpiration and JWKSURI are ServiceAccountTokens'.
	AlsoIssuers        []string
	MaxTokenExpiration time.Duration
	JWKSURI            string
	// Authorization modes in order: Node, RBAC, AlwaysAllow, AlwaysDeny, Webhook. Nil:
	// Node, RBAC, or what Access has a file for. Authorizers come before them.
	Authorization []string
	Authorizers   []auth.Authorizer

	// EnableAdmission and DisableAdmission name plugins; AdmissionFile is an
	// AdmissionConfiguration (--admission-control-config-file).
	EnableAdmission, DisableAdmission []string
	AdmissionFile                     string

	// Controllers that run, as kube-controller-manager's --controllers: "*", "name",
	// "-name", in Controllers' names or upstream's short ones. Nil: all with the
	// scheduler; an empty list: none.
	Controllers []string
	// Parts run beside the chosen controllers.
	Parts []control.Part

	// MaxInFlight and MaxMutatingInFlight bound the requests in work; 0: the API
	// server's defaults.
	MaxInFlight, MaxMutatingInFlight int

	// Audit says what is recorded of requests and where; the zero value: nothing.
	Audit audit.Config
	// NoFairness turns Priority and Fairness off: only the two bounds above hold then.
	NoFairness bool
	// NoProfiling turns /debug/pprof off.
	NoProfiling bool

	// API may change the API server's configuration last.
	API func(*apiserver.Config)

	// LeaseDuration of the Lease by which servers on one store choose the one whose
	// deciders run (0: 15 s, as upstream); the others take over within it.
	LeaseDuration time.Duration

	// Grace is how long requests in work may take at the end; 0: two seconds.
	Grace time.Duration

	// Host is where events of this server come from.
	Host string
	// Step is told what each step of the start took; nil: nobody.
	Step func(name string, took time.Duration)
}

// Memory keeps the state in memory; events are bounded as on disk.
func Memory(_ context.Context, c *Config) (store.Store, error) {
	return mem.Open(mem.Config{Clock: c.Clock, Rings: []mem.Ring{{Prefix: disk.DefaultEventsPrefix, Objects: disk.DefaultEventsObjects, Bytes: disk.DefaultEventsBytes}}}), nil
}

// Disk keeps the state in a directory, with Secrets sealed by the authority's key.
func Disk(dir string) Opener {
	return func(ctx context.Context, c *Config) (store.Store, error) {
		if c.Seal == nil {
			return nil, errors.New("open the store: there is no authority with a key for Secrets; set Authority or EncryptionFile")
		}
		return disk.Open(ctx, disk.Config{Dir: dir, Clock: c.Clock, Log: c.Log,
			Sealed: []disk.Sealed{{Prefix: c.sealedPrefix(), Transform: c.Seal}}})
	}
}

// Given is a store that is open; Run closes it in the end.
func Given(st store.Store) Opener {
	return func(context.Context, *Config) (store.Store, error) { return st, nil }
}

// Server is one server. Its fields are there from New on and do not change.
type Server struct {
	Store  store.Store
	View   *view.View
	API    *apiserver.Server
	Authn  auth.Authenticator
	Authz  auth.Authorizer
	Tokens *auth.ServiceAccountTokens

	cfg    Config
	feed   *feed.Feed
	parts  []control.Part
	on     func(name string) bool
	ready  chan struct{}
	made   atomic.Bool // the first objects
	audit  *audit.Log
	fair   *fair.Dispatcher
	access *access.Access
	others *aggregate.Aggregator
	since  int64 // the first revision that this program has written

	meter   *meter.Meter
	clients *meter.Clients
}

// New checks the configuration, opens the store and loads the view. Nothing is
// served or decided before Run; who does not Run must Close.
func New(ctx context.Context, cfg Config) (*Server, error) {
	if a := cfg.Authority; a != nil {
		if cfg.ClientCAs == nil {
			cfg.ClientCAs = a.Pool()
		}
		if cfg.TokenKey == nil {
			cfg.TokenKey = a.ServiceAccountKey
		}
		if cfg.First.CA == nil {
			cfg.First.CA = a.PEM()
		}
		if cfg.FrontProxy == nil && a.FrontProxy != nil {
			cfg.FrontProxy = a.FrontProxy.Leaf(pki.LeafLife, func() pki.Names { return pki.Names{CommonName: pki.FrontProxyName, Client: true} }).Certificate
			cfg.FrontProxyCA = a.FrontProxy.PEM()
		}
	}
	if !cfg.Services.IsValid() {
		return nil, errors.New("server config: Services is not set")
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
	if cfg.Store == nil {
		cfg.Store = Memory
	}
	if cfg.Grace == 0 {
		cfg.Grace = 2 * time.Second
	}
	if cfg.Issuer == "" {
		cfg.Issuer = Issuer
	}
	if cfg.Audiences == nil {
		cfg.Audiences = []string{cfg.Issuer}
	}
	if cfg.Step == nil {
		cfg.Step = func(string, time.Duration) {}
	}
	cfg.First.Services = cfg.Services
	if !cfg.First.APIService.IsValid() {
		cfg.First.APIService = first.ServiceAddress(cfg.Services, 1)
	}
	if !cfg.First.DNSService.IsValid() {
		cfg.First.DNSService = first.ServiceAddress(cfg.Services, 10)
	}
	s := &Server{cfg: cfg, ready: make(chan struct{})}
	on, err := choose(cfg.Controllers)
	if err != nil {
		return nil, err
	}
	s.on = func(name string) bool { return on(name) && (name != Signer || cfg.Authority != nil) }
	if err := s.timed("store", func() error { return s.open(ctx) }); err != nil {
		return nil, err
	}
	if err := s.assemble(); err != nil {
		return nil, errors.Join(err, s.Store.Close())
	}
	return s, nil
}

// timed does one step of the start and tells how long it took.
func (s *Server) timed(name string, f func() error) error {
	began := s.cfg.Clock.Now()
	if err := f(); err != nil {
		return err
	}
	s.cfg.Step(name, s.cfg.Clock.Now().Sub(began))
	return nil
}

func (s *Server) open(ctx context.Context) (err error) {
	var at atomic.Pointer[store.Store]
	if err := s.sealing(&at); err != nil {
		return err
	}
	if s.Store, err = s.cfg.Store(ctx, &s.cfg); err != nil {
		return err
	}
	if s.cfg.Seal != nil {
		at.Store(&s.Store)
	}
	if s.since, err = s.written(ctx); err != nil {
		return errors.Join(err, s.Store.Close())
	}
	s.View = view.New(kind.All, 0)
	s.feed = feed.New(s.Store, s.View, kind.DecodeStored, s.cfg.Log)
	s.feed.Extend(kind.CustomResourceDefinition, crd.New(crd.Config{Caller: hook.New(hook.Config{View: s.View, Rand: s.cfg.Rand}),
		UID: func() types.UID { return types.UID(uuid.New(s.cfg.Rand)) }, Log: s.cfg.Log}))
	if err := s.feed.Load(ctx); err != nil {
		return errors.Join(err, s.Store.Close())
	}
	return nil
}

// assemble wires the API server.
func (s *Server) assemble() error {
	c := &s.cfg
	s.meter = meter.New()
	s.clients = s.meter.Clients(c.Clock)
	s.Tokens = &auth.ServiceAccountTokens{Issuer: c.Issuer, Audiences: c.Audiences, Key: c.TokenKey, VerifyKeys: c.TokenVerifyKeys, Now: c.Clock.Now,
		Snapshot: s.View.Snapshot, NewID: func() string { return uuid.New(c.Rand) }}
	s.Tokens.Extend = true
	s.Tokens.AlsoIssuers, s.Tokens.MaxExpiration, s.Tokens.JWKSURI = c.AlsoIssuers, c.MaxTokenExpiration, c.JWKSURI
	ac := c.Access
	ac.View, ac.Clock, ac.Log, ac.ServiceAccounts, ac.Audiences, ac.BootstrapTokens = s.View, c.Clock, c.Log, s.Tokens, c.Audiences, true
	ac.Authenticators, ac.Authorizers = append(ac.Authenticators, c.Authenticators...), append(ac.Authorizers, c.Authorizers...)
	if ac.ClientCA == nil {
		ac.ClientCA = c.ClientCAs
	}
	if c.Authorization != nil {
		ac.Modes = c.Authorization
	}
	var err error
	if s.access, err = access.New(ac); err != nil {
		return err
	}
	s.Authn, s.Authz = s.access.Authenticator(), s.access
	var held *apiserver.Tokens
	var tokens admit.Tokens
	if _, ok := s.Store.(store.Shared); ok {
		held = apiserver.NewTokens(s.Store, s.View, c.Rand)
		tokens = held
	}
	plugins, err := ReadAdmission(c.AdmissionFile)
	if err != nil {
		return err
	}
	meter := apiserver.NewMeter()
	chain, err := Admission{Meter: meter, Tokens: tokens, View: s.View, Rand: c.Rand, Authz: s.Authz, Rules: s.access, Services: c.Services, IssueSecret: s.Tokens.IssueLegacy, CA: c.First.CA, PortFirst: c.PortFirst, PortEnd: c.PortEnd, Log: c.Log,
		Enable: c.EnableAdmission, Disable: c.DisableAdmission, Config: plugins}.Chain()
	if err != nil {
		return err
	}
	api := apiserver.Config{
		Table: kind.All, Store: s.Store, View: s.View, Clock: c.Clock, Rand: c.Rand, Log: c.Log,
		Authn: s.Authn, Anonymous: s.access.Anonymous, Tokens: s.access.Tokens(), Authz: s.Authz, Rules: s.access, Admit: chain, Held: held, Nodes: c.Nodes, Written: s.since,
		IssueToken: func(_ context.Context, r *admit.Request, tr *authenticationv1.TokenRequest) error {
			sa, _ := r.Old.(*corev1.ServiceAccount)
			return s.Tokens.Issue(sa, tr)
		},
		OpenIDConfiguration: func() []byte { return must(s.Tokens.Discovery()) },
		JWKS:                func() []byte { return must(s.Tokens.JWKS()) },
		MaxInFlight:         c.MaxInFlight, MaxMutatingInFlight: c.MaxMutatingInFlight,
		Ready: []apiserver.Check{{Name: "poststarthook/first-objects", Do: s.checkFirst}},
		Version: utilversion.Info{Major: "1", Minor: "37", GitVersion: KubernetesVersion + "+proa", GitTreeState: "clean",
			GoVersion: runtime.Version(), Compiler: runtime.Compiler, Platform: runtime.GOOS + "/" + runtime.GOARCH},
	}
	s.others = aggregate.New(aggregate.Config{View: s.View, Clock: c.Clock, Rand: c.Rand, Log: c.Log, Certificate: c.FrontProxy, Dial: c.Dial})
	api.Aggregate = s.others
	api.Collectors = append(api.Collectors, meter, s.others, s.meter)
	if c.Seal != nil {
		api.Collectors = append(api.Collectors, c.Seal)
	}
	if c.Level != nil {
		api.Verbosity = func(v int) {
			if v >= 4 {
				c.Level.Set(slog.LevelDebug)
			} else {
				c.Level.Set(slog.LevelInfo)
			}
		}
	}
	c.Audit.Clock, c.Audit.Log = c.Clock, c.Log
	if api.Audit, err = audit.New(c.Audit); err != nil {
		return err
	}
	s.audit = api.Audit
	if !c.NoFairness {
		seats := c.MaxInFlight + c.MaxMutatingInFlight
		if seats == 0 {
			seats = apiserver.DefaultInFlight + apiserver.DefaultMutatingInFlight
		}
		s.fair = fair.New(fair.Config{Seats: seats, Clock: c.Clock})
		api.Fair = s.fair
	}
	api.NoProfiling = c.NoProfiling
	if c.API != nil {
		c.API(&api)
	}
	if s.API, err = apiserver.New(api); err != nil {
		return err
	}
	if err := s.API.CertificateExpiry(s.certificatesEnd); err != nil {
		return err
	}
	all := append(parts.All(kind.All, string(c.First.CA)), certificate.ApproverPart(s.mayRequest), admissionpolicy.Part(policy.Warnings))
	for i := range all {
		switch all[i].Name {
		case namespace.Name:
			all[i] = namespace.PartWith(kind.All, s.elsewhere)
		case garbage.Name:
			all[i] = garbage.PartWith(kind.All, s.owner)
		}
	}
	s.parts = append(chosenParts(all, s.on), c.Parts...)
	return nil
}

func (s *Server) checkFirst(context.Context) error {
	if !s.made.Load() {
		return errors.New("not all first objects are there yet")
	}
	return nil
}

// Client is the in-process client of a component that acts as a user: a node's
// agent, say, as upstream's kubelet.
func (s *Server) Client(component string, u auth.User) client.Client {
	return s.API.LocalAs(apiserver.Identity{User: func() auth.User { return u }, Agent: agentOf(component, u.Name)})
}

// Ready is closed when the API is served and the deciders run.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Close is for a Server that is not Run.
func (s *Server) Close() error { return s.Store.Close() }

// Skipped counts stored objects that could not be decoded.
func (s *Server) Skipped() int64 { return s.feed.Skipped() }

// Run serves and decides until ctx ends, and returns nil then; or until something
// that the rest needs has failed. All goroutines have ended when it returns, and
// the store is closed.
func (s *Server) Run(ctx context.Context) error {
	// The feed outlives everything that writes: it ends when the store is closed.
	feeding, stopFeed := context.WithCancel(context.WithoutCancel(ctx))
	defer stopFeed()
	g := group.New(ctx)
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		if err := s.feed.Run(feeding); err != nil {
			g.End(fmt.Errorf("view: %w", err))
		}
	}()
	if err := s.start(g); err != nil {
		g.End(err)
	}
	cause := g.Wait()
	err := s.Store.Close()
	stopFeed()
	<-fed
	for _, l := range s.cfg.Listeners {
		l.Close()
	}
	if ctx.Err() == nil {
		return errors.Join(cause, err)
	}
	if err != nil {
		return fmt.Errorf("close the store: %w", err)
	}
	return nil
}

func (s *Server) start(g *group.Group) error {
	if err := s.timed("first objects", func() error {
		err := first.Ensure(g.Context(), s.Admin(), s.firstObjects())
		if err != nil {
			s.cfg.Log.Warn("not all first objects could be made; trying again", "error", err)
			g.Go("first objects", s.complete)
			return nil
		}
		s.made.Store(true)
		return nil
	}); err != nil {
		return err
	}
	if err := s.timed("API", func() error {
		for _, l := range s.cfg.Listeners {
			g.Go("API", func(ctx context.Context) error { return s.serve(ctx, l) })
		}
		return nil
	}); err != nil {
		return err
	}
	g.Go("definitions", func(ctx context.Context) error {
		// Every server decides about definitions and about the addresses that it gives,
		// also one without controllers.
		parts := slices.Concat(customresource.Parts(), apiservice.Parts(discovery.Priority, s.trust()), serviceaddress.Parts())
		rt := control.New(control.Config{Parts: parts, Meter: s.meter.Parts(parts), View: s.View, Clock: s.cfg.Clock, Log: s.cfg.Log, Workers: 2,
			Client: func(string) client.Client { return s.Admin() }})
		defer s.meter.Follow(rt, parts)()
		if err := rt.Run(ctx); ctx.Err() == nil {
			return err
		}
		return nil
	})
	g.Go("aggregation", func(ctx context.Context) error { return s.others.Run(ctx, s.Admin()) })
	g.Go("access", s.access.Run)
	if s.cfg.Seal != nil {
		g.Go("seal", s.cfg.Seal.Run)
	}
	if s.audit != nil {
		g.Go("audit", s.audit.Run)
	}
	keeper := &fair.Keeper{Dispatcher: s.fair, View: s.View, Client: s.Admin(), Clock: s.cfg.Clock, Log: s.cfg.Log}
	g.Go("priority and fairness", keeper.Run)
	if s.shared() && s.cfg.First.API.IsValid() {
		p := &peers{store: s.Store, client: s.Admin(), clock: s.cfg.Clock, api: s.cfg.First.API, port: s.cfg.First.APIPort}
		g.Go("endpoints of the API", func(ctx context.Context) error {
			return p.run(ctx, func(err error) {
				s.cfg.Log.Warn("endpoints of the API were not written; it is tried again", "error", err)
			})
		})
	}
	if err := s.timed("controllers", func() error { s.elect(g); return nil }); err != nil {
		return err
	}
	close(s.ready)
	return nil
}

// complete tries the first objects again until they are there.
func (s *Server) complete(ctx context.Context) error {
	for pause := 100 * time.Millisecond; ; pause = min(pause*2, 10*time.Second) {
		if !env.Sleep(ctx, s.cfg.Clock, pause) {
			return nil
		}
		err := first.Ensure(ctx, s.Admin(), s.firstObjects())
		if err == nil {
			s.made.Store(true)
			s.cfg.Log.Info("all first objects are there")
			return nil
		}
		s.cfg.Log.Debug("not all first objects could be made; trying again", "error", err)
	}
}

// serve answers on one listener until ctx ends, and lets requests in work end.
func (s *Server) serve(ctx context.Context, l Listener) error {
	web := s.API.HTTPServer(l.TLS)
	var inWork atomic.Int64
	answer := web.Handler
	web.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inWork.Add(1)
		defer inWork.Add(-1)
		answer.ServeHTTP(w, r)
	})
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		s.API.Drain()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Grace)
		defer cancel()
		quiet := make(chan struct{})
		go func() {
			defer close(quiet)
			calm(end, s.cfg.Clock, &inWork)
			cancel()
		}()
		if web.Shutdown(end) != nil {
			web.Close()
		}
		cancel()
		<-quiet
	})
	var err error
	if l.TLS != nil {
		err = web.ServeTLS(l.Listener, "", "")
	} else {
		err = web.Serve(l.Listener)
	}
	if !stop() {
		<-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// calm returns when nothing has been in work for a while: clients of HTTP/2 stay
// connected, and Shutdown would wait a second for them.
func calm(ctx context.Context, clock env.Clock, inWork *atomic.Int64) {
	const looks = 5 // the last answers are on their way
	for quiet := 0; quiet < looks && env.Sleep(ctx, clock, 10*time.Millisecond); {
		if quiet++; inWork.Load() > 0 {
			quiet = 0
		}
	}
}

// LeaderLease is the Lease in kube-system of the server whose deciders run.
const LeaderLease = "proa"

// elect runs the deciders: at once where this server is alone, and while it leads
// where there may be others.
func (s *Server) elect(g *group.Group) {
	if !s.shared() {
		s.decide(g)
		return
	}
	g.Go("election", func(ctx context.Context) error {
		return elect.Run(ctx, elect.Config{Client: s.Admin(), Clock: s.cfg.Clock, Log: s.cfg.Log, Namespace: "kube-system", Name: LeaderLease,
			Identity: s.cfg.Host + "_" + uuid.New(s.cfg.Rand), LeaseDuration: s.cfg.LeaseDuration, RenewDeadline: s.cfg.LeaseDuration * 2 / 3, RetryPeriod: s.cfg.LeaseDuration * 2 / 15,
			Lead: func(ctx context.Context) error {
				led := group.New(ctx)
				s.decide(led)
				err := led.Wait()
				if ctx.Err() != nil {
					return nil
				}
				return err
			}, Leads: s.meter.Leads(LeaderLease)})
	})
}

// decide runs controllers, signer and scheduler.
func (s *Server) decide(g *group.Group) {
	c := &s.cfg
	if len(s.parts) == 0 && !s.on(Signer) && !s.on(Scheduler) {
		return
	}
	recorder := record.New(s.Admin(), c.Clock, c.Rand, "proa", c.Host)
	recorder.As = s.writer
	g.Go("events", recorder.Run)
	emit := func(e act.Event) { recorder.Emit(e) }
	if len(s.parts) > 0 {
		clients := map[string]client.Client{}
		for _, p := range s.parts {
			clients[p.Name] = s.clients.Of(s.as(p.Name))
		}
		rt := control.New(control.Config{Parts: s.parts, View: s.View, Clock: c.Clock, Log: c.Log,
			Client: func(part string) client.Client { return clients[part] }, Record: emit, Meter: s.meter.Parts(s.parts)})
		g.Go("controllers", func(ctx context.Context) error {
			defer s.meter.Follow(rt, s.parts)()
			return rt.Run(ctx)
		})
	}
	if s.on(Signer) {
		g.Go("certificate signer", func(ctx context.Context) error {
			return signer.Run(ctx, signer.Config{Client: s.as(Signer), CA: c.Authority, Clock: c.Clock, Log: c.Log})
		})
	}
	if s.on(Scheduler) {
		g.Go("scheduler", loop.New(loop.Config{View: s.View, Client: s.clients.Of(s.as(Scheduler)), Clock: c.Clock, Log: c.Log, Record: emit, Meter: s.meter.Scheduler()}).Run)
	}
}

// ServingTLS is what an API listener needs: the certificate, and clients' asked
// for but not demanded.
func ServingTLS(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{GetCertificate: get, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12, DynamicRecordSizingDisabled: true, NextProtos: []string{"h2", "http/1.1"}}
}

func must(data []byte, err error) []byte {
	if err != nil {
		panic("server: " + err.Error())
	}
	return data
}
