package image

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Hold keeps an image's layers until release is called or the process ends. It
// may be taken before the image is there, and counts.
func (s *Store) Hold(imageID string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds[imageID]++
	s.use(imageID)
	return sync.OnceFunc(func() {
		s.mu.Lock()
		if s.holds[imageID]--; s.holds[imageID] <= 0 {
			delete(s.holds, imageID)
		}
		s.mu.Unlock()
		if err := s.letGo(imageID); err != nil {
			s.cfg.Log.Warn("removed image stays on disk until the store is opened again", "image", imageID, "cause", err)
		}
	})
}

// HoldFor keeps an image's layers for an owner, such as a container ID, until
// ReleaseFor, also across restarts of the process. Holding twice is holding once.
//
// The hold is not flushed to disk: what could lose it, the machine's own sudden
// end, ends the owner's processes as well.
func (s *Store) HoldFor(owner, imageID string) error {
	if owner == "" || !isDigest(imageID) {
		return fmt.Errorf("hold image %q for %q: an owner and a full image ID are needed", imageID, owner)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.use(imageID)
	if s.owners[owner][imageID] > 0 {
		return nil
	}
	if _, found := s.now.Load().images[imageID]; !found {
		return fmt.Errorf("hold image %q for %q: %w", imageID, owner, ErrNotFound)
	}
	ids := []string{imageID}
	for id := range s.owners[owner] {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	if err := s.writeFile(s.holdPath(owner), []byte(strings.Join(ids, "\n")+"\n"), false); err != nil {
		return fmt.Errorf("hold image %q for %q: %w", imageID, owner, err)
	}
	if s.owners[owner] == nil {
		s.owners[owner] = map[string]int{}
	}
	s.owners[owner][imageID] = 1
	return nil
}

// ReleaseFor ends all of an owner's holds. An owner without any is no error.
func (s *Store) ReleaseFor(owner string) error {
	s.mu.Lock()
	ids := s.owners[owner]
	if ids == nil {
		s.mu.Unlock()
		return nil
	}
	if err := os.Remove(s.holdPath(owner)); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.mu.Unlock()
		return fmt.Errorf("release images of %q: %w", owner, err)
	}
	delete(s.owners, owner)
	s.mu.Unlock()
	var errs []error
	for id := range ids {
		errs = append(errs, s.letGo(id))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("release images of %q: %w", owner, err)
	}
	return nil
}

// Owners returns who has a persistent hold, sorted, so that the engine can
// release those of containers that are no more.
func (s *Store) Owners() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]string, 0, len(s.owners))
	for owner := range s.owners {
		list = append(list, owner)
	}
	slices.Sort(list)
	return list
}

func (s *Store) use(id string) {
	s.usedMu.Lock()
	defer s.usedMu.Unlock()
	s.usedAt[id] = s.cfg.Now().UTC()
}

func (s *Store) lastUsed(id string) time.Time {
	s.usedMu.Lock()
	defer s.usedMu.Unlock()
	return s.usedAt[id]
}

// held says whether anyone holds the image. The caller has mu.
func (s *Store) held(id string) bool {
	if s.holds[id] > 0 {
		return true
	}
	for _, ids := range s.owners {
		if ids[id] > 0 {
			return true
		}
	}
	return false
}

// letGo drops a removed image whose last hold has ended.
func (s *Store) letGo(id string) error {
	s.mu.Lock()
	r := s.now.Load().images[id]
	due := r != nil && r.Removed && !s.held(id) && !s.closed
	s.mu.Unlock()
	if !due {
		return nil
	}
	return s.change(func(st *state) error {
		if r := st.images[id]; r != nil && r.Removed && !s.held(id) {
			st.drop(id)
		}
		return nil
	})
}

// holdPath escapes the owner into one file name: "." and "/" never stand alone
// in it because of the leading letter.
func (s *Store) holdPath(owner string) string { return s.path("holds", "o"+url.PathEscape(owner)) }

func (s *Store) readHolds() error {
	entries, err := os.ReadDir(s.path("holds"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		owner, err := url.PathUnescape(strings.TrimPrefix(e.Name(), "o"))
		if err != nil || owner == "" {
			continue
		}
		raw, err := os.ReadFile(s.path("holds", e.Name()))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(raw)) {
			if id := strings.TrimSpace(line); isDigest(id) {
				if s.owners[owner] == nil {
					s.owners[owner] = map[string]int{}
				}
				s.owners[owner][id] = 1
			}
		}
	}
	return nil
}
