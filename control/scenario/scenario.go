// Package scenario plays text scenarios against deciders: objects in, time and
// changes, and the actions that are expected. It drives control.Core with any set
// of parts and carries their actions out on a Model, so that what one plan does is
// what the next one sees. Other deciders (scheduler, pod life cycle) can use the
// Model and the Player without a Core.
//
// A scenario is a txtar archive: its comment is the script, its files are YAML.
// Lines that start with # are comments. Commands:
//
//	load FILE ...          objects as written, status included
//	apply FILE ...         create, or replace through the main door
//	status FILE ...        replace through the status door
//	patch REF JSON         merge patch through no door (also status)
//	delete REF [background|foreground|orphan] [grace=N]
//	gone REF               the object is gone, whatever held it
//	start [REF ...] [node=N]   pods run and are ready (default: all that can)
//	unready REF ...        pods run and are not ready
//	finish REF succeeded|failed [exit=N] [reason=R]   a pod has ended
//	stopped                pods that are being deleted are gone
//	fail VERB KIND REASON [N]  the next N (1) such calls are answered so
//	hide PREFIX            actions that begin so are not shown
//	tick DURATION          time passes; plans that are due run at their instants
//	run                    plan until quiet and forget the actions
//	expect actions         plan until quiet; these were the actions
//	expect no actions
//	show REF PATH ...      values inside one object
//	list KIND [NAMESPACE]  what kubectl get prints
//
// The indented lines behind expect, show and list are what is expected; the flag
// -update rewrites them. REF is pods/NAMESPACE/NAME or nodes/NAME; a * in the
// name matches many. Actions done while a tick was under way carry its instant in
// brackets. Objects with a generateName are named by counting (web-1, web-2).
// Time begins at 2026-01-01T00:00:00Z.
package scenario

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"golang.org/x/tools/txtar"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

var update = flag.Bool("update", false, "rewrite what scenarios expect")

