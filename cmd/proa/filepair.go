package main

import (
	"crypto/tls"
	"os"
	"sync"
	"time"
)

// filePair is a certificate with its key in two files that others may renew: it is
// read again when one of them has another time.
type filePair struct {
	cert, key string

	mu    sync.Mutex
	times [2]time.Time
	pair  *tls.Certificate
}

// get gives the certificate of now; what could be read before stays while what is
// there cannot be (a certificate is renewed before its key, say).
func (p *filePair) get() (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var times [2]time.Time
	for i, name := range []string{p.cert, p.key} {
		if info, err := os.Stat(name); err == nil {
			times[i] = info.ModTime()
		}
	}
	if p.pair != nil && times == p.times {
		return p.pair, nil
	}
	pair, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil {
		if p.pair != nil {
			return p.pair, nil
		}
		return nil, err
	}
	p.pair, p.times = &pair, times
	return p.pair, nil
}
