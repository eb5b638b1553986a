package machine

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"proa.dev/internal/await"
)

// Every way to a Service, and the names that DNS gives.
func TestServices(t *testing.T) {
	t.Parallel()
	b := cluster(t)
	ns := b.namespace(t)
	b.apply(t, ns, `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "proa/web:v1", readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {sessionAffinity: ClientIP, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 18080, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: web.`+ns+`.svc.cluster.local}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: "proa/busybox:1", command: [sleep, "10000"]}]}
`)
	k := func(args ...string) string { t.Helper(); return strings.TrimSpace(b.kubectl(t, ns, args...)) }
	k("rollout", "status", "deployment/web", "--timeout=90s")
	b.waitReady(t, ns, "client")
	sh := func(script string) string {
		return b.tryKubectl(ns, "exec", "client", "--", "sh", "-c", script+" 2>&1").out
	}
	ip := k("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	node := k("get", "nodes", "-o", `jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}`)
	port := k("get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}")

	// From the host, all pods get their share.
	seen := map[string]int{}
	await.Nil(t, 20*time.Second, "all three pods behind the service", func() error {
		a, err := get("http://" + ip)
		if err != nil {
			return err
		}
		if seen[a.Pod]++; len(seen) < 3 {
			return fmt.Errorf("answers of %v", seen)
		}
		return nil
	})
	for _, url := range []string{"http://" + net.JoinHostPort(node, port), "http://127.0.0.1:" + port} {
		if _, err := get(url); err != nil && !strings.Contains(url, "127.0.0.1") {
			t.Errorf("%s: %v", url, err)
		}
	}
	// A load balancer's address is there at once, and works.
	await.Nil(t, 10*time.Second, "the load balancer's address", func() error {
		lb := k("get", "service", "outside", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
		if lb == "" {
			return fmt.Errorf("none yet")
		}
		_, err := get("http://" + net.JoinHostPort(lb, "18080"))
		return err
	})
	// Affinity: the same pod each time.
	sticky := k("get", "service", "sticky", "-o", "jsonpath={.spec.clusterIP}")
	first, err := get("http://" + sticky)
	if err != nil {
		t.Error(err)
	}
	for range 20 {
		if a, err := get("http://" + sticky); err != nil || a.Pod != first.Pod {
			t.Errorf("session affinity: pod %q, before %q, %v", a.Pod, first.Pod, err)
			break
		}
	}
	// Nobody there: refused at once.
	nobody := k("get", "service", "nobody", "-o", "jsonpath={.spec.clusterIP}")
	if c, err := net.DialTimeout("tcp", nobody+":80", 2*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a service without endpoints: %v, %v", c, err)
	}

	// From a pod, by every name.
	domain := ns + ".svc.cluster.local"
	for _, name := range []string{"web", "web." + ns, "web." + ns + ".svc", "web." + domain, "elsewhere", ip} {
		if out := sh("web get http://" + name + "/"); !strings.Contains(out, `"version":"v1"`) {
			t.Errorf("from a pod: %s: %s", name, out)
		}
	}
	if out := sh("web get http://" + net.JoinHostPort(node, port) + "/"); !strings.Contains(out, `"version":"v1"`) {
		t.Errorf("a node port from a pod: %s", out)
	}
	mustHold(t, sh("nslookup web."+domain), ip)
	pods := strings.Fields(k("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"))
	mustHold(t, sh("nslookup headless."+domain), pods...)
	mustHold(t, sh("nslookup -type=srv _http._tcp.headless."+domain), "8080")
	mustHold(t, sh("nslookup -type=srv _http._tcp.web."+domain), "80", "web."+domain)
	mustHold(t, sh("nslookup "+ip), "web."+domain)
	mustHold(t, sh("nslookup kubernetes.default.svc.cluster.local"), k("get", "service", "kubernetes", "-n", "default", "-o", "jsonpath={.spec.clusterIP}"))
	if out := sh("nslookup nothing." + domain); !strings.Contains(out, "NXDOMAIN") {
		t.Errorf("a name that is not there: %s", out)
	}
	mustHold(t, sh("cat /etc/resolv.conf"), "search "+ns+".svc.cluster.local svc.cluster.local cluster.local", "ndots:5", "nameserver ")

	// Hairpin: a pod reaches itself through its own service.
	b.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: alone, labels: {app: alone}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: "proa/web:v2"}
  - {name: sh, image: "proa/busybox:1", command: [sleep, "10000"]}
---
apiVersion: v1
kind: Service
metadata: {name: mirror}
spec: {selector: {app: alone}, ports: [{port: 80, targetPort: 8080}]}
`)
	b.waitReady(t, ns, "alone")
	await.Nil(t, 20*time.Second, "a pod that reaches itself", func() error {
		out := b.tryKubectl(ns, "exec", "alone", "-c", "sh", "--", "web", "get", "http://mirror/")
		if !strings.Contains(out.out, `"pod":"alone"`) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}

// A pod speaks to the API with its own token and may what its account may.
func TestTokenInPod(t *testing.T) {
	t.Parallel()
	b := cluster(t)
	ns := b.namespace(t)
	b.kubectl(t, ns, "create", "serviceaccount", "reader")
	b.kubectl(t, ns, "create", "role", "reader", "--verb=get,list", "--resource=pods")
	b.kubectl(t, ns, "create", "rolebinding", "reader", "--role=reader", "--serviceaccount="+ns+":reader")
	b.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 1
  serviceAccountName: reader
  containers: [{name: c, image: "proa/busybox:1", command: [sleep, "10000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: none}
spec:
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  containers: [{name: c, image: "proa/busybox:1", command: [sleep, "10000"]}]
`)
	b.waitReady(t, ns, "p")
	b.waitReady(t, ns, "none")
	token := b.exec(t, ns, "p", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token")
	cfg := b.rest(t)
	get := func(path, token string) (int, string) {
		r := command(nil, "", nil, "curl", "-sk", "-m", "10", "-w", "%{http_code}", "-H", "Authorization: Bearer "+token, cfg.Host+path)
		if len(r.out) < 3 {
			t.Fatal(r)
		}
		return len(r.out), r.out[len(r.out)-3:]
	}
	if _, code := get("/api/v1/namespaces/"+ns+"/pods", token); code != "200" {
		t.Errorf("list of pods with the pod's token: %s", code)
	}
	for path, want := range map[string]string{"/api/v1/namespaces/" + ns + "/secrets": "403", "/api/v1/namespaces/default/pods": "403", "/api/v1/nodes": "403"} {
		if _, code := get(path, token); code != want {
			t.Errorf("%s with the pod's token: %s, want %s", path, code, want)
		}
	}
	if _, code := get("/api/v1/namespaces/"+ns+"/pods", token[:len(token)-8]+"AAAAAAAA"); code != "401" {
		t.Errorf("a forged token: %s", code)
	}
	if _, code := get("/api/v1/namespaces/"+ns+"/pods", ""); code != "401" && code != "403" {
		t.Errorf("nobody: %s", code)
	}
	if r := b.tryKubectl(ns, "exec", "none", "--", "ls", "/var/run/secrets"); r.code == 0 {
		t.Errorf("a pod that wants no token has one: %s", r)
	}
	// The way there from inside: address and name of the API.
	if out := b.tryKubectl(ns, "exec", "p", "--", "sh", "-c", "nc -w 5 kubernetes.default $KUBERNETES_SERVICE_PORT </dev/null && echo there"); !strings.Contains(out.out, "there") {
		t.Errorf("the API from a pod: %s", out)
	}
	// The pod's end is the token's end.
	b.kubectl(t, ns, "delete", "pod", "p", "--grace-period=1")
	await.Nil(t, 20*time.Second, "the end of a deleted pod's token", func() error {
		if _, code := get("/api/v1/namespaces/"+ns+"/pods", token); code != "401" {
			return fmt.Errorf("%s", code)
		}
		return nil
	})
}

// No one may do anything without a certificate or token but see health and version.
func TestAnonymous(t *testing.T) {
	t.Parallel()
	b := cluster(t)
	host := b.rest(t).Host
	for path, want := range map[string]string{"/livez": "200", "/readyz": "200", "/version": "200", "/api/v1/pods": "401 403", "/metrics": "401 403", "/apis": "401 403"} {
		r := command(nil, "", nil, "curl", "-sk", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", host+path)
		if !strings.Contains(want, r.out) || r.out == "" {
			t.Errorf("%s without credentials: %q, want %s", path, r.out, want)
		}
	}
	port := ""
	for _, f := range strings.Fields(b.kubectl(t, "", "get", "nodes", "-o", "jsonpath={.items[0].status.daemonEndpoints.kubeletEndpoint.Port}")) {
		port = f
	}
	for _, path := range []string{"/pods", "/metrics", "/exec/default/p/c"} {
		r := command(nil, "", nil, "curl", "-sk", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "https://127.0.0.1:"+port+path)
		if r.out != "401" && r.out != "403" {
			t.Errorf("the node's port, %s without credentials: %q", path, r.out)
		}
	}
}
