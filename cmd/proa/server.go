package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	utilversion "k8s.io/apimachinery/pkg/version"

	"proa.dev/act"
	"proa.dev/apiserver"
	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/auth"
	"proa.dev/client"
	"proa.dev/client/record"
	"proa.dev/cluster"
	"proa.dev/cluster/first"
	"proa.dev/cluster/pki"
	"proa.dev/cluster/signer"
	"proa.dev/control"
	"proa.dev/control/parts"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/sched/loop"
	"proa.dev/store/disk"
	"proa.dev/store/seal"
	"proa.dev/view"
	"proa.dev/view/feed"
)

const kubernetesVersion = "v1.37.2"

// Node ports, as upstream's default.
const portFirst, portEnd = 30000, 32768

// server is one running cluster. Its parts start from top to bottom and end in
// reverse.
type server struct {
	cl    cluster.Cluster
	set   cluster.Settings
	card  cluster.Card
	log   *slog.Logger
	clock env.Clock
	rand  env.Rand
	tell  func(step)

	ca     *pki.Authority
	view   *view.View
	api    *apiserver.Server
	admin  client.Client
	tokens *auth.ServiceAccountTokens
	authn  auth.Authenticator
	authz  auth.Authorizer
	node   *machine // nil without a node

	adminRenewal time.Time // when the administrator's certificate is due

	group group
}

// group runs goroutines that are waited for; the first error ends all.
type group struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
}

func (g *group) run(name string, f func(ctx context.Context) error) {
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		if err := f(g.ctx); err != nil && g.ctx.Err() == nil {
			g.cancel(fmt.Errorf("%s: %w", name, err))
		}
	}()
}

// errStopped says that the end was asked for.
var errStopped = errors.New("stopped")

// serve runs a cluster until ctx ends (containers go on) or it is told to go
// down (they end).
func serve(ctx context.Context, cl cluster.Cluster, set cluster.Settings, tell func(step)) (err error) {
	s := &server{cl: cl, set: set, tell: tell, clock: env.SystemClock(), rand: env.SystemRand(),
		log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))}
	slog.SetDefault(s.log)
	s.group.ctx, s.group.cancel = context.WithCancelCause(ctx)
	defer func() {
		if err != nil {
			tell(step{Error: err.Error()})
		}
	}()
	unlock, err := lockPID(cl)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.start(); err != nil {
		s.group.cancel(err)
		s.group.wg.Wait()
		return err
	}
	<-s.group.ctx.Done()
	s.group.wg.Wait()
	if cause := context.Cause(s.group.ctx); !errors.Is(cause, errStopped) && ctx.Err() == nil {
		return cause
	}
	return nil
}

// timed does one step of the start and tells how long it took.
func (s *server) timed(name string, f func() error) error {
	began := time.Now()
	if err := f(); err != nil {
		return err
	}
	s.tell(step{Name: name, Took: time.Since(began)})
	s.log.Info("started", "step", name, "took", time.Since(began).String())
	return nil
}

func (s *server) start() (err error) {
	if s.card, err = s.cl.Prepare(s.set); err != nil {
		return err
	}
	services, err := netip.ParsePrefix(s.card.ServiceNetwork)
	if err != nil {
		return err
	}
	var closeStore func()
	if err := s.timed("keys", func() error {
		s.ca, err = pki.Open(s.cl.Path("pki"), s.clock.Now)
		return err
	}); err != nil {
		return err
	}
	var st *disk.Store
	if err := s.timed("store", func() error {
		secrets, err := seal.New(s.rand, seal.Key{Name: "key1", Secret: s.ca.SecretsKey})
		if err != nil {
			return err
		}
		st, err = disk.Open(s.group.ctx, disk.Config{Dir: s.cl.Path("store"), Clock: s.clock, Log: s.log,
			Sealed: []disk.Sealed{{Prefix: "/registry/secrets/", Transform: secrets}}})
		if err != nil {
			return err
		}
		closeStore = func() {
			if err := st.Close(); err != nil {
				s.log.Error("store did not close", "error", err)
			}
		}
		s.view = view.New(kind.All, 0)
		f := feed.New(st, s.view, kind.DecodeStored, s.log)
		if err := f.Load(s.group.ctx); err != nil {
			return err
		}
		// The feed outlives everything that writes: it ends when the store closes.
		s.group.run("feed", func(context.Context) error { return f.Run(context.WithoutCancel(s.group.ctx)) })
		return nil
	}); err != nil {
		if closeStore != nil {
			closeStore()
		}
		return err
	}
	s.group.run("store", func(ctx context.Context) error {
		<-ctx.Done()
		s.drained()
		closeStore()
		return nil
	})
	if err := s.timed("API", func() error { return s.startAPI(st, services) }); err != nil {
		return err
	}
	if err := s.timed("first objects", func() error {
		return first.Ensure(s.group.ctx, s.admin, s.firstObjects(services))
	}); err != nil {
		return err
	}
	if err := s.timed("controllers", s.startDeciders); err != nil {
		return err
	}
	if err := s.startDoor(); err != nil {
		return err
	}
	if !s.card.NoNode {
		if err := s.startNode(services); err != nil {
			return err
		}
	}
	s.group.run("memory", newTrimmer(s.clock, s.log).Run)
	s.tell(step{Done: true})
	return nil
}

