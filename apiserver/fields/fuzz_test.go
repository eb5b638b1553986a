package fields

import (
	"bytes"
	"testing"

	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// FuzzSet: any bytes are a set of fields or none; what is one is spelled in one way,
// and means what upstream's library reads.
func FuzzSet(f *testing.F) {
	for _, s := range []string{`{}`, `{"f:metadata":{"f:labels":{".":{},"f:a":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"web\"}":{".":{},"f:image":{}}}}}`, `{"f:finalizers":{"v:\"a/b\"":{}}}`,
		`{"i:0":{},"i:-1":{},"v:1.5":{},"v:null":{}}`, `{"f:a":{},"f:a":{}}`, `{"x:y":{}}`, `{"k:{\"port\":80,\"protocol\":\"TCP\"}":{}}`, `{"f:\u0000":{}}`, `[]`, `{"f:a":null}`, `{"f:`,
		`{"k:{\"b\":1,\"a\":2}":{".":{}}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := parse(raw)
		theirs := fieldpath.NewSet()
		theirErr := theirs.FromJSON(bytes.NewReader(raw))
		if err != nil {
			return
		}
		once := s.appendTo(nil)
		again, err := parse(once)
		if err != nil {
			t.Fatalf("%s is spelled %s: %v", raw, once, err)
		}
		if twice := again.appendTo(nil); !bytes.Equal(once, twice) {
			t.Fatalf("%s is spelled %s, then %s", raw, once, twice)
		}
		read := fieldpath.NewSet()
		if err := read.FromJSON(bytes.NewReader(once)); err != nil {
			t.Fatalf("%s is spelled %s, which upstream does not read: %v", raw, once, err)
		}
		if theirErr == nil && !read.Equals(theirs) {
			t.Fatalf("%s is spelled %s: %v; upstream reads %v", raw, once, read, theirs)
		}
	})
}
