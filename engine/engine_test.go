package engine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"proa.dev/env"
	"proa.dev/internal/await"
	"proa.dev/internal/locked"
)

var ctx = context.Background()

func TestRunOne(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(nil)
	id := r.create(sb, sc, shell("echo hello; echo problem >&2; exit 3"))
	if st := r.status(id); st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("created container is %v", st.State)
	}
	if _, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	st := r.exited(id)
	if st.ExitCode != 3 || st.Reason != "Error" || st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("status %v", st)
	}
	if got := logText(t, st.LogPath); got != "hello\nproblem\n" && got != "problem\nhello\n" {
		t.Errorf("log %q", got)
	}
	if st.StartedAt < st.CreatedAt || st.FinishedAt < st.StartedAt {
		t.Errorf("times %d %d %d", st.CreatedAt, st.StartedAt, st.FinishedAt)
	}
	if _, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a second start gave %v", err)
	}
}

func TestSurroundings(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"a.b", "c"}, Options: []string{"ndots:5"}}
		c.Linux.Sysctls = map[string]string{"kernel.shmmax": "123456789", "net.core.somaxconn": "77"}
	})
	for name, c := range map[string]struct {
		script, want string
		edit         func(*runtimeapi.ContainerConfig)
	}{
		"environment": {"echo $A-$FROM_IMAGE-$HOSTNAME", "1-yes-" + sc.Hostname, func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("1")}}
		}},
		"hostname":    {"hostname; cat /etc/hostname", sc.Hostname + "\n" + sc.Hostname, nil},
		"resolv.conf": {"cat /etc/resolv.conf", "search a.b c\nnameserver 10.0.0.10\noptions ndots:5", nil},
		"sysctls":     {"cat /proc/sys/kernel/shmmax /proc/sys/net/core/somaxconn", "123456789\n77", nil},
		"root":        {"id", "uid=0(root) gid=0(root) groups=0(root)", nil},
		"user by number": {"id", "uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)", func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		}},
		"user by name, strict groups": {"id", "uid=1000(app) gid=1001(app) groups=7,1001(app)", func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUsername = "app"
			c.Linux.SecurityContext.SupplementalGroups = []int64{7}
			c.Linux.SecurityContext.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
		}},
		"unlisted user and group": {"id; cd ~; pwd", "uid=4242 gid=77 groups=77\n/", func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 4242}
			c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 77}
		}},
		"working directory is made": {"pwd", "/made/for/it", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/made/for/it" }},
		"own processes":             {"echo $$", "1", nil},
		"loopback":                  {"cat /sys/class/net/lo/operstate; (echo x | nc -l -p 9 &) ; sleep 0.2; nc 127.0.0.1 9", "unknown\nx", nil},
		"shared memory":             {"stat -f -c %T /dev/shm; echo x > /dev/shm/y && cat /dev/shm/y", "tmpfs\nx", nil},
		"default seccomp":           {"grep Seccomp: /proc/self/status; mount -t tmpfs x /tmp 2>&1", "Seccomp:\t2\nmount: permission denied (are you root?)", nil},
		"masked":                    {"head -c9 /proc/timer_list; ls /sys/firmware; (echo x > /proc/sys/kernel/hostname) 2>&1 | grep -c Read-only", "1", nil},
		"read-only root":            {"touch /x 2>&1; touch /dev/shm/x && echo shm", "touch: /x: Read-only file system\nshm", func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true }},
		"no new privileges":         {"grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1", func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.NoNewPrivs = true }},
		"capabilities": {"grep CapEff /proc/self/status", "CapEff:\t0000000000000400", func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
		}},
		"image command": {"", "", func(c *runtimeapi.ContainerConfig) { c.Command = nil; c.Args = []string{"true"} }},
		"cgroup limits": {"cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null", "33554432\n20000", func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, CpuQuota: 20000, CpuPeriod: 100000, CpuShares: 200, OomScoreAdj: -998}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := *r
			r.t = t
			cfg := shell(c.script)
			if c.edit != nil {
				c.edit(cfg)
			}
			got, st := r.output(sb, sc, cfg)
			if strings.TrimSpace(got) != c.want {
				t.Errorf("got %q, want %q (exit code %d)", got, c.want, st.ExitCode)
			}
		})
	}
}

