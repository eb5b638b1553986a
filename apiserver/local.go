package apiserver

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/audit"
	"proa.dev/apiserver/auth"
	"proa.dev/client"
	"proa.dev/client/wire"
	"proa.dev/kind"
)

// Identity is who an in-process client is.
type Identity struct {
	// User is asked for at each call.
	User func() auth.User
	// Agent stands for the User-Agent: the audit log has it, and its first word (up to
	// a slash) is the manager of the fields that a write without one changes.
	Agent string
}

// Local is the in-process client of one user: the same verbs, admission,
// validation, authorization and audit as over HTTP.
func (s *Server) Local(user auth.User) client.Client {
	return s.LocalAs(Identity{User: func() auth.User { return user }})
}

// LocalAs is the in-process client of an identity.
func (s *Server) LocalAs(i Identity) client.Client {
	manager, _, _ := strings.Cut(i.Agent, "/")
	return &local{s: s, who: i, manager: manager}
}

var _ client.Client = (*local)(nil)

// local calls the verbs as functions, for one identity.
type local struct {
	s       *Server
	who     Identity
	manager string
}

func (l *local) call(k *kind.Kind, namespace, name, sub string) *call {
	k = l.row(k)
	if k.Scope == kind.Cluster {
		namespace = ""
	}
	return &call{user: l.who.User(), agent: l.who.Agent, kind: k, namespace: namespace, name: name, sub: sub, warn: noWarning}
}

// row is the served row of a custom kind's root, which controllers know from
// snapshots: in the version that objects are stored in.
func (l *local) row(k *kind.Kind) *kind.Kind {
	if !k.Hidden {
		return k
	}
	for _, row := range l.s.kinds().Custom() {
		if row.Stored == k {
			return row
		}
	}
	return k
}

// begin authorizes a call. With an audit log it begins an entry, which the caller
// ends; ctx carries it to admission then.
func (l *local) begin(ctx context.Context, c *call, verb, fieldSelector string) (context.Context, *audit.Entry, error) {
	log := l.s.cfg.Audit
	if log == nil {
		return ctx, nil, l.s.authorize(ctx, c, verb, fieldSelector)
	}
	a := c.attributes(verb, fieldSelector)
	e := log.BeginLocal(&a, l.s.ids.next(), c.path(), c.agent, l.s.clock.Now())
	if e == nil {
		return ctx, nil, l.s.authorizeAttributes(ctx, a)
	}
	ctx = admit.WithAnnotations(ctx, e.Annotate)
	err := l.s.judge(ctx, a, e)
	if err != nil {
		end(e, 0, nil, err)
	}
	return ctx, e, err
}

// path is the URL of what is called.
func (c *call) path() string {
	var b strings.Builder
	b.WriteString("/api")
	if c.kind.Group != "" {
		b.WriteString("s/" + c.kind.Group)
	}
	b.WriteString("/" + c.kind.Version)
	if c.namespace != "" && c.kind.Scope == kind.Namespaced {
		b.WriteString("/namespaces/" + c.namespace)
	}
	b.WriteString("/" + c.kind.Plural)
	if c.name != "" {
		b.WriteString("/" + c.name)
	}
	if c.sub != "" {
		b.WriteString("/" + c.sub)
	}
	return b.String()
}

// sent records what was sent.
func sent(e *audit.Entry, c *call, obj runtime.Object) {
	if e == nil {
		return
	}
	if o, ok := obj.(kind.Object); ok && c.sub != "binding" && c.sub != "eviction" && c.sub != "token" && c.sub != "scale" {
		obj = wire.Typed(o, c.kind.GVK())
	}
	e.Object(obj)
}

// end records the answer to a call.
func end(e *audit.Entry, code int, answer runtime.Object, err error) {
	if e == nil {
		return
	}
	if err != nil {
		st := apierrors.NewInternalError(err).Status()
		if s, ok := err.(apierrors.APIStatus); ok {
			st = s.Status()
		}
		code, answer = int(st.Code), &st
	}
	e.Started(code, false)
	if answer != nil {
		e.Response(answer)
	}
	e.Complete(false)
}

