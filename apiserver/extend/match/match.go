// Package match sees a write as webhooks and admission policies do: which rules
// and selectors of a configuration it meets, in which version of its kind, and how
// it looks in that version (Kubernetes docs, "Dynamic Admission Control", "Matching
// requests").
//
// A Request is made for one admit.Request and used by one goroutine; the versions
// that Version returns may be read by several. Nothing is converted before a rule
// has matched.
package match

import (
	"errors"
	"fmt"
	"reflect"

	admissionregv1 "k8s.io/api/admissionregistration/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"

	"proa.dev/apiserver/admit"
	"proa.dev/kind"
)

// Group of the kinds that configure admission; webhooks and policies are never asked
// about these, so that nobody can lock himself out.
const Group = "admissionregistration.k8s.io"

// Exempt says that no webhook and no policy applies to r.
func Exempt(r *admit.Request) bool { return r.Kind.Group == Group || r.Kind.Virtual && review(r.Kind) }

// review: the answers of authentication and authorization are not to be changed by
// those who may configure admission.
func review(k *kind.Kind) bool {
	return k.Group == "authentication.k8s.io" || k.Group == "authorization.k8s.io"
}

// Request is one write.
type Request struct {
	*admit.Request
	// Row is that of the version that the client used.
	Row *kind.Kind
	// Space is the namespace of the request; a Namespace lies within itself.
	Space string

	versions map[*kind.Kind]*admission.VersionedAttributes
	attrs    admission.Attributes
}

// New makes a Request. It costs nothing but its own memory.
func New(r *admit.Request) *Request {
	q := &Request{Request: r, Row: r.Row(), Space: r.Namespace}
	if r.Kind == kind.Namespace {
		q.Space = r.Name
	}
	return q
}

// Resource of the request in the version of row.
func (q *Request) Resource(row *kind.Kind) schema.GroupVersionResource { return row.GVR() }

// KindOf is the kind that the request exchanges in the version of row: for a
// subresource, what that takes.
func (q *Request) KindOf(row *kind.Kind) schema.GroupVersionKind {
	switch q.Sub {
	case "", "status":
		return row.GVK()
	case "scale":
		return schema.GroupVersionKind{Group: autoscalingv1.GroupName, Version: "v1", Kind: "Scale"}
	}
	if q.Body != nil {
		if gvk := q.Body.GetObjectKind().GroupVersionKind(); !gvk.Empty() {
			return gvk
		}
		if gvks, _, err := kind.Scheme().ObjectKinds(q.Body); err == nil && len(gvks) > 0 {
			return gvks[0]
		}
	}
	for _, s := range row.Subresources {
		if s.Name == q.Sub && s.Kind != "" {
			gvk := schema.GroupVersionKind{Group: s.Group, Version: s.Version, Kind: s.Kind}
			if s.Version == "" {
				gvk.Group, gvk.Version = row.Group, row.Version
			}
			return gvk
		}
	}
	return row.GVK()
}

// Rule says whether the request, as one of row's version, meets a rule.
func (q *Request) Rule(r *admissionregv1.RuleWithOperations, row *kind.Kind) bool {
	return q.scope(r.Scope) && operation(r.Operations, q.Operation) && among(r.APIGroups, row.Group) && among(r.APIVersions, row.Version) && q.resource(r.Resources, row)
}

func (q *Request) scope(s *admissionregv1.ScopeType) bool {
	if s == nil || *s == admissionregv1.AllScopes {
		return true
	}
	cluster := q.Space == "" || q.Kind == kind.Namespace
	switch *s {
	case admissionregv1.NamespacedScope:
		return !cluster
	case admissionregv1.ClusterScope:
		return cluster
	}
	return false
}

func operation(ops []admissionregv1.OperationType, op admit.Operation) bool {
	for _, o := range ops {
		if o == admissionregv1.OperationAll || string(o) == string(op) {
			return true
		}
	}
	return false
}

func among(list []string, v string) bool {
	for _, e := range list {
		if e == "*" || e == v {
			return true
		}
	}
	return false
}

func (q *Request) resource(list []string, row *kind.Kind) bool {
	for _, e := range list {
		res, sub := e, ""
		for i := 0; i < len(e); i++ {
			if e[i] == '/' {
				res, sub = e[:i], e[i+1:]
				break
			}
		}
		if (res == "*" || res == row.Plural) && (sub == "*" || sub == q.Sub) {
			return true
		}
	}
	return false
}

