package main

import (
	"archive/tar"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestReadTags(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		member, content string
		want            []tagged
		bad             bool
	}{
		{"manifest.json", `[{"Config":"blobs/sha256/abc","RepoTags":["docker.io/a/b:1","docker.io/a/b:2"]}]`,
			[]tagged{{"docker.io/a/b:1", "sha256:abc"}, {"docker.io/a/b:2", "sha256:abc"}}, false},
		{"index.json", `{}`, nil, false},
		{"manifest.json", `{`, nil, true},
	} {
		file := filepath.Join(dir, "a.tar")
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		tw := tar.NewWriter(f)
		tw.WriteHeader(&tar.Header{Name: tt.member, Mode: 0o644, Size: int64(len(tt.content))})
		tw.Write([]byte(tt.content))
		tw.Close()
		f.Close()
		got, err := readTags(file)
		if !reflect.DeepEqual(got, tt.want) || (err != nil) != tt.bad {
			t.Errorf("%s %s: %v %v", tt.member, tt.content, got, err)
		}
	}
}
