// Package suffix makes names unique as the API does for generateName: up to 58
// characters of a base and five of an alphabet without vowels and without what
// looks alike, so that no words arise (apimachinery, util/rand).
package suffix

const (
	alphabet = "bcdfghjklmnpqrstvwxz2456789"
	length   = 5
	maxBase  = 63 - length
)

// Append writes v behind base, which is cut so that a name of 63 bytes comes out at
// the most.
func Append(base string, v uint64) string {
	if len(base) > maxBase {
		base = base[:maxBase]
	}
	var b [length]byte
	for i := range b {
		b[i] = alphabet[v%uint64(len(alphabet))]
		v /= uint64(len(alphabet))
	}
	return base + string(b[:])
}
