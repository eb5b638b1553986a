// Package envtest runs a Kubernetes control plane inside a Go test: the real API
// server of proa with its store in memory, in the test's own process, on a port of
// 127.0.0.1. There is nothing to install or to download, and it takes a few
// milliseconds, so that each test can have one of its own.
//
//	func TestReconcile(t *testing.T) {
//		cp := envtest.Start(t, envtest.CRDs("../config/crd/bases"))
//		c, err := client.New(cp.Config, client.Options{})
//		...
//	}
//
// As with the envtest of controller-runtime nothing runs but the API: no
// controllers, no scheduler, no nodes. Deployments make no pods, namespaces that
// are deleted stay Terminating, owned objects stay when their owner goes, unless
// Controllers chooses who does that work. Admission of ServiceAccount is off unless
// the controller for service accounts runs.
//
// What a control plane is: namespaces default, kube-system, kube-public,
// kube-node-lease; the default RBAC policy and priority classes; authentication by
// certificate and by service account token; authorization by Node and RBAC. Config
// is an administrator (system:masters); User makes others.
//
// Control planes share nothing: many may run side by side. Stop ends all of their
// goroutines. The package keeps no state of its own.
package envtest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"proa.dev/apiserver/auth"
	"proa.dev/cluster"
	"proa.dev/cluster/first"
	"proa.dev/cluster/pki"
	"proa.dev/server"
)

// options of one control plane.
type options struct {
	controllers []string
	disable     []string
	enable      []string
	crds        []string
	manifests   []string
	objects     []any
	log         *slog.Logger
}

// Option changes what a control plane is.
type Option func(*options)

// Controllers lets controllers run, in kube-controller-manager's notation:
// "garbagecollector", "namespace", "serviceaccount", "deployment", "job", …, "*"
// for all of them (with "-name" for all but that one). The scheduler is
// "scheduler".
func Controllers(names ...string) Option {
	return func(o *options) { o.controllers = append(o.controllers, names...) }
}

// CRDs installs the CustomResourceDefinitions in YAML or JSON files, or in all
// files of directories, and waits until their kinds are served. Other objects in
// these files are passed over.
func CRDs(paths ...string) Option {
	return func(o *options) { o.crds = append(o.crds, paths...) }
}

// Manifests creates the objects in YAML or JSON files, or in all files of
// directories, after the CRDs.
func Manifests(paths ...string) Option {
	return func(o *options) { o.manifests = append(o.manifests, paths...) }
}

// Objects creates objects, in this order, after the manifests: pointers to typed
// ones (apiVersion and kind are filled in for built-in kinds) or
// *unstructured.Unstructured. CustomResourceDefinitions among them are waited for.
func Objects(objects ...any) Option {
	return func(o *options) { o.objects = append(o.objects, objects...) }
}

// DisableAdmission switches admission plugins off, "*" all that can be.
func DisableAdmission(plugins ...string) Option {
	return func(o *options) { o.disable = append(o.disable, plugins...) }
}

// EnableAdmission switches admission plugins on that are off.
func EnableAdmission(plugins ...string) Option {
	return func(o *options) { o.enable = append(o.enable, plugins...) }
}

// Log is where the control plane says what it does; the default is nowhere.
func Log(l *slog.Logger) Option {
	return func(o *options) { o.log = l }
}

// ControlPlane is a running one.
type ControlPlane struct {
	// Config reaches it as an administrator. It has no limit of requests per second.
	// Copy it (rest.CopyConfig) before changing it.
	Config *rest.Config
	// URL is https://127.0.0.1:PORT.
	URL string

	ca     *pki.Authority
	server *server.Server
	end    context.CancelFunc
	once   sync.Once
	ended  chan struct{}
	err    error // of the run; behind ended
}

// Start runs a control plane until the test ends. Problems end the test.
func Start(t testing.TB, with ...Option) *ControlPlane {
	t.Helper()
	cp, err := Launch(t.Context(), with...)
	if err != nil {
		t.Fatalf("start a control plane: %v", err)
	}
	t.Cleanup(func() {
		if err := cp.Stop(); err != nil {
			t.Errorf("stop the control plane: %v", err)
		}
	})
	return cp
}

