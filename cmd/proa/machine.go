package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/apiserver/auth"
	"proa.dev/cluster"
	"proa.dev/cluster/first"
	"proa.dev/cluster/pki"
	"proa.dev/dns"
	"proa.dev/engine"
	"proa.dev/engine/image"
	criserve "proa.dev/engine/serve"
	"proa.dev/kind"
	"proa.dev/network"
	"proa.dev/node"
	"proa.dev/node/stream"
	"proa.dev/proxy"
	core "proa.dev/server"
	"proa.dev/view"
)

// machine is the node's part of this process: images, engine, network, proxy,
// DNS and the agent.
type machine struct {
	images  *image.Store
	engine  *engine.Engine
	network *network.Network
	proxy   *proxy.Proxy
	kernel  *proxy.Kernel
	agent   *node.Agent

	stopAgent context.CancelFunc
	agentDone chan struct{}
}

func imageConfig(cl cluster.Cluster, set cluster.Settings) image.Config {
	c := image.Default()
	c.Dir = cl.Path("images")
	c.Mirrors = map[string][]image.Mirror{}
	for host, list := range set.Mirrors {
		for _, m := range list {
			c.Mirrors[host] = append(c.Mirrors[host], image.Mirror{Endpoint: m.Endpoint, Insecure: m.Insecure})
		}
	}
	return c
}

func networkConfig(cl cluster.Cluster, card cluster.Card) (network.Config, error) {
	pods, err := netip.ParsePrefix(card.PodNetwork)
	if err != nil {
		return network.Config{}, err
	}
	services, err := netip.ParsePrefix(card.ServiceNetwork)
	if err != nil {
		return network.Config{}, err
	}
	return network.Config{ClusterName: cl.Name, PodCIDRs: []netip.Prefix{nodeNetwork(card)}, ClusterCIDRs: []netip.Prefix{pods},
		ServiceCIDRs: []netip.Prefix{services}, StateDir: cl.Path("network"), SharedDir: filepath.Join(filepath.Dir(cl.RunDir), ".host")}, nil
}

func engineConfig(cl cluster.Cluster) (engine.Config, error) {
	monitor, err := unpack("proa-monitor", cl.Path("bin"))
	if err != nil {
		return engine.Config{}, err
	}
	runner, err := unpack("proa-runner", cl.Path("bin"))
	if err != nil {
		return engine.Config{}, err
	}
	return engine.Config{DataDir: cl.Path("engine"), RunDir: cl.Run("engine"), ImageDir: cl.Path("images"), MonitorPath: monitor, RunnerPath: runner,
		CgroupParent: "proa-" + cl.Name, SeccompDir: cl.Path("seccomp"), Version: version}, nil
}

func (s *server) startNode(services netip.Prefix) error {
	m := &machine{}
	s.node = m
	var err error
	if err := s.timed("engine", func() error {
		if m.images, err = image.Open(imageConfig(s.cl, s.set)); err != nil {
			return err
		}
		nc, err := networkConfig(s.cl, s.card)
		if err != nil {
			return err
		}
		nc.Log = s.log
		if m.network, err = network.New(nc); err != nil {
			return err
		}
		ec, err := engineConfig(s.cl)
		if err != nil {
			return err
		}
		ec.Images, ec.Network, ec.Clock, ec.Rand, ec.Log = m.images, m.network, s.clock, s.rand, s.log
		if m.engine, err = engine.New(ec); err != nil {
			return err
		}
		if err := m.network.Up(s.group.Context()); err != nil {
			return err
		}
		s.group.Go("network", m.network.Run)
		s.group.Go("engine", m.engine.Run)
		s.group.Go("CRI socket", func(ctx context.Context) error { return criserve.Serve(ctx, m.engine, s.cl.Run("cri.sock")) })
		select {
		case <-m.engine.Ready():
		case <-s.group.Context().Done():
			return context.Cause(s.group.Context())
		}
		return m.reconcile(s.group.Context())
	}); err != nil {
		return err
	}
	if err := s.timed("services", func() error { return s.startServices(m) }); err != nil {
		return err
	}
	return s.timed("node", func() error { return s.startAgent(m, services) })
}

