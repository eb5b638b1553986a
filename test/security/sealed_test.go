package security

import (
	"bytes"
	"context"
	"encoding/base64"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/store/disk"
	"proa.dev/store/seal"
)

// TestSecretsAreSealed: no file of the store holds what a Secret says, while it
// lives, after it changed and after it was deleted; another key does not open it.
func TestSecretsAreSealed(t *testing.T) {
	dir := t.TempDir()
	key := bytes.Repeat([]byte{7}, 32)
	open := func(key []byte) (*disk.Store, error) {
		s, err := seal.New(env.SystemRand(), seal.Key{Name: "key1", Secret: key})
		must(t, err)
		return disk.Open(context.Background(), disk.Config{Dir: dir, Clock: env.SystemClock(), Sealed: []disk.Sealed{{Prefix: "/registry/secrets/", Transform: s}}})
	}
	st, err := open(key)
	must(t, err)
	t.Run("written", func(t *testing.T) {
		p := start(t, st)
		p.namespace("n")
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "s"}, Data: map[string][]byte{"password": []byte("correct horse battery")}, StringData: map[string]string{"token": "staple-in-text"}}
		o := p.create(kind.Secret, secret).(*corev1.Secret).DeepCopy()
		p.create(kind.ConfigMap, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "c"}, Data: map[string]string{"open": "marker in the open"}})
		o.Data["password"] = []byte("second horse battery")
		_, err := p.admin.Update(p.ctx, kind.Secret, o, "", metav1.UpdateOptions{})
		must(t, err)
		secret.Name, secret.ResourceVersion = "gone", ""
		p.create(kind.Secret, secret)
		must(t, p.admin.Delete(p.ctx, kind.Secret, "n", "gone", metav1.DeleteOptions{}))
	})
	open1 := false
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		must(t, err)
		open1 = open1 || bytes.Contains(data, []byte("marker in the open"))
		for _, s := range []string{"horse battery", "staple-in-text"} {
			if bytes.Contains(data, []byte(s)) || bytes.Contains(data, []byte(base64.StdEncoding.EncodeToString([]byte(s))[:12])) {
				t.Errorf("%s holds %q", filepath.Base(path), s)
			}
		}
		if st, err := os.Stat(path); err == nil && st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: others may read it: %v", filepath.Base(path), st.Mode())
		}
		return nil
	}))
	if !open1 {
		t.Fatal("the test does not find what is not sealed either")
	}
	again, err := open(key)
	must(t, err)
	t.Run("read again", func(t *testing.T) {
		p := start(t, again)
		o, err := p.admin.Get(p.ctx, kind.Secret, "n", "s", metav1.GetOptions{})
		if err != nil || string(o.(*corev1.Secret).Data["password"]) != "second horse battery" || string(o.(*corev1.Secret).Data["token"]) != "staple-in-text" {
			t.Errorf("%v", err)
		}
	})
	other, err := open(bytes.Repeat([]byte{8}, 32))
	if err != nil {
		return // refused at the door: as good
	}
	defer other.Close()
	page, err := other.Range(context.Background(), "/registry/secrets/", "/registry/secrets0", 0, 0)
	if err == nil {
		for _, kv := range page.KVs {
			if strings.Contains(string(kv.Value), "horse") {
				t.Error("another key opens it")
			}
		}
	}
}
