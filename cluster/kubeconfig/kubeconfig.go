// Package kubeconfig merges a cluster's context into the file of the person who
// runs proa: under sudo that person's, not root's. The file keeps everything else
// that it holds; it is written whole under a lock, with mode 0600, and the version
// before is kept beside it as FILE.proa-backup.
package kubeconfig

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"
)

// Entry is one cluster, user and context of the same name.
type Entry struct {
	Name                      string // context "proa" or "proa-NAME"
	Server                    string // https://127.0.0.1:6443
	CA, ClientCert, ClientKey []byte // PEM
}

// Owner is whom files belong to.
type Owner struct {
	UID, GID int
	Home     string
}

// Invoker is the person behind sudo, or the one who runs this process.
func Invoker() Owner {
	if id := os.Getenv("SUDO_UID"); id != "" && os.Geteuid() == 0 {
		if u, err := user.LookupId(id); err == nil {
			uid, _ := strconv.Atoi(u.Uid)
			gid, _ := strconv.Atoi(u.Gid)
			return Owner{uid, gid, u.HomeDir}
		}
	}
	home, _ := os.UserHomeDir()
	return Owner{os.Geteuid(), os.Getegid(), home}
}

// DefaultPath is the first file of KUBECONFIG, or .kube/config in the invoker's
// home.
func DefaultPath(o Owner) string {
	if list := filepath.SplitList(os.Getenv("KUBECONFIG")); len(list) > 0 && list[0] != "" {
		return list[0]
	}
	return filepath.Join(o.Home, ".kube", "config")
}

// Merge writes e into the file at path; it becomes the current context.
func Merge(path string, o Owner, e Entry) error {
	return edit(path, o, func(doc map[string]any) {
		set(doc, "clusters", e.Name, "cluster", map[string]any{
			"server": e.Server, "certificate-authority-data": base64.StdEncoding.EncodeToString(e.CA)})
		set(doc, "users", e.Name, "user", map[string]any{
			"client-certificate-data": base64.StdEncoding.EncodeToString(e.ClientCert),
			"client-key-data":         base64.StdEncoding.EncodeToString(e.ClientKey)})
		set(doc, "contexts", e.Name, "context", map[string]any{"cluster": e.Name, "user": e.Name})
		doc["current-context"] = e.Name
	})
}

// Renew replaces the credentials of e's user where the file has an entry of this
// name for the same server; the current context stays. A file without it, or no
// file, is left alone: it may be somebody else's by now.
func Renew(path string, o Owner, e Entry) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return edit(path, o, func(doc map[string]any) {
		c, _ := find(doc, "clusters", e.Name)["cluster"].(map[string]any)
		if c["server"] != e.Server || c["certificate-authority-data"] != base64.StdEncoding.EncodeToString(e.CA) || find(doc, "users", e.Name) == nil {
			return
		}
		set(doc, "users", e.Name, "user", map[string]any{
			"client-certificate-data": base64.StdEncoding.EncodeToString(e.ClientCert),
			"client-key-data":         base64.StdEncoding.EncodeToString(e.ClientKey)})
	})
}

func find(doc map[string]any, list, name string) map[string]any {
	items, _ := doc[list].([]any)
	for _, it := range items {
		if m, _ := it.(map[string]any); m["name"] == name {
			return m
		}
	}
	return nil
}

// Remove takes the entries of this name out; a file that holds nothing else is
// removed. A missing file is fine.
func Remove(path string, o Owner, name string) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	empty := false
	err := edit(path, o, func(doc map[string]any) {
		left := 0
		for _, list := range []string{"clusters", "users", "contexts"} {
			items, _ := doc[list].([]any)
			var keep []any
			for _, it := range items {
				if m, _ := it.(map[string]any); m["name"] != name {
					keep = append(keep, it)
				}
			}
			left += len(keep)
			doc[list] = keep
		}
		if doc["current-context"] == name {
			doc["current-context"] = ""
		}
		empty = left == 0
	})
	if err == nil && empty {
		os.Remove(path + backup)
		err = os.Remove(path)
	}
	return err
}

const backup = ".proa-backup"

func set(doc map[string]any, list, name, field string, value any) {
	items, _ := doc[list].([]any)
	entry := map[string]any{"name": name, field: value}
	for i, it := range items {
		if m, _ := it.(map[string]any); m["name"] == name {
			items[i] = entry
			return
		}
	}
	doc[list] = append(items, entry)
}

func edit(path string, o Owner, change func(doc map[string]any)) error {
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create directory of kubeconfig %q: %w", path, err)
		}
		os.Lchown(dir, o.UID, o.GID)
	}
	unlock, err := lock(path+".lock", o)
	if err != nil {
		return err
	}
	defer unlock()
	doc := map[string]any{}
	old, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := yaml.Unmarshal(old, &doc); err != nil {
			return fmt.Errorf("read kubeconfig %q: %w; mend it or choose another with --kubeconfig", path, err)
		}
		if doc == nil {
			doc = map[string]any{}
		}
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("read kubeconfig %q: %w", path, err)
	}
	doc["apiVersion"], doc["kind"] = "v1", "Config"
	if doc["preferences"] == nil {
		doc["preferences"] = map[string]any{}
	}
	change(doc)
	data, err := yaml.Marshal(doc)
	if err != nil {
		return err
	}
	if string(data) == string(old) {
		return nil
	}
	if old != nil {
		if err := replace(path+backup, old, o); err != nil {
			return err
		}
	}
	return replace(path, data, o)
}

func replace(path string, data []byte, o Owner) error {
	// A kubeconfig may be a link into a dotfiles folder: write what it points at. Root
	// must not be led to write a file of somebody else that way.
	if target, err := filepath.EvalSymlinks(path); err == nil {
		if target != path && o.UID != os.Geteuid() {
			if st, err := os.Stat(target); err == nil && int(st.Sys().(*syscall.Stat_t).Uid) != o.UID {
				return fmt.Errorf("write kubeconfig %q: it is a link to %q, which belongs to another user; choose another with --kubeconfig", path, target)
			}
		}
		path = target
	}
	// A name that nobody can guess, made and owned by us only: the directory may
	// belong to a person with less rights than this process.
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return fmt.Errorf("write kubeconfig %q: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err == nil && (o.UID != os.Geteuid() || o.GID != os.Getegid()) {
		err = f.Chown(o.UID, o.GID)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write kubeconfig %q: %w", path, err)
	}
	return nil
}

// lock takes the same lock file that client-go uses (created exclusively), for
// two seconds at most; one left by a dead process older than a minute is taken.
func lock(path string, o Owner) (func(), error) {
	deadline := time.Now().Add(2 * time.Second)
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			f.Close()
			os.Lchown(path, o.UID, o.GID)
			return func() { os.Remove(path) }, nil
		}
		if !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("lock kubeconfig with %q: %w", path, err)
		}
		if st, e := os.Stat(path); e == nil && time.Since(st.ModTime()) > time.Minute {
			os.Remove(path)
			continue
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("lock kubeconfig: %q is held by another process; remove it if none is running", path)
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 20e6}, nil)
	}
}

// ContextName of a cluster: "proa", or "proa-NAME".
func ContextName(cluster string) string {
	if cluster == "proa" || cluster == "" {
		return "proa"
	}
	return "proa-" + strings.TrimPrefix(cluster, "proa-")
}
