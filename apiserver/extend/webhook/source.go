package webhook

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	admissionregv1 "k8s.io/api/admissionregistration/v1"

	"proa.dev/apiserver/extend/expr"
	"proa.dev/apiserver/extend/hook"
	"proa.dev/apiserver/extend/match"
	"proa.dev/kind"
	"proa.dev/view"
)

// webhook is one webhook of a configuration, parsed once.
type webhook struct {
	name, config string
	id           string // config, name and occurrence
	target       hook.Target
	rules        []admissionregv1.RuleWithOperations
	policy       *admissionregv1.MatchPolicyType
	selectors    match.Selectors
	failure      *admissionregv1.FailurePolicyType
	sideEffects  *admissionregv1.SideEffectClass
	timeout      time.Duration
	versions     []string
	reinvoke     bool

	list       []admissionregv1.MatchCondition
	compile    sync.Once
	conditions *expr.Conditions
}

// match conditions are compiled when a request first meets the rules.
func (w *webhook) matchConditions() *expr.Conditions {
	w.compile.Do(func() { w.conditions = expr.CompileConditions(w.list, nil) })
	return w.conditions
}

func (w *webhook) ignores() bool {
	return w.failure != nil && *w.failure == admissionregv1.Ignore
}

// source is the webhooks of all configurations of a kind, in the order of their
// configurations' names.
type source struct {
	kind  *kind.Kind
	parse func(kind.Object) []*webhook
	last  atomic.Pointer[parsed]
}

// parsed is what was made of the configurations of some snapshot.
type parsed struct {
	objects []kind.Object
	each    [][]*webhook
	all     []*webhook
}

// in are the webhooks of a snapshot. Nothing is made anew while the configurations
// stay as they are.
func (s *source) in(snap view.Snapshot) []*webhook {
	n := snap.Len(s.kind)
	if n == 0 {
		return nil
	}
	last := s.last.Load()
	if last != nil && len(last.objects) == n {
		same, i := true, 0
		for o := range snap.All(s.kind, "") {
			if last.objects[i] != o {
				same = false
				break
			}
			i++
		}
		if same {
			return last.all
		}
	}
	next := &parsed{}
	for o := range snap.All(s.kind, "") {
		var hooks []*webhook
		if last != nil {
			if i := slices.Index(last.objects, o); i >= 0 {
				hooks = last.each[i]
			}
		}
		if hooks == nil {
			hooks = s.parse(o)
		}
		next.objects = append(next.objects, o)
		next.each = append(next.each, hooks)
		next.all = append(next.all, hooks...)
	}
	s.last.Store(next)
	return next.all
}

// common is what both kinds of webhooks have.
type common struct {
	name       string
	client     *admissionregv1.WebhookClientConfig
	rules      []admissionregv1.RuleWithOperations
	failure    *admissionregv1.FailurePolicyType
	policy     *admissionregv1.MatchPolicyType
	effects    *admissionregv1.SideEffectClass
	timeout    *int32
	versions   []string
	conditions []admissionregv1.MatchCondition
}

func newWebhook(config string, seen map[string]int, c common, selectors match.Selectors) *webhook {
	w := &webhook{name: c.name, config: config, id: fmt.Sprintf("%s/%s/%d", config, c.name, seen[c.name]), rules: c.rules, policy: c.policy,
		selectors: selectors, failure: c.failure, sideEffects: c.effects, versions: c.versions, list: c.conditions}
	seen[c.name]++
	if c.timeout != nil {
		w.timeout = time.Duration(*c.timeout) * time.Second
	}
	w.target.CABundle = c.client.CABundle
	switch {
	case c.client.Service != nil:
		s := c.client.Service
		w.target.Service = &hook.Service{Namespace: s.Namespace, Name: s.Name}
		if s.Path != nil {
			w.target.Service.Path = *s.Path
		}
		if s.Port != nil {
			w.target.Service.Port = *s.Port
		}
	case c.client.URL != nil:
		w.target.URL = *c.client.URL
	}
	return w
}

func parseMutating(o kind.Object) []*webhook {
	c := o.(*admissionregv1.MutatingWebhookConfiguration)
	out, seen := make([]*webhook, 0, len(c.Webhooks)), map[string]int{}
	for i := range c.Webhooks {
		h := &c.Webhooks[i]
		w := newWebhook(c.Name, seen, common{h.Name, &h.ClientConfig, h.Rules, h.FailurePolicy, h.MatchPolicy, h.SideEffects, h.TimeoutSeconds, h.AdmissionReviewVersions, h.MatchConditions},
			match.ParseSelectors(h.NamespaceSelector, h.ObjectSelector))
		w.reinvoke = h.ReinvocationPolicy != nil && *h.ReinvocationPolicy == admissionregv1.IfNeededReinvocationPolicy
		out = append(out, w)
	}
	return out
}

func parseValidating(o kind.Object) []*webhook {
	c := o.(*admissionregv1.ValidatingWebhookConfiguration)
	out, seen := make([]*webhook, 0, len(c.Webhooks)), map[string]int{}
	for i := range c.Webhooks {
		h := &c.Webhooks[i]
		out = append(out, newWebhook(c.Name, seen, common{h.Name, &h.ClientConfig, h.Rules, h.FailurePolicy, h.MatchPolicy, h.SideEffects, h.TimeoutSeconds, h.AdmissionReviewVersions, h.MatchConditions},
			match.ParseSelectors(h.NamespaceSelector, h.ObjectSelector)))
	}
	return out
}
