package rule

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite golden files")

// scenario is a file in testdata: YAML documents of services and slices, then
// lines "trace FROM TO" and "delete service NS/NAME", each followed by what comes
// of it, which -update rewrites.
type scenario struct {
	t       *testing.T
	state   *State
	input   map[types.NamespacedName]Service
	host    Host
	printed bool
}

func (s *scenario) apply(doc string) {
	s.t.Helper()
	var meta metav1.TypeMeta
	if err := yaml.Unmarshal([]byte(doc), &meta); err != nil {
		s.t.Fatal(err)
	}
	switch meta.Kind {
	case "Service":
		svc := &corev1.Service{}
		if err := yaml.UnmarshalStrict([]byte(doc), svc); err != nil {
			s.t.Fatal(err)
		}
		name := types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}
		in := s.input[name]
		in.Service = svc
		s.set(name, in)
	case "EndpointSlice":
		e := &discoveryv1.EndpointSlice{}
		if err := yaml.UnmarshalStrict([]byte(doc), e); err != nil {
			s.t.Fatal(err)
		}
		name := types.NamespacedName{Namespace: e.Namespace, Name: e.Labels[discoveryv1.LabelServiceName]}
		in := s.input[name]
		var others []*discoveryv1.EndpointSlice
		for _, o := range in.Slices {
			if o.Name != e.Name {
				others = append(others, o)
			}
		}
		in.Slices = append(others, e)
		s.set(name, in)
	default:
		s.t.Fatalf("no kind %q in a scenario", meta.Kind)
	}
}

func (s *scenario) set(name types.NamespacedName, in Service) Delta {
	s.t.Helper()
	s.input[name] = in
	before := s.state.Rules()
	d := s.state.Set(name, in)
	if err := before.Apply(d); err != nil {
		s.t.Fatal(err)
	}
	if diff := cmp.Diff(before, s.state.Rules(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		s.t.Fatalf("delta leads elsewhere:\n%s", diff)
	}
	if err := before.Check(); err != nil {
		s.t.Fatal(err)
	}
	return d
}

func TestScenarios(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.txt")
	if len(files) == 0 {
		t.Fatal("no scenarios")
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runScenario(t, string(raw))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if diff := cmp.Diff(string(raw), got); diff != "" {
				t.Errorf("outcome differs (-update rewrites it):\n%s", diff)
			}
		})
	}
}

// runScenario returns the text with what came of each command. Blocks are parted
// by lines "---"; output lines start with "| ".
func runScenario(t *testing.T, text string) string {
	s := &scenario{t: t, state: NewState(Node{Name: "here", Zone: "a"}), input: map[types.NamespacedName]Service{}, host: Host{
		Addrs:        []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Pods:         []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/48")},
		Here:         []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00::/64")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
	}}
	var out strings.Builder
	for i, block := range strings.Split(text, "---\n") {
		if i > 0 {
			out.WriteString("---\n")
		}
		var lines []string
		for _, l := range strings.SplitAfter(block, "\n") {
			if !strings.HasPrefix(l, "| ") {
				lines = append(lines, l)
			}
		}
		body := strings.Join(lines, "")
		if strings.Contains(body, "kind: ") {
			out.WriteString(body)
			s.apply(body)
			continue
		}
		for _, l := range lines {
			out.WriteString(l)
			f := strings.Fields(l)
			if len(f) == 0 || strings.HasPrefix(f[0], "#") {
				continue
			}
			result := ""
			switch f[0] {
			case "rules":
				result = s.state.Rules().Text(s.state.Names())
			case "trace":
				result = s.state.Rules().Trace(Packet{From: netip.MustParseAddr(f[1]), To: parseDest(t, f[2])}, s.host).String() + "\n"
			case "delete":
				ns, n, _ := strings.Cut(f[1], "/")
				name := types.NamespacedName{Namespace: ns, Name: n}
				in := s.input[name]
				in.Service = nil
				result = s.set(name, in).Text(s.state.Names())
			default:
				t.Fatalf("no command %q", l)
			}
			for _, r := range strings.Split(strings.TrimSuffix(result, "\n"), "\n") {
				out.WriteString("| " + r + "\n")
			}
		}
	}
	return out.String()
}

