package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/auth"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/store"
)

// storedBytes is the value of obj in the store: without its resourceVersion,
// which the revision of the key says.
func storedBytes(k *kind.Kind, obj kind.Object) ([]byte, error) {
	obj.SetResourceVersion("")
	obj.SetSelfLink("")
	b, err := kind.EncodeStored(k, obj)
	if err != nil {
		return nil, fmt.Errorf("encode %s %q: %w", k, obj.GetName(), err)
	}
	return b, nil
}

func decodeKV(k *kind.Kind, kv store.KV) (kind.Object, error) {
	if obj, ok := kv.Attached.(kind.Object); ok {
		return obj, nil
	}
	obj, err := kind.DecodeStored(k, kv.Value)
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", kv.Key, err)
	}
	obj.SetResourceVersion(strconv.FormatInt(kv.ModRevision, 10))
	return obj, nil
}

// put writes obj, which nobody may change afterwards, if the guards hold, and waits
// until reads see it.
func (s *Server) put(ctx context.Context, c *call, obj kind.Object, expect int64, guards ...admit.Guard) error {
	k := c.kind.Root()
	if !k.Custom {
		obj.GetObjectKind().SetGroupVersionKind(k.GVK())
	}
	value, err := storedBytes(k, obj)
	if err != nil {
		return err
	}
	others := storeGuards(guards)
	if k.Custom && expect == store.Absent {
		open, err := s.stillOpen(c)
		if err != nil {
			return err
		}
		others = append(others, open)
	}
	class := store.Synced
	if k.Buffered {
		class = store.Buffered
	}
	// What rests in the view is a copy without room to grow, which shares what it has in
	// common with others; parts of obj may belong to objects that are read meanwhile.
	rests := obj
	if !k.Custom {
		rests = obj.DeepCopyObject().(kind.Object)
		rests.SetManagedFields(obj.GetManagedFields()) // they share what they can already
		kind.Compact(rests)
	}
	kv, err := s.store.Put(ctx, k.StoreKey(obj.GetNamespace(), obj.GetName()), value, store.PutOptions{
		Expect: expect, Class: class, TTL: k.TTL, Attached: rests, Guards: others,
		Stamp: func(rev int64) {
			version := strconv.FormatInt(rev, 10)
			obj.SetResourceVersion(version)
			rests.SetResourceVersion(version)
		},
	})
	if errors.Is(err, store.ErrGuard) && s.cfg.Held != nil {
		s.cfg.Held.lost(guards)
	}
	if err != nil {
		return err
	}
	return s.view.WaitFor(ctx, kv.ModRevision)
}

// remove deletes old from the store and waits until reads see it.
func (s *Server) remove(ctx context.Context, c *call, last kind.Object, expect int64) error {
	k := c.kind.Root()
	class := store.Synced
	if k.Buffered {
		class = store.Buffered
	}
	_, rev, err := s.store.Delete(ctx, k.StoreKey(last.GetNamespace(), last.GetName()), store.DeleteOptions{
		Expect: expect, Class: class, Attached: last,
		Stamp: func(rev int64) { last.SetResourceVersion(strconv.FormatInt(rev, 10)) },
	})
	if err != nil {
		return err
	}
	return s.view.WaitFor(ctx, rev)
}

