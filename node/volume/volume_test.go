package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sys/unix"

	"proa.dev/env"
	"proa.dev/kind"
)

var ctx = context.Background()

// clock stands still until it is moved.
type clock struct {
	env.Clock
	now time.Time
}

func (c *clock) Now() time.Time { return c.now }

type world struct {
	*Manager
	clock   *clock
	objects map[string]kind.Object
	tokens  int
	refused error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("volumes are mounted: run as root")
	}
	w := &world{clock: &clock{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}, objects: map[string]kind.Object{}}
	w.Manager = New(Config{Root: t.TempDir(), Clock: w.clock,
		Object: func(_ context.Context, k *kind.Kind, ns, name string) (kind.Object, error) {
			if o := w.objects[k.String()+"/"+name]; o != nil {
				return o, nil
			}
			return nil, apierrors.NewNotFound(k.GroupResource(), name)
		},
		Token: func(_ context.Context, p *corev1.Pod, audience string, seconds int64) (Token, error) {
			if w.refused != nil {
				return Token{}, w.refused
			}
			w.tokens++
			return Token{Value: fmt.Sprintf("token-%d-%s", w.tokens, audience), IssuedAt: w.clock.now,
				Expires: w.clock.now.Add(time.Duration(seconds) * time.Second)}, nil
		},
		Allocatable: func() corev1.ResourceList {
			return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("4Gi")}
		},
	})
	t.Cleanup(func() {
		if err := w.Teardown("u1"); err != nil {
			t.Error(err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if left, err := mountsBelow(w.cfg.Root); err != nil || len(left) > 0 {
			t.Errorf("mounts left: %v %v", left, err)
		}
	})
	return w
}

func podWith(volumes ...corev1.Volume) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: "u1", Labels: map[string]string{"b": "2", "a": "1"}},
		Spec: corev1.PodSpec{Volumes: volumes, Containers: []corev1.Container{{Name: "app"}}}}
}

func read(t *testing.T, parts ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"}, Data: data}
}

func TestConfigMapLive(t *testing.T) {
	w := newWorld(t)
	mode := int32(0o400)
	p := podWith(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: "c"},
		Items:                []corev1.KeyToPath{{Key: "k", Path: "deep/file", Mode: &mode}, {Key: "l", Path: "top"}}}}})
	err := w.Setup(ctx, p)
	var verr *Error
	if !errors.As(err, &verr) || err.Error() != `MountVolume.SetUp failed for volume "v" : configmap "c" not found` {
		t.Fatalf("missing: %v", err)
	}
	w.objects["configmaps/c"] = configMap("c", map[string]string{"k": "one"})
	if err := w.Setup(ctx, p); err == nil || !strings.HasSuffix(err.Error(), "configmap references non-existent config key: l") {
		t.Fatalf("missing key: %v", err)
	}
	w.objects["configmaps/c"] = configMap("c", map[string]string{"k": "one", "l": "x"})
	if err := w.Setup(ctx, p); err != nil {
		t.Fatal(err)
	}
	dir := w.Path(p, &p.Spec.Volumes[0])
	if got := read(t, dir, "deep/file") + read(t, dir, "top"); got != "onex" {
		t.Errorf("content %q", got)
	}
	if st, _ := os.Stat(filepath.Join(dir, "deep/file")); st.Mode().Perm() != 0o400 {
		t.Errorf("mode %v", st.Mode())
	}
	before, _ := os.Readlink(filepath.Join(dir, "..data"))
	if _, err := w.Refresh(ctx, p); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Readlink(filepath.Join(dir, "..data")); after != before {
		t.Error("unchanged content was written again")
	}
	// A reader that has the directory open sees the old files until it looks again.
	w.clock.now = w.clock.now.Add(time.Second)
	w.objects["configmaps/c"] = configMap("c", map[string]string{"k": "two", "l": "y"})
	if _, err := w.Refresh(ctx, p); err != nil {
		t.Fatal(err)
	}
	if got := read(t, dir, "deep/file") + read(t, dir, "top"); got != "twoy" {
		t.Errorf("updated content %q", got)
	}
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if len(names) != 4 { // ..<time> ..data deep top
		t.Errorf("entries %v", names)
	}
}

func TestOptionalAndFsGroup(t *testing.T) {
	w := newWorld(t)
	yes, group := true, int64(2000)
	p := podWith(
		corev1.Volume{Name: "o", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "none", Optional: &yes}}},
		corev1.Volume{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}},
		corev1.Volume{Name: "e", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group}
	w.objects["secrets/s"] = &corev1.Secret{Data: map[string][]byte{"k": []byte("v")}}
	if err := w.Setup(ctx, p); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(w.Path(p, &p.Spec.Volumes[1]), "k"), &st); err != nil || st.Gid != 2000 || st.Mode&0o777 != 0o644 {
		t.Errorf("secret file: gid %d mode %o %v", st.Gid, st.Mode, err)
	}
	if err := unix.Stat(w.Path(p, &p.Spec.Volumes[2]), &st); err != nil || st.Gid != 2000 || st.Mode&0o7777 != 0o2777 {
		t.Errorf("emptyDir: gid %d mode %o %v", st.Gid, st.Mode, err)
	}
	if entries, err := os.ReadDir(w.Path(p, &p.Spec.Volumes[0])); err != nil || len(entries) != 2 { // ..data and its target
		t.Errorf("optional volume: %v %v", entries, err)
	}
}

