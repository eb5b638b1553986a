package quota_test

import (
	"testing"

	"proa.dev/control"
	"proa.dev/control/quota"
	"proa.dev/control/scenario"
	"proa.dev/kind"
)

func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txtar", func() []control.Part { return []control.Part{quota.Part(kind.All)} })
}
