package apiserver

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/audit"
	"proa.dev/apiserver/auth"
	"proa.dev/internal/suffix"
	"proa.dev/internal/uuid"
	"proa.dev/kind"
	"proa.dev/store"
)

// call is who asks for what.
type call struct {
	user                 auth.User
	agent                string // of a client in process
	manager              string // who changes fields, where no options say so
	kind                 *kind.Kind
	sub, namespace, name string
	warn                 func(message string) // never nil
}

func noWarning(string) {}

// authorize asks whether c.user may do verb; the error is upstream's Forbidden.
func (s *Server) authorize(ctx context.Context, c *call, verb, fieldSelector string) error {
	return s.authorizeAttributes(ctx, c.attributes(verb, fieldSelector))
}

// attributes of c for authorizers.
func (c *call) attributes(verb, fieldSelector string) auth.Attributes {
	a := auth.Attributes{User: c.user, Verb: verb, Group: c.kind.Group, Version: c.kind.Version,
		Resource: c.kind.Plural, Subresource: c.sub, Namespace: c.namespace, Name: c.name, FieldSelector: fieldSelector}
	if c.kind == kind.Namespace {
		// A namespace lies within itself for authorizers, as its URL says.
		a.Namespace = c.name
	}
	return a
}

func (s *Server) authorizeAttributes(ctx context.Context, a auth.Attributes) error {
	return s.judge(ctx, a, nil)
}

// judge asks the authorizers and records the answer in e.
func (s *Server) judge(ctx context.Context, a auth.Attributes, e *audit.Entry) error {
	began := s.clock.Now()
	d, reason, err := s.cfg.Authz.Authorize(ctx, a)
	s.metrics.authorized(d, err, s.clock.Now().Sub(began))
	if d == auth.Allow {
		e.Annotate("authorization.k8s.io/decision", "allow")
		e.Annotate("authorization.k8s.io/reason", reason)
		return nil
	}
	if err != nil && reason == "" {
		reason = err.Error()
	}
	e.Annotate("authorization.k8s.io/decision", "forbid")
	e.Annotate("authorization.k8s.io/reason", reason)
	return forbidden(a, reason)
}

// forbidden is the Status for a denied request.
func forbidden(a auth.Attributes, reason string) error {
	user := a.User.Name
	msg := ""
	if a.Path != "" {
		msg = fmt.Sprintf("User %q cannot %s path %q", user, a.Verb, a.Path)
	} else {
		resource := a.Resource
		if a.Subresource != "" {
			resource += "/" + a.Subresource
		}
		msg = fmt.Sprintf("User %q cannot %s resource %q in API group %q", user, a.Verb, resource, a.Group)
		if a.Namespace != "" {
			msg += fmt.Sprintf(" in the namespace %q", a.Namespace)
		} else {
			msg += " at the cluster scope"
		}
	}
	if reason != "" {
		msg += ": " + reason
	}
	if a.Path != "" {
		return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: 403, Reason: metav1.StatusReasonForbidden,
			Details: &metav1.StatusDetails{}, Message: "forbidden: " + msg}}
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: a.Group, Resource: a.Resource}, a.Name, errors.New(msg))
}

func notFound(c *call, name string) error { return apierrors.NewNotFound(c.kind.GroupResource(), name) }

func modified(c *call, name string) error {
	return apierrors.NewConflict(c.kind.GroupResource(), name,
		errors.New("the object has been modified; please apply your changes to the latest version and try again"))
}

// served turns a stored object into the version that c's row serves.
func served(k *kind.Kind, obj kind.Object) (kind.Object, error) {
	if k.Stored == nil || k.FromStored == nil {
		return obj, nil
	}
	out, err := k.FromStored(obj)
	if k.Custom {
		return out, err
	}
	if err != nil {
		return nil, fmt.Errorf("convert %s %q to %s: %w", k.Root(), obj.GetName(), k.Version, err)
	}
	out.GetObjectKind().SetGroupVersionKind(k.GVK())
	return out, nil
}

