package conformance

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"proa.dev/internal/await"
)

func init() {
	probes()
	hooks()
	names()
	services()
	live("[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: http [NodeConformance]", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		ip := c.web(t, ns, "w").Status.PodIP
		c.asks(t, ns, "", "wget -qO- http://"+ip+":8080/", "w")
	})
	live("[sig-network] Networking Granular Checks: Pods should function for node-pod communication: http [LinuxOnly] [NodeConformance]", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		ip := c.web(t, ns, "w").Status.PodIP
		c.asks(t, ns, "hostNetwork: true\n", "wget -qO- http://"+ip+":8080/", "w")
	})
	live("[sig-network] Proxy version v1 should proxy through a service and a pod", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.web(t, ns, "w")
		c.service(t, ns, "s", "w", nil)
		for _, path := range []string{"pods/w:8080/proxy/", "pods/http:w:8080/proxy/", "services/s:80/proxy/", "services/s:web/proxy/", "services/http:s:web/proxy/"} {
			c.proxied(t, ns, path, "w")
		}
	})
	for what, path := range map[string]string{"Proxy": "", "ProxyWithPath": "/some/path"} {
		live("[sig-network] Proxy version v1 A set of valid responses are returned for both pod and service "+what, func(t *testing.T, c *cluster) {
			ns := c.namespace(t)
			c.web(t, ns, "w")
			c.service(t, ns, "s", "w", nil)
			for _, verb := range []string{"GET", "HEAD"} {
				for _, to := range []string{"pods/w:8080", "services/s:web"} {
					await.Nil(t, patience, verb+" by way of "+to, func() error {
						return c.CoreV1().RESTClient().Verb(verb).AbsPath("/api/v1/namespaces/" + ns + "/" + to + "/proxy" + path + "/").Do(t.Context()).Error()
					})
				}
			}
		})
	}
	live("[sig-apps] ReplicaSet should serve a basic image on each replica with a public image", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		rs := replicaSet("d", 2)
		rs.Spec.Template.Spec = webSpec(t)
		_, err := c.AppsV1().ReplicaSets(ns).Create(t.Context(), rs, metav1.CreateOptions{})
		ok(t, err)
		c.each(t, ns, "app=d", 2)
	})
	live("[sig-apps] ReplicationController should serve a basic image on each replica with a public image", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		rc := controller("d", 2)
		rc.Spec.Template.Spec = webSpec(t)
		_, err := c.CoreV1().ReplicationControllers(ns).Create(t.Context(), rc, metav1.CreateOptions{})
		ok(t, err)
		c.each(t, ns, "app=d", 2)
	})
	live("[sig-node] Pods should support remote command execution over websockets [NodeConformance]", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.pod(t, ns, pausePod("p"))
		c.running(t, ns, "p")
		got := c.socket(t, "/api/v1/namespaces/"+ns+"/pods/p/exec?stdout=1&stderr=1&command=echo&command=remote", "v4.channel.k8s.io", func(m []byte) string {
			if len(m) > 1 && m[0] == 1 {
				return string(m[1:])
			}
			return ""
		})
		same(t, "the output", strings.TrimSpace(got), "remote")
	})
	live("[sig-node] Pods should support retrieving logs from the container over websockets [NodeConformance]", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.pod(t, ns, spec(t, sh("echo container is alive", "")))
		c.until(t, ns, "p", "the pod ends", ended)
		same(t, "the log", strings.TrimSpace(c.socket(t, "/api/v1/namespaces/"+ns+"/pods/p/log?container=c0", "binary.k8s.io", func(m []byte) string { return string(m) })), "container is alive")
	})
	live("[sig-node] Pods should contain environment variables for services [NodeConformance]", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		s := c.service(t, ns, "fooservice", "none", nil)
		c.asks(t, ns, "", "env | grep ^FOOSERVICE_", `(?s).*FOOSERVICE_SERVICE_HOST=`+s.Spec.ClusterIP+`\n.*`)
	})
	live("[sig-node] Ephemeral Containers [NodeConformance] will start an ephemeral container in an existing pod", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.pod(t, ns, pausePod("p"))
		p := c.running(t, ns, "p")
		p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debugger", Image: *image, Command: []string{"sh", "-c", "echo polo; sleep 600"}}}}
		_, err := c.CoreV1().Pods(ns).UpdateEphemeralContainers(t.Context(), "p", p, metav1.UpdateOptions{})
		ok(t, err)
		await.Nil(t, patience, "what the ephemeral container says", func() error {
			log, err := c.log(t.Context(), ns, "p", "debugger")
			if err == nil && log != "polo\n" {
				err = fmt.Errorf("it says %q", log)
			}
			return err
		})
	})
}