func TestMemoryAndTeardown(t *testing.T) {
	w := newWorld(t)
	limit := resource.MustParse("1Mi")
	p := podWith(corev1.Volume{Name: "m", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &limit}}})
	for range 2 { // again after a restart
		if err := w.Setup(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	dir := w.Path(p, &p.Spec.Volumes[0])
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC || int64(fs.Blocks)*fs.Bsize != 1<<20 {
		t.Errorf("tmpfs: %+v %v", fs, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("beyond the limit: %v", err)
	}
	if got := w.Pods(); len(got) != 1 || got[0] != "u1" {
		t.Errorf("pods %v", got)
	}
	if err := w.Teardown("u1"); err != nil {
		t.Fatal(err)
	}
	if got := w.Pods(); len(got) != 0 {
		t.Errorf("pods after teardown %v", got)
	}
}

func TestTokenRefresh(t *testing.T) {
	w := newWorld(t)
	hour := int64(3600)
	p := podWith(corev1.Volume{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &hour, Audience: "vault"}},
		{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "ca"}}},
		{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
			{Path: "cpu", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "app", Resource: "limits.cpu"}}}}},
	}}}})
	user := int64(1000)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user}
	w.objects["configmaps/ca"] = configMap("ca", map[string]string{"ca.crt": "C"})
	if err := w.Setup(ctx, p); err != nil {
		t.Fatal(err)
	}
	dir := w.Path(p, &p.Spec.Volumes[0])
	if got := read(t, dir, "token"); got != "token-1-vault" {
		t.Errorf("token %q", got)
	}
	if got := read(t, dir, "labels") + "|" + read(t, dir, "cpu") + "|" + read(t, dir, "ca.crt"); got != "a=\"1\"\nb=\"2\"|2|C" {
		t.Errorf("projected %q", got)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "token"), &st); err != nil || st.Uid != 1000 || st.Mode&0o777 != 0o600 {
		t.Errorf("token of a pod with one user: uid %d mode %o %v", st.Uid, st.Mode, err)
	}
	next := w.NextRefresh("u1")
	if want := w.clock.now.Add(48 * time.Minute); !next.Equal(want) {
		t.Errorf("next refresh %v, want %v", next, want)
	}
	w.clock.now = next.Add(-time.Second)
	w.Refresh(ctx, p)
	if w.tokens != 1 {
		t.Error("token was replaced too early")
	}
	w.clock.now = next
	w.refused = errors.New("the API is away")
	if _, err := w.Refresh(ctx, p); err != nil || read(t, dir, "token") != "token-1-vault" {
		t.Errorf("a token that still works must stay: %v", err)
	}
	w.refused = nil
	if _, err := w.Refresh(ctx, p); err != nil || read(t, dir, "token") != "token-2-vault" {
		t.Errorf("refresh: %v %q", err, read(t, dir, "token"))
	}
}

func TestSubPath(t *testing.T) {
	w := newWorld(t)
	p := podWith(corev1.Volume{Name: "e", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	if err := w.Setup(ctx, p); err != nil {
		t.Fatal(err)
	}
	dir := w.Path(p, &p.Spec.Volumes[0])
	mounts := func(sub string) (string, error) {
		c := &corev1.Container{Name: "app", VolumeMounts: []corev1.VolumeMount{{Name: "e", MountPath: "/x", SubPathExpr: sub}}}
		ms, err := w.Mounts(ctx, p, c, func(s string) (string, error) { return strings.ReplaceAll(s, "$(POD)", "web"), nil })
		if err != nil {
			return "", err
		}
		return ms[0].HostPath, nil
	}
	host, err := mounts("logs/$(POD)")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "logs/web/f"), []byte("hi"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := read(t, host, "f"); got != "hi" {
		t.Errorf("through the bind mount: %q", got)
	}
	if again, err := mounts("logs/$(POD)"); err != nil || again != host {
		t.Errorf("again: %q %v", again, err)
	}
	for name, target := range map[string]string{"abs": "/etc", "up": "../../../../../../etc"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if _, err := mounts(name); err == nil || !strings.Contains(err.Error(), "not within volume path") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := mounts(name + "/new"); err == nil {
			t.Errorf("%s/new was made outside", name)
		}
	}
	if _, err := mounts("../x"); err == nil {
		t.Error("backsteps are taken")
	}
	if _, err := mounts("/etc"); err == nil {
		t.Error("an absolute path is taken")
	}
}

func TestHostPathTypes(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	os.WriteFile(file, nil, 0o644)
	for _, c := range []struct {
		path string
		kind corev1.HostPathType
		want string
	}{
		{dir, corev1.HostPathDirectory, ""},
		{file, corev1.HostPathFile, ""},
		{file, corev1.HostPathDirectory, "hostPath type check failed: " + file + " is not a directory"},
		{dir, corev1.HostPathFile, "hostPath type check failed: " + dir + " is not a file"},
		{dir, corev1.HostPathSocket, "hostPath type check failed: " + dir + " is not a socket file"},
		{"/dev/null", corev1.HostPathCharDev, ""},
		{"/dev/null", corev1.HostPathBlockDev, "hostPath type check failed: /dev/null is not a block device"},
		{filepath.Join(dir, "new"), corev1.HostPathDirectoryOrCreate, ""},
		{filepath.Join(dir, "newfile"), corev1.HostPathFileOrCreate, ""},
		{filepath.Join(dir, "absent"), corev1.HostPathUnset, ""},
	} {
		err := checkHostPath(&corev1.HostPathVolumeSource{Path: c.path, Type: &c.kind})
		if got := fmt.Sprint(err); err == nil && c.want != "" || err != nil && got != c.want {
			t.Errorf("%s as %q: %v, want %q", c.path, c.kind, err, c.want)
		}
	}
}
