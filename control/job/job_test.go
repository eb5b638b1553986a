package job

import (
	"testing"

	"proa.dev/control"
	"proa.dev/control/scenario"
)

func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txtar", func() []control.Part { return []control.Part{Part(), TTLPart(), OrphanPart()} })
}

func TestIndexText(t *testing.T) {
	for _, c := range []struct{ in, out string }{
		{"", ""}, {"0", "0"}, {"1,2", "1,2"}, {"1-2", "1,2"}, {"1,2,3", "1-3"}, {"7,1,3-5", "1,3-5,7"}, {"x,-1,5-", ""}, {"8-12", "8,9"},
	} {
		if got := parseIndexes(c.in, 10).String(); got != c.out {
			t.Errorf("%q: got %q, want %q", c.in, got, c.out)
		}
	}
}
