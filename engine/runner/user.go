package runner

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"proa.dev/engine/bundle"
)

// resolveUser looks a user up in the files of the image below root. A number
// that the image does not list is taken as it is, with group 0; a name must be
// listed. The primary group is always among the additional ones, so that giving
// it up is not a way to gain what the group is denied.
func resolveUser(root string, u bundle.User) (specs.User, error) {
	var out specs.User
	userPart, groupPart, hasGroup := strings.Cut(u.Name, ":")
	name := ""
	if userPart == "" {
		userPart = "0"
	}
	uid, numeric := number(userPart)
	found := false
	err := eachLine(root, "/etc/passwd", func(f []string) bool {
		if len(f) < 4 {
			return true
		}
		id, ok1 := number(f[2])
		gid, ok2 := number(f[3])
		if !ok1 || !ok2 {
			return true
		}
		if f[0] == userPart || numeric && id == uid {
			name, out.UID, out.GID, found = f[0], id, gid, true
			return false
		}
		return true
	})
	if err != nil {
		return out, err
	}
	if !found {
		if !numeric {
			return out, fmt.Errorf("unable to find user %s: no matching entries in passwd file", userPart)
		}
		out.UID = uid
	}
	gid, gnumeric := number(groupPart)
	if hasGroup && groupPart != "" && gnumeric {
		out.GID = gid
	}
	matched := false
	if name != "" || hasGroup && !gnumeric {
		err = eachLine(root, "/etc/group", func(f []string) bool {
			if len(f) < 3 {
				return true
			}
			id, ok := number(f[2])
			if !ok {
				return true
			}
			if hasGroup && !gnumeric && f[0] == groupPart && !matched {
				out.GID, matched = id, true
			}
			if !u.Strict && name != "" && len(f) > 3 && slices.Contains(strings.Split(f[3], ","), name) {
				out.AdditionalGids = append(out.AdditionalGids, id)
			}
			return true
		})
		if err != nil {
			return out, err
		}
	}
	if hasGroup && groupPart != "" && !gnumeric && !matched {
		return out, fmt.Errorf("unable to find group %s: no matching entries in group file", groupPart)
	}
	out.AdditionalGids = append(out.AdditionalGids, u.Supplemental...)
	out.AdditionalGids = append(out.AdditionalGids, out.GID)
	slices.Sort(out.AdditionalGids)
	out.AdditionalGids = slices.Compact(out.AdditionalGids)
	return out, nil
}

func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil
}

// eachLine calls f with the colon-separated fields of every line until it says
// stop. A file that does not exist has no lines.
func eachLine(root, path string, f func([]string) bool) error {
	full, err := securejoin.SecureJoin(root, path)
	if err != nil {
		return fmt.Errorf("find the image's %s: %w", path, err)
	}
	r, err := os.Open(full)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("open the image's %s: %w", path, err)
	}
	defer r.Close()
	s := bufio.NewScanner(r)
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if !f(strings.Split(line, ":")) {
			return nil
		}
	}
	return s.Err()
}
