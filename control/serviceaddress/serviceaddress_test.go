package serviceaddress_test

import (
	"testing"

	"proa.dev/control"
	"proa.dev/control/scenario"
	"proa.dev/control/serviceaddress"
)

func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txtar", func() []control.Part {
		return append(serviceaddress.Parts(), serviceaddress.RangePart())
	})
}