func (s *server) drained() {
	if s.api != nil {
		s.api.Drain()
	}
}

func (s *server) firstObjects(services netip.Prefix) first.Config {
	c := first.Config{
		API: cluster.HostAddress(), APIPort: int32(s.card.APIPort),
		APIService: first.ServiceAddress(services, 1), DNSService: first.ServiceAddress(services, 10),
		CA: s.ca.PEM(), PublicURL: fmt.Sprintf("https://%s:%d", cluster.HostAddress(), s.card.APIPort),
	}
	if !s.card.NoNode {
		// The host's own address among the pods never changes, whatever network the
		// machine moves to.
		gw := gateway(s.card)
		c.API, c.DNS, c.DNSPort = gw, gw, 53
	}
	return c
}

// nodeNetwork is this node's part of the pod network; gateway the host's address
// in it.
func nodeNetwork(card cluster.Card) netip.Prefix {
	p, _ := netip.ParsePrefix(card.PodNetwork)
	bits := max(p.Bits(), 32-bitsFor(card.MaxPods))
	return netip.PrefixFrom(p.Masked().Addr(), bits)
}

// bitsFor leaves four addresses for each pod, so that one freed is not used again
// at once, and a /24 at least.
func bitsFor(pods int) int {
	n := 8
	for 1<<n < 4*pods && n < 16 {
		n++
	}
	return n
}

func gateway(card cluster.Card) netip.Addr { return nodeNetwork(card).Addr().Next() }

func (s *server) startAPI(st *disk.Store, services netip.Prefix) error {
	issuer := "https://kubernetes.default.svc." + first.Domain
	s.tokens = &auth.ServiceAccountTokens{Issuer: issuer, Audiences: []string{issuer}, Key: s.ca.ServiceAccountKey, Now: s.clock.Now,
		Snapshot: s.view.Snapshot, NewID: func() string { return newUUID(s.rand) }}
	s.authn = auth.Union{&auth.X509{Roots: s.ca.Pool(), Now: s.clock.Now}, auth.Bearer{Tokens: s.tokens}}
	rbac := &auth.RBAC{View: s.view}
	s.authz = auth.Chain{auth.Node{Snapshot: s.view.Snapshot}, rbac}
	addresses := &admit.Addresses{Range: services, PortFirst: portFirst, PortEnd: portEnd, View: s.view, Rand: s.rand}
	quota := &admit.Quota{View: s.view}
	nodeClient := s.ca.Leaf(pki.LeafLife, func() pki.Names {
		return pki.Names{CommonName: "kube-apiserver-kubelet-client", Organizations: []string{auth.Masters}, Client: true}
	})
	var err error
	s.api, err = apiserver.New(apiserver.Config{
		Table: kind.All, Store: st, View: s.view, Clock: s.clock, Rand: s.rand,
		Authn: s.authn, Tokens: s.tokens, Authz: s.authz, Rules: rbac,
		Admit: admit.Chain{
			// Upstream's order.
			admit.NamespaceLifecycle(), admit.LimitRanger(), admit.ServiceAccount(s.view, s.rand), admit.NodeRestriction(),
			admit.TaintNodesByCondition(), admit.PodSecurity(), admit.Priority(), admit.DefaultTolerationSeconds(), admit.DefaultStorageClass(),
			admit.RuntimeClass(), admit.CertificateApproval(s.authz), admit.CertificateSigning(s.authz), admit.CertificateSubjectRestriction(),
			admit.DefaultIngressClass(), admit.Escalation(s.authz, rbac), addresses.Plugin(), quota.Plugin(),
		},
		Nodes: &nodeTransport{view: s.view, tls: &tls.Config{RootCAs: s.ca.Pool(), GetClientCertificate: nodeClient.GetClientCertificate, MinVersion: tls.VersionTLS12}},
		IssueToken: func(_ context.Context, r *admit.Request, tr *authenticationv1.TokenRequest) error {
			sa, _ := r.Old.(*corev1.ServiceAccount)
			return s.tokens.Issue(sa, tr)
		},
		OpenIDConfiguration: func() []byte { return must(s.tokens.Discovery()) },
		JWKS:                func() []byte { return must(s.tokens.JWKS()) },
		Version: utilversion.Info{Major: "1", Minor: "37", GitVersion: kubernetesVersion + "+proa", GitTreeState: "clean",
			GoVersion: goVersion, Compiler: "gc", Platform: platform},
		Log: s.log,
	})
	if err != nil {
		return err
	}
	s.admin = s.api.Local(auth.User{Name: "system:proa", Groups: []string{auth.Masters, auth.AllAuthenticated}})
	listener, err := net.Listen("tcp", ":"+strconv.Itoa(s.card.APIPort))
	if err != nil {
		return fmt.Errorf("listen for the API on port %d: %w; end what uses it, or choose another port with --api-port", s.card.APIPort, err)
	}
	serving := s.ca.Leaf(pki.LeafLife, func() pki.Names { return s.servingNames(services) })
	if _, err := serving.Certificate(); err != nil {
		return err
	}
	web := &http.Server{
		Handler: s.api.Handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 3 * time.Minute, MaxHeaderBytes: 1 << 20,
		TLSConfig: &tls.Config{GetCertificate: serving.GetCertificate, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}},
		ErrorLog:  slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		HTTP2:     &http.HTTP2Config{MaxConcurrentStreams: 1000},
	}
	s.group.run("API", func(ctx context.Context) error {
		done := make(chan struct{})
		go func() {
			defer close(done)
			<-ctx.Done()
			s.api.Drain()
			end, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			if web.Shutdown(end) != nil {
				web.Close()
			}
		}()
		err := web.ServeTLS(listener, "", "")
		if ctx.Err() == nil {
			return err
		}
		<-done
		return nil
	})
	if err := s.writeAdminKubeconfig(); err != nil {
		return err
	}
	s.group.run("administrator's certificate", s.renewAdmin)
	return nil
}

