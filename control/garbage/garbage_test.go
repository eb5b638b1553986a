package garbage_test

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/control"
	"proa.dev/control/garbage"
	"proa.dev/control/scenario"
	"proa.dev/kind"
	"proa.dev/view"
)

func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txtar", func() []control.Part { return []control.Part{garbage.Part(kind.All)} })
}

// Owners on other servers: their names say what is known of them, and from the
// second question on also what is said then.
func TestElsewhere(t *testing.T) {
	scenario.Run(t, "testdata/elsewhere/*.txtar", func() []control.Part {
		asked := map[string]int{}
		return []control.Part{garbage.PartWith(kind.All, func(_ view.Snapshot, r metav1.OwnerReference, _ string) (garbage.Owner, bool) {
			if r.APIVersion != "ext.example.org/v1" {
				return garbage.Unknown, false
			}
			asked[r.Name]++
			switch {
			case r.Name == "unreachable":
				return garbage.Unknown, true
			case r.Name == "absent", r.Name == "going" && asked[r.Name] > 2:
				return garbage.Absent, true
			case r.Name == "waiting":
				return garbage.Waiting, true
			case asked[r.Name] == 1:
				return garbage.Asking, true
			}
			return garbage.Present, true
		})}
	})
}