const webScript = "mkdir -p /www/some/path; for d in /www /www/some/path; do hostname > $d/index.html; echo ok > $d/healthz; done; %s httpd -f -vv -p 8080 -h /www"

func webSpec(t *testing.T) corev1.PodSpec {
	t.Helper()
	p := spec(t, sh(fmt.Sprintf(webScript, ""), "readinessProbe: {periodSeconds: 1, httpGet: {port: 8080}}"))
	p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	return p.Spec
}

// web is a pod that answers with its name on port 8080, under /, and logs what it is
// asked.
func (c *cluster) web(t *testing.T, ns, name string) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"web": strings.TrimRight(name, "0123456789")}}, Spec: webSpec(t)}
	c.pod(t, ns, p)
	return c.until(t, ns, name, "the web server is ready", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].Ready
	})
}

// service for pods with a label, port 80 to 8080.
func (c *cluster) service(t *testing.T, ns, name, web string, change func(*corev1.ServiceSpec)) *corev1.Service {
	t.Helper()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Selector: map[string]string{"web": web}, Ports: []corev1.ServicePort{{Name: "web", Port: 80}}}}
	s.Spec.Ports[0].TargetPort.IntVal = 8080
	if change != nil {
		change(&s.Spec)
	}
	s, err := c.CoreV1().Services(ns).Create(t.Context(), s, metav1.CreateOptions{})
	ok(t, err)
	return s
}

// asks runs a script in a pod again and again until its output is as wanted.
func (c *cluster) asks(t *testing.T, ns, fields, script, want string) {
	t.Helper()
	p := spec(t, fields+sh("until OUT=$("+script+") && [ -n \"$OUT\" ]; do sleep 1; done; echo \"$OUT\"", ""))
	p.Name, p.GenerateName = "", "asks-"
	made := c.pod(t, ns, p)
	p = c.until(t, ns, made.Name, "the answer to "+script, ended)
	log, err := c.log(t.Context(), ns, p.Name, "c0")
	ok(t, err)
	if !matches(want, strings.TrimSpace(log)+"\n") && !matches(want, strings.TrimSpace(log)) {
		t.Errorf("%s: %q, want %q", script, log, want)
	}
}

func (c *cluster) proxied(t *testing.T, ns, path, want string) {
	t.Helper()
	await.Nil(t, patience, "an answer by way of "+path, func() error {
		b, err := c.CoreV1().RESTClient().Get().AbsPath("/api/v1/namespaces/" + ns + "/" + path).DoRaw(t.Context())
		if err == nil && strings.TrimSpace(string(b)) != want {
			err = fmt.Errorf("it says %q", b)
		}
		return err
	})
}

// each pod answers with its name.
func (c *cluster) each(t *testing.T, ns, selector string, n int) {
	t.Helper()
	for _, p := range c.havePods(t, ns, selector, n) {
		c.proxied(t, ns, "pods/"+p.Name+":8080/proxy/", p.Name)
	}
}

// socket reads a WebSocket to its end.
func (c *cluster) socket(t *testing.T, path, protocol string, take func(m []byte) string) string {
	t.Helper()
	cfg, err := rest.TLSConfigFor(c.config)
	ok(t, err)
	if cfg == nil {
		cfg = new(tls.Config)
	}
	cfg.NextProtos = []string{"http/1.1"}
	d := websocket.Dialer{TLSClientConfig: cfg, Subprotocols: []string{protocol}, HandshakeTimeout: 30 * time.Second}
	h := http.Header{}
	if c.config.BearerToken != "" {
		h.Set("Authorization", "Bearer "+c.config.BearerToken)
	}
	ws, _, err := d.DialContext(t.Context(), "wss"+strings.TrimPrefix(c.config.Host, "https")+path, h)
	ok(t, err)
	defer ws.Close()
	ws.SetReadDeadline(time.Now().Add(time.Minute))
	var all strings.Builder
	for {
		_, m, err := ws.ReadMessage()
		if websocket.IsCloseError(err, websocket.CloseNormalClosure) {
			return all.String()
		}
		ok(t, err)
		all.WriteString(take(m))
	}
}