// servingNames are all names and addresses that clients use.
func (s *server) servingNames(services netip.Prefix) pki.Names {
	n := pki.Names{CommonName: "kube-apiserver", Server: true,
		DNS: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + first.Domain, s.card.Node},
		IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, first.ServiceAddress(services, 1).AsSlice(), gateway(s.card).AsSlice(), cluster.HostAddress().AsSlice()}}
	for _, x := range s.set.ExtraNames {
		if ip := net.ParseIP(x); ip != nil {
			n.IPs = append(n.IPs, ip)
		} else {
			n.DNS = append(n.DNS, x)
		}
	}
	return n
}

// startDeciders runs controllers and the scheduler.
func (s *server) startDeciders() error {
	recorder := record.New(s.admin, s.clock, s.rand, "proa", s.card.Node)
	s.group.run("events", recorder.Run)
	as := func(part string) client.Client {
		return s.api.Local(auth.User{Name: auth.ServiceAccountUser + "kube-system:" + part, Groups: []string{auth.Masters, auth.AllAuthenticated}})
	}
	clients := map[string]client.Client{}
	list := parts.All(kind.All, string(s.ca.PEM()))
	for _, p := range list {
		clients[p.Name] = as(p.Name)
	}
	rt := control.New(control.Config{Parts: list, View: s.view, Clock: s.clock, Log: s.log,
		Client: func(part string) client.Client { return clients[part] },
		Record: func(e act.Event) { recorder.Emit(e) }})
	s.group.run("controllers", rt.Run)
	s.group.run("certificate signer", func(ctx context.Context) error {
		return signer.Run(ctx, signer.Config{Client: as("certificate-controller"), CA: s.ca, Clock: s.clock, Log: s.log})
	})
	scheduler := loop.New(loop.Config{View: s.view, Client: as("scheduler"), Clock: s.clock, Log: s.log,
		Record: func(e act.Event) { recorder.Emit(e) }})
	s.group.run("scheduler", scheduler.Run)
	return nil
}

// lockPID makes this process the cluster's only server.
func lockPID(cl cluster.Cluster) (unlock func(), err error) {
	if err := os.MkdirAll(cl.RunDir, 0o700); err != nil {
		return nil, fmt.Errorf("create directory %q: %w", cl.RunDir, err)
	}
	path := cl.Run("proa.pid")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		other, _ := os.ReadFile(path)
		f.Close()
		return nil, fmt.Errorf("start cluster %q: process %s runs it already; `proa down` stops it", cl.Name, strings.TrimSpace(string(other)))
	}
	f.Truncate(0)
	fmt.Fprintf(f, "%d\n", os.Getpid())
	return func() { os.Remove(path); f.Close() }, nil
}

func must(data []byte, err error) []byte {
	if err != nil {
		panic("proa: " + err.Error())
	}
	return data
}

// waitNode returns when the Node object is Ready.
func waitNode(ctx context.Context, v *view.View, name string) error {
	for {
		_, moved := v.Moved()
		if n := view.Get[*corev1.Node](v.Snapshot(), kind.Node, "", name); n != nil {
			for _, c := range n.Status.Conditions {
				if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
					return nil
				}
			}
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for node %q to be ready: %w", name, context.Cause(ctx))
		}
	}
}
