// Package first makes the objects that every cluster has from its first moment:
// namespaces, the default RBAC policy, the system priority classes, the network of
// Services, those of the API server and of DNS with their endpoints. Each start completes what is
// missing and leaves what people changed alone, except for the policy, which is
// completed unless an object opts out (docs, "Auto-reconciliation").
package first

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"proa.dev/apiserver/auth"
	"proa.dev/client"
	"proa.dev/kind"
)

// Config of the objects.
type Config struct {
	// API is where this server answers, as pods reach it; Port of the address.
	API     netip.Addr
	APIPort int32
	// NoEndpoints leaves the endpoints of the API's Service to somebody else.
	NoEndpoints bool
	// Services is the network of cluster IPs; APIService and DNSService are addresses
	// in it.
	Services               netip.Prefix
	APIService, DNSService netip.Addr
	// DNS is where the node answers DNS; Port of the address.
	DNS     netip.Addr
	DNSPort int32
	// CA in PEM, for kube-public/cluster-info and the authentication ConfigMap.
	CA []byte
	// PublicURL of the API, for kube-public/cluster-info.
	PublicURL string
}

// Domain of cluster DNS.
const Domain = "cluster.local"

// ServiceAddress is the nth address of a service network: 1 for the API, 10 for
// DNS.
func ServiceAddress(network netip.Prefix, n int) netip.Addr {
	a := network.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

type item struct {
	k   *kind.Kind
	obj kind.Object
	// mend changes a copy of what is there; false: nothing to do.
	mend func(have kind.Object) bool
	// anew says that what is there has to be deleted and made again.
	anew func(have kind.Object) bool
}

// Ensure creates and completes; the client must be an administrator's. Objects in
// namespaces follow the namespaces; otherwise all go side by side, so that a few
// syncs of the disk carry them all.
func Ensure(ctx context.Context, c client.Client, cfg Config) error {
	if err := ensureAll(ctx, c, namespaces()); err != nil {
		return err
	}
	return ensureAll(ctx, c, slices.Concat(policy(), classes(), services(cfg), configMaps(cfg)))
}

func ensureAll(ctx context.Context, c client.Client, items []item) error {
	errs := make([]error, len(items))
	var wg sync.WaitGroup
	for i, it := range items {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := ensure(ctx, c, it); err != nil {
				errs[i] = fmt.Errorf("make %s %q: %w", it.k, it.obj.GetName(), err)
			}
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

func ensure(ctx context.Context, c client.Client, it item) error {
	for range 5 {
		have, err := c.Get(ctx, it.k, it.obj.GetNamespace(), it.obj.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			_, err = c.Create(ctx, it.k, it.obj.DeepCopyObject().(kind.Object), metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) {
				continue
			}
			return err
		}
		if err != nil {
			return err
		}
		if it.anew != nil && it.anew(have) {
			uid, version := have.GetUID(), have.GetResourceVersion()
			err := c.Delete(ctx, it.k, it.obj.GetNamespace(), it.obj.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version}})
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return err
			}
			continue
		}
		if it.mend == nil {
			return nil
		}
		changed := have.DeepCopyObject().(kind.Object)
		if !it.mend(changed) {
			return nil
		}
		if _, err = c.Update(ctx, it.k, changed, "", metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			return err
		}
	}
	return errors.New("it changed five times in a row")
}

func namespaces() []item {
	var out []item
	for _, n := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease} {
		out = append(out, item{k: kind.Namespace, obj: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n}}})
	}
	return out
}

func classes() []item {
	class := func(name string, value int32, text string) item {
		return item{k: kind.PriorityClass, obj: &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value, Description: text}}
	}
	return []item{
		class("system-node-critical", 2000001000, "Used for system critical pods that must not be moved from their current node."),
		class("system-cluster-critical", 2000000000, "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary."),
	}
}

const autoupdate = "rbac.authorization.kubernetes.io/autoupdate"

