package image

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"proa.dev/env"
)

// manifestTypes is what the store understands, as an Accept header.
var manifestTypes = strings.Join([]string{
	"application/vnd.oci.image.index.v1+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.oci.image.manifest.v1+json",
	"application/vnd.docker.distribution.manifest.v2+json",
}, ", ")

const tries = 3

// A RegistryError is a registry's refusal.
type RegistryError struct {
	What   string // "manifest", "blob", "token"
	Status int    // HTTP status
	URL    string // without query
	Detail string // what the registry said, if it said anything
}

func (e *RegistryError) Error() string {
	text := ""
	switch e.Status {
	case http.StatusNotFound:
		text = e.What + " not found"
	case http.StatusUnauthorized:
		text = "no valid credential for the " + e.What
	case http.StatusForbidden:
		text = "access to the " + e.What + " denied"
	case http.StatusTooManyRequests:
		text = "too many requests"
	default:
		text = "registry answered " + strings.ToLower(http.StatusText(e.Status))
	}
	text += fmt.Sprintf(" (%d) at %s", e.Status, e.URL)
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	return text
}

// registryClients are the connections to registries, made on first use.
type registryClients struct {
	mu      sync.Mutex
	strict  *http.Transport
	lenient *http.Transport // does not verify certificates
}

func (c *registryClients) get(cfg *Config, insecure bool) *http.Transport {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &c.strict
	if insecure {
		t = &c.lenient
	}
	if *t == nil {
		*t = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			ForceAttemptHTTP2:     true,
			MaxIdleConnsPerHost:   8,
			IdleConnTimeout:       30 * time.Second,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: cfg.StallTimeout,
			TLSClientConfig:       &tls.Config{RootCAs: cfg.RootCAs, InsecureSkipVerify: insecure, MinVersion: tls.VersionTLS12},
			// A layer is compressed already, and its digest is of those bytes.
			DisableCompression: true,
		}
	}
	return *t
}

func (c *registryClients) closeIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range []*http.Transport{c.strict, c.lenient} {
		if t != nil {
			t.CloseIdleConnections()
		}
	}
}

// A repository is one repository at one endpoint, with the credential in place.
type repository struct {
	cfg    *Config
	base   url.URL // …/v2/<repository>
	client *http.Client
}

func (s *Store) connect(ctx context.Context, ep endpoint, ref Reference) (*repository, error) {
	var opts []name.Option
	if ep.scheme == "http" {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(ep.host, opts...)
	if err != nil {
		return nil, fmt.Errorf("registry %q: %w", ep.host, err)
	}
	repo := path.Join(ep.prefix, ref.Path)
	var authenticator authn.Authenticator = authn.Anonymous
	if a := ep.auth; a != nil && *a != (Auth{}) {
		authenticator = authn.FromConfig(authn.AuthConfig{
			Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
		})
	}
	g := &guard{next: s.registry.get(&s.cfg, ep.insecure), ep: ep, host: reg.RegistryStr()}
	retrying := transport.NewRetry(g,
		transport.WithRetryBackoff(transport.Backoff{Duration: s.cfg.RetryWait, Factor: 3, Jitter: 0.1, Steps: tries}),
		transport.WithRetryPredicate(transient),
		transport.WithRetryStatusCodes(408, 500, 502, 503, 504))
	agent := transport.NewUserAgent(retrying, s.cfg.UserAgent)

	// This asks /v2/ how to authenticate and, for a bearer token, gets one.
	scope := "repository:" + repo + ":pull"
	authed, err := transport.NewWithContext(ctx, reg, authenticator, agent, []string{scope})
	if err != nil {
		if g.failure() != nil && errors.Is(err, errScheme) {
			err = g.failure()
		}
		return nil, answer("token", cmp.Or(ep.scheme, "https")+"://"+g.host+"/v2/", err)
	}
	scheme := ep.scheme
	if scheme == "" {
		scheme = g.scheme()
	}
	return &repository{
		cfg:    &s.cfg,
		base:   url.URL{Scheme: scheme, Host: g.host, Path: "/v2/" + repo},
		client: &http.Client{Transport: authed, CheckRedirect: redirect},
	}, nil
}

// redirect bounds a chain of redirects and keeps them off this machine's own
// and link-local addresses, unless the registry is there itself.
func redirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("more than 10 redirects")
	}
	from, to := via[0].URL.Hostname(), req.URL.Hostname()
	ip := net.ParseIP(to)
	if from != to && ip != nil && (ip.IsLinkLocalUnicast() || ip.IsLoopback() && !loopback(from)) {
		return fmt.Errorf("redirect from %q to %q refused: an address of this machine or its link", from, to)
	}
	return nil
}

