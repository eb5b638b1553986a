package audit

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"proa.dev/env"
)

const (
	defaultSize = 100 // megabytes
	backupTime  = "2006-01-02T15-04-05.000"
)

// rotating is a log file that is set aside as NAME-TIME.EXT when it would grow
// beyond its size; the oldest of those go away. It is not safe for concurrent use.
type rotating struct {
	path       string
	max        int64
	keep, days int
	clock      env.Clock
	file       *os.File
	size       int64
}

func openRotating(path string, megabytes, keep, days int, clock env.Clock) (*rotating, error) {
	if megabytes == 0 {
		megabytes = defaultSize
	}
	r := &rotating{path: path, max: int64(megabytes) << 20, keep: keep, days: days, clock: clock}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("open audit log %q: %w", path, err)
	}
	if err := r.open(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *rotating) open() error {
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open audit log %q: %w", r.path, err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("open audit log %q: %w", r.path, err)
	}
	r.file, r.size = f, st.Size()
	return nil
}

func (r *rotating) Write(p []byte) (int, error) {
	if r.size > 0 && r.size+int64(len(p)) > r.max {
		if err := r.rotate(); err != nil {
			return 0, err
		}
	}
	if r.file == nil {
		if err := r.open(); err != nil {
			return 0, err
		}
	}
	n, err := r.file.Write(p)
	r.size += int64(n)
	return n, err
}

func (r *rotating) Close() error {
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file = nil
	return err
}

func (r *rotating) names() (prefix, ext string) {
	ext = filepath.Ext(r.path)
	return strings.TrimSuffix(filepath.Base(r.path), ext) + "-", ext
}

func (r *rotating) rotate() error {
	if err := r.Close(); err != nil {
		return fmt.Errorf("rotate audit log: %w", err)
	}
	prefix, ext := r.names()
	for at := r.clock.Now().UTC(); ; at = at.Add(time.Millisecond) {
		to := filepath.Join(filepath.Dir(r.path), prefix+at.Format(backupTime)+ext)
		if _, err := os.Lstat(to); err == nil {
			continue
		}
		if err := os.Rename(r.path, to); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("rotate audit log: %w", err)
		}
		break
	}
	r.clean()
	return r.open()
}

// clean removes backups beyond the number and the age that are kept.
func (r *rotating) clean() {
	prefix, ext := r.names()
	list, err := os.ReadDir(filepath.Dir(r.path))
	if err != nil {
		return
	}
	type backup struct {
		name string
		at   time.Time
	}
	var found []backup
	for _, e := range list {
		text, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok || !strings.HasSuffix(text, ext) {
			continue
		}
		if at, err := time.Parse(backupTime, strings.TrimSuffix(text, ext)); err == nil {
			found = append(found, backup{e.Name(), at})
		}
	}
	slices.SortFunc(found, func(a, b backup) int { return b.at.Compare(a.at) })
	now := r.clock.Now()
	for i, b := range found {
		if r.keep > 0 && i >= r.keep || r.days > 0 && now.Sub(b.at) > time.Duration(r.days)*24*time.Hour {
			os.Remove(filepath.Join(filepath.Dir(r.path), b.name))
		}
	}
}