func TestMounts(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(nil)
	host := filepath.Join(r.dir, "host")
	os.MkdirAll(filepath.Join(host, "sub"), 0o755)
	os.WriteFile(filepath.Join(host, "f"), []byte("from host\n"), 0o644)
	cfg := shell("cat /ro/f; touch /ro/x 2>&1; echo y > /rw/y; cat /rw/deep/z; touch /rro/sub/x 2>&1; ls /img/bin/busybox; touch /img/x 2>&1; stat -c '%u:%g %a' /data/seed; echo v > /data/new && cat /data/new")
	os.WriteFile(filepath.Join(r.dir, "z"), []byte("nested\n"), 0o644)
	cfg.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/rw/deep/z", HostPath: filepath.Join(r.dir, "z")}, // before its parent: order must not matter
		{ContainerPath: "/rw", HostPath: filepath.Join(r.dir, "made", "by", "engine")},
		{ContainerPath: "/ro", HostPath: host, Readonly: true},
		{ContainerPath: "/rro", HostPath: host, Readonly: true, RecursiveReadOnly: true},
		{ContainerPath: "/img", Image: &runtimeapi.ImageSpec{Image: busybox}, Readonly: true},
	}
	importBusybox(t, r.store, "docker.io/library/vol:test", func(c *v1.Config) { c.Volumes = map[string]struct{}{"/data": {}} })
	cfg.Image.Image = "vol:test"
	got, _ := r.output(sb, sc, cfg)
	want := "from host\ntouch: /ro/x: Read-only file system\nnested\ntouch: /rro/sub/x: Read-only file system\n/img/bin/busybox\ntouch: /img/x: Read-only file system\n1000:1001 640\nv\n"
	if got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if b, err := os.ReadFile(filepath.Join(r.dir, "made/by/engine/y")); err != nil || string(b) != "y\n" {
		t.Errorf("written through the mount: %q, %v", b, err)
	}
	cfg = shell("true")
	cfg.Mounts = []*runtimeapi.Mount{{ContainerPath: "/x", HostPath: host, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
	id := r.create(sb, sc, cfg)
	if shared, _, err := sharedMount(host); err == nil && !shared {
		_, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		if err == nil || !strings.Contains(err.Error(), "not a shared mount") {
			t.Errorf("bidirectional mount of a private one: %v", err)
		}
	}
}

// A container's root must not show in the host's mount table.
func TestMountTable(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(nil)
	r.run(sb, sc, shell("sleep 1000"))
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for _, line := range strings.Split(string(b), "\n") {
		if strings.Contains(line, " overlay ") && strings.Contains(line, r.dir) {
			t.Errorf("host sees %s", line)
		}
	}
}

func TestStop(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(nil)
	polite := r.run(sb, sc, shell("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done"))
	deaf := r.run(sb, sc, shell("trap '' TERM; sleep 1000 & while :; do sleep 1; done"))
	own := shell("trap 'exit 9' USR1; echo up; while :; do sleep 0.05; done")
	own.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR1
	usr1 := r.run(sb, sc, own)
	for _, id := range []string{polite, usr1} {
		await.True(t, 15*time.Second, "trap is set", func() bool { return strings.Contains(logText(t, r.status(id).LogPath), "up") })
	}
	for id, want := range map[string]int32{polite: 7, usr1: 9, deaf: 137} {
		if _, err := r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
			t.Fatal(err)
		}
		if st := r.status(id); st.ExitCode != want || st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("stopped container: code %d state %v, want %d", st.ExitCode, st.State, want)
		}
	}
	if got := logText(t, r.status(polite).LogPath); !strings.HasSuffix(got, "bye\n") {
		t.Errorf("log %q", got)
	}
	for range 2 { // again, and of nothing
		if _, err := r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: deaf, Timeout: 1}); err != nil {
			t.Error(err)
		}
		if _, err := r.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sb}); err != nil {
			t.Error(err)
		}
		if _, err := r.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: deaf}); err != nil {
			t.Error(err)
		}
		if _, err := r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb}); err != nil {
			t.Error(err)
		}
	}
	if entries, _ := os.ReadDir(filepath.Join(r.dir, "run", "sandbox")); len(entries) != 0 {
		t.Errorf("left below RunDir: %v", entries)
	}
	if entries, _ := os.ReadDir(r.containerDir()); len(entries) != 0 {
		t.Errorf("left below DataDir: %v", entries)
	}
}

