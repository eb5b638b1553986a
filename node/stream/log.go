package stream

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"proa.dev/env"
)

// LogOptions choose what of a container's log is written.
type LogOptions struct {
	Follow     bool
	Timestamps bool
	Since      time.Time // zero: from the beginning
	TailLines  *int64    // nil: all
	LimitBytes *int64    // nil: all
	Stream     string    // "", "stdout" or "stderr"
}

// LogSource is one container attempt's log.
type LogSource struct {
	// Path of the current file; rotated ones lie beside it as <path>.<time>[.gz].
	Path string
	// Running says whether more may come. It is asked at the end of the file.
	Running func() bool
	// Clock paces following.
	Clock env.Clock
}

// followPause is how often a followed file is looked at. Rotation swaps the file
// under its name, so the name is looked at too.
const followPause = 100 * time.Millisecond

// entry is one line of the CRI log format:
//
//	2026-01-01T00:00:00.000000000Z stdout F text
//
// P instead of F marks a part of a line that goes on in the next entry.
type entry struct {
	stamp  string
	stream string
	part   bool
	text   []byte // with the newline of a full line
}

func parseEntry(line []byte) (entry, error) {
	var e entry
	stamp, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok {
		return e, fmt.Errorf("log entry %q: no stream", clip(line))
	}
	stream, rest, ok := bytes.Cut(rest, []byte(" "))
	if !ok {
		return e, fmt.Errorf("log entry %q: no tag", clip(line))
	}
	tag, text, ok := bytes.Cut(rest, []byte(" "))
	if !ok {
		return e, fmt.Errorf("log entry %q: no text", clip(line))
	}
	e.stamp, e.stream = string(stamp), string(stream)
	first, _, _ := bytes.Cut(tag, []byte(":"))
	e.part = string(first) == "P"
	e.text = text
	if e.part {
		e.text = bytes.TrimSuffix(text, []byte("\n"))
	}
	return e, nil
}

func clip(b []byte) []byte { return b[:min(len(b), 64)] }

// files of a log, oldest first.
func files(path string) []string {
	old, _ := filepath.Glob(path + ".*")
	old = slicesFilter(old, func(s string) bool { return !strings.HasSuffix(s, ".tmp") })
	sort.Strings(old)
	return append(old, path)
}

func slicesFilter(in []string, keep func(string) bool) []string {
	out := in[:0]
	for _, s := range in {
		if keep(s) {
			out = append(out, s)
		}
	}
	return out
}

