package endpointslice

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/workload"
	"proa.dev/kind"
	"proa.dev/view"
)

const (
	mirrorManager = "endpointslicemirroring-controller.k8s.io"
	// perMirror is how many addresses of a subset are mirrored: what one slice may hold.
	perMirror = 1000
	// leaderAnnotation marks Endpoints that old leader elections use as their lock.
	leaderAnnotation = "control-plane.alpha.kubernetes.io/leader"
)

// MirrorPart registers the controller that copies Endpoints which users write, for
// Services without selector, into EndpointSlices (Kubernetes docs, "EndpointSlice
// mirroring"); it plans per Endpoints object.
func MirrorPart() control.Part {
	return control.Part{
		Name: "endpointslicemirroring-controller", Kind: kind.Endpoints, Plan: PlanMirror,
		Wakes: []control.Wake{
			{Kind: kind.Service, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
				return []view.Ref{{Kind: kind.Endpoints, Namespace: o.GetNamespace(), Name: o.GetName()}}
			}},
			{Kind: kind.EndpointSlice, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
				if o.GetLabels()[discoveryv1.LabelManagedBy] != mirrorManager {
					return nil
				}
				return []view.Ref{{Kind: kind.Endpoints, Namespace: o.GetNamespace(), Name: o.GetLabels()[discoveryv1.LabelServiceName]}}
			}},
		},
		Writes: []control.Write{{Kind: kind.EndpointSlice, Verbs: []string{"create", "update", "delete"}}},
	}
}

// mirrored says whether an Endpoints object is to be copied.
func mirrored(s view.Snapshot, e *corev1.Endpoints) bool {
	if e.DeletionTimestamp != nil || e.Labels[discoveryv1.LabelSkipMirror] == "true" {
		return false
	}
	if _, lock := e.Annotations[leaderAnnotation]; lock {
		return false
	}
	svc := view.Get[*corev1.Service](s, kind.Service, e.Namespace, e.Name)
	return svc != nil && svc.DeletionTimestamp == nil && len(svc.Spec.Selector) == 0
}

// PlanMirror brings the copies of one Endpoints object up to date. Copies of an
// object that is gone go with it, as what it owns.
func PlanMirror(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
	e := view.Get[*corev1.Endpoints](s, kind.Endpoints, ref.Namespace, ref.Name)
	if e == nil {
		return nil, time.Time{}
	}
	var have []*discoveryv1.EndpointSlice
	for es := range view.Owned[*discoveryv1.EndpointSlice](s, string(e.UID), kind.EndpointSlice) {
		if es.Labels[discoveryv1.LabelManagedBy] == mirrorManager && es.DeletionTimestamp == nil {
			have = append(have, es)
		}
	}
	var creates, updates, deletes act.List
	if mirrored(s, e) {
		n := 0
		for _, want := range mirrors(e) {
			// The slice with the same ports first, then any of the family.
			i := slices.IndexFunc(have, func(es *discoveryv1.EndpointSlice) bool {
				return groupKey(es.AddressType, es.Ports) == groupKey(want.AddressType, want.Ports)
			})
			if i < 0 {
				i = slices.IndexFunc(have, func(es *discoveryv1.EndpointSlice) bool { return es.AddressType == want.AddressType })
			}
			if i < 0 {
				prefix := e.Name + "-"
				if len(prefix) > 57 {
					prefix = prefix[:57]
				}
				want.GenerateName, want.Namespace = prefix, e.Namespace
				want.Name = workload.FreshName(s, kind.EndpointSlice, e.Namespace, prefix, e.UID, &n)
				owner := workload.OwnerRef(kind.Endpoints, e)
				want.OwnerReferences = []metav1.OwnerReference{owner}
				creates = append(creates, act.Create{Kind: kind.EndpointSlice, Object: want, Reason: fmt.Sprintf("%d endpoints", len(want.Endpoints))})
				continue
			}
			next := have[i].DeepCopy()
			next.Labels, next.Annotations, next.Ports, next.Endpoints = want.Labels, want.Annotations, want.Ports, want.Endpoints
			if !apiequality.Semantic.DeepEqual(next, have[i]) {
				updates = append(updates, act.Update{Kind: kind.EndpointSlice, Object: next, Note: fmt.Sprintf("endpoints=%d", len(next.Endpoints))})
			}
			have = slices.Delete(have, i, i+1)
		}
	}
	for _, es := range have {
		deletes = append(deletes, act.Delete{Target: view.RefOf(kind.EndpointSlice, es), UID: es.UID, Reason: "not mirrored"})
	}
	return append(append(creates, updates...), deletes...), time.Time{}
}

// mirrors are the slices that say what an Endpoints object says, in the order of
// its subsets: one for each family and set of ports.
func mirrors(e *corev1.Endpoints) []*discoveryv1.EndpointSlice {
	labels := map[string]string{}
	for k, v := range e.Labels {
		if k != discoveryv1.LabelServiceName && k != discoveryv1.LabelManagedBy {
			labels[k] = v
		}
	}
	labels[discoveryv1.LabelServiceName], labels[discoveryv1.LabelManagedBy] = e.Name, mirrorManager
	annotations := maps.Clone(e.Annotations)
	delete(annotations, corev1.LastAppliedConfigAnnotation)
	delete(annotations, overCapacity)
	if len(annotations) == 0 {
		annotations = nil
	}
	made := map[string]*discoveryv1.EndpointSlice{}
	var out []*discoveryv1.EndpointSlice
	for i := range e.Subsets {
		sub := &e.Subsets[i]
		var ports []discoveryv1.EndpointPort
		for _, p := range sub.Ports {
			ports = append(ports, discoveryv1.EndpointPort{Name: ptr.To(p.Name), Protocol: ptr.To(p.Protocol), Port: ptr.To(p.Port), AppProtocol: p.AppProtocol})
		}
		left := perMirror
		add := func(addresses []corev1.EndpointAddress, ready bool) {
			for _, a := range addresses {
				if left == 0 {
					return
				}
				left--
				family := discoveryv1.AddressTypeIPv4
				if strings.Contains(a.IP, ":") {
					family = discoveryv1.AddressTypeIPv6
				}
				key := groupKey(family, ports)
				es := made[key]
				if es == nil || len(es.Endpoints) == perMirror {
					es = &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations}, AddressType: family, Ports: ports}
					made[key], out = es, append(out, es)
				}
				one := discoveryv1.Endpoint{Addresses: []string{a.IP}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(ready)}, TargetRef: a.TargetRef, NodeName: a.NodeName}
				if a.Hostname != "" {
					one.Hostname = ptr.To(a.Hostname)
				}
				es.Endpoints = append(es.Endpoints, one)
			}
		}
		add(sub.Addresses, true)
		add(sub.NotReadyAddresses, false)
	}
	return out
}
