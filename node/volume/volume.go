// Package volume makes a pod's volumes on the node and takes them away again.
//
//	<Root>/<uid>/volumes/kubernetes.io~empty-dir/<name>   emptyDir; tmpfs on it for medium Memory
//	<Root>/<uid>/subpaths/<container>/<index>             bind mounts for subPath
//	<Root>/.memory                                        one tmpfs for all pods (own mount)
//	<Root>/.memory/<uid>/<name>/..data -> ..<time>        configMap, secret, downwardAPI, projected
//
// Files made from API objects never touch a disk and share one tmpfs, so that a
// thousand pods do not make a thousand mounts that every new container's mount
// namespace has to copy. They are replaced by swapping the ..data symlink, so
// that a reader sees all of the old or all of the new files.
//
// Everything may be repeated: Setup after a restart finds what is there, and
// Teardown of nothing is fine. Errors of one volume are *Error, worded as
// upstream's FailedMount events.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"golang.org/x/sys/unix"

	"proa.dev/env"
	"proa.dev/kind"
)

// Token is a bound service-account token.
type Token struct {
	Value    string
	IssuedAt time.Time
	Expires  time.Time
}

// Config of a Manager. All fields but Log are required.
type Config struct {
	// Root is the directory of all pods, absolute.
	Root string
	// Object reads a ConfigMap or a Secret; errors are apimachinery's (IsNotFound).
	Object func(ctx context.Context, k *kind.Kind, namespace, name string) (kind.Object, error)
	// Token asks for a token bound to the pod. Audience "" is the API server's.
	Token func(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (Token, error)
	// Allocatable are the node's resources, for resourceFieldRef without a limit.
	Allocatable func() corev1.ResourceList
	Clock       env.Clock
	Log         *slog.Logger
}

// Manager of all pods' volumes on a node. Calls for different pods may run at the
// same time; calls for one pod must not.
type Manager struct {
	cfg Config

	mu     sync.Mutex
	memory bool // .memory is mounted
	tokens map[string]Token
}

// New returns a manager; nothing is mounted yet.
func New(cfg Config) *Manager {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{cfg: cfg, tokens: map[string]Token{}}
}

// Error is what went wrong with one volume.
type Error struct {
	Volume string
	Err    error
}

func (e *Error) Error() string {
	return fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", e.Volume, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// PodDir is the directory of one pod.
func (m *Manager) PodDir(uid string) string { return filepath.Join(m.cfg.Root, uid) }

func (m *Manager) memoryDir() string { return filepath.Join(m.cfg.Root, ".memory") }

// Path of a volume on the node; "" for one that is not a directory of its own
// (image volumes).
func (m *Manager) Path(pod *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.HostPath != nil:
		return v.HostPath.Path
	case v.EmptyDir != nil:
		return filepath.Join(m.PodDir(string(pod.UID)), "volumes", "kubernetes.io~empty-dir", v.Name)
	case v.ConfigMap != nil, v.Secret != nil, v.DownwardAPI != nil, v.Projected != nil:
		return filepath.Join(m.memoryDir(), string(pod.UID), v.Name)
	}
	return ""
}

// Setup makes all volumes of a pod. All errors are returned, joined.
func (m *Manager) Setup(ctx context.Context, pod *corev1.Pod) error {
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if err := m.setup(ctx, pod, v); err != nil {
			errs = append(errs, &Error{v.Name, err})
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) setup(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) error {
	switch {
	case v.EmptyDir != nil:
		return m.emptyDir(pod, v)
	case v.HostPath != nil:
		return checkHostPath(v.HostPath)
	case v.ConfigMap != nil, v.Secret != nil, v.DownwardAPI != nil, v.Projected != nil:
		return m.project(ctx, pod, v)
	case v.Image != nil:
		return nil // the engine mounts it
	}
	return fmt.Errorf("volume type is not supported by this node; use emptyDir, hostPath, configMap, secret, downwardAPI, projected or image")
}

func (m *Manager) emptyDir(pod *corev1.Pod, v *corev1.Volume) error {
	dir := m.Path(pod, v)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	group := fsGroup(pod)
	if strings.HasPrefix(string(v.EmptyDir.Medium), string(corev1.StorageMediumHugePages)) {
		return fmt.Errorf("emptyDir medium %q is not supported by this node; use \"\" or Memory", v.EmptyDir.Medium)
	}
	if v.EmptyDir.Medium == corev1.StorageMediumMemory {
		mounted, err := isMount(dir)
		if err != nil {
			return err
		}
		if !mounted {
			options := "mode=1777"
			if size := memorySize(pod, v); size > 0 {
				options += fmt.Sprintf(",size=%d", size)
			}
			if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
				return fmt.Errorf("mount tmpfs on %q: %w", dir, err)
			}
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil { // whatever the umask
		return err
	}
	if group != nil {
		if err := os.Chown(dir, -1, int(*group)); err != nil {
			return err
		}
		return os.Chmod(dir, 0o777|os.ModeSetgid)
	}
	return nil
}

// memorySize is the smallest of the volume's limit and the sum of the containers'
// memory limits, when each has one; 0: the kernel's default.
func memorySize(pod *corev1.Pod, v *corev1.Volume) int64 {
	var sum int64
	for i := range pod.Spec.Containers {
		limit, ok := pod.Spec.Containers[i].Resources.Limits[corev1.ResourceMemory]
		if !ok {
			sum = 0
			break
		}
		sum += limit.Value()
	}
	size := sum
	if q := v.EmptyDir.SizeLimit; q != nil && q.Sign() > 0 && (size == 0 || q.Value() < size) {
		size = q.Value()
	}
	return size
}

func fsGroup(pod *corev1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

func checkHostPath(h *corev1.HostPathVolumeSource) error {
	want := corev1.HostPathUnset
	if h.Type != nil {
		want = *h.Type
	}
	switch want {
	case corev1.HostPathUnset:
		return nil
	case corev1.HostPathDirectoryOrCreate:
		if err := os.MkdirAll(h.Path, 0o755); err != nil {
			return err
		}
	case corev1.HostPathFileOrCreate:
		f, err := os.OpenFile(h.Path, os.O_CREATE|os.O_RDONLY, 0o644)
		if err == nil {
			f.Close()
		} else if _, serr := os.Stat(h.Path); serr != nil {
			return err
		}
	}
	st, err := os.Stat(h.Path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	is := func(ok func(os.FileMode) bool, what string) error {
		if err == nil && ok(st.Mode()) {
			return nil
		}
		return fmt.Errorf("hostPath type check failed: %s is not a %s", h.Path, what)
	}
	switch want {
	case corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate:
		return is(os.FileMode.IsDir, "directory")
	case corev1.HostPathFile, corev1.HostPathFileOrCreate:
		return is(os.FileMode.IsRegular, "file")
	case corev1.HostPathSocket:
		return is(func(m os.FileMode) bool { return m&os.ModeSocket != 0 }, "socket file")
	case corev1.HostPathCharDev:
		return is(func(m os.FileMode) bool { return m&os.ModeCharDevice != 0 }, "character device")
	case corev1.HostPathBlockDev:
		return is(func(m os.FileMode) bool { return m&os.ModeDevice != 0 && m&os.ModeCharDevice == 0 }, "block device")
	}
	return fmt.Errorf("%s is an invalid volume type", want)
}

// Refresh brings the files of configMap, secret, downwardAPI and projected
// volumes up to date, and says when it must run again for a token (zero: never).
// What cannot be read any more stays as it is; the errors are returned, joined.
func (m *Manager) Refresh(ctx context.Context, pod *corev1.Pod) (next time.Time, err error) {
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.ConfigMap == nil && v.Secret == nil && v.DownwardAPI == nil && v.Projected == nil {
			continue
		}
		if err := m.project(ctx, pod, v); err != nil {
			errs = append(errs, &Error{v.Name, err})
		}
	}
	return m.NextRefresh(string(pod.UID)), errors.Join(errs...)
}

// NextRefresh is when Refresh must run for the pod's next token; zero: never.
func (m *Manager) NextRefresh(uid string) (next time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, t := range m.tokens {
		if strings.HasPrefix(key, uid+"/") {
			if at := refreshAt(t); next.IsZero() || at.Before(next) {
				next = at
			}
		}
	}
	return next
}

// References says which ConfigMaps and Secrets the pod's volumes show.
func References(pod *corev1.Pod) (configMaps, secrets map[string]bool) {
	configMaps, secrets = map[string]bool{}, map[string]bool{}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.ConfigMap != nil:
			configMaps[v.ConfigMap.Name] = true
		case v.Secret != nil:
			secrets[v.Secret.SecretName] = true
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if s.ConfigMap != nil {
					configMaps[s.ConfigMap.Name] = true
				}
				if s.Secret != nil {
					secrets[s.Secret.Name] = true
				}
			}
		}
	}
	return configMaps, secrets
}

// Teardown takes everything of a pod away: mounts first, then files. A mount that
// is busy is detached.
func (m *Manager) Teardown(uid string) error {
	m.mu.Lock()
	for key := range m.tokens {
		if strings.HasPrefix(key, uid+"/") {
			delete(m.tokens, key)
		}
	}
	m.mu.Unlock()
	dir := m.PodDir(uid)
	if _, err := os.Lstat(dir); err == nil {
		mounts, err := mountsBelow(dir)
		if err != nil {
			return err
		}
		for _, p := range mounts {
			if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
				return fmt.Errorf("unmount %q: %w", p, err)
			}
		}
		// A mount that appeared meanwhile must not be emptied: RemoveAll would follow it.
		if left, err := mountsBelow(dir); err != nil || len(left) > 0 {
			return errors.Join(err, fmt.Errorf("remove %q: still mounted: %v", dir, left))
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return os.RemoveAll(filepath.Join(m.memoryDir(), uid))
}

// Pods lists the UIDs that have something on disk or in memory.
func (m *Manager) Pods() []string {
	seen := map[string]bool{}
	for _, dir := range []string{m.cfg.Root, m.memoryDir()} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
				seen[e.Name()] = true
			}
		}
	}
	out := make([]string, 0, len(seen))
	for uid := range seen {
		out = append(out, uid)
	}
	sort.Strings(out)
	return out
}

