package enginetest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/internal/await"
)

// Harness is one runtime under test. It is closed by t.Cleanup of who opens it.
type Harness struct {
	Runtime
	Image string // present; runs the shell of the package comment
}

const (
	created = runtimeapi.ContainerState_CONTAINER_CREATED
	running = runtimeapi.ContainerState_CONTAINER_RUNNING
	exited  = runtimeapi.ContainerState_CONTAINER_EXITED
)

// Run checks a runtime. open is called once per part.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	for _, part := range []struct {
		name string
		f    func(*bench)
	}{
		{"sandbox", (*bench).sandboxLife}, {"container", (*bench).containerLife}, {"exit codes", (*bench).exitCodes},
		{"start error", (*bench).startError}, {"stop", (*bench).stops}, {"log", (*bench).logs}, {"exec", (*bench).execs},
		{"filters", (*bench).filters}, {"refusals", (*bench).refusals}, {"events", (*bench).events}, {"attempts", (*bench).attempts},
		{"resources", (*bench).resources}, {"images", (*bench).images}, {"status", (*bench).runtimeStatus},
	} {
		t.Run(part.name, func(t *testing.T) {
			part.f(&bench{T: t, Harness: open(t), dir: t.TempDir()})
		})
	}
}

// bench is one part's workplace.
type bench struct {
	*testing.T
	Harness
	dir string
	n   int
}

var bg = context.Background()

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bench) code(err error, want codes.Code, what string) {
	b.Helper()
	if status.Code(err) != want {
		b.Errorf("%s: got %v, want code %v", what, err, want)
	}
}

func (b *bench) until(what string, f func() bool) {
	b.Helper()
	await.True(b, 20*time.Second, what, f)
}

func (b *bench) sandboxConfig() *runtimeapi.PodSandboxConfig {
	b.n++
	name := fmt.Sprintf("p%d", b.n)
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "ns", Uid: name + "-uid"},
		Hostname: name, LogDirectory: filepath.Join(b.dir, name), Labels: map[string]string{"pod": name, "suite": "yes"},
		Annotations: map[string]string{"note": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
}

func (b *bench) pod() (string, *runtimeapi.PodSandboxConfig) {
	b.Helper()
	cfg := b.sandboxConfig()
	r, err := b.RunPodSandbox(bg, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	b.must(err)
	b.Cleanup(func() {
		if _, err := b.RemovePodSandbox(bg, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId}); err != nil {
			b.Errorf("clean up: %v", err)
		}
	})
	return r.PodSandboxId, cfg
}

func (b *bench) script(s string) *runtimeapi.ContainerConfig {
	b.n++
	name := fmt.Sprintf("c%d", b.n)
	return &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: b.Image},
		Command: []string{"/bin/sh", "-c", s}, LogPath: name + ".log", Labels: map[string]string{"container": name, "suite": "yes"},
		Annotations: map[string]string{"note": name},
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}}}
}

func (b *bench) create(sandbox string, sc *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) string {
	b.Helper()
	r, err := b.CreateContainer(bg, &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: cfg, SandboxConfig: sc})
	b.must(err)
	return r.ContainerId
}

func (b *bench) start(id string) error {
	_, err := b.StartContainer(bg, &runtimeapi.StartContainerRequest{ContainerId: id})
	return err
}

func (b *bench) run(sandbox string, sc *runtimeapi.PodSandboxConfig, s string) string {
	b.Helper()
	id := b.create(sandbox, sc, b.script(s))
	b.must(b.start(id))
	return id
}

func (b *bench) stop(id string, seconds int64) {
	b.Helper()
	_, err := b.StopContainer(bg, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: seconds})
	b.must(err)
}

