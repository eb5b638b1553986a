package apiserver

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"proa.dev/kind"
	"proa.dev/store"
	"proa.dev/view"
)

// get reads one object.
func (s *Server) get(ctx context.Context, c *call, o metav1.GetOptions) (kind.Object, error) {
	rev, err := parseVersion(o.ResourceVersion)
	if err != nil {
		return nil, err
	}
	if o.ResourceVersion == "" {
		err = s.fresh(ctx)
	} else {
		err = s.waitFor(ctx, rev)
	}
	if err != nil {
		return nil, err
	}
	if c.kind.Computed != nil {
		for _, obj := range c.kind.Computed() {
			if obj.GetName() == c.name {
				return obj, nil
			}
		}
		return nil, notFound(c, c.name)
	}
	obj := s.view.Snapshot().Get(c.kind, c.namespace, c.name)
	if obj == nil {
		return nil, notFound(c, c.name)
	}
	return served(c.kind, obj)
}

// selection is a parsed pair of selectors.
type selection struct {
	labels labels.Selector // nil: everything
	fields fields.Selector // nil: everything
	kind   *kind.Kind
	name   string // from metadata.name=, or ""
	space  string // from metadata.namespace=, or ""
	rest   bool   // fields beyond name and namespace are asked for
}

func (s selection) all() bool { return s.labels == nil && s.fields == nil }

// matches looks at a stored object.
func (s selection) matches(obj kind.Object) bool {
	if s.labels != nil && !s.labels.Matches(labels.Set(obj.GetLabels())) {
		return false
	}
	if s.fields == nil {
		return true
	}
	return s.fields.Matches(fieldsOf{s.kind, obj})
}

// fieldsOf reads selectable fields when they are asked for.
type fieldsOf struct {
	kind *kind.Kind
	obj  kind.Object
}

func (f fieldsOf) Has(name string) bool { return true }
func (f fieldsOf) Get(name string) string {
	switch name {
	case "metadata.name":
		return f.obj.GetName()
	case "metadata.namespace":
		return f.obj.GetNamespace()
	}
	if get := f.kind.Selectable[name]; get != nil {
		return get(f.obj)
	}
	return ""
}

// selectableOf is the row whose Selectable functions fit stored objects of k.
func selectableOf(k *kind.Kind, name string) (*kind.Kind, bool) {
	if w := working(k); w.Selectable[name] != nil {
		return w, true
	}
	return k, false
}

func parseSelection(k *kind.Kind, o metav1.ListOptions) (selection, error) {
	sel := selection{kind: working(k)}
	if o.LabelSelector != "" {
		l, err := labels.Parse(o.LabelSelector)
		if err != nil {
			return sel, apierrors.NewBadRequest(err.Error())
		}
		if !l.Empty() {
			sel.labels = l
		}
	}
	if o.FieldSelector != "" {
		f, err := fields.ParseSelector(o.FieldSelector)
		if err != nil {
			return sel, apierrors.NewBadRequest(err.Error())
		}
		for _, r := range f.Requirements() {
			switch r.Field {
			case "metadata.name", "metadata.namespace":
			default:
				if _, ok := selectableOf(k, r.Field); !ok {
					if len(k.Root().Selectable) == 0 && !k.Custom {
						return sel, apierrors.NewBadRequest(fmt.Sprintf("%q is not a known field selector: only %q, %q", r.Field, "metadata.name", "metadata.namespace"))
					}
					return sel, apierrors.NewBadRequest("field label not supported: " + r.Field)
				}
				sel.rest = true
			}
		}
		if !f.Empty() {
			sel.fields = f
			sel.name, _ = f.RequiresExactMatch("metadata.name")
			sel.space, _ = f.RequiresExactMatch("metadata.namespace")
		}
	}
	return sel, nil
}

func validateListOptions(k *kind.Kind, o metav1.ListOptions) error {
	if o.ResourceVersionMatch == "" && o.SendInitialEvents == nil {
		return nil
	}
	errs := metavalidation.ValidateListOptions(&internalversion.ListOptions{Watch: o.Watch, ResourceVersion: o.ResourceVersion,
		ResourceVersionMatch: o.ResourceVersionMatch, Continue: o.Continue, SendInitialEvents: o.SendInitialEvents, Limit: o.Limit}, true)
	if len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
	}
	return nil
}