func TestStartErrors(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(nil)
	cfg := shell("")
	cfg.Command = []string{"/no/such/program"}
	id := r.create(sb, sc, cfg)
	_, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	if err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("start gave %v", err)
	}
	if st := r.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 128 || st.Reason != "StartError" || st.Message == "" {
		t.Errorf("status %v", st)
	}
	cfg = shell("true")
	cfg.Linux.SecurityContext.RunAsUsername = "nobody-here"
	id = r.create(sb, sc, cfg)
	if _, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err == nil || !strings.Contains(err.Error(), "unable to find user nobody-here") {
		t.Errorf("start gave %v", err)
	}
	cfg = shell("true")
	cfg.Image.Image = "absent:1"
	if _, err := r.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sb, Config: cfg}); status.Code(err) != codes.NotFound {
		t.Errorf("create from an absent image gave %v", err)
	}
	if _, err := r.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: "nothing"}); status.Code(err) != codes.NotFound {
		t.Errorf("status of nothing gave %v", err)
	}
}

func TestOOM(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(nil)
	cfg := shell("dd if=/dev/zero of=/dev/null bs=100M count=1")
	cfg.Command = []string{"/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"}
	cfg.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	_, st := r.output(sb, sc, cfg)
	if st.Reason != "OOMKilled" || st.ExitCode != 137 {
		t.Errorf("status %v", st)
	}
}

func TestLog(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(nil)
	long := r.run(sb, sc, shell("yes 0123456789 | tr -d '\\n' | head -c 40000; echo; echo -n tail"))
	st := r.exited(long)
	raw, _ := os.ReadFile(st.LogPath)
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	var tags []string
	for _, l := range lines {
		f := strings.SplitN(l, " ", 4)
		if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil || f[1] != "stdout" {
			t.Errorf("entry %.60q", l)
		}
		tags = append(tags, f[2])
	}
	if got := strings.Join(tags, ""); got != "PPFP" {
		t.Errorf("tags %s", got)
	}
	if got := logText(t, st.LogPath); len(got) != 40000+1+4 || !strings.HasSuffix(got, "\ntail") {
		t.Errorf("log of %d bytes", len(got))
	}
	id := r.run(sb, sc, shell("while :; do echo tick; sleep 0.02; done"))
	path := r.status(id).LogPath
	await.True(t, 15*time.Second, "first tick", func() bool { return strings.Contains(logText(t, path), "tick") })
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	await.True(t, 15*time.Second, "tick in the new file", func() bool { return strings.Contains(logText(t, path), "tick") })
}

// startsClock calls started before it makes a timer.
type startsClock struct {
	env.Clock
	started func(time.Duration)
}

func (c startsClock) NewTimer(d time.Duration) env.Timer {
	c.started(d)
	return c.Clock.NewTimer(d)
}

// The time that a machine under load takes to start a command is not the
// command's: its timeout begins when it runs.
func TestExecTimeoutCountsFromStart(t *testing.T) {
	r := newRig(t)
	r.halt()
	const mark = "31.415926"
	var seen bool
	r.clock = startsClock{env.SystemClock(), func(d time.Duration) {
		if d == 3*time.Second {
			seen = true
			await.True(t, 10*time.Second, "the process runs before its timer is made", func() bool { return len(processesOf(t, "sleep\x00"+mark)) > 0 })
		}
	}}
	r.start()
	sb, sc := r.pod(nil)
	id := r.run(sb, sc, shell("sleep 1000"))
	_, err := r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", mark}, Timeout: 3})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "timeout of 3s exceeded") {
		t.Errorf("slow exec gave %v", err)
	}
	if !seen {
		t.Error("no timer of 3 s was made")
	}
	if left := processesOf(t, "sleep\x00"+mark); len(left) > 0 {
		t.Errorf("processes %v outlived their time", left)
	}
}

// processesOf lists the processes whose command line begins so.
func processesOf(t *testing.T, line string) (pids []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), line) {
			pids = append(pids, f)
		}
	}
	return pids
}