func (b *bench) status(id string) *runtimeapi.ContainerStatus {
	b.Helper()
	r, err := b.ContainerStatus(bg, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	b.must(err)
	return r.Status
}

func (b *bench) ended(id string) *runtimeapi.ContainerStatus {
	b.Helper()
	b.until("container ends", func() bool { return b.status(id).State == exited })
	return b.status(id)
}

func (b *bench) sandboxLife() {
	cfg := b.sandboxConfig()
	r, err := b.RunPodSandbox(bg, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	b.must(err)
	id := r.PodSandboxId
	st := func() *runtimeapi.PodSandboxStatus {
		r, err := b.PodSandboxStatus(bg, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
		b.must(err)
		return r.Status
	}
	s := st()
	if s.State != runtimeapi.PodSandboxState_SANDBOX_READY || s.Metadata.Name != cfg.Metadata.Name || s.Labels["suite"] != "yes" ||
		s.Annotations["note"] == "" || s.CreatedAt == 0 || s.Network == nil || s.Linux.GetNamespaces().GetOptions().GetPid() != runtimeapi.NamespaceMode_CONTAINER {
		b.Errorf("status of a new sandbox: %v", s)
	}
	_, err = b.RunPodSandbox(bg, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	b.code(err, codes.AlreadyExists, "the same metadata again")
	c := b.run(id, cfg, "sleep 1000")
	for range 2 {
		_, err := b.StopPodSandbox(bg, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
		b.must(err)
	}
	if s := st(); s.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		b.Errorf("stopped sandbox is %v", s.State)
	}
	if cs := b.status(c); cs.State != exited || cs.ExitCode != 137 || cs.Reason != "Error" {
		b.Errorf("container of a stopped sandbox: %v", cs)
	}
	for range 2 {
		_, err := b.RemovePodSandbox(bg, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
		b.must(err)
	}
	_, err = b.PodSandboxStatus(bg, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	b.code(err, codes.NotFound, "status of a removed sandbox")
	_, err = b.ContainerStatus(bg, &runtimeapi.ContainerStatusRequest{ContainerId: c})
	b.code(err, codes.NotFound, "status of a container of a removed sandbox")
	again, err := b.RunPodSandbox(bg, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	b.must(err)
	if again.PodSandboxId == id {
		b.Error("an ID was used twice")
	}
	_, err = b.RemovePodSandbox(bg, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: again.PodSandboxId})
	b.must(err)
}

func (b *bench) containerLife() {
	sb, sc := b.pod()
	cfg := b.script("sleep 1000")
	id := b.create(sb, sc, cfg)
	st := b.status(id)
	if st.State != created || st.StartedAt != 0 || st.FinishedAt != 0 || st.CreatedAt == 0 || st.Metadata.Name != cfg.Metadata.Name ||
		st.Labels["suite"] != "yes" || st.ImageRef == "" || st.ImageId == "" || st.Image.GetImage() != b.Image ||
		st.LogPath != filepath.Join(sc.LogDirectory, cfg.LogPath) || st.StopSignal != runtimeapi.Signal_SIGNAL_SIGTERM {
		b.Errorf("status of a created container: %v", st)
	}
	b.must(b.start(id))
	if st := b.status(id); st.State != running || st.StartedAt < st.CreatedAt || st.FinishedAt != 0 || st.Reason != "" {
		b.Errorf("status of a running container: %v", st)
	}
	b.code(b.start(id), codes.FailedPrecondition, "a second start")
	b.stop(id, 0)
	if st := b.status(id); st.State != exited || st.ExitCode != 137 || st.FinishedAt < st.StartedAt {
		b.Errorf("status of a stopped container: %v", st)
	}
	b.code(b.start(id), codes.FailedPrecondition, "a start after the end")
	for range 2 {
		b.stop(id, 1)
		_, err := b.RemoveContainer(bg, &runtimeapi.RemoveContainerRequest{ContainerId: id})
		b.must(err)
	}
	_, err := b.ContainerStatus(bg, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	b.code(err, codes.NotFound, "status of a removed container")
	// A running one is ended by its removal, a created one just goes.
	for _, id := range []string{b.run(sb, sc, "sleep 1000"), b.create(sb, sc, b.script("true"))} {
		_, err := b.RemoveContainer(bg, &runtimeapi.RemoveContainerRequest{ContainerId: id})
		b.must(err)
	}
	r, err := b.PodSandboxStatus(bg, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sb})
	b.must(err)
	if len(r.ContainersStatuses) != 0 {
		b.Errorf("containers left: %v", r.ContainersStatuses)
	}
}

func (b *bench) exitCodes() {
	sb, sc := b.pod()
	for script, want := range map[string]int32{"true": 0, "false": 1, "exit 42": 42, "echo x; exit 255": 255} {
		st := b.ended(b.run(sb, sc, script))
		reason := "Error"
		if want == 0 {
			reason = "Completed"
		}
		if st.ExitCode != want || st.Reason != reason {
			b.Errorf("%q: code %d, reason %q", script, st.ExitCode, st.Reason)
		}
	}
}

func (b *bench) startError() {
	sb, sc := b.pod()
	cfg := b.script("")
	cfg.Command = []string{"/no/such/program"}
	id := b.create(sb, sc, cfg)
	if err := b.start(id); err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		b.Errorf("start gave %v", err)
	}
	if st := b.status(id); st.State != exited || st.ExitCode != 128 || st.Reason != "StartError" || st.Message == "" || st.StartedAt != 0 {
		b.Errorf("status %v", st)
	}
	b.stop(id, 1)
	_, err := b.RemoveContainer(bg, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	b.must(err)
}

func (b *bench) stops() {
	sb, sc := b.pod()
	polite := b.run(sb, sc, "trap 'exit 7' TERM; echo up; "+strings.Repeat("sleep 0.05; ", 400))
	deaf := b.run(sb, sc, "sleep 1000")
	b.until("the trap is set", func() bool { return strings.Contains(b.log(b.status(polite).LogPath), "up") })
	b.stop(polite, 10)
	if st := b.status(polite); st.ExitCode != 7 {
		b.Errorf("polite container: %v", st)
	}
	begin := time.Now()
	b.stop(deaf, 1)
	if st := b.status(deaf); st.ExitCode != 137 || time.Since(begin) < 900*time.Millisecond {
		b.Errorf("deaf container after %v: %v", time.Since(begin), st)
	}
	late, cancel := context.WithTimeout(bg, 200*time.Millisecond)
	defer cancel()
	other := b.run(sb, sc, "sleep 1000")
	if _, err := b.StopContainer(late, &runtimeapi.StopContainerRequest{ContainerId: other, Timeout: 100}); err == nil {
		b.Error("a stop whose caller gave up reports success")
	}
	b.stop(other, 0) // a shorter stop overtakes the longer one
	if st := b.status(other); st.State != exited {
		b.Errorf("container is %v", st.State)
	}
}

// log is the text of a container's log.
func (b *bench) log(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	var out strings.Builder
	for _, line := range strings.SplitAfter(string(raw), "\n") {
		if f := strings.SplitN(line, " ", 4); len(f) == 4 {
			if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil || f[1] != "stdout" || f[2] != "F" {
				b.Errorf("log entry %q", line)
			}
			out.WriteString(f[3])
		}
	}
	return out.String()
}

func (b *bench) logs() {
	sb, sc := b.pod()
	st := b.ended(b.run(sb, sc, "echo one; echo two; exit 0"))
	if got := b.log(st.LogPath); got != "one\ntwo\n" {
		b.Errorf("log %q", got)
	}
	id := b.run(sb, sc, "echo before; sleep 1; echo after; sleep 1000")
	path := b.status(id).LogPath
	b.until("first line", func() bool { b.status(id); return b.log(path) == "before\n" })
	b.must(os.Rename(path, path+".old"))
	_, err := b.ReopenContainerLog(bg, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
	b.must(err)
	b.until("line in the new file", func() bool { b.status(id); return b.log(path) == "after\n" })
	b.stop(id, 0)
	_, err = b.ReopenContainerLog(bg, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
	b.code(err, codes.FailedPrecondition, "reopen the log of an ended container")
}

func (b *bench) execs() {
	sb, sc := b.pod()
	id := b.run(sb, sc, "sleep 1000")
	exec := func(timeout int64, cmd ...string) (*runtimeapi.ExecSyncResponse, error) {
		return b.ExecSync(bg, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: timeout})
	}
	r, err := exec(10, "/bin/sh", "-c", "echo hi; exit 3")
	b.must(err)
	if string(r.Stdout) != "hi\n" || r.ExitCode != 3 {
		b.Errorf("exec: %v", r)
	}
	_, err = exec(1, "/bin/sh", "-c", "sleep 100")
	b.code(err, codes.DeadlineExceeded, "exec that takes too long")
	if _, err = exec(0, "/no/such/program"); err == nil {
		b.Error("exec of nothing succeeds")
	}
	_, err = exec(0)
	b.code(err, codes.InvalidArgument, "exec without a command")
	var out bytes.Buffer
	code, err := b.ExecStream(bg, id, []string{"cat"}, false, strings.NewReader("to and fro"), &out, nil, nil)
	if err != nil || code != 0 || out.String() != "to and fro" {
		b.Errorf("cat: %d, %v, %q", code, err, out.String())
	}
	if st := b.status(id); st.State != running {
		b.Errorf("container after exec: %v", st)
	}
	b.stop(id, 0)
	_, err = exec(0, "true")
	b.code(err, codes.FailedPrecondition, "exec in an ended container")
	id = "nothing"
	_, err = exec(0, "true")
	b.code(err, codes.NotFound, "exec in nothing")
}

func (b *bench) filters() {
	sb1, sc1 := b.pod()
	sb2, sc2 := b.pod()
	a, z := b.run(sb1, sc1, "sleep 1000"), b.create(sb2, sc2, b.script("true"))
	pods := func(f *runtimeapi.PodSandboxFilter) (ids []string) {
		r, err := b.ListPodSandbox(bg, &runtimeapi.ListPodSandboxRequest{Filter: f})
		b.must(err)
		for _, p := range r.Items {
			ids = append(ids, p.Id)
		}
		return ids
	}
	list := func(f *runtimeapi.ContainerFilter) (ids []string) {
		r, err := b.ListContainers(bg, &runtimeapi.ListContainersRequest{Filter: f})
		b.must(err)
		for _, c := range r.Containers {
			ids = append(ids, c.Id)
		}
		return ids
	}
	same := func(what string, got []string, want ...string) {
		b.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			b.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	same("all pods, newest first", pods(nil), sb2, sb1)
	same("pod by prefix", pods(&runtimeapi.PodSandboxFilter{Id: sb1[:20]}), sb1)
	same("pod by label", pods(&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"suite": "yes", "pod": sc2.Metadata.Name}}), sb2)
	same("pods that are not ready", pods(&runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}}))
	same("all containers, newest first", list(nil), z, a)
	same("container by prefix", list(&runtimeapi.ContainerFilter{Id: a[:20]}), a)
	same("containers of a pod", list(&runtimeapi.ContainerFilter{PodSandboxId: sb2}), z)
	same("running containers", list(&runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: running}}), a)
	same("parts of a filter add up", list(&runtimeapi.ContainerFilter{PodSandboxId: sb2, State: &runtimeapi.ContainerStateValue{State: running}}))
	if st := b.status(a[:20]); st.Id != a {
		b.Errorf("status by prefix is about %q", st.Id)
	}
}

func (b *bench) refusals() {
	_, err := b.RunPodSandbox(bg, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{}})
	b.code(err, codes.InvalidArgument, "sandbox without metadata")
	cfg := b.sandboxConfig()
	_, err = b.RunPodSandbox(bg, &runtimeapi.RunPodSandboxRequest{Config: cfg, RuntimeHandler: "unheard-of"})
	b.code(err, codes.InvalidArgument, "unknown runtime handler")
	sb, sc := b.pod()
	_, err = b.CreateContainer(bg, &runtimeapi.CreateContainerRequest{PodSandboxId: "nothing", Config: b.script("true")})
	b.code(err, codes.NotFound, "container in nothing")
	c := b.script("true")
	c.Image.Image = "registry.example/absent:1"
	_, err = b.CreateContainer(bg, &runtimeapi.CreateContainerRequest{PodSandboxId: sb, Config: c, SandboxConfig: sc})
	b.code(err, codes.NotFound, "container from an absent image")
	c = b.script("true")
	b.create(sb, sc, c)
	_, err = b.CreateContainer(bg, &runtimeapi.CreateContainerRequest{PodSandboxId: sb, Config: c, SandboxConfig: sc})
	b.code(err, codes.AlreadyExists, "the same metadata again")
	waiting := b.create(sb, sc, b.script("true"))
	_, err = b.StopPodSandbox(bg, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sb})
	b.must(err)
	_, err = b.CreateContainer(bg, &runtimeapi.CreateContainerRequest{PodSandboxId: sb, Config: b.script("true"), SandboxConfig: sc})
	b.code(err, codes.FailedPrecondition, "container in a stopped sandbox")
	b.code(b.start(waiting), codes.FailedPrecondition, "start in a stopped sandbox")
	b.code(b.start("nothing"), codes.NotFound, "start of nothing")
	if st := b.status(waiting); st.State != created {
		b.Errorf("created container of a stopped sandbox is %v", st.State)
	}
}

