package admit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/kind"
	"proa.dev/kind/usage"
	"proa.dev/view"
)

// Quota holds namespaces to their ResourceQuotas. It counts what the view holds
// now, not the status that a controller wrote some time ago, plus what has been
// promised to requests that the view does not show yet, under one lock: two
// requests can never both take the last place.
//
// The count of each quota follows the view's changes, so that an admission costs
// the changes since the last one and not the objects of the namespace. A promise
// ends when the view shows its write, or the request failed.
type Quota struct {
	View   *view.View
	Tokens Tokens // nil: no other server writes

	mu       sync.Mutex
	promised map[*Request]*promise
	tallies  map[tallyKey]*tally
	since    map[*kind.Kind]int64 // the view's changes up to here are settled
}

// promise is what a request may turn into. base is the revision of the object
// that it replaces, 0 for a new one.
type promise struct {
	k      *kind.Kind
	object kind.Object // a copy
	base   int64
	until  time.Time
}

// tally is what one quota counts of one kind, at a revision of the view.
type tally struct {
	quota *corev1.ResourceQuota
	at    int64
	used  corev1.ResourceList
}

type tallyKey struct {
	quota types.UID
	k     *kind.Kind
}

// A promise whose write the view never shows (a crash between admission and
// store) ends by itself.
const promiseLife = time.Minute

// Plugin is the admission step; it must be the last.
func (q *Quota) Plugin() Plugin {
	return Plugin{Name: "ResourceQuota", Validate: q.check, Release: q.release}
}

func (q *Quota) release(r *Request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.promised, r)
}