func probes() {
	const words = "[sig-node] Probing container "
	// A file that is there for a while, and is asked for in three ways.
	probe := func(how string, seconds int) string {
		set := ", periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 10, initialDelaySeconds: 3"
		forget := ""
		if seconds > 0 {
			forget = fmt.Sprintf("(sleep %d; rm /www/healthz) &", seconds)
		}
		by := map[string]string{"exec": "exec: {command: [cat, /www/healthz]}", "http": "httpGet: {path: /healthz, port: 8080}", "tcp": "tcpSocket: {port: 8080}"}[how]
		return "restartPolicy: Always\n" + sh(fmt.Sprintf(webScript, forget), "livenessProbe: {"+by+set+"}")
	}
	restarts := func(p *corev1.Pod) int32 {
		if len(p.Status.ContainerStatuses) == 0 {
			return 0
		}
		return p.Status.ContainerStatuses[0].RestartCount
	}
	for suffix, how := range map[string]string{`a exec "cat /tmp/health" liveness probe`: "exec", "a /healthz http liveness probe": "http", "a tcp:8080 liveness probe": "tcp"} {
		live(words+"should *not* be restarted with "+suffix+" [NodeConformance]", func(t *testing.T, c *cluster) {
			ns := c.namespace(t)
			c.pod(t, ns, spec(t, probe(how, 0)))
			c.until(t, ns, "p", "the pod runs", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
			wait(t, 15)
			p, err := c.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{})
			ok(t, err)
			same(t, "restarts", restarts(p), 0)
		})
		if how == "tcp" {
			continue
		}
		live(words+"should be restarted with "+suffix+" [NodeConformance]", func(t *testing.T, c *cluster) {
			ns := c.namespace(t)
			c.pod(t, ns, spec(t, probe(how, 6)))
			c.until(t, ns, "p", "the container is restarted", func(p *corev1.Pod) bool { return restarts(p) > 0 })
		})
	}
	live(words+"should have monotonically increasing restart count [NodeConformance]", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.pod(t, ns, spec(t, probe("exec", 4)))
		last := int32(0)
		c.until(t, ns, "p", "the container is restarted three times", func(p *corev1.Pod) bool {
			n := restarts(p)
			if n < last {
				t.Errorf("%d restarts after %d", n, last)
			}
			last = n
			return n >= 3
		})
	})
	isReady := func(p *corev1.Pod) *corev1.PodCondition {
		i := slices.IndexFunc(p.Status.Conditions, func(x corev1.PodCondition) bool { return x.Type == corev1.PodReady && x.Status == corev1.ConditionTrue })
		if i < 0 {
			return nil
		}
		return &p.Status.Conditions[i]
	}
	live(words+"with readiness probe should not be ready before initial delay and never restart [NodeConformance]", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.pod(t, ns, spec(t, "restartPolicy: Always\n"+sh("sleep 600", "readinessProbe: {exec: {command: ['true']}, initialDelaySeconds: 6, periodSeconds: 1}")))
		p := c.until(t, ns, "p", "the pod is ready", func(p *corev1.Pod) bool { return isReady(p) != nil })
		started := p.Status.ContainerStatuses[0].State.Running.StartedAt
		// Times in the API have no fractions.
		if d := isReady(p).LastTransitionTime.Sub(started.Time); d < 5*time.Second {
			t.Errorf("ready %v after the start", d)
		}
		same(t, "restarts", restarts(p), 0)
	})
	live(words+"with readiness probe that fails should never be ready and never restart [NodeConformance]", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.pod(t, ns, spec(t, "restartPolicy: Always\n"+sh("sleep 600", "readinessProbe: {exec: {command: ['false']}, periodSeconds: 1}")))
		c.until(t, ns, "p", "the pod runs", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
		wait(t, 12)
		p, err := c.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{})
		ok(t, err)
		if isReady(p) != nil || restarts(p) != 0 {
			t.Errorf("ready %v, %d restarts", isReady(p), restarts(p))
		}
	})
}

