package server

import (
	"context"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"proa.dev/store"
)

// writtenKey holds which program has written what comes behind which revision:
// "BUILD REVISION". It lies outside the kinds' keys.
const writtenKey = "/proa/program"

// written is the first revision whose value this very program has written, so that
// answers may be made of stored bytes: another one may have set other defaults. 0:
// nothing is known, as on a store that others write too.
func (s *Server) written(ctx context.Context) (int64, error) {
	if _, ok := s.Store.(store.Shared); ok {
		return 0, nil
	}
	build := buildID()
	kv, _, err := s.Store.Get(ctx, writtenKey, 0)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return 0, fmt.Errorf("read which program has written the store: %w", err)
	}
	was, since, _ := strings.Cut(string(kv.Value), " ")
	if err == nil && was == build && build != "" {
		if rev, err := strconv.ParseInt(since, 10, 64); err == nil {
			return rev, nil
		}
	}
	rev := s.Store.Revision() + 1
	// If it is lost in a crash, so is all that was written after it.
	_, err = s.Store.Put(ctx, writtenKey, []byte(build+" "+strconv.FormatInt(rev, 10)), store.PutOptions{Expect: store.Any, Class: store.Buffered})
	if errors.Is(err, store.ErrNoSpace) {
		return rev, nil // the next start asks anew
	}
	if err != nil {
		return 0, fmt.Errorf("note which program writes the store: %w", err)
	}
	return rev, nil
}

// buildID tells this program's code from any other: the linker's note in the
// executable; "" if there is none.
var buildID = sync.OnceValue(func() string {
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		return ""
	}
	defer f.Close()
	note := f.Section(".note.go.buildid")
	if note == nil {
		return ""
	}
	data, err := note.Data()
	if err != nil || len(data) <= 16 {
		return ""
	}
	id := string(data[16:]) // behind the note's header and name
	if strings.ContainsAny(id, " \n") {
		return hex.EncodeToString(data[16:])
	}
	return strings.TrimRight(id, "\x00")
})