func parseDest(t *testing.T, s string) Dest {
	t.Helper()
	addr, proto, ok := strings.Cut(s, "/")
	ap, err := netip.ParseAddrPort(addr)
	if err != nil || !ok {
		t.Fatalf("no destination: %q", s)
	}
	return Dest{ap.Addr(), ap.Port(), map[string]uint8{"tcp": TCP, "udp": UDP, "sctp": SCTP}[proto]}
}

func ptr[T any](v T) *T { return &v }

// randomService makes services that share few addresses, so that they collide.
func randomService(r *rand.Rand, name types.NamespacedName) Service {
	if r.IntN(8) == 0 {
		return Service{}
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, CreationTimestamp: metav1.Time{Time: time.Unix(int64(r.IntN(3)), 0)}}}
	svc.Spec.Type = []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer}[r.IntN(3)]
	svc.Spec.ClusterIP = fmt.Sprintf("10.96.0.%d", r.IntN(4))
	svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	if r.IntN(3) == 0 {
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, fmt.Sprintf("fd00:96::%d", r.IntN(4)))
	}
	for i := range 1 + r.IntN(2) {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(80 + r.IntN(3)), NodePort: int32(30000 + r.IntN(3)),
			Protocol: []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP}[r.IntN(2)]})
	}
	if r.IntN(3) == 0 {
		svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	}
	if r.IntN(2) == 0 {
		svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	if r.IntN(3) == 0 {
		svc.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
	}
	if r.IntN(3) == 0 {
		svc.Spec.ExternalIPs = []string{fmt.Sprintf("198.51.100.%d", r.IntN(2))}
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
		if r.IntN(2) == 0 {
			svc.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24", "10.0.0.0/8"}
		}
	}
	in := Service{Service: svc}
	for n := range r.IntN(3) {
		e := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(n)}, AddressType: discoveryv1.AddressTypeIPv4}
		prefix := "10.1.0."
		if r.IntN(3) == 0 {
			e.AddressType, prefix = discoveryv1.AddressTypeIPv6, "fd00::"
		}
		for i, p := range svc.Spec.Ports {
			e.Ports = append(e.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: ptr(int32(8080 + i)), Protocol: &p.Protocol})
		}
		for range r.IntN(6) {
			e.Endpoints = append(e.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{prefix + fmt.Sprint(2+r.IntN(9))},
				NodeName:  ptr([]string{"here", "there"}[r.IntN(2)]),
				Conditions: discoveryv1.EndpointConditions{
					Ready: ptr(r.IntN(4) > 0), Serving: ptr(r.IntN(4) > 0), Terminating: ptr(r.IntN(3) == 0)},
			})
		}
		in.Slices = append(in.Slices, e)
	}
	return in
}