// Epoch is when scenarios begin.
var Epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Run plays every scenario that the pattern matches (testdata/*.txtar), each with
// parts of its own from make.
func Run(t *testing.T, pattern string, make func() []control.Part) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios match %q: %v", pattern, err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txtar"), func(t *testing.T) {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			p := NewPlayer(kind.All, make())
			after, problems := p.Play(txtar.Parse(data))
			if *update {
				if got := txtar.Format(after); string(got) != string(data) {
					if err := os.WriteFile(f, got, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				for _, e := range problems {
					if !e.Expectation {
						t.Errorf("%s:%d: %s", f, e.Line, e.Text)
					}
				}
				return
			}
			for _, e := range problems {
				t.Errorf("%s:%d: %s", f, e.Line, e.Text)
			}
		})
	}
}

// Problem is something that a scenario found. Expectation: -update can fix it.
type Problem struct {
	Line        int
	Text        string
	Expectation bool
}

// Player plays one scenario.
type Player struct {
	Model *Model
	table *kind.Table
	parts []control.Part
	core  *control.Core
	now   time.Time
	base  time.Time // instant of the last expect: later actions carry theirs
	files map[string][]byte
	seen  map[*kind.Kind]int64
	done  []string
	hide  []string
	ip    int
	fatal string
}

// NewPlayer has an empty model.
func NewPlayer(table *kind.Table, parts []control.Part) *Player {
	parts = control.Begun(parts, Epoch)
	p := &Player{table: table, parts: parts, core: control.NewCore(parts), now: Epoch, base: Epoch, seen: map[*kind.Kind]int64{}, files: map[string][]byte{}}
	p.Model = NewModel(table, func() time.Time { return p.now })
	p.Model.CountNames = true
	return p
}

// Now is the scenario's clock.
func (p *Player) Now() time.Time { return p.now }

// Play runs the script and returns it with what really happened in place of what
// was expected.
func (p *Player) Play(a *txtar.Archive) (*txtar.Archive, []Problem) {
	for _, f := range a.Files {
		p.files[f.Name] = f.Data
	}
	var out []string
	var problems []Problem
	lines := strings.Split(strings.TrimRight(string(a.Comment), "\n"), "\n")
	for i := 0; i < len(lines); {
		line, n := lines[i], i+1
		out = append(out, line)
		i++
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		var block []string
		for i < len(lines) && (strings.HasPrefix(lines[i], " ") || strings.HasPrefix(lines[i], "\t")) {
			block = append(block, strings.TrimRight(strings.TrimSpace(lines[i]), " "))
			i++
		}
		got, err := p.command(line, words)
		if err != nil {
			problems = append(problems, Problem{Line: n, Text: fmt.Sprintf("%s: %v", line, err)})
		}
		if strings.HasPrefix(line, "expect no actions") && len(got) > 0 {
			problems = append(problems, Problem{n, "actions that nobody expected:\n\t" + strings.Join(got, "\n\t"), true})
			out[len(out)-1] = "expect actions"
		} else if strings.Join(got, "\n") != strings.Join(block, "\n") {
			problems = append(problems, Problem{n, fmt.Sprintf("%s: got\n\t%s\nwant\n\t%s", line, strings.Join(got, "\n\t"), strings.Join(block, "\n\t")), true})
		}
		if words[0] == "expect" && words[1] == "actions" && len(got) == 0 {
			out[len(out)-1] = "expect no actions"
			if len(block) == 0 {
				problems = append(problems, Problem{n, "expect actions: none came", true})
			}
		}
		for _, g := range got {
			out = append(out, "  "+g)
		}
	}
	if p.quiet(); len(p.done) > 0 {
		problems = append(problems, Problem{len(lines), "actions after the last line, that nobody expected:\n\t" + strings.Join(p.done, "\n\t"), true})
		out = append(out, "expect actions")
		for _, g := range p.done {
			out = append(out, "  "+g)
		}
	}
	if p.fatal != "" {
		problems = append(problems, Problem{Line: len(lines), Text: p.fatal})
	}
	return &txtar.Archive{Comment: []byte(strings.Join(out, "\n") + "\n"), Files: a.Files}, problems
}

func (p *Player) command(line string, words []string) ([]string, error) {
	args := words[1:]
	switch words[0] {
	case "load", "apply", "status":
		for _, name := range args {
			if err := p.file(words[0], name); err != nil {
				return nil, err
			}
		}
		return nil, nil
	case "patch":
		_, body, _ := strings.Cut(line, args[0])
		return nil, p.each(args[0], func(r view.Ref, _ kind.Object) error { return p.patch(r, strings.TrimSpace(body)) })
	case "delete":
		return nil, p.delete(args)
	case "gone":
		return nil, p.each(args[0], func(r view.Ref, _ kind.Object) error { return p.Model.Remove(r) })
	case "start":
		return nil, p.start(args)
	case "unready":
		for _, a := range args {
			if err := p.each(a, func(r view.Ref, _ kind.Object) error { return p.setReady(r, false, "") }); err != nil {
				return nil, err
			}
		}
		return nil, nil
	case "finish":
		return nil, p.finish(args)
	case "stopped":
		var all []view.Ref
		for pod := range view.List[*corev1.Pod](p.Model.View().Snapshot(), kind.Pod, "") {
			if pod.DeletionTimestamp != nil {
				all = append(all, view.RefOf(kind.Pod, pod))
			}
		}
		for _, r := range all {
			// The node's last word: what still has finalizers stays.
			zero := int64(0)
			if err := p.Model.Change(r, func(o kind.Object) { o.SetDeletionGracePeriodSeconds(&zero) }); err != nil {
				return nil, err
			}
		}
		return nil, nil
	case "fail":
		return nil, p.fail(args)
	case "hide":
		p.hide = append(p.hide, strings.TrimSpace(strings.TrimPrefix(line, "hide")))
		return nil, nil
	case "tick":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			return nil, err
		}
		return nil, p.tick(d)
	case "run":
		err := p.quiet()
		p.done, p.base = nil, p.now
		return nil, err
	case "expect":
		err := p.quiet()
		got := p.done
		p.done, p.base = nil, p.now
		return got, err
	case "show":
		return p.show(args)
	case "list":
		return p.list(args)
	}
	return nil, fmt.Errorf("no such command; the package comment of control/scenario lists them")
}

// ref reads pods/shop/web-0, deployments.apps/shop/web or nodes/n1.
func (p *Player) ref(text string) (view.Ref, error) {
	parts := strings.Split(text, "/")
	for _, k := range p.table.Rows() {
		if k.String() != parts[0] || k.Stored != nil {
			continue
		}
		switch {
		case k.Scope == kind.Cluster && len(parts) == 2:
			return view.Ref{Kind: k, Name: parts[1]}, nil
		case k.Scope == kind.Namespaced && len(parts) == 3:
			return view.Ref{Kind: k, Namespace: parts[1], Name: parts[2]}, nil
		}
	}
	return view.Ref{}, fmt.Errorf("read reference %q: want pods/NAMESPACE/NAME, deployments.apps/NAMESPACE/NAME or nodes/NAME", text)
}

// each calls f for the objects that a reference with or without * names.
func (p *Player) each(text string, f func(view.Ref, kind.Object) error) error {
	r, err := p.ref(text)
	if err != nil {
		return err
	}
	s := p.Model.View().Snapshot()
	found := false
	for o := range s.All(r.Kind, r.Namespace) {
		if ok, _ := path.Match(r.Name, o.GetName()); ok {
			found = true
			if err := f(view.RefOf(r.Kind, o), o); err != nil {
				return err
			}
		}
	}
	if !found {
		return fmt.Errorf("there is no %s", text)
	}
	return nil
}

func (p *Player) objects(name string) ([]kind.Object, []*kind.Kind, error) {
	data, ok := p.files[name]
	if !ok {
		return nil, nil, fmt.Errorf("no file %q in the archive", name)
	}
	var objs []kind.Object
	var kinds []*kind.Kind
	for _, doc := range strings.Split("\n"+string(data), "\n---") {
		if strings.TrimSpace(doc) == "" {
			continue
		}
		var tm runtime.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &tm); err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", name, err)
		}
		k := p.table.ByKind(tm.GroupVersionKind())
		if k == nil {
			return nil, nil, fmt.Errorf("read %s: no kind %s %s", name, tm.APIVersion, tm.Kind)
		}
		o := k.New()
		if err := yaml.UnmarshalStrict([]byte(doc), o); err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", name, err)
		}
		if k.Scope == kind.Namespaced && o.GetNamespace() == "" {
			o.SetNamespace("shop")
		}
		objs, kinds = append(objs, o), append(kinds, k)
	}
	return objs, kinds, nil
}

func (p *Player) file(how, name string) error {
	objs, kinds, err := p.objects(name)
	if err != nil {
		return err
	}
	ctx := context.Background()
	for i, o := range objs {
		k := kinds[i]
		old := p.Model.View().Snapshot().Get(k, o.GetNamespace(), o.GetName())
		switch {
		case how == "load":
			p.Model.Load(k, o)
		case how == "status":
			_, err = p.Model.Update(ctx, k, o, "status", metav1.UpdateOptions{})
		case old == nil:
			_, err = p.Model.Create(ctx, k, o, metav1.CreateOptions{})
		default:
			if o.GetFinalizers() == nil {
				o.SetFinalizers(old.GetFinalizers())
			}
			if o.GetOwnerReferences() == nil {
				o.SetOwnerReferences(old.GetOwnerReferences())
			}
			for key, v := range old.GetAnnotations() {
				if _, ok := o.GetAnnotations()[key]; !ok && strings.Contains(key, "/") {
					a := o.GetAnnotations()
					if a == nil {
						a = map[string]string{}
					}
					a[key] = v
					o.SetAnnotations(a)
				}
			}
			_, err = p.Model.Update(ctx, k, o, "", metav1.UpdateOptions{})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *Player) patch(r view.Ref, body string) error {
	var fail error
	err := p.Model.Change(r, func(o kind.Object) {
		after, err := merge(r.Kind, o, []byte(body))
		if err != nil {
			fail = err
			return
		}
		raise := !sameSpec(o, after)
		data, err := json.Marshal(after)
		if err != nil {
			fail = err
			return
		}
		// Into the same value: fields that the patch took away must not stay.
		zero(o)
		if fail = json.Unmarshal(data, o); raise && o.GetGeneration() > 0 {
			o.SetGeneration(o.GetGeneration() + 1)
		}
	})
	if fail != nil {
		return fail
	}
	return err
}

func sameSpec(a, b kind.Object) bool {
	spec := func(o kind.Object) string {
		data, _ := json.Marshal(o)
		var m map[string]json.RawMessage
		json.Unmarshal(data, &m)
		return string(m["spec"])
	}
	return spec(a) == spec(b)
}

func (p *Player) delete(args []string) error {
	var o metav1.DeleteOptions
	for _, a := range args[1:] {
		switch a {
		case "background", "foreground", "orphan":
			policy := metav1.DeletionPropagation(strings.ToUpper(a[:1]) + a[1:])
			o.PropagationPolicy = &policy
		default:
			n, err := strconv.ParseInt(strings.TrimPrefix(a, "grace="), 10, 64)
			if err != nil {
				return fmt.Errorf("option %q: want background, foreground, orphan or grace=N", a)
			}
			o.GracePeriodSeconds = &n
		}
	}
	return p.each(args[0], func(r view.Ref, _ kind.Object) error {
		return p.Model.Delete(context.Background(), r.Kind, r.Namespace, r.Name, o)
	})
}

func (p *Player) start(args []string) error {
	node := ""
	var refs []string
	for _, a := range args {
		if n, ok := strings.CutPrefix(a, "node="); ok {
			node = n
		} else {
			refs = append(refs, a)
		}
	}
	if len(refs) == 0 {
		var all []view.Ref
		for pod := range view.List[*corev1.Pod](p.Model.View().Snapshot(), kind.Pod, "") {
			if pod.DeletionTimestamp == nil && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
				all = append(all, view.RefOf(kind.Pod, pod))
			}
		}
		for _, r := range all {
			if err := p.setReady(r, true, node); err != nil {
				return err
			}
		}
		return nil
	}
	for _, a := range refs {
		if err := p.each(a, func(r view.Ref, _ kind.Object) error { return p.setReady(r, true, node) }); err != nil {
			return err
		}
	}
	return nil
}

// setReady makes a pod run, as a node would report it; times do not move when
// nothing changes.
func (p *Player) setReady(r view.Ref, ready bool, node string) error {
	return p.Model.Change(r, func(o kind.Object) {
		pod := o.(*corev1.Pod)
		if pod.Spec.NodeName == "" {
			pod.Spec.NodeName = node
			if node == "" {
				pod.Spec.NodeName = "n1"
			}
			if a := pod.Spec.Affinity; node == "" && a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
				for _, t := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
					for _, f := range t.MatchFields {
						pod.Spec.NodeName = f.Values[0]
					}
				}
			}
		}
		now := metav1.NewTime(p.now)
		pod.Status.Phase = corev1.PodRunning
		if pod.Status.PodIP == "" {
			p.ip++
			pod.Status.PodIP = fmt.Sprintf("10.244.%d.%d", p.ip/250, p.ip%250+1)
			pod.Status.PodIPs = []corev1.PodIP{{IP: pod.Status.PodIP}}
			pod.Status.StartTime = &now
		}
		status := corev1.ConditionFalse
		if ready {
			status = corev1.ConditionTrue
		}
		setCondition(pod, corev1.PodScheduled, corev1.ConditionTrue, now)
		setCondition(pod, corev1.PodReady, status, now)
	})
}

func setCondition(pod *corev1.Pod, t corev1.PodConditionType, status corev1.ConditionStatus, now metav1.Time) {
	for i := range pod.Status.Conditions {
		c := &pod.Status.Conditions[i]
		if c.Type == t {
			if c.Status != status {
				c.Status, c.LastTransitionTime = status, now
			}
			return
		}
	}
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: t, Status: status, LastTransitionTime: now})
}

func (p *Player) finish(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("want REF succeeded|failed")
	}
	phase := corev1.PodSucceeded
	code := 0
	if args[1] == "failed" {
		phase, code = corev1.PodFailed, 1
	}
	reason := ""
	for _, a := range args[2:] {
		if n, ok := strings.CutPrefix(a, "exit="); ok {
			code, _ = strconv.Atoi(n)
		}
		if r, ok := strings.CutPrefix(a, "reason="); ok {
			reason = r
		}
	}
	return p.each(args[0], func(r view.Ref, _ kind.Object) error {
		return p.Model.Change(r, func(o kind.Object) {
			pod := o.(*corev1.Pod)
			now := metav1.NewTime(p.now)
			pod.Status.Phase, pod.Status.Reason = phase, reason
			setCondition(pod, corev1.PodReady, corev1.ConditionFalse, now)
			pod.Status.ContainerStatuses = nil
			for _, c := range pod.Spec.Containers {
				pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{Name: c.Name,
					State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: int32(code), FinishedAt: now}}})
			}
		})
	})
}

func (p *Player) fail(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("want VERB KIND REASON [N]")
	}
	n := 1
	if len(args) > 3 {
		var err error
		if n, err = strconv.Atoi(args[3]); err != nil {
			return err
		}
	}
	reason := metav1.StatusReason(args[2])
	code := map[metav1.StatusReason]int32{metav1.StatusReasonConflict: 409, metav1.StatusReasonAlreadyExists: 409, metav1.StatusReasonForbidden: 403,
		metav1.StatusReasonInvalid: 422, metav1.StatusReasonNotFound: 404, metav1.StatusReasonInternalError: 500}[reason]
	if code == 0 {
		return fmt.Errorf("reason %q: want Conflict, AlreadyExists, Forbidden, Invalid, NotFound or InternalError", reason)
	}
	p.Model.Fail(args[0], args[1], &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: "as the scenario said"}}, n)
	return nil
}

// maxPlans bounds how often one step may plan: more means that plans chase each
// other.
const maxPlans = 20000

// quiet plans and acts until nothing is left to do at this instant.
func (p *Player) quiet() error {
	for n := 0; ; n++ {
		p.follow()
		k, ok := p.core.Next(p.Model.View().Snapshot().Revision(), p.now)
		if !ok {
			return nil
		}
		if n > maxPlans || len(p.done) > maxPlans {
			p.fatal = fmt.Sprintf("plans do not come to rest; the last is %s of %s", k.Ref, p.parts[k.Part].Name)
			return fmt.Errorf("%s", p.fatal)
		}
		p.plan(k)
	}
}

// follow hands the core what changed.
func (p *Player) follow() {
	s := p.Model.View().Snapshot()
	for _, k := range p.core.Kinds() {
		changes, progress, _, err := p.Model.View().Changes(k, p.seen[k])
		if err != nil {
			panic("scenario: fell out of the view's window: " + err.Error())
		}
		for _, c := range changes {
			p.core.Changed(s, c)
		}
		p.seen[k] = progress
	}
}

func (p *Player) plan(k control.Key) {
	part := p.parts[k.Part]
	s := p.Model.View().Snapshot()
	actions, wake := part.Plan(s, k.Ref, p.now)
	fence, err := p.carry(part, actions)
	conflict := apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)
	if f, ok := err.(*control.Failure); ok && !conflict && part.Failed != nil {
		more, _ := p.carry(part, part.Failed(s, k.Ref, f.Action, f.Err, p.now))
		fence = max(fence, more)
	}
	p.core.Done(k, p.now, p.Model.View().Snapshot().Revision(), fence, wake, err, conflict)
}

func (p *Player) carry(part control.Part, actions act.List) (fence int64, err error) {
	for _, a := range actions {
		if err := part.Allows(a); err != nil {
			p.fatal = err.Error()
			return fence, &control.Failure{Action: a, Err: err}
		}
		o, err := control.Do(context.Background(), p.Model, a, nil)
		p.record(a, err)
		if err != nil {
			return fence, &control.Failure{Action: a, Err: err}
		}
		if o != nil {
			rev, _ := strconv.ParseInt(o.GetResourceVersion(), 10, 64)
			fence = max(fence, rev)
		}
	}
	return fence, nil
}

// record keeps the line of an action; names that were counted show, and those
// that the server would make up show as "?".
func (p *Player) record(a act.Action, err error) {
	if patch, ok := a.(act.Patch); ok {
		patch.Merge = readable(patch.Merge)
		a = patch
	}
	line := p.Model.Renamed(a.String())
	for _, h := range p.hide {
		if strings.HasPrefix(line, h) {
			return
		}
	}
	if err != nil {
		line += " → " + string(apierrors.ReasonForError(err))
		if apierrors.IsInvalid(err) {
			line += " " + err.Error()
		}
		if apierrors.ReasonForError(err) == metav1.StatusReasonUnknown {
			line += err.Error()
		}
	}
	if !p.now.Equal(p.base) {
		line = fmt.Sprintf("[%s] %s", p.now.Sub(p.base), line)
	}
	p.done = append(p.done, line)
}

// readable takes preconditions out of a merge patch and shows owners by name.
func readable(merge []byte) []byte {
	var v map[string]any
	if json.Unmarshal(merge, &v) != nil {
		return merge
	}
	meta, ok := v["metadata"].(map[string]any)
	if !ok {
		return merge
	}
	delete(meta, "uid")
	delete(meta, "resourceVersion")
	if owners, ok := meta["ownerReferences"].([]any); ok {
		for i, o := range owners {
			if m, ok := o.(map[string]any); ok {
				owners[i] = fmt.Sprintf("%v/%v", m["kind"], m["name"])
				if m["blockOwnerDeletion"] == true {
					owners[i] = fmt.Sprintf("%v/%v!", m["kind"], m["name"])
				}
			}
		}
	}
	out, err := json.Marshal(v)
	if err != nil {
		return merge
	}
	return out
}

// tick lets time pass, stopping where a plan is due.
func (p *Player) tick(d time.Duration) error {
	if err := p.quiet(); err != nil {
		return err
	}
	end := p.now.Add(d)
	for {
		at := p.core.NextTimer()
		if at.IsZero() || at.After(end) {
			break
		}
		if at.After(p.now) {
			p.now = at
		}
		if err := p.quiet(); err != nil {
			return err
		}
	}
	p.now = end
	return nil
}

func (p *Player) list(args []string) ([]string, error) {
	ns := ""
	if len(args) > 1 {
		ns = args[1]
	}
	for _, k := range p.table.Rows() {
		if k.String() != args[0] {
			continue
		}
		var b strings.Builder
		w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
		for o := range p.Model.View().Snapshot().All(k, ns) {
			cells := []string{o.GetName()}
			if k.Cells != nil {
				cells = nil
				for i, c := range k.Cells(o, p.now) {
					if i < len(k.Columns) && k.Columns[i].Priority == 0 {
						cells = append(cells, fmt.Sprint(c))
					}
				}
			}
			fmt.Fprintln(w, strings.Join(cells, "\t"))
		}
		w.Flush()
		var out []string
		for _, l := range strings.Split(strings.TrimSpace(b.String()), "\n") {
			if l != "" {
				out = append(out, strings.TrimSpace(l))
			}
		}
		return out, nil
	}
	return nil, fmt.Errorf("no kind %q", args[0])
}

func (p *Player) show(args []string) (out []string, err error) {
	err = p.each(args[0], func(r view.Ref, o kind.Object) error {
		data, err := json.Marshal(o)
		if err != nil {
			return err
		}
		var v any
		if err := json.Unmarshal(data, &v); err != nil {
			return err
		}
		if strings.Contains(args[0], "*") {
			out = append(out, r.String())
		}
		for _, a := range args[1:] {
			value, ok := walk(v, a)
			if !ok {
				out = append(out, a+" -")
				continue
			}
			text, err := json.Marshal(value)
			if err != nil {
				return err
			}
			out = append(out, a+" "+strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(string(text), `\u003e`, ">"), `\u003c`, "<"), `\u0026`, "&"))
		}
		return nil
	})
	return out, err
}

// walk follows a path: fields by dots, ["key"], [n], [field=value].
func walk(v any, path string) (any, bool) {
	for path != "" {
		path = strings.TrimPrefix(path, ".")
		if rest, ok := strings.CutPrefix(path, "["); ok {
			inside, after, ok := strings.Cut(rest, "]")
			if !ok {
				return nil, false
			}
			path = after
			if key, err := strconv.Unquote(inside); err == nil {
				m, _ := v.(map[string]any)
				if v, ok = m[key]; !ok {
					return nil, false
				}
				continue
			}
			l, _ := v.([]any)
			if n, err := strconv.Atoi(inside); err == nil {
				if n >= len(l) {
					return nil, false
				}
				v = l[n]
				continue
			}
			field, value, _ := strings.Cut(inside, "=")
			found := false
			for _, e := range l {
				if m, ok := e.(map[string]any); ok && fmt.Sprint(m[field]) == value {
					v, found = e, true
					break
				}
			}
			if !found {
				return nil, false
			}
			continue
		}
		end := strings.IndexAny(path, ".[")
		if end < 0 {
			end = len(path)
		}
		field := path[:end]
		path = path[end:]
		if l, ok := v.([]any); ok {
			var all []any
			for _, e := range l {
				if x, ok := walk(e, field+path); ok {
					all = append(all, x)
				}
			}
			return all, true
		}
		m, _ := v.(map[string]any)
		var ok bool
		if v, ok = m[field]; !ok {
			return nil, false
		}
	}
	return v, true
}