// servedList turns stored objects into the version that the row serves.
func servedList(k *kind.Kind, items []kind.Object) ([]kind.Object, error) {
	if k.Stored == nil {
		return items, nil
	}
	if k.FromStoredList != nil {
		return k.FromStoredList(items)
	}
	out := make([]kind.Object, len(items))
	for i, obj := range items {
		var err error
		if out[i], err = served(k, obj); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func toStored(k *kind.Kind, obj kind.Object) (kind.Object, error) {
	if k.Stored == nil || k.ToStored == nil {
		return obj, nil
	}
	out, err := k.ToStored(obj)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return out, nil
}

// parseVersion reads a resourceVersion; "" and "0" are 0.
func parseVersion(rv string) (int64, error) {
	if rv == "" || rv == "0" {
		return 0, nil
	}
	n, err := strconv.ParseUint(rv, 10, 63)
	if err != nil {
		return 0, apierrors.NewBadRequest(field.Invalid(field.NewPath("resourceVersion"), rv, err.Error()).Error())
	}
	return int64(n), nil
}

func objectVersion(obj kind.Object) int64 {
	n, _ := strconv.ParseInt(obj.GetResourceVersion(), 10, 64)
	return n
}

// waitFor returns once reads contain rev, or upstream's "too large" timeout.
func (s *Server) waitFor(ctx context.Context, rev int64) error {
	if s.view.Snapshot().Revision() >= rev {
		return nil
	}
	current := s.store.Revision()
	if shared, ok := s.store.(store.Shared); ok && rev > current {
		// Another server may have told the client of it.
		var err error
		if current, err = shared.Latest(ctx); err != nil {
			return err
		}
	}
	if rev > current {
		return tooLarge(rev, current)
	}
	wait, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := s.view.WaitFor(wait, rev); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return tooLarge(rev, s.view.Snapshot().Revision())
	}
	return nil
}

func tooLarge(asked, current int64) error {
	err := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", asked, current), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
	return err
}

// fresh waits until reads contain everything that is committed now, by other
// servers too.
func (s *Server) fresh(ctx context.Context) error {
	rev := s.store.Revision()
	if shared, ok := s.store.(store.Shared); ok {
		var err error
		if rev, err = shared.Latest(ctx); err != nil {
			return err
		}
	}
	if s.view.Snapshot().Revision() >= rev {
		return nil
	}
	return s.view.WaitFor(ctx, rev)
}

// storeError turns an error of the store into a Status.
func storeError(c *call, name string, err error) error {
	switch {
	case errors.Is(err, store.ErrExists):
		return apierrors.NewAlreadyExists(c.kind.GroupResource(), name)
	case errors.Is(err, store.ErrNotFound):
		return notFound(c, name)
	case errors.Is(err, store.ErrConflict):
		return modified(c, name)
	case errors.Is(err, store.ErrTooLarge):
		return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("%s %q is larger than %d bytes", c.kind, name, store.MaxValueBytes))
	case errors.Is(err, store.ErrNoSpace):
		e := apierrors.NewInternalError(err)
		e.ErrStatus.Code, e.ErrStatus.Reason = 507, metav1.StatusReason("InsufficientStorage")
		return e
	case errors.Is(err, store.ErrClosed):
		return apierrors.NewServiceUnavailable("the server is shutting down")
	}
	return err
}

// statusError is err as a StatusError; unknown errors become InternalError.
func statusError(err error) *apierrors.StatusError {
	var se *apierrors.StatusError
	if errors.As(err, &se) {
		return se
	}
	var api apierrors.APIStatus
	if errors.As(err, &api) {
		return &apierrors.StatusError{ErrStatus: api.Status()}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return apierrors.NewTimeoutError("request did not complete within the allowed duration", 0)
	case errors.Is(err, context.Canceled):
		e := apierrors.NewTimeoutError("request was cancelled by the client", 0)
		e.ErrStatus.Code = 499
		return e
	}
	return apierrors.NewInternalError(err)
}

func (s *Server) newUID() types.UID { return types.UID(uuid.New(s.rand)) }

func (s *Server) generateName(base string) string { return suffix.Append(base, s.rand.Uint64()) }

// now is the time for objects: whole seconds, as the API shows them.
func (s *Server) now() metav1.Time { return metav1.NewTime(s.clock.Now().Truncate(time.Second)) }

// mutate runs the mutating half of admission: all plugins, once more when one of
// them asked for it, then those that run once.
func (s *Server) mutate(ctx context.Context, r *admit.Request) error {
	if err := s.mutateOnce(ctx, r); err != nil {
		s.abandon(r)
		return err
	}
	return nil
}

