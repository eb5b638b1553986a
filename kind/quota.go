package kind

import (
	"fmt"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind/validate"
)

// LimitRange bounds single objects of a namespace.
var LimitRange = define[corev1.LimitRangeList](Row[*corev1.LimitRange]{
	Names: Names{
		Group: "", Version: "v1", Kind: "LimitRange", Plural: "limitranges",
		ShortNames: []string{"limits"},
		Scope:      Namespaced,
		Prefix:     "limitranges",
	},
	Validate:            validate.LimitRange,
	ValidateUpdate:      validate.LimitRangeUpdate,
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
	Default: func(l *corev1.LimitRange) {
		for i := range l.Spec.Limits {
			defaultLimit(&l.Spec.Limits[i])
		}
	},
	Columns: columnsExactly("Name, Created At:date"),
	Cells: func(l *corev1.LimitRange, _ time.Time) []any {
		return []any{l.Name, createdAt(l)}
	},
})

// createdAt is the cell of kinds that show when they were made instead of their age.
func createdAt(obj metav1.Object) string {
	return obj.GetCreationTimestamp().UTC().Format(time.RFC3339)
}

// defaultLimit derives, for containers, default limits from the maximum and
// default requests from default limits, then from the minimum.
func defaultLimit(item *corev1.LimitRangeItem) {
	for _, list := range []corev1.ResourceList{item.Max, item.Min, item.Default, item.DefaultRequest, item.MaxLimitRequestRatio} {
		roundQuantities(list)
	}
	if item.Type != corev1.LimitTypeContainer {
		return
	}
	derive := func(to *corev1.ResourceList, from corev1.ResourceList) {
		for name, q := range from {
			if _, ok := (*to)[name]; !ok {
				if *to == nil {
					*to = corev1.ResourceList{}
				}
				(*to)[name] = q.DeepCopy()
			}
		}
	}
	derive(&item.Default, item.Max)
	derive(&item.DefaultRequest, item.Default)
	derive(&item.DefaultRequest, item.Min)
}

// ResourceQuota bounds what a namespace holds in sum.
var ResourceQuota = define[corev1.ResourceQuotaList](Row[*corev1.ResourceQuota]{
	Names: Names{
		Group: "", Version: "v1", Kind: "ResourceQuota", Plural: "resourcequotas",
		ShortNames: []string{"quota"},
		Scope:      Namespaced,
		Prefix:     "resourcequotas",
	},
	Validate:            validate.ResourceQuota,
	ValidateUpdate:      validate.ResourceQuotaUpdate,
	UnconditionalUpdate: true,
	Default: func(q *corev1.ResourceQuota) {
		roundQuantities(q.Spec.Hard)
		roundQuantities(q.Status.Hard)
		roundQuantities(q.Status.Used)
	},
	PrepareCreate: func(q *corev1.ResourceQuota) { q.Status = corev1.ResourceQuotaStatus{} },
	PrepareUpdate: func(new, old *corev1.ResourceQuota) { new.Status = old.Status },
	Status: &DoorOf[*corev1.ResourceQuota]{
		ValidateUpdate: validate.ResourceQuotaStatusUpdate,
		PrepareUpdate:  func(new, old *corev1.ResourceQuota) { new.Spec = old.Spec },
	},
	Columns: columns("Request, Limit"),
	Cells: func(q *corev1.ResourceQuota, now time.Time) []any {
		requests, limits := quotaCells(q)
		return []any{q.Name, requests, limits, age(q, now)}
	},
})

// quotaCells print used/hard of each resource, limits apart from the rest.
func quotaCells(q *corev1.ResourceQuota) (requests, limits string) {
	names := make([]string, 0, len(q.Status.Hard))
	for name := range q.Status.Hard {
		names = append(names, string(name))
	}
	sort.Strings(names)
	var r, l []string
	for _, name := range names {
		used, hard := q.Status.Used[corev1.ResourceName(name)], q.Status.Hard[corev1.ResourceName(name)]
		text := fmt.Sprintf("%s: %s/%s", name, used.String(), hard.String())
		if strings.HasPrefix(name, "limits.") {
			l = append(l, text)
		} else {
			r = append(r, text)
		}
	}
	return strings.Join(r, ", "), strings.Join(l, ", ")
}
