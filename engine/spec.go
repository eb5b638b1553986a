package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/engine/bundle"
	"proa.dev/engine/cgroup"
	"proa.dev/engine/image"
	"proa.dev/engine/seccomp"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

var (
	defaultMasked = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	defaultReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// layOut makes a container's directories and records, and checks that it could
// be started as it is asked for.
func (e *Engine) layOut(c *container, img image.Image) error {
	if err := e.cfg.Images.HoldFor(holdOwner(c.id), img.ID); err != nil {
		return fmt.Errorf("hold image: %w", err)
	}
	dir := e.bundleDir(c.id)
	for _, d := range []string{dir, filepath.Join(dir, "upper"), filepath.Join(dir, "work")} {
		mode := os.FileMode(0o755)
		if d == dir {
			mode = 0o700
		}
		if err := os.Mkdir(d, mode); err != nil {
			return err
		}
		os.Chmod(d, mode) // whatever our umask is: the upper directory is the container's /
	}
	if _, err := e.plan(c, img, false); err != nil {
		return err
	}
	return e.saveContainer(c)
}

// prepareStart writes the bundle.
func (e *Engine) prepareStart(c *container) error {
	img, ok := e.cfg.Images.Get(c.imageID)
	if !ok {
		return fmt.Errorf("image %q is gone from the store", c.imageID)
	}
	run, err := e.plan(c, img, true)
	if err != nil {
		return err
	}
	return bundle.Write(filepath.Join(e.bundleDir(c.id), bundle.RunFile), run)
}

// plan translates the CRI's words into a bundle. With final it also does what
// is due at the start: host paths are made, a target container must run.
func (e *Engine) plan(c *container, img image.Image, final bool) (*bundle.Run, error) {
	lowers, err := e.cfg.Images.Lowers(img)
	if err != nil {
		return nil, fmt.Errorf("find layers of image %q: %w", img.ID, err)
	}
	dir := e.bundleDir(c.id)
	sec := c.config.GetLinux().GetSecurityContext()
	run := &bundle.Run{
		ID: c.id, StateRoot: filepath.Join(e.runDir(c.sandbox.id), "lc"),
		Root: bundle.Overlay{Lowers: lowers, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Target: e.rootfs()},
	}
	if run.User, err = userOf(sec, img.Config.Config.User); err != nil {
		return nil, err
	}
	b := specBuilder{e: e, c: c, img: img, sec: sec, run: run, final: final}
	run.Spec = &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Readonly: sec.GetReadonlyRootfs()},
		Process: &specs.Process{},
		Linux:   &specs.Linux{Resources: &specs.LinuxResources{}, CgroupsPath: c.cgroup()},
	}
	for _, step := range []func() error{b.process, b.namespaces, b.mounts, b.volumes, b.devices, b.security, b.resources} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return run, nil
}

type specBuilder struct {
	e     *Engine
	c     *container
	img   image.Image
	sec   *runtimeapi.LinuxContainerSecurityContext
	run   *bundle.Run
	final bool
}

// userOf says who runs: the CRI's user, else the image's.
func userOf(sec *runtimeapi.LinuxContainerSecurityContext, imageUser string) (bundle.User, error) {
	var u bundle.User
	switch {
	case sec.GetRunAsUser() != nil:
		u.Name = strconv.FormatInt(sec.RunAsUser.Value, 10)
	case sec.GetRunAsUsername() != "":
		u.Name = sec.RunAsUsername
	case sec.GetRunAsGroup() != nil:
		u.Name, _, _ = strings.Cut(imageUser, ":")
		if u.Name == "" {
			return u, fmt.Errorf("user group %d is specified without user", sec.RunAsGroup.Value)
		}
	default:
		u.Name = imageUser
	}
	if sec.GetRunAsGroup() != nil {
		name, _, _ := strings.Cut(u.Name, ":")
		u.Name = name + ":" + strconv.FormatInt(sec.RunAsGroup.Value, 10)
	}
	for _, g := range sec.GetSupplementalGroups() {
		if g < 0 || g > 1<<32-2 {
			return u, fmt.Errorf("supplemental group %d is out of range", g)
		}
		u.Supplemental = append(u.Supplemental, uint32(g))
	}
	u.Strict = sec.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Strict
	return u, nil
}

