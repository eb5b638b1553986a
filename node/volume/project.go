package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"proa.dev/kind"
)

// file is one file to show in a volume.
type file struct {
	data []byte
	mode os.FileMode
	uid  *int64 // owner, when it must be one user's alone
}

const defaultFileMode = int32(0o644)

// project makes or updates one volume whose content comes from API objects.
func (m *Manager) project(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) error {
	files := map[string]file{}
	var err error
	switch {
	case v.ConfigMap != nil:
		err = m.addConfigMap(ctx, pod, files, v.ConfigMap.Name, v.ConfigMap.Items, mode(v.ConfigMap.DefaultMode), v.ConfigMap.Optional)
	case v.Secret != nil:
		err = m.addSecret(ctx, pod, files, v.Secret.SecretName, v.Secret.Items, mode(v.Secret.DefaultMode), v.Secret.Optional)
	case v.DownwardAPI != nil:
		err = m.addDownward(pod, files, v.DownwardAPI.Items, mode(v.DownwardAPI.DefaultMode))
	case v.Projected != nil:
		var errs []error
		def := mode(v.Projected.DefaultMode)
		for i := range v.Projected.Sources {
			switch s := &v.Projected.Sources[i]; {
			case s.ConfigMap != nil:
				errs = append(errs, m.addConfigMap(ctx, pod, files, s.ConfigMap.Name, s.ConfigMap.Items, def, s.ConfigMap.Optional))
			case s.Secret != nil:
				errs = append(errs, m.addSecret(ctx, pod, files, s.Secret.Name, s.Secret.Items, def, s.Secret.Optional))
			case s.DownwardAPI != nil:
				errs = append(errs, m.addDownward(pod, files, s.DownwardAPI.Items, def))
			case s.ServiceAccountToken != nil:
				errs = append(errs, m.addToken(ctx, pod, v.Name, files, s.ServiceAccountToken, def))
			default:
				errs = append(errs, errors.New("projected source is not supported by this node; use configMap, secret, downwardAPI or serviceAccountToken"))
			}
		}
		err = errors.Join(errs...)
	}
	if err != nil {
		return err
	}
	if err := m.mountMemory(); err != nil {
		return err
	}
	dir := m.Path(pod, v)
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return err
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	return writeAtomic(dir, files, fsGroup(pod), m.cfg.Clock.Now())
}

func mode(m *int32) int32 {
	if m == nil {
		return defaultFileMode
	}
	return *m
}

func (m *Manager) addConfigMap(ctx context.Context, pod *corev1.Pod, files map[string]file, name string, items []corev1.KeyToPath, def int32, optional *bool) error {
	missingOK := optional != nil && *optional
	o, err := m.cfg.Object(ctx, kind.ConfigMap, pod.Namespace, name)
	if apierrors.IsNotFound(err) {
		if missingOK {
			return nil
		}
		return fmt.Errorf("configmap %q not found", name)
	}
	if err != nil {
		return fmt.Errorf("read configmap %q: %w", name, err)
	}
	cm := o.(*corev1.ConfigMap)
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	for k, v := range cm.BinaryData {
		data[k] = v
	}
	return pick(files, data, items, def, missingOK, "configmap references non-existent config key: %s")
}

func (m *Manager) addSecret(ctx context.Context, pod *corev1.Pod, files map[string]file, name string, items []corev1.KeyToPath, def int32, optional *bool) error {
	missingOK := optional != nil && *optional
	o, err := m.cfg.Object(ctx, kind.Secret, pod.Namespace, name)
	if apierrors.IsNotFound(err) {
		if missingOK {
			return nil
		}
		return fmt.Errorf("secret %q not found", name)
	}
	if err != nil {
		return fmt.Errorf("read secret %q: %w", name, err)
	}
	return pick(files, o.(*corev1.Secret).Data, items, def, missingOK, "references non-existent secret key: %s")
}

func pick(files map[string]file, data map[string][]byte, items []corev1.KeyToPath, def int32, missingOK bool, missing string) error {
	if len(items) == 0 {
		for k, v := range data {
			files[k] = file{data: v, mode: os.FileMode(def)}
		}
		return nil
	}
	for _, it := range items {
		v, ok := data[it.Key]
		if !ok {
			if missingOK {
				continue
			}
			return fmt.Errorf(missing, it.Key)
		}
		f := file{data: v, mode: os.FileMode(def)}
		if it.Mode != nil {
			f.mode = os.FileMode(*it.Mode)
		}
		files[it.Path] = f
	}
	return nil
}

