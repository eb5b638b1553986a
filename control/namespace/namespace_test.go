package namespace_test

import (
	"testing"

	"proa.dev/control"
	"proa.dev/control/namespace"
	"proa.dev/control/scenario"
	"proa.dev/kind"
)

func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txtar", func() []control.Part { return []control.Part{namespace.Part(kind.All)} })
}