func (b *specBuilder) process() error {
	c, img := b.c.config, b.img.Config.Config
	p := b.run.Spec.Process
	command, args := c.Command, c.Args
	if len(command) == 0 {
		if len(args) == 0 {
			args = img.Cmd
		}
		command = img.Entrypoint
	}
	p.Args = slices.Concat(command, args)
	if len(p.Args) == 0 {
		return errors.New("no command specified: neither the container nor its image has one")
	}
	p.Cwd = c.WorkingDir
	if p.Cwd == "" {
		p.Cwd = img.WorkingDir
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if !filepath.IsAbs(p.Cwd) {
		return fmt.Errorf("working directory %q is not an absolute path", p.Cwd)
	}
	p.Terminal = c.Tty
	env := newEnviron(defaultPath)
	if c.Tty {
		env.set("TERM=xterm")
	}
	host := b.c.sandbox.config.Hostname
	if host == "" || b.c.sandbox.hostNet() {
		host, _ = os.Hostname()
	}
	env.set("HOSTNAME=" + host)
	for _, kv := range img.Env {
		env.set(kv)
	}
	for _, kv := range c.Envs {
		env.set(kv.Key + "=" + string(kv.Value))
	}
	p.Env = env.list
	score := b.e.limits.score(int(b.c.resources.GetOomScoreAdj()))
	p.OOMScoreAdj = &score
	return nil
}

// environ keeps the last value of each variable at its first place.
type environ struct {
	list  []string
	index map[string]int
}

func newEnviron(first ...string) *environ {
	e := &environ{index: map[string]int{}}
	for _, kv := range first {
		e.set(kv)
	}
	return e
}

func (e *environ) set(kv string) {
	k, _, _ := strings.Cut(kv, "=")
	if i, ok := e.index[k]; ok {
		e.list[i] = kv
		return
	}
	e.index[k] = len(e.list)
	e.list = append(e.list, kv)
}

func (b *specBuilder) namespaces() error {
	s := b.c.sandbox
	pins := filepath.Join(b.e.runDir(s.id), "ns")
	add := func(t specs.LinuxNamespaceType, path string) {
		b.run.Spec.Linux.Namespaces = append(b.run.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
	}
	add(specs.MountNamespace, "")
	if !s.hostNet() {
		add(specs.NetworkNamespace, filepath.Join(pins, "net"))
		add(specs.UTSNamespace, filepath.Join(pins, "uts"))
	}
	if !s.hostIPC() {
		add(specs.IPCNamespace, filepath.Join(pins, "ipc"))
	}
	if s.tree.V2 {
		add(specs.CgroupNamespace, "")
	}
	switch ns := b.c.namespaces(); ns.GetPid() {
	case runtimeapi.NamespaceMode_CONTAINER:
		add(specs.PIDNamespace, "")
	case runtimeapi.NamespaceMode_POD:
		if !s.sharedPids() {
			// The sandbox was made for containers of their own processes: so be it.
			return errors.New("process namespace: the sandbox has none to share")
		}
		add(specs.PIDNamespace, "/proc/"+strconv.Itoa(s.initPid)+"/ns/pid")
	case runtimeapi.NamespaceMode_TARGET:
		b.e.mu.Lock()
		t, err := b.e.container(ns.TargetId)
		pid := 0
		if err == nil {
			pid = t.pid
			if t.sandbox != s {
				err = fmt.Errorf("target container %q is in another sandbox", ns.TargetId)
			} else if t.state != runtimeapi.ContainerState_CONTAINER_RUNNING {
				err = fmt.Errorf("target container %q is not running", ns.TargetId)
			}
		}
		b.e.mu.Unlock()
		if err != nil {
			return fmt.Errorf("process namespace: %w", err)
		}
		add(specs.PIDNamespace, "/proc/"+strconv.Itoa(pid)+"/ns/pid")
	}
	return nil
}

// mounts lists the kernel's file systems, the sandbox's files, then the
// container's own mounts by depth, so that nested ones come later.
func (b *specBuilder) mounts() error {
	s, spec := b.c.sandbox, b.run.Spec
	ro := "ro"
	if b.sec.GetPrivileged() {
		ro = "rw"
	}
	list := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", ro}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", ro}},
	}
	dir := b.e.runDir(s.id)
	shm := filepath.Join(dir, "shm")
	if s.hostIPC() {
		shm = "/dev/shm"
	}
	filesRO := "rw"
	if b.sec.GetReadonlyRootfs() {
		filesRO = "ro"
	}
	for _, m := range []struct{ to, from, mode string }{
		{"/etc/hostname", filepath.Join(dir, "hostname"), filesRO},
		{"/etc/hosts", filepath.Join(dir, "hosts"), filesRO},
		{"/etc/resolv.conf", filepath.Join(dir, "resolv.conf"), filesRO},
		{"/dev/shm", shm, "rw"},
	} {
		list = append(list, specs.Mount{Destination: m.to, Type: "bind", Source: m.from, Options: []string{"rbind", "rprivate", m.mode}})
	}
	own := slices.Clone(b.c.config.Mounts)
	slices.SortStableFunc(own, func(x, y *runtimeapi.Mount) int {
		return strings.Count(filepath.Clean(x.ContainerPath), "/") - strings.Count(filepath.Clean(y.ContainerPath), "/")
	})
	for _, m := range own {
		to := filepath.Clean("/" + m.ContainerPath)
		list = slices.DeleteFunc(list, func(x specs.Mount) bool { return x.Destination == to })
	}
	for i, m := range own {
		sm, err := b.mount(i, m)
		if err != nil {
			return fmt.Errorf("mount %q: %w", m.ContainerPath, err)
		}
		list = append(list, sm)
	}
	spec.Mounts = list
	return nil
}

