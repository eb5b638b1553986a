package disruption_test

import (
	"testing"

	"proa.dev/control"
	"proa.dev/control/deployment"
	"proa.dev/control/disruption"
	"proa.dev/control/replicaset"
	"proa.dev/control/scenario"
	"proa.dev/kind"
)

func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txtar", func() []control.Part {
		return []control.Part{disruption.Part(kind.All), deployment.Part(), replicaset.Part()}
	})
}
