package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// nsPlan says which namespaces a sandbox gets, pinned as files in dir.
type nsPlan struct {
	dir      string
	net, ipc bool // uts follows net: the host's network has the host's name
	hostname string
	sysctls  map[string]string
}

// makeNamespaces creates, configures and pins namespaces.
func makeNamespaces(p nsPlan) error { return onOwnThread(p.make) }

// onOwnThread runs f in a thread that ends with it, so that f may change what
// belongs to the thread. The first thread of the process is spared: it cannot
// end, and /proc/self and /proc/net would show what f has made of it.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := onOwnThread(f) // elsewhere, since we hold this one
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f() // never unlocked: the runtime ends the thread
	}()
	return <-done
}

func (p nsPlan) make() error {
	flags, pins := 0, []string{}
	if p.net {
		flags |= unix.CLONE_NEWNET | unix.CLONE_NEWUTS
		pins = append(pins, "net", "uts")
	}
	if p.ipc {
		flags |= unix.CLONE_NEWIPC
		pins = append(pins, "ipc")
	}
	if flags == 0 {
		return nil
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("create namespaces: %w", err)
	}
	if p.net {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("bring up the loopback device: %w", err)
		}
		if p.hostname != "" {
			if err := unix.Sethostname([]byte(p.hostname)); err != nil {
				return fmt.Errorf("set host name %q: %w", p.hostname, err)
			}
		}
	}
	for k, v := range p.sysctls {
		if err := os.WriteFile(sysctlFile(k), []byte(v), 0); err != nil {
			return fmt.Errorf("set sysctl %q: %w", k, err)
		}
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	for _, n := range pins {
		to := filepath.Join(p.dir, n)
		f, err := os.OpenFile(to, os.O_CREATE|os.O_RDONLY, 0o444)
		if err != nil {
			return err
		}
		f.Close()
		if err := unix.Mount("/proc/thread-self/ns/"+n, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin %s namespace: %w", n, err)
		}
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// sysctlFile is the file of a sysctl named with dots or slashes. A name with
// slashes may have dots inside its parts, such as an interface's.
func sysctlFile(name string) string {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
		return filepath.Join("/proc/sys", filepath.Clean("/"+name))
	}
	return filepath.Join("/proc/sys", filepath.Clean("/"+strings.ReplaceAll(name, ".", "/")))
}

// checkSysctl refuses what would change the host. Of the kernel's and fs'
// settings only those count that belong to the IPC namespace.
func checkSysctl(name string, hostNet, hostIPC bool) error {
	dotted := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
		dotted = strings.NewReplacer("/", ".", ".", "/").Replace(name)
	}
	switch {
	case strings.HasPrefix(dotted, "net."):
		if hostNet {
			return fmt.Errorf("sysctl %q: not allowed with the host's network namespace", name)
		}
		return nil
	case slices.Contains([]string{"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
		"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem"}, dotted), strings.HasPrefix(dotted, "fs.mqueue."):
		if hostIPC {
			return fmt.Errorf("sysctl %q: not allowed with the host's IPC namespace", name)
		}
		return nil
	}
	return fmt.Errorf("sysctl %q: it belongs to no namespace of a pod", name)
}

// unpin lets go of whatever is mounted at path. Nothing there is fine.
func unpin(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("unmount %q: %w", path, err)
}

// inNetns runs f in a thread inside the network namespace pinned at path ("" is our own).
func inNetns(path string, f func() error) error {
	if path == "" {
		return f()
	}
	return onOwnThread(func() error {
		h, err := os.Open(path)
		if err != nil {
			return err
		}
		defer h.Close()
		if err := unix.Setns(int(h.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// makePrivateMount makes dir a mount of its own that nothing spreads to or from.
func makePrivateMount(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	mounted := false
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 4 && unescapeMount(f[4]) == real {
			mounted = true
		}
	}
	if !mounted {
		if err := unix.Mount(real, real, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return unix.Mount("", real, "", unix.MS_PRIVATE, "")
}

// unescapeMount undoes the kernel's octal escapes.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