func (b *specBuilder) mount(i int, m *runtimeapi.Mount) (specs.Mount, error) {
	out := specs.Mount{Destination: filepath.Clean("/" + m.ContainerPath), Type: "bind", Options: []string{"rbind"}}
	if len(m.UidMappings) > 0 || len(m.GidMappings) > 0 {
		return out, errors.New("mounts with mapped users are not supported")
	}
	if m.GetImage().GetImage() != "" {
		source, err := b.imageMount(i, m)
		if err != nil {
			return out, err
		}
		out.Source = source
		out.Options = append(out.Options, "rprivate", "ro")
		return out, nil
	}
	if m.HostPath == "" {
		return out, errors.New("no host path")
	}
	if b.final {
		if _, err := os.Stat(m.HostPath); errors.Is(err, os.ErrNotExist) {
			if err := os.MkdirAll(m.HostPath, 0o755); err != nil {
				return out, err
			}
		}
		// A link is resolved now, not by whoever can change it later.
		real, err := filepath.EvalSymlinks(m.HostPath)
		if err != nil {
			return out, err
		}
		out.Source = real
	} else {
		out.Source = m.HostPath
	}
	spec := b.run.Spec
	switch m.Propagation {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		out.Options = append(out.Options, "rprivate")
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		out.Options = append(out.Options, "rslave")
		if spec.Linux.RootfsPropagation == "" {
			spec.Linux.RootfsPropagation = "rslave"
		}
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		if b.final {
			if shared, at, err := sharedMount(out.Source); err != nil {
				return out, err
			} else if !shared {
				return out, fmt.Errorf("path %q is mounted on %q but it is not a shared mount; mount --make-shared %s makes it one", m.HostPath, at, at)
			}
		}
		out.Options = append(out.Options, "rshared")
		spec.Linux.RootfsPropagation = "rshared"
	default:
		return out, fmt.Errorf("propagation %v is unknown", m.Propagation)
	}
	switch {
	case m.RecursiveReadOnly:
		if !m.Readonly {
			return out, errors.New("recursive read-only conflicts with RW mount")
		}
		if m.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
			return out, errors.New("recursive read-only requires private propagation")
		}
		out.Options = append(out.Options, "rro")
	case m.Readonly:
		out.Options = append(out.Options, "ro")
	default:
		out.Options = append(out.Options, "rw")
	}
	out.Options = append(out.Options, m.MountOptions...)
	return out, nil
}

