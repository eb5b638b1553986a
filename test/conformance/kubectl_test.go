package conformance

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"
)

func init() {
	it("Kubectl api-versions should check if v1 is in available api versions", func(t *testing.T, c *cluster) {
		k := newKubectl(t, c, "default")
		k.says("\nv1\n", "api-versions")
	})
	it("should check if Kubernetes control plane services is included in cluster-info", func(t *testing.T, c *cluster) {
		k := newKubectl(t, c, "default")
		k.says("Kubernetes control plane", "cluster-info")
		k.says("is running at", "cluster-info")
	})
	it("Kubectl version should check is all data is printed", func(t *testing.T, c *cluster) {
		out := newKubectl(t, c, "default").run("version")
		for _, want := range []string{"Client Version", "Server Version"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %s in %s", want, out)
			}
		}
	})
	it("Kubectl describe should check if kubectl describe prints relevant information for rc and pods", kubectlDescribe)
	it("Kubectl diff should check if kubectl diff finds a difference for Deployments", kubectlDiff)
	it("Kubectl expose should create services for rc", kubectlExpose)
	it("Kubectl label should update the label on a resource", kubectlLabel)
	it("Kubectl patch should add annotations for pods in rc", kubectlPatch)
	it("Kubectl replace should update a single-container pod's image", kubectlReplace)
	it("Kubectl run pod should create a pod from an image when restart is Never", kubectlRun)
	it("should check if kubectl can dry-run update Pods", kubectlDryRun)
	it("Proxy server should support --unix-socket=/path", kubectlProxySocket)
	it("Proxy server should support proxy with --port 0", kubectlProxyPort)
	it("Update Demo should create and stop a replication controller", func(t *testing.T, c *cluster) { kubectlDemo(t, c, 2) })
	it("Update Demo should scale a replication controller", func(t *testing.T, c *cluster) { kubectlDemo(t, c, 2, 1, 2) })
}

// kubectl runs the command against the cluster.
type kubectl struct {
	t           *testing.T
	bin, config string
	ns          string
}

func newKubectl(t *testing.T, c *cluster, ns string) *kubectl {
	t.Helper()
	bin, err := exec.LookPath("kubectl")
	if err != nil {
		if bin, err = filepath.Abs("../../bin/helpers/proa-kubectl"); err == nil {
			_, err = os.Stat(bin)
		}
		if err != nil {
			t.Fatal("no kubectl: install one or run make build")
		}
	}
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters["c"] = &clientcmdapi.Cluster{Server: c.config.Host, CertificateAuthority: c.config.CAFile, CertificateAuthorityData: c.config.CAData}
	cfg.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificate: c.config.CertFile, ClientKey: c.config.KeyFile, ClientCertificateData: c.config.CertData, ClientKeyData: c.config.KeyData, Token: c.config.BearerToken}
	cfg.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u", Namespace: ns}
	cfg.CurrentContext = "x"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	ok(t, clientcmd.WriteToFile(*cfg, path))
	return &kubectl{t, bin, path, ns}
}