var errScheme = errors.New("plain http is for loopback and for mirrors that are marked insecure")

// guard decides which scheme may be spoken to whom. The library tries plain http
// for private addresses by itself; credentials must not travel that way unasked.
type guard struct {
	next http.RoundTripper
	ep   endpoint
	host string

	mu    sync.Mutex
	last  string // scheme of the last request to host that was answered
	cause error  // last failure to reach host
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	own := req.URL.Host == g.host
	plain := req.URL.Scheme == "http"
	// A registry on loopback may speak either, but one whose certificate is
	// wrong does not speak plain http.
	var certificate *tls.CertificateVerificationError
	mayPlain := g.ep.scheme == "http" || g.ep.scheme == "" && loopback(g.host) && !errors.As(g.failure(), &certificate)
	switch {
	case own && plain && !mayPlain,
		own && !plain && g.ep.scheme == "http",
		!own && plain && !g.ep.insecure && !loopback(req.URL.Host) && (req.Header.Get("Authorization") != "" || req.Body != nil && req.Body != http.NoBody):
		return nil, errScheme
	}
	resp, err := g.next.RoundTrip(req)
	if own {
		g.mu.Lock()
		defer g.mu.Unlock()
		if err != nil {
			g.cause = err
		} else {
			g.last = req.URL.Scheme
		}
	}
	return resp, err
}

func (g *guard) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cause
}

func (g *guard) scheme() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.last == "" {
		return "https"
	}
	return g.last
}

// transient says whether the same request may succeed in a moment. A refused
// connection is not: the next mirror is a better try.
func transient(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, e) {
			return true
		}
	}
	var te *transport.Error
	return errors.As(err, &te) && te.Temporary()
}

// answer turns what the library says into one clear line.
func answer(what, at string, err error) error {
	var te *transport.Error
	if errors.As(err, &te) {
		re := &RegistryError{What: what, Status: te.StatusCode, URL: at}
		if te.Request != nil && te.Request.URL != nil {
			re.URL = bare(te.Request.URL)
		}
		var said []string
		for _, d := range te.Errors {
			if d.Code != transport.ManifestUnknownErrorCode {
				said = append(said, strings.TrimSuffix(string(d.Code)+": "+d.Message, ": "))
			}
		}
		re.Detail = oneLine(strings.Join(said, "; "))
		return re
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // the URL may carry a signature
	}
	return fmt.Errorf("%s: %w", at, err)
}

func bare(u *url.URL) string {
	clean := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return clean.String()
}

// oneLine makes a foreign text fit for an error.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)), " ")
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

func (r *repository) url(kind, id string) url.URL {
	u := r.base
	u.Path += "/" + kind + "/" + id
	return u
}

// do sends one request; the answer has one of the wanted statuses.
func (r *repository) do(ctx context.Context, method string, u url.URL, what string, header http.Header, statuses ...int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	resp, err := r.client.Do(req)
	if err == nil {
		if err = transport.CheckError(resp, statuses...); err == nil {
			return resp, nil
		}
		resp.Body.Close()
	}
	return nil, answer(what, bare(&u), err)
}

func identifier(ref Reference) string {
	if ref.Digest != "" {
		return ref.Digest
	}
	return ref.Tag
}

// head asks for the digest that ref stands for, without the manifest.
func (r *repository) head(ctx context.Context, ref Reference) (string, error) {
	resp, err := r.do(ctx, http.MethodHead, r.url("manifests", identifier(ref)), "manifest", http.Header{"Accept": {manifestTypes}}, http.StatusOK)
	if err != nil {
		return "", err
	}
	resp.Body.Close()
	digest := resp.Header.Get("Docker-Content-Digest")
	if !isDigest(digest) || ref.Digest != "" && digest != ref.Digest {
		return "", errors.New("the registry names no digest")
	}
	return digest, nil
}