// imageMount arranges that an image's files are mounted in the runner's mount
// namespace, and returns where.
func (b *specBuilder) imageMount(i int, m *runtimeapi.Mount) (string, error) {
	img, ok := b.e.cfg.Images.Get(m.Image.Image)
	if !ok {
		return "", fmt.Errorf("image %q is not on this machine", m.Image.Image)
	}
	if !m.Readonly {
		return "", errors.New("an image can be mounted read-only only")
	}
	lowers, err := b.e.cfg.Images.Lowers(img)
	if err != nil {
		return "", err
	}
	if err := b.e.cfg.Images.HoldFor(holdOwner(b.c.id), img.ID); err != nil {
		return "", err
	}
	target := filepath.Join(b.e.bundleDir(b.c.id), "image"+strconv.Itoa(i))
	if err := os.MkdirAll(target, 0o755); err != nil {
		return "", err
	}
	b.run.Mounts = append(b.run.Mounts, bundle.ImageMount{Overlay: bundle.Overlay{Lowers: lowers, Target: target}})
	if sub := filepath.Clean("/" + m.ImageSubPath); sub != "/" {
		for _, l := range lowers {
			if _, err := os.Lstat(filepath.Join(l, sub)); err == nil {
				return filepath.Join(target, sub), nil
			}
		}
		return "", fmt.Errorf("image %q has no path %q", m.Image.Image, m.ImageSubPath)
	}
	return target, nil
}

// sharedMount reports whether the mount that path is on is shared, and where it is.
func sharedMount(path string) (bool, string, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, "", err
	}
	at, shared := "", false
	for _, line := range strings.Split(string(raw), "\n") {
		before, _, _ := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if len(f) < 6 {
			continue
		}
		p := unescapeMount(f[4])
		if (p == "/" || p == path || strings.HasPrefix(path, p+"/")) && len(p) >= len(at) {
			at = p
			shared = slices.ContainsFunc(f[6:], func(o string) bool { return strings.HasPrefix(o, "shared:") })
		}
	}
	return shared, at, nil
}

// volumes gives the image's declared volumes directories of their own.
func (b *specBuilder) volumes() error {
	for i, v := range imageVolumes(b.img.Config.Config.Volumes, b.c.config.Mounts) {
		host := filepath.Join(b.e.bundleDir(b.c.id), "volume"+strconv.Itoa(i))
		b.run.Volumes = append(b.run.Volumes, bundle.Volume{Path: v, Host: host})
		b.run.Spec.Mounts = append(b.run.Spec.Mounts, specs.Mount{Destination: v, Type: "bind", Source: host, Options: []string{"rbind", "rprivate", "rw"}})
	}
	return nil
}