func TestExec(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(nil)
	cfg := shell("sleep 1000")
	cfg.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	id := r.run(sb, sc, cfg)
	resp, err := r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "id -u; echo bad >&2; exit 5"}, Timeout: 10})
	if err != nil {
		t.Fatal(err)
	}
	if string(resp.Stdout) != "1000\n" || string(resp.Stderr) != "bad\n" || resp.ExitCode != 5 {
		t.Errorf("exec: %v", resp)
	}
	if _, err := r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "100"}, Timeout: 1}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("slow exec gave %v", err)
	}
	if _, err := r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"/no/such"}}); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("exec of nothing gave %v", err)
	}
	var out bytes.Buffer
	code, err := r.ExecStream(ctx, id, []string{"cat"}, false, strings.NewReader("through\n"), &out, nil, nil)
	if err != nil || code != 0 || out.String() != "through\n" {
		t.Errorf("cat: %d %v %q", code, err, out.String())
	}
	resize := make(chan Size, 1)
	resize <- Size{Width: 90, Height: 33}
	in, w := io.Pipe()
	defer w.Close()
	var tty locked.Buffer
	done := make(chan error, 1)
	go func() {
		code, err := r.ExecStream(ctx, id, []string{"sh"}, true, in, &tty, nil, resize)
		if code != 4 && err == nil {
			err = fmt.Errorf("code %d", code)
		}
		done <- err
	}()
	io.WriteString(w, "stty size; echo $TERM\n")
	await.True(t, 15*time.Second, "terminal answers", func() bool { return strings.Contains(tty.String(), "xterm") })
	if !strings.Contains(tty.String(), "33 90") {
		t.Errorf("terminal shows %q", tty.String())
	}
	io.WriteString(w, "exit 4\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAttach(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(nil)
	cfg := shell("while read x; do echo got $x; echo err $x >&2; done; echo end")
	cfg.Stdin, cfg.StdinOnce = true, true
	id := r.run(sb, sc, cfg)
	in, w := io.Pipe()
	var out, errOut, second locked.Buffer
	done := make(chan error, 1)
	go func() { done <- r.AttachStream(ctx, id, in, &out, &errOut, nil) }()
	io.WriteString(w, "one\n")
	await.True(t, 15*time.Second, "answer", func() bool {
		return strings.Contains(out.String(), "got one") && strings.Contains(errOut.String(), "err one")
	})
	watch, stop := context.WithCancel(ctx)
	gone := make(chan error, 1)
	go func() { gone <- r.AttachStream(watch, id, nil, &second, nil, nil) }()
	lines := 0
	await.Nil(t, 10*time.Second, "the second attachment sees the answers", func() error {
		if strings.Contains(second.String(), "got") {
			return nil
		}
		fmt.Fprintf(w, "more%d\n", lines)
		lines++
		return fmt.Errorf("it sees %q after %d more lines", second.String(), lines)
	})
	stop()
	if err := <-gone; err != context.Canceled {
		t.Errorf("cancelled attachment: %v", err)
	}
	w.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if st := r.exited(id); st.ExitCode != 0 || !strings.HasSuffix(logText(t, st.LogPath), "end\n") {
		t.Errorf("status %v", st)
	}
	if !strings.HasSuffix(out.String(), "end\n") {
		t.Errorf("attachment ends with %q", out.String())
	}

	cfg = shell("stty size; read x; echo got $x")
	cfg.Stdin, cfg.Tty = true, true
	id = r.run(sb, sc, cfg)
	in, w = io.Pipe()
	defer w.Close()
	var tty locked.Buffer
	go func() { done <- r.AttachStream(ctx, id, in, &tty, nil, nil) }()
	io.WriteString(w, "hi\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if st := r.exited(id); st.ExitCode != 0 || !strings.Contains(logText(t, st.LogPath), "got hi") {
		t.Errorf("status %v, log %q", st, logText(t, st.LogPath))
	}
}

func TestPortForward(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(nil)
	r.run(sb, sc, shell("while :; do echo served | nc -l -p 8080; done"))
	var got []byte
	await.True(t, 15*time.Second, "server answers", func() bool {
		ours, theirs := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- r.PortForwardStream(ctx, sb, 8080, theirs) }()
		got, _ = io.ReadAll(ours)
		ours.Close()
		<-done
		return len(got) > 0
	})
	if string(got) != "served\n" {
		t.Errorf("got %q", got)
	}
	ours, theirs := net.Pipe()
	defer ours.Close()
	if err := r.PortForwardStream(ctx, sb, 8081, theirs); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("closed port gave %v", err)
	}
}

