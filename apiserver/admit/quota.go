package admit

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/kind"
	"proa.dev/kind/usage"
	"proa.dev/view"
)

// Quota holds namespaces to their ResourceQuotas. It counts what the view holds
// now, not the status that a controller wrote some time ago, plus what has been
// promised to requests that are not visible yet, under one lock: two requests
// can never both take the last place.
type Quota struct {
	View *view.View

	mu       sync.Mutex
	promised map[string]map[promise]claim // namespace → who → what
}

type promise struct {
	k    *kind.Kind
	uid  types.UID
	name string
}

type claim struct {
	object kind.Object
	until  time.Time
}

// A promise that nobody redeems (a crash between admission and store) ends by
// itself.
const promiseLife = time.Minute

// Plugin is the admission step; it must be the last.
func (q *Quota) Plugin() Plugin {
	return Plugin{Name: "ResourceQuota", Validate: q.check, Release: q.release}
}

func (q *Quota) release(r *Request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if r.Object != nil {
		delete(q.promised[r.Namespace], promiseOf(r))
	}
}

func promiseOf(r *Request) promise {
	return promise{r.Kind.Root(), r.Object.GetUID(), r.Object.GetName()}
}

func (q *Quota) check(_ context.Context, r *Request) error {
	if r.Sub != "" && r.Sub != "resize" || r.Object == nil || r.Kind.Scope != kind.Namespaced || r.Kind.Virtual || r.Operation != Create && r.Operation != Update {
		return nil
	}
	var quotas []*corev1.ResourceQuota
	k := r.Kind.Root()
	for quota := range view.List[*corev1.ResourceQuota](r.Snapshot, kind.ResourceQuota, r.Namespace) {
		if usage.Matches(quota, k, r.Object) {
			quotas = append(quotas, quota)
		}
	}
	if len(quotas) == 0 {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	need := usage.Of(k, r.Object)
	var before corev1.ResourceList
	if r.Old != nil {
		before = usage.Of(k, r.Old)
	}
	// The newest state, taken under the lock: a promise ends only when it is counted.
	s := q.View.Snapshot()
	q.settle(s, r)
	for _, quota := range quotas {
		if err := q.fits(s, r, quota, k, need, before); err != nil {
			return apierrors.NewForbidden(r.Kind.GroupResource(), r.Name, err)
		}
	}
	if r.Operation == Create && !r.DryRun {
		if q.promised == nil {
			q.promised = map[string]map[promise]claim{}
		}
		if q.promised[r.Namespace] == nil {
			q.promised[r.Namespace] = map[promise]claim{}
		}
		q.promised[r.Namespace][promiseOf(r)] = claim{r.Object, r.Now.Add(promiseLife)}
	}
	return nil
}

// settle drops promises that are visible or over.
func (q *Quota) settle(s view.Snapshot, r *Request) {
	for p, c := range q.promised[r.Namespace] {
		have := s.Get(p.k, r.Namespace, p.name)
		if have != nil && (p.uid == "" || have.GetUID() == p.uid) || r.Now.After(c.until) {
			delete(q.promised[r.Namespace], p)
		}
	}
}

func (q *Quota) fits(s view.Snapshot, r *Request, quota *corev1.ResourceQuota, k *kind.Kind, need, before corev1.ResourceList) error {
	var touched, missing []corev1.ResourceName
	for _, n := range names(quota.Spec.Hard) {
		want, uses := need[n]
		if !uses {
			if pod, ok := r.Object.(*corev1.Pod); ok && r.Operation == Create && mustSet(n) && !usage.Ended(pod) {
				missing = append(missing, n)
			}
			continue
		}
		if old, had := before[n]; had && want.Cmp(old) <= 0 {
			continue // not more than before
		}
		touched = append(touched, n)
	}
	if len(missing) > 0 {
		parts := make([]string, len(missing))
		for i, n := range missing {
			parts[i] = string(n)
		}
		return fmt.Errorf("failed quota: %s: must specify %s for: %s", quota.Name, strings.Join(parts, ","), containersWithout(r.Object.(*corev1.Pod), missing))
	}
	if len(touched) == 0 {
		return nil
	}
	used := corev1.ResourceList{}
	count := func(o kind.Object) {
		if !usage.Matches(quota, k, o) {
			return
		}
		u := usage.Of(k, o)
		for _, n := range touched {
			if v, ok := u[n]; ok {
				used[n] = sum(used[n], v)
			}
		}
	}
	for o := range s.All(k, r.Namespace) {
		if r.Old == nil || o.GetName() != r.Old.GetName() {
			count(o)
		}
	}
	for p, c := range q.promised[r.Namespace] {
		if p.k == k {
			count(c.object)
		}
	}
	var over []corev1.ResourceName
	for _, n := range touched {
		hard := quota.Spec.Hard[n]
		if total := sum(used[n], need[n]); total.Cmp(hard) > 0 {
			over = append(over, n)
		}
	}
	if len(over) == 0 {
		return nil
	}
	return fmt.Errorf("exceeded quota: %s, requested: %s, used: %s, limited: %s", quota.Name, show(need, over), show(used, over), show(quota.Spec.Hard, over))
}

// mustSet: a quota on these is only meaningful when every pod says its share.
func mustSet(n corev1.ResourceName) bool {
	switch n {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory:
		return true
	}
	return false
}

func containersWithout(p *corev1.Pod, missing []corev1.ResourceName) string {
	var out []string
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		lacks := false
		for _, n := range missing {
			list := c.Resources.Requests
			if strings.HasPrefix(string(n), "limits.") {
				list = c.Resources.Limits
			}
			base := corev1.ResourceName(strings.TrimPrefix(strings.TrimPrefix(string(n), "limits."), "requests."))
			if _, ok := list[base]; !ok {
				lacks = true
			}
		}
		if lacks {
			out = append(out, c.Name)
		}
	}
	return strings.Join(out, ",")
}
