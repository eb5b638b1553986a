package doctor

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"proa.dev/cluster/pki"
)

// TestExamineLeavesNothing: on a machine that runs the tests nothing fails, each
// finding says something, and the probes are taken away.
func TestExamineLeavesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root, as the project's tests do")
	}
	dir := t.TempDir()
	list := Examine(Config{DataDir: dir})
	for _, f := range list {
		if f.Detail == "" || f.Level == Fail && f.Check != "overlay" || f.Level != OK && f.Fix == "" && f.Check != "overlay" {
			t.Errorf("%+v", f)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("left behind: %v", entries)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("a mount is left behind, or %v", err)
	}
	if Worst([]Finding{{Level: Warn}, {Level: OK}}) != Warn || Worst([]Finding{{Level: Warn}, {Level: Fail}, {Level: OK}}) != Fail || Worst(nil) != OK {
		t.Error("the worst is not the worst")
	}
}

func TestPorts(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if level, detail, fix := ports(Config{Ports: []int{l.Addr().(*net.TCPAddr).Port}}); level != Fail || !strings.HasPrefix(detail, "in use: ") || fix == "" {
		t.Errorf("%s %s %s", level, detail, fix)
	}
}

func TestKeysAndCertificates(t *testing.T) {
	dir := t.TempDir()
	c := Config{DataDir: dir}
	if l, d, _ := keys(c); l != OK || d != "none yet" {
		t.Errorf("%s %s", l, d)
	}
	if l, d, _ := certificates(c); l != OK || d != "none yet" {
		t.Errorf("%s %s", l, d)
	}
	ca, err := pki.Open(filepath.Join(dir, "pki"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if l, d, _ := keys(c); l != OK {
		t.Errorf("%s %s", l, d)
	}
	if l, d, _ := certificates(c); l != OK || !strings.Contains(d, "ca.crt") {
		t.Errorf("%s %s", l, d)
	}
	os.Chmod(filepath.Join(dir, "pki", "sa.key"), 0o640)
	if l, d, fix := keys(c); l != Warn || !strings.Contains(d, "sa.key") || fix == "" {
		t.Errorf("%s %s", l, d)
	}
	for life, want := range map[time.Duration]Level{time.Hour: Warn, -time.Minute: Fail, 90 * 24 * time.Hour: OK} {
		admin, err := ca.Issue(pki.Names{CommonName: "a", Client: true}, life)
		if err != nil {
			t.Fatal(err)
		}
		crt, _, err := pki.EncodePair(admin)
		if err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(dir, "pki", "admin.crt"), crt, 0o600)
		if l, d, _ := certificates(c); l != want || !strings.Contains(d, "admin.crt") {
			t.Errorf("%s: %s %s", life, l, d)
		}
	}
	if !slices.ContainsFunc(Examine(c), func(f Finding) bool { return f.Check == "certificates" }) {
		t.Error("not part of the examination")
	}
}
