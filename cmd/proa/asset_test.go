package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"proa.dev/cluster/pki"
	"proa.dev/internal/await"
)

// The test's own executable is kube-apiserver and etcd when it is called so.
func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); assets[name] != nil {
		os.Exit(runAsset(name, assets[name]))
	}
	os.Exit(m.Run())
}

// lab is a directory as envtest of controller-runtime makes it, with its argument
// vectors.
type lab struct {
	t         *testing.T
	bin, dir  string
	etcd, api string // URLs
	ca        *pki.Authority
}

func newLab(t *testing.T) *lab {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	l := &lab{t: t, dir: t.TempDir()}
	l.bin, err = linkAssets(t.TempDir(), self)
	must(t, err)
	l.etcd, l.api = "http://"+freePort(t), "https://"+freePort(t)
	l.ca, err = pki.New(time.Now)
	must(t, err)
	serving, err := l.ca.Issue(pki.Names{CommonName: "apiserver", Server: true, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}, time.Hour)
	must(t, err)
	cert, key, err := pki.EncodePair(serving)
	must(t, err)
	l.write("apiserver.crt", cert)
	l.write("apiserver.key", key)
	l.write("client-cert-auth-ca.crt", l.ca.PEM())
	// The signer of tokens is an RSA key with a certificate.
	sa, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	der, err := l.ca.Sign(&sa.PublicKey, pki.Names{CommonName: "sa-signer"}, time.Hour)
	must(t, err)
	l.write("sa-signer.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	l.write("sa-signer.key", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(sa)}))
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

func (l *lab) write(name string, data []byte) {
	l.t.Helper()
	must(l.t, os.WriteFile(filepath.Join(l.dir, name), data, 0o600))
}

func (l *lab) etcdArgs(data string) []string {
	peer := "http://" + freePort(l.t)
	return []string{"--advertise-client-urls=" + l.etcd, "--data-dir=" + data, "--listen-client-urls=" + l.etcd, "--listen-peer-urls=" + peer, "--unsafe-no-fsync=true"}
}

func (l *lab) apiArgs(more ...string) []string {
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(l.api, "https://"))
	return append([]string{"--allow-privileged=true", "--authorization-mode=RBAC", "--bind-address=127.0.0.1", "--cert-dir=" + l.dir,
		"--client-ca-file=" + l.dir + "/client-cert-auth-ca.crt", "--disable-admission-plugins=ServiceAccount", "--etcd-servers=" + l.etcd, "--secure-port=" + port,
		"--service-account-issuer=" + l.api + "/", "--service-account-key-file=" + l.dir + "/sa-signer.crt", "--service-account-signing-key-file=" + l.dir + "/sa-signer.key",
		"--service-cluster-ip-range=10.0.0.0/24"}, more...)
}

// start runs a program and waits until a URL answers 200.
func (l *lab) start(name, url string, args ...string) (stop func()) {
	l.t.Helper()
	c := exec.Command(filepath.Join(l.bin, name), args...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	began := time.Now()
	must(l.t, c.Start())
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	done := false
	stop = func() {
		if done {
			return
		}
		done = true
		began := time.Now()
		c.Process.Signal(unix.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				l.t.Errorf("%s: %v\n%s", name, err, out.String())
			}
		case <-time.After(10 * time.Second):
			c.Process.Kill()
			<-ended
			l.t.Errorf("%s did not end on SIGTERM\n%s", name, out.String())
		}
		l.t.Logf("%s ended in %v", name, time.Since(began))
	}
	l.t.Cleanup(stop)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: l.ca.Pool()}, DisableKeepAlives: true}}
	await.Nil(l.t, 20*time.Second, name+" is ready", func() error {
		select {
		case err := <-ended:
			done = true
			l.t.Fatalf("%s ended: %v\n%s", name, err, out.String())
		default:
		}
		res, err := client.Get(url)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out.String())
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != 200 {
			return fmt.Errorf("%s\n%s", res.Status, out.String())
		}
		return nil
	})
	l.t.Logf("%s was ready in %v", name, time.Since(began))
	return stop
}