// reconcile frees the addresses and ports of sandboxes that ended while nobody
// looked.
func (m *machine) reconcile(ctx context.Context) error {
	list, err := m.engine.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var live []string
	for _, sb := range list.Items {
		live = append(live, sb.Id)
	}
	return m.network.Reconcile(ctx, live)
}

// startServices runs the service proxy and DNS.
func (s *server) startServices(m *machine) error {
	nc, err := networkConfig(s.cl, s.card)
	if err != nil {
		return err
	}
	m.kernel, err = proxy.OpenKernel(proxy.KernelConfig{Table: network.ServiceTable(s.cl.Name), PodLinks: m.network.LinkPrefix(), PodCIDRs: nc.ClusterCIDRs, ServiceCIDRs: nc.ServiceCIDRs})
	if err != nil {
		return err
	}
	if m.proxy, err = proxy.New(proxy.Config{NodeName: s.card.Node, View: s.view, Kernel: m.kernel, Clock: s.clock, Log: s.log}); err != nil {
		return err
	}
	s.group.Go("proxy", m.proxy.Run)
	server, err := dns.New(dns.Config{View: s.view, Domain: first.Domain, Listen: []netip.AddrPort{netip.AddrPortFrom(gateway(s.card), 53)},
		Reverse: append(append([]netip.Prefix(nil), nc.ClusterCIDRs...), nc.ServiceCIDRs...), Allow: append(append([]netip.Prefix(nil), nc.ClusterCIDRs...), hostPrefixes()...), Clock: s.clock, Log: s.log})
	if err != nil {
		return err
	}
	s.group.Go("DNS", server.Run)
	select {
	case <-m.proxy.Ready():
		return nil
	case <-s.group.Context().Done():
		return context.Cause(s.group.Context())
	}
}

func (s *server) startAgent(m *machine, services netip.Prefix) error {
	name := s.card.Node
	host := cluster.HostAddress()
	me := s.core.Client("kubelet", auth.User{Name: auth.NodePrefix + name, Groups: []string{auth.NodesGroup, auth.AllAuthenticated}})
	var err error
	m.agent, err = node.New(node.Config{
		Name: name, Client: me, View: s.view, Shared: true, Engine: m.engine, Streams: streams{m.engine},
		Drain: m.drain,
		Clock: s.clock, Rand: s.rand, Log: s.log,
		DataDir: s.cl.DataDir, LogDir: s.cl.Path("logs", "pods"),
		ClusterDNS: []string{first.ServiceAddress(services, 10).String()}, ClusterDomain: first.Domain,
		HostIPs: []string{host.String()}, MaxPods: int32(s.card.MaxPods), Version: core.KubernetesVersion, Port: int32(s.card.KubeletPort),
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", ":"+strconv.Itoa(s.card.KubeletPort))
	if err != nil {
		return fmt.Errorf("listen for the node on port %d: %w; end what uses it, or choose another port with --kubelet-port", s.card.KubeletPort, err)
	}
	serving := s.ca.Leaf(pki.LeafLife, func() pki.Names {
		return pki.Names{CommonName: auth.NodePrefix + name, Organizations: []string{auth.NodesGroup}, Server: true,
			DNS: []string{name, "localhost"}, IPs: []net.IP{cluster.HostAddress().AsSlice(), net.IPv4(127, 0, 0, 1), gateway(s.card).AsSlice()}}
	})
	handler := m.agent.Handler(
		func(r *http.Request) (stream.User, bool) {
			u, ok, err := s.core.Authn.Authenticate(r)
			return stream.User{Name: u.Name, UID: u.UID, Groups: u.Groups}, ok && err == nil
		},
		func(ctx context.Context, u stream.User, verb, sub string) bool {
			d, _, err := s.core.Authz.Authorize(ctx, auth.Attributes{User: auth.User{Name: u.Name, UID: u.UID, Groups: u.Groups}, Verb: verb, Version: "v1", Resource: "nodes", Subresource: sub, Name: name})
			return d == auth.Allow && err == nil
		})
	web := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, TLSConfig: &tls.Config{GetCertificate: serving.GetCertificate, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}}
	s.group.Go("node port", func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { web.Close() })
		defer stop()
		if err := web.ServeTLS(listener, "", ""); ctx.Err() == nil {
			return err
		}
		return nil
	})
	ctx, stop := context.WithCancel(s.group.Context())
	m.stopAgent, m.agentDone = stop, make(chan struct{})
	s.group.Go("node", func(context.Context) error {
		defer close(m.agentDone)
		return m.agent.Run(ctx)
	})
	return waitNode(s.group.Context(), s.view, name)
}

