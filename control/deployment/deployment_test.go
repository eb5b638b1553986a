package deployment_test

import (
	"testing"

	"proa.dev/control"
	"proa.dev/control/deployment"
	"proa.dev/control/replicaset"
	"proa.dev/control/scenario"
)

func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txtar", func() []control.Part {
		return []control.Part{deployment.Part(), replicaset.Part()}
	})
}
