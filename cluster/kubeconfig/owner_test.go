package kubeconfig

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func me() Owner { return Owner{os.Geteuid(), os.Getegid(), ""} }

func uid(t *testing.T, path string) int {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return int(st.Sys().(*syscall.Stat_t).Uid)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root, as the project's tests do")
	}
}

func TestInvokerUnderSudo(t *testing.T) {
	needRoot(t)
	t.Setenv("SUDO_UID", "65534")
	if o := Invoker(); o.UID != 65534 || o.Home == "" {
		t.Errorf("%+v", o)
	}
	t.Setenv("SUDO_UID", "no number")
	if o := Invoker(); o.UID != 0 {
		t.Errorf("%+v", o)
	}
	t.Setenv("KUBECONFIG", "/a/b:/c/d")
	if p := DefaultPath(Owner{Home: "/home/x"}); p != "/a/b" {
		t.Error(p)
	}
	t.Setenv("KUBECONFIG", "")
	if p := DefaultPath(Owner{Home: "/home/x"}); p != "/home/x/.kube/config" {
		t.Error(p)
	}
}

// TestFilesBelongToThePerson: under sudo nothing of root's is left in a home.
func TestFilesBelongToThePerson(t *testing.T) {
	needRoot(t)
	home := t.TempDir()
	path := filepath.Join(home, ".kube", "config")
	o := Owner{65534, 65534, home}
	for i := range 2 {
		if err := Merge(path, o, Entry{Name: "proa", Server: "https://" + string(rune('a'+i))}); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{filepath.Dir(path), path, path + backup} {
		if got := uid(t, p); got != 65534 {
			t.Errorf("%s belongs to %d", p, got)
		}
	}
	entries, _ := os.ReadDir(filepath.Dir(path))
	if len(entries) != 2 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestLinkIsFollowedAndKept(t *testing.T) {
	dir := t.TempDir()
	real, path := filepath.Join(dir, "dotfiles"), filepath.Join(dir, "config")
	if err := os.WriteFile(real, []byte("kind: Config\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, path); err != nil {
		t.Fatal(err)
	}
	if err := Merge(path, me(), Entry{Name: "proa"}); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(path); err != nil || to != real {
		t.Errorf("the link is gone: %v", err)
	}
	if data, _ := os.ReadFile(real); !strings.Contains(string(data), "name: proa") {
		t.Errorf("%s", data)
	}
}

// TestRootIsNotLedAstray: a link in a person's home must not make root write
// what belongs to another.
func TestRootIsNotLedAstray(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	secret, path := filepath.Join(dir, "secret"), filepath.Join(dir, "config")
	if err := os.WriteFile(secret, []byte("kind: Config\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, path); err != nil {
		t.Fatal(err)
	}
	err := Merge(path, Owner{65534, 65534, dir}, Entry{Name: "proa"})
	if err == nil || !strings.Contains(err.Error(), "belongs to another user") {
		t.Errorf("%v", err)
	}
	if data, _ := os.ReadFile(secret); string(data) != "kind: Config\n" || uid(t, secret) != 0 {
		t.Errorf("%s", data)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	// Held: an error that names the file, nothing written.
	if err := os.WriteFile(path+".lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Merge(path, me(), Entry{Name: "proa"}); err == nil || !strings.Contains(err.Error(), path+".lock") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("written without the lock")
	}
	// Left by a process that died long ago.
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path+".lock", old, old); err != nil {
		t.Fatal(err)
	}
	if err := Merge(path, me(), Entry{Name: "proa"}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path + ".lock"); err == nil {
		t.Error("the lock stays")
	}
	// Many at once: all are in.
	var wg sync.WaitGroup
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		wg.Go(func() {
			if err := Merge(path, me(), Entry{Name: "proa-" + n}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	data, _ := os.ReadFile(path)
	for _, n := range []string{"proa-a", "proa-b", "proa-c", "proa-d", "proa-e"} {
		if strings.Count(string(data), "name: "+n+"\n") != 3 {
			t.Errorf("%s is not whole in\n%s", n, data)
		}
	}
}

func TestRenew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	e := Entry{Name: "proa", Server: "https://127.0.0.1:6443", CA: []byte("ca"), ClientCert: []byte("old"), ClientKey: []byte("k")}
	if err := Renew(path, me(), e); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Fatal("a renewal makes a file that the person removed")
	}
	for _, x := range []Entry{e, {Name: "work", Server: "https://work"}} {
		if err := Merge(path, me(), x); err != nil {
			t.Fatal(err)
		}
	}
	e.ClientCert = []byte("new")
	if err := Renew(path, me(), e); err != nil {
		t.Fatal(err)
	}
	data, _ := os.ReadFile(path)
	if !strings.Contains(string(data), "client-certificate-data: bmV3") || !strings.Contains(string(data), "current-context: work") {
		t.Errorf("%s", data)
	}
	e.Server, e.ClientCert = "https://another", []byte("newest")
	if err := Renew(path, me(), e); err != nil {
		t.Fatal(err)
	}
	if now, _ := os.ReadFile(path); string(now) != string(data) {
		t.Error("another cluster's entry of the same name is overwritten")
	}
}