// listing is the answer to a list: stored objects, not yet converted.
type listing struct {
	items     []kind.Object
	revision  int64
	cont      string
	remaining *int64
	// dense: most of the objects between the first and the last are in it.
	dense bool
}

func (l *listing) meta() metav1.ListMeta {
	return metav1.ListMeta{ResourceVersion: strconv.FormatInt(l.revision, 10), Continue: l.cont, RemainingItemCount: l.remaining}
}

// pageToken is what continue holds: base64 of this JSON.
type pageToken struct {
	Version string `json:"v"`
	// Revision of the first page; -1 means "whatever is newest".
	Revision int64 `json:"rv"`
	// Namespace and Name of the last object of the page before.
	Namespace string `json:"ns,omitempty"`
	Name      string `json:"n"`
	// Issued in seconds; tokens live for pageLife, as upstream's live until the
	// next compaction.
	Issued int64 `json:"t"`
}

const (
	tokenVersion = "meta.k8s.io/v1"
	pageLife     = 5 * time.Minute
)

func (t pageToken) String() string {
	b, _ := json.Marshal(t)
	return base64.RawURLEncoding.EncodeToString(b)
}

func parseToken(text string) (t pageToken, err error) {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return t, apierrors.NewBadRequest(fmt.Sprintf("continue key is not valid: %v", err))
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return t, apierrors.NewBadRequest(fmt.Sprintf("continue key is not valid: %v", err))
	}
	if t.Version != tokenVersion || t.Name == "" || t.Revision == 0 {
		return t, apierrors.NewBadRequest("continue key is not valid: incorrect encoded start resourceVersion or key (version " + t.Version + ")")
	}
	return t, nil
}

// list reads objects of one kind.
func (s *Server) list(ctx context.Context, c *call, o metav1.ListOptions) (*listing, error) {
	if err := validateListOptions(c.kind, o); err != nil {
		return nil, err
	}
	sel, err := parseSelection(c.kind, o)
	if err != nil {
		return nil, err
	}
	if c.kind.Computed != nil {
		out := &listing{revision: s.view.Snapshot().Revision()}
		for _, obj := range c.kind.Computed() {
			if sel.matches(obj) {
				out.items = append(out.items, obj)
			}
		}
		return out, nil
	}
	var after pageToken
	if o.Continue != "" {
		if o.ResourceVersion != "" && o.ResourceVersion != "0" {
			return nil, apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
		}
		if after, err = parseToken(o.Continue); err != nil {
			return nil, err
		}
	}
	rev, err := parseVersion(o.ResourceVersion)
	if err != nil {
		return nil, err
	}
	exact := int64(0)
	switch {
	case o.Continue != "" && after.Revision > 0:
		if s.clock.Now().Unix()-after.Issued > int64(pageLife/time.Second) {
			return nil, expiredPage(after)
		}
		exact = after.Revision
	case o.ResourceVersionMatch == metav1.ResourceVersionMatchExact,
		o.ResourceVersionMatch == "" && rev > 0 && o.Limit > 0:
		// A limit with a version and no match rule means Exact (API concepts, the
		// table of resourceVersion semantics).
		exact = rev
	}
	if o.ResourceVersion == "" && exact == 0 {
		err = s.fresh(ctx)
	} else {
		err = s.waitFor(ctx, max(rev, exact))
	}
	if err != nil {
		return nil, err
	}
	snap := s.view.Snapshot()
	objects := s.objects(c, sel, snap, after)
	out := &listing{revision: snap.Revision()}
	if exact > 0 && exact != snap.Revision() {
		out.revision = exact
		if old, ok := s.pages.get(exact); ok {
			snap = old
			objects = s.objects(c, sel, old, after)
		} else if objects, err = s.history(ctx, c, after, exact); err != nil {
			if errors.Is(err, store.ErrCompacted) {
				if o.Continue != "" {
					return nil, expiredPage(after)
				}
				return nil, apierrors.NewResourceExpired("The resourceVersion for the provided list is too old.")
			}
			if errors.Is(err, store.ErrFuture) {
				return nil, tooLarge(exact, s.store.Revision())
			}
			return nil, err
		}
	}
	if o.Limit == 0 && sel.all() && c.namespace == "" && o.Continue == "" {
		out.items = make([]kind.Object, 0, snap.Len(c.kind))
	}
	more, passed := int64(0), 0
	for obj := range objects {
		if !sel.matches(obj) {
			passed++
			continue
		}
		if o.Limit > 0 && int64(len(out.items)) == o.Limit {
			more++
			if !sel.all() {
				break
			}
			continue
		}
		out.items = append(out.items, obj)
	}
	out.dense = passed <= 16*len(out.items)
	if more > 0 {
		last := out.items[len(out.items)-1]
		t := pageToken{Version: tokenVersion, Revision: out.revision, Namespace: last.GetNamespace(), Name: last.GetName(), Issued: after.Issued}
		if t.Issued == 0 || after.Revision < 0 {
			t.Issued = s.clock.Now().Unix()
		}
		out.cont = t.String()
		if sel.all() {
			out.remaining = &more
		}
		if snap.Revision() == out.revision {
			s.pages.put(snap)
		}
	}
	return out, nil
}

