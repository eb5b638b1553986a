package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// wantedXattr says which extended attributes of an image are kept. Overlayfs'
// own would let an image forge whiteouts and redirects, labels belong to the
// machine, and the rest means nothing outside where it was made.
func wantedXattr(key string) bool {
	switch key {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(key, "user.") && !strings.HasPrefix(key, "user.overlay.")
}

func setXattrs(at string, set func(path, key string, value []byte, flags int) error, hdr *tar.Header, symlink bool) error {
	for record, value := range hdr.PAXRecords {
		key, found := strings.CutPrefix(record, paxXattr)
		if !found || !wantedXattr(key) || symlink {
			continue
		}
		if err := set(at, key, []byte(value), 0); err != nil && !forgivable(key, err) {
			return fmt.Errorf("extended attribute %q: %w", key, err)
		}
	}
	return nil
}

// forgivable: a file system without user attributes or ACLs can hold an image
// all the same; one that loses capabilities breaks it.
func forgivable(key string, err error) bool {
	return key != "security.capability" && (errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM))
}

func copyXattrs(from, to string) error {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(from, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	for key := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if key == "" || !wantedXattr(key) {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(from, key, value)
		if err != nil {
			return err
		}
		if err := unix.Setxattr(to, key, value[:n], 0); err != nil && !forgivable(key, err) {
			return err
		}
	}
	return nil
}
