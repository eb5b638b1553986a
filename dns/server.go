// Package dns is the node's name server: it answers for the cluster's domain from
// the view (package zone) and asks the host's resolvers about everything else.
//
// The index is brought up to date when a question comes, with the changes since
// the last one: no goroutine follows the view, and a question costs nothing that
// grows with the cluster. The host's resolver file is looked at when a foreign
// question comes, at most once a second. So an idle server does nothing.
//
// Only sources that are allowed are answered, others are refused: it is no open
// resolver. It never asks the host's resolvers about the cluster's domain or the
// cluster's ranges, and never asks itself, also not by way of others: its
// questions carry a mark by which it knows them again.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"proa.dev/dns/zone"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/view"
)

// Config of a server.
type Config struct {
	// Listen are the addresses to serve on, UDP and TCP each. Port 0 takes any.
	// Required.
	Listen []netip.AddrPort
	// Domain of the cluster. Default: "cluster.local".
	Domain string
	// View that answers come from. Required.
	View *view.View
	// Reverse ranges (services, pods) are answered here only.
	Reverse []netip.Prefix
	// Allow are the sources that are answered, besides loopback and the addresses
	// listened on: the pod ranges, and the host's other addresses.
	Allow []netip.Prefix
	// ResolvConf is the host's resolver file. Default: /etc/resolv.conf.
	ResolvConf string
	// Files reads it. Default: the machine's.
	Files Files
	// Network opens sockets and asks upstream. Default: the machine's.
	Network Network
	// Clock and Rand default to the machine's.
	Clock env.Clock
	Rand  env.Rand
	// Log default: slog.Default().
	Log *slog.Logger
}

// Network is what the server needs of sockets.
type Network interface {
	ListenPacket(addr netip.AddrPort) (net.PacketConn, error)
	Listen(addr netip.AddrPort) (net.Listener, error)
	// Dial opens a socket of network "udp" or "tcp".
	Dial(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error)
}

// SystemNetwork is the machine's.
func SystemNetwork() Network { return systemNetwork{} }

type systemNetwork struct{}

func (systemNetwork) ListenPacket(a netip.AddrPort) (net.PacketConn, error) {
	return net.ListenPacket("udp", a.String())
}

func (systemNetwork) Listen(a netip.AddrPort) (net.Listener, error) {
	return net.Listen("tcp", a.String())
}

func (systemNetwork) Dial(ctx context.Context, network string, a netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, a.String())
}

// Check returns every problem of a configuration.
func (c Config) Check() error {
	var errs []error
	if len(c.Listen) == 0 {
		errs = append(errs, errors.New("listen: must have an address"))
	}
	for _, a := range c.Listen {
		if !a.IsValid() || a.Addr().IsUnspecified() {
			errs = append(errs, fmt.Errorf("listen: %s: must be one address of the host, so that answers come from where the question went", a))
		}
	}
	if c.View == nil {
		errs = append(errs, errors.New("view: must be set"))
	}
	if _, ok := dns.IsDomainName(c.Domain); c.Domain != "" && !ok {
		errs = append(errs, fmt.Errorf("domain: %q is no domain name", c.Domain))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("DNS configuration: %w", err)
	}
	return nil
}

// Server is one node's name server.
type Server struct {
	cfg      Config
	upstream *upstream

	mu    sync.RWMutex // guards the index
	index *zone.Index
	seen  map[*kind.Kind]int64
	rev   int64

	listening chan struct{}
	addrs     []netip.AddrPort
}

