package loop

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"proa.dev/act"
	"proa.dev/client"
	"proa.dev/control/scenario"
	"proa.dev/env"
	"proa.dev/kind"
)

// Scenarios of the scheduler: txtar archives whose comment is the script.
//
//	node NAME [cpu=4] [memory=8Gi] [pods=110] [X=N] [label:K=V] [taint:K=V:EFFECT] [image:NAME=SIZE] [unschedulable]
//	pod NAME [cpu=..] [memory=..] [X=N] [port:N] [priority=N] [label:K=V] [on=NODE] [count=N] [image=..] [from=FILE]
//	load FILE ...    objects as written; from=FILE gives a pod its spec
//	patch REF JSON   merge patch
//	end NAME ...     pods are gone
//	gone nodes/NAME
//	tick DURATION
//	expect           schedule; the indented lines are what was written since
//	count KEY        pods by the value of a node label
//
// -update rewrites what is expected.
func TestScenarios(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.txtar")
	if len(files) < 10 {
		t.Fatalf("only %d scenarios", len(files))
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txtar"), func(t *testing.T) {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			p := newPlayer(t)
			after := p.play(txtar.Parse(data))
			if string(after) == string(data) {
				return
			}
			if flag.Lookup("update").Value.String() == "true" {
				if err := os.WriteFile(f, after, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("%s: what happened is not what was expected; with -update it would read\n%s", f, after)
		})
	}
}

type clock struct{ now time.Time }

func (c *clock) Now() time.Time                     { return c.now }
func (c *clock) NewTimer(d time.Duration) env.Timer { panic("no timers here") }

type player struct {
	t     *testing.T
	clock *clock
	model *scenario.Model
	s     *Scheduler
	done  []string
	files map[string][]byte
}

// recorder notes what the scheduler writes.
type recorder struct {
	client.Client
	p *player
}

func (r recorder) Post(ctx context.Context, k *kind.Kind, ns, name, sub string, body runtime.Object) (runtime.Object, error) {
	o, err := r.Client.Post(ctx, k, ns, name, sub, body)
	b := body.(*corev1.Binding)
	r.p.say("bind %s %s%s", name, b.Target.Name, failed(err))
	return o, err
}

func (r recorder) Delete(ctx context.Context, k *kind.Kind, ns, name string, o metav1.DeleteOptions) error {
	err := r.Client.Delete(ctx, k, ns, name, o)
	r.p.say("delete %s%s", name, failed(err))
	return err
}

func (r recorder) Update(ctx context.Context, k *kind.Kind, o kind.Object, sub string, u metav1.UpdateOptions) (kind.Object, error) {
	out, err := r.Client.Update(ctx, k, o, sub, u)
	p := o.(*corev1.Pod)
	if p.Status.NominatedNodeName != "" || err != nil {
		r.p.say("nominate %s %s%s", p.Name, p.Status.NominatedNodeName, failed(err))
	}
	return out, err
}

func failed(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

func (p *player) say(format string, args ...any) {
	p.done = append(p.done, fmt.Sprintf(format, args...))
}

func newPlayer(t *testing.T) *player {
	p := &player{t: t, clock: &clock{scenario.Epoch}, files: map[string][]byte{}}
	p.model = scenario.NewModel(kind.All, p.clock.Now)
	p.s = New(Config{View: p.model.View(), Client: recorder{p.model, p}, Clock: p.clock, Record: func(e act.Event) {
		if e.Reason != "Scheduled" {
			p.say("%s %s: %s", e.Reason, e.About.Name, strings.ReplaceAll(e.Message, "00000000-0000-4000-8000-", ""))
		}
	}})
	return p
}

func (p *player) play(a *txtar.Archive) []byte {
	for _, f := range a.Files {
		p.files[f.Name] = f.Data
	}
	var out []string
	for _, line := range strings.Split(strings.TrimRight(string(a.Comment), "\n"), "\n") {
		if strings.HasPrefix(line, " ") {
			continue
		}
		out = append(out, line)
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		got, err := p.command(line, words)
		if err != nil {
			p.t.Fatalf("%s: %v", line, err)
		}
		for _, g := range got {
			out = append(out, "  "+g)
		}
	}
	return txtar.Format(&txtar.Archive{Comment: []byte(strings.Join(out, "\n") + "\n"), Files: a.Files})
}

func (p *player) command(line string, words []string) (got []string, err error) {
	switch words[0] {
	case "node":
		p.model.Load(kind.Node, p.node(words[1], words[2:]))
	case "pod":
		return nil, p.pod(words[1], words[2:])
	case "load":
		for _, name := range words[1:] {
			if err := p.load(name); err != nil {
				return nil, err
			}
		}
	case "patch":
		ref := strings.Split(words[1], "/")
		k := map[string]*kind.Kind{"pods": kind.Pod, "nodes": kind.Node, "namespaces": kind.Namespace}[ref[0]]
		ns := ""
		if k == kind.Pod {
			ns = "shop"
		}
		_, body, _ := strings.Cut(line, words[1])
		sub := ""
		if strings.HasPrefix(strings.TrimSpace(body), `{"status"`) {
			sub = "status"
		}
		_, err = p.model.Patch(context.Background(), k, ns, ref[1], types.MergePatchType, []byte(strings.TrimSpace(body)), sub, metav1.PatchOptions{})
	case "end":
		zero := int64(0)
		for _, name := range words[1:] {
			if err := p.model.Delete(context.Background(), kind.Pod, "shop", name, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
				return nil, err
			}
		}
	case "gone":
		err = p.model.Delete(context.Background(), kind.Node, "", strings.TrimPrefix(words[1], "nodes/"), metav1.DeleteOptions{})
	case "tick":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			return nil, err
		}
		p.clock.now = p.clock.now.Add(d)
	case "expect":
		p.s.Step(context.Background())
		got, p.done = p.done, nil
	case "count":
		return p.count(words[1]), nil
	default:
		return nil, fmt.Errorf("no such command")
	}
	return got, err
}

