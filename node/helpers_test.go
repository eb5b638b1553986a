package node_test

import (
	"testing"

	"golang.org/x/sys/unix"
)

func umount(t testing.TB, path string) {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		t.Errorf("unmount %q: %v", path, err)
	}
}
