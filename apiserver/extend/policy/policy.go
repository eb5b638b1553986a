// Package policy carries out ValidatingAdmissionPolicies and
// MutatingAdmissionPolicies (Kubernetes docs, pages of those names): rules and
// selectors by package match, expressions by package expr.
//
// A policy works through its bindings, in the order of the policies' and then the
// bindings' names. Parameters are any kind of the snapshot's table, custom ones too,
// in the version that paramKind names. Expressions are compiled when a request first
// meets a policy's rules, once for each generation of it. The cost budget of an
// evaluation bounds its time; messages, reasons, warnings and audit annotations are
// upstream's.
//
// Without any policy a write costs one look into the snapshot.
package policy

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	admissionregv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/auth"
	"proa.dev/apiserver/extend/expr"
	"proa.dev/apiserver/extend/match"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/view"
)

// Names of the plugins.
const (
	MutatingName   = "MutatingAdmissionPolicy"
	ValidatingName = "ValidatingAdmissionPolicy"
)

// Config of Policies. Authz is needed.
type Config struct {
	Authz auth.Authorizer // what authorizer asks
	// TypeConverter merges objects of a row with apply configurations; asked on use.
	TypeConverter func(row *kind.Kind) (managedfields.TypeConverter, error)
	Clock         env.Clock   // nil: the system's
	Meter         match.Meter // nil: nothing is counted
	Log           *slog.Logger
}

// Policies carries policies out. New makes it; it starts nothing.
type Policies struct {
	cfg        Config
	authz      expr.Authorizer
	validating source[*validating]
	mutating   source[*mutating]
}

// New makes the evaluator of policies.
func New(cfg Config) *Policies {
	if cfg.Clock == nil {
		cfg.Clock = env.SystemClock()
	}
	if cfg.Meter == nil {
		cfg.Meter = match.NoMeter{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Policies{cfg: cfg, authz: expr.Authorizer{Authorizer: cfg.Authz},
		validating: source[*validating]{policies: kind.ValidatingAdmissionPolicy, bindings: kind.ValidatingAdmissionPolicyBinding, parse: parseValidating, bind: bindValidating},
		mutating:   source[*mutating]{policies: kind.MutatingAdmissionPolicy, bindings: kind.MutatingAdmissionPolicyBinding, parse: parseMutating, bind: bindMutating}}
}

// Mutating is the plugin of mutating policies.
func (p *Policies) Mutating() admit.Plugin { return admit.Plugin{Name: MutatingName, Mutate: p.mutate} }

// Validating is the plugin of validating policies.
func (p *Policies) Validating() admit.Plugin {
	return admit.Plugin{Name: ValidatingName, Validate: p.validate}
}

// head is what both kinds of policies have.
type head struct {
	name      string
	uid       types.UID
	gen       int64
	match     *admissionregv1.MatchResources
	selectors match.Selectors
	params    *admissionregv1.ParamKind
	failure   *admissionregv1.FailurePolicyType
	bindings  []*binding

	compile sync.Once
}

func (h *head) ignores() bool { return h.failure != nil && *h.failure == admissionregv1.Ignore }

func (h *head) base() *head { return h }

// binding puts a policy to work.
type binding struct {
	name      string
	policy    string
	ref       *admissionregv1.ParamRef
	match     *admissionregv1.MatchResources // nil: as the policy says
	selectors match.Selectors
	actions   []admissionregv1.ValidationAction
}

// source is the policies of a kind with their bindings.
type source[P interface{ base() *head }] struct {
	policies, bindings *kind.Kind
	parse              func(kind.Object) P
	bind               func(kind.Object) *binding

	last atomic.Pointer[parsed[P]]
}

type parsed[P any] struct {
	objects []kind.Object // policies, then bindings
	active  []P           // with at least one binding
	known   map[types.UID]P
}

// in are the active policies of a snapshot. A policy whose generation is the same
// keeps what was compiled of it, unless its bindings changed: compiled parts are
// shared through share.
func (s *source[P]) in(snap view.Snapshot) []P {
	policies, bindings := snap.Len(s.policies), snap.Len(s.bindings)
	if policies == 0 || bindings == 0 {
		return nil
	}
	last := s.last.Load()
	if last != nil && len(last.objects) == policies+bindings {
		i, same := 0, true
		for _, k := range [2]*kind.Kind{s.policies, s.bindings} {
			for o := range snap.All(k, "") {
				if i >= len(last.objects) || last.objects[i] != o {
					same = false
					break
				}
				i++
			}
		}
		if same {
			return last.active
		}
	}
	next := &parsed[P]{known: map[types.UID]P{}}
	byPolicy := map[string][]*binding{}
	for o := range snap.All(s.policies, "") {
		next.objects = append(next.objects, o)
	}
	for o := range snap.All(s.bindings, "") {
		next.objects = append(next.objects, o)
		b := s.bind(o)
		byPolicy[b.policy] = append(byPolicy[b.policy], b)
	}
	for _, o := range next.objects[:policies] {
		p := s.parse(o)
		h := p.base()
		if h.bindings = byPolicy[h.name]; len(h.bindings) == 0 {
			continue
		}
		if last != nil {
			if old, ok := last.known[h.uid]; ok && old.base().gen == h.gen {
				if slices.EqualFunc(old.base().bindings, h.bindings, func(a, b *binding) bool { return a == b }) {
					p = old
				} else if t, ok := any(p).(interface{ share(any) }); ok {
					t.share(old)
				}
			}
		}
		next.known[h.uid] = p
		next.active = append(next.active, p)
	}
	s.last.Store(next)
	return next.active
}

// namespaceOf is the Namespace that a request lies in; nil for cluster-scoped ones.
func namespaceOf(q *match.Request) (*corev1.Namespace, error) {
	if q.Space == "" || q.Kind == kind.Namespace {
		return nil, nil
	}
	ns := view.Get[*corev1.Namespace](q.Snapshot, kind.Namespace, "", q.Space)
	if ns == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, q.Space)
	}
	return ns, nil
}

// bound says whether a binding takes the request.
func (b *binding) bound(q *match.Request) (bool, error) {
	if b.match == nil {
		return true, nil
	}
	row, err := q.Resources(b.match, &b.selectors)
	return row != nil, err
}

// cut shortens s to most bytes without tearing a character.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	s = s[:most]
	for len(s) > 0 && !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}

func selectorsOf(m *admissionregv1.MatchResources) match.Selectors {
	if m == nil {
		return match.ParseSelectors(&metav1.LabelSelector{}, &metav1.LabelSelector{})
	}
	return match.ParseSelectors(m.NamespaceSelector, m.ObjectSelector)
}

// annotate hands an annotation to the audit.
func annotate(ctx context.Context, key, value string) { admit.Annotate(ctx, key, value) }