// Close unmounts the shared tmpfs; only when no pod is left on the node.
func (m *Manager) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.memory = false
	if ok, err := isMount(m.memoryDir()); err != nil || !ok {
		return err
	}
	return unix.Unmount(m.memoryDir(), unix.MNT_DETACH)
}

func (m *Manager) mountMemory() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.memory {
		return nil
	}
	dir := m.memoryDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	mounted, err := isMount(dir)
	if err != nil {
		return err
	}
	if !mounted {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755"); err != nil {
			return fmt.Errorf("mount tmpfs on %q: %w", dir, err)
		}
	}
	m.memory = true
	return nil
}

// isMount says whether a file system is mounted on dir.
func isMount(dir string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("stat %q: %w", dir, err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, fmt.Errorf("stat %q: the kernel does not tell mount points (5.8 or newer is needed)", dir)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// mountsBelow lists mount points at or below dir, deepest first.
func mountsBelow(dir string) ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		p := unescape(fields[4])
		if p == dir || strings.HasPrefix(p, dir+"/") {
			out = append(out, p)
		}
	}
	sort.Slice(out, func(i, j int) bool { return len(out[i]) > len(out[j]) })
	return out, nil
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// FieldValue is the text of a downward API field path, for volumes and
// environment. Labels and annotations as a whole are formatted one a line.
func FieldValue(pod *corev1.Pod, path string) (string, error) {
	if key, ok := subscript(path, "metadata.labels"); ok {
		return pod.Labels[key], nil
	}
	if key, ok := subscript(path, "metadata.annotations"); ok {
		return pod.Annotations[key], nil
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return pod.Status.HostIP, nil
	case "status.hostIPs":
		var ips []string
		for _, ip := range pod.Status.HostIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ","), nil
	case "status.podIP":
		return pod.Status.PodIP, nil
	case "status.podIPs":
		var ips []string
		for _, ip := range pod.Status.PodIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ","), nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %v", path)
}

