package protection_test

import (
	"testing"

	"proa.dev/control"
	"proa.dev/control/protection"
	"proa.dev/control/scenario"
)

func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txtar", func() []control.Part {
		return []control.Part{protection.ClaimPart(), protection.VolumePart(), protection.ClassPart()}
	})
}