// top fetches the manifest or index that ref stands for.
func (r *repository) top(ctx context.Context, ref Reference) (raw []byte, digest string, err error) {
	u := r.url("manifests", identifier(ref))
	ctx, cancel := context.WithTimeoutCause(ctx, r.cfg.StallTimeout, errStalled)
	defer cancel()
	resp, err := r.do(ctx, http.MethodGet, u, "manifest", http.Header{"Accept": {manifestTypes}}, http.StatusOK)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	raw, err = readVerified(resp.Body, ref.Digest, maxManifestBytes, "manifest")
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", bare(&u), err)
	}
	return raw, digestOf(raw), nil
}

func (r *repository) manifest(ctx context.Context, digest string) ([]byte, error) {
	raw, _, err := r.top(ctx, Reference{Digest: digest})
	return raw, err
}

func (r *repository) has(string) bool { return true }

var errStalled = errors.New("the registry stopped sending")

// blob opens a blob. The reader picks up after a broken connection where it was.
func (r *repository) blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	b := &blobReader{repo: r, ctx: ctx, url: r.url("blobs", string(d.Digest)), size: d.Size}
	if err := b.connect(); err != nil {
		return nil, err
	}
	return b, nil
}

type blobReader struct {
	repo   *repository
	ctx    context.Context
	url    url.URL
	size   int64 // 0 if unknown
	offset int64
	mark   int64 // offset at the last failure
	failed int   // failures without a MiB of progress between
	body   io.ReadCloser
	framed bool // the transport tells a complete body from a broken one
	cancel context.CancelCauseFunc
	stall  *time.Timer
	err    error // the end, of whichever kind
}

func (b *blobReader) connect() error {
	ctx, cancel := context.WithCancelCause(b.ctx)
	header := http.Header{}
	wanted := http.StatusOK
	if b.offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.offset))
		wanted = http.StatusPartialContent
	}
	resp, err := b.repo.do(ctx, http.MethodGet, b.url, "blob", header, http.StatusOK, wanted)
	if err != nil {
		cancel(nil)
		return err
	}
	b.body, b.cancel = resp.Body, cancel
	b.framed = resp.ContentLength >= 0 || len(resp.TransferEncoding) > 0 || resp.ProtoMajor > 1
	b.stall = time.AfterFunc(b.repo.cfg.StallTimeout, func() { cancel(errStalled) })
	if b.offset > 0 && resp.StatusCode == http.StatusOK {
		// It cannot resume: what has been read already is read again.
		if _, err := io.CopyN(io.Discard, resp.Body, b.offset); err != nil {
			b.Close()
			return fmt.Errorf("%s: %w", bare(&b.url), err)
		}
	}
	return nil
}

func (b *blobReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.read(p)
	b.err = err
	return n, err
}

func (b *blobReader) read(p []byte) (int, error) {
	for {
		b.stall.Reset(b.repo.cfg.StallTimeout)
		n, err := b.body.Read(p)
		b.stall.Stop()
		b.offset += int64(n)
		if b.size > 0 && b.offset > b.size {
			return 0, fmt.Errorf("%s: the blob has more than the %d bytes its manifest says", bare(&b.url), b.size)
		}
		if n > 0 || err == nil {
			return n, nil // a failure shows again in the next call
		}
		if err == io.EOF && (b.size <= 0 || b.offset == b.size) {
			return 0, io.EOF
		}
		if err == io.EOF && b.framed {
			return 0, fmt.Errorf("%s: the blob has %d bytes instead of the %d its manifest says", bare(&b.url), b.offset, b.size)
		}
		if err := b.again(err); err != nil {
			return 0, err
		}
	}
}

// again connects anew after a failure, a few times.
func (b *blobReader) again(cause error) error {
	if b.offset-b.mark > 1<<20 {
		b.failed = 0
	}
	b.mark = b.offset
	wait := b.repo.cfg.RetryWait
	for {
		b.Close()
		if b.ctx.Err() != nil {
			return context.Cause(b.ctx)
		}
		if b.failed++; b.failed >= tries {
			if cause == io.EOF {
				cause = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("%s: broke off after %d of %d bytes: %w", bare(&b.url), b.offset, b.size, cause)
		}
		if !env.Sleep(b.ctx, env.SystemClock(), wait) { // registries live in the machine's time
			return context.Cause(b.ctx)
		}
		wait *= 3
		if cause = b.connect(); cause == nil {
			return nil
		}
	}
}

func (b *blobReader) Close() error {
	if b.body == nil {
		return nil
	}
	b.stall.Stop()
	err := b.body.Close()
	b.cancel(nil)
	b.body = nil
	return err
}
