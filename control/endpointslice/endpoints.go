package endpointslice

import (
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/workload"
	"proa.dev/kind"
	"proa.dev/view"
)

const (
	managedBy         = "endpoints.kubernetes.io/managed-by"
	endpointsManager  = "endpoint-controller"
	overCapacity      = corev1.EndpointsOverCapacity
	endpointsCapacity = 1000
)

// EndpointsPart registers the controller of classic Endpoints; it plans per
// service.
func EndpointsPart() control.Part {
	return control.Part{
		Name: endpointsManager, Kind: kind.Service, Plan: PlanEndpoints,
		Wakes: append(podWakes(), control.Wake{Kind: kind.Endpoints, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
			return []view.Ref{{Kind: kind.Service, Namespace: o.GetNamespace(), Name: o.GetName()}}
		}}),
		Writes: []control.Write{{Kind: kind.Endpoints, Verbs: []string{"create", "update", "delete"}}},
	}
}

// PlanEndpoints brings the Endpoints object of one service up to date, in the
// service's first family. Beyond 1,000 addresses the rest is left out, those that
// are not ready first, and an annotation says so.
func PlanEndpoints(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
	svc := view.Get[*corev1.Service](s, kind.Service, ref.Namespace, ref.Name)
	have := view.Get[*corev1.Endpoints](s, kind.Endpoints, ref.Namespace, ref.Name)
	if svc == nil {
		if have != nil && have.Labels[managedBy] == endpointsManager && have.DeletionTimestamp == nil {
			return act.List{act.Delete{Target: view.RefOf(kind.Endpoints, have), UID: have.UID, Reason: "service-gone"}}, time.Time{}
		}
		return nil, time.Time{}
	}
	if svc.DeletionTimestamp != nil || len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil, time.Time{}
	}
	family := corev1.IPv4Protocol
	if len(svc.Spec.IPFamilies) > 0 {
		family = svc.Spec.IPFamilies[0]
	}
	var subsets []corev1.EndpointSubset
	for pod := range s.PodsWith(svc.Namespace, svc.Spec.Selector) {
		if workload.Ended(pod) || pod.DeletionTimestamp != nil && !svc.Spec.PublishNotReadyAddresses {
			continue
		}
		ip := addressOf(pod, family)
		if ip == "" {
			continue
		}
		a := corev1.EndpointAddress{IP: ip, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}}
		if pod.Spec.NodeName != "" {
			a.NodeName = &pod.Spec.NodeName
		}
		if hasHostname(svc, pod) {
			a.Hostname = pod.Spec.Hostname
		}
		var sub corev1.EndpointSubset
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			if n, ok := targetPort(p, pod); ok {
				sub.Ports = append(sub.Ports, corev1.EndpointPort{Name: p.Name, Port: n, Protocol: p.Protocol, AppProtocol: p.AppProtocol})
			}
		}
		if len(sub.Ports) == 0 && len(svc.Spec.Ports) > 0 {
			continue
		}
		if workload.Ready(pod) || svc.Spec.PublishNotReadyAddresses {
			sub.Addresses = []corev1.EndpointAddress{a}
		} else {
			sub.NotReadyAddresses = []corev1.EndpointAddress{a}
		}
		subsets = append(subsets, sub)
	}
	subsets = kind.RepackSubsets(subsets)
	truncated := truncate(subsets)
	want := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name}}
	if have != nil {
		want = have.DeepCopy()
	}
	want.Subsets = subsets
	want.Labels = map[string]string{}
	for k, v := range svc.Labels {
		if k != corev1.IsHeadlessService && k != managedBy {
			want.Labels[k] = v
		}
	}
	want.Labels[managedBy] = endpointsManager
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		want.Labels[corev1.IsHeadlessService] = ""
	}
	want.Annotations = maps.Clone(want.Annotations)
	if truncated {
		if want.Annotations == nil {
			want.Annotations = map[string]string{}
		}
		want.Annotations[overCapacity] = "truncated"
	} else {
		delete(want.Annotations, overCapacity)
	}
	if have == nil {
		return act.List{act.Create{Kind: kind.Endpoints, Object: want, Reason: "service"}}, time.Time{}
	}
	if apiequality.Semantic.DeepEqual(have, want) {
		return nil, time.Time{}
	}
	ready, not := count(subsets)
	return act.List{act.Update{Kind: kind.Endpoints, Object: want, Note: fmt.Sprintf("ready=%d notReady=%d", ready, not)}}, time.Time{}
}

func count(subsets []corev1.EndpointSubset) (ready, not int) {
	for i := range subsets {
		ready += len(subsets[i].Addresses)
		not += len(subsets[i].NotReadyAddresses)
	}
	return ready, not
}

// truncate cuts addresses beyond the capacity, by its share from each subset.
func truncate(subsets []corev1.EndpointSubset) bool {
	ready, not := count(subsets)
	if ready+not <= endpointsCapacity {
		return false
	}
	roomReady := min(ready, endpointsCapacity)
	roomNot := endpointsCapacity - roomReady
	for i := range subsets {
		n := min(len(subsets[i].Addresses), roomReady)
		subsets[i].Addresses = subsets[i].Addresses[:n]
		roomReady -= n
		n = min(len(subsets[i].NotReadyAddresses), roomNot)
		subsets[i].NotReadyAddresses = subsets[i].NotReadyAddresses[:n]
		roomNot -= n
	}
	return true
}