// checkNamespace refuses a body that names another namespace than the request,
// and fills in a missing one.
func checkNamespace(c *call, obj kind.Object) error {
	if c.kind.Scope == kind.Cluster {
		if obj.GetNamespace() != "" && c.namespace == "" {
			return apierrors.NewBadRequest("namespace may not be set on a cluster-scoped object")
		}
		return nil
	}
	switch obj.GetNamespace() {
	case "":
		obj.SetNamespace(c.namespace)
	case c.namespace:
	default:
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	return nil
}

// create makes an object; obj is the server's to change.
func (s *Server) create(ctx context.Context, c *call, obj kind.Object, o metav1.CreateOptions) (kind.Object, error) {
	return s.createManaged(ctx, c, obj, o, nil)
}

// createManaged is create for an object whose fields are tracked already.
func (s *Server) createManaged(ctx context.Context, c *call, obj kind.Object, o metav1.CreateOptions, managed []metav1.ManagedFieldsEntry) (kind.Object, error) {
	if s.cfg.Held == nil {
		return s.createOnce(ctx, c, obj, o, managed)
	}
	for try := 0; ; try++ {
		out, err := s.createOnce(ctx, c, obj.DeepCopyObject().(kind.Object), o, managed)
		if !errors.Is(err, store.ErrGuard) || try >= maxTries {
			return out, err
		}
		// Another server has taken over the right to decide about this one.
		if err := s.pause(ctx, try); err != nil {
			return nil, err
		}
	}
}

// createOnce is one attempt; store.ErrGuard says that it has to be made again.
func (s *Server) createOnce(ctx context.Context, c *call, obj kind.Object, o metav1.CreateOptions, managed []metav1.ManagedFieldsEntry) (kind.Object, error) {
	if errs := metav1validation.ValidateCreateOptions(&o); len(errs) > 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "CreateOptions"}, "", errs)
	}
	if err := checkNamespace(c, obj); err != nil {
		return nil, err
	}
	if obj.GetResourceVersion() != "" && obj.GetResourceVersion() != "0" {
		return nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	if c.kind.Closed != "" {
		return nil, apierrors.NewForbidden(c.kind.GroupResource(), obj.GetName(), errors.New(c.kind.Closed))
	}
	dry := isDryRun(o.DryRun)
	if c.kind.Default != nil {
		c.kind.Default(obj)
	}
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	switch {
	case managed == nil:
		s.ownNew(c, obj, o.FieldManager)
	case len(managed) == 0:
		obj.SetManagedFields(nil)
	default:
		obj.SetManagedFields(managed)
	}
	k := working(c.kind)
	if k != c.kind && c.kind.Validate != nil {
		// The stored twin may be laxer than the version that was sent.
		trial := obj.DeepCopyObject().(kind.Object)
		s.fillSystemFields(c, trial)
		if trial.GetName() == "" && trial.GetGenerateName() != "" {
			trial.SetName(s.generateName(trial.GetGenerateName()))
		}
		if c.kind.PrepareCreate != nil {
			c.kind.PrepareCreate(trial)
		}
		if errs := c.kind.Validate(trial); len(errs) > 0 {
			return nil, invalid(c.kind, trial.GetName(), errs)
		}
	}
	if k != c.kind {
		var err error
		if obj, err = toStored(c.kind, obj); err != nil {
			return nil, err
		}
		if k.Default != nil {
			k.Default(obj)
		}
	}
	s.fillSystemFields(c, obj)
	generated := obj.GetName() == "" && obj.GetGenerateName() != ""
	if generated {
		obj.SetName(s.generateName(obj.GetGenerateName()))
	}
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	r := &admit.Request{Kind: k.Root(), Served: c.kind, Options: &o, Operation: admit.Create, User: c.user, Namespace: obj.GetNamespace(), Name: obj.GetName(),
		Object: obj, DryRun: dry, Now: s.clock.Now(), Snapshot: s.view.Snapshot(), Warn: c.warn}
	owners := entriesOf(obj)
	if err := s.mutate(ctx, r); err != nil {
		return nil, err
	}
	if r.Object != obj {
		sound(c, r.Object, obj, owners)
	}
	obj = r.Object
	if k.PrepareCreate != nil {
		k.PrepareCreate(obj)
	}
	if k.Stamp != nil {
		k.Stamp(obj, r.Now)
	}
	if csr, ok := obj.(*certificatesv1.CertificateSigningRequest); ok {
		// Signers trust this: only the server says who asked.
		csr.Spec.Username, csr.Spec.UID, csr.Spec.Groups, csr.Spec.Extra = c.user.Name, c.user.UID, c.user.Groups, auth.Extra[certificatesv1.ExtraValue](c.user.Extra)
	}
	if k.Validate != nil {
		if errs := k.Validate(obj); len(errs) > 0 {
			s.abandon(r)
			return nil, invalid(k, obj.GetName(), errs)
		}
	}
	if obj.GetName() == "" {
		s.abandon(r)
		return nil, invalid(k, "", field.ErrorList{field.Required(field.NewPath("metadata", "name"), "name or generateName is required")})
	}
	if k.Warnings != nil {
		for _, w := range k.Warnings(obj, nil) {
			c.warn(w)
		}
	}
	release, err := s.check(ctx, r)
	if err != nil {
		return nil, err
	}
	if dry {
		release()
		if s.view.Snapshot().Get(k, obj.GetNamespace(), obj.GetName()) != nil {
			return nil, s.exists(k, obj)
		}
		return served(c.kind, obj)
	}
	for try := 0; ; try++ {
		var stored kind.Object
		if stored, err = toStorage(c.kind, obj); err != nil {
			release()
			return nil, err
		}
		err = s.put(ctx, c, stored, store.Absent, r.Guards...)
		if err == nil {
			return served(c.kind, stored)
		}
		if errors.Is(err, store.ErrGuard) && s.cfg.Held == nil && try < maxTries {
			// The definition has changed meanwhile, and may be going.
			if err = s.fresh(ctx); err == nil {
				continue
			}
		}
		if errors.Is(err, store.ErrExists) && generated && try < 7 {
			obj.SetName(s.generateName(obj.GetGenerateName()))
			continue
		}
		break
	}
	if !errors.Is(err, store.ErrUnavailable) {
		// Otherwise it may be written yet: what was promised to it ends by itself.
		release()
	}
	if errors.Is(err, store.ErrExists) && generated {
		e := apierrors.NewGenerateNameConflict(k.GroupResource(), obj.GetName(), 1)
		return nil, e
	}
	if errors.Is(err, store.ErrExists) {
		return nil, s.exists(k, obj)
	}
	return nil, storeError(c, obj.GetName(), err)
}