// hooks tell a web server, whose log says so.
func hooks() {
	heard := func(t *testing.T, c *cluster, ns, word string) {
		t.Helper()
		await.Nil(t, patience, "the server hears of "+word, func() error {
			log, err := c.log(t.Context(), ns, "w", "c0")
			if err == nil && !strings.Contains(log, word) {
				err = fmt.Errorf("its log is %q", log)
			}
			return err
		})
	}
	hook := func(event, how string) func(t *testing.T, c *cluster) {
		return func(t *testing.T, c *cluster) {
			ns := c.namespace(t)
			ip := c.web(t, ns, "w").Status.PodIP
			call := "httpGet: {host: " + ip + ", port: 8080, path: /" + event + "}"
			if how == "exec" {
				call = "exec: {command: [sh, -c, 'wget -qO- http://" + ip + ":8080/" + event + "; true']}"
			}
			p := spec(t, sh("sleep 600", "lifecycle: {"+event+": {"+call+"}}"))
			p.Spec.TerminationGracePeriodSeconds = new(int64(15))
			c.pod(t, ns, p)
			c.until(t, ns, "p", "the pod runs", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
			if event == "preStop" {
				log, err := c.log(t.Context(), ns, "w", "c0")
				ok(t, err)
				if strings.Contains(log, event) {
					t.Error("the hook ran before the end")
				}
				ok(t, c.CoreV1().Pods(ns).Delete(t.Context(), "p", metav1.DeleteOptions{}))
			}
			heard(t, c, ns, event)
		}
	}
	for event, word := range map[string]string{"postStart": "poststart", "preStop": "prestop"} {
		for _, how := range []string{"exec", "http"} {
			live("[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute "+word+" "+how+" hook properly [NodeConformance]", hook(event, how))
		}
	}
	live("[sig-node] PreStop should call prestop when killing a pod", hook("preStop", "exec"))
}

// names that pods look up. busybox asks for whole names; what the search list adds is
// seen by wget.
func names() {
	const words = "[sig-network] DNS should "
	look := func(name, want string) (script, pattern string) {
		return "nslookup " + name + " | tail -n +3 | awk '/^Address|canonical/ {print $NF}'", `(?s).*` + want + `.*`
	}
	live(words+"provide DNS for the cluster", func(t *testing.T, c *cluster) {
		s, err := c.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		ok(t, err)
		script, want := look("kubernetes.default.svc.cluster.local", s.Spec.ClusterIP)
		c.asks(t, c.namespace(t), "", script, want)
	})
	live(words+"provide DNS for services", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		ip := c.web(t, ns, "w").Status.PodIP
		s := c.service(t, ns, "s", "w", nil)
		c.service(t, ns, "headless", "w", func(s *corev1.ServiceSpec) { s.ClusterIP = "None" })
		script, want := look("s."+ns+".svc.cluster.local", s.Spec.ClusterIP)
		c.asks(t, ns, "", script, want)
		script, want = look("headless."+ns+".svc.cluster.local", ip)
		c.asks(t, ns, "", script, want)
		c.asks(t, ns, "", "nslookup -type=srv _web._tcp.s."+ns+".svc.cluster.local | grep -o '80 s[.].*'", `80 s\.`+ns+`\.svc\.cluster\.local`)
	})
	live(words+"resolve DNS of partial qualified names for services [LinuxOnly]", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.web(t, ns, "w")
		c.service(t, ns, "s", "w", nil)
		for _, name := range []string{"s", "s." + ns, "s." + ns + ".svc"} {
			c.asks(t, ns, "", "wget -qO- http://"+name+"/", "w")
		}
	})
	live(words+"provide DNS for ExternalName services", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.service(t, ns, "s", "w", func(s *corev1.ServiceSpec) {
			*s = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "kubernetes.default.svc.cluster.local"}
		})
		c.asks(t, ns, "", "nslookup -type=cname s."+ns+".svc.cluster.local | grep -o 'canonical name = .*'", `canonical name = kubernetes\.default\.svc\.cluster\.local\.?`)
	})
	named := func(t *testing.T, c *cluster) (ns string, p *corev1.Pod) {
		ns = c.namespace(t)
		c.service(t, ns, "sub", "w", func(s *corev1.ServiceSpec) { s.ClusterIP = "None" })
		p = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "w", Labels: map[string]string{"web": "w"}}, Spec: webSpec(t)}
		p.Spec.Hostname, p.Spec.Subdomain = "host", "sub"
		c.pod(t, ns, p)
		return ns, c.running(t, ns, "w")
	}
	live(words+"provide DNS for pods for Hostname", func(t *testing.T, c *cluster) {
		ns, p := named(t, c)
		script, want := look("host.sub."+ns+".svc.cluster.local", p.Status.PodIP)
		c.asks(t, ns, "", script, want)
	})
	live(words+"provide DNS for pods for Subdomain", func(t *testing.T, c *cluster) {
		ns, p := named(t, c)
		script, want := look("sub."+ns+".svc.cluster.local", p.Status.PodIP)
		c.asks(t, ns, "", script, want)
	})
	live(words+"provide /etc/hosts entries for the cluster", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.service(t, ns, "sub", "w", func(s *corev1.ServiceSpec) { s.ClusterIP = "None" })
		c.asks(t, ns, "hostname: host\nsubdomain: sub\n", "hostname -i >/dev/null; grep host.sub /etc/hosts", `[0-9.]+\s+host\.sub\.`+ns+`\.svc\.cluster\.local\s+host`)
	})
	live(words+"support configurable pod DNS nameservers", func(t *testing.T, c *cluster) {
		c.asks(t, c.namespace(t), "dnsPolicy: None\ndnsConfig: {nameservers: [1.1.1.1], searches: [resolv.conf.local]}\n", "cat /etc/resolv.conf", `(?s)search resolv\.conf\.local\s+nameserver 1\.1\.1\.1\s*|nameserver 1\.1\.1\.1\s+search resolv\.conf\.local\s*`)
	})
}

