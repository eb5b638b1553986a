// Package runner turns a bundle into a running container by libcontainer, and
// exits; what it started becomes the monitor's child.
//
//	proa-runner run DIR                      DIR/run.json is a bundle.Run
//	proa-runner exec STATE ID FILE           FILE is a bundle.Exec
//	proa-runner init                         libcontainer's own second stage
//
// Files: 0, 1, 2 are the process's stdio; 3 takes the verdict, "+" and the
// result or "-" and the error; 4, if open, is a socket that gets the terminal.
// The result of run is "pid uid:gid:group,group", of exec "pid".
//
// run is started in a mount namespace of its own: the root file system is
// mounted only there, libcontainer takes it along into the container, and it is
// gone with the container's last process, whatever crashes.
package runner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	_ "github.com/opencontainers/cgroups/devices" // device rules of cgroups
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // the C part, before Go starts
	"github.com/opencontainers/runc/libcontainer/specconv"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"proa.dev/engine/bundle"
)

func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init() // does not return
	}
}

const (
	verdictFile = 3
	consoleFile = 4
)

// Main runs the command and returns the exit code.
func Main(args []string) int {
	runtime.LockOSThread()
	logrus.SetLevel(logrus.ErrorLevel)
	unix.CloseOnExec(verdictFile)
	out := os.NewFile(verdictFile, "verdict")
	var result string
	var err error
	switch {
	case len(args) == 2 && args[0] == "run":
		result, err = run(args[1])
	case len(args) == 4 && args[0] == "exec":
		result, err = execute(args[1], args[2], args[3])
	default:
		fmt.Fprintln(os.Stderr, "proa-runner is started by proa's monitor only")
		return 2
	}
	if err != nil {
		fmt.Fprintf(out, "-%s", strings.TrimSpace(err.Error()))
		return 1
	}
	fmt.Fprintf(out, "+%s", result)
	return 0
}

func run(dir string) (string, error) {
	var b bundle.Run
	if err := bundle.Read(filepath.Join(dir, bundle.RunFile), &b); err != nil {
		return "", fmt.Errorf("read bundle: %w", err)
	}
	if err := os.Chdir(dir); err != nil {
		return "", err
	}
	if err := mountOverlay(b.Root); err != nil {
		return "", fmt.Errorf("mount root file system: %w", err)
	}
	for _, m := range b.Mounts {
		if err := mountOverlay(m.Overlay); err != nil {
			return "", fmt.Errorf("mount image volume: %w", err)
		}
	}
	for _, v := range b.Volumes {
		if err := fillVolume(b.Root.Target, v); err != nil {
			return "", fmt.Errorf("prepare volume %q of the image: %w", v.Path, err)
		}
	}
	user, err := resolveUser(b.Root.Target, b.User)
	if err != nil {
		return "", err
	}
	b.Spec.Root.Path = b.Root.Target
	b.Spec.Process.User = user
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName: b.ID, Spec: b.Spec, NoNewKeyring: false,
	})
	if err != nil {
		return "", err
	}
	if err := makeWorkdir(b.Root.Target, b.Spec.Process.Cwd); err != nil {
		return "", err
	}
	c, err := libcontainer.Create(b.StateRoot, b.ID, config)
	if err != nil {
		return "", fmt.Errorf("create container: %w", err)
	}
	p, err := process(b.Spec.Process)
	if err != nil {
		return "", err
	}
	p.Init = true
	if err := c.Run(p); err != nil {
		if p.Signal(unix.SIGKILL) == nil {
			p.Wait()
		}
		return "", errors.Join(err, ignoreNotRunning(c.Destroy()))
	}
	pid, err := p.Pid()
	if err != nil {
		return "", err
	}
	groups := make([]string, len(user.AdditionalGids))
	for i, g := range user.AdditionalGids {
		groups[i] = strconv.Itoa(int(g))
	}
	return fmt.Sprintf("%d %d:%d:%s", pid, user.UID, user.GID, strings.Join(groups, ",")), nil
}

func ignoreNotRunning(err error) error {
	if errors.Is(err, libcontainer.ErrNotRunning) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func execute(state, id, file string) (string, error) {
	var x bundle.Exec
	if err := bundle.Read(file, &x); err != nil {
		return "", fmt.Errorf("read process: %w", err)
	}
	os.Remove(file)
	c, err := libcontainer.Load(state, id)
	if err != nil {
		return "", fmt.Errorf("load container: %w", err)
	}
	status, err := c.Status()
	if err != nil {
		return "", err
	}
	if status != libcontainer.Running && status != libcontainer.Created {
		return "", fmt.Errorf("container is %v, not running", status)
	}
	p, err := process(x.Process)
	if err != nil {
		return "", err
	}
	if err := c.Run(p); err != nil {
		return "", err
	}
	pid, err := p.Pid()
	if err != nil {
		return "", err
	}
	return strconv.Itoa(pid), nil
}

// process is a specs.Process for libcontainer, with the stdio of this program.
func process(s *specs.Process) (*libcontainer.Process, error) {
	p := &libcontainer.Process{
		Args: s.Args, Env: s.Env, Cwd: s.Cwd,
		UID: int(s.User.UID), GID: int(s.User.GID),
		NoNewPrivileges: &s.NoNewPrivileges,
		AppArmorProfile: s.ApparmorProfile,
		Label:           s.SelinuxLabel,
		LogLevel:        strconv.Itoa(int(logrus.ErrorLevel)),
	}
	for _, g := range s.User.AdditionalGids {
		p.AdditionalGroups = append(p.AdditionalGroups, int(g))
	}
	if c := s.Capabilities; c != nil {
		p.Capabilities = &configs.Capabilities{Bounding: c.Bounding, Effective: c.Effective,
			Inheritable: c.Inheritable, Permitted: c.Permitted, Ambient: c.Ambient}
	}
	for _, l := range s.Rlimits {
		n, ok := rlimits[l.Type]
		if !ok {
			return nil, fmt.Errorf("rlimit %q: not a name that Linux has", l.Type)
		}
		p.Rlimits = append(p.Rlimits, configs.Rlimit{Type: n, Hard: l.Hard, Soft: l.Soft})
	}
	if !s.Terminal {
		p.Stdin, p.Stdout, p.Stderr = os.Stdin, os.Stdout, os.Stderr
		return p, nil
	}
	if s.ConsoleSize != nil {
		p.ConsoleWidth, p.ConsoleHeight = uint16(s.ConsoleSize.Width), uint16(s.ConsoleSize.Height)
	}
	p.ConsoleSocket = os.NewFile(consoleFile, "console")
	return p, nil
}

var rlimits = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_STACK": unix.RLIMIT_STACK, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}