// exists says that the name of a new object is taken, perhaps by one that is going.
func (s *Server) exists(k *kind.Kind, obj kind.Object) error {
	e := apierrors.NewAlreadyExists(k.GroupResource(), obj.GetName())
	if have := s.view.Snapshot().Get(k, obj.GetNamespace(), obj.GetName()); have != nil && have.GetDeletionTimestamp() != nil {
		e.ErrStatus.Message = "object is being deleted: " + e.ErrStatus.Message
	}
	return e
}

// fillSystemFields sets what only the server may say about a new object.
func (s *Server) fillSystemFields(c *call, obj kind.Object) {
	obj.SetUID(s.newUID())
	obj.SetCreationTimestamp(s.now())
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	obj.SetGeneration(0)
	obj.SetSelfLink("")
	obj.SetResourceVersion("")
}

// change is one modification of an object through a door.
type change struct {
	// make returns the new state from a private copy of the old one; it is called
	// again when another writer was faster. The object is of c.kind.
	make func(old kind.Object) (kind.Object, error)
	// door prepares and checks; nil fields are skipped.
	door   *kind.Door
	dryRun bool
	// strict: a resourceVersion in the new object must be the current one; without
	// one, the write is unconditional (allowed only if the row says so).
	needVersion bool
	// createAbsent makes the object when there is none.
	createAbsent func() (kind.Object, error)
	// warnings asks the row for its warnings.
	warnings bool
	// tracks: what changes is noted as manager's. applied: make has noted it itself.
	// Otherwise nobody owns it.
	tracks, applied bool
	manager         string
	// options that the client sent, for admission.
	options runtime.Object
}

// mainDoor is the row's own way of updating.
func mainDoor(k *kind.Kind) *kind.Door {
	return &kind.Door{PrepareUpdate: k.PrepareUpdate, ValidateUpdate: k.ValidateUpdate}
}

// maxTries bounds how often an unconditional change meets faster writers.
const maxTries = 64

// working is the row by whose rules an object is admitted and checked: its root,
// but for custom kinds the version that the client uses.
func working(k *kind.Kind) *kind.Kind {
	if k.Custom {
		return k
	}
	return k.Root()
}

// stillOpen: a kind may have gone, or begun to go, while an object was admitted.
// The guard holds as long as the definition is as it was found: a create and the
// mark that nothing is created any more exclude each other, on all servers of a
// store, so that who empties the kind after that mark sees every object.
func (s *Server) stillOpen(c *call) (store.Guard, error) {
	snap := s.view.Snapshot()
	row := snap.Table().ByResource(c.kind.GVR())
	name := c.kind.Plural + "." + c.kind.Group
	d := snap.Get(kind.CustomResourceDefinition, "", name)
	switch {
	case row == nil || d == nil:
		return store.Guard{}, apierrors.NewGenericServerResponse(404, "", schema.GroupResource{}, "", "the server could not find the requested resource", 0, false)
	case row.Closed != "":
		return store.Guard{}, apierrors.NewForbidden(c.kind.GroupResource(), c.name, errors.New(row.Closed))
	}
	revision, err := strconv.ParseInt(d.GetResourceVersion(), 10, 64)
	if err != nil {
		return store.Guard{}, fmt.Errorf("read the revision of definition %q: %w", name, err)
	}
	return store.Guard{Key: kind.CustomResourceDefinition.StoreKey("", name), Revision: revision}, nil
}

