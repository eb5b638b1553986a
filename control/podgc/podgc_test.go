package podgc

import (
	"testing"

	"proa.dev/control"
	"proa.dev/control/scenario"
)

// The threshold is three, so that a scenario can reach it.
func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txtar", func() []control.Part { return []control.Part{part(3)} })
}