func services() {
	const words = "[sig-network] Services should "
	set := func(t *testing.T, c *cluster, ns string, change func(*corev1.ServiceSpec)) *corev1.Service {
		t.Helper()
		s, err := c.CoreV1().Services(ns).Get(t.Context(), "s", metav1.GetOptions{})
		ok(t, err)
		change(&s.Spec)
		s, err = c.CoreV1().Services(ns).Update(t.Context(), s, metav1.UpdateOptions{})
		ok(t, err)
		return s
	}
	node := func(t *testing.T, c *cluster) string {
		t.Helper()
		l, err := c.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		ok(t, err)
		return l.Items[0].Status.Addresses[0].Address
	}
	isNodePort := func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeNodePort }
	external := func(s *corev1.ServiceSpec) {
		*s = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "kubernetes.default.svc.cluster.local"}
	}
	internal := func(typ corev1.ServiceType) func(s *corev1.ServiceSpec) {
		return func(s *corev1.ServiceSpec) {
			*s = corev1.ServiceSpec{Type: typ, Selector: map[string]string{"web": "w"}, Ports: []corev1.ServicePort{{Name: "web", Port: 80}}}
			s.Ports[0].TargetPort.IntVal = 8080
		}
	}
	url := func(host string, port int32) string {
		return fmt.Sprintf("timeout 2 wget -qO- http://%s:%d/", host, port)
	}
	live(words+"serve a basic endpoint from pods", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		s := c.service(t, ns, "s", "w", nil)
		c.web(t, ns, "w1")
		c.asks(t, ns, "", url(s.Spec.ClusterIP, 80), "w1")
		c.web(t, ns, "w2")
		ok(t, c.CoreV1().Pods(ns).Delete(t.Context(), "w1", metav1.DeleteOptions{}))
		gone(t, "the first pod", func() error { _, err := c.CoreV1().Pods(ns).Get(t.Context(), "w1", metav1.GetOptions{}); return err })
		c.asks(t, ns, "", url(s.Spec.ClusterIP, 80), "w2")
	})
	live(words+"serve multiport endpoints from pods", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.web(t, ns, "w")
		s := c.service(t, ns, "s", "w", func(s *corev1.ServiceSpec) {
			s.Ports = append(s.Ports, *s.Ports[0].DeepCopy())
			s.Ports[1].Name, s.Ports[1].Port = "second", 81
		})
		c.asks(t, ns, "", url(s.Spec.ClusterIP, 80), "w")
		c.asks(t, ns, "", url(s.Spec.ClusterIP, 81), "w")
	})
	live(words+"be able to create a functioning NodePort service", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.web(t, ns, "w1")
		c.web(t, ns, "w2")
		s := c.service(t, ns, "s", "w", isNodePort)
		c.asks(t, ns, "", url(node(t, c), s.Spec.Ports[0].NodePort), "w[12]")
		c.asks(t, ns, "hostNetwork: true\n", url(node(t, c), s.Spec.Ports[0].NodePort), "w[12]")
	})
	for _, typ := range []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort} {
		live(words+"be able to change the type from ExternalName to "+string(typ), func(t *testing.T, c *cluster) {
			ns := c.namespace(t)
			c.web(t, ns, "w")
			c.service(t, ns, "s", "w", external)
			s := set(t, c, ns, internal(typ))
			c.asks(t, ns, "", url(s.Spec.ClusterIP, 80), "w")
			if typ == corev1.ServiceTypeNodePort {
				c.asks(t, ns, "", url(node(t, c), s.Spec.Ports[0].NodePort), "w")
			}
		})
		live(words+"be able to change the type from "+string(typ)+" to ExternalName", func(t *testing.T, c *cluster) {
			ns := c.namespace(t)
			c.web(t, ns, "w")
			was := c.service(t, ns, "s", "w", internal(typ))
			c.asks(t, ns, "", url(was.Spec.ClusterIP, 80), "w")
			s := set(t, c, ns, external)
			same(t, "the cluster IP", s.Spec.ClusterIP, "")
			c.asks(t, ns, "", "nslookup -type=cname s."+ns+".svc.cluster.local | grep -o 'canonical name = .*'", `canonical name = kubernetes\.default\.svc\.cluster\.local\.?`)
		})
	}
	// With affinity all answers come from one pod, without it from both.
	many := func(url string) string {
		return "for i in $(seq 30); do " + url + "; done | sort | uniq | tr '\\n' ' '"
	}
	for _, typ := range []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort} {
		where := "service with type clusterIP"
		if typ == corev1.ServiceTypeNodePort {
			where = "NodePort service"
		}
		begin := func(t *testing.T, c *cluster, affinity corev1.ServiceAffinity) (ns, ask string) {
			ns = c.namespace(t)
			c.web(t, ns, "w1")
			c.web(t, ns, "w2")
			s := c.service(t, ns, "s", "w", func(s *corev1.ServiceSpec) { s.Type, s.SessionAffinity = typ, affinity })
			ask = url(s.Spec.ClusterIP, 80)
			if typ == corev1.ServiceTypeNodePort {
				ask = url(node(t, c), s.Spec.Ports[0].NodePort)
			}
			return ns, many(ask)
		}
		live(words+"have session affinity work for "+where+" [LinuxOnly]", func(t *testing.T, c *cluster) {
			ns, ask := begin(t, c, corev1.ServiceAffinityClientIP)
			c.asks(t, ns, "", ask, `w[12]\s*`)
		})
		live(words+"be able to switch session affinity for "+where+" [LinuxOnly]", func(t *testing.T, c *cluster) {
			ns, ask := begin(t, c, corev1.ServiceAffinityNone)
			c.asks(t, ns, "", ask, `w1 w2\s*`)
			set(t, c, ns, func(s *corev1.ServiceSpec) { s.SessionAffinity = corev1.ServiceAffinityClientIP })
			await.Nil(t, patience, "the affinity works", func() error {
				p := spec(t, sh(ask, ""))
				p.Name, p.GenerateName = "", "asks-"
				made := c.pod(t, ns, p)
				c.until(t, ns, made.Name, "the answers", ended)
				log, err := c.log(t.Context(), ns, made.Name, "c0")
				if err == nil && !matches(`w[12]\s*`, log) {
					err = fmt.Errorf("the answers are %q", log)
				}
				return err
			})
		})
	}
	slices2 := func(t *testing.T, c *cluster, ports bool) {
		ns := c.namespace(t)
		s := c.service(t, ns, "s", "w", func(s *corev1.ServiceSpec) {
			s.Selector = nil
			if ports {
				s.Ports = append(s.Ports, *s.Ports[0].DeepCopy())
				s.Ports[1].Name, s.Ports[1].Port = "second", 81
			}
		})
		for i, name := range []string{"w1", "w2"} {
			p := c.web(t, ns, name)
			port := "web"
			if ports && i == 1 {
				port = "second"
			}
			_, err := c.DiscoveryV1().EndpointSlices(ns).Create(t.Context(), &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
				AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: new(port), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}},
				Endpoints: []discoveryv1.Endpoint{{Addresses: []string{p.Status.PodIP}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}}}}, metav1.CreateOptions{})
			ok(t, err)
		}
		if !ports {
			c.asks(t, ns, "", "until [ \"$("+many(url(s.Spec.ClusterIP, 80))+")\" = 'w1 w2 ' ]; do sleep 1; done; echo both", "both")
			return
		}
		c.asks(t, ns, "", url(s.Spec.ClusterIP, 80), "w1")
		c.asks(t, ns, "", url(s.Spec.ClusterIP, 81), "w2")
	}
	live("[sig-network] EndpointSlice should support a Service with multiple endpoint IPs specified in multiple EndpointSlices", func(t *testing.T, c *cluster) { slices2(t, c, false) })
	live("[sig-network] EndpointSlice should support a Service with multiple ports specified in multiple EndpointSlices", func(t *testing.T, c *cluster) { slices2(t, c, true) })
}