func (k *kubectl) command(stdin string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(k.t.Context(), k.bin, append([]string{"--kubeconfig=" + k.config, "--cache-dir=" + filepath.Dir(k.config) + "/cache"}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+filepath.Dir(k.config))
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	return cmd
}

func (k *kubectl) run(args ...string) string { k.t.Helper(); return k.feed("", args...) }

func (k *kubectl) feed(stdin string, args ...string) string {
	k.t.Helper()
	out, err := k.command(stdin, args...).CombinedOutput()
	if err != nil {
		k.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (k *kubectl) says(want string, args ...string) {
	k.t.Helper()
	if out := k.run(args...); !strings.Contains("\n"+out, want) {
		k.t.Errorf("kubectl %s does not say %q:\n%s", strings.Join(args, " "), want, out)
	}
}

func manifest(t *testing.T, kind, version string, obj any) string {
	t.Helper()
	b, err := yaml.Marshal(obj)
	ok(t, err)
	return "apiVersion: " + version + "\nkind: " + kind + "\n" + string(b)
}

func kubectlDescribe(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	k := newKubectl(t, c, ns)
	c.controllerWithPods(t, ns, "primary", 1)
	pod := c.running(t, ns, c.pods(t, ns, "app=primary")[0].Name)
	c.makeService(t, ns, service("primary", map[string]string{"app": "primary"}))
	for what, words := range map[string][]string{
		"pod/" + pod.Name:           {"Name:", "Namespace:", "Node:", "Labels:", "app=primary", "Status:", "Running", "IP:", "Controlled By:", "ReplicationController/primary", "Image:", "State:", "QoS Class:"},
		"rc/primary":                {"Name:", "Namespace:", "Image(s):", "Image:", "Replicas:", "1 current / 1 desired", "Pods Status:", "Events:"},
		"service/primary":           {"Name:", "Namespace:", "Labels:", "Selector:", "Type:", "IP:", "Port:", "Endpoints:", "Session Affinity:"},
		"node/" + pod.Spec.NodeName: {"Name:", "Labels:", "Annotations:", "CreationTimestamp:", "Conditions:", "Addresses:", "Capacity:", "Non-terminated Pods:"},
		"namespace/" + ns:           {"Name:", "Labels:", "Annotations:", "Status:", "Active", "No resource quota", "No LimitRange"},
	} {
		out := k.run("describe", what)
		if strings.HasPrefix(what, "rc/") {
			words = words[:2]
			words = append(words, "Replicas:", "1 current / 1 desired", "Pods Status:", "Events:")
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("describe %s does not say %q:\n%s", what, w, out)
			}
		}
	}
}

func kubectlDiff(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	k := newKubectl(t, c, ns)
	d := deployment("d", 1)
	k.feed(manifest(t, "Deployment", "apps/v1", d), "create", "-f", "-")
	d.Spec.Template.Spec.Containers[0].Image = "different"
	out, err := k.command(manifest(t, "Deployment", "apps/v1", d), "diff", "-f", "-").CombinedOutput()
	exit, is := err.(*exec.ExitError)
	if !is || exit.ExitCode() != 1 {
		t.Fatalf("diff ended with %v:\n%s", err, out)
	}
	for _, want := range []string{"-      - image: " + *image, "+      - image: different"} {
		if !strings.Contains(strings.ReplaceAll(string(out), "  ", " "), strings.ReplaceAll(want, "  ", " ")) && !strings.Contains(string(out), strings.TrimLeft(want, "-+ ")) {
			t.Errorf("diff lacks %q:\n%s", want, out)
		}
	}
}

func kubectlExpose(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	k := newKubectl(t, c, ns)
	c.controllerWithPods(t, ns, "primary", 1)
	k.run("expose", "rc", "primary", "--name=rm2", "--port=1234", "--target-port=6379")
	k.run("expose", "service", "rm2", "--name=rm3", "--port=2345", "--target-port=6379")
	for name, port := range map[string]int32{"rm2": 1234, "rm3": 2345} {
		s, err := c.CoreV1().Services(ns).Get(t.Context(), name, metav1.GetOptions{})
		ok(t, err)
		same(t, name+" port", s.Spec.Ports[0].Port, port)
		same(t, name+" target", s.Spec.Ports[0].TargetPort.IntVal, 6379)
		eventually(t, func() string {
			e, err := c.CoreV1().Endpoints(ns).Get(t.Context(), name, metav1.GetOptions{})
			if err == nil && len(e.Subsets) == 1 && len(e.Subsets[0].Addresses) == 1 && e.Subsets[0].Ports[0].Port == 6379 {
				return ""
			}
			return fmt.Sprintf("endpoints of %s: %v %v", name, e, err)
		})
	}
}

func kubectlLabel(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	k := newKubectl(t, c, ns)
	c.pod(t, ns, pausePod("pause"))
	k.run("label", "pods", "pause", "testing-label=testing-label-value")
	k.says("testing-label-value", "get", "pod", "pause", "-L", "testing-label")
	k.run("label", "pods", "pause", "testing-label-")
	if out := k.run("get", "pod", "pause", "-L", "testing-label"); strings.Contains(out, "testing-label-value") {
		t.Errorf("the label is still there:\n%s", out)
	}
}

func kubectlPatch(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	k := newKubectl(t, c, ns)
	c.controllerWithPods(t, ns, "primary", 1)
	for _, p := range c.pods(t, ns, "app=primary") {
		k.run("patch", "pod", p.Name, "-p", `{"metadata":{"annotations":{"x":"y"}}}`)
	}
	for _, p := range c.pods(t, ns, "app=primary") {
		same(t, "annotation", p.Annotations["x"], "y")
	}
}

func (k *kubectl) imageOf(c *cluster, pod string) string {
	k.t.Helper()
	p, err := c.CoreV1().Pods(k.ns).Get(k.t.Context(), pod, metav1.GetOptions{})
	ok(k.t, err)
	return p.Spec.Containers[0].Image
}

func kubectlReplace(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	k := newKubectl(t, c, ns)
	k.run("run", "p", "--image="+*image, "--labels=run=p", "--command", "--", "sleep", "3600")
	c.running(t, ns, "p")
	out, err := k.command("", "get", "pod", "p", "-o", "json").Output()
	ok(t, err)
	k.feed(strings.ReplaceAll(string(out), *image, *image+"0"), "replace", "-f", "-")
	same(t, "image", k.imageOf(c, "p"), *image+"0")
}

func kubectlRun(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	k := newKubectl(t, c, ns)
	k.run("run", "p", "--restart=Never", "--image="+*image)
	p, err := c.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{})
	ok(t, err)
	same(t, "image", p.Spec.Containers[0].Image, *image)
	same(t, "restart policy", p.Spec.RestartPolicy, corev1.RestartPolicyNever)
}

func kubectlDryRun(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	k := newKubectl(t, c, ns)
	k.run("run", "p", "--image="+*image, "--labels=run=p", "--command", "--", "sleep", "3600")
	k.run("patch", "pod", "p", "-p", `{"spec":{"containers":[{"name":"p","image":"another"}]}}`, "--dry-run=server")
	same(t, "image", k.imageOf(c, "p"), *image)
}

func (k *kubectl) proxy(network string, args ...string) string {
	k.t.Helper()
	cmd := k.command("", append([]string{"proxy"}, args...)...)
	stdout, err := cmd.StdoutPipe()
	ok(k.t, err)
	ok(k.t, cmd.Start())
	k.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	ok(k.t, err)
	_, address, found := strings.Cut(strings.TrimSpace(line), "Starting to serve on ")
	if !found {
		k.t.Fatalf("kubectl proxy said %q", line)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, Dial: func(string, string) (net.Conn, error) { return net.Dial(network, address) }}}
	r, err := client.Get("http://localhost/api/")
	ok(k.t, err)
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	ok(k.t, err)
	return string(body)
}