// drain returns when no connection comes to the pod any more through services, and
// those that came have been taken up by its program.
func (m *machine) drain(ctx context.Context, p *corev1.Pod) error {
	if err := m.proxy.WaitDrained(ctx, p); err != nil {
		return err
	}
	for _, ip := range p.Status.PodIPs {
		addr, err := netip.ParseAddr(ip.IP)
		if err != nil {
			continue
		}
		if err := m.network.WaitTaken(ctx, addr); err != nil {
			return err
		}
	}
	return nil
}

// streams fits the engine's interactive calls to the agent's.
type streams struct{ e *engine.Engine }

func (st streams) Exec(ctx context.Context, id string, cmd []string, tty bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan stream.Size) (int, error) {
	return st.e.ExecStream(ctx, id, cmd, tty, stdin, stdout, stderr, sizes(ctx, resize))
}

func (st streams) Attach(ctx context.Context, id string, _ bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan stream.Size) error {
	return st.e.AttachStream(ctx, id, stdin, stdout, stderr, sizes(ctx, resize))
}

func (st streams) PortForward(ctx context.Context, sandbox string, port int32, rw io.ReadWriteCloser) error {
	return st.e.PortForwardStream(ctx, sandbox, port, rw)
}

func sizes(ctx context.Context, in <-chan stream.Size) <-chan engine.Size {
	if in == nil {
		return nil
	}
	out := make(chan engine.Size)
	go func() {
		defer close(out)
		for {
			select {
			case sz, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- engine.Size{Width: sz.Width, Height: sz.Height}:
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

// stopContainers ends every sandbox, side by side, with each pod's own grace, and
// takes the network away.
func (s *server) stopContainers(ctx context.Context) error {
	m := s.node
	if m == nil || m.engine == nil {
		return nil
	}
	// First the agent, or it would start again what ends here.
	if m.stopAgent != nil {
		m.stopAgent()
		<-m.agentDone
	}
	list, err := m.engine.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	// A container that ignores SIGTERM holds the end of the cluster up for ten
	// seconds at most, whatever its pod asks for.
	const longest = 10
	grace := map[string]int64{}
	for p := range view.List[*corev1.Pod](s.view.Snapshot(), kind.Pod, "") {
		if g := p.Spec.TerminationGracePeriodSeconds; g != nil {
			grace[string(p.UID)] = min(*g, longest)
		}
	}
	errs := make([]error, len(list.Items))
	var wg sync.WaitGroup
	limit := make(chan struct{}, 16)
	for i, sb := range list.Items {
		wg.Add(1)
		go func() {
			defer wg.Done()
			limit <- struct{}{}
			defer func() { <-limit }()
			errs[i] = m.stopSandbox(ctx, sb, grace[sb.Metadata.GetUid()])
		}()
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if m.kernel != nil {
		if err := m.kernel.Delete(); err != nil {
			return fmt.Errorf("remove the service rules: %w", err)
		}
	}
	if err := m.engine.Purge(ctx); err != nil {
		return err
	}
	if err := unmountBelow(s.cl.DataDir); err != nil {
		return err
	}
	return m.network.Clean(ctx)
}

func (m *machine) stopSandbox(ctx context.Context, sb *runtimeapi.PodSandbox, grace int64) error {
	cs, err := m.engine.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: sb.Id}})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, c := range cs.Containers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			m.engine.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.Id, Timeout: grace})
		}()
	}
	wg.Wait()
	if _, err := m.engine.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sb.Id}); err != nil {
		return err
	}
	_, err = m.engine.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb.Id})
	return err
}
