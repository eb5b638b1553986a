package token

import "testing"

// The token and signature of the documentation's form: header and signature with
// nothing in between; another content, key or name gives another one. The value was
// computed with another implementation.
func TestDetached(t *testing.T) {
	const want = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..K1chermAQEq0rdqy-ehj0VDfmA_ytv8Wzh9g26FldrE"
	got := Detached("apiVersion: v1\n", "abcdef", "0123456789abcdef")
	if got != want {
		t.Errorf("the signature is %s, want %s", got, want)
	}
	for _, other := range []string{Detached("apiVersion: v2\n", "abcdef", "0123456789abcdef"), Detached("apiVersion: v1\n", "abcdeg", "0123456789abcdef"), Detached("apiVersion: v1\n", "abcdef", "1123456789abcdef")} {
		if other == got {
			t.Error("something else has the same signature")
		}
	}
}
