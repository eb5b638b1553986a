// Package probe asks containers how they are: exec, HTTP, TCP and gRPC, from the
// node's own network namespace, with periods, timeouts and thresholds as the
// Kubernetes docs ("Configure Liveness, Readiness and Startup Probes") define
// them. Run is one goroutine's work for one probe of one container.
//
// A failure is an answer (connection refused, status 500, exit code 1) and counts
// towards the threshold; an error is a probe that could not be made (no such port
// name, the engine is away): it is tried up to three times at once, told, and then
// counts neither way, as upstream's. Messages are worded as upstream's events.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"golang.org/x/sys/unix"

	"proa.dev/env"
)

// Prober makes probes. Its fields are set before the first Run.
type Prober struct {
	Clock env.Clock
	// Exec runs a command in a container, with both outputs in one.
	Exec func(ctx context.Context, containerID string, cmd []string, timeout time.Duration) (output []byte, exit int32, err error)
}

// Target is the container that is asked.
type Target struct {
	ContainerID string
	IP          string
	Spec        *corev1.Container
	StartedAt   time.Time
}

// Report is what one attempt, or a run of them, says.
type Report struct {
	// Verdict is set when thresholds are reached and the verdict is new.
	Verdict bool
	OK      bool
	// Failed marks a single failed attempt: an Unhealthy event. Errored: no answer.
	// Warned: an answer that counts as good but needs a look: a ProbeWarning event.
	Failed, Errored, Warned bool
	Message                 string
}

// Run probes until ctx ends. initial is the verdict that holds without a probe:
// true for liveness, false for readiness and startup. report is called from this
// goroutine.
func (p *Prober) Run(ctx context.Context, spec *corev1.Probe, t Target, initial bool, report func(Report)) {
	period := max(seconds(spec.PeriodSeconds), time.Second)
	wait := seconds(spec.InitialDelaySeconds) - p.Clock.Now().Sub(t.StartedAt)
	timer := p.Clock.NewTimer(max(wait, 0))
	defer timer.Stop()
	verdict := initial
	successes, failures := int32(0), int32(0)
	toldFailure := false
	for {
		select {
		case <-timer.C():
		case <-ctx.Done():
			return
		}
		began := p.Clock.Now()
		var ok bool
		var message string
		var err error
		for range errorTries {
			if ok, message, err = p.once(ctx, spec, t); err == nil || ctx.Err() != nil {
				break
			}
		}
		if ctx.Err() != nil {
			return
		}
		switch {
		case err != nil:
			report(Report{Failed: true, Errored: true, Message: err.Error()})
		case !ok:
			report(Report{Failed: true, Message: message})
		case message != "":
			report(Report{Warned: true, Message: message})
		}
		if err != nil {
			// Nothing was learnt.
		} else if ok {
			successes, failures = successes+1, 0
			if successes >= max(spec.SuccessThreshold, 1) && !verdict {
				verdict, toldFailure = true, false
				report(Report{Verdict: true, OK: true})
			}
		} else {
			successes, failures = 0, failures+1
			// A startup or liveness probe that stays red tells again each time the
			// threshold is reached: the restart may not have worked.
			if failures >= max(spec.FailureThreshold, 1) && (verdict || !toldFailure || failures%max(spec.FailureThreshold, 1) == 0) {
				verdict, toldFailure = false, true
				report(Report{Verdict: true, OK: false, Message: message})
			}
		}
		timer.Reset(max(period-p.Clock.Now().Sub(began), 0))
	}
}

// errorTries is how often a probe that cannot be made is tried before it is told.
const errorTries = 3

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }

// once makes one attempt within the timeout. The message of a good answer is a
// warning, or empty.
func (p *Prober) once(ctx context.Context, spec *corev1.Probe, t Target) (ok bool, message string, err error) {
	timeout := max(seconds(spec.TimeoutSeconds), time.Second)
	if spec.HTTPGet != nil {
		return httpGet(ctx, spec.HTTPGet, t, timeout) // its client keeps the time, and words it
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case spec.Exec != nil:
		return p.exec(ctx, spec.Exec, t, timeout)
	case spec.TCPSocket != nil:
		return tcp(ctx, spec.TCPSocket, t)
	case spec.GRPC != nil:
		return grpcHealth(ctx, spec.GRPC, t, timeout)
	}
	return false, "", fmt.Errorf("missing probe handler for container %s", t.Spec.Name)
}

func (p *Prober) exec(ctx context.Context, a *corev1.ExecAction, t Target, timeout time.Duration) (bool, string, error) {
	out, exit, err := p.Exec(ctx, t.ContainerID, a.Command, timeout)
	if len(out) > 10<<10 {
		out = out[:10<<10]
	}
	if errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded {
		return false, fmt.Sprintf("command %q timed out after %s", strings.Join(a.Command, " "), timeout), nil
	}
	if err != nil {
		return false, "", err
	}
	if exit == 0 {
		return true, "", nil
	}
	return false, string(out), nil
}

// dialer closes without leaving a socket behind in TIME_WAIT for a minute, which
// at one probe a second for many pods would use up ports.
func dialer() *net.Dialer {
	return &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 1})
		})
	}}
}

var transport = &http.Transport{
	DialContext:       dialer().DialContext,
	TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // as documented for probes
	DisableKeepAlives: true,
	Proxy:             nil,
}