func TestSharedProcesses(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	shared := func(script string) *runtimeapi.ContainerConfig {
		c := shell(script)
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		return c
	}
	// The child in the background must not outlive its container.
	a := r.run(sb, sc, shared("sleep 4321 & echo up; while :; do sleep 0.05; done"))
	await.True(t, 15*time.Second, "a is up", func() bool { return strings.Contains(logText(t, r.status(a).LogPath), "up") })
	got, _ := r.output(sb, sc, shared("echo $$; ps | grep -c 'sleep 432[1]'"))
	if f := strings.Fields(got); len(f) != 2 || f[0] == "1" || f[1] != "2" {
		t.Errorf("second container sees %q", got)
	}
	if _, err := r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: a}); err != nil {
		t.Fatal(err)
	}
	got, _ = r.output(sb, sc, shared("ps | grep -c 'sleep 432[1]'"))
	if got != "0\n" {
		t.Errorf("after the stop, others see %q", got)
	}
	target := r.run(sb, sc, shell("sleep 9876"))
	dbg := shell("ps | grep -c 'sleep 987[6]'")
	dbg.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: target}
	if got, _ := r.output(sb, sc, dbg); got != "1\n" {
		t.Errorf("debug container sees %q", got)
	}
}

func TestHostNamespaces(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE}
	})
	cfg := shell("ls -l /proc/self/ns/net /proc/self/ns/pid /proc/self/ns/ipc | grep -o '\\[.*'")
	cfg.Linux.SecurityContext.NamespaceOptions = sc.Linux.SecurityContext.NamespaceOptions
	cfg.Linux.SecurityContext.Privileged = true
	got, _ := r.output(sb, sc, cfg)
	want := ""
	for _, n := range []string{"net", "pid", "ipc"} {
		l, _ := os.Readlink("/proc/self/ns/" + n)
		want += l[strings.Index(l, "["):] + "\n"
	}
	if len(strings.Fields(got)) != 3 {
		t.Fatalf("got %q", got)
	}
	for _, w := range strings.Fields(want) {
		if !strings.Contains(got, w) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestPrivileged(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(nil)
	cfg := shell("mount -t tmpfs x /tmp && echo mounted; ls /dev/null /dev/urandom; grep Seccomp: /proc/self/status; touch /sys/kernel/x 2>&1 | grep -c Read-only")
	cfg.Linux.SecurityContext.Privileged = true
	if got, _ := r.output(sb, sc, cfg); got != "mounted\n/dev/null\n/dev/urandom\nSeccomp:\t0\n0\n" {
		t.Errorf("got %q", got)
	}
}

func TestUpdateAndStats(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(nil)
	cfg := shell("dd if=/dev/zero of=/file bs=1M count=3 2>/dev/null; while :; do :; done")
	cfg.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 10000, CpuPeriod: 100000}
	id := r.run(sb, sc, cfg)
	if _, err := r.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id,
		Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuQuota: 50000, CpuPeriod: 50000}}); err != nil {
		t.Fatal(err)
	}
	if res := r.status(id).Resources.Linux; res.MemoryLimitInBytes != 128<<20 || res.CpuQuota != 50000 {
		t.Errorf("status shows %v", res)
	}
	if u, ok := r.containers[id].sandbox.tree.Usage(r.containers[id].cgroup()); !ok || u.MemoryLimit != 128<<20 {
		t.Errorf("kernel shows %+v", u)
	}
	var st *runtimeapi.ContainerStats
	await.True(t, 15*time.Second, "a rate and a file", func() bool {
		resp, err := r.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		st = resp.Stats
		return st.Cpu.GetUsageNanoCores().GetValue() > 0 && st.WritableLayer.UsedBytes.Value >= 3<<20
	})
	if st.Memory.WorkingSetBytes.Value == 0 || st.Cpu.UsageCoreNanoSeconds.Value == 0 {
		t.Errorf("stats %v", st)
	}
	pod, err := r.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: sb})
	if err != nil || len(pod.Stats.Linux.Containers) != 1 || pod.Stats.Linux.Memory.UsageBytes.Value == 0 {
		t.Errorf("pod stats %v, %v", pod, err)
	}
}