// New makes a server; Run sets it going.
func New(cfg Config) (*Server, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if cfg.Domain == "" {
		cfg.Domain = "cluster.local"
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	if cfg.Files == nil {
		cfg.Files = SystemFiles()
	}
	if cfg.Network == nil {
		cfg.Network = SystemNetwork()
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
	return &Server{cfg: cfg, upstream: newUpstream(cfg), rev: -1, listening: make(chan struct{})}, nil
}

// Listening is closed once all addresses are open; Addrs is then known.
func (s *Server) Listening() <-chan struct{} { return s.listening }

// Addrs that the server listens on, in the order of the configuration.
func (s *Server) Addrs() []netip.AddrPort { return s.addrs }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	var servers []*dns.Server
	defer func() {
		for _, srv := range servers {
			if srv.PacketConn != nil {
				srv.PacketConn.Close()
			}
			if srv.Listener != nil {
				srv.Listener.Close()
			}
		}
	}()
	for _, a := range s.cfg.Listen {
		p, l, err := s.open(a)
		if err != nil {
			return err
		}
		servers = append(servers, &dns.Server{PacketConn: p, UDPSize: dns.DefaultMsgSize},
			&dns.Server{Listener: l, ReadTimeout: 5 * time.Second})
		bound := p.LocalAddr().(*net.UDPAddr).AddrPort()
		s.addrs = append(s.addrs, netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port()))
	}
	s.upstream.self = s.addrs
	close(s.listening)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	failed := make(chan error, len(servers))
	for _, srv := range servers {
		srv.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) { s.serve(ctx, w, m) })
		wg.Go(func() {
			if err := srv.ActivateAndServe(); err != nil && ctx.Err() == nil {
				failed <- fmt.Errorf("serve DNS: %w", err)
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	for _, srv := range servers {
		// An error means that it has not started or has stopped; closing the socket,
		// which it does not do then, ends it too.
		if srv.Shutdown() != nil {
			if srv.PacketConn != nil {
				srv.PacketConn.Close()
			}
			if srv.Listener != nil {
				srv.Listener.Close()
			}
		}
	}
	wg.Wait()
	return err
}

// open listens on both protocols of an address. With port 0 it may take more than
// one try until a port is free for both.
func (s *Server) open(a netip.AddrPort) (net.PacketConn, net.Listener, error) {
	for try := 0; ; try++ {
		p, err := s.cfg.Network.ListenPacket(a)
		if err != nil {
			return nil, nil, fmt.Errorf("listen for DNS on %s/udp: %w; free the port or choose another address", a, err)
		}
		bound := p.LocalAddr().(*net.UDPAddr).AddrPort()
		l, err := s.cfg.Network.Listen(bound)
		if err == nil {
			return p, l, nil
		}
		p.Close()
		if a.Port() != 0 || try == 10 {
			return nil, nil, fmt.Errorf("listen for DNS on %s/tcp: %w; free the port or choose another address", bound, err)
		}
	}
}

// foreignLimit bounds how long one foreign question may take. Seconds are what
// clients wait themselves.
const foreignLimit = 5 * time.Second

func (s *Server) serve(ctx context.Context, w dns.ResponseWriter, m *dns.Msg) {
	var from netip.AddrPort
	udp := false
	switch a := w.RemoteAddr().(type) {
	case *net.UDPAddr:
		from, udp = a.AddrPort(), true
	case *net.TCPAddr:
		from = a.AddrPort()
	}
	reply := s.reply(ctx, from.Addr().Unmap(), m)
	if reply == nil {
		return
	}
	size := dns.MaxMsgSize
	if udp {
		size = dns.MinMsgSize
	}
	if opt := m.IsEdns0(); opt != nil {
		if udp {
			size = min(max(dns.MinMsgSize, int(opt.UDPSize())), maxUDP)
		}
		if reply.IsEdns0() == nil {
			reply.SetEdns0(maxUDP, opt.Do())
		}
	}
	reply.Truncate(size)
	reply.Compress = true
	if err := w.WriteMsg(reply); err != nil {
		s.cfg.Log.Debug("DNS answer not sent", "to", from, "err", err)
	}
}

// maxUDP is the largest answer over UDP: it fits any path without fragments.
const maxUDP = 1232

// Reply answers a message from a source, as the sockets do, except for the size.
// nil: it deserves no answer.
func (s *Server) reply(ctx context.Context, from netip.Addr, m *dns.Msg) *dns.Msg {
	if m.Response {
		return nil
	}
	r := new(dns.Msg)
	switch {
	case !s.allowed(from):
		return r.SetRcode(m, dns.RcodeRefused)
	case m.Opcode != dns.OpcodeQuery:
		return r.SetRcode(m, dns.RcodeNotImplemented)
	case len(m.Question) != 1:
		return r.SetRcode(m, dns.RcodeFormatError)
	}
	if opt := m.IsEdns0(); opt != nil && opt.Version() != 0 {
		r.SetRcode(m, dns.RcodeBadVers)
		r.SetEdns0(maxUDP, opt.Do())
		return r
	}
	q := m.Question[0]
	if q.Qclass != dns.ClassINET && q.Qclass != dns.ClassANY {
		return r.SetRcode(m, dns.RcodeRefused)
	}
	a := s.answer(zone.Question{Name: q.Name, Type: q.Qtype})
	if a.Foreign {
		ctx, cancel := context.WithTimeout(ctx, foreignLimit)
		defer cancel()
		return s.upstream.resolve(ctx, m)
	}
	r.SetRcode(m, a.Rcode)
	r.Authoritative, r.RecursionAvailable = true, true
	r.Answer, r.Ns, r.Extra = s.shuffle(a.Answer), a.Authority, a.Additional
	if a.Chase != "" {
		ctx, cancel := context.WithTimeout(ctx, foreignLimit)
		defer cancel()
		ask := m.Copy()
		ask.Question[0].Name = a.Chase
		if up := s.upstream.resolve(ctx, ask); up != nil {
			r.Answer = append(r.Answer, up.Answer...)
			r.Authoritative = false
			if up.Rcode != dns.RcodeSuccess {
				r.Rcode = up.Rcode
			}
		}
	}
	return r
}

func (s *Server) allowed(from netip.Addr) bool {
	contains := func(p netip.Prefix) bool { return p.Contains(from) }
	return from.IsLoopback() || slices.ContainsFunc(s.cfg.Allow, contains) ||
		slices.ContainsFunc(s.addrs, func(a netip.AddrPort) bool { return a.Addr() == from })
}

// shuffle changes the order of addresses, so that clients that take the first one
// spread.
func (s *Server) shuffle(rrs []dns.RR) []dns.RR {
	start := 0
	for start < len(rrs) && rrs[start].Header().Rrtype == dns.TypeCNAME {
		start++
	}
	for i := len(rrs) - 1; i > start; i-- {
		j := start + int(s.cfg.Rand.Uint64()%uint64(i-start+1))
		rrs[i], rrs[j] = rrs[j], rrs[i]
	}
	return rrs
}

// followed kinds.
var followed = []*kind.Kind{kind.Namespace, kind.Service, kind.EndpointSlice}

// answer asks the index, after bringing it up to the view's revision.
func (s *Server) answer(q zone.Question) zone.Answer {
	now, _ := s.cfg.View.Moved()
	s.mu.RLock()
	if s.rev >= now && s.index != nil {
		defer s.mu.RUnlock()
		return s.index.Answer(q)
	}
	s.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rev < now || s.index == nil {
		s.catchUp()
	}
	return s.index.Answer(q)
}

// catchUp applies the changes since the last time. The caller holds the lock.
func (s *Server) catchUp() {
	if s.index != nil {
		type step struct {
			changes []*view.Change
			to      int64
		}
		var steps []step
		for _, k := range followed {
			changes, progress, _, err := s.cfg.View.Changes(k, s.seen[k])
			if err != nil {
				steps = nil // too far behind: begin anew
				break
			}
			steps = append(steps, step{changes, progress})
		}
		if steps != nil {
			s.rev = steps[0].to
			for i, st := range steps {
				for _, c := range st.changes {
					s.change(c.Old, c.New)
				}
				s.seen[followed[i]] = st.to
				s.rev = min(s.rev, st.to)
			}
			s.index.SetSerial(uint32(s.rev))
			return
		}
	}
	var servers []netip.Addr
	for _, a := range s.addrs {
		servers = append(servers, a.Addr())
	}
	s.index = zone.NewIndex(zone.Config{Domain: s.cfg.Domain, Reverse: s.cfg.Reverse, Servers: servers})
	snap := s.cfg.View.Snapshot()
	s.seen = map[*kind.Kind]int64{}
	for _, k := range followed {
		for o := range snap.All(k, "") {
			s.change(nil, o)
		}
		s.seen[k] = snap.Revision()
	}
	s.rev = snap.Revision()
	s.index.SetSerial(uint32(s.rev))
}

func (s *Server) change(old, new kind.Object) {
	some := new
	if some == nil {
		some = old
	}
	switch some.(type) {
	case *corev1.Namespace:
		s.index.SetNamespace(some.GetName(), new != nil)
	case *corev1.Service:
		o, _ := old.(*corev1.Service)
		n, _ := new.(*corev1.Service)
		s.index.SetService(o, n)
	case *discoveryv1.EndpointSlice:
		o, _ := old.(*discoveryv1.EndpointSlice)
		n, _ := new.(*discoveryv1.EndpointSlice)
		s.index.SetSlice(o, n)
	}
}
