package engine

import (
	"testing"

	"proa.dev/engine/enginetest"
)

func TestSuite(t *testing.T) {
	enginetest.Run(t, func(t *testing.T) enginetest.Harness {
		return enginetest.Harness{Runtime: newRig(t).Engine, Image: busybox}
	})
}