func (l *lab) client(name string, groups ...string) *kubernetes.Clientset {
	l.t.Helper()
	pair, err := l.ca.Issue(pki.Names{CommonName: name, Organizations: groups, Client: true}, time.Hour)
	must(l.t, err)
	cert, key, err := pki.EncodePair(pair)
	must(l.t, err)
	cs, err := kubernetes.NewForConfig(&rest.Config{Host: l.api, QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAData: l.ca.PEM(), CertData: cert, KeyData: key}})
	must(l.t, err)
	return cs
}

// The recorded argument vectors (contract of envtest): anonymous health, the
// administrator, no controllers, tokens by an RSA key, data that survives a restart
// of the API server and not a new etcd.
func TestEnvtestVectors(t *testing.T) {
	l := newLab(t)
	stopEtcd := l.start("etcd", l.etcd+"/health", l.etcdArgs(filepath.Join(l.dir, "etcd-1"))...)
	stopAPI := l.start("kube-apiserver", l.api+"/healthz", l.apiArgs("--feature-gates=NoSuchGate=true,AggregatedDiscoveryEndpoint=false", "--runtime-config=api/all=true",
		"--enable-admission-plugins=MutatingAdmissionPolicy", "--max-requests-inflight=100", "--max-mutating-requests-inflight=50", "-v=2")...)
	admin := l.client("admin", "system:masters")
	_, err := admin.CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{})
	must(t, err)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	made, err := admin.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{})
	must(t, err)
	if made.Spec.ServiceAccountName != "" || len(made.Spec.Volumes) > 0 {
		t.Errorf("admission of service accounts is on: %+v", made.Spec)
	}
	if _, err := l.client("nobody").CoreV1().Pods("default").Get(t.Context(), "p", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("nobody: %v", err)
	}
	sa, err := admin.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "bot"}}, metav1.CreateOptions{})
	must(t, err)
	token := func() string {
		out, err := exec.Command(filepath.Join(l.bin, "kube-apiserver"), "--version").Output()
		if err != nil || !strings.HasPrefix(string(out), "Kubernetes v1.") {
			t.Errorf("version: %s, %v", out, err)
		}
		tr, err := admin.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), sa.Name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
		must(t, err)
		return tr.Status.Token
	}()
	bot := func() error {
		cs, err := kubernetes.NewForConfig(&rest.Config{Host: l.api, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: l.ca.PEM()}})
		must(t, err)
		_, err = cs.CoreV1().Pods("default").Get(t.Context(), "p", metav1.GetOptions{})
		return err
	}
	if err := bot(); !apierrors.IsForbidden(err) {
		t.Errorf("the bot: %v", err)
	}

	// A restart of the API server alone keeps everything.
	stopAPI()
	stopAPI = l.start("kube-apiserver", l.api+"/healthz", l.apiArgs("--controllers=garbagecollector,namespace,serviceaccount")...)
	if again, err := admin.CoreV1().Pods("default").Get(t.Context(), "p", metav1.GetOptions{}); err != nil || again.UID != made.UID {
		t.Errorf("after a restart: %v, %v", again, err)
	}
	if err := bot(); !apierrors.IsForbidden(err) {
		t.Errorf("the bot after a restart: %v", err)
	}
	// The chosen controllers run.
	_, err = admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{})
	must(t, err)
	await.True(t, 10*time.Second, "a service account in shop", func() bool {
		_, err := admin.CoreV1().ServiceAccounts("shop").Get(t.Context(), "default", metav1.GetOptions{})
		return err == nil
	})
	must(t, admin.CoreV1().Namespaces().Delete(t.Context(), "shop", metav1.DeleteOptions{}))
	await.True(t, 10*time.Second, "shop to go", func() bool {
		_, err := admin.CoreV1().Namespaces().Get(t.Context(), "shop", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	stopAPI()
	stopEtcd()

	// Another etcd folder is another, empty cluster on the same ports.
	l.start("etcd", l.etcd+"/health", l.etcdArgs(filepath.Join(l.dir, "etcd-2"))...)
	l.start("kube-apiserver", l.api+"/healthz", l.apiArgs()...)
	if _, err := admin.CoreV1().Pods("default").Get(t.Context(), "p", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("in a new etcd: %v", err)
	}
}

// What is wrong is said, with the flag's name.
func TestWrongFlags(t *testing.T) {
	l := newLab(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--no-such-flag"}, "unknown flag: --no-such-flag"},
		{[]string{"--insecure-port=0"}, "unknown flag: --insecure-port"},
		{[]string{"stray"}, `"stray" is not a flag`},
		{[]string{"--service-account-signing-endpoint=/x"}, "signing by another process is not there"},
		{[]string{"--etcd-servers="}, "flag --etcd-servers"},
		{[]string{"--etcd-servers=memory", "--authorization-mode=ABAC", "--secure-port=0", "--cert-dir=" + l.dir}, "ABAC"},
		{[]string{"--etcd-servers=memory", "--disable-admission-plugins=Nonsense", "--secure-port=0", "--cert-dir=" + l.dir}, "Nonsense"},
		{[]string{"--etcd-servers=memory", "--client-ca-file=/none"}, "flag --client-ca-file"},
		{[]string{"--etcd-servers=memory", "--service-cluster-ip-range=fd00::/108"}, "no IPv4 network"},
	} {
		out, err := exec.Command(filepath.Join(l.bin, "kube-apiserver"), c.args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%q: %v, %s, want %q", c.args, err, out, c.want)
		}
	}
	for name, listed := range map[string]map[string]bool{
		"kube-apiserver": {"insecure-port": false, "etcd-servers": true, "secure-port": true},
		"etcd":           {"unsafe-no-fsync": true, "data-dir": true},
	} {
		out, err := exec.Command(filepath.Join(l.bin, name), "--help").Output()
		must(t, err)
		for flag, want := range listed {
			if have := regexp.MustCompile(`(?m)^\s*--` + flag + `\b`).Match(out); have != want {
				t.Errorf("%s --help lists --%s: %v", name, flag, have)
			}
		}
	}
}

// In memory no etcd is needed; without a certificate one is made and kept.
func TestMemory(t *testing.T) {
	l := newLab(t)
	own := filepath.Join(l.dir, "own")
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(l.api, "https://"))
	args := []string{"--etcd-servers=memory", "--secure-port=" + port, "--cert-dir=" + own, "--bind-address=127.0.0.1", "--authorization-mode=Node,RBAC"}
	c := exec.Command(filepath.Join(l.bin, "kube-apiserver"), args...)
	var out bytes.Buffer
	c.Stderr = &out
	must(t, c.Start())
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	var pool *x509.CertPool
	await.True(t, 10*time.Second, "the certificate", func() bool {
		data, err := os.ReadFile(filepath.Join(own, "apiserver.crt"))
		pool = x509.NewCertPool()
		return err == nil && pool.AppendCertsFromPEM(data)
	})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	await.True(t, 10*time.Second, "health "+out.String(), func() bool {
		res, err := client.Get(l.api + "/readyz")
		if err == nil {
			res.Body.Close()
		}
		return err == nil && res.StatusCode == 200
	})
}

// What was started ends when who started it is killed.
func TestEndsWithItsParent(t *testing.T) {
	l := newLab(t)
	data := filepath.Join(l.dir, "etcd")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	script := fmt.Sprintf("'%s' '%s' >/dev/null 2>&1 & echo $!; wait", filepath.Join(l.bin, "etcd"), strings.Join(l.etcdArgs(data), "' '"))
	sh := exec.CommandContext(ctx, "sh", "-c", script)
	out, err := sh.StdoutPipe()
	must(t, err)
	must(t, sh.Start())
	line := make([]byte, 32)
	n, err := out.Read(line)
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
	must(t, err)
	await.True(t, 10*time.Second, "etcd", func() bool {
		res, err := http.Get(l.etcd + "/health")
		if err == nil {
			res.Body.Close()
		}
		return err == nil
	})
	must(t, sh.Process.Kill())
	sh.Wait()
	await.True(t, 10*time.Second, "etcd to end", func() bool {
		// A child of nobody is collected by whoever adopts; a zombie has ended too.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}