// WriteLog writes a log to w and, with Follow, goes on until the container has
// ended or ctx does. A container without a file has not written anything.
func WriteLog(ctx context.Context, src LogSource, o LogOptions, w io.Writer) error {
	l := &logWriter{w: w, o: o, limit: -1}
	if o.LimitBytes != nil {
		l.limit = *o.LimitBytes
	}
	list := files(src.Path)
	skip := 0 // entries' lines before the tail, in the first file read
	if o.TailLines != nil {
		list, skip = tail(list, *o.TailLines, o)
	}
	for i, path := range list {
		last := i == len(list)-1
		f, err := open(path)
		if errors.Is(err, os.ErrNotExist) {
			if !last || !o.Follow {
				continue
			}
			if f, err = waitFor(ctx, src, path); f == nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		l.skip = skip
		skip = 0
		done, err := l.copy(ctx, src, path, f, last && o.Follow)
		if err != nil || done {
			return err
		}
	}
	return nil
}

func open(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil || !strings.HasSuffix(path, ".gz") {
		return f, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read rotated log %q: %w", path, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{z, f}, nil
}

func waitFor(ctx context.Context, src LogSource, path string) (io.ReadCloser, error) {
	for {
		running := src.Running()
		f, err := os.Open(path)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if !running || !env.Sleep(ctx, src.Clock, followPause) {
			return nil, nil
		}
	}
}

// logWriter filters entries and counts bytes.
type logWriter struct {
	w     io.Writer
	o     LogOptions
	limit int64 // bytes left; -1: no limit
	skip  int   // full lines to skip first
	mid   bool  // in the middle of a line that is shown
	after bool  // Since has been passed
}

var errLimit = errors.New("limit reached")

func (l *logWriter) entry(line []byte) error {
	e, err := parseEntry(line)
	if err != nil {
		return nil // a torn line after a crash: leave it out
	}
	if l.o.Stream != "" && e.stream != l.o.Stream {
		return nil
	}
	if !l.after && !l.o.Since.IsZero() {
		at, err := time.Parse(time.RFC3339Nano, e.stamp)
		if err != nil || at.Before(l.o.Since) {
			return nil
		}
	}
	l.after = true
	if l.skip > 0 {
		if !e.part {
			l.skip--
		}
		return nil
	}
	out := e.text
	if l.o.Timestamps && !l.mid {
		out = append([]byte(e.stamp+" "), out...)
	}
	l.mid = e.part
	if l.limit >= 0 {
		if int64(len(out)) > l.limit {
			out = out[:l.limit]
		}
		l.limit -= int64(len(out))
	}
	if _, err := l.w.Write(out); err != nil {
		return err
	}
	if l.limit == 0 {
		return errLimit
	}
	return nil
}

// copy writes one file; with follow it stays at the end, moves to the next file
// when the name gets one, and reports done when the container has ended.
func (l *logWriter) copy(ctx context.Context, src LogSource, path string, f io.ReadCloser, follow bool) (done bool, err error) {
	defer func() { f.Close() }()
	r := bufio.NewReaderSize(f, 32<<10)
	var held []byte // an entry that is not complete yet
	ending, swapped := false, false
	for {
		line, err := r.ReadBytes('\n')
		held = append(held, line...)
		if err == nil {
			werr := l.entry(held)
			held = held[:0]
			if errors.Is(werr, errLimit) {
				return true, nil
			}
			if werr != nil {
				return true, werr
			}
			if ctx.Err() != nil {
				return true, nil
			}
			continue
		}
		if err != io.EOF {
			return true, err
		}
		if !follow {
			return false, nil
		}
		if next := replaced(path, f); next != nil {
			if !swapped { // once more: what was written before the writer changed over
				swapped = true
				next.Close()
				continue
			}
			f.Close()
			f, ending, swapped, held = next, false, false, held[:0]
			r.Reset(f)
			continue
		}
		if ending {
			return true, nil
		}
		if flusher, ok := l.w.(interface{ Flush() }); ok {
			flusher.Flush()
		}
		// Once more after the container has ended: what it wrote last.
		ending = !src.Running()
		if !ending && !env.Sleep(ctx, src.Clock, followPause) {
			return true, nil
		}
	}
}

// replaced opens path when it is not the file f any more.
func replaced(path string, f io.ReadCloser) io.ReadCloser {
	old, ok := f.(*os.File)
	if !ok {
		return nil
	}
	a, err := old.Stat()
	if err != nil {
		return nil
	}
	b, err := os.Stat(path)
	if err != nil || os.SameFile(a, b) {
		return nil
	}
	next, err := os.Open(path)
	if err != nil {
		return nil
	}
	return next
}

// tail finds where the last n lines begin: the files to read and how many lines
// to skip in the first of them.
func tail(list []string, n int64, o LogOptions) (rest []string, skip int) {
	if n <= 0 {
		// Nothing of what is there; only what comes.
		last := list[len(list)-1]
		return list[len(list)-1:], countLines(last, o)
	}
	have := int64(0)
	for i := len(list) - 1; i >= 0; i-- {
		lines := int64(countLines(list[i], o))
		if have+lines >= n {
			return list[i:], int(have + lines - n)
		}
		have += lines
	}
	return list, 0
}

// countLines counts full lines that the options let through.
func countLines(path string, o LogOptions) int {
	f, err := open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 64<<10)
	n := 0
	after := o.Since.IsZero()
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return n
		}
		e, perr := parseEntry(line)
		if perr != nil || e.part || o.Stream != "" && e.stream != o.Stream {
			continue
		}
		if !after {
			at, err := time.Parse(time.RFC3339Nano, e.stamp)
			if err != nil || at.Before(o.Since) {
				continue
			}
			after = true
		}
		n++
	}
}

// Tail returns the text of the last lines of a log, at most bytes of it.
func Tail(path string, lines int64, bytesMax int) string {
	var b bytes.Buffer
	if err := WriteLog(context.Background(), LogSource{Path: path, Running: func() bool { return false }}, LogOptions{TailLines: &lines}, &b); err != nil {
		return ""
	}
	out := b.Bytes()
	if len(out) > bytesMax {
		out = out[len(out)-bytesMax:]
	}
	return string(out)
}
