package admit

import (
	"context"
	"fmt"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"proa.dev/kind"
	"proa.dev/kind/usage"
	"proa.dev/view"
)

// LimitRanger gives containers the defaults of their namespace's LimitRanges and
// holds pods and claims to the bounds (docs, "Limit Ranges").
func LimitRanger() Plugin {
	return Plugin{Name: "LimitRanger",
		Mutate: func(_ context.Context, r *Request) error {
			p := newPod(r)
			if p == nil {
				return nil
			}
			var said []string
			for l := range view.List[*corev1.LimitRange](r.Snapshot, kind.LimitRange, r.Namespace) {
				for _, item := range l.Spec.Limits {
					if item.Type == corev1.LimitTypeContainer {
						said = append(said, defaults(p.Spec.Containers, "container", item)...)
						said = append(said, defaults(p.Spec.InitContainers, "init container", item)...)
					}
				}
			}
			if len(said) > 0 {
				if p.Annotations == nil {
					p.Annotations = map[string]string{}
				}
				p.Annotations["kubernetes.io/limit-ranger"] = "LimitRanger plugin set: " + strings.Join(said, "; ")
			}
			return nil
		},
		Validate: func(_ context.Context, r *Request) error {
			switch k := r.Kind.Root(); {
			case r.Operation == Create && r.Sub == "":
			case r.Operation == Update && r.Sub == "" && k == kind.PersistentVolumeClaim:
			case r.Operation == Update && r.Sub == "resize" && k == kind.Pod:
			default:
				return nil
			}
			var errs []error
			for l := range view.List[*corev1.LimitRange](r.Snapshot, kind.LimitRange, r.Namespace) {
				for _, item := range l.Spec.Limits {
					errs = append(errs, within(item, r.Object)...)
				}
			}
			if len(errs) == 0 {
				return nil
			}
			return apierrors.NewForbidden(r.Kind.GroupResource(), r.Name, utilerrors.NewAggregate(errs))
		}}
}

// defaults fills in what containers left out and says so.
func defaults(list []corev1.Container, what string, item corev1.LimitRangeItem) []string {
	var said []string
	fill := func(name, of string, have *corev1.ResourceList, from corev1.ResourceList) {
		var set []string
		for _, n := range names(from) {
			if _, ok := (*have)[n]; !ok {
				if *have == nil {
					*have = corev1.ResourceList{}
				}
				(*have)[n] = from[n].DeepCopy()
				set = append(set, string(n))
			}
		}
		if len(set) > 0 {
			said = append(said, fmt.Sprintf("%s %s for %s %s", strings.Join(set, ", "), of, what, name))
		}
	}
	for i := range list {
		c := &list[i]
		fill(c.Name, "request", &c.Resources.Requests, item.DefaultRequest)
		fill(c.Name, "limit", &c.Resources.Limits, item.Default)
	}
	return said
}

func within(item corev1.LimitRangeItem, o kind.Object) []error {
	switch o := o.(type) {
	case *corev1.Pod:
		switch item.Type {
		case corev1.LimitTypeContainer:
			var errs []error
			for _, list := range [][]corev1.Container{o.Spec.Containers, o.Spec.InitContainers} {
				for i := range list {
					errs = append(errs, bounds(item, list[i].Resources.Requests, list[i].Resources.Limits)...)
				}
			}
			return errs
		case corev1.LimitTypePod:
			return bounds(item, usage.PodRequests(o), usage.PodLimits(o))
		}
	case *corev1.PersistentVolumeClaim:
		if item.Type == corev1.LimitTypePersistentVolumeClaim {
			var errs []error
			got := o.Spec.Resources.Requests[corev1.ResourceStorage]
			if lo, ok := item.Min[corev1.ResourceStorage]; ok && got.Cmp(lo) < 0 {
				errs = append(errs, fmt.Errorf("minimum storage usage per PersistentVolumeClaim is %s, but request is %s", lo.String(), got.String()))
			}
			if hi, ok := item.Max[corev1.ResourceStorage]; ok && got.Cmp(hi) > 0 {
				errs = append(errs, fmt.Errorf("maximum storage usage per PersistentVolumeClaim is %s, but request is %s", hi.String(), got.String()))
			}
			return errs
		}
	}
	return nil
}

// bounds compares as upstream does, with its words: one complaint for each
// resource and rule.
func bounds(item corev1.LimitRangeItem, requests, limits corev1.ResourceList) []error {
	var errs []error
	say := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, n := range names(item.Min) {
		lo := item.Min[n]
		req, hasReq := requests[n]
		lim, hasLim := limits[n]
		switch {
		case !hasReq:
			say("minimum %s usage per %s is %s.  No request is specified", n, item.Type, lo.String())
		case req.Cmp(lo) < 0:
			say("minimum %s usage per %s is %s, but request is %s", n, item.Type, lo.String(), req.String())
		case hasLim && lim.Cmp(lo) < 0:
			say("minimum %s usage per %s is %s, but limit is %s", n, item.Type, lo.String(), lim.String())
		}
	}
	for _, n := range names(item.Max) {
		hi := item.Max[n]
		req, hasReq := requests[n]
		lim, hasLim := limits[n]
		switch {
		case !hasLim:
			say("maximum %s usage per %s is %s.  No limit is specified", n, item.Type, hi.String())
		case lim.Cmp(hi) > 0:
			say("maximum %s usage per %s is %s, but limit is %s", n, item.Type, hi.String(), lim.String())
		case hasReq && req.Cmp(hi) > 0:
			say("maximum %s usage per %s is %s, but request is %s", n, item.Type, hi.String(), req.String())
		}
	}
	for _, n := range names(item.MaxLimitRequestRatio) {
		ratio := item.MaxLimitRequestRatio[n]
		req, lim := requests[n], limits[n]
		got := float64(lim.MilliValue()) / float64(req.MilliValue())
		switch {
		case req.IsZero():
			say("%s max limit to request ratio per %s is %s, but no request is specified or request is 0", n, item.Type, ratio.String())
		case lim.IsZero():
			say("%s max limit to request ratio per %s is %s, but no limit is specified or limit is 0", n, item.Type, ratio.String())
		case got > float64(ratio.MilliValue())/1000:
			say("%s max limit to request ratio per %s is %s, but provided ratio is %f", n, item.Type, ratio.String(), got)
		}
	}
	return errs
}

func names(l corev1.ResourceList) []corev1.ResourceName {
	var out []corev1.ResourceName
	for n := range l {
		out = append(out, n)
	}
	sort.Slice(out, func(i, j int) bool { return out[i] < out[j] })
	return out
}

// show is "a=1,b=2" in order of names.
func show(l corev1.ResourceList, only []corev1.ResourceName) string {
	var parts []string
	for _, n := range only {
		q := l[n]
		parts = append(parts, string(n)+"="+q.String())
	}
	return strings.Join(parts, ",")
}

func sum(a, b resource.Quantity) resource.Quantity {
	c := a.DeepCopy()
	c.Add(b)
	return c
}
