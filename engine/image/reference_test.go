package image

import (
	"errors"
	"strings"
	"testing"
)

const someHex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

var goodReferences = map[string]string{
	"nginx":                         "docker.io/library/nginx:latest",
	"nginx:1.27":                    "docker.io/library/nginx:1.27",
	"a/b":                           "docker.io/a/b:latest",
	"docker.io/nginx":               "docker.io/library/nginx:latest",
	"index.docker.io/nginx":         "docker.io/library/nginx:latest",
	"docker.io/a/b:c":               "docker.io/a/b:c",
	"localhost/x":                   "localhost/x:latest",
	"localhost:5000/x:y":            "localhost:5000/x:y",
	"127.0.0.1:5000/x":              "127.0.0.1:5000/x:latest",
	"[::1]:5000/x":                  "[::1]:5000/x:latest",
	"[fd00::1]/x":                   "[fd00::1]/x:latest",
	"Registry/x":                    "Registry/x:latest",
	"reg.example/a/b/c__d/e.f--g:V": "reg.example/a/b/c__d/e.f--g:V",
	"x@sha256:" + someHex:           "docker.io/library/x@sha256:" + someHex,
	"r.io/x:tag@sha256:" + someHex:  "r.io/x@sha256:" + someHex,
	"x:5000/y":                      "x:5000/y:latest",
	"123":                           "docker.io/library/123:latest",
	"x:_a.-":                        "docker.io/library/x:_a.-",
}

var badReferences = []string{
	"", ":", "@", "/", "x:", "x@", "x@sha256:", "x@sha256:12", "x@md5:" + someHex, "x@sha256:" + strings.ToUpper(someHex),
	"X", "a/B", "a//b", "/a", "a/", "a b", "x:-", "x:.", "x:a/b:c d", "a___b", "a..b", "a._b", "-a", "a-", "a_", "_a", ".a",
	"x:" + strings.Repeat("t", 129), strings.Repeat("n", 250), "reg.example:port/x", "reg.example:/x", "-reg.example/x", "reg-.example/x",
	"reg..example/x", "[::1/x", "[]/x", "[zz]/x", "[::1]x/y", someHex, "x\x00y", "x\ny", "ünïcode", "https://reg.example/x", "x:y:z", "a@b@c",
}

func TestNormalize(t *testing.T) {
	for in, want := range goodReferences {
		got, err := Normalize(in)
		if err != nil || got != want {
			t.Errorf("Normalize(%q) = %q, %v; want %q", in, got, err, want)
		}
		if again, err := Normalize(got); err != nil || again != got {
			t.Errorf("Normalize(%q) is not stable: %q, %v", got, again, err)
		}
	}
	for _, in := range badReferences {
		got, err := Normalize(in)
		if !errors.Is(err, ErrReference) {
			t.Errorf("Normalize(%q) = %q, %v; want ErrReference", in, got, err)
		}
	}
}

func checkReference(t *testing.T, in string) {
	full, err := Normalize(in)
	if err != nil {
		if !errors.Is(err, ErrReference) {
			t.Fatalf("%q: %v is not ErrReference", in, err)
		}
		return
	}
	if again, err := Normalize(full); err != nil || again != full {
		t.Fatalf("%q became %q, which becomes %q, %v", in, full, again, err)
	}
	r, _ := ParseReference(in)
	if r.Domain == "" || r.Path == "" || (r.Tag == "") == (r.Digest == "") || strings.Contains(r.Path, "..") {
		t.Fatalf("%q has the parts %+v", in, r)
	}
}

func FuzzNormalize(f *testing.F) {
	for in := range goodReferences {
		f.Add(in)
	}
	for _, in := range badReferences {
		f.Add(in)
	}
	f.Fuzz(checkReference)
}