// policy is completed at every start: missing rules, subjects, labels and
// annotations are added, what people added stays. An object opts out with the
// annotation autoupdate "false" (docs, "Auto-reconciliation"). A binding whose
// role was changed is made anew, since that cannot be changed back.
func policy() []item {
	var out []item
	p := auth.Policy()
	for _, r := range p.ClusterRoles {
		out = append(out, item{k: kind.ClusterRole, obj: r, mend: func(have kind.Object) bool {
			h := have.(*rbacv1.ClusterRole)
			if h.Annotations[autoupdate] == "false" {
				return false
			}
			changed := addMeta(h, r)
			if r.AggregationRule != nil {
				// The rules of a sum are its controller's.
				if h.AggregationRule == nil {
					h.AggregationRule, changed = r.AggregationRule.DeepCopy(), true
				}
				for _, want := range r.AggregationRule.ClusterRoleSelectors {
					if !slices.ContainsFunc(h.AggregationRule.ClusterRoleSelectors, func(s metav1.LabelSelector) bool { return apiequality.Semantic.DeepEqual(s, want) }) {
						h.AggregationRule.ClusterRoleSelectors, changed = append(h.AggregationRule.ClusterRoleSelectors, want), true
					}
				}
				return changed
			}
			missing := auth.Compact(auth.Covers(h.Rules, r.Rules))
			h.Rules = append(h.Rules, missing...)
			return changed || len(missing) > 0
		}})
	}
	for _, r := range p.Roles {
		out = append(out, item{k: kind.Role, obj: r, mend: func(have kind.Object) bool {
			h := have.(*rbacv1.Role)
			if h.Annotations[autoupdate] == "false" {
				return false
			}
			changed := addMeta(h, r)
			missing := auth.Compact(auth.Covers(h.Rules, r.Rules))
			h.Rules = append(h.Rules, missing...)
			return changed || len(missing) > 0
		}})
	}
	for _, b := range p.ClusterRoleBindings {
		out = append(out, item{k: kind.ClusterRoleBinding, obj: b, mend: func(have kind.Object) bool {
			h := have.(*rbacv1.ClusterRoleBinding)
			if h.Annotations[autoupdate] == "false" {
				return false
			}
			changed := addMeta(h, b)
			return addSubjects(&h.Subjects, b.Subjects) || changed
		}, anew: func(have kind.Object) bool {
			h := have.(*rbacv1.ClusterRoleBinding)
			return h.Annotations[autoupdate] != "false" && h.RoleRef != b.RoleRef
		}})
	}
	for _, b := range p.RoleBindings {
		out = append(out, item{k: kind.RoleBinding, obj: b, mend: func(have kind.Object) bool {
			h := have.(*rbacv1.RoleBinding)
			if h.Annotations[autoupdate] == "false" {
				return false
			}
			changed := addMeta(h, b)
			return addSubjects(&h.Subjects, b.Subjects) || changed
		}, anew: func(have kind.Object) bool {
			h := have.(*rbacv1.RoleBinding)
			return h.Annotations[autoupdate] != "false" && h.RoleRef != b.RoleRef
		}})
	}
	return out
}

// addMeta adds the labels and annotations that are missing.
func addMeta(have, want kind.Object) bool {
	changed := false
	add := func(have, want map[string]string) map[string]string {
		for k, v := range want {
			if _, ok := have[k]; !ok {
				if have == nil {
					have = map[string]string{}
				}
				have[k], changed = v, true
			}
		}
		return have
	}
	have.SetLabels(add(have.GetLabels(), want.GetLabels()))
	have.SetAnnotations(add(have.GetAnnotations(), want.GetAnnotations()))
	return changed
}

func addSubjects(have *[]rbacv1.Subject, want []rbacv1.Subject) bool {
	added := false
	for _, s := range want {
		if !slices.Contains(*have, s) {
			*have, added = append(*have, s), true
		}
	}
	return added
}

