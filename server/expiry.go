package server

import (
	"crypto/tls"
	"crypto/x509"
	"time"
)

// certificatesEnd is the earliest end of the certificates that this server shows,
// and of its authority's; zero when it has none.
func (s *Server) certificatesEnd() time.Time {
	var first time.Time
	earlier := func(at time.Time) {
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	shown := func(c *tls.Certificate, err error) {
		if err != nil || c == nil || len(c.Certificate) == 0 {
			return
		}
		leaf := c.Leaf
		if leaf == nil {
			if leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
				return
			}
		}
		earlier(leaf.NotAfter)
	}
	if a := s.cfg.Authority; a != nil {
		earlier(a.Cert.NotAfter)
	}
	if s.cfg.FrontProxy != nil {
		shown(s.cfg.FrontProxy())
	}
	for _, l := range s.cfg.Listeners {
		if l.TLS == nil {
			continue
		}
		for i := range l.TLS.Certificates {
			shown(&l.TLS.Certificates[i], nil)
		}
		if l.TLS.GetCertificate != nil {
			shown(l.TLS.GetCertificate(&tls.ClientHelloInfo{}))
		}
	}
	return first
}
