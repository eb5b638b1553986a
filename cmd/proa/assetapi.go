package main

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"proa.dev/apiserver"
	"proa.dev/apiserver/audit"
	"proa.dev/apiserver/auth"
	"proa.dev/apiserver/auth/access"
	"proa.dev/apiserver/auth/oidc"
	"proa.dev/cluster"
	"proa.dev/cluster/first"
	"proa.dev/cluster/pki"
	"proa.dev/env"
	core "proa.dev/server"
	"proa.dev/store"
	"proa.dev/store/etcd"
)

// runAPIServer is kube-apiserver: the server room with kube-apiserver's flags.
func runAPIServer(ctx context.Context, args []string) error {
	t := newFlagTable("kube-apiserver", apiserverFlags)
	t.set.IntP("v", "v", 0, "how much is logged; from 4 on all")
	t.set.Lookup("version").NoOptDefVal = "true"
	t.set.Usage = func() {
		fmt.Printf("kube-apiserver of proa: the Kubernetes API, with the data in an etcd of proa, a real etcd or\nmemory. Flags without effect are accepted; a warning names those that are given.\n\nUsage:\n  kube-apiserver [flags]\n\n%s", t.set.FlagUsages())
	}
	if err := t.parse(args); err != nil {
		return err
	}
	switch {
	case t.is("help"):
		t.set.Usage()
		return pflag.ErrHelp
	case t.str("version") != "false":
		fmt.Println("Kubernetes " + core.KubernetesVersion)
		return nil
	}
	log, level := assetLog(t.int("v") >= 4)
	t.warn(log)
	ctx, cancel := withParent(ctx)
	defer cancel()
	cfg, err := apiserverConfig(ctx, t, log)
	if err != nil {
		return err
	}
	cfg.Level = level
	s, err := core.New(ctx, cfg)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// flagReader collects the first problem of reading flags.
type flagReader struct {
	*flagTable
	err error
}

func (r *flagReader) fail(name string, err error) {
	if r.err == nil && err != nil {
		r.err = fmt.Errorf("flag --%s: %w", name, err)
	}
}

func (r *flagReader) duration(name string) time.Duration {
	d, err := time.ParseDuration(r.str(name))
	r.fail(name, err)
	return d
}

func (r *flagReader) file(name string) []byte {
	if r.str(name) == "" {
		return nil
	}
	data, err := os.ReadFile(r.str(name))
	r.fail(name, err)
	return data
}

// apiserverConfig turns flags into the server's configuration.
func apiserverConfig(ctx context.Context, t *flagTable, log *slog.Logger) (core.Config, error) {
	r := &flagReader{flagTable: t}
	services, err := serviceNetwork(t.list("service-cluster-ip-range"))
	r.fail("service-cluster-ip-range", err)
	portFirst, portEnd, err := portRange(t.str("service-node-port-range"))
	r.fail("service-node-port-range", err)
	ca := r.file("client-ca-file")
	var pool *x509.CertPool
	if ca != nil {
		if pool = x509.NewCertPool(); !pool.AppendCertsFromPEM(ca) {
			r.fail("client-ca-file", fmt.Errorf("no certificate is in %q", t.str("client-ca-file")))
		}
	}
	sign, verify := serviceAccountKeys(r)
	modes := t.list("authorization-mode")
	if len(modes) == 0 && t.str("authorization-config") == "" {
		modes = []string{"AlwaysAllow"}
	}
	anonymous := t.is("anonymous-auth")
	issuers := t.list("service-account-issuer")
	c := core.Config{
		Log: log, Services: services, PortFirst: portFirst, PortEnd: portEnd, ClientCAs: pool, TokenKey: sign, TokenVerifyKeys: verify,
		Audiences: t.list("api-audiences"), Authorization: modes,
		AdmissionFile: t.str("admission-control-config-file"), EnableAdmission: t.list("enable-admission-plugins"), DisableAdmission: t.list("disable-admission-plugins"),
		Controllers: append([]string{}, t.list("controllers")...),
		MaxInFlight: t.int("max-requests-inflight"), MaxMutatingInFlight: t.int("max-mutating-requests-inflight"),
		Grace: 200 * time.Millisecond, NoFairness: !t.is("enable-priority-and-fairness"), NoProfiling: !t.is("profiling"),
		EncryptionFile: t.str("encryption-provider-config"),
		Audit: audit.Config{PolicyFile: t.str("audit-policy-file"), LogPath: t.str("audit-log-path"), LogFormat: t.str("audit-log-format"),
			LogMaxAge: t.int("audit-log-maxage"), LogMaxBackup: t.int("audit-log-maxbackup"), LogMaxSize: t.int("audit-log-maxsize"),
			WebhookConfigFile: t.str("audit-webhook-config-file"), WebhookMaxWait: r.duration("audit-webhook-batch-max-wait")},
		Access: access.Config{
			RequestHeader: access.RequestHeader{CAFile: t.str("requestheader-client-ca-file"), AllowedNames: t.list("requestheader-allowed-names"),
				Username: t.list("requestheader-username-headers"), UID: t.list("requestheader-uid-headers"), Group: t.list("requestheader-group-headers"),
				ExtraPrefix: t.list("requestheader-extra-headers-prefix")},
			TokenFile: t.str("token-auth-file"), AuthenticationFile: t.str("authentication-config"), AuthorizationFile: t.str("authorization-config"),
			TokenWebhook: access.TokenWebhook{ConfigFile: t.str("authentication-token-webhook-config-file"), Version: t.str("authentication-token-webhook-version"),
				CacheTTL: r.duration("authentication-token-webhook-cache-ttl")},
			AuthorizationWebhook: access.AuthorizationWebhook{ConfigFile: t.str("authorization-webhook-config-file"), Version: t.str("authorization-webhook-version"),
				AuthorizedTTL: r.duration("authorization-webhook-cache-authorized-ttl"), UnauthorizedTTL: r.duration("authorization-webhook-cache-unauthorized-ttl")},
		},
	}
	if certFile, keyFile := t.str("proxy-client-cert-file"), t.str("proxy-client-key-file"); certFile != "" || keyFile != "" {
		pair := &filePair{cert: certFile, key: keyFile}
		_, err := pair.get()
		r.fail("proxy-client-cert-file", err)
		c.FrontProxy = pair.get
	}
	if t.given("anonymous-auth") {
		c.Access.Anonymous = &anonymous
	}
	if len(issuers) > 0 {
		c.Issuer, c.AlsoIssuers = issuers[0], issuers[1:]
	}
	if len(c.Audiences) == 0 {
		c.Audiences = nil
		if len(issuers) > 0 {
			c.Audiences = issuers
		}
	}
	c.Access.OIDC = oidcFlags(r)
	requests, longest, jwks := r.duration("request-timeout"), r.duration("service-account-max-token-expiration"), t.str("service-account-jwks-uri")
	c.MaxTokenExpiration, c.JWKSURI = longest, jwks
	c.API = func(a *apiserver.Config) { a.RequestTimeout = requests }
	wait := r.duration("storage-initialization-timeout")
	if r.err != nil {
		return c, r.err
	}
	if c.Store, err = etcdStore(ctx, t, wait); err != nil {
		return c, err
	}
	return c, listen(t, &c, ca)
}

// listen opens the port with the certificate of the flags, or with one of its own
// that is kept in the directory of certificates.
func listen(t *flagTable, c *core.Config, ca []byte) error {
	bind, err := netip.ParseAddr(t.str("bind-address"))
	if err != nil {
		return fmt.Errorf("flag --bind-address: %w", err)
	}
	advertise := bind
	if a := t.str("advertise-address"); a != "" {
		if advertise, err = netip.ParseAddr(a); err != nil {
			return fmt.Errorf("flag --advertise-address: %w", err)
		}
	} else if bind.IsUnspecified() || bind.IsLoopback() {
		// Endpoints may not be loopback addresses.
		advertise = cluster.HostAddress()
	}
	certFile, keyFile := t.str("tls-cert-file"), t.str("tls-private-key-file")
	if certFile == "" && keyFile == "" {
		certFile, keyFile = filepath.Join(t.str("cert-dir"), "apiserver.crt"), filepath.Join(t.str("cert-dir"), "apiserver.key")
		if err := ensureCertificate(certFile, keyFile, bind, advertise, first.ServiceAddress(c.Services, 1)); err != nil {
			return err
		}
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return fmt.Errorf("read the server's certificate: %w; see --cert-dir and --tls-cert-file", err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(bind.String(), strconv.Itoa(t.int("secure-port"))))
	if err != nil {
		return fmt.Errorf("listen for the API: %w; see --bind-address and --secure-port", err)
	}
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	c.First = first.Config{API: advertise, APIPort: int32(port), CA: ca, PublicURL: "https://" + net.JoinHostPort(advertise.String(), strconv.Itoa(int(port)))}
	c.Listeners = []core.Listener{{Listener: l, TLS: core.ServingTLS(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair, nil })}}
	return nil
}

func ensureCertificate(certFile, keyFile string, addrs ...netip.Addr) error {
	_, err := os.Stat(certFile)
	if _, e := os.Stat(keyFile); err == nil && e == nil {
		return nil
	}
	ca, err := pki.New(time.Now)
	if err != nil {
		return err
	}
	n := pki.Names{CommonName: "kube-apiserver", Server: true, DNS: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}}
	for _, a := range addrs {
		if !a.IsUnspecified() {
			n.IPs = append(n.IPs, a.AsSlice())
		}
	}
	pair, err := ca.Issue(n, pki.AdminLife)
	if err != nil {
		return err
	}
	cert, key, err := pki.EncodePair(pair)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(certFile), 0o755); err != nil {
		return fmt.Errorf("keep the server's certificate: %w; choose another --cert-dir", err)
	}
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		return fmt.Errorf("keep the server's key: %w; choose another --cert-dir", err)
	}
	if err := os.WriteFile(certFile, append(cert, ca.PEM()...), 0o644); err != nil {
		return fmt.Errorf("keep the server's certificate: %w; choose another --cert-dir", err)
	}
	return nil
}

