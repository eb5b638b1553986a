package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"proa.dev/env"
)

var ctx = context.Background()

func target(t *testing.T, addr string) (Target, intstr.IntOrString) {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(port)
	return Target{ContainerID: "c1", IP: host, Spec: &corev1.Container{Name: "app", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(n)}}}}, intstr.FromInt(n)
}

func TestHTTP(t *testing.T) {
	var seen http.Header
	var host string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen, host = r.Header, r.Host
		switch r.URL.Path {
		case "/bad":
			w.WriteHeader(500)
		case "/away":
			http.Redirect(w, r, "http://elsewhere.invalid/", 302)
		case "/here":
			http.Redirect(w, r, "/bad", 302)
		case "/round":
			http.Redirect(w, r, "/round", 302)
		case "/slow":
			<-r.Context().Done()
		}
	}))
	defer srv.Close()
	u, _ := url.Parse(srv.URL)
	tg, _ := target(t, u.Host)
	get := func(path string) (bool, string, error) {
		return httpGet(ctx, &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("web"),
			HTTPHeaders: []corev1.HTTPHeader{{Name: "X-A", Value: "1"}, {Name: "Host", Value: "shop.example"}}}, tg, 0)
	}
	if ok, m, err := get("/?q=1"); !ok || err != nil {
		t.Errorf("good: %q %v", m, err)
	}
	if seen.Get("User-Agent") != userAgent || seen.Get("Accept") != "*/*" || seen.Get("X-A") != "1" || host != "shop.example" {
		t.Errorf("headers %v host %q", seen, host)
	}
	for _, c := range []struct {
		path string
		ok   bool
		want string
	}{
		{"/bad", false, "HTTP probe failed with statuscode: 500"},
		{"/here", false, "HTTP probe failed with statuscode: 500"},
		{"/round", false, `Get "/round": stopped after 10 redirects`},
		{"/away", true, "Probe terminated redirects, Response body: <a href=\"http://elsewhere.invalid/\">Found</a>.\n\n"},
	} {
		ok, m, err := get(c.path)
		if err != nil || ok != c.ok || m != c.want {
			t.Errorf("%s: %v %q %v", c.path, ok, m, err)
		}
	}
	p := &Prober{Clock: env.SystemClock()}
	slow := &corev1.Probe{TimeoutSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/slow", Port: intstr.FromString("web")}}}
	if ok, m, err := p.once(ctx, slow, tg); ok || err != nil || m != fmt.Sprintf("Get %q: context deadline exceeded (Client.Timeout exceeded while awaiting headers)", srv.URL+"/slow") {
		t.Errorf("slow: %v %q %v", ok, m, err)
	}
	if _, _, err := httpGet(ctx, &corev1.HTTPGetAction{Port: intstr.FromString("none")}, tg, 0); err == nil || err.Error() != "couldn't find port: none for container app" {
		t.Errorf("no such port: %v", err)
	}
	// A hook tells and does not ask.
	tell := func(path string) error {
		return Tell(ctx, &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("web")}, tg)
	}
	if err := tell("/bad"); err != nil {
		t.Errorf("a hook that is answered with 500: %v", err)
	}
	srv.Close()
	if err := tell("/"); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("a hook that nobody answers: %v", err)
	}
	if ok, m, err := get("/"); ok || err != nil || !strings.Contains(m, "connection refused") {
		t.Errorf("closed: %v %q %v", ok, m, err)
	}
}

func TestTCPAndGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tg, port := target(t, l.Addr().String())
	g := grpc.NewServer()
	h := health.NewServer()
	h.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(g, h)
	go g.Serve(l)
	p := &Prober{Clock: env.SystemClock()}
	if ok, m, err := p.once(ctx, &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port}}}, tg); !ok || err != nil {
		t.Errorf("tcp: %q %v", m, err)
	}
	check := func(service string) (bool, string, error) {
		return p.once(ctx, &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(port.IntValue()), Service: &service}}}, tg)
	}
	if ok, m, err := check(""); !ok || err != nil {
		t.Errorf("grpc: %q %v", m, err)
	}
	if ok, m, err := check("down"); ok || err != nil || m != `service unhealthy (responded with "NOT_SERVING")` {
		t.Errorf("grpc down: %v %q %v", ok, m, err)
	}
	bare, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other := grpc.NewServer()
	go other.Serve(bare)
	defer other.Stop()
	_, bport := target(t, bare.Addr().String())
	if ok, m, err := p.once(ctx, &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(bport.IntValue())}}}, tg); ok || err != nil ||
		m != "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): unknown service grpc.health.v1.Health" {
		t.Errorf("grpc without health: %v %q %v", ok, m, err)
	}
	g.Stop()
	if ok, _, err := p.once(ctx, &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port}}}, tg); ok || err != nil {
		t.Errorf("tcp to nobody: %v %v", ok, err)
	}
	if ok, m, err := check(""); ok || err != nil || m != fmt.Sprintf("timeout: failed to connect service %q within 1s: context deadline exceeded", l.Addr()) {
		t.Errorf("grpc to nobody: %v %q %v", ok, m, err)
	}
}

// TestThresholds plays answers, one a period, and reads the verdicts with their
// times.
func TestThresholds(t *testing.T) {
	for _, c := range []struct {
		name    string
		initial bool
		spec    corev1.Probe
		answers string // + good, - bad, ! cannot be made (each of three tries)
		want    string
	}{
		{"liveness needs three failures in a row", true, corev1.Probe{FailureThreshold: 3}, "+--+---", "6s:false"},
		{"readiness comes and goes", false, corev1.Probe{FailureThreshold: 1, SuccessThreshold: 2}, "++-+-++", "1s:true 2s:false 4s:false 6s:true"},
		{"startup fails at its threshold and again", false, corev1.Probe{FailureThreshold: 2}, "-----", "1s:false 3s:false"},
		{"errors count neither way", true, corev1.Probe{FailureThreshold: 2}, "-!!!!!!-+", "3s:false 4s:true"},
		{"initial delay", false, corev1.Probe{FailureThreshold: 1, InitialDelaySeconds: 5}, "+", "5s:true"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				i := 0
				run, stop := context.WithCancel(ctx)
				p := &Prober{Clock: env.SystemClock(), Exec: func(context.Context, string, []string, time.Duration) ([]byte, int32, error) {
					if i == len(c.answers) {
						stop()
						return nil, 0, context.Canceled
					}
					i++
					switch c.answers[i-1] {
					case '+':
						return nil, 0, nil
					case '!':
						return nil, 0, errors.New("engine is away")
					}
					return []byte("bad"), 1, nil
				}}
				c.spec.Exec = &corev1.ExecAction{Command: []string{"x"}}
				c.spec.PeriodSeconds = 1
				var got []string
				p.Run(run, &c.spec, Target{StartedAt: start, Spec: &corev1.Container{}}, c.initial, func(r Report) {
					if r.Verdict {
						got = append(got, fmt.Sprintf("%s:%v", time.Since(start), r.OK))
					}
				})
				if s := strings.Join(got, " "); s != c.want {
					t.Errorf("verdicts %q, want %q", s, c.want)
				}
			})
		})
	}
}