func expiredPage(t pageToken) error {
	e := apierrors.NewResourceExpired("The provided continue parameter is too old to display a consistent list result. You can start a new list without " +
		"the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided " +
		"token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned " +
		"and now may show up in the list.")
	t.Revision = -1
	e.ErrStatus.ListMeta.Continue = t.String()
	return e
}

// objects yields what may match, cheaply narrowed by name, namespace and page.
func (s *Server) objects(c *call, sel selection, snap view.Snapshot, after pageToken) iter.Seq[kind.Object] {
	ns := c.namespace
	if ns == "" && c.kind.Scope == kind.Namespaced {
		ns = sel.space
	}
	if sel.name != "" && after.Name == "" && (ns != "" || c.kind.Scope == kind.Cluster) {
		return func(yield func(kind.Object) bool) {
			if obj := snap.Get(c.kind, ns, sel.name); obj != nil {
				yield(obj)
			}
		}
	}
	if after.Name != "" {
		return snap.After(c.kind, ns, after.Namespace, after.Name)
	}
	return snap.All(c.kind, ns)
}

// history reads the store at an old revision.
func (s *Server) history(ctx context.Context, c *call, after pageToken, rev int64) (iter.Seq[kind.Object], error) {
	prefix := c.kind.StoreKey(c.namespace, "")
	start := prefix
	if after.Name != "" {
		start = c.kind.StoreKey(after.Namespace, after.Name) + "\x00"
	}
	page, err := s.store.Range(ctx, start, store.PrefixEnd(prefix), 0, rev)
	if err != nil {
		return nil, err
	}
	items := make([]kind.Object, 0, len(page.KVs))
	for _, kv := range page.KVs {
		obj, err := decodeKV(c.kind.Root(), kv)
		if err != nil {
			return nil, err
		}
		items = append(items, obj)
	}
	return func(yield func(kind.Object) bool) {
		for _, obj := range items {
			if !yield(obj) {
				return
			}
		}
	}, nil
}

// pageCache keeps the snapshots behind continue tokens for a while: a page then
// costs no decoding. The oldest go first.
type pageCache struct {
	now   func() time.Time
	mu    sync.Mutex
	pages []cachedPage
}

type cachedPage struct {
	snap view.Snapshot
	used time.Time
}

const maxPages = 8

func (p *pageCache) get(rev int64) (view.Snapshot, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for i := range p.pages {
		if p.pages[i].snap.Revision() == rev {
			p.pages[i].used = now
			return p.pages[i].snap, true
		}
	}
	return view.Snapshot{}, false
}

func (p *pageCache) put(snap view.Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	kept := p.pages[:0]
	for _, page := range p.pages {
		if page.snap.Revision() == snap.Revision() {
			continue
		}
		if now.Sub(page.used) < time.Minute {
			kept = append(kept, page)
		}
	}
	clear(p.pages[len(kept):])
	if len(kept) >= maxPages {
		kept = append(kept[:0], kept[len(kept)-maxPages+1:]...)
	}
	p.pages = append(kept, cachedPage{snap, now})
}