// typed is an object of c's kind as its answer shows it.
func typed(e *audit.Entry, c *call, obj kind.Object) runtime.Object {
	if obj == nil || !e.WantsResponse() {
		return nil
	}
	return wire.Typed(obj, c.kind.GVK())
}

func (l *local) Get(ctx context.Context, k *kind.Kind, namespace, name string, o metav1.GetOptions) (kind.Object, error) {
	c := l.call(k, namespace, name, "")
	ctx, e, err := l.begin(ctx, c, "get", "")
	if err != nil {
		return nil, err
	}
	out, err := l.s.get(ctx, c, o)
	end(e, http.StatusOK, typed(e, c, out), err)
	return out, err
}

func (l *local) List(ctx context.Context, k *kind.Kind, namespace string, o metav1.ListOptions) (client.List, error) {
	c := l.call(k, namespace, "", "")
	ctx, e, err := l.begin(ctx, c, "list", o.FieldSelector)
	if err != nil {
		return client.List{}, err
	}
	o.Watch = false
	got, err := l.s.list(ctx, c, o)
	if err != nil {
		end(e, 0, nil, err)
		return client.List{}, err
	}
	m := got.meta()
	if e.WantsResponse() {
		gvk := c.kind.GVK()
		gvk.Kind = c.kind.ListOf()
		var all bytes.Buffer
		if writeJSONList(&all, gvk, (&request{entry: e}).audited(got.items), m) == nil {
			e.ResponseJSON(all.Bytes())
		}
	}
	end(e, http.StatusOK, nil, nil)
	out := client.List{Items: got.items, ResourceVersion: m.ResourceVersion, Continue: m.Continue, Remaining: m.RemainingItemCount}
	out.Items, err = servedList(k, out.Items)
	return out, err
}

func (l *local) Watch(ctx context.Context, k *kind.Kind, namespace string, o metav1.ListOptions) (watch.Interface, error) {
	c := l.call(k, namespace, "", "")
	ctx, e, err := l.begin(ctx, c, "watch", o.FieldSelector)
	if err != nil {
		return nil, err
	}
	o.Watch = true
	w, err := l.s.watchLocal(ctx, c, o)
	if err != nil || e == nil {
		end(e, 0, nil, err)
		return w, err
	}
	e.Started(http.StatusOK, true)
	return &auditedWatch{Interface: w, entry: e}, nil
}

// auditedWatch ends its entry when it is stopped.
type auditedWatch struct {
	watch.Interface
	entry *audit.Entry
	once  sync.Once
}

func (w *auditedWatch) Stop() {
	w.Interface.Stop()
	w.once.Do(func() { w.entry.Complete(true) })
}

func (l *local) Create(ctx context.Context, k *kind.Kind, obj kind.Object, o metav1.CreateOptions) (kind.Object, error) {
	// The name takes part in authorization only over HTTP's URL, where a create
	// has none.
	c := l.call(k, obj.GetNamespace(), "", "")
	ctx, e, err := l.begin(ctx, c, "create", "")
	if err != nil {
		return nil, err
	}
	sent(e, c, obj)
	out, err := l.create(ctx, c, k, obj.DeepCopyObject().(kind.Object), o)
	end(e, http.StatusCreated, typed(e, c, out), err)
	return out, err
}

func (l *local) create(ctx context.Context, c *call, k *kind.Kind, obj kind.Object, o metav1.CreateOptions) (kind.Object, error) {
	if k.Virtual {
		return l.s.answer(ctx, c, obj)
	}
	if err := coerceLocal(k, obj); err != nil {
		return nil, err
	}
	o.FieldManager = cmp.Or(o.FieldManager, l.manager)
	return l.s.create(ctx, c, obj, o)
}

