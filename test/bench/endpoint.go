package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
	"proa.dev/proxy"
	"proa.dev/view"
)

const manyServices = 10_000

// endpointBench measures the time from an object in the view to connections going
// there, in a network namespace of its own with 10,000 services. Each change is
// tried with a real connection.
func endpointBench(ctx context.Context, l *lab) (out []Figure, err error) {
	a, b := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")
	if err := prepareNetwork(a, b); err != nil {
		return nil, err
	}
	pods, services := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	kernel, err := proxy.OpenKernel(proxy.KernelConfig{Table: "proa-bench", PodLinks: "none", PodCIDRs: pods, ServiceCIDRs: services})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, kernel.Delete(), kernel.Close()) }()
	for _, ip := range []netip.Addr{a, b} {
		s, err := net.Listen("tcp", netip.AddrPortFrom(ip, 8080).String())
		if err != nil {
			return nil, err
		}
		defer s.Close()
		go serveName(s, ip.String())
	}

	v := view.New(kind.NewTable(kind.Service, kind.EndpointSlice, kind.Node), 0)
	revision := int64(0)
	apply := func(k *kind.Kind, o kind.Object) {
		revision++
		v.Apply(view.Change{Kind: k, Revision: revision, New: o})
	}
	apply(kind.Node, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "here"}})
	for i := range manyServices {
		apply(kind.Service, benchService(i))
		apply(kind.EndpointSlice, benchSlice(i, a))
	}
	p, err := proxy.New(proxy.Config{NodeName: "here", View: v, Kernel: kernel, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	filled := startWatch(0)
	go func() { ended <- p.Run(ctx) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-ended)
	}()
	select {
	case <-p.Ready():
	case e := <-ended:
		ended <- nil
		return nil, e
	}
	fill := Figure{Name: fmt.Sprintf("first fill of %s services", number(manyServices)), Unit: "ms", How: "compiled and put into an empty table"}
	fill.Samples = []float64{ms(filled.stop(&fill))}

	change := Figure{Name: "new endpoint live in the kernel", Budget: 20, Goal: 5, How: fmt.Sprintf("with %s services; from the object in the view to the kernel's answer; every tenth tried with a connection", number(manyServices))}
	fresh := Figure{Name: "new service live in the kernel", How: "the same for a Service with one endpoint"}
	var changes, news []time.Duration
	const rounds = 300
	watched := startWatch(0)
	for i := range rounds {
		to := a
		if i%2 == 0 {
			to = b
		}
		const n = 77
		began := time.Now()
		apply(kind.EndpointSlice, benchSlice(n, to))
		if err := p.WaitRevision(ctx, revision); err != nil {
			return nil, err
		}
		changes = append(changes, time.Since(began))
		if i%10 == 0 {
			if err := answers(serviceIP(n), to.String()); err != nil {
				return nil, err
			}
		}
	}
	watched.stop(&change)
	for i := range 100 {
		n := manyServices + i
		began := time.Now()
		apply(kind.Service, benchService(n))
		apply(kind.EndpointSlice, benchSlice(n, b))
		if err := p.WaitRevision(ctx, revision); err != nil {
			return nil, err
		}
		news = append(news, time.Since(began))
		if i%10 == 0 {
			if err := answers(serviceIP(n), b.String()); err != nil {
				return nil, err
			}
		}
	}
	return append(append(quantiles(change, changes, 0), quantiles(fresh, news, 0)...), fill), nil
}

// prepareNetwork gives this namespace two pods' addresses and a way to services.
func prepareNetwork(pods ...netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, ip := range pods {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(32, 32)}}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			return fmt.Errorf("add address %s: %w", ip, err)
		}
	}
	_, services, _ := net.ParseCIDR("10.96.0.0/16")
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: services, Src: pods[0].AsSlice(), Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("add a route to services: %w", err)
	}
	return nil
}

func serveName(s net.Listener, name string) {
	for {
		c, err := s.Accept()
		if err != nil {
			return
		}
		io.WriteString(c, name)
		c.Close()
	}
}

func answers(service netip.Addr, want string) error {
	c, err := net.DialTimeout("tcp", netip.AddrPortFrom(service, 80).String(), time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if string(got) != want {
		return fmt.Errorf("connect to service %s: %q answered, want %q", service, got, want)
	}
	return nil
}

func serviceIP(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 96, byte(1 + i/250), byte(i % 250)})
}

func benchService(i int) *corev1.Service {
	ip := serviceIP(i).String()
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("s%d", i), UID: "u"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			SessionAffinity: corev1.ServiceAffinityNone,
			Ports:           []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intOrString(8080)}}}}
}

func benchSlice(i int, to netip.Addr) *discoveryv1.EndpointSlice {
	name := fmt.Sprintf("s%d", i)
	yes, port, tcp, portName := true, int32(8080), corev1.ProtocolTCP, "http"
	return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{to.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}},
		Ports: []discoveryv1.EndpointPort{{Name: &portName, Protocol: &tcp, Port: &port}}}
}