func (p *player) node(name string, words []string) *corev1.Node {
	n := &corev1.Node{}
	n.Name = name
	n.Labels = map[string]string{corev1.LabelHostname: name}
	n.Status.Allocatable = corev1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("8Gi"), "pods": resource.MustParse("110")}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		switch what, name, _ := strings.Cut(k, ":"); what {
		case "label":
			n.Labels[name] = v
		case "taint":
			value, effect, _ := strings.Cut(v, ":")
			n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: name, Value: value, Effect: corev1.TaintEffect(effect)})
		case "image":
			q := resource.MustParse(v)
			n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{name}, SizeBytes: q.Value()})
		case "unschedulable":
			n.Spec.Unschedulable = true
		default:
			n.Status.Allocatable[corev1.ResourceName(k)] = resource.MustParse(v)
		}
	}
	n.Status.Capacity = n.Status.Allocatable
	return n
}

func (p *player) pod(name string, words []string) error {
	count := 1
	pod := &corev1.Pod{}
	c := corev1.Container{Name: "app", Image: "app:1", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{}}}
	for _, w := range words {
		if file, ok := strings.CutPrefix(w, "from="); ok {
			if err := yaml.UnmarshalStrict(p.files[file], pod); err != nil {
				return err
			}
		}
	}
	pod.Name, pod.Namespace = name, "shop"
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		switch what, name, _ := strings.Cut(k, ":"); what {
		case "from":
		case "on":
			pod.Spec.NodeName = v
		case "image":
			c.Image = v
		case "priority":
			var n int32
			fmt.Sscan(v, &n)
			pod.Spec.Priority = &n
		case "count":
			fmt.Sscan(v, &count)
		case "label":
			if pod.Labels == nil {
				pod.Labels = map[string]string{}
			}
			pod.Labels[name] = v
		case "port":
			var n int32
			fmt.Sscan(name, &n)
			c.Ports = append(c.Ports, corev1.ContainerPort{ContainerPort: n, HostPort: n, HostIP: v})
		default:
			c.Resources.Requests[corev1.ResourceName(k)] = resource.MustParse(v)
			if strings.Contains(k, "/") {
				c.Resources.Limits = corev1.ResourceList{corev1.ResourceName(k): resource.MustParse(v)}
			}
		}
	}
	pod.Spec.Containers = append(pod.Spec.Containers, c)
	for i := range count {
		if count > 1 {
			pod.Name = fmt.Sprintf("%s-%d", name, i)
		}
		// As admission leaves it.
		seconds := int64(300)
		o := pod.DeepCopy()
		for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
			o.Spec.Tolerations = append(o.Spec.Tolerations, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds})
		}
		o.Status.Phase = corev1.PodPending
		p.model.Load(kind.Pod, o)
	}
	return nil
}

func (p *player) load(name string) error {
	for _, doc := range strings.Split("\n"+string(p.files[name]), "\n---") {
		var tm runtime.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &tm); err != nil {
			return err
		}
		k := kind.All.ByKind(tm.GroupVersionKind())
		if k == nil {
			return fmt.Errorf("no kind %v", tm)
		}
		o := k.New()
		if err := yaml.UnmarshalStrict([]byte(doc), o); err != nil {
			return err
		}
		if k.Scope == kind.Namespaced && o.GetNamespace() == "" {
			o.SetNamespace("shop")
		}
		p.model.Load(k, o)
	}
	return nil
}

func (p *player) count(key string) []string {
	s := p.model.View().Snapshot()
	counts := map[string]int{}
	for o := range s.All(kind.Node, "") {
		v := o.GetLabels()[key]
		for range s.PodsOn(o.GetName()) {
			counts[v]++
		}
	}
	var out []string
	for v, n := range counts {
		out = append(out, fmt.Sprintf("%s: %d", v, n))
	}
	slices.Sort(out)
	return out
}
