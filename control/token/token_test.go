package token_test

import (
	"testing"

	"proa.dev/control"
	"proa.dev/control/scenario"
	"proa.dev/control/token"
)

func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txtar", func() []control.Part {
		return []control.Part{token.CleanerPart(), token.AccountPart(), token.SignerPart()}
	})
}
