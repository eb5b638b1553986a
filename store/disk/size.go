package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// Size implements store.Sized: the sum of the engine's files.
func (s *Store) Size(context.Context) (string, int64, error) {
	dir := s.log.cfg.Dir + "/engine"
	names, err := s.log.cfg.Files.List(dir)
	if err != nil {
		return "", 0, fmt.Errorf("measure data directory %q: %w", dir, err)
	}
	var sum int64
	for _, name := range names {
		info, err := s.log.cfg.Files.Stat(dir + "/" + name)
		switch {
		case errors.Is(err, fs.ErrNotExist): // the engine has removed it meanwhile
		case err != nil:
			return "", 0, fmt.Errorf("measure data directory %q: %w", dir, err)
		case !info.IsDir():
			sum += info.Size()
		}
	}
	return "disk-0", sum, nil
}