func (q *Quota) check(ctx context.Context, r *Request) error {
	if r.Sub != "" && r.Sub != "resize" || r.Object == nil || r.Kind.Scope != kind.Namespaced || r.Kind.Virtual || r.Operation != Create && r.Operation != Update {
		return nil
	}
	k := r.Kind.Root()
	if q.Tokens != nil && q.covers(k, r) {
		if err := q.Tokens.Hold(ctx, "quota/"+r.Namespace, r); err != nil {
			return err
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	// The newest state, taken under the lock: a promise ends only when it is counted.
	s := q.View.Snapshot()
	var quotas []*corev1.ResourceQuota
	for quota := range view.List[*corev1.ResourceQuota](s, kind.ResourceQuota, r.Namespace) {
		if usage.Matches(quota, k, r.Object) {
			quotas = append(quotas, quota)
		}
	}
	if len(quotas) == 0 {
		return nil
	}
	q.settle(s, k, r.Now)
	need := usage.Of(k, r.Object)
	var before corev1.ResourceList
	if r.Old != nil {
		before = usage.Of(k, r.Old)
	}
	for _, quota := range quotas {
		had := before
		if r.Old != nil && !usage.Matches(quota, k, r.Old) {
			had = nil // it moves into the quota's scope
		}
		if err := q.fits(s, r, quota, k, need, had); err != nil {
			return apierrors.NewForbidden(r.Kind.GroupResource(), r.Name, err)
		}
	}
	if !r.DryRun {
		if q.promised == nil {
			q.promised = map[*Request]*promise{}
		}
		p := &promise{k: k, object: r.Object.DeepCopyObject().(kind.Object), until: r.Now.Add(promiseLife)}
		if r.Old != nil {
			p.base = revisionOf(r.Old)
		}
		q.promised[r] = p
	}
	return nil
}

// covers says whether a quota counts the request's object.
func (q *Quota) covers(k *kind.Kind, r *Request) bool {
	for quota := range view.List[*corev1.ResourceQuota](q.View.Snapshot(), kind.ResourceQuota, r.Namespace) {
		if usage.Matches(quota, k, r.Object) {
			return true
		}
	}
	return false
}

// settle drops the promises of a kind that the snapshot shows, and old ones.
func (q *Quota) settle(s view.Snapshot, k *kind.Kind, now time.Time) {
	if q.since == nil {
		q.since = map[*kind.Kind]int64{}
	}
	changes, _, _, err := q.View.Changes(k, q.since[k])
	q.since[k] = s.Revision()
	shown := map[types.UID]int64{}
	for _, c := range changes {
		if c.Revision > s.Revision() {
			break
		}
		shown[uidOf(c)] = c.Revision
	}
	for r, p := range q.promised {
		switch {
		case now.After(p.until):
			delete(q.promised, r)
		case p.k != k:
		case err != nil:
			// Too much has happened since: what is there says it.
			if o := s.Get(k, p.object.GetNamespace(), p.object.GetName()); o != nil && o.GetUID() == p.object.GetUID() && revisionOf(o) > p.base {
				delete(q.promised, r)
			}
		case shown[p.object.GetUID()] > p.base:
			delete(q.promised, r)
		}
	}
}

func uidOf(c *view.Change) types.UID {
	if c.New != nil {
		return c.New.GetUID()
	}
	return c.Last.GetUID()
}

// count is what quota counts of kind k in the snapshot, which is the newest.
func (q *Quota) count(s view.Snapshot, quota *corev1.ResourceQuota, k *kind.Kind) corev1.ResourceList {
	key := tallyKey{quota.UID, k}
	t := q.tallies[key]
	if t != nil && apiequality.Semantic.DeepEqual(t.quota.Spec.Scopes, quota.Spec.Scopes) && apiequality.Semantic.DeepEqual(t.quota.Spec.ScopeSelector, quota.Spec.ScopeSelector) {
		changes, _, _, err := q.View.Changes(k, t.at)
		if err == nil {
			for _, c := range changes {
				if c.Revision > s.Revision() {
					break
				}
				if c.Old != nil && c.Old.GetNamespace() == quota.Namespace && usage.Matches(quota, k, c.Old) {
					for n, v := range usage.Of(k, c.Old) {
						have := t.used[n]
						have.Sub(v)
						t.used[n] = have
					}
				}
				if c.New != nil && c.New.GetNamespace() == quota.Namespace && usage.Matches(quota, k, c.New) {
					merge(t.used, usage.Of(k, c.New))
				}
			}
			t.quota, t.at = quota, s.Revision()
			return t.used
		}
	}
	t = &tally{quota: quota, at: s.Revision(), used: corev1.ResourceList{}}
	for o := range s.All(k, quota.Namespace) {
		if usage.Matches(quota, k, o) {
			merge(t.used, usage.Of(k, o))
		}
	}
	if q.tallies == nil || len(q.tallies) >= maxTallies {
		q.tallies = map[tallyKey]*tally{}
	}
	q.tallies[key] = t
	return t.used
}

// maxTallies bounds what is remembered of quotas that may be gone.
const maxTallies = 4096

func merge(to, from corev1.ResourceList) {
	for n, v := range from {
		have := to[n]
		have.Add(v)
		to[n] = have
	}
}

func (q *Quota) fits(s view.Snapshot, r *Request, quota *corev1.ResourceQuota, k *kind.Kind, need, before corev1.ResourceList) error {
	hard := names(quota.Spec.Hard)
	if pod, ok := r.Object.(*corev1.Pod); ok && r.Operation == Create && !usage.Ended(pod) {
		if missing := unsaid(pod, hard); missing != "" {
			return fmt.Errorf("failed quota: %s: must specify %s", quota.Name, missing)
		}
	}
	delta := corev1.ResourceList{}
	var touched []corev1.ResourceName
	for _, n := range hard {
		want, uses := need[n]
		if !uses {
			continue
		}
		want = want.DeepCopy()
		want.Sub(before[n])
		if want.Sign() > 0 { // what asks for no more is let through
			delta[n] = want
			touched = append(touched, n)
		}
	}
	if len(touched) == 0 {
		return nil
	}
	used := corev1.ResourceList{}
	counted := q.count(s, quota, k)
	for _, n := range touched {
		used[n] = counted[n].DeepCopy()
	}
	for other, p := range q.promised {
		if p.k != k || other == r || p.object.GetNamespace() != quota.Namespace || !usage.Matches(quota, k, p.object) {
			continue
		}
		add := usage.Of(k, p.object)
		if p.base != 0 {
			// What the promised one replaces is in the count already.
			if o := s.Get(k, p.object.GetNamespace(), p.object.GetName()); o != nil && o.GetUID() == p.object.GetUID() && usage.Matches(quota, k, o) {
				for n, v := range usage.Of(k, o) {
					if w, ok := add[n]; ok {
						w.Sub(v)
						add[n] = w
					}
				}
			}
		}
		for _, n := range touched {
			if v, ok := add[n]; ok && v.Sign() > 0 {
				used[n] = sum(used[n], v)
			}
		}
	}
	var over []corev1.ResourceName
	for _, n := range touched {
		if total := sum(used[n], delta[n]); total.Cmp(quota.Spec.Hard[n]) > 0 {
			over = append(over, n)
		}
	}
	if len(over) == 0 {
		return nil
	}
	return fmt.Errorf("exceeded quota: %s, requested: %s, used: %s, limited: %s", quota.Name, show(delta, over), show(used, over), show(quota.Spec.Hard, over))
}

// unsaid: a quota on compute resources is only meaningful when every container
// says its share; "limits.cpu for: a,b; memory for: b", or "".
func unsaid(p *corev1.Pod, hard []corev1.ResourceName) string {
	var parts []string
	for _, n := range hard {
		limit := false
		base := n
		switch n {
		case corev1.ResourceCPU, corev1.ResourceMemory:
		case corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory:
			var kindOf string
			kindOf, name, _ := strings.Cut(string(n), ".")
			limit, base = kindOf == "limits", corev1.ResourceName(name)
		default:
			continue
		}
		says := func(r *corev1.ResourceRequirements) bool {
			list := r.Requests
			if limit {
				list = r.Limits
			}
			_, ok := list[base]
			return ok
		}
		if p.Spec.Resources != nil && says(p.Spec.Resources) {
			continue // the pod says it for all of them
		}
		var silent []string
		for _, list := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
			for i := range list {
				if !says(&list[i].Resources) {
					silent = append(silent, list[i].Name)
				}
			}
		}
		if len(silent) > 0 {
			slices.Sort(silent)
			parts = append(parts, fmt.Sprintf("%s for: %s", n, strings.Join(silent, ",")))
		}
	}
	return strings.Join(parts, "; ")
}
