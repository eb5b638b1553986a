package hook

import "testing"

// Paths are clean, as upstream's are: servers redirect others.
func TestAddress(t *testing.T) {
	for _, c := range []struct {
		target Target
		want   string
	}{
		{Target{URL: "https://127.0.0.1:9443//mutate"}, "https://127.0.0.1:9443/mutate"},
		{Target{URL: "https://hooks.example.com"}, "https://hooks.example.com/"},
		{Target{URL: "https://hooks.example.com/a/b/"}, "https://hooks.example.com/a/b"},
	} {
		u, _, err := address(c.target)
		if err != nil || u.String() != c.want {
			t.Errorf("%s: %v %v, want %s", c.target.URL, u, err, c.want)
		}
	}
}