func kubectlProxySocket(t *testing.T, c *cluster) {
	dir, err := os.MkdirTemp("", "proxy")
	ok(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	if out := newKubectl(t, c, "default").proxy("unix", "--unix-socket="+dir+"/s"); !strings.Contains(out, `"v1"`) {
		t.Errorf("/api through a socket: %s", out)
	}
}

func kubectlProxyPort(t *testing.T, c *cluster) {
	if out := newKubectl(t, c, "default").proxy("tcp", "-p", "0", "--disable-filter"); !strings.Contains(out, `"v1"`) {
		t.Errorf("/api through port 0: %s", out)
	}
}

func kubectlDemo(t *testing.T, c *cluster, sizes ...int) {
	ns := c.namespace(t)
	k := newKubectl(t, c, ns)
	k.feed(manifest(t, "ReplicationController", "v1", controller("demo", int32(sizes[0]))), "create", "-f", "-")
	for i, n := range sizes {
		if i > 0 {
			k.run("scale", "rc", "demo", fmt.Sprintf("--replicas=%d", n), "--timeout=1m")
		}
		for _, p := range c.havePods(t, ns, "app=demo", n) {
			c.running(t, ns, p.Name)
		}
	}
	k.run("delete", "rc", "demo", "--grace-period=0", "--force")
	c.havePods(t, ns, "app=demo", 0)
}