func (b *specBuilder) devices() error {
	linux := b.run.Spec.Linux
	if b.sec.GetPrivileged() {
		linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		return walkDevices("/dev", func(path string, st *unix.Stat_t) {
			linux.Devices = append(linux.Devices, deviceOf(path, st))
		})
	}
	linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, d := range b.c.config.Devices {
		perm := d.Permissions
		if perm == "" {
			perm = "rwm"
		}
		if strings.Trim(perm, "rwm") != "" {
			return fmt.Errorf("device %q: permissions %q are not of r, w, m", d.HostPath, perm)
		}
		real, err := filepath.EvalSymlinks(d.HostPath)
		if err != nil {
			return fmt.Errorf("device %q: %w", d.HostPath, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(real, &st); err != nil {
			return fmt.Errorf("device %q: %w", d.HostPath, err)
		}
		add := func(path string, st *unix.Stat_t) {
			to := d.ContainerPath
			if path != real {
				to = filepath.Join(d.ContainerPath, strings.TrimPrefix(path, real))
			}
			dev := deviceOf(to, st)
			linux.Devices = append(linux.Devices, dev)
			linux.Resources.Devices = append(linux.Resources.Devices, specs.LinuxDeviceCgroup{
				Allow: true, Type: dev.Type, Major: &dev.Major, Minor: &dev.Minor, Access: perm})
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := walkDevices(real, add); err != nil {
				return fmt.Errorf("device %q: %w", d.HostPath, err)
			}
			continue
		}
		if !isDevice(&st) {
			return fmt.Errorf("device %q: not a device node", d.HostPath)
		}
		add(real, &st)
	}
	return nil
}

func isDevice(st *unix.Stat_t) bool {
	t := st.Mode & unix.S_IFMT
	return t == unix.S_IFCHR || t == unix.S_IFBLK
}

func deviceOf(path string, st *unix.Stat_t) specs.LinuxDevice {
	kind := "c"
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		kind = "b"
	}
	mode := os.FileMode(st.Mode & 0o7777)
	uid, gid := st.Uid, st.Gid
	return specs.LinuxDevice{Path: path, Type: kind, Major: int64(unix.Major(uint64(st.Rdev))),
		Minor: int64(unix.Minor(uint64(st.Rdev))), FileMode: &mode, UID: &uid, GID: &gid}
}

// walkDevices visits the device nodes below dir but not the file systems and
// links that every container has its own of.
func walkDevices(dir string, f func(string, *unix.Stat_t)) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, ent := range entries {
		path := filepath.Join(dir, ent.Name())
		switch path {
		case "/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev", "/dev/console", "/dev/ptmx":
			continue
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			continue
		}
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			if err := walkDevices(path, f); err != nil {
				return err
			}
		case isDevice(&st):
			f(path, &st)
		}
	}
	return nil
}

func (b *specBuilder) security() error {
	spec, sec := b.run.Spec, b.sec
	caps, err := b.capabilities()
	if err != nil {
		return err
	}
	spec.Process.Capabilities = caps
	spec.Process.NoNewPrivileges = sec.GetNoNewPrivs()
	if sec.GetPrivileged() {
		return nil // nothing masked, no filter
	}
	spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = sec.GetMaskedPaths(), sec.GetReadonlyPaths()
	if sec == nil || sec.MaskedPaths == nil {
		spec.Linux.MaskedPaths = defaultMasked
	}
	if sec == nil || sec.ReadonlyPaths == nil {
		spec.Linux.ReadonlyPaths = defaultReadonly
	}
	if p := sec.GetApparmor(); p.GetProfileType() == runtimeapi.SecurityProfile_Localhost && p != nil {
		if _, err := os.Stat("/sys/kernel/security/apparmor"); err != nil {
			return fmt.Errorf("AppArmor profile %q: the kernel has no AppArmor", p.LocalhostRef)
		}
		spec.Process.ApparmorProfile = strings.TrimPrefix(p.LocalhostRef, "localhost/")
	}
	p := sec.GetSeccomp()
	if p == nil {
		return nil
	}
	switch p.ProfileType {
	case runtimeapi.SecurityProfile_Unconfined:
	case runtimeapi.SecurityProfile_RuntimeDefault:
		spec.Linux.Seccomp = seccomp.Default(caps.Bounding)
	case runtimeapi.SecurityProfile_Localhost:
		path := strings.TrimPrefix(p.LocalhostRef, "localhost/")
		if !filepath.IsAbs(path) {
			path = filepath.Join(b.e.cfg.SeccompDir, filepath.Clean("/"+path))
		}
		if spec.Linux.Seccomp, err = seccomp.Load(path); err != nil {
			return fmt.Errorf("seccomp profile %q: %w", p.LocalhostRef, err)
		}
	default:
		return fmt.Errorf("seccomp profile type %v is unknown", p.ProfileType)
	}
	return nil
}

