package image

import (
	"os"
	"runtime/debug"
	"testing"
)

func openFiles(t testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestNoDescriptorIsLeftOpen(t *testing.T) {
	checkLayer(t, layerSeeds(t)[0])
	// A collection would close forgotten files and hide them.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	before := openFiles(t)
	for range 20 {
		for _, raw := range layerSeeds(t) {
			checkLayer(t, raw)
		}
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