// userAgent as upstream's, which applications exempt from their logs.
const userAgent = "kube-probe/1.37"

// Tell makes the request of a lifecycle hook. Any answer will do, whatever its
// status, as with upstream's: the container is told, not asked.
func Tell(ctx context.Context, a *corev1.HTTPGetAction, t Target) error {
	resp, err := send(ctx, a, t, 0)
	if err != nil {
		return err
	}
	io.Copy(io.Discard, io.LimitReader(resp.Body, 10<<10))
	return resp.Body.Close()
}

// unanswered is why a request got no answer.
type unanswered struct{ error }

// send makes one request as probes and lifecycle hooks do. A redirect to another
// host is not followed.
func send(ctx context.Context, a *corev1.HTTPGetAction, t Target, timeout time.Duration) (*http.Response, error) {
	port, err := Port(a.Port, t.Spec)
	if err != nil {
		return nil, err
	}
	host := a.Host
	if host == "" {
		host = t.IP
	}
	u, err := url.Parse(a.Path)
	if err != nil {
		u = &url.URL{Path: a.Path}
	}
	u.Scheme = strings.ToLower(string(a.Scheme))
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	u.Host = net.JoinHostPort(host, strconv.Itoa(port))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range a.HTTPHeaders {
		if http.CanonicalHeaderKey(h.Name) == "Host" {
			req.Host = h.Value
			continue
		}
		req.Header.Add(h.Name, h.Value)
	}
	if _, has := req.Header["User-Agent"]; !has {
		req.Header.Set("User-Agent", userAgent)
	}
	if accept, has := req.Header["Accept"]; !has {
		req.Header.Set("Accept", "*/*")
	} else if len(accept) == 1 && accept[0] == "" {
		req.Header.Del("Accept")
	}
	client := &http.Client{Transport: transport, Timeout: timeout, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		if next.URL.Hostname() != via[0].URL.Hostname() {
			return http.ErrUseLastResponse
		}
		if len(via) >= 10 {
			return errors.New("stopped after 10 redirects")
		}
		return nil
	}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, unanswered{err}
	}
	return resp, nil
}

// httpGet probes. A redirect to another host counts as a success, with a warning.
func httpGet(ctx context.Context, a *corev1.HTTPGetAction, t Target, timeout time.Duration) (ok bool, message string, err error) {
	resp, err := send(ctx, a, t, timeout)
	switch none, is := err.(unanswered); {
	case is:
		return false, none.Error(), nil
	case err != nil:
		return false, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 10<<10))
	if err != nil {
		return false, err.Error(), nil
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 400 {
		if resp.StatusCode >= 300 && resp.Header.Get("Location") != "" {
			return true, "Probe terminated redirects, Response body: " + string(body), nil
		}
		return true, "", nil
	}
	return false, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode), nil
}

func tcp(ctx context.Context, a *corev1.TCPSocketAction, t Target) (bool, string, error) {
	port, err := Port(a.Port, t.Spec)
	if err != nil {
		return false, "", err
	}
	host := a.Host
	if host == "" {
		host = t.IP
	}
	c, err := dialer().DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return false, err.Error(), nil
	}
	c.Close()
	return true, "", nil
}

func grpcHealth(ctx context.Context, a *corev1.GRPCAction, t Target, timeout time.Duration) (bool, string, error) {
	service := ""
	if a.Service != nil {
		service = *a.Service
	}
	addr := net.JoinHostPort(t.IP, strconv.Itoa(int(a.Port)))
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithUserAgent(userAgent),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return dialer().DialContext(ctx, "tcp", addr)
		}))
	if err != nil {
		return false, "", err
	}
	defer conn.Close()
	resp, err := healthpb.NewHealthClient(conn).Check(metadata.NewOutgoingContext(ctx, metadata.MD{}), &healthpb.HealthCheckRequest{Service: service},
		grpc.WaitForReady(true))
	if err != nil {
		switch status.Code(err) {
		case codes.Unimplemented:
			return false, fmt.Sprintf("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): %s", status.Convert(err).Message()), nil
		case codes.DeadlineExceeded:
			if conn.GetState() != connectivity.Ready {
				return false, fmt.Sprintf("timeout: failed to connect service %q within %v: %v", addr, timeout, context.DeadlineExceeded), nil
			}
			return false, fmt.Sprintf("timeout: health rpc did not complete within %v", timeout), nil
		}
		return false, fmt.Sprintf("error: health rpc probe failed: %v", err), nil
	}
	if resp.Status != healthpb.HealthCheckResponse_SERVING {
		return false, fmt.Sprintf("service unhealthy (responded with %q)", resp.Status.String()), nil
	}
	return true, "", nil
}

// Port resolves a port by number or by the name of one of the container's ports.
func Port(p intstr.IntOrString, c *corev1.Container) (int, error) {
	n := p.IntValue()
	if p.Type == intstr.String {
		n = 0
		for i := range c.Ports {
			if c.Ports[i].Name == p.StrVal {
				n = int(c.Ports[i].ContainerPort)
			}
		}
		if n == 0 {
			var err error
			if n, err = strconv.Atoi(p.StrVal); err != nil {
				return 0, fmt.Errorf("couldn't find port: %v for container %s", p.StrVal, c.Name)
			}
		}
	}
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("invalid port number: %v", n)
	}
	return n, nil
}
