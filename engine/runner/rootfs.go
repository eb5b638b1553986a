package runner

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"

	"proa.dev/engine/bundle"
)

// mountOverlay mounts o at its target, in this process's mount namespace.
//
// The layers go in one by one by the new mount interface, which has no limit on
// the length of all names together. A kernel without it (before 6.8 layers can
// only be given as one string) gets the classic option string. "volatile" saves
// the flush of the layer at unmount: a container's layer is thrown away with it.
func mountOverlay(o bundle.Overlay) error {
	if len(o.Lowers) == 0 {
		return errors.New("image has no layers")
	}
	if o.Upper == "" && len(o.Lowers) == 1 {
		// An overlay needs two layers; one is itself.
		if err := unix.Mount(o.Lowers[0], o.Target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return unix.Mount("", o.Target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	err := mountLayers(o)
	if err == nil {
		return nil
	}
	if cerr := mountClassic(o); cerr != nil {
		return fmt.Errorf("%w (layer by layer: %w)", cerr, err)
	}
	return nil
}

func mountLayers(o bundle.Overlay) error {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fsfd)
	for _, l := range o.Lowers {
		if err := unix.FsconfigSetString(fsfd, "lowerdir+", l); err != nil {
			return fmt.Errorf("layer %q: %w", l, err)
		}
	}
	if o.Upper != "" {
		for _, kv := range [][2]string{{"upperdir", o.Upper}, {"workdir", o.Work}, {"index", "off"}} {
			if err := unix.FsconfigSetString(fsfd, kv[0], kv[1]); err != nil {
				return fmt.Errorf("option %s: %w", kv[0], err)
			}
		}
		if err := unix.FsconfigSetFlag(fsfd, "volatile"); err != nil {
			return fmt.Errorf("option volatile: %w", err)
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	attr := 0
	if o.Upper == "" {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return err
	}
	defer unix.Close(mfd)
	return unix.MoveMount(mfd, "", unix.AT_FDCWD, o.Target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// mountClassic gives all layers in one page of options. They are named relative
// to the directory that they share, which is made the current one meanwhile.
func mountClassic(o bundle.Overlay) error {
	base := filepath.Dir(o.Lowers[0])
	for _, l := range o.Lowers {
		for !strings.HasPrefix(l, base+"/") {
			base = filepath.Dir(base)
		}
	}
	old, err := os.Getwd()
	if err != nil {
		return err
	}
	if err := os.Chdir(base); err != nil {
		return err
	}
	defer os.Chdir(old)
	names := make([]string, len(o.Lowers))
	for i, l := range o.Lowers {
		names[i] = strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace(strings.TrimPrefix(l, base+"/"))
	}
	data := "index=off,lowerdir=" + strings.Join(names, ":")
	flags := uintptr(unix.MS_RDONLY)
	if o.Upper != "" {
		data += ",upperdir=" + o.Upper + ",workdir=" + o.Work
		flags = 0
	}
	if len(data) >= os.Getpagesize() {
		return fmt.Errorf("%d layers do not fit into a page of mount options; a kernel from 6.8 on has no such limit", len(names))
	}
	return unix.Mount("overlay", o.Target, "overlay", flags, data)
}

// makeWorkdir creates the working directory if the image lacks it. Nothing runs
// in the root file system yet, so a link cannot change between look and use.
func makeWorkdir(root, dir string) error {
	path, err := securejoin.SecureJoin(root, dir)
	if err == nil {
		if _, serr := os.Lstat(path); errors.Is(serr, fs.ErrNotExist) {
			err = os.MkdirAll(path, 0o755)
		}
	}
	if err != nil {
		return fmt.Errorf("create working directory %q: %w", dir, err)
	}
	return nil
}

// fillVolume copies the image's content at v.Path into v.Host, once.
func fillVolume(root string, v bundle.Volume) error {
	if entries, err := os.ReadDir(v.Host); err == nil && len(entries) > 0 {
		return nil
	}
	if err := os.MkdirAll(v.Host, 0o755); err != nil {
		return err
	}
	src, err := securejoin.SecureJoin(root, v.Path)
	if err != nil {
		return err
	}
	if st, err := os.Stat(src); err != nil || !st.IsDir() {
		return nil
	}
	return copyTree(src, v.Host)
}

// copyTree copies directories, files, links and devices with owner, mode and times.
func copyTree(src, dst string) error {
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dst, strings.TrimPrefix(path, src))
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			if err := os.MkdirAll(to, 0o700); err != nil {
				return err
			}
		case unix.S_IFLNK:
			l, err := os.Readlink(path)
			if err != nil {
				return err
			}
			if err := os.Symlink(l, to); err != nil {
				return err
			}
		case unix.S_IFREG:
			if err := copyFile(path, to); err != nil {
				return err
			}
		default:
			if err := unix.Mknod(to, st.Mode, int(st.Rdev)); err != nil {
				return err
			}
		}
		if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
				return err
			}
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func copyFile(src, dst string) error {
	r, err := os.Open(src)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, r); err != nil {
		w.Close()
		return err
	}
	return w.Close()
}
