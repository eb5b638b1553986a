package stream

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"proa.dev/env"
	"proa.dev/internal/await"
	"proa.dev/internal/locked"
)

func stampOf(second int) string {
	return time.Date(2026, 1, 1, 0, 0, second, 0, time.UTC).Format(time.RFC3339Nano)
}

func logFile(t *testing.T, path string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLogOptions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	// Two rotated parts before the current file, the older one compressed.
	var z bytes.Buffer
	g := gzip.NewWriter(&z)
	fmt.Fprintf(g, "%s stdout F one\n", stampOf(1))
	g.Close()
	if err := os.WriteFile(path+".20260101-000001.gz", z.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	logFile(t, path+".20260101-000002", stampOf(2)+" stderr F two")
	logFile(t, path, stampOf(3)+" stdout P thr", stampOf(3)+" stdout F ee", stampOf(4)+" stdout F four", "torn")
	n := func(i int64) *int64 { return &i }
	for _, c := range []struct {
		name string
		o    LogOptions
		want string
	}{
		{"all", LogOptions{}, "one\ntwo\nthree\nfour\n"},
		{"tail 2", LogOptions{TailLines: n(2)}, "three\nfour\n"},
		{"tail over files", LogOptions{TailLines: n(3)}, "two\nthree\nfour\n"},
		{"tail of more than there is", LogOptions{TailLines: n(99)}, "one\ntwo\nthree\nfour\n"},
		{"tail 0", LogOptions{TailLines: n(0)}, ""},
		{"since", LogOptions{Since: time.Date(2026, 1, 1, 0, 0, 3, 0, time.UTC)}, "three\nfour\n"},
		{"since and tail", LogOptions{Since: time.Date(2026, 1, 1, 0, 0, 2, 0, time.UTC), TailLines: n(1)}, "four\n"},
		{"limit", LogOptions{LimitBytes: n(6)}, "one\ntw"},
		{"stderr", LogOptions{Stream: "stderr"}, "two\n"},
		{"timestamps", LogOptions{Timestamps: true, TailLines: n(2)}, stampOf(3) + " three\n" + stampOf(4) + " four\n"},
	} {
		var out bytes.Buffer
		err := WriteLog(context.Background(), LogSource{Path: path, Running: func() bool { return false }, Clock: env.SystemClock()}, c.o, &out)
		if err != nil || out.String() != c.want {
			t.Errorf("%s: %q %v, want %q", c.name, out.String(), err, c.want)
		}
	}
	if got := Tail(path, 2, 6); got != "\nfour\n" {
		t.Errorf("Tail: %q", got)
	}
}

// Following goes over a rotation and ends after the container's last words.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	var running atomic.Bool
	running.Store(true)
	var out locked.Buffer
	done := make(chan error, 1)
	go func() {
		done <- WriteLog(context.Background(), LogSource{Path: path, Running: running.Load, Clock: env.SystemClock()}, LogOptions{Follow: true}, &out)
	}()
	wait := func(want string) {
		t.Helper()
		await.Nil(t, 10*time.Second, fmt.Sprintf("followed %q", want), func() error {
			if got := out.String(); got != want {
				return fmt.Errorf("it is %q", got)
			}
			return nil
		})
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(f, "%s stdout F a\n%s stdo", stampOf(1), stampOf(2))
	wait("a\n")
	fmt.Fprint(f, "ut F b\n")
	wait("a\nb\n")
	if err := os.Rename(path, path+".20260101"); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(f, "%s stdout F c\n", stampOf(3)) // before the writer reopens
	f.Close()
	logFile(t, path, stampOf(4)+" stdout F d")
	wait("a\nb\nc\nd\n")
	h, _ := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	fmt.Fprintf(h, "%s stdout F e\n", stampOf(5))
	h.Close()
	running.Store(false)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != "a\nb\nc\nd\ne\n" {
		t.Errorf("followed %q", got)
	}
}

func TestParseLogOptions(t *testing.T) {
	now := time.Unix(1000, 0)
	o, previous, err := ParseLogOptions(map[string][]string{"follow": {"true"}, "tailLines": {"5"}, "sinceSeconds": {"10"}, "previous": {"1"}}, now)
	if err != nil || !o.Follow || !previous || *o.TailLines != 5 || !o.Since.Equal(time.Unix(990, 0)) {
		t.Errorf("%+v %v %v", o, previous, err)
	}
	if _, _, err := ParseLogOptions(map[string][]string{"tailLines": {"-1"}, "limitBytes": {"x"}}, now); err == nil ||
		!strings.Contains(err.Error(), "tailLines") || !strings.Contains(err.Error(), "limitBytes") {
		t.Errorf("all problems at once: %v", err)
	}
}
