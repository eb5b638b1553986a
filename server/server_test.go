package server

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/apiserver/apitest"
	"proa.dev/cluster/first"
	"proa.dev/cluster/pki"
	"proa.dev/kind"
)

// Every short name leads to a decider that is there.
func TestShortNames(t *testing.T) {
	known := Controllers()
	for short, long := range shortNames {
		if !slices.Contains(known, long) {
			t.Errorf("%s: there is no %s among %q", short, long, known)
		}
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		list []string
		on   string // of these: garbage-collector-controller, job-controller, scheduler
	}{
		{nil, "gjs"}, {[]string{}, ""}, {[]string{""}, ""}, {[]string{"*"}, "gjs"}, {[]string{"*", "-job"}, "gs"}, {[]string{"-job", "*"}, "gs"},
		{[]string{"garbagecollector", "scheduler"}, "gs"}, {[]string{"job-controller"}, "j"},
	} {
		on, err := choose(c.list)
		if err != nil {
			t.Fatal(err)
		}
		have := ""
		for _, name := range []string{"garbage-collector-controller", "job-controller", "scheduler"} {
			if on(name) {
				have += name[:1]
			}
		}
		if have != c.on {
			t.Errorf("%q: on are %q, want %q", c.list, have, c.on)
		}
	}
	if _, err := choose([]string{"garbage"}); err == nil || !strings.Contains(err.Error(), "garbage-collector-controller") {
		t.Errorf("an unknown name: %v", err)
	}
}

func TestAdmission(t *testing.T) {
	names := func(a Admission) []string {
		t.Helper()
		a.Services = netip.MustParsePrefix("10.0.0.0/24")
		chain, err := a.Chain()
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, p := range chain {
			out = append(out, p.Name)
		}
		return out
	}
	all := names(Admission{})
	less := names(Admission{Disable: []string{"ServiceAccount", "AlwaysPullImages", ""}})
	if !slices.Contains(all, "ServiceAccount") || slices.Contains(less, "ServiceAccount") || len(less) != len(all)-1 {
		t.Errorf("without ServiceAccount %q is %q", all, less)
	}
	for _, p := range (&Admission{}).plugins() {
		if !p.always && !slices.Contains(upstreamPlugins, p.Name) {
			t.Errorf("%s can be switched and is not upstream's", p.Name)
		}
	}
	for _, a := range []Admission{{Enable: []string{"Nonsense"}}, {Disable: []string{"Escalation"}}, {Enable: []string{"Priority"}, Disable: []string{"Priority"}}} {
		if _, err := a.Chain(); err == nil {
			t.Errorf("%q and %q are accepted", a.Enable, a.Disable)
		}
	}
}

// run starts a server and returns what ends it.
func run(t testing.TB, change func(*Config)) (s *Server, url string, end func()) {
	t.Helper()
	ca, err := pki.Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Authority: ca, Services: netip.MustParsePrefix("10.0.0.0/24"),
		First:     first.Config{API: netip.MustParseAddr("192.168.0.1"), APIPort: 6443, PublicURL: "https://192.168.0.1:6443"},
		Listeners: []Listener{{Listener: l}}}
	change(&cfg)
	if cfg.Store == nil {
		if e, chosen := apitest.Etcd(t); chosen {
			cfg.Store = Etcd(e)
		}
	}
	if s, err = New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-done:
		t.Fatal(err)
	}
	return s, "http://" + l.Addr().String(), func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestRunTwiceOnDisk(t *testing.T) {
	before := runtime.NumGoroutine()
	dir, keys := t.TempDir(), t.TempDir()
	ca, err := pki.Open(keys, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		s, url, end := run(t, func(c *Config) { c.Store, c.Authority = Disk(dir), ca })
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"}, StringData: map[string]string{"a": "b"}}
		if i == 0 {
			if _, err := s.Admin().Create(t.Context(), kind.Secret, secret, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		} else if o, err := s.Admin().Get(t.Context(), kind.Secret, "default", "s", metav1.GetOptions{}); err != nil || string(o.(*corev1.Secret).Data["a"]) != "b" {
			t.Errorf("after a restart: %v, %v", o, err)
		}
		client := &http.Client{Transport: &http.Transport{}}
		res, err := client.Get(url + "/readyz?verbose")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != 200 || !strings.Contains(string(body), "[+]poststarthook/first-objects ok") {
			t.Errorf("readyz: %s %s", res.Status, body)
		}
		client.CloseIdleConnections()
		end()
	}
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(end) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines before, now %s", before, buf[:runtime.Stack(buf, true)])
		}
	}
}