func (s *Server) mutateOnce(ctx context.Context, r *admit.Request) error {
	before := r.Object
	var uid types.UID
	var created metav1.Time
	if before != nil {
		uid, created = before.GetUID(), before.GetCreationTimestamp()
	}
	m := s.metrics.admission
	began := m.clock.Now()
	last := began
	run := func(once bool) error {
		for i, p := range s.cfg.Admit {
			if p.Mutate == nil || p.Once != once {
				continue
			}
			err := p.Mutate(ctx, r)
			last = m.plugin(i, mutating, r.Operation, last, err)
			if err != nil {
				m.whole(mutating, r.Operation, began, last, err)
				return admissionError(r, p.Name, err)
			}
		}
		return nil
	}
	if err := run(false); err != nil {
		return err
	}
	if r.Reinvoke {
		r.Again = true
		if err := run(false); err != nil {
			return err
		}
	}
	if before != nil && (r.Object != before || r.Reinvoke) {
		if err := unmoved(r, uid, created); err != nil {
			return err
		}
	}
	if err := run(true); err != nil {
		return err
	}
	m.whole(mutating, r.Operation, began, last, nil)
	return nil
}

// unmoved refuses what plugins may not do to an object: make it another one.
func unmoved(r *admit.Request, uid types.UID, created metav1.Time) error {
	obj := r.Object
	switch r.Operation {
	case admit.Create:
		// A new object's name is open until it is written; the rest is the server's.
		if ns := obj.GetNamespace(); ns != r.Namespace {
			return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
		}
		obj.SetUID(uid)
		obj.SetCreationTimestamp(created)
		obj.SetDeletionTimestamp(nil)
		obj.SetDeletionGracePeriodSeconds(nil)
		obj.SetGeneration(0)
		obj.SetSelfLink("")
		obj.SetResourceVersion("")
	case admit.Update:
		var errs field.ErrorList
		meta := field.NewPath("metadata")
		if obj.GetName() != r.Old.GetName() {
			errs = append(errs, field.Invalid(meta.Child("name"), obj.GetName(), "field is immutable"))
		}
		if obj.GetNamespace() != r.Old.GetNamespace() {
			errs = append(errs, field.Invalid(meta.Child("namespace"), obj.GetNamespace(), "field is immutable"))
		}
		if obj.GetUID() != r.Old.GetUID() {
			errs = append(errs, field.Invalid(meta.Child("uid"), obj.GetUID(), "field is immutable"))
		}
		if len(errs) > 0 {
			return invalid(r.Kind, r.Old.GetName(), errs)
		}
		obj.SetCreationTimestamp(r.Old.GetCreationTimestamp())
		obj.SetDeletionTimestamp(r.Old.GetDeletionTimestamp())
		obj.SetDeletionGracePeriodSeconds(r.Old.GetDeletionGracePeriodSeconds())
		obj.SetSelfLink("")
		obj.SetResourceVersion(r.Old.GetResourceVersion())
	}
	return nil
}

// abandon gives back what mutating plugins promised to a request that fails
// before the validating half has passed.
func (s *Server) abandon(r *admit.Request) {
	for _, p := range s.cfg.Admit {
		if p.Mutate != nil && p.Release != nil {
			p.Release(r)
		}
	}
}

// check runs the validating half. release must be called when the write did not
// happen after all.
func (s *Server) check(ctx context.Context, r *admit.Request) (release func(), err error) {
	var passed []func(*admit.Request)
	release = func() {
		for i := len(passed) - 1; i >= 0; i-- {
			passed[i](r)
		}
	}
	m := s.metrics.admission
	began := m.clock.Now()
	last := began
	for i, p := range s.cfg.Admit {
		if p.Validate != nil {
			err := p.Validate(ctx, r)
			last = m.plugin(i, validating, r.Operation, last, err)
			if err != nil {
				m.whole(validating, r.Operation, began, last, err)
				release()
				for _, later := range s.cfg.Admit[i:] {
					if later.Mutate != nil && later.Release != nil {
						later.Release(r)
					}
				}
				return nil, admissionError(r, p.Name, err)
			}
		}
		if p.Release != nil {
			passed = append(passed, p.Release)
		}
	}
	m.whole(validating, r.Operation, began, last, nil)
	return release, nil
}

func admissionError(r *admit.Request, plugin string, err error) error {
	var se *apierrors.StatusError
	if errors.As(err, &se) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	name := r.Name
	if name == "" && r.Object != nil {
		if name = r.Object.GetName(); name == "" {
			name = r.Object.GetGenerateName()
		}
	}
	return apierrors.NewForbidden(r.Kind.GroupResource(), name, fmt.Errorf("admission plugin %s: %w", plugin, err))
}

func invalid(k *kind.Kind, name string, errs field.ErrorList) error {
	return apierrors.NewInvalid(schema.GroupKind{Group: k.Group, Kind: k.Kind}, name, errs)
}

func isDryRun(opts []string) bool { return len(opts) > 0 }