func subscript(path, of string) (string, bool) {
	rest, ok := strings.CutPrefix(path, of+"['")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(rest, "']")
}

func formatMap(m map[string]string) string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var b strings.Builder
	for i, k := range keys {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s=%q", k, m[k])
	}
	return b.String()
}

// ResourceValue is the text of a resourceFieldRef: in units of the divisor,
// rounded up; a missing limit is the node's allocatable.
func ResourceValue(c *corev1.Container, ref *corev1.ResourceFieldSelector, allocatable corev1.ResourceList) (string, error) {
	which, name, ok := strings.Cut(ref.Resource, ".")
	var list corev1.ResourceList
	switch which {
	case "limits":
		list = c.Resources.Limits
	case "requests":
		list = c.Resources.Requests
	default:
		ok = false
	}
	if !ok {
		return "", fmt.Errorf("unsupported container resource : %v", ref.Resource)
	}
	q, has := list[corev1.ResourceName(name)]
	if !has && which == "limits" {
		q = allocatable[corev1.ResourceName(name)]
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if name == "cpu" {
		return fmt.Sprint(ceilDiv(q.MilliValue(), divisor.MilliValue())), nil
	}
	return fmt.Sprint(ceilDiv(q.Value(), divisor.Value())), nil
}

func ceilDiv(a, b int64) int64 {
	if b <= 0 {
		return a
	}
	return (a + b - 1) / b
}
