package pod

import (
	"bufio"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite scenarios and the table in doc.go")

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// TestScenarios plays testdata/*.txtar: a pod, then lines "> [+duration] event"
// each followed by the effects that are expected.
func TestScenarios(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.txtar")
	if len(files) == 0 {
		t.Fatal("no scenarios")
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var p *corev1.Pod
			for i := range ar.Files {
				f := &ar.Files[i]
				switch f.Name {
				case "pod.yaml":
					p = load(t, f.Data)
				case "steps":
					got := play(t, p, string(f.Data))
					if *update {
						f.Data = []byte(got)
					} else if got != string(f.Data) {
						t.Errorf("got:\n%s\nwant:\n%s", got, f.Data)
					}
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func load(t *testing.T, data []byte) *corev1.Pod {
	p := new(corev1.Pod)
	if err := yaml.UnmarshalStrict(data, p); err != nil {
		t.Fatal(err)
	}
	if p.Name == "" {
		p.Name = "web"
	}
	p.Namespace, p.UID, p.Generation = "shop", "u1", 1
	if p.Spec.RestartPolicy == "" {
		p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	}
	return p
}

func play(t *testing.T, p *corev1.Pod, script string) string {
	var out strings.Builder
	s := State{Node: Node{Name: "n1", IPs: []string{"192.0.2.1"}}}
	now := epoch
	sc := bufio.NewScanner(strings.NewReader(script))
	for sc.Scan() {
		line := sc.Text()
		if strings.HasPrefix(line, "#") || line == "" {
			fmt.Fprintln(&out, line)
			continue
		}
		if !strings.HasPrefix(line, ">") {
			continue // an expectation
		}
		fmt.Fprintln(&out, line)
		words := split(strings.TrimSpace(line[1:]))
		if strings.HasPrefix(words[0], "+") {
			d, err := time.ParseDuration(words[0][1:])
			if err != nil {
				t.Fatal(err)
			}
			now = now.Add(d)
			words = words[1:]
		}
		var effects []Effect
		e := parse(t, &p, words, now)
		s, effects = Step(s, e, now)
		for _, f := range effects {
			if w, ok := f.(Wake); ok {
				fmt.Fprintf(&out, "wake in=%s\n", w.At.Sub(now))
				continue
			}
			fmt.Fprintln(&out, f)
		}
		if len(words) > 1 && words[len(words)-1] == "stage?" {
			fmt.Fprintf(&out, "stage %s\n", s.Stage)
		}
	}
	return out.String()
}

func split(s string) []string {
	var out []string
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimLeft(s, " ") {
		quoted := false
		i := 0
		for ; i < len(s) && (quoted || s[i] != ' '); i++ {
			if s[i] == '"' {
				quoted = !quoted
			}
		}
		out = append(out, strings.ReplaceAll(s[:i], `"`, ""))
		s = s[i:]
	}
	return out
}

func parse(t *testing.T, p **corev1.Pod, words []string, now time.Time) Event {
	arg := map[string]string{}
	name := ""
	for _, w := range words[1:] {
		if k, v, ok := strings.Cut(w, "="); ok {
			arg[k] = v
		} else if name == "" {
			name = w
		}
	}
	num := func(k string) int64 { n, _ := strconv.ParseInt(arg[k], 10, 64); return n }
	switch words[0] {
	case "update":
		q := (*p).DeepCopy()
		if arg["delete"] != "" {
			at := metav1.NewTime(now)
			grace := num("delete")
			q.DeletionTimestamp, q.DeletionGracePeriodSeconds = &at, &grace
		}
		if arg["image"] != "" {
			Spec(q, name).Image = arg["image"]
			q.Generation++
		}
		if arg["gate"] != "" {
			q.Status.Conditions = append(q.Status.Conditions, corev1.PodCondition{
				Type: corev1.PodConditionType(arg["gate"]), Status: corev1.ConditionTrue})
		}
		*p = q
		return Update{q}
	case "removed":
		return Removed{}
	case "admitted":
		return Admitted{}
	case "rejected":
		return Rejected{arg["reason"], arg["message"]}
	case "adopted":
		a := Adopted{SandboxID: arg["sandbox"], Seen: true}
		if arg["ip"] != "" {
			a.IPs = []string{arg["ip"]}
		}
		for _, w := range words[1:] {
			k, v, _ := strings.Cut(w, "=")
			if k == "running" {
				a.Containers = append(a.Containers, Found{Name: v, ID: "old-" + v, Running: true, StartedAt: now})
			}
		}
		return a
	case "mounted":
		return Mounted{arg["err"]}
	case "unmounted":
		return Unmounted{arg["err"]}
	case "sandbox-up":
		up := SandboxUp{ID: arg["id"], Err: arg["err"]}
		if arg["ip"] != "" {
			up.IPs = []string{arg["ip"]}
		}
		return up
	case "sandbox-lost":
		lost := SandboxLost{ID: arg["id"]}
		if c := arg["exit"]; c != "" { // container:id:code
			f := strings.Split(c, ":")
			code, _ := strconv.Atoi(f[2])
			lost.Exits = []Exited{{Container: f[0], ID: f[1], ExitCode: int32(code), Reason: "Unknown", FinishedAt: now}}
		}
		return lost
	case "pulled":
		return Pulled{Container: name, ImageID: "sha256:1", Reason: arg["reason"], Message: arg["message"]}
	case "launched":
		return Launched{Container: name, ID: arg["id"], StartedAt: now, Reason: arg["reason"], Message: arg["message"]}
	case "exited":
		return Exited{Container: name, ID: arg["id"], ExitCode: int32(num("code")), Reason: arg["reason"], FinishedAt: now}
	case "hook-done":
		return HookDone{Container: name, ID: arg["id"], Hook: Hook(arg["hook"]), Err: arg["err"]}
	case "probed":
		return Probed{Container: name, ID: arg["id"], Probe: ProbeKind(arg["probe"]), OK: arg["ok"] == "true"}
	case "drained":
		return Drained{}
	case "stop-failed":
		return StopFailed{name, arg["id"], arg["err"]}
	case "sandbox-stopped":
		return SandboxStopped{arg["err"]}
	case "sandbox-removed":
		return SandboxRemoved{arg["err"]}
	case "deleted":
		return Deleted{arg["err"]}
	case "evict":
		return Evict{Reason: arg["reason"], Message: arg["message"]}
	case "tick":
		return Tick{}
	case "nudge":
		return Nudge{}
	}
	t.Fatalf("unknown event %q", words[0])
	return nil
}

var columns = []string{"update", "removed", "admitted", "rejected", "adopted", "mounted", "unmounted", "sandbox-up",
	"sandbox-lost", "pulled", "launched", "exited", "hook-done", "probed", "drained", "stop-failed", "sandbox-stopped",
	"sandbox-removed", "deleted", "evict", "tick", "nudge"}

// TestTable walks through the machine at random, from a fixed seed, and compares
// every transition with the table in the package comment, both ways.
func TestTable(t *testing.T) {
	seen := map[string]map[Stage]bool{} // "event Stage" → next stages
	r := rand.New(rand.NewSource(1))
	for walk := 0; walk < 6000; walk++ {
		wander(t, r, seen, walk%16 == 0)
	}
	got := formatTable(seen)
	src, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	const head = "//\tevent "
	start := strings.Index(string(src), head)
	end := start + strings.Index(string(src[start:]), "\n//\n") + 1
	if *update {
		out := string(src[:start]) + got + string(src[end:])
		if err := os.WriteFile("doc.go", []byte(out), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want := string(src[start:end]); got != want {
		t.Errorf("the machine does:\n%s\nthe package comment says:\n%s", got, want)
	}
}

func formatTable(seen map[string]map[Stage]bool) string {
	rows := [][]string{{"event"}}
	for st := Waiting; st < Gone; st++ {
		rows[0] = append(rows[0], st.String())
	}
	for _, col := range columns {
		row := []string{col}
		for st := Waiting; st < Gone; st++ {
			var next []string
			for n := Waiting; n <= Gone; n++ {
				if n != st && seen[col+" "+st.String()][n] {
					next = append(next, n.String())
				}
			}
			if len(next) == 0 {
				next = []string{"-"}
			}
			row = append(row, strings.Join(next, ","))
		}
		rows = append(rows, row)
	}
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		line := "//\t"
		for i, cell := range row {
			line += fmt.Sprintf("%-*s  ", width[i], cell)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// wander drives one random pod with random answers and checks what must always
// hold.
func wander(t *testing.T, r *rand.Rand, seen map[string]map[Stage]bool, strict bool) {
	p := randomPod(r)
	s := State{Node: Node{Name: "n1", IPs: []string{"192.0.2.1"}}}
	now := epoch
	step := func(e Event) {
		before := s
		beforeCopy := slices.Clone(s.Containers)
		next, effects := Step(s, e, now)
		if strict && !reflect.DeepEqual(before.Containers, beforeCopy) {
			t.Fatalf("Step changed its argument on %s", e.column())
		}
		if strict {
			again, effects2 := Step(before, e, now)
			if !reflect.DeepEqual(next, again) || fmt.Sprint(effects) != fmt.Sprint(effects2) {
				t.Fatalf("Step is not a function on %s", e.column())
			}
		}
		key := e.column() + " " + s.Stage.String()
		if seen[key] == nil {
			seen[key] = map[Stage]bool{}
		}
		seen[key][next.Stage] = true
		if next.Stage < s.Stage && !(next.Stage == Starting && s.Stage == Running) {
			t.Fatalf("%s: stage went back from %s to %s", e.column(), s.Stage, next.Stage)
		}
		if next.Stage >= Cleaning {
			for _, c := range next.Containers {
				if s.Stage >= Cleaning && c.running() && next.Stage >= Removing {
					t.Fatalf("%s: %s runs in %s", e.column(), c.Name, next.Stage)
				}
			}
		}
		s = next
	}
	step(Update{p})
	for i := 0; i < 60 && s.Stage != Gone; i++ {
		now = now.Add(time.Duration(r.Intn(4000)) * time.Millisecond)
		c := &s.Containers[r.Intn(len(s.Containers))]
		fail := ""
		if r.Intn(5) == 0 {
			fail = "boom"
		}
		id := c.ID
		if c.Step == Launching {
			id = fmt.Sprintf("%s-%d", c.Name, i)
		}
		var e Event
		switch r.Intn(30) {
		case 0:
			p = p.DeepCopy()
			if r.Intn(3) == 0 {
				at := metav1.NewTime(now)
				grace := int64(r.Intn(3) * 10)
				p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &at, &grace
			}
			e = Update{p}
		case 1:
			if r.Intn(4) == 0 {
				e = Removed{}
			} else {
				e = Nudge{}
			}
		case 2, 3:
			e = Admitted{}
		case 4:
			e = Rejected{"OutOfcpu", "full"}
		case 5:
			a := Adopted{Seen: true, SandboxID: "s0", IPs: []string{"10.0.0.1"}}
			for _, c := range s.Containers {
				if r.Intn(2) == 0 {
					a.Containers = append(a.Containers, Found{Name: c.Name, ID: "old" + c.Name, Running: r.Intn(2) == 0, StartedAt: now,
						Terminated: &corev1.ContainerStateTerminated{ExitCode: int32(r.Intn(2))}})
				}
			}
			e = a
		case 6, 7:
			e = Mounted{fail}
			if !s.Volumes.Asked {
				continue
			}
		case 8:
			if !s.Unmount.Asked {
				continue
			}
			e = Unmounted{fail}
		case 9, 10:
			if !s.Sandbox.Create.Asked {
				continue
			}
			e = SandboxUp{"s1", []string{"10.0.0.1"}, fail}
		case 11:
			if r.Intn(3) != 0 {
				continue
			}
			e = SandboxLost{ID: s.Sandbox.ID}
		case 12, 13:
			reason := ""
			if fail != "" {
				reason = "ErrImagePull"
			}
			e = Pulled{Container: c.Name, ImageID: "i", Reason: reason}
		case 14, 15, 16:
			if fail != "" {
				e = Launched{Container: c.Name, Reason: "CreateContainerError", Message: fail}
			} else {
				e = Launched{Container: c.Name, ID: id, StartedAt: now}
			}
		case 17, 18:
			e = Exited{Container: c.Name, ID: id, ExitCode: int32(r.Intn(2)), FinishedAt: now}
		case 19:
			e = HookDone{c.Name, c.ID, []Hook{PostStart, PreStop}[r.Intn(2)], fail}
		case 20, 21:
			e = Probed{c.Name, c.ID, []ProbeKind{Startup, Liveness, Readiness}[r.Intn(3)], r.Intn(4) != 0, ""}
		case 22:
			e = Drained{}
		case 23:
			e = StopFailed{c.Name, c.ID, "boom"}
		case 24:
			if !s.Sandbox.Stop.Asked {
				continue
			}
			e = SandboxStopped{fail}
		case 25:
			if !s.Sandbox.Remove.Asked {
				continue
			}
			e = SandboxRemoved{fail}
		case 26:
			if !s.Sandbox.Delete.Asked {
				continue
			}
			e = Deleted{fail}
		case 27:
			if r.Intn(3) != 0 {
				continue
			}
			e = Evict{Reason: "Evicted"}
		default:
			e = Tick{}
		}
		step(e)
	}
	finish(t, r, &s, p, &now, step)
}

// finish deletes the pod and answers every effect well: the pod must go.
func finish(t *testing.T, r *rand.Rand, s *State, p *corev1.Pod, now *time.Time, step func(Event)) {
	if s.Stage == Gone {
		return
	}
	p = p.DeepCopy()
	at, grace := metav1.NewTime(*now), int64(1)
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &at, &grace
	step(Update{p})
	if s.Stage == Waiting {
		step(Admitted{})
	}
	for i := 0; i < 100; i++ {
		if s.Stage == Gone {
			return
		}
		*now = now.Add(11 * time.Second)
		switch {
		case s.Volumes.Asked:
			step(Mounted{})
		case s.Sandbox.Create.Asked:
			step(SandboxUp{ID: "s9"})
		case s.Sandbox.Stop.Asked:
			step(SandboxStopped{})
		case s.Unmount.Asked:
			step(Unmounted{})
		case s.Sandbox.Remove.Asked:
			step(SandboxRemoved{})
		case s.Sandbox.Delete.Asked:
			step(Deleted{})
		case s.Stage == Removing && s.Sandbox.Delete.Done:
			step(Removed{})
		default:
			step(Tick{})
			for _, c := range s.Containers {
				switch c.Step {
				case Launching:
					step(Launched{Container: c.Name, ID: "last-" + c.Name, StartedAt: *now})
				case Killing:
					step(Exited{Container: c.Name, ID: c.ID, ExitCode: 143, FinishedAt: *now})
				case Ending:
					step(HookDone{c.Name, c.ID, PreStop, ""})
				}
			}
		}
	}
	t.Fatalf("pod does not go away: stage %s containers %+v", s.Stage, s.Containers)
}

func randomPod(r *rand.Rand) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u"}}
	p.Spec.RestartPolicy = []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}[r.Intn(3)]
	always := corev1.ContainerRestartPolicyAlways
	for i := 0; i < r.Intn(3); i++ {
		c := corev1.Container{Name: fmt.Sprintf("i%d", i), Image: "x"}
		if r.Intn(2) == 0 {
			c.RestartPolicy = &always
		}
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	for i := 0; i <= r.Intn(2); i++ {
		c := corev1.Container{Name: fmt.Sprintf("m%d", i), Image: "x"}
		if r.Intn(3) == 0 {
			c.ReadinessProbe = &corev1.Probe{}
		}
		if r.Intn(3) == 0 {
			c.LivenessProbe = &corev1.Probe{}
		}
		if r.Intn(4) == 0 {
			c.StartupProbe = &corev1.Probe{}
		}
		if r.Intn(4) == 0 {
			c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{}, PostStart: &corev1.LifecycleHandler{}}
		}
		p.Spec.Containers = append(p.Spec.Containers, c)
	}
	if r.Intn(4) == 0 {
		d := int64(r.Intn(60) + 1)
		p.Spec.ActiveDeadlineSeconds = &d
	}
	if r.Intn(12) == 0 {
		p.Status.Phase = corev1.PodFailed
	}
	return p
}

func TestColumnsAreComplete(t *testing.T) {
	all := []Event{Update{}, Removed{}, Admitted{}, Rejected{}, Adopted{}, Mounted{}, Unmounted{}, SandboxUp{}, SandboxLost{},
		Pulled{}, Launched{}, Exited{}, HookDone{}, Probed{}, Drained{}, StopFailed{}, SandboxStopped{}, SandboxRemoved{},
		Deleted{}, Evict{}, Tick{}, Nudge{}}
	var names []string
	for _, e := range all {
		names = append(names, e.column())
	}
	sort.Strings(names)
	want := slices.Clone(columns)
	sort.Strings(want)
	if !slices.Equal(names, want) {
		t.Fatalf("events %v, columns %v", names, want)
	}
}