// equivalents are the other rows under which the same objects are served.
func (q *Request) equivalents() []*kind.Kind {
	var out []*kind.Kind
	root := q.Kind.Root()
	for _, k := range q.Snapshot.Table().Rows() {
		if k != q.Row && k.Root() == root {
			out = append(out, k)
		}
	}
	return out
}

// Rules finds the version in which the request meets one of a webhook's rules, nil
// if in none.
func (q *Request) Rules(rules []admissionregv1.RuleWithOperations, policy *admissionregv1.MatchPolicyType) *kind.Kind {
	for i := range rules {
		if q.Rule(&rules[i], q.Row) {
			return q.Row
		}
	}
	if policy == nil || *policy != admissionregv1.Equivalent || !q.maybe(rules) {
		return nil
	}
	others := q.equivalents()
	for i := range rules {
		for _, k := range others {
			if q.Rule(&rules[i], k) {
				return k
			}
		}
	}
	return nil
}

// maybe spares looking for other versions when no rule is about the operation.
func (q *Request) maybe(rules []admissionregv1.RuleWithOperations) bool {
	for i := range rules {
		if operation(rules[i].Operations, q.Operation) && q.scope(rules[i].Scope) {
			return true
		}
	}
	return false
}

func (q *Request) named(r *admissionregv1.NamedRuleWithOperations) bool {
	if len(r.ResourceNames) == 0 {
		return true
	}
	for _, n := range r.ResourceNames {
		if n == q.Name {
			return true
		}
	}
	return false
}

func (q *Request) namedRules(rules []admissionregv1.NamedRuleWithOperations, policy *admissionregv1.MatchPolicyType) *kind.Kind {
	for i := range rules {
		if q.Rule(&rules[i].RuleWithOperations, q.Row) && q.named(&rules[i]) {
			return q.Row
		}
	}
	if len(rules) == 0 || policy == nil || *policy == admissionregv1.Exact {
		return nil
	}
	others := q.equivalents()
	for i := range rules {
		for _, k := range others {
			if q.Rule(&rules[i].RuleWithOperations, k) && q.named(&rules[i]) {
				return k
			}
		}
	}
	return nil
}

// Selectors are the parsed selectors of a webhook, policy or binding.
type Selectors struct {
	Space, Object labels.Selector
	spaceErr      error
	objectErr     error
}

// ParseSelectors never fails: what is wrong with a selector is told when it would
// have decided.
func ParseSelectors(space, object *metav1.LabelSelector) Selectors {
	var s Selectors
	s.Space, s.spaceErr = metav1.LabelSelectorAsSelector(space)
	s.Object, s.objectErr = metav1.LabelSelectorAsSelector(object)
	return s
}

// Selected says whether both selectors take the request. An error counts only when
// the rules match too: held is to be returned then.
func (q *Request) Selected(s *Selectors) (ok bool, held error) {
	ok, err := q.inSpace(s)
	if !ok && err == nil {
		return false, nil
	}
	held = err
	ok, err = q.isObject(s)
	if !ok && err == nil {
		return false, nil
	}
	if held == nil {
		held = err
	}
	return true, held
}

func (q *Request) inSpace(s *Selectors) (bool, error) {
	if q.Space == "" && q.Kind != kind.Namespace {
		return true, nil
	}
	if s.spaceErr != nil {
		return false, apierrors.NewInternalError(s.spaceErr)
	}
	if s.Space.Empty() {
		return true, nil
	}
	if q.Kind == kind.Namespace && q.Sub == "" && q.Object != nil && (q.Operation == admit.Create || q.Operation == admit.Update) {
		return s.Space.Matches(labels.Set(q.Object.GetLabels())), nil
	}
	ns := q.Snapshot.Get(kind.Namespace, "", q.Space)
	if ns == nil {
		return false, apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, q.Space)
	}
	return s.Space.Matches(labels.Set(ns.GetLabels())), nil
}

func (q *Request) isObject(s *Selectors) (bool, error) {
	if s.objectErr != nil {
		return false, apierrors.NewInternalError(s.objectErr)
	}
	if s.Object.Empty() {
		return true, nil
	}
	if q.Body != nil {
		m, ok := q.Body.(metav1.Object)
		return ok && s.Object.Matches(labels.Set(m.GetLabels())), nil
	}
	return q.Object != nil && s.Object.Matches(labels.Set(q.Object.GetLabels())) ||
		q.Old != nil && s.Object.Matches(labels.Set(q.Old.GetLabels())), nil
}

