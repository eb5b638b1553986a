package statefulset_test

import (
	"testing"

	"proa.dev/control"
	"proa.dev/control/garbage"
	"proa.dev/control/scenario"
	"proa.dev/control/statefulset"
	"proa.dev/kind"
)

func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txtar", func() []control.Part { return []control.Part{statefulset.Part(), garbage.Part(kind.All)} })
}