// capabilities never exceed our own: the kernel would refuse.
func (b *specBuilder) capabilities() (*specs.LinuxCapabilities, error) {
	set := map[string]bool{}
	for _, c := range defaultCaps {
		set[c] = true
	}
	all := func(on bool) {
		for _, c := range capNames {
			set[c] = on
		}
	}
	want := b.sec.GetCapabilities()
	if b.sec.GetPrivileged() {
		all(true)
	} else {
		for _, pass := range []struct {
			names []string
			on    bool
		}{{want.GetAddCapabilities(), true}, {want.GetDropCapabilities(), false}} {
			// "ALL" is the ground on which the other names stand.
			for _, n := range pass.names {
				if strings.EqualFold(n, "ALL") {
					all(pass.on)
				}
			}
		}
		for _, n := range want.GetDropCapabilities() {
			if !strings.EqualFold(n, "ALL") {
				set[capName(n)] = false
			}
		}
		for _, n := range want.GetAddCapabilities() {
			if strings.EqualFold(n, "ALL") {
				continue
			}
			if !slices.Contains(capNames, capName(n)) {
				return nil, fmt.Errorf("capability %q is unknown", n)
			}
			if !slices.ContainsFunc(want.GetDropCapabilities(), func(d string) bool { return capName(d) == capName(n) }) {
				set[capName(n)] = true
			}
		}
	}
	var list []string
	for _, c := range b.e.limits.caps {
		if set[c] {
			list = append(list, c)
		}
	}
	out := &specs.LinuxCapabilities{Bounding: list, Effective: list, Permitted: list}
	for _, n := range want.GetAddAmbientCapabilities() {
		if c := capName(n); slices.Contains(list, c) {
			out.Inheritable, out.Ambient = append(out.Inheritable, c), append(out.Ambient, c)
		}
	}
	return out, nil
}

func capName(n string) string {
	n = strings.ToUpper(n)
	if !strings.HasPrefix(n, "CAP_") {
		n = "CAP_" + n
	}
	return n
}

func (b *specBuilder) resources() error {
	b.e.mu.Lock()
	r := b.c.resources
	b.e.mu.Unlock()
	out := b.run.Spec.Linux.Resources
	cpu := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if n := r.GetCpuShares(); n > 0 {
		u := uint64(max(n, 2))
		cpu.Shares = &u
	}
	if n := r.GetCpuQuota(); n != 0 {
		cpu.Quota = &n
	}
	if n := r.GetCpuPeriod(); n > 0 {
		u := uint64(n)
		cpu.Period = &u
	}
	out.CPU = cpu
	mem := &specs.LinuxMemory{}
	if n := r.GetMemoryLimitInBytes(); n != 0 {
		mem.Limit = &n
		if swap := r.GetMemorySwapLimitInBytes(); swap != 0 && b.e.countsSwap(b.c.sandbox.tree) {
			mem.Swap = &swap
		}
	}
	out.Memory = mem
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.PageSize, Limit: h.Limit})
	}
	if b.c.sandbox.tree.V2 {
		out.Unified = r.GetUnified()
	}
	return nil
}

// countsSwap reports whether the kernel keeps account of swap.
func (e *Engine) countsSwap(t *cgroup.Tree) bool {
	if t.V2 {
		return true
	}
	d := t.Dir("memory", "/")
	_, err := os.Stat(filepath.Join(d, "memory.memsw.limit_in_bytes"))
	return err == nil
}
