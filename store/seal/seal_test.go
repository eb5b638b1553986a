package seal_test

import (
	"bytes"
	"strings"
	"testing"

	"proa.dev/env"
	"proa.dev/store/seal"
)

func TestSeal(t *testing.T) {
	one := seal.Key{Name: "key1", Secret: bytes.Repeat([]byte{1}, 32)}
	k, err := seal.New(env.SystemRand(), one)
	if err != nil {
		t.Fatal(err)
	}
	a, err := k.Seal("/a", []byte("text"))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := k.Seal("/a", []byte("text"))
	if bytes.Equal(a, b) || !bytes.HasPrefix(a, []byte("k8s:enc:aesgcm:v1:key1:")) || bytes.Contains(a, []byte("text")) {
		t.Fatalf("sealed to %q and %q", a, b)
	}
	if got, err := k.Open("/a", a); err != nil || string(got) != "text" {
		t.Fatal(got, err)
	}
	if _, err := k.Open("/b", a); err == nil {
		t.Fatal("a value was moved to another key")
	}
	for i := range a {
		bad := bytes.Clone(a)
		bad[i] ^= 1
		if _, err := k.Open("/a", bad); err == nil {
			t.Fatalf("byte %d was changed", i)
		}
		if _, err := k.Open("/a", a[:i]); err == nil {
			t.Fatalf("cut off at %d", i)
		}
	}
	for _, bad := range []seal.Key{{Name: "", Secret: one.Secret}, {Name: "a:b", Secret: one.Secret}, {Name: "a", Secret: []byte("short")}} {
		if _, err := seal.New(env.SystemRand(), bad); err == nil || !strings.Contains(err.Error(), bad.Name) {
			t.Fatalf("key %v: %v", bad, err)
		}
	}
	if _, err := seal.New(env.SystemRand()); err == nil {
		t.Fatal("no key")
	}
}
