package auth

import (
	"strings"
	"testing"
)

// FuzzServiceAccountToken: no token but one that was issued names anybody, whatever
// is made of its parts.
func FuzzServiceAccountToken(f *testing.F) {
	i := newIssuer(f)
	good := i.token(f, nil)
	parts := strings.Split(good, ".")
	for _, s := range []string{good, "", "..", good + ".", parts[0] + ".." + parts[2], parts[1] + "." + parts[0] + "." + parts[2], strings.ToUpper(good), "eyJhbGciOiJub25lIn0." + parts[1] + ".",
		"eyJhbGciOiJIUzI1NiJ9." + parts[1] + "." + parts[2], strings.Repeat("a.", 1000), `{"payload":"` + parts[1] + `","signatures":[{"protected":"` + parts[0] + `","signature":"` + parts[2] + `"}]}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, token string) {
		u, err := i.who(token)
		if err != nil {
			return
		}
		// The last letter of a part may have bits that mean nothing; the words are the same.
		if p := strings.Split(token, "."); len(p) != 3 || p[0] != parts[0] || p[1] != parts[1] || u.Name != "system:serviceaccount:n:sa" {
			t.Fatalf("%q names %+v", token, u)
		}
	})
}