// Resources finds the version in which the request is one of m, nil if in none; s
// are m's selectors. Without rules everything matches in the client's version.
func (q *Request) Resources(m *admissionregv1.MatchResources, s *Selectors) (*kind.Kind, error) {
	ok, held := q.Selected(s)
	if !ok {
		return nil, nil
	}
	if q.namedRules(m.ExcludeResourceRules, m.MatchPolicy) != nil {
		return nil, nil
	}
	row := q.Row
	if len(m.ResourceRules) > 0 {
		if row = q.namedRules(m.ResourceRules, m.MatchPolicy); row == nil {
			return nil, nil
		}
	}
	return row, held
}

// Attributes are the request in the library's form; objects are those of Kind.
func (q *Request) Attributes() admission.Attributes {
	if q.attrs == nil {
		q.attrs = q.attributes(q.object(), q.old())
	}
	return q.attrs
}

func (q *Request) attributes(object, old runtime.Object) admission.Attributes {
	return admission.NewAttributesRecord(object, old, q.KindOf(q.Row), q.Space, q.Name, q.Row.GVR(), q.Sub, admission.Operation(q.Operation), OptionsOf(q.Options), q.DryRun, userOf(q.Request))
}

func userOf(r *admit.Request) user.Info {
	return &user.DefaultInfo{Name: r.User.Name, UID: r.User.UID, Groups: r.User.Groups, Extra: r.User.Extra}
}

// OptionsOf is o with apiVersion and kind, as webhooks expect it.
func OptionsOf(o runtime.Object) runtime.Object {
	gv := schema.GroupVersion{Group: metav1.GroupName, Version: "v1"}
	var out runtime.Object
	name := ""
	switch t := o.(type) {
	case nil:
		return nil
	case *metav1.CreateOptions:
		c := *t
		out, name = &c, "CreateOptions"
	case *metav1.UpdateOptions:
		c := *t
		out, name = &c, "UpdateOptions"
	case *metav1.PatchOptions:
		c := *t
		out, name = &c, "PatchOptions"
	case *metav1.DeleteOptions:
		c := *t
		out, name = &c, "DeleteOptions"
	default:
		return o
	}
	out.GetObjectKind().SetGroupVersionKind(gv.WithKind(name))
	return out
}

// object is the new state as an interface that is nil when there is none.
func (q *Request) object() runtime.Object {
	switch {
	case q.Body != nil:
		return q.Body
	case q.Object != nil:
		return q.Object
	}
	return nil
}

func (q *Request) old() runtime.Object {
	if q.Body != nil || q.Old == nil {
		return nil
	}
	return q.Old
}

// Version is the request in the version of row, with apiVersion and kind in the
// objects. It is made once; Update changes it.
func (q *Request) Version(row *kind.Kind) (*admission.VersionedAttributes, error) {
	if v := q.versions[row]; v != nil {
		return v, nil
	}
	object, err := q.in(row, q.object())
	if err != nil {
		return nil, err
	}
	old, err := q.in(row, q.old())
	if err != nil {
		return nil, err
	}
	v := &admission.VersionedAttributes{Attributes: q.attributes(object, old), VersionedKind: q.KindOf(row)}
	if object != nil {
		v.VersionedObject.Set(object)
	}
	if old != nil {
		v.VersionedOldObject.Set(old)
	}
	if q.versions == nil {
		q.versions = map[*kind.Kind]*admission.VersionedAttributes{}
	}
	q.versions[row] = v
	return v, nil
}

// in converts one object to the version of row.
func (q *Request) in(row *kind.Kind, obj runtime.Object) (runtime.Object, error) {
	if obj == nil {
		return nil, nil
	}
	if q.Body != nil {
		if obj.GetObjectKind().GroupVersionKind().Empty() {
			obj.GetObjectKind().SetGroupVersionKind(q.KindOf(row))
		}
		return obj, nil
	}
	o := obj.(kind.Object)
	if q.Sub == "scale" && row.Scale != nil {
		return ScaleOf(row.Root(), o), nil
	}
	gvk := row.GVK()
	if row.Custom && o.GetObjectKind().GroupVersionKind() == gvk {
		return o, nil
	}
	if row.Stored != nil && row.FromStored != nil {
		out, err := row.FromStored(o)
		if err != nil {
			return nil, fmt.Errorf("convert %s %q to %s: %w", q.Kind, q.Name, row.Version, err)
		}
		if out.GetObjectKind().GroupVersionKind() != gvk {
			if out == o && o == q.Old {
				out = out.DeepCopyObject().(kind.Object)
			}
			out.GetObjectKind().SetGroupVersionKind(gvk)
		}
		return out, nil
	}
	if o.GetObjectKind().GroupVersionKind() != gvk {
		if o == q.Old {
			// Shared with everybody who reads.
			o = o.DeepCopyObject().(kind.Object)
		}
		o.GetObjectKind().SetGroupVersionKind(gvk)
	}
	return o, nil
}

