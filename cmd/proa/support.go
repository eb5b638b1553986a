package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"proa.dev/cluster"
	"proa.dev/cluster/kubeconfig"
	"proa.dev/cluster/pki"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/network"
	"proa.dev/proxy"
	"proa.dev/view"
)

// nodeTransport reaches the agents' HTTPS ports by the addresses in the view.
type nodeTransport struct {
	view *view.View
	tls  *tls.Config

	mu    sync.Mutex
	nodes map[string]*http.Transport // by node name
	pods  *http.Transport
}

// RoundTripperFor implements apiserver.NodeTransport.
func (t *nodeTransport) RoundTripperFor(name string) (http.RoundTripper, *url.URL, error) {
	n := view.Get[*corev1.Node](t.view.Snapshot(), kind.Node, "", name)
	if n == nil {
		return nil, nil, fmt.Errorf("reach node %q: it is not registered", name)
	}
	host := ""
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			host = a.Address
			break
		}
	}
	port := n.Status.DaemonEndpoints.KubeletEndpoint.Port
	if host == "" || port == 0 {
		return nil, nil, fmt.Errorf("reach node %q: it has not reported an address and a port yet", name)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	tr := t.nodes[name]
	if tr == nil {
		// Agents of one machine have no name that others resolve: the certificate is
		// checked against the node's own name, wherever it is reached.
		cfg := t.tls.Clone()
		cfg.ServerName = name
		tr = &http.Transport{TLSClientConfig: cfg, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second, ForceAttemptHTTP2: false}
		if t.nodes == nil {
			t.nodes = map[string]*http.Transport{}
		}
		t.nodes[name] = tr
	}
	return tr, &url.URL{Scheme: "https", Host: net.JoinHostPort(host, strconv.Itoa(int(port)))}, nil
}

// PodTransport implements apiserver.NodeTransport.
func (t *nodeTransport) PodTransport() http.RoundTripper {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pods == nil {
		t.pods = &http.Transport{DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // proxied pods serve certificates of their own, as upstream's proxy accepts them
	}
	return t.pods
}

func query(s string) string { return url.QueryEscape(s) }

// deleteServiceRules removes the service proxy's table of a cluster that does not
// run.
func deleteServiceRules(cl cluster.Cluster) error {
	k, err := proxy.OpenKernel(proxy.KernelConfig{Table: network.ServiceTable(cl.Name), PodLinks: "proa"})
	if err != nil {
		return err
	}
	defer k.Close()
	return k.Delete()
}

// hostPrefixes are this machine's own addresses.
func hostPrefixes() []netip.Prefix {
	var out []netip.Prefix
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
		}
	}
	return out
}

// unmountBelow takes away every mount in dir, the newest first: volumes of pods
// that are gone.
func unmountBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("find mounts below %q: %w", dir, err)
	}
	rows := strings.Split(strings.TrimSpace(string(data)), "\n")
	for i := len(rows) - 1; i >= 0; i-- {
		f := strings.Fields(rows[i])
		if len(f) < 5 {
			continue
		}
		at := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[4])
		if !strings.HasPrefix(at, dir+"/") {
			continue
		}
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("unmount %q: %w", at, err)
		}
	}
	return nil
}

// adminEntry reads the administrator's credentials of a running cluster.
func adminEntry(cl cluster.Cluster, card cluster.Card) (kubeconfig.Entry, error) {
	cert, err := os.ReadFile(cl.Path("pki", "admin.crt"))
	if err != nil {
		return kubeconfig.Entry{}, fmt.Errorf("read the administrator's certificate: %w; `proa up` writes it", err)
	}
	key, err := os.ReadFile(cl.Path("pki", "admin.key"))
	if err != nil {
		return kubeconfig.Entry{}, fmt.Errorf("read the administrator's key: %w; `proa up` writes it", err)
	}
	ca, err := os.ReadFile(cl.Path("pki", "ca.crt"))
	if err != nil {
		return kubeconfig.Entry{}, fmt.Errorf("read the cluster's certificate: %w", err)
	}
	return kubeconfig.Entry{Name: kubeconfig.ContextName(cl.Name), Server: fmt.Sprintf("https://127.0.0.1:%d", card.APIPort), CA: ca, ClientCert: cert, ClientKey: key}, nil
}

// writeAdminKubeconfig issues the administrator's certificate (a new one at every
// start) and writes the cluster's own kubeconfig, readable by root only.
func (s *server) writeAdminKubeconfig() error {
	c, err := s.ca.Issue(pki.Names{CommonName: "kubernetes-admin", Organizations: []string{"system:masters"}, Client: true}, pki.AdminLife)
	if err != nil {
		return err
	}
	cert, key, err := pki.EncodePair(c)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"admin.crt": cert, "admin.key": key} {
		if err := os.WriteFile(s.cl.Path("pki", name), data, 0o600); err != nil {
			return fmt.Errorf("write the administrator's credentials: %w", err)
		}
	}
	entry, err := adminEntry(s.cl, s.card)
	if err != nil {
		return err
	}
	s.adminRenewal = pki.RenewAt(c.Leaf)
	return kubeconfig.Merge(s.cl.Path("admin.kubeconfig"), kubeconfig.Owner{UID: os.Geteuid(), GID: os.Getegid()}, entry)
}

// renewAdmin replaces the administrator's credentials at two thirds of their life,
// here and in the person's own kubeconfig. It looks once an hour, so that a clock
// that jumps is noticed.
func (s *server) renewAdmin(ctx context.Context) error {
	for env.Sleep(ctx, s.clock, time.Hour) {
		if s.clock.Now().Before(s.adminRenewal) {
			continue
		}
		if err := s.renewAdminNow(); err != nil {
			s.log.Error("the administrator's credentials are not renewed; `proa up` does it", "error", err)
		}
	}
	return nil
}

func (s *server) renewAdminNow() error {
	if err := s.writeAdminKubeconfig(); err != nil {
		return err
	}
	card, err := s.cl.Load() // up writes into it whose file it is
	if err != nil || card.Kubeconfig == "" {
		return err
	}
	entry, err := adminEntry(s.cl, card)
	if err != nil {
		return err
	}
	return kubeconfig.Renew(card.Kubeconfig, kubeconfig.Owner{UID: card.KubeconfigUID, GID: card.KubeconfigGID, Home: card.KubeconfigUserHome}, entry)
}
