package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"proa.dev/apiserver/auth"
	"proa.dev/cluster"
	"proa.dev/cluster/first"
	"proa.dev/cluster/pki"
	"proa.dev/env"
	"proa.dev/internal/group"
	"proa.dev/kind"
	core "proa.dev/server"
	"proa.dev/store/etcd"
	"proa.dev/view"
)

// server is one running cluster on this machine: the server proper and the node.
// Its parts start from top to bottom.
type server struct {
	cl    cluster.Cluster
	set   cluster.Settings
	card  cluster.Card
	log   *slog.Logger
	level *slog.LevelVar
	clock env.Clock
	rand  env.Rand
	tell  func(step)

	ca   *pki.Authority
	core *core.Server
	view *view.View // the core's
	node *machine   // nil without a node

	adminRenewal time.Time // when the administrator's certificate is due

	group *group.Group
}

// errStopped says that the end was asked for.
var errStopped = errors.New("stopped")

// serve runs a cluster until ctx ends (containers go on) or it is told to go
// down (they end).
func serve(ctx context.Context, cl cluster.Cluster, set cluster.Settings, tell func(step)) (err error) {
	level := new(slog.LevelVar)
	s := &server{cl: cl, set: set, tell: tell, clock: env.SystemClock(), rand: env.SystemRand(), level: level,
		log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))}
	slog.SetDefault(s.log)
	s.group = group.New(ctx)
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
		s.group.End(err)
		s.group.Wait()
		return err
	}
	if cause := s.group.Wait(); !errors.Is(cause, errStopped) && ctx.Err() == nil {
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
	s.took(name, time.Since(began))
	return nil
}

func (s *server) took(name string, d time.Duration) {
	s.tell(step{Name: name, Took: d})
	s.log.Info("started", "step", name, "took", d.String())
}

func (s *server) start() (err error) {
	if s.card, err = s.cl.Prepare(s.set); err != nil {
		return err
	}
	services, err := netip.ParsePrefix(s.card.ServiceNetwork)
	if err != nil {
		return err
	}
	if err := s.timed("keys", func() error {
		s.ca, err = pki.Open(s.cl.Path("pki"), s.clock.Now)
		return err
	}); err != nil {
		return err
	}
	if err := s.startCore(services); err != nil {
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
	if err := s.cl.Remember(s.set.API); err != nil {
		return err
	}
	s.group.Go("memory", newTrimmer(s.clock, s.log).Run)
	s.tell(step{Done: true})
	return nil
}

// startCore runs API server, store and deciders, and returns when they serve.
func (s *server) startCore(services netip.Prefix) error {
	listener, err := net.Listen("tcp", ":"+strconv.Itoa(s.card.APIPort))
	if err != nil {
		return fmt.Errorf("listen for the API on port %d: %w; end what uses it, or choose another port with --api-port", s.card.APIPort, err)
	}
	serving := s.ca.Leaf(pki.LeafLife, func() pki.Names { return s.servingNames(services) })
	if _, err := serving.Certificate(); err != nil {
		listener.Close()
		return err
	}
	nodeClient := s.ca.Leaf(pki.LeafLife, func() pki.Names {
		return pki.Names{CommonName: "kube-apiserver-kubelet-client", Organizations: []string{auth.Masters}, Client: true}
	})
	nodes := &nodeTransport{tls: &tls.Config{RootCAs: s.ca.Pool(), GetClientCertificate: nodeClient.GetClientCertificate, MinVersion: tls.VersionTLS12}}
	opener, err := s.opener()
	if err != nil {
		listener.Close()
		return err
	}
	cfg := core.Config{
		Clock: s.clock, Rand: s.rand, Log: s.log, Level: s.level, Store: opener, Authority: s.ca, Services: services,
		First: s.firstObjects(), Nodes: nodes, Host: s.card.Node, Step: s.took,
		Listeners: []core.Listener{{Listener: listener, TLS: core.ServingTLS(serving.GetCertificate)}},
	}
	tellAPI(s.set.API, &cfg)
	s.core, err = core.New(s.group.Context(), cfg)
	if err != nil {
		listener.Close()
		return err
	}
	s.view, nodes.view = s.core.View, s.core.View
	s.group.Go("server", s.core.Run)
	select {
	case <-s.core.Ready():
	case <-s.group.Context().Done():
		return context.Cause(s.group.Context())
	}
	if err := s.writeAdminKubeconfig(); err != nil {
		return err
	}
	s.group.Go("administrator's certificate", s.renewAdmin)
	return nil
}

// opener is where the state is.
func (s *server) opener() (core.Opener, error) {
	e := s.card.Etcd
	if e == nil {
		return core.Disk(s.cl.Path("store")), nil
	}
	c := etcd.Config{Endpoints: e.Servers, Prefix: e.Prefix}
	if e.CAFile != "" || e.CertFile != "" || e.KeyFile != "" {
		var err error
		if c.TLS, err = etcd.ClientTLS(e.CAFile, e.CertFile, e.KeyFile); err != nil {
			return nil, err
		}
	}
	return core.Etcd(c), nil
}

func (s *server) firstObjects() first.Config {
	c := first.Config{
		API: cluster.HostAddress(), APIPort: int32(s.card.APIPort),
		PublicURL: fmt.Sprintf("https://%s:%d", cluster.HostAddress(), s.card.APIPort),
	}
	if !s.card.NoNode {
		// The host's own address among the pods never changes, whatever network the
		// machine moves to.
		gw := gateway(s.card)
		c.API, c.DNS, c.DNSPort = gw, gw, 53
		if s.card.Etcd != nil {
			c.API = cluster.HostAddress() // other machines have to reach it
		}
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