// toStorage converts an object that was admitted to the form in which it is stored.
func toStorage(k *kind.Kind, obj kind.Object) (kind.Object, error) {
	if !k.Custom || k.ToStored == nil {
		return obj, nil
	}
	return k.ToStored(obj)
}

// modify carries a change out: read, make, admit, check, write, and again when
// somebody else was faster.
func (s *Server) modify(ctx context.Context, c *call, ch change) (obj kind.Object, created bool, err error) {
	k := working(c.kind)
	for try := 0; ; try++ {
		if err := s.fresh(ctx); err != nil {
			return nil, false, err
		}
		snap := s.view.Snapshot()
		old := snap.Get(k, c.namespace, c.name)
		if old == nil {
			if ch.createAbsent != nil {
				obj, err := ch.createAbsent()
				return obj, err == nil, err
			}
			return nil, false, notFound(c, c.name)
		}
		oldServed, err := served(c.kind, old)
		if err != nil {
			return nil, false, err
		}
		obj, err := ch.make(oldServed.DeepCopyObject().(kind.Object))
		if err != nil {
			return nil, false, err
		}
		if err := checkIdentity(c, obj, old, ch.needVersion); err != nil {
			return nil, false, err
		}
		named := obj.GetResourceVersion() != "" && obj.GetResourceVersion() != "0"
		// A patch works on whatever is newest unless it names another version itself.
		conditional := named && ch.needVersion
		if named && obj.GetResourceVersion() != old.GetResourceVersion() {
			return nil, false, modified(c, c.name)
		}
		carryOver(obj, old, ch.applied || ch.tracks)
		if c.kind.Default != nil {
			c.kind.Default(obj)
		}
		if ch.tracks {
			s.ownChange(c, oldServed, obj, ch.manager)
		}
		if k != c.kind && ch.door != nil && c.sub == "" && c.kind.ValidateUpdate != nil {
			if errs := c.kind.ValidateUpdate(obj, oldServed); len(errs) > 0 {
				return nil, false, invalid(c.kind, c.name, errs)
			}
		}
		before := old
		if k != c.kind {
			if obj, err = toStored(c.kind, obj); err != nil {
				return nil, false, err
			}
			if k.Default != nil {
				k.Default(obj)
			}
		} else {
			before = oldServed
		}
		r := &admit.Request{Kind: k.Root(), Served: c.kind, Options: ch.options, Sub: c.sub, Operation: admit.Update, User: c.user, Namespace: c.namespace, Name: c.name,
			Object: obj, Old: before, DryRun: ch.dryRun, Now: s.clock.Now(), Snapshot: snap, Warn: c.warn}
		obj, written, err := s.modifyOnce(ctx, c, ch, r, old)
		if err == nil {
			if !written {
				obj = old
			}
			out, err := served(c.kind, obj)
			return out, false, err
		}
		isGuard := errors.Is(err, store.ErrGuard)
		if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) && !isGuard {
			return nil, false, storeError(c, c.name, err)
		}
		if conditional && !isGuard || try >= maxTries {
			return nil, false, modified(c, c.name)
		}
		if try > 8 {
			if err := s.pause(ctx, try); err != nil {
				return nil, false, err
			}
		}
	}
}

