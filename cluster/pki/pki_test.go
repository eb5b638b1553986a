package pki

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLeafRenewsAtTwoThirds(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a, err := Open(t.TempDir(), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	dns := "a"
	leaf := a.Leaf(LeafLife, func() Names { return Names{CommonName: "x", DNS: []string{dns}, Server: true} })
	first, err := leaf.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(LeafLife / 2)
	if again, _ := leaf.Certificate(); again != first {
		t.Error("renewed at half of its life")
	}
	now = now.Add(LeafLife / 4)
	second, _ := leaf.Certificate()
	if second == first {
		t.Error("not renewed after three quarters of its life")
	}
	dns = "b"
	third, _ := leaf.Certificate()
	if third == second || third.Leaf.DNSNames[0] != "b" {
		t.Error("not renewed when its names changed")
	}
	if _, err := third.Leaf.Verify(x509.VerifyOptions{Roots: a.Pool(), CurrentTime: now, DNSName: "b"}); err != nil {
		t.Error(err)
	}
}

func TestOpenKeepsKeysAndNeverReplacesABrokenOne(t *testing.T) {
	dir := t.TempDir()
	a, err := Open(dir, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(dir, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if !a.Cert.Equal(b.Cert) || !a.ServiceAccountKey.Equal(b.ServiceAccountKey) || string(a.SecretsKey) != string(b.SecretsKey) {
		t.Error("opened twice, got two authorities")
	}
	for _, f := range []string{"ca.key", "sa.key", "secrets.key", "ca.crt"} {
		good, _ := os.ReadFile(filepath.Join(dir, f))
		os.WriteFile(filepath.Join(dir, f), []byte("broken"), 0o600)
		if _, err := Open(dir, time.Now); err == nil {
			t.Errorf("%s broken: opened all the same", f)
		}
		if now, _ := os.ReadFile(filepath.Join(dir, f)); string(now) != "broken" {
			t.Errorf("%s was replaced", f)
		}
		os.WriteFile(filepath.Join(dir, f), good, 0o600)
	}
}

func TestKeysArePrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if _, err := Open(dir, time.Now); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		for name, want := range map[string]os.FileMode{"": 0o700, "ca.key": 0o600, "sa.key": 0o600, "secrets.key": 0o600} {
			if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != want {
				t.Errorf("%q: %v %v", name, st.Mode(), err)
			}
		}
	}
	check()
	os.Chmod(dir, 0o755)
	for _, f := range []string{"ca.key", "sa.key", "secrets.key"} {
		os.Chmod(filepath.Join(dir, f), 0o644)
	}
	if _, err := Open(dir, time.Now); err != nil {
		t.Fatal(err)
	}
	check()
}

func TestOpenRefusesWhatDoesNotFit(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	for _, d := range []string{dir, other} {
		if _, err := Open(d, time.Now); err != nil {
			t.Fatal(err)
		}
	}
	key, _ := os.ReadFile(filepath.Join(other, "ca.key"))
	os.WriteFile(filepath.Join(dir, "ca.key"), key, 0o600)
	if _, err := Open(dir, time.Now); err == nil || !strings.Contains(err.Error(), "does not belong to ca.key") {
		t.Errorf("%v", err)
	}
	if _, err := Open(other, func() time.Time { return time.Now().Add(2 * CALife) }); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("%v", err)
	}
}
