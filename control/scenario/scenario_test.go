package scenario

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/tools/txtar"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

// twin keeps a Secret beside each ConfigMap.
func twin() control.Part {
	return control.Part{Name: "twin", Kind: kind.ConfigMap, Writes: []control.Write{{Kind: kind.Secret, Verbs: []string{"create"}}},
		Plan: func(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
			if s.Lookup(ref) == nil || s.Get(kind.Secret, ref.Namespace, ref.Name) != nil {
				return nil, time.Time{}
			}
			return act.List{act.Create{Kind: kind.Secret, Object: &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name}}}}, time.Time{}
		}}
}

const files = `-- cm.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
`

func play(parts []control.Part, script string) (string, []Problem) {
	a, problems := NewPlayer(kind.All, parts).Play(txtar.Parse([]byte(script + files)))
	return string(a.Comment), problems
}

// The player finds what differs, and what it writes then is what really happens.
func TestPlayerFindsDifferences(t *testing.T) {
	for _, c := range []struct{ name, script, problem, after string }{
		{"right", "apply cm.yaml\nexpect actions\n  create secrets/shop/c\n", "", ""},
		{"wrong", "apply cm.yaml\nexpect actions\n  create secrets/shop/d\n", "got", "apply cm.yaml\nexpect actions\n  create secrets/shop/c\n"},
		{"too few", "apply cm.yaml\nexpect no actions\n", "nobody expected", "apply cm.yaml\nexpect actions\n  create secrets/shop/c\n"},
		{"too many", "apply cm.yaml\nrun\nexpect actions\n  create secrets/shop/c\n", "got", "apply cm.yaml\nrun\nexpect no actions\n"},
		{"left over", "apply cm.yaml\n", "after the last line", "apply cm.yaml\nexpect actions\n  create secrets/shop/c\n"},
		{"no such command", "jump\n", "no such command", ""},
		{"no such file", "load x.yaml\n", "no file", ""},
		{"no such object", "gone pods/shop/x\n", "there is no", ""},
		{"refused", "fail create secrets Forbidden\napply cm.yaml\nexpect actions\n  create secrets/shop/c → Forbidden\ntick 4ms\nexpect no actions\ntick 1ms\nexpect actions\n  [1ms] create secrets/shop/c\n", "", ""},
		{"value", "apply cm.yaml\nrun\nshow secrets/shop/c type metadata.name data\n  type \"Opaque\"\n  metadata.name \"c\"\n  data -\n", "", ""},
	} {
		after, problems := play([]control.Part{twin()}, c.script)
		text := ""
		for _, p := range problems {
			text += p.Text + "\n"
		}
		if (c.problem == "") != (text == "") || !strings.Contains(text, c.problem) {
			t.Errorf("%s: problems %q, want %q", c.name, text, c.problem)
		}
		if c.after != "" && after != c.after {
			t.Errorf("%s: rewritten to\n%s\nwant\n%s", c.name, after, c.after)
		}
		if c.after != "" {
			if _, again := play([]control.Part{twin()}, after); len(again) > 0 {
				t.Errorf("%s: the rewritten script fails: %v", c.name, again)
			}
		}
	}
}

// What a part may not write fails even with -update; so do plans without an end.
func TestPlayerStopsBadParts(t *testing.T) {
	greedy := twin()
	greedy.Writes = nil
	fatal := func(problems []Problem, text string) bool {
		for _, p := range problems {
			if !p.Expectation && strings.Contains(p.Text, text) {
				return true
			}
		}
		return false
	}
	if _, problems := play([]control.Part{greedy}, "apply cm.yaml\nrun\n"); !fatal(problems, "has not declared create on secrets") {
		t.Errorf("an undeclared write: %v", problems)
	}
	restless := control.Part{Name: "restless", Kind: kind.ConfigMap, Writes: []control.Write{{Kind: kind.ConfigMap, Verbs: []string{"update"}}},
		Plan: func(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
			c := view.Get[*corev1.ConfigMap](s, kind.ConfigMap, ref.Namespace, ref.Name).DeepCopy()
			if c.Data == nil {
				c.Data = map[string]string{}
			}
			c.Data["n"] += "x"
			if len(c.Data["n"]) > 9 {
				c.Data["n"] = ""
			}
			return act.List{act.Update{Kind: kind.ConfigMap, Object: c}}, time.Time{}
		}}
	if _, problems := play([]control.Part{restless}, "apply cm.yaml\nrun\n"); !fatal(problems, "do not come to rest") {
		t.Errorf("a plan without an end: %v", problems)
	}
}
