package etcd

import (
	"context"
	"errors"
	"fmt"
)

// Size implements store.Sized: the database of the first endpoint that answers.
func (s *Store) Size(ctx context.Context) (string, int64, error) {
	ctx, cancel := s.request(ctx)
	defer cancel()
	var errs []error
	for _, e := range s.cfg.Endpoints {
		r, err := s.client.Status(ctx, e)
		if err == nil {
			return "etcd-0", r.DbSize, nil
		}
		errs = append(errs, fmt.Errorf("ask etcd at %s for its size: %w", e, err))
	}
	return "", 0, errors.Join(errs...)
}
