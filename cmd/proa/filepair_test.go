package main

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"proa.dev/cluster/pki"
)

// A pair of files is read again when it was renewed, and stays what it was while
// only half of it was.
func TestFilePair(t *testing.T) {
	dir := t.TempDir()
	p := &filePair{cert: filepath.Join(dir, "tls.crt"), key: filepath.Join(dir, "tls.key")}
	if _, err := p.get(); err == nil {
		t.Error("files that are not there are a pair")
	}
	authority, err := pki.New(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	when := time.Unix(1_700_000_000, 0)
	write := func(name, label string, data []byte) {
		t.Helper()
		when = when.Add(time.Second)
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: label, Bytes: data}), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, when, when); err != nil {
			t.Fatal(err)
		}
	}
	issue := func(name string) (cert, key []byte) {
		t.Helper()
		c, err := authority.Issue(pki.Names{CommonName: name, Client: true}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if key, err = x509.MarshalPKCS8PrivateKey(c.PrivateKey); err != nil {
			t.Fatal(err)
		}
		return c.Certificate[0], key
	}
	is := func(want string) {
		t.Helper()
		c, err := p.get()
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil || leaf.Subject.CommonName != want {
			t.Errorf("the pair is %q (%v), want %q", leaf.Subject.CommonName, err, want)
		}
	}
	cert, key := issue("one")
	write(p.cert, "CERTIFICATE", cert)
	write(p.key, "PRIVATE KEY", key)
	is("one")
	cert, key = issue("two")
	write(p.cert, "CERTIFICATE", cert)
	is("one")
	write(p.key, "PRIVATE KEY", key)
	is("two")
}