func TestEvents(t *testing.T) {
	r := newRig(t)
	watch, stop := context.WithCancel(ctx)
	defer stop()
	events := r.Events(watch)
	sb, sc := r.pod(nil)
	id := r.run(sb, sc, shell("exit 0"))
	r.exited(id)
	if _, err := r.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for len(got) < 6 {
		select {
		case ev := <-events:
			who := "sandbox"
			if ev.ContainerId == id {
				who = "container"
			}
			got = append(got, who+" "+strings.Split(ev.ContainerEventType.String(), "_")[1])
			if ev.PodSandboxStatus.GetId() != sb {
				t.Errorf("event of sandbox %q", ev.PodSandboxStatus.GetId())
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("events so far: %q", got)
		}
	}
	if s := strings.Join(got, ", "); s != "sandbox CREATED, sandbox STARTED, container CREATED, container STARTED, container STOPPED, container DELETED" {
		t.Errorf("events %s", s)
	}
}

// The engine goes away without a word, as after kill -9, and comes back.
func TestAdoption(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(nil)
	lives := r.run(sb, sc, shell("while :; do echo tick; sleep 0.02; done"))
	ends := r.run(sb, sc, shell("while [ ! -e /dev/shm/go ]; do sleep 0.02; done; exit 42"))
	waits := r.create(sb, sc, shell("echo late"))
	dead, dsc := r.pod(nil)
	orphan := r.run(dead, dsc, shell("sleep 1000"))
	pid := r.containers[orphan].pid
	r.halt()
	os.WriteFile(filepath.Join(r.dir, "run/sandbox", sb, "shm/go"), nil, 0o644)
	await.True(t, 15*time.Second, "exit file", func() bool {
		_, err := os.Stat(filepath.Join(r.bundleDir(ends), "exit"))
		return err == nil
	})
	b, err := os.ReadFile(filepath.Join(r.dir, "run/sandbox", dead, "monitor.pid"))
	if err != nil {
		t.Fatal(err)
	}
	mon, _ := strconv.Atoi(string(b))
	syscall.Kill(mon, syscall.SIGKILL)
	begin := time.Now()
	r.start()
	t.Logf("adopted in %v", time.Since(begin))
	if st := r.status(lives); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("adopted container is %v", st)
	}
	if st := r.status(ends); st.ExitCode != 42 || st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.StartedAt == 0 {
		t.Errorf("container that ended meanwhile is %v", st)
	}
	if st := r.status(orphan); st.ExitCode != 255 || st.Reason != "Unknown" {
		t.Errorf("container without monitor is %v", st)
	}
	await.True(t, 15*time.Second, "orphan's process is gone", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(b), ") Z ")
	})
	st, err := r.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: dead})
	if err != nil || st.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("sandbox without monitor: %v, %v", st, err)
	}
	if _, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: waits}); err != nil {
		t.Fatal(err)
	}
	if st := r.exited(waits); logText(t, st.LogPath) != "late\n" {
		t.Errorf("container created before and started after: %v", st)
	}
	if resp, err := r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: lives, Cmd: []string{"echo", "hi"}}); err != nil || string(resp.Stdout) != "hi\n" {
		t.Errorf("exec after adoption: %v, %v", resp, err)
	}
	if _, err := r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: lives}); err != nil {
		t.Fatal(err)
	}
	if st := r.status(lives); st.ExitCode != 137 {
		t.Errorf("stopped after adoption: %v", st)
	}
	if _, err := r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: sc}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("the name of an adopted sandbox was given again: %v", err)
	}
}

// A monitor that dies takes its containers with it, and it is noticed at once.
func TestMonitorDies(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(nil)
	id := r.run(sb, sc, shell("sleep 1000"))
	b, _ := os.ReadFile(filepath.Join(r.dir, "run/sandbox", sb, "monitor.pid"))
	mon, _ := strconv.Atoi(string(b))
	syscall.Kill(mon, syscall.SIGKILL)
	if st := r.exited(id); st.ExitCode != 255 {
		t.Errorf("status %v", st)
	}
	if _, err := r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb}); err != nil {
		t.Error(err)
	}
}