// Whatever happens in whatever order: each delta leads from the old rules to the
// new ones, these are consistent, and packets fare as in a state made from
// scratch.
func TestDeltasAddUp(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		node := Node{Name: "here"}
		state := NewState(node)
		live := RuleSet{}
		inputs := map[types.NamespacedName]Service{}
		pending := Delta{}
		for step := range 40 {
			name := types.NamespacedName{Namespace: "ns", Name: fmt.Sprint("s", r.IntN(5))}
			in := randomService(r, name)
			inputs[name] = in
			pending.Then(state.Set(name, in))
			if r.IntN(3) == 0 { // several changes in one transaction
				continue
			}
			if err := live.Apply(pending); err != nil {
				t.Fatalf("seed %d step %d: %v", seed, step, err)
			}
			pending = Delta{}
			if back := Diff(live, state.Rules()); len(back) > 0 {
				t.Fatalf("seed %d step %d: deltas did not lead to the rules:\n%s", seed, step, back.Text(nil))
			}
			if err := live.Check(); err != nil {
				t.Fatalf("seed %d step %d: %v", seed, step, err)
			}
		}
		fresh := NewState(node)
		for name, in := range inputs {
			fresh.Set(name, in)
		}
		h := Host{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Pods: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
			Here: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}}
		for k := range state.Rules() {
			if k.Dest.Port == 0 {
				continue
			}
			for _, from := range []string{"10.1.0.5", "192.0.2.1", "203.0.113.5", "198.18.0.1"} {
				d := k.Dest
				if d.Addr.IsUnspecified() {
					d.Addr = netip.MustParseAddr("192.0.2.1")
				}
				p := Packet{netip.MustParseAddr(from), d}
				a, b := state.Rules().Trace(p, h).String(), fresh.Rules().Trace(p, h).String()
				if a != b {
					t.Fatalf("seed %d: from %s to %s: %s, from scratch %s", seed, from, d, a, b)
				}
			}
		}
		if n := len(fresh.Rules()); n != len(state.Rules()) {
			t.Fatalf("seed %d: %d elements, from scratch %d", seed, len(state.Rules()), n)
		}
		for name := range inputs {
			state.Set(name, Service{})
		}
		if n := len(state.Rules()) + len(state.winner) + len(state.rivals) + len(state.entries) + len(state.names); n != 0 {
			t.Fatalf("seed %d: %d things left after all services went", seed, n)
		}
	}
}

func TestNumberingIsStable(t *testing.T) {
	var before []netip.AddrPort
	r := rand.New(rand.NewPCG(1, 2))
	in := map[netip.AddrPort]bool{}
	for step := range 2000 {
		ap := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(r.IntN(40))}), 80)
		moved := in[ap]
		if moved {
			delete(in, ap)
		} else {
			in[ap] = true
		}
		var want []netip.AddrPort
		for w := range in {
			want = append(want, w)
		}
		after := number(before, want)
		if len(after) != len(want) {
			t.Fatalf("step %d: %d numbers for %d endpoints", step, len(after), len(want))
		}
		changed := 0
		for i := range min(len(before), len(after)) {
			if before[i] != after[i] {
				changed++
			}
		}
		if changed > 1 {
			t.Fatalf("step %d: one endpoint came or went, %d others were renumbered", step, changed)
		}
		seen := map[netip.AddrPort]bool{}
		for _, a := range after {
			if seen[a] || !in[a] {
				t.Fatalf("step %d: numbering %v of %v", step, after, in)
			}
			seen[a] = true
		}
		before = after
	}
}

func TestUDPEndpoints(t *testing.T) {
	a, b := netip.MustParseAddrPort("10.1.0.2:53"), netip.MustParseAddrPort("10.1.0.3:53")
	old := RuleSet{
		{Set: Endpoints, Group: 1, Index: 0}: {To: a, Proto: UDP},
		{Set: Endpoints, Group: 1, Index: 1}: {To: b, Proto: UDP},
		{Set: Endpoints, Group: 2, Index: 0}: {To: a, Proto: TCP},
	}
	new := RuleSet{{Set: Endpoints, Group: 1, Index: 0}: {To: b, Proto: UDP}}
	if got := fmt.Sprint(Diff(old, new).UDPEndpoints()); got != "[10.1.0.2:53]" {
		t.Errorf("UDP endpoints gone: %s", got)
	}
}

func BenchmarkSetOneOf10k(b *testing.B) {
	s := NewState(Node{Name: "here"})
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 10000 {
		name := types.NamespacedName{Namespace: "ns", Name: fmt.Sprint(i)}
		in := randomService(r, name)
		if in.Service != nil {
			in.Service.Spec.ClusterIP = fmt.Sprintf("10.96.%d.%d", i/250, i%250)
			in.Service.Spec.ClusterIPs = []string{in.Service.Spec.ClusterIP}
		}
		s.Set(name, in)
	}
	name := types.NamespacedName{Namespace: "ns", Name: "0"}
	for b.Loop() {
		s.Set(name, randomService(r, name))
	}
}