func (b *bench) events() {
	watch, stop := context.WithCancel(bg)
	events := b.Events(watch)
	sb, sc := b.pod()
	id := b.run(sb, sc, "true")
	b.ended(id)
	_, err := b.RemoveContainer(bg, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	b.must(err)
	var got []string
	for len(got) < 6 {
		select {
		case ev := <-events:
			who := map[string]string{sb: "sandbox", id: "container"}[ev.ContainerId]
			got = append(got, who+" "+strings.Split(ev.ContainerEventType.String(), "_")[1])
			if ev.PodSandboxStatus.GetId() != sb || ev.CreatedAt == 0 {
				b.Errorf("event %v", ev)
			}
			if got[len(got)-1] == "container STOPPED" && (len(ev.ContainersStatuses) != 1 || ev.ContainersStatuses[0].State != exited) {
				b.Errorf("event of the end carries %v", ev.ContainersStatuses)
			}
		case <-time.After(20 * time.Second):
			b.Fatalf("events so far: %q", got)
		}
	}
	want := "sandbox CREATED, sandbox STARTED, container CREATED, container STARTED, container STOPPED, container DELETED"
	if s := strings.Join(got, ", "); s != want {
		b.Errorf("events %s\nwant   %s", s, want)
	}
	stop()
	b.until("the channel closes", func() bool {
		select {
		case _, open := <-events:
			return !open
		default:
			return false
		}
	})
}

func (b *bench) attempts() {
	sb, sc := b.pod()
	cfg := b.script("exit 1")
	first := b.create(sb, sc, cfg)
	b.must(b.start(first))
	b.ended(first)
	again := b.script("exit 2")
	again.Metadata = &runtimeapi.ContainerMetadata{Name: cfg.Metadata.Name, Attempt: 1}
	second := b.create(sb, sc, again)
	b.must(b.start(second))
	b.ended(second)
	if a, z := b.status(first), b.status(second); a.ExitCode != 1 || z.ExitCode != 2 || z.Metadata.Attempt != 1 {
		b.Errorf("attempts: %v, %v", a, z)
	}
}

func (b *bench) resources() {
	sb, sc := b.pod()
	cfg := b.script("sleep 1000")
	cfg.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 100}
	id := b.create(sb, sc, cfg)
	update := func(r *runtimeapi.LinuxContainerResources) error {
		_, err := b.UpdateContainerResources(bg, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
		return err
	}
	b.must(update(&runtimeapi.LinuxContainerResources{CpuShares: 200}))
	b.must(b.start(id))
	b.must(update(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20}))
	if r := b.status(id).Resources.GetLinux(); r.GetMemoryLimitInBytes() != 96<<20 || r.GetCpuShares() != 200 {
		b.Errorf("resources %v", r)
	}
	st, err := b.ContainerStats(bg, &runtimeapi.ContainerStatsRequest{ContainerId: id})
	b.must(err)
	if st.Stats.Attributes.Id != id || st.Stats.Cpu.GetUsageCoreNanoSeconds() == nil || st.Stats.Memory.GetWorkingSetBytes() == nil || st.Stats.WritableLayer == nil {
		b.Errorf("stats %v", st.Stats)
	}
	all, err := b.ListContainerStats(bg, &runtimeapi.ListContainerStatsRequest{})
	b.must(err)
	if len(all.Stats) != 1 {
		b.Errorf("%d stats of one running container", len(all.Stats))
	}
	b.stop(id, 0)
	b.code(update(&runtimeapi.LinuxContainerResources{CpuShares: 300}), codes.FailedPrecondition, "update of an ended container")
}

