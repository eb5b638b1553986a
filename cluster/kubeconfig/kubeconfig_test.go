package kubeconfig

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMergeKeepsOthersAndRemoveRestores(t *testing.T) {
	path := filepath.Join(t.TempDir(), ".kube", "config")
	o := Owner{os.Geteuid(), os.Getegid(), ""}
	os.MkdirAll(filepath.Dir(path), 0o700)
	os.WriteFile(path, []byte("apiVersion: v1\nkind: Config\nclusters:\n- name: other\n  cluster: {server: https://o}\nextensions: [x]\n"), 0o600)
	for range 2 {
		if err := Merge(path, o, Entry{Name: "proa", Server: "https://127.0.0.1:6443"}); err != nil {
			t.Fatal(err)
		}
	}
	data, _ := os.ReadFile(path)
	for _, want := range []string{"other", "extensions", "current-context: proa", "https://127.0.0.1:6443"} {
		if !strings.Contains(string(data), want) {
			t.Errorf("lost %q in\n%s", want, data)
		}
	}
	if strings.Count(string(data), "name: proa") != 3 {
		t.Errorf("merged twice, want one entry of each kind:\n%s", data)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	if _, err := os.Stat(path + backup); err != nil {
		t.Error("no backup", err)
	}
	if err := Remove(path, o, "proa"); err != nil {
		t.Fatal(err)
	}
	data, _ = os.ReadFile(path)
	if strings.Contains(string(data), "proa") || !strings.Contains(string(data), "other") {
		t.Errorf("after Remove:\n%s", data)
	}
}

func TestMergeRefusesBrokenYAMLAndLosesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	os.WriteFile(path, []byte("a: [b"), 0o600)
	if err := Merge(path, Owner{os.Geteuid(), os.Getegid(), ""}, Entry{Name: "proa"}); err == nil || !strings.Contains(err.Error(), "--kubeconfig") {
		t.Errorf("got %v", err)
	}
	if data, _ := os.ReadFile(path); string(data) != "a: [b" {
		t.Error("changed the broken file")
	}
}