// modifyOnce is one attempt: its conflicts are the store's errors.
func (s *Server) modifyOnce(ctx context.Context, c *call, ch change, r *admit.Request, stored kind.Object) (obj kind.Object, written bool, err error) {
	k, old := working(c.kind), r.Old
	sent := r.Object
	owners := entriesOf(sent)
	if err := s.mutate(ctx, r); err != nil {
		return nil, false, err
	}
	if obj = r.Object; obj != sent {
		sound(c, obj, sent, owners)
		owners = entriesOf(obj)
	}
	if ch.door != nil && ch.door.PrepareUpdate != nil {
		ch.door.PrepareUpdate(obj, old)
		if !k.Custom {
			obj.SetManagedFields(owners)
		}
	}
	if k.Stamp != nil {
		k.Stamp(obj, r.Now)
	}
	if ch.door != nil && ch.door.ValidateUpdate != nil {
		if errs := ch.door.ValidateUpdate(obj, old); len(errs) > 0 {
			s.abandon(r)
			return nil, false, invalid(k, c.name, errs)
		}
	}
	if ch.warnings && k.Warnings != nil {
		for _, w := range k.Warnings(obj, old) {
			c.warn(w)
		}
	}
	release, err := s.check(ctx, r)
	if err != nil {
		return nil, false, err
	}
	if ch.dryRun {
		release()
		return obj, true, nil
	}
	obj.SetResourceVersion(old.GetResourceVersion())
	obj.GetObjectKind().SetGroupVersionKind(old.GetObjectKind().GroupVersionKind())
	expect := objectVersion(stored)
	if obj, err = toStorage(c.kind, obj); err != nil {
		release()
		return nil, false, err
	}
	if goesNow(obj) {
		if err := s.remove(ctx, c, obj, expect); err != nil {
			release()
			return nil, false, err
		}
		return obj, true, nil
	}
	if same(obj, stored) {
		stale, err := s.stale(ctx, k, obj, expect)
		if err != nil || !stale {
			release()
			return stored, false, err
		}
	}
	if err := s.put(ctx, c, obj, expect, r.Guards...); err != nil {
		if !errors.Is(err, store.ErrUnavailable) {
			release()
		}
		return nil, false, err
	}
	return obj, true, nil
}

// same says that nothing but the times of managed fields has changed; they are then
// the old ones.
func same(obj, stored kind.Object) bool {
	now, old := entriesOf(obj), entriesOf(stored)
	quiet := calm(now, old)
	if len(now) > 0 && &quiet[0] != &now[0] {
		obj.SetManagedFields(quiet)
	}
	if apiequality.Semantic.DeepEqual(obj, stored) {
		return true
	}
	if len(now) > 0 && &quiet[0] != &now[0] {
		obj.SetManagedFields(now)
	}
	return false
}

// stale says that writing an object again, though nothing in it changed, changes
// what is stored: an older version, defaults that were not there yet, another key.
func (s *Server) stale(ctx context.Context, k *kind.Kind, obj kind.Object, revision int64) (bool, error) {
	kv, _, err := s.store.Get(ctx, k.StoreKey(obj.GetNamespace(), obj.GetName()), 0)
	if errors.Is(err, store.ErrNotFound) || err == nil && kv.ModRevision != revision {
		return true, nil // the write will tell
	}
	if err != nil {
		return false, err
	}
	again := obj.DeepCopyObject().(kind.Object)
	again.GetObjectKind().SetGroupVersionKind(k.GVK())
	value, err := storedBytes(k, again)
	return kv.Stale || !bytes.Equal(value, kv.Value), err
}

// goesNow says that a write has taken away the last thing that kept a deleted
// object.
func goesNow(obj kind.Object) bool {
	return obj.GetDeletionTimestamp() != nil && !held(obj) &&
		(obj.GetDeletionGracePeriodSeconds() == nil || *obj.GetDeletionGracePeriodSeconds() == 0)
}

// held says that finalizers keep the object.
func held(obj kind.Object) bool {
	if len(obj.GetFinalizers()) > 0 {
		return true
	}
	ns, ok := obj.(*corev1.Namespace)
	return ok && len(ns.Spec.Finalizers) > 0
}

// checkIdentity compares what the new state says about itself with the request.
func checkIdentity(c *call, obj, old kind.Object, needVersion bool) error {
	if obj.GetName() != c.name {
		if obj.GetName() == "" {
			return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s based on URL) was undeterminable: name must be provided", c.name))
		}
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", obj.GetName(), c.name))
	}
	if obj.GetNamespace() != c.namespace {
		if obj.GetNamespace() != "" {
			return apierrors.NewBadRequest(fmt.Sprintf("the namespace of the object (%s) does not match the namespace on the request (%s)", obj.GetNamespace(), c.namespace))
		}
		obj.SetNamespace(c.namespace)
	}
	if obj.GetUID() != "" && obj.GetUID() != old.GetUID() {
		return apierrors.NewConflict(c.kind.GroupResource(), c.name,
			fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", obj.GetUID(), old.GetUID()))
	}
	if rv := obj.GetResourceVersion(); needVersion && (rv == "" || rv == "0") && !c.kind.Root().UnconditionalUpdate {
		return invalid(c.kind, c.name, field.ErrorList{field.Invalid(field.NewPath("metadata", "resourceVersion"), uint64(0), "must be specified for an update")})
	}
	return nil
}