func (b *bench) images() {
	r, err := b.ImageStatus(bg, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: b.Image}})
	b.must(err)
	if r.Image.GetId() == "" || r.Image.Size == 0 || len(r.Image.RepoTags) == 0 {
		b.Fatalf("image %v", r.Image)
	}
	byID, err := b.ImageStatus(bg, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: r.Image.Id}})
	b.must(err)
	if byID.Image.GetId() != r.Image.Id {
		b.Errorf("by ID: %v", byID.Image)
	}
	absent, err := b.ImageStatus(bg, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "registry.example/absent:1"}})
	b.must(err)
	if absent.Image != nil {
		b.Errorf("absent image: %v", absent.Image)
	}
	_, err = b.ImageStatus(bg, &runtimeapi.ImageStatusRequest{})
	b.code(err, codes.InvalidArgument, "status of no image")
	list, err := b.ListImages(bg, &runtimeapi.ListImagesRequest{})
	b.must(err)
	if len(list.Images) == 0 {
		b.Error("no image is listed")
	}
	fs, err := b.ImageFsInfo(bg, &runtimeapi.ImageFsInfoRequest{})
	b.must(err)
	if len(fs.ImageFilesystems) != 1 || fs.ImageFilesystems[0].UsedBytes.GetValue() == 0 {
		b.Errorf("file systems %v", fs)
	}
	for range 2 {
		_, err := b.RemoveImage(bg, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: b.Image}})
		b.must(err)
	}
	gone, err := b.ImageStatus(bg, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: b.Image}})
	b.must(err)
	if gone.Image != nil {
		b.Errorf("removed image: %v", gone.Image)
	}
}

func (b *bench) runtimeStatus() {
	r, err := b.Runtime.Status(bg, &runtimeapi.StatusRequest{})
	b.must(err)
	for _, c := range r.Status.Conditions {
		if !c.Status {
			b.Errorf("condition %v", c)
		}
	}
	v, err := b.Version(bg, &runtimeapi.VersionRequest{})
	b.must(err)
	if v.RuntimeApiVersion != "v1" || v.RuntimeName == "" {
		b.Errorf("version %v", v)
	}
	c, err := b.RuntimeConfig(bg, &runtimeapi.RuntimeConfigRequest{})
	b.must(err)
	if c.Linux.GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
		b.Errorf("config %v", c)
	}
}
