package conformance

import (
	"encoding/base64"
	"encoding/json"
	"testing"
)

// expire makes a continue token old: its version becomes 1, its birth long ago.
// On another server than proa the version alone decides.
func (c *cluster) expire(t *testing.T, token string) string {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(token)
	ok(t, err)
	var fields map[string]any
	ok(t, json.Unmarshal(b, &fields))
	fields["rv"] = 1
	if _, has := fields["t"]; has {
		fields["t"] = 1
	}
	b, err = json.Marshal(fields)
	ok(t, err)
	return base64.RawURLEncoding.EncodeToString(b)
}
