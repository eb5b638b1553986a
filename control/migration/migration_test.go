package migration_test

import (
	"testing"

	"proa.dev/control"
	"proa.dev/control/migration"
	"proa.dev/control/scenario"
)

func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txtar", func() []control.Part { return []control.Part{migration.Part()} })
}
