package image

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Pull brings an image from its registry, or from a mirror, into the store; what
// is there already is not fetched again. The registry is always asked, so that
// a tag that moved and a credential that was withdrawn are noticed.
func (s *Store) Pull(ctx context.Context, ref string, auth *Auth, progress func(Progress)) (Image, error) {
	img, err := s.pull(ctx, ref, auth, progress)
	if err != nil {
		return Image{}, fmt.Errorf("pull image %q: %w", ref, err)
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, ref string, auth *Auth, progress func(Progress)) (Image, error) {
	want, err := ParseReference(ref)
	if err != nil {
		return Image{}, err
	}
	report := newReporter(want.String(), progress)
	var errs []error
	for _, ep := range s.endpoints(want, auth) {
		img, err := s.pullFrom(ctx, ep, want, report)
		if err == nil {
			return img, nil
		}
		if ctx.Err() != nil {
			return Image{}, context.Cause(ctx)
		}
		errs = append(errs, err)
		if ownFault(err) {
			break
		}
	}
	if len(errs) == 1 {
		return Image{}, errs[0]
	}
	return Image{}, &endpointErrors{errs}
}

// ownFault says whether err is this machine's, so that no other endpoint would
// change it.
func ownFault(err error) bool {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO, unix.EMFILE} {
		if errors.Is(err, e) {
			return true
		}
	}
	var local *localError
	return errors.As(err, &local)
}

// localError is a failure of the store itself.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// endpointErrors says what each endpoint answered; the last one is the
// registry's own, or that of the mirror that stands for it.
type endpointErrors struct{ errs []error }

func (e *endpointErrors) Error() string {
	texts := make([]string, len(e.errs))
	for i, err := range e.errs {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; then: ")
}

func (e *endpointErrors) Unwrap() []error { return e.errs }

// endpoints lists who is asked for ref, in order.
func (s *Store) endpoints(ref Reference, auth *Auth) []endpoint {
	mirrors, found := s.cfg.Mirrors[ref.Domain]
	if !found {
		mirrors = s.cfg.Mirrors["*"]
	}
	var list []endpoint
	for _, m := range mirrors {
		ep, err := m.endpoint()
		if err != nil {
			continue // Check has refused it
		}
		if ep.auth == nil && (m.ForwardAuth || ep.host == ref.Domain) {
			ep.auth = auth
		}
		list = append(list, ep)
		if m.Final {
			return list
		}
	}
	return append(list, endpoint{host: ref.Domain, auth: auth})
}

func (s *Store) pullFrom(ctx context.Context, ep endpoint, want Reference, report *reporter) (Image, error) {
	repo, err := s.connect(ctx, ep, want)
	if err != nil {
		return Image{}, err
	}
	var names []string
	if want.Digest == "" {
		names = []string{want.String()}
	}

	// HEAD is not counted by registries that count pulls.
	if digest, err := repo.head(ctx, want); err == nil {
		pin := want.Repository() + "@" + digest
		if img, found := s.known(pin); found {
			return s.rename(img, names, pin)
		}
	}
	raw, digest, err := repo.top(ctx, want)
	if err != nil {
		return Image{}, err
	}
	doc, raw, _, err := s.pick(ctx, repo, raw, digest)
	if err != nil {
		return Image{}, err
	}
	in, err := fetch(ctx, repo, doc, raw)
	if err != nil {
		return Image{}, err
	}
	in.names, in.source = names, Pulled
	in.digests = []string{want.Repository() + "@" + digest}
	return s.install(ctx, in, report)
}

// known finds an image by digest pin whose layers are all there.
func (s *Store) known(pin string) (Image, bool) {
	st := s.now.Load()
	img, found := s.image(st, st.digests[pin])
	if !found {
		return Image{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, chain := range img.Layers {
		if s.layers[chain] == nil {
			return Image{}, false
		}
	}
	return img, true
}

// rename gives a known image the name it was pulled by this time.
func (s *Store) rename(img Image, names []string, pin string) (Image, error) {
	st := s.now.Load()
	if len(names) == 0 || st.names[names[0]] == img.ID {
		return img, nil
	}
	err := s.change(func(st *state) error {
		if r := st.images[img.ID]; r == nil || r.Removed {
			return fmt.Errorf("the image was removed at the same time: %w", ErrNotFound)
		}
		for _, orphan := range st.take(img.ID, names, []string{pin}) {
			s.discard(st, orphan)
		}
		return nil
	})
	if err != nil {
		return Image{}, &localError{err}
	}
	img, found := s.image(s.now.Load(), img.ID)
	if !found {
		return Image{}, &localError{ErrNotFound}
	}
	return img, nil
}