// coerceLocal checks an object of a custom kind as decoding does.
func coerceLocal(k *kind.Kind, obj kind.Object) error {
	if k.Coerce == nil {
		return nil
	}
	if _, err := k.Coerce(obj, false); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	return nil
}

func (l *local) Update(ctx context.Context, k *kind.Kind, obj kind.Object, sub string, o metav1.UpdateOptions) (kind.Object, error) {
	c := l.call(k, obj.GetNamespace(), obj.GetName(), sub)
	ctx, e, err := l.begin(ctx, c, "update", "")
	if err != nil {
		return nil, err
	}
	sent(e, c, obj)
	out, created, err := l.update(ctx, c, k, obj, o)
	end(e, madeCode(created), typed(e, c, out), err)
	return out, err
}

func (l *local) update(ctx context.Context, c *call, k *kind.Kind, obj kind.Object, o metav1.UpdateOptions) (kind.Object, bool, error) {
	if c.sub == "scale" {
		return nil, false, apierrors.NewBadRequest(fmt.Sprintf("update %s %q through scale: send an autoscaling/v1 Scale with Post", c.kind, obj.GetName()))
	}
	obj = obj.DeepCopyObject().(kind.Object)
	if err := coerceLocal(k, obj); err != nil {
		return nil, false, err
	}
	o.FieldManager = cmp.Or(o.FieldManager, l.manager)
	return l.s.update(ctx, c, obj, o)
}

func (l *local) Patch(ctx context.Context, k *kind.Kind, namespace, name string, t types.PatchType, data []byte, sub string, o metav1.PatchOptions) (kind.Object, error) {
	c := l.call(k, namespace, name, sub)
	ctx, e, err := l.begin(ctx, c, "patch", "")
	if err != nil {
		return nil, err
	}
	e.Patch(data)
	if t != types.ApplyPatchType {
		o.FieldManager = cmp.Or(o.FieldManager, l.manager)
	}
	if sub == "scale" {
		sc, err := l.s.patchScale(ctx, c, t, data, o)
		var answer runtime.Object
		if err == nil {
			answer = sc
		}
		end(e, http.StatusOK, answer, err)
		return sc, err
	}
	out, created, err := l.s.patch(ctx, c, t, data, o)
	end(e, madeCode(created), typed(e, c, out), err)
	return out, err
}

func (l *local) Delete(ctx context.Context, k *kind.Kind, namespace, name string, o metav1.DeleteOptions) error {
	c := l.call(k, namespace, name, "")
	ctx, e, err := l.begin(ctx, c, "delete", "")
	if err != nil {
		return err
	}
	if e != nil {
		o.TypeMeta = metav1.TypeMeta{Kind: "DeleteOptions", APIVersion: "meta.k8s.io/v1"}
		e.Object(&o)
	}
	_, _, err = l.s.delete(ctx, c, o)
	end(e, http.StatusOK, nil, err)
	return err
}

func (l *local) Post(ctx context.Context, k *kind.Kind, namespace, name, sub string, body runtime.Object) (runtime.Object, error) {
	c := l.call(k, namespace, name, sub)
	verb, code := "create", http.StatusCreated
	sc, scale := body.(*autoscalingv1.Scale)
	if scale = scale && sub == "scale"; scale {
		verb, code = "update", http.StatusOK
	}
	ctx, e, err := l.begin(ctx, c, verb, "")
	if err != nil {
		return nil, err
	}
	sent(e, c, body)
	var out runtime.Object
	if scale {
		var made *autoscalingv1.Scale
		if made, err = l.s.setScale(ctx, c, func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error) { return sc.DeepCopy(), nil }, nil); made != nil {
			out = made
		}
	} else {
		out, err = l.s.post(ctx, c, body.DeepCopyObject(), nil)
	}
	if e.WantsResponse() {
		end(e, code, out, err)
	} else {
		end(e, code, nil, err)
	}
	return out, err
}
