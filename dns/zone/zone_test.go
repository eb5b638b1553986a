package zone

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite golden files")

// The file has objects as YAML documents, then lines "NAME TYPE", each followed by
// its answer on lines "| …", which -update rewrites.
func TestAnswers(t *testing.T) {
	const file = "testdata/answers.txt"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	x := NewIndex(Config{Domain: "cluster.local", Servers: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Reverse: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/48")}})
	x.SetSerial(42)
	var out strings.Builder
	for i, block := range strings.Split(string(raw), "---\n") {
		if i > 0 {
			out.WriteString("---\n")
		}
		if strings.Contains(block, "kind: ") {
			out.WriteString(block)
			load(t, x, block)
			continue
		}
		for _, line := range strings.SplitAfter(block, "\n") {
			if strings.HasPrefix(line, "| ") {
				continue
			}
			out.WriteString(line)
			f := strings.Fields(line)
			if len(f) != 2 || f[0] == "#" {
				continue
			}
			a := x.Answer(Question{f[0], dns.StringToType[f[1]]})
			out.WriteString(text(a))
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if diff := cmp.Diff(string(raw), out.String()); diff != "" {
		t.Errorf("answers differ (-update rewrites them):\n%s", diff)
	}
}

func text(a Answer) string {
	if a.Foreign {
		return "| foreign\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "| %s", dns.RcodeToString[a.Rcode])
	if len(a.Answer) == 0 && a.Rcode == dns.RcodeSuccess {
		b.WriteString(", no data")
	}
	b.WriteString("\n")
	for _, s := range []struct {
		mark string
		rrs  []dns.RR
	}{{" ", a.Answer}, {"authority", a.Authority}, {"additional", a.Additional}} {
		for _, rr := range s.rrs {
			fmt.Fprintf(&b, "| %s %s\n", s.mark, strings.ReplaceAll(rr.String(), "\t", " "))
		}
	}
	if a.Chase != "" {
		fmt.Fprintf(&b, "| chase %s\n", a.Chase)
	}
	return b.String()
}

func load(t *testing.T, x *Index, doc string) {
	t.Helper()
	var meta metav1.TypeMeta
	if err := yaml.Unmarshal([]byte(doc), &meta); err != nil {
		t.Fatal(err)
	}
	var err error
	switch meta.Kind {
	case "Namespace":
		var o corev1.Namespace
		err = yaml.UnmarshalStrict([]byte(doc), &o)
		x.SetNamespace(o.Name, true)
	case "Service":
		o := &corev1.Service{}
		err = yaml.UnmarshalStrict([]byte(doc), o)
		x.SetService(nil, o)
	case "EndpointSlice":
		o := &discoveryv1.EndpointSlice{}
		err = yaml.UnmarshalStrict([]byte(doc), o)
		x.SetSlice(nil, o)
	default:
		err = fmt.Errorf("no kind %q here", meta.Kind)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Changes in any order leave the same answers as a fresh index, and nothing
// behind.
func TestIndexFollowsChanges(t *testing.T) {
	ptr := func(s string) *string { return &s }
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 1))
		x := NewIndex(Config{Domain: "cluster.local"})
		services := map[string]*corev1.Service{}
		slices := map[string]*discoveryv1.EndpointSlice{}
		for range 60 {
			name := fmt.Sprint("s", r.IntN(3))
			if r.IntN(2) == 0 {
				var svc *corev1.Service
				if r.IntN(4) > 0 {
					svc = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
					svc.Spec.ClusterIP = []string{"None", fmt.Sprintf("10.96.0.%d", r.IntN(3))}[r.IntN(2)]
				}
				x.SetService(services[name], svc)
				services[name] = svc
				continue
			}
			id := fmt.Sprint(name, "-", r.IntN(2))
			var sl *discoveryv1.EndpointSlice
			if r.IntN(4) > 0 {
				sl = &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: id, Labels: map[string]string{discoveryv1.LabelServiceName: name}}, AddressType: discoveryv1.AddressTypeIPv4}
				for range r.IntN(3) {
					ready := r.IntN(3) > 0
					sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.1.0.%d", r.IntN(4))}, Hostname: ptr(fmt.Sprint("h", r.IntN(3))), Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
				}
			}
			x.SetSlice(slices[id], sl)
			slices[id] = sl
		}
		fresh := NewIndex(Config{Domain: "cluster.local"})
		for _, s := range services {
			fresh.SetService(nil, s)
		}
		for _, s := range slices {
			fresh.SetSlice(nil, s)
		}
		var asks []Question
		for i := range 4 {
			for _, a := range []string{"0.96.10", "0.1.10"} {
				asks = append(asks, Question{fmt.Sprintf("%d.%s.in-addr.arpa.", i, a), dns.TypePTR})
			}
			for h := range 3 {
				asks = append(asks, Question{fmt.Sprintf("h%d.s%d.ns.svc.cluster.local", h, i), dns.TypeA})
			}
			asks = append(asks, Question{fmt.Sprintf("s%d.ns.svc.cluster.local", i), dns.TypeA})
		}
		for _, q := range asks {
			if got, want := text(x.Answer(q)), text(fresh.Answer(q)); got != want {
				t.Fatalf("seed %d: %s: got\n%swant\n%s", seed, q.Name, got, want)
			}
		}
		for _, s := range services {
			x.SetService(s, nil)
		}
		for _, s := range slices {
			x.SetSlice(s, nil)
		}
		if n := len(x.services) + len(x.slices) + len(x.addresses); n != 0 {
			t.Fatalf("seed %d: %d things left behind", seed, n)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	for _, s := range []string{"a.ns.svc.cluster.local.", "_http._tcp.a.ns.svc.cluster.local", "1-2-3-4.ns.pod.cluster.local", "4.3.2.1.in-addr.arpa", ".", "..", "cluster.local", `a\.b.ns.svc.cluster.local`} {
		f.Add(s, uint16(dns.TypeA))
	}
	x := NewIndex(Config{Domain: "cluster.local"})
	x.SetNamespace("ns", true)
	x.SetService(nil, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}})
	f.Fuzz(func(t *testing.T, name string, typ uint16) {
		a := x.Answer(Question{name, typ})
		for _, rr := range a.Answer {
			if !strings.EqualFold(rr.Header().Name, dns.Fqdn(name)) {
				t.Errorf("asked for %q, answered for %q", name, rr.Header().Name)
			}
		}
	})
}