// serviceNetwork is the IPv4 one of the ranges.
func serviceNetwork(ranges []string) (netip.Prefix, error) {
	for _, s := range ranges {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return p, err
		}
		if p.Addr().Is4() {
			return p.Masked(), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("no IPv4 network is among %q", ranges)
}

func portRange(s string) (first, end int32, err error) {
	from, to, two := strings.Cut(s, "-")
	a, err := strconv.ParseUint(from, 10, 16)
	if err != nil {
		return 0, 0, err
	}
	b := a
	if two {
		if b, err = strconv.ParseUint(to, 10, 16); err != nil {
			return 0, 0, err
		}
	}
	if a == 0 || b < a {
		return 0, 0, fmt.Errorf("%q is no range of ports", s)
	}
	return int32(a), int32(b) + 1, nil
}

func serviceAccountKeys(r *flagReader) (sign crypto.Signer, verify []crypto.PublicKey) {
	for _, f := range r.list("service-account-key-file") {
		data, err := os.ReadFile(f)
		if err == nil {
			var keys []crypto.PublicKey
			if keys, err = auth.ParsePublicKeys(data); err == nil {
				verify = append(verify, keys...)
				continue
			}
			err = fmt.Errorf("read %q: %w", f, err)
		}
		r.fail("service-account-key-file", err)
	}
	if data := r.file("service-account-signing-key-file"); data != nil {
		key, err := auth.ParsePrivateKey(data)
		r.fail("service-account-signing-key-file", err)
		return key, verify
	}
	own, err := pki.New(time.Now)
	if err != nil {
		r.fail("service-account-signing-key-file", err)
		return nil, verify
	}
	return own.ServiceAccountKey, verify
}

func oidcFlags(r *flagReader) *oidc.Flags {
	if r.str("oidc-issuer-url") == "" {
		return nil
	}
	f := &oidc.Flags{IssuerURL: r.str("oidc-issuer-url"), ClientID: r.str("oidc-client-id"), CA: string(r.file("oidc-ca-file")),
		UsernameClaim: r.str("oidc-username-claim"), UsernamePrefix: r.str("oidc-username-prefix"), GroupsClaim: r.str("oidc-groups-claim"),
		GroupsPrefix: r.str("oidc-groups-prefix"), SigningAlgs: r.list("oidc-signing-algs"), RequiredClaims: map[string]string{}}
	for _, c := range r.list("oidc-required-claim") {
		k, v, ok := strings.Cut(c, "=")
		if !ok {
			r.fail("oidc-required-claim", fmt.Errorf("%q is not key=value", c))
		}
		f.RequiredClaims[k] = v
	}
	return f
}

// etcdStore finds out what answers at --etcd-servers: an etcd of proa says in which
// directory the data is; anything else is an etcd.
func etcdStore(ctx context.Context, t *flagTable, wait time.Duration) (core.Opener, error) {
	servers := t.list("etcd-servers")
	if len(servers) == 0 {
		return nil, errors.New("flag --etcd-servers: it is not set; give the URL of an etcd, or the word memory")
	}
	if len(servers) == 1 && servers[0] == "memory" {
		return core.Memory, nil
	}
	if strings.HasPrefix(servers[0], "http://") {
		until := time.Now().Add(wait)
		for {
			p, ok, err := askPlace(ctx, servers[0])
			switch {
			case ok:
				var files env.Files = env.SystemFiles()
				if !p.Sync {
					files = unsynced{files}
				}
				return patient(core.Data(p.Dir, files), wait), nil
			case err == nil:
				return etcdClient(t)
			case ctx.Err() != nil:
				return nil, ctx.Err()
			case time.Now().After(until):
				return nil, fmt.Errorf("reach etcd: %w", err)
			}
			env.Sleep(ctx, env.SystemClock(), 20*time.Millisecond)
		}
	}
	return etcdClient(t)
}

// patient waits for a server of before that has not quite ended.
func patient(open core.Opener, wait time.Duration) core.Opener {
	return func(ctx context.Context, c *core.Config) (store.Store, error) {
		until := time.Now().Add(min(wait, 10*time.Second))
		for {
			st, err := open(ctx, c)
			var locked *env.LockedError
			if !errors.As(err, &locked) || time.Now().After(until) {
				return st, err
			}
			if !env.Sleep(ctx, env.SystemClock(), 20*time.Millisecond) {
				return nil, ctx.Err()
			}
		}
	}
}

func etcdClient(t *flagTable) (core.Opener, error) {
	c := etcd.Config{Endpoints: t.list("etcd-servers"), Prefix: t.str("etcd-prefix")}
	if ca, cert, key := t.str("etcd-cafile"), t.str("etcd-certfile"), t.str("etcd-keyfile"); ca != "" || cert != "" {
		c.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		if ca != "" {
			data, err := os.ReadFile(ca)
			if err != nil {
				return nil, fmt.Errorf("flag --etcd-cafile: %w", err)
			}
			c.TLS.RootCAs = x509.NewCertPool()
			if !c.TLS.RootCAs.AppendCertsFromPEM(data) {
				return nil, fmt.Errorf("flag --etcd-cafile: no certificate is in %q", ca)
			}
		}
		if cert != "" {
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err != nil {
				return nil, fmt.Errorf("flags --etcd-certfile and --etcd-keyfile: %w", err)
			}
			c.TLS.Certificates = []tls.Certificate{pair}
		}
	}
	return core.Etcd(c), nil
}
