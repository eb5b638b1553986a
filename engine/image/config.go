package image

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Config is what a Store needs to know. Open fills zero fields but Dir with the
// defaults named here; Check returns every problem at once.
type Config struct {
	// Dir is the absolute path of the store, on a file system that overlayfs
	// accepts as a lower layer. Default /var/lib/proa/images.
	Dir string

	// Mirrors maps a registry host ("docker.io", "reg.example:5000"), or "*" for
	// every host without an entry of its own, to the endpoints that are asked
	// before the registry itself, in order.
	Mirrors map[string][]Mirror

	// Architecture and Variant choose from a multi-platform index; the operating
	// system is always linux. Default: the ones this program was built for.
	Architecture string
	Variant      string

	// KeepBlobs keeps compressed layers after unpacking them, so that Lowers can
	// restore a damaged layer without a registry. It costs their size on disk.
	KeepBlobs bool

	// Parallel is how many layers are fetched and unpacked at once. Default 3.
	Parallel int

	// MaxLayerBytes and MaxLayerEntries bound one unpacked layer. Defaults
	// 64 GiB and 2 million.
	MaxLayerBytes   int64
	MaxLayerEntries int64

	// StallTimeout ends a request to a registry that sends no byte for so long.
	// Default 60 s.
	StallTimeout time.Duration

	// RetryWait is the pause before a request is tried again after a network
	// failure or a server's 5xx answer; it triples from try to try, with three
	// tries in all. Default 500 ms.
	RetryWait time.Duration

	// RootCAs verifies registries; nil means the system's.
	RootCAs *x509.CertPool

	// UserAgent is sent to registries. Default "proa".
	UserAgent string

	// Now tells the time. Default time.Now.
	Now func() time.Time

	// Log receives what is repaired on the way. Default slog.Default().
	Log *slog.Logger
}

// A Mirror is one endpoint to ask in a registry's place.
type Mirror struct {
	// Endpoint is a URL such as "http://127.0.0.1:5000" or
	// "https://cache.example/v2/dockerhub"; a path is put before the
	// repository's name.
	Endpoint string

	// Insecure allows plain http to a host other than loopback, and skips the
	// verification of an https certificate.
	Insecure bool

	// Auth is the mirror's own credential. The pull's credential belongs to the
	// registry and goes to a mirror only with ForwardAuth.
	Auth        *Auth
	ForwardAuth bool

	// Final ends the list: neither later mirrors nor the registry are asked
	// when this one has no answer.
	Final bool
}

// Auth is one registry credential, with the meaning that the fields of a
// docker config have.
type Auth struct {
	Username, Password string
	IdentityToken      string // an OAuth2 refresh token
	RegistryToken      string // a bearer token, sent as it is
}

// Default returns a configuration that works as it is.
func Default() Config {
	c := Config{Dir: "/var/lib/proa/images"}
	c.fill()
	return c
}

func (c *Config) fill() {
	set(&c.Architecture, runtime.GOARCH)
	if c.Architecture == "arm64" {
		set(&c.Variant, "v8")
	}
	if c.Architecture == "arm" {
		set(&c.Variant, "v7")
	}
	set(&c.Parallel, 3)
	set(&c.MaxLayerBytes, 64<<30)
	set(&c.MaxLayerEntries, 2_000_000)
	set(&c.StallTimeout, time.Minute)
	set(&c.RetryWait, 500*time.Millisecond)
	set(&c.UserAgent, "proa")
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

func set[T comparable](to *T, value T) {
	var zero T
	if *to == zero {
		*to = value
	}
}

// Check returns every problem of c, joined.
func (c Config) Check() error {
	var errs []error
	if !filepath.IsAbs(c.Dir) {
		errs = append(errs, fmt.Errorf("image store directory %q: must be an absolute path", c.Dir))
	}
	if c.Parallel < 0 || c.MaxLayerBytes < 0 || c.MaxLayerEntries < 0 || c.StallTimeout < 0 || c.RetryWait < 0 {
		errs = append(errs, errors.New("image store bounds: must not be negative"))
	}
	for host, mirrors := range c.Mirrors {
		if host == "" {
			errs = append(errs, errors.New(`mirrors "": the registry's host is missing; use "*" for every registry`))
		}
		for _, m := range mirrors {
			if _, err := m.endpoint(); err != nil {
				errs = append(errs, fmt.Errorf("mirror of registry %q: %w", host, err))
			}
		}
	}
	return errors.Join(errs...)
}

// An endpoint is one place that answers for a repository.
type endpoint struct {
	scheme   string // "http" or "https"
	host     string // host[:port]
	prefix   string // before the repository's name, "" or "a/b"
	insecure bool
	auth     *Auth
}

func (m Mirror) endpoint() (endpoint, error) {
	u, err := url.Parse(m.Endpoint)
	if err != nil {
		return endpoint{}, fmt.Errorf("endpoint %q: %w", m.Endpoint, err)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return endpoint{}, fmt.Errorf("endpoint %q: must begin with http:// or https://", m.Endpoint)
	case u.Host == "":
		return endpoint{}, fmt.Errorf("endpoint %q: has no host", m.Endpoint)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return endpoint{}, fmt.Errorf("endpoint %q: may have a scheme, a host and a path only", m.Endpoint)
	case u.Scheme == "http" && !m.Insecure && !loopback(u.Host):
		return endpoint{}, fmt.Errorf("endpoint %q: plain http to another machine; set insecure to allow it", m.Endpoint)
	}
	prefix := strings.Trim(u.Path, "/")
	if prefix == "v2" {
		prefix = ""
	}
	return endpoint{
		scheme: u.Scheme, host: u.Host, insecure: m.Insecure, auth: m.Auth,
		prefix: strings.TrimPrefix(prefix, "v2/"),
	}, nil
}

// loopback says whether host[:port] names this machine without asking DNS.
func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