func services(cfg Config) []item {
	out := []item{
		{k: kind.Service, obj: &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "kubernetes", Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"}},
			Spec: corev1.ServiceSpec{ClusterIP: cfg.APIService.String(), Ports: []corev1.ServicePort{
				{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(cfg.APIPort)}}},
		}},
	}
	if cfg.Services.IsValid() {
		out = append(out, item{k: kind.ServiceCIDR, obj: &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"},
			Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{cfg.Services.Masked().String()}}}})
	}
	if !cfg.NoEndpoints {
		out = append(out,
			slice(metav1.NamespaceDefault, "kubernetes", "kubernetes", cfg.API, port("https", corev1.ProtocolTCP, cfg.APIPort)),
			endpoints(metav1.NamespaceDefault, "kubernetes", cfg.API, corev1.EndpointPort{Name: "https", Port: cfg.APIPort, Protocol: corev1.ProtocolTCP}))
	}
	if !cfg.DNS.IsValid() {
		return out
	}
	labels := map[string]string{"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"}
	return append(out,
		item{k: kind.Service, obj: &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "kube-dns", Labels: labels},
			Spec: corev1.ServiceSpec{ClusterIP: cfg.DNSService.String(), Ports: []corev1.ServicePort{
				{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(cfg.DNSPort)},
				{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(cfg.DNSPort)}}},
		}},
		slice(metav1.NamespaceSystem, "kube-dns", "kube-dns", cfg.DNS, port("dns", corev1.ProtocolUDP, cfg.DNSPort), port("dns-tcp", corev1.ProtocolTCP, cfg.DNSPort)))
}

func port(name string, p corev1.Protocol, n int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: &name, Protocol: &p, Port: &n}
}

func slice(ns, name, service string, at netip.Addr, ports ...discoveryv1.EndpointPort) item {
	yes := true
	want := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{
			discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "proa"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{at.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}},
		Ports:       ports,
	}
	return item{k: kind.EndpointSlice, obj: want, mend: func(have kind.Object) bool {
		h := have.(*discoveryv1.EndpointSlice)
		if len(h.Endpoints) == 1 && slices.Equal(h.Endpoints[0].Addresses, want.Endpoints[0].Addresses) && apiequality.Semantic.DeepEqual(h.Ports, want.Ports) {
			return false
		}
		h.Endpoints, h.Ports = want.Endpoints, want.Ports
		return true
	}}
}

func endpoints(ns, name string, at netip.Addr, ports ...corev1.EndpointPort) item {
	want := &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"}},
		Subsets:    []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: at.String()}}, Ports: ports}},
	}
	return item{k: kind.Endpoints, obj: want, mend: func(have kind.Object) bool {
		h := have.(*corev1.Endpoints)
		if apiequality.Semantic.DeepEqual(h.Subsets, want.Subsets) {
			return false
		}
		h.Subsets = want.Subsets
		return true
	}}
}

func configMaps(cfg Config) []item {
	kubeconfig := fmt.Sprintf("apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: %s\n    server: %s\n  name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {}\nusers: null\n", base64.StdEncoding.EncodeToString(cfg.CA), cfg.PublicURL)
	info := map[string]string{"kubeconfig": kubeconfig}
	ca := map[string]string{"client-ca-file": string(cfg.CA)}
	mend := func(want map[string]string) func(kind.Object) bool {
		return func(have kind.Object) bool {
			h := have.(*corev1.ConfigMap)
			changed := false
			for k, val := range want {
				if h.Data[k] != val {
					if h.Data == nil {
						h.Data = map[string]string{}
					}
					h.Data[k], changed = val, true
				}
			}
			return changed
		}
	}
	return []item{
		{k: kind.ConfigMap, obj: &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespacePublic, Name: "cluster-info"}, Data: info}, mend: mend(info)},
		{k: kind.ConfigMap, obj: &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "extension-apiserver-authentication"}, Data: ca}, mend: mend(ca)},
	}
}
