package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"golang.org/x/sys/unix"
)

// Mounts are the engine's mounts for a container's volumeMounts. expand resolves
// $(VAR) for subPathExpr.
func (m *Manager) Mounts(_ context.Context, pod *corev1.Pod, c *corev1.Container, expand func(string) (string, error)) ([]*runtimeapi.Mount, error) {
	var out []*runtimeapi.Mount
	for i := range c.VolumeMounts {
		vm := &c.VolumeMounts[i]
		v := volumeOf(pod, vm.Name)
		if v == nil {
			return nil, fmt.Errorf("cannot find volume %q to mount into container %q", vm.Name, c.Name)
		}
		mount := &runtimeapi.Mount{ContainerPath: vm.MountPath, Readonly: vm.ReadOnly}
		if !strings.HasPrefix(mount.ContainerPath, "/") {
			mount.ContainerPath = "/" + mount.ContainerPath
		}
		if vm.MountPropagation != nil {
			switch *vm.MountPropagation {
			case corev1.MountPropagationHostToContainer:
				mount.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
			case corev1.MountPropagationBidirectional:
				mount.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
			}
		}
		if vm.RecursiveReadOnly != nil && *vm.RecursiveReadOnly != corev1.RecursiveReadOnlyDisabled {
			mount.RecursiveReadOnly = *vm.RecursiveReadOnly == corev1.RecursiveReadOnlyEnabled
		}
		if v.Image != nil {
			mount.Image = &runtimeapi.ImageSpec{Image: v.Image.Reference}
			mount.ImageSubPath, mount.Readonly = vm.SubPath, true
			out = append(out, mount)
			continue
		}
		mount.HostPath = m.Path(pod, v)
		if v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil {
			mount.Readonly = true
		}
		sub := vm.SubPath
		if vm.SubPathExpr != "" {
			var err error
			if sub, err = expand(vm.SubPathExpr); err != nil {
				return nil, err
			}
		}
		if sub != "" {
			if filepath.IsAbs(sub) {
				return nil, fmt.Errorf("error SubPath `%s` must not be an absolute path", sub)
			}
			if !filepath.IsLocal(sub) {
				return nil, fmt.Errorf("unable to provision SubPath `%s`: must not contain \"..\"", sub)
			}
			target := filepath.Join(m.PodDir(string(pod.UID)), "subpaths", c.Name, strconv.Itoa(i))
			if err := bindSubPath(mount.HostPath, sub, target, fsGroup(pod)); err != nil {
				return nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", vm.Name, c.Name, err)
			}
			mount.HostPath = target
		}
		out = append(out, mount)
	}
	return out, nil
}

func volumeOf(pod *corev1.Pod, name string) *corev1.Volume {
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name == name {
			return &pod.Spec.Volumes[i]
		}
	}
	return nil
}

// bindSubPath binds root/sub on target. The kernel resolves sub and refuses
// every way out of root, so that a container that swaps in a symlink gains
// nothing; what is bound is the opened file, not a name.
func bindSubPath(root, sub, target string, group *int64) error {
	fd, err := openBelow(root, sub, group)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if mounted, err := isMount(target); err != nil {
		return err
	} else if mounted { // an earlier attempt of the container
		var have unix.Stat_t
		if unix.Stat(target, &have) == nil && have.Dev == st.Dev && have.Ino == st.Ino {
			return nil
		}
		if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		os.Remove(target)
		if err := os.Mkdir(target, 0o750); err != nil {
			return err
		}
	} else {
		os.Remove(target)
		f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
		if err != nil {
			return err
		}
		f.Close()
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %q on %q: %w", filepath.Join(root, sub), target, err)
	}
	return nil
}

// openBelow opens root/sub without leaving root, making missing directories.
func openBelow(root, sub string, group *int64) (int, error) {
	base, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %q: %w", root, err)
	}
	defer unix.Close(base)
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(base, sub, how)
	if errors.Is(err, unix.ENOENT) {
		if err := makeBelow(base, root, sub, how, group); err != nil {
			return -1, err
		}
		fd, err = unix.Openat2(base, sub, how)
	}
	if errors.Is(err, unix.EXDEV) {
		return -1, fmt.Errorf("subpath %q not within volume path %q", sub, root)
	}
	if err != nil {
		return -1, fmt.Errorf("open %q below %q: %w", sub, root, err)
	}
	return fd, nil
}

func makeBelow(base int, root, sub string, how *unix.OpenHow, group *int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(base, &st); err != nil {
		return err
	}
	parts := strings.Split(filepath.Clean(sub), "/")
	parent := base
	defer func() {
		if parent != base {
			unix.Close(parent)
		}
	}()
	for i, name := range parts {
		if err := unix.Mkdirat(parent, name, st.Mode&0o7777); err == nil {
			gid := -1
			if group != nil {
				gid = int(*group)
			}
			// Mkdir obeys the umask: set what the volume's root has.
			if d, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err == nil {
				if gid >= 0 {
					unix.Fchown(d, -1, gid)
				}
				unix.Fchmod(d, st.Mode&0o7777)
				unix.Close(d)
			}
		} else if !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make %q below %q: %w", sub, root, err)
		}
		next, err := unix.Openat2(base, strings.Join(parts[:i+1], "/"), how)
		if err != nil {
			return fmt.Errorf("open %q below %q: %w", sub, root, err)
		}
		if parent != base {
			unix.Close(parent)
		}
		parent = next
	}
	return nil
}