// Launch runs a control plane until Stop, for TestMain and programs; ctx bounds the
// start only.
func Launch(ctx context.Context, with ...Option) (*ControlPlane, error) {
	var o options
	for _, w := range with {
		w(&o)
	}
	if o.log == nil {
		o.log = slog.New(slog.DiscardHandler)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen on a port of this machine: %w", err)
	}
	cp := &ControlPlane{URL: "https://" + listener.Addr().String(), ended: make(chan struct{})}
	if err := cp.launch(ctx, listener, &o); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	if err := cp.install(ctx, &o); err != nil {
		return nil, errors.Join(err, cp.Stop())
	}
	return cp, nil
}

func (cp *ControlPlane) launch(ctx context.Context, listener net.Listener, o *options) (err error) {
	if cp.ca, err = pki.New(time.Now); err != nil {
		return err
	}
	serving, err := cp.ca.Issue(pki.Names{CommonName: "kube-apiserver", Server: true,
		DNS: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}, pki.AdminLife)
	if err != nil {
		return err
	}
	if cp.Config, err = cp.User("envtest-admin", auth.Masters); err != nil {
		return err
	}
	if o.controllers == nil {
		o.controllers = []string{}
	}
	disable := o.disable
	if slices.Contains(disable, "*") {
		disable = slices.DeleteFunc(server.AdmissionPlugins(), func(name string) bool { return slices.Contains(o.enable, name) })
	} else if runs, err := server.Runs(o.controllers, "serviceaccount"); err != nil {
		return err
	} else if !runs && !slices.Contains(o.enable, "ServiceAccount") && !slices.Contains(disable, "ServiceAccount") {
		disable = append(slices.Clone(disable), "ServiceAccount")
	}
	at := netip.MustParseAddrPort(listener.Addr().String())
	cp.server, err = server.New(ctx, server.Config{
		Log: o.log, Authority: cp.ca, Services: netip.MustParsePrefix("10.0.0.0/24"), Issuer: cp.URL + "/", Grace: 50 * time.Millisecond,
		First:       first.Config{API: cluster.HostAddress(), APIPort: int32(at.Port()), PublicURL: cp.URL},
		Controllers: o.controllers, DisableAdmission: disable, EnableAdmission: o.enable,
		Listeners: []server.Listener{{Listener: listener, TLS: server.ServingTLS(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &serving, nil })}},
	})
	if err != nil {
		return err
	}
	run, end := context.WithCancel(context.WithoutCancel(ctx))
	cp.end = end
	go func() {
		defer close(cp.ended)
		cp.err = cp.server.Run(run)
	}()
	select {
	case <-cp.server.Ready():
		return nil
	case <-cp.ended:
		end()
		return cp.err
	case <-ctx.Done():
		end()
		<-cp.ended
		return context.Cause(ctx)
	}
}

// User makes the configuration of a person with groups: a client certificate, valid
// for a year. The name may be a service account's or a node's.
func (cp *ControlPlane) User(name string, groups ...string) (*rest.Config, error) {
	c, err := cp.ca.Issue(pki.Names{CommonName: name, Organizations: groups, Client: true}, pki.AdminLife)
	if err != nil {
		return nil, err
	}
	cert, key, err := pki.EncodePair(c)
	if err != nil {
		return nil, err
	}
	return &rest.Config{Host: cp.URL, QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAData: cp.ca.PEM(), CertData: cert, KeyData: key}}, nil
}

// Kubeconfig is the file for kubectl and other programs with the rights of c, which
// is Config or what User made.
func Kubeconfig(c *rest.Config) ([]byte, error) {
	const name = "envtest"
	f := clientcmdapi.NewConfig()
	f.Clusters[name] = &clientcmdapi.Cluster{Server: c.Host, CertificateAuthorityData: c.CAData}
	f.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: c.CertData, ClientKeyData: c.KeyData}
	f.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	f.CurrentContext = name
	return clientcmd.Write(*f)
}

// Stop ends the control plane; all it holds is gone. It may be called again.
func (cp *ControlPlane) Stop() error {
	cp.once.Do(func() {
		cp.end()
		<-cp.ended
	})
	return cp.err
}
