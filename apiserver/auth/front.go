package auth

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// RequestHeaders believes a front proxy that proves itself with a client
// certificate of its own authority: the user is the one in its headers (Kubernetes
// docs, "Authenticating Proxy"; the aggregation layer speaks so to extension
// servers). Without such a certificate the headers count for nothing.
type RequestHeaders struct {
	// Pool of the proxies' authority, at each request; nil: nobody is believed.
	Pool func() *x509.CertPool
	Now  func() time.Time
	// AllowedNames are the common names that are believed; empty: all.
	AllowedNames []string
	// Headers to look at, in order; X-Remote-User and so on.
	Username, UID, Group, ExtraPrefix []string

	proxies *X509
}

// NewRequestHeaders checks the names of the headers.
func NewRequestHeaders(h RequestHeaders) (*RequestHeaders, error) {
	for _, list := range [][]string{h.Username, h.UID, h.Group, h.ExtraPrefix} {
		for i, name := range list {
			if list[i] = strings.TrimSpace(name); list[i] == "" {
				return nil, fmt.Errorf("request headers: empty header %q", name)
			}
		}
	}
	if len(h.Username) == 0 {
		return nil, errors.New("request headers: no header for the user's name; set --requestheader-username-headers")
	}
	out := &RequestHeaders{Pool: h.Pool, Now: h.Now, AllowedNames: h.AllowedNames, Username: h.Username, UID: h.UID, Group: h.Group, ExtraPrefix: h.ExtraPrefix}
	out.proxies = &X509{Pool: h.Pool, Now: h.Now}
	return out, nil
}

// Authenticate implements Authenticator.
func (h *RequestHeaders) Authenticate(r *http.Request) (User, bool, error) {
	name := first(r.Header, h.Username)
	if name == "" || r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return User{}, false, nil
	}
	if h.Pool() == nil {
		return User{}, false, nil
	}
	if _, _, err := h.proxies.Authenticate(r); err != nil {
		return User{}, false, err
	}
	if cn := r.TLS.PeerCertificates[0].Subject.CommonName; len(h.AllowedNames) > 0 && !slices.Contains(h.AllowedNames, cn) {
		return User{}, false, fmt.Errorf("x509: subject with cn=%s is not in the allowed list", cn)
	}
	u := User{Name: name, UID: first(r.Header, h.UID)}
	for _, key := range h.Group {
		for _, g := range r.Header.Values(key) {
			if g != "" {
				u.Groups = append(u.Groups, g)
			}
		}
	}
	for _, prefix := range h.ExtraPrefix {
		for key, values := range r.Header {
			rest, ok := cutPrefixFold(key, prefix)
			if !ok {
				continue
			}
			rest = strings.ToLower(rest)
			if plain, err := url.PathUnescape(rest); err == nil {
				rest = plain
			}
			if u.Extra == nil {
				u.Extra = map[string][]string{}
			}
			u.Extra[rest] = append(u.Extra[rest], values...)
		}
	}
	return u, true, nil
}

func first(h http.Header, names []string) string {
	for _, n := range names {
		if v := h.Get(n); v != "" {
			return v
		}
	}
	return ""
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return "", false
	}
	return s[len(prefix):], true
}

// Strip takes the credentials out of a request whose sender is known, so that
// nothing behind sees them or believes headers that a client made up: a proxied
// request carries neither the token nor X-Remote-*.
type Strip struct {
	Authenticator
	// Headers and Prefixes besides Authorization and upstream's usual ones.
	Headers, Prefixes []string
}

var usualHeaders = []string{"X-Remote-User", "X-Remote-Uid", "X-Remote-Group"}

const usualPrefix = "X-Remote-Extra-"

// Authenticate implements Authenticator.
func (s Strip) Authenticate(r *http.Request) (User, bool, error) {
	u, ok, err := s.Authenticator.Authenticate(r)
	if !ok || err != nil {
		return u, ok, err
	}
	delete(r.Header, "Authorization")
	for _, h := range usualHeaders {
		delete(r.Header, h)
	}
	for _, h := range s.Headers {
		r.Header.Del(h)
	}
	for key := range r.Header {
		if _, is := cutPrefixFold(key, usualPrefix); is {
			delete(r.Header, key)
			continue
		}
		for _, p := range s.Prefixes {
			if _, is := cutPrefixFold(key, p); is {
				delete(r.Header, key)
			}
		}
	}
	return u, true, nil
}