// carryOver keeps what no client may change or leave out; owned: but for managed fields.
func carryOver(obj, old kind.Object, owned bool) {
	if obj.GetUID() == "" {
		obj.SetUID(old.GetUID())
	}
	if t := obj.GetCreationTimestamp(); t.IsZero() {
		obj.SetCreationTimestamp(old.GetCreationTimestamp())
	}
	if old.GetDeletionTimestamp() != nil {
		obj.SetDeletionTimestamp(old.GetDeletionTimestamp())
	} else {
		obj.SetDeletionTimestamp(nil)
	}
	obj.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	obj.SetGeneration(old.GetGeneration())
	obj.SetSelfLink("")
	if !owned {
		obj.SetManagedFields(old.GetManagedFields())
	}
	// An unconditional write is one against the newest version.
	obj.SetResourceVersion(old.GetResourceVersion())
}

// pause waits a little longer with every try, so that many unconditional
// writers of one object get through.
func (s *Server) pause(ctx context.Context, try int) error {
	var b [1]byte
	s.rand.Read(b[:])
	if !env.Sleep(ctx, s.clock, msec(try/4+int(b[0])%(try+1))) {
		return ctx.Err()
	}
	return nil
}

// update replaces an object through the main door or a subresource.
func (s *Server) update(ctx context.Context, c *call, obj kind.Object, o metav1.UpdateOptions) (out kind.Object, created bool, err error) {
	if errs := metav1validation.ValidateUpdateOptions(&o); len(errs) > 0 {
		return nil, false, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "UpdateOptions"}, "", errs)
	}
	door, err := s.door(c)
	if err != nil {
		return nil, false, err
	}
	first := true
	ch := change{door: door, options: &o, dryRun: isDryRun(o.DryRun), needVersion: true, warnings: c.sub == "", tracks: true, manager: o.FieldManager,
		make: func(kind.Object) (kind.Object, error) {
			if first {
				first = false
				return obj, nil
			}
			return nil, store.ErrConflict
		}}
	// A second try needs the sent object again; admission changes it, so keep one.
	if c.kind.UnconditionalUpdate || c.kind.Root().UnconditionalUpdate || s.cfg.Held != nil {
		sent := obj.DeepCopyObject().(kind.Object)
		ch.make = func(kind.Object) (kind.Object, error) { return sent.DeepCopyObject().(kind.Object), nil }
	}
	if c.sub == "" && c.kind.Root().AllowCreateOnUpdate {
		ch.createAbsent = func() (kind.Object, error) {
			if obj.GetName() != c.name {
				return nil, apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", obj.GetName(), c.name))
			}
			if obj.GetUID() != "" {
				return nil, apierrors.NewConflict(c.kind.GroupResource(), c.name, fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: ", obj.GetUID()))
			}
			if err := s.authorize(ctx, c, "create", ""); err != nil {
				return nil, err
			}
			fresh := obj.DeepCopyObject().(kind.Object)
			if rv := fresh.GetResourceVersion(); rv != "" && rv != "0" {
				return nil, notFound(c, c.name)
			}
			return s.create(ctx, c, fresh, metav1.CreateOptions{DryRun: o.DryRun, FieldManager: o.FieldManager})
		}
	}
	out, created, err = s.modify(ctx, c, ch)
	if errors.Is(err, store.ErrConflict) {
		err = modified(c, c.name)
	}
	return out, created, err
}

// door finds the way that a subresource takes into the object.
func (s *Server) door(c *call) (*kind.Door, error) {
	k := working(c.kind)
	switch c.sub {
	case "":
		return mainDoor(k), nil
	case "status":
		if k.Status != nil {
			return k.Status, nil
		}
	default:
		if d := s.specialDoor(k, c.sub); d != nil {
			return d, nil
		}
	}
	return nil, apierrors.NewGenericServerResponse(404, "", schema.GroupResource{}, "", "the server could not find the requested resource", 0, false)
}