func (m *Manager) addDownward(pod *corev1.Pod, files map[string]file, items []corev1.DownwardAPIVolumeFile, def int32) error {
	var errs []error
	for _, it := range items {
		f := file{mode: os.FileMode(def)}
		if it.Mode != nil {
			f.mode = os.FileMode(*it.Mode)
		}
		var text string
		var err error
		switch {
		case it.FieldRef != nil:
			text, err = FieldValue(pod, it.FieldRef.FieldPath)
		case it.ResourceFieldRef != nil:
			c := containerOf(pod, it.ResourceFieldRef.ContainerName)
			if c == nil {
				err = fmt.Errorf("container %s not found", it.ResourceFieldRef.ContainerName)
			} else {
				text, err = ResourceValue(c, it.ResourceFieldRef, m.cfg.Allocatable())
			}
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		f.data = []byte(text)
		files[it.Path] = f
	}
	return errors.Join(errs...)
}

func containerOf(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// refreshAt is when a token is to be replaced: after 80 % of its life, or after a
// day. Behaviour: KEP-1205.
func refreshAt(t Token) time.Time {
	life := t.Expires.Sub(t.IssuedAt)
	return t.IssuedAt.Add(min(life*8/10, 24*time.Hour))
}

func (m *Manager) addToken(ctx context.Context, pod *corev1.Pod, volume string, files map[string]file, s *corev1.ServiceAccountTokenProjection, def int32) error {
	seconds := int64(3600)
	if s.ExpirationSeconds != nil {
		seconds = *s.ExpirationSeconds
	}
	key := strings.Join([]string{string(pod.UID), volume, s.Path, s.Audience}, "/")
	m.mu.Lock()
	t, ok := m.tokens[key]
	m.mu.Unlock()
	if now := m.cfg.Clock.Now(); !ok || !now.Before(refreshAt(t)) {
		fresh, err := m.cfg.Token(ctx, pod, s.Audience, seconds)
		switch {
		case err == nil:
			t = fresh
			m.mu.Lock()
			m.tokens[key] = t
			m.mu.Unlock()
		case ok && now.Before(t.Expires): // the old one still works
			m.cfg.Log.Warn("token is kept past its time; the API did not give another", "pod", pod.Namespace+"/"+pod.Name, "err", err)
		default:
			return fmt.Errorf("failed to fetch token: %w", err)
		}
	}
	f := file{data: []byte(t.Value), mode: os.FileMode(def)}
	if uid := commonUser(pod); uid != nil || fsGroup(pod) != nil {
		f.mode, f.uid = 0o600, uid
	}
	files[s.Path] = f
	return nil
}

// commonUser is the one user as which all containers run, or nil.
func commonUser(pod *corev1.Pod) *int64 {
	var user *int64
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			var u *int64
			if pod.Spec.SecurityContext != nil {
				u = pod.Spec.SecurityContext.RunAsUser
			}
			if sc := list[i].SecurityContext; sc != nil && sc.RunAsUser != nil {
				u = sc.RunAsUser
			}
			if u == nil || user != nil && *user != *u {
				return nil
			}
			user = u
		}
	}
	return user
}

// writeAtomic makes dir show exactly files.
func writeAtomic(dir string, files map[string]file, group *int64, now time.Time) error {
	for p := range files {
		if p == "" || filepath.IsAbs(p) || !filepath.IsLocal(p) || strings.HasPrefix(p, "..") {
			return fmt.Errorf("invalid path %q: must stay below the volume and not start with \"..\"", p)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		return err
	}
	data := filepath.Join(dir, "..data")
	old, err := os.Readlink(data)
	if err == nil && same(filepath.Join(dir, old), files) {
		return links(dir, files)
	}
	name := ".." + now.UTC().Format("2006_01_02_15_04_05.000000000")
	fresh := filepath.Join(dir, name)
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return err
	}
	for p, f := range files {
		full := filepath.Join(fresh, p)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(full, f.data, 0o600); err != nil {
			return err
		}
		uid, gid, mode := -1, -1, f.mode
		if f.uid != nil {
			uid = int(*f.uid)
		}
		if group != nil {
			gid, mode = int(*group), mode|0o440
		}
		if uid >= 0 || gid >= 0 {
			if err := os.Chown(full, uid, gid); err != nil {
				return err
			}
		}
		if err := os.Chmod(full, mode); err != nil { // last: chown clears bits
			return err
		}
	}
	if group != nil {
		err := filepath.WalkDir(fresh, func(p string, d os.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			if err := os.Chown(p, -1, int(*group)); err != nil {
				return err
			}
			return os.Chmod(p, 0o755|os.ModeSetgid)
		})
		if err != nil {
			return err
		}
		if err := os.Chown(dir, -1, int(*group)); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o777|os.ModeSetgid); err != nil {
			return err
		}
	}
	tmp := filepath.Join(dir, "..data_tmp")
	os.Remove(tmp)
	if err := os.Symlink(name, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, data); err != nil {
		return err
	}
	if err := links(dir, files); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "..") && e.Name() != name {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// links makes one symlink for each top-level name and removes those of others.
func links(dir string, files map[string]file) error {
	want := map[string]bool{}
	for p := range files {
		top, _, _ := strings.Cut(filepath.Clean(p), "/")
		want[top] = true
	}
	names := make([]string, 0, len(want))
	for n := range want {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		target := filepath.Join("..data", n)
		if got, err := os.Readlink(filepath.Join(dir, n)); err == nil && got == target {
			continue
		}
		if err := os.Symlink(target, filepath.Join(dir, n)); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type()&os.ModeSymlink != 0 && e.Name() != "..data" && !want[e.Name()] {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// same says whether dir holds exactly files.
func same(dir string, files map[string]file) bool {
	found := 0
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		f, ok := files[rel]
		if !ok {
			return os.ErrNotExist
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if !bytes.Equal(data, f.data) {
			return os.ErrNotExist
		}
		found++
		return nil
	})
	return err == nil && found == len(files)
}