// ErrNoObject: there is no new state that could be changed.
var ErrNoObject = errors.New("the request has no object")

// Update makes obj, which is of the version of row and complete, the new state of
// the request.
func (q *Request) Update(row *kind.Kind, obj runtime.Object) error {
	if q.object() == nil {
		return ErrNoObject
	}
	switch {
	case q.Body != nil:
		to, from := reflect.ValueOf(q.Body), reflect.ValueOf(obj)
		if to.Type() != from.Type() {
			return fmt.Errorf("change %s: it became a %T", q.Sub, obj)
		}
		// Whoever asks for admission holds on to the body.
		to.Elem().Set(from.Elem())
	case q.Sub == "scale" && row.Scale != nil:
		s, ok := obj.(*autoscalingv1.Scale)
		if !ok {
			return fmt.Errorf("change the scale of %s %q: it became a %T", q.Kind, q.Name, obj)
		}
		row.Root().Scale.SetSpecReplicas(q.Object, s.Spec.Replicas)
	default:
		o, ok := obj.(kind.Object)
		if !ok {
			return fmt.Errorf("change %s %q: it became a %T", q.Kind, q.Name, obj)
		}
		root := q.Kind.Root()
		switch {
		case row.Custom:
			// A custom object is admitted in the client's version; this prunes too.
			back, err := q.Row.FromStored(o)
			if err != nil {
				return apierrors.NewInternalError(fmt.Errorf("convert %s %q to %s: %w", q.Kind, q.Name, q.Row.Version, err))
			}
			back.GetObjectKind().SetGroupVersionKind(q.Row.GVK())
			o = back
		case row.Stored != nil && row.ToStored != nil:
			stored, err := row.ToStored(o)
			if err != nil {
				return apierrors.NewInternalError(fmt.Errorf("convert %s %q to %s: %w", q.Kind, q.Name, root.Version, err))
			}
			if o = stored; root.Default != nil {
				root.Default(o)
			}
			o.GetObjectKind().SetGroupVersionKind(root.GVK())
		}
		q.Object = o
	}
	q.attrs = nil
	clear(q.versions)
	return nil
}

// ScaleOf is the Scale of an object (autoscaling/v1).
func ScaleOf(k *kind.Kind, obj kind.Object) *autoscalingv1.Scale {
	s := &autoscalingv1.Scale{TypeMeta: metav1.TypeMeta{APIVersion: "autoscaling/v1", Kind: "Scale"},
		ObjectMeta: metav1.ObjectMeta{Name: obj.GetName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(),
			ResourceVersion: obj.GetResourceVersion(), CreationTimestamp: obj.GetCreationTimestamp()},
		Spec: autoscalingv1.ScaleSpec{Replicas: k.Scale.SpecReplicas(obj)}}
	s.Status.Replicas = k.Scale.StatusReplicas(obj)
	if k.Scale.Selector != nil {
		s.Status.Selector = k.Scale.Selector(obj)
	}
	return s
}

// New makes an empty object of the kind that the request exchanges in the version
// of row; nil for custom kinds, whose objects are unstructured.
func (q *Request) New(row *kind.Kind) (runtime.Object, error) {
	if q.Sub == "" || q.Sub == "status" || q.Body == nil && q.Sub != "scale" {
		return row.New(), nil
	}
	obj, err := kind.Scheme().New(q.KindOf(row))
	if err != nil {
		return nil, fmt.Errorf("make a %s: %w", q.KindOf(row), err)
	}
	return obj, nil
}

// Default completes obj, an object of the version of row.
func (q *Request) Default(row *kind.Kind, obj runtime.Object) {
	if o, ok := obj.(kind.Object); ok && q.Body == nil && q.Sub != "scale" && row.Default != nil {
		row.Default(o)
	}
}

// Forbidden is upstream's refusal by admission.
func (q *Request) Forbidden(err error) *apierrors.StatusError {
	name := q.Name
	if name == "" {
		name = "Unknown"
		if q.Object != nil && q.Object.GetGenerateName() != "" {
			name = q.Object.GetGenerateName()
		}
	}
	return apierrors.NewForbidden(q.Row.GroupResource(), name, err)
}
