package admit

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/apiserver/auth"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/view"
)

func named(ns, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(ns + "/" + name), ResourceVersion: "1"}
}

func kindOf(o kind.Object) *kind.Kind {
	for _, k := range kind.All.Rows() {
		if k.Root() == k && fmt.Sprintf("%T", k.New()) == fmt.Sprintf("%T", o) {
			return k
		}
	}
	panic(fmt.Sprintf("no kind for %T", o))
}

func loaded(objects ...kind.Object) *view.View {
	v := view.New(kind.All, 0)
	for _, o := range objects {
		v.Load(kindOf(o), o)
	}
	v.Loaded(1)
	return v
}

var anyone = auth.User{Name: "joe", Groups: []string{auth.AllAuthenticated}}

// ask is a request for o; old makes it an update, o nil a delete of old.
func ask(v *view.View, o, old kind.Object) *Request {
	r := &Request{Operation: Create, User: anyone, Object: o, Old: old, Now: time.Unix(1e9, 0), Snapshot: v.Snapshot(), Warn: func(string) {}}
	of := o
	switch {
	case o == nil:
		r.Operation, of = Delete, old
	case old != nil:
		r.Operation = Update
	}
	r.Kind, r.Namespace, r.Name = kindOf(of), of.GetNamespace(), of.GetName()
	return r
}

// run both halves.
func run(p Plugin, r *Request) error {
	if p.Mutate != nil {
		if err := p.Mutate(context.Background(), r); err != nil {
			return err
		}
	}
	if p.Validate != nil {
		return p.Validate(context.Background(), r)
	}
	return nil
}

// wants checks an outcome: "" is none, anything else a part of the message.
func wants(t *testing.T, what string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: refused: %v", what, err)
	case want != "" && err == nil:
		t.Errorf("%s: let through, want %q", what, want)
	case want != "" && !strings.Contains(err.Error(), want):
		t.Errorf("%s: %q, want %q", what, err, want)
	}
}

func TestNamespaceLifecycle(t *testing.T) {
	now := metav1.Now()
	ending := &corev1.Namespace{ObjectMeta: named("", "ending")}
	ending.DeletionTimestamp = &now
	v := loaded(&corev1.Namespace{ObjectMeta: named("", "n")}, ending, &corev1.Namespace{ObjectMeta: named("", "default")})
	cm := func(ns string) *corev1.ConfigMap { return &corev1.ConfigMap{ObjectMeta: named(ns, "c")} }
	p := NamespaceLifecycle()
	wants(t, "there", run(p, ask(v, cm("n"), nil)), "")
	wants(t, "absent", run(p, ask(v, cm("none"), nil)), `namespaces "none" not found`)
	err := run(p, ask(v, cm("ending"), nil))
	wants(t, "ending", err, `configmaps "c" is forbidden: unable to create new content in namespace ending because it is being terminated`)
	if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		t.Errorf("no cause: %v", err)
	}
	wants(t, "update while ending", run(p, ask(v, cm("ending"), cm("ending"))), "")
	wants(t, "delete while ending", run(p, ask(v, nil, cm("ending"))), "")
	wants(t, "default", run(p, ask(v, nil, &corev1.Namespace{ObjectMeta: named("", "default")})), `namespaces "default" is forbidden: this namespace may not be deleted`)
	wants(t, "another", run(p, ask(v, nil, &corev1.Namespace{ObjectMeta: named("", "n")})), "")
	wants(t, "cluster-wide", run(p, ask(v, &corev1.Namespace{ObjectMeta: named("", "new")}, nil)), "")
}

func quantities(text string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for f := range strings.FieldsSeq(text) {
		n, q, _ := strings.Cut(f, "=")
		out[corev1.ResourceName(n)] = resource.MustParse(q)
	}
	return out
}

func container(name, requests, limits string) corev1.Container {
	return corev1.Container{Name: name, Image: "i", Resources: corev1.ResourceRequirements{Requests: quantities(requests), Limits: quantities(limits)}}
}

func podWith(name string, list ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: named("n", name), Spec: corev1.PodSpec{Containers: list}}
}

func TestLimitRanger(t *testing.T) {
	limits := func(items ...corev1.LimitRangeItem) *corev1.LimitRange {
		return &corev1.LimitRange{ObjectMeta: named("n", "l"), Spec: corev1.LimitRangeSpec{Limits: items}}
	}
	item := func(of corev1.LimitType, set func(*corev1.LimitRangeItem)) corev1.LimitRangeItem {
		i := corev1.LimitRangeItem{Type: of}
		set(&i)
		return i
	}
	for _, c := range []struct {
		name string
		item corev1.LimitRangeItem
		pod  *corev1.Pod
		want string
	}{
		{"min, no request", item("Container", func(i *corev1.LimitRangeItem) { i.Min = quantities("cpu=100m") }), podWith("p", container("c", "", "")), "minimum cpu usage per Container is 100m.  No request is specified"},
		{"min, request", item("Container", func(i *corev1.LimitRangeItem) { i.Min = quantities("cpu=100m") }), podWith("p", container("c", "cpu=50m", "")), "minimum cpu usage per Container is 100m, but request is 50m"},
		{"min, limit", item("Container", func(i *corev1.LimitRangeItem) { i.Min = quantities("cpu=100m") }), podWith("p", container("c", "cpu=100m", "cpu=90m")), "minimum cpu usage per Container is 100m, but limit is 90m"},
		{"min, met", item("Container", func(i *corev1.LimitRangeItem) { i.Min = quantities("cpu=100m") }), podWith("p", container("c", "cpu=0.1", "")), ""},
		{"max, no limit", item("Container", func(i *corev1.LimitRangeItem) { i.Max = quantities("memory=1Gi") }), podWith("p", container("c", "", "")), "maximum memory usage per Container is 1Gi.  No limit is specified"},
		{"max, limit", item("Container", func(i *corev1.LimitRangeItem) { i.Max = quantities("memory=1Gi") }), podWith("p", container("c", "", "memory=2Gi")), "maximum memory usage per Container is 1Gi, but limit is 2Gi"},
		{"max, request", item("Container", func(i *corev1.LimitRangeItem) { i.Max = quantities("memory=1Gi") }), podWith("p", container("c", "memory=2Gi", "memory=1Gi")), "maximum memory usage per Container is 1Gi, but request is 2Gi"},
		{"ratio", item("Container", func(i *corev1.LimitRangeItem) { i.MaxLimitRequestRatio = quantities("cpu=2") }), podWith("p", container("c", "cpu=100m", "cpu=300m")), "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000"},
		{"ratio without request", item("Container", func(i *corev1.LimitRangeItem) { i.MaxLimitRequestRatio = quantities("cpu=2") }), podWith("p", container("c", "", "cpu=300m")), "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0"},
		{"ratio without limit", item("Container", func(i *corev1.LimitRangeItem) { i.MaxLimitRequestRatio = quantities("cpu=2") }), podWith("p", container("c", "cpu=1", "")), "cpu max limit to request ratio per Container is 2, but no limit is specified or limit is 0"},
		{"pod", item("Pod", func(i *corev1.LimitRangeItem) { i.Max = quantities("cpu=1") }), podWith("p", container("a", "", "cpu=600m"), container("b", "", "cpu=600m")), "maximum cpu usage per Pod is 1, but limit is 1200m"},
		{"pod, each container fits", item("Container", func(i *corev1.LimitRangeItem) { i.Max = quantities("cpu=1") }), podWith("p", container("a", "", "cpu=600m"), container("b", "", "cpu=600m")), ""},
	} {
		err := run(LimitRanger(), ask(loaded(limits(c.item)), c.pod, nil))
		wants(t, c.name, err, c.want)
		if err != nil && !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	v := loaded(limits(item("Container", func(i *corev1.LimitRangeItem) {
		i.Default, i.DefaultRequest = quantities("cpu=1 memory=1Gi"), quantities("cpu=100m")
	})))
	p := podWith("p", container("a", "", ""), container("b", "cpu=2", "cpu=3"))
	p.Spec.InitContainers = []corev1.Container{container("i", "", "memory=5Mi")}
	wants(t, "defaults", run(LimitRanger(), ask(v, p, nil)), "")
	if got := p.Annotations["kubernetes.io/limit-ranger"]; got != "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; memory limit for container b; cpu request for init container i; cpu limit for init container i" {
		t.Error(got)
	}
	if q := p.Spec.Containers[0].Resources.Limits[corev1.ResourceMemory]; q.String() != "1Gi" {
		t.Error(q)
	}
	if q := p.Spec.Containers[1].Resources.Requests[corev1.ResourceCPU]; q.String() != "2" {
		t.Error(q)
	}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: named("n", "c")}
	claim.Spec.Resources.Requests = quantities("storage=5Gi")
	v = loaded(limits(item("PersistentVolumeClaim", func(i *corev1.LimitRangeItem) { i.Min, i.Max = quantities("storage=1Gi"), quantities("storage=2Gi") })))
	wants(t, "claim", run(LimitRanger(), ask(v, claim, nil)), "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 5Gi")
}

func TestServiceAccount(t *testing.T) {
	off := false
	v := loaded(&corev1.ServiceAccount{ObjectMeta: named("n", "default"), ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}}},
		&corev1.ServiceAccount{ObjectMeta: named("n", "quiet"), AutomountServiceAccountToken: &off},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "strict", Annotations: map[string]string{"kubernetes.io/enforce-mountable-secrets": "true"}}, Secrets: []corev1.ObjectReference{{Name: "ok"}}})
	p := ServiceAccount(v, env.SystemRand())
	a := podWith("p", container("a", "", ""), corev1.Container{Name: "b", VolumeMounts: []corev1.VolumeMount{{Name: "own", MountPath: tokenPath}}})
	wants(t, "default", run(p, ask(v, a, nil)), "")
	if a.Spec.ServiceAccountName != "default" || a.Spec.DeprecatedServiceAccount != "default" || a.Spec.ImagePullSecrets[0].Name != "pull" || len(a.Spec.Volumes) != 1 {
		t.Fatalf("%+v", a.Spec)
	}
	if m := a.Spec.Containers[0].VolumeMounts; len(m) != 1 || m[0].MountPath != tokenPath || !m[0].ReadOnly || m[0].Name != a.Spec.Volumes[0].Name {
		t.Errorf("%+v", m)
	}
	if m := a.Spec.Containers[1].VolumeMounts; len(m) != 1 || m[0].Name != "own" {
		t.Errorf("a container's own mount is changed: %+v", m)
	}
	q := podWith("p", container("a", "", ""))
	q.Spec.ServiceAccountName = "quiet"
	wants(t, "quiet", run(p, ask(v, q, nil)), "")
	if len(q.Spec.Volumes) != 0 {
		t.Error("mounted against the account's wish")
	}
	on := true
	q.Spec.AutomountServiceAccountToken = &on
	wants(t, "asked for", run(p, ask(v, q, nil)), "")
	if len(q.Spec.Volumes) != 1 {
		t.Error("the pod's own wish does not count")
	}
	n := podWith("p", container("a", "", ""))
	n.Spec.ServiceAccountName = "none"
	wants(t, "absent", run(p, ask(v, n, nil)), `pods "p" is forbidden: error looking up service account n/none: serviceaccount "none" not found`)
	s := podWith("p", container("a", "", ""))
	s.Spec.ServiceAccountName = "strict"
	s.Spec.Volumes = []corev1.Volume{{Name: "x", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "other"}}}}
	wants(t, "strict", run(p, ask(v, s, nil)), `volume with secret.secretName="other" is not allowed because service account strict does not reference that secret`)
	s.Spec.Volumes[0].Secret.SecretName = "ok"
	wants(t, "strict, listed", run(p, ask(v, s, nil)), "")
	m := podWith("p", container("a", "", ""))
	m.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	wants(t, "mirror", run(p, ask(v, m, nil)), "")
	m.Spec.ServiceAccountName = "default"
	wants(t, "mirror with account", run(p, ask(v, m, nil)), "a mirror pod may not reference service accounts")
	m.Spec.ServiceAccountName, m.Spec.ImagePullSecrets = "", []corev1.LocalObjectReference{{Name: "x"}}
	wants(t, "mirror with secret", run(p, ask(v, m, nil)), "a mirror pod may not reference secrets")
}

// TestServiceAccountWaits: a pod that comes with its namespace gets the default
// account as soon as there is one.
func TestServiceAccountWaits(t *testing.T) {
	v := loaded()
	p := podWith("p", container("a", "", ""))
	done := make(chan error, 1)
	r := ask(v, p, nil)
	go func() { done <- run(ServiceAccount(v, env.SystemRand()), r) }()
	v.Apply(view.Change{Kind: kind.ServiceAccount, Revision: 2, New: &corev1.ServiceAccount{ObjectMeta: named("n", "default")}})
	select {
	case err := <-done:
		wants(t, "late account", err, "")
	case <-time.After(namespaceGrace):
		t.Error("it waits on after the account appeared")
	}
}

func TestPriority(t *testing.T) {
	never := corev1.PreemptNever
	class := func(name string, value int32, def bool, policy *corev1.PreemptionPolicy) *schedulingv1.PriorityClass {
		return &schedulingv1.PriorityClass{ObjectMeta: named("", name), Value: value, GlobalDefault: def, PreemptionPolicy: policy}
	}
	v := loaded(class("high", 1000, false, nil), class("polite", 5, false, &never), class("usual", 7, true, nil))
	get := func(change func(*corev1.PodSpec)) (*corev1.Pod, error) {
		p := podWith("p")
		change(&p.Spec)
		return p, run(Priority(), ask(v, p, nil))
	}
	for _, c := range []struct {
		name, class string
		value       int32
		policy      corev1.PreemptionPolicy
	}{{"high", "high", 1000, corev1.PreemptLowerPriority}, {"polite", "polite", 5, corev1.PreemptNever}, {"", "usual", 7, corev1.PreemptLowerPriority}} {
		p, err := get(func(s *corev1.PodSpec) { s.PriorityClassName = c.name })
		wants(t, c.name, err, "")
		if p.Spec.PriorityClassName != c.class || *p.Spec.Priority != c.value || *p.Spec.PreemptionPolicy != c.policy {
			t.Errorf("%q: %+v", c.name, p.Spec)
		}
	}
	_, err := get(func(s *corev1.PodSpec) { s.PriorityClassName = "none" })
	wants(t, "absent", err, `pods "p" is forbidden: no PriorityClass with name none was found`)
	_, err = get(func(s *corev1.PodSpec) { n := int32(3); s.Priority, s.PriorityClassName = &n, "high" })
	wants(t, "own number", err, "the integer value of priority (3) must not be provided in pod spec; priority admission controller computed 1000 from the given PriorityClass name")
	_, err = get(func(s *corev1.PodSpec) { s.PreemptionPolicy, s.PriorityClassName = &never, "high" })
	wants(t, "own policy", err, "the string value of PreemptionPolicy (Never) must not be provided in pod spec; priority admission controller computed PreemptLowerPriority from the given PriorityClass name")
	wants(t, "second default", run(Priority(), ask(v, class("more", 8, true, nil), nil)), "PriorityClass usual is already marked as default. Only one default can exist")
	wants(t, "the default again", run(Priority(), ask(v, class("usual", 7, true, nil), class("usual", 7, true, nil))), "")
	old, err := get(func(*corev1.PodSpec) {})
	wants(t, "old", err, "")
	sent := podWith("p")
	wants(t, "update", run(Priority(), ask(v, sent, old)), "")
	if sent.Spec.Priority == nil || *sent.Spec.Priority != 7 || sent.Spec.PreemptionPolicy == nil {
		t.Error("an update that leaves the priority out loses it")
	}
}

func TestDefaultTolerationSeconds(t *testing.T) {
	p := podWith("p")
	p.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}}
	wants(t, "", run(DefaultTolerationSeconds(), ask(loaded(), p, nil)), "")
	if l := p.Spec.Tolerations; len(l) != 2 || l[0].TolerationSeconds != nil || l[1].Key != corev1.TaintNodeUnreachable || *l[1].TolerationSeconds != 300 {
		t.Errorf("%+v", l)
	}
	p = podWith("p")
	p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	wants(t, "", run(DefaultTolerationSeconds(), ask(loaded(), p, nil)), "")
	if len(p.Spec.Tolerations) != 1 {
		t.Errorf("%+v", p.Spec.Tolerations)
	}
}

func TestNodeRestriction(t *testing.T) {
	self := &corev1.Node{ObjectMeta: named("", "a")}
	on := func(name, node string) *corev1.Pod { p := podWith(name); p.Spec.NodeName = node; return p }
	needy := on("needy", "a")
	needy.Spec.Volumes = []corev1.Volume{{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "vault"}}}}}}}
	plain := on("plain", "a")
	mountToken(plain, env.SystemRand())
	plain.Spec.Containers = []corev1.Container{{Name: "c"}}
	mountToken(plain, env.SystemRand())
	other := on("other", "b")
	account := &corev1.ServiceAccount{ObjectMeta: named("n", "sa")}
	v := loaded(self, needy, plain, other, account)
	yes, no := true, false
	mirror := func(change func(*corev1.Pod)) *corev1.Pod {
		p := on("m", "a")
		p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "a", UID: self.UID, Controller: &yes, BlockOwnerDeletion: &no}}
		if change != nil {
			change(p)
		}
		return p
	}
	labels := func(kv ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: named("", "a")}
		n.Labels = map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			n.Labels[kv[i]] = kv[i+1]
		}
		return n
	}
	tainted := labels()
	tainted.Spec.Taints = []corev1.Taint{{Key: "x", Effect: corev1.TaintEffectNoSchedule}}
	owned := labels()
	owned.OwnerReferences = []metav1.OwnerReference{{Name: "x"}}
	token := func(pod string, uid types.UID, audiences ...string) func(*Request) {
		return func(r *Request) {
			r.Operation, r.Object, r.Old, r.Sub = Create, nil, account, "token"
			tr := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences}}
			if pod != "" {
				tr.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod, UID: uid}
			}
			r.Body = tr
		}
	}
	sub := func(s string) func(*Request) { return func(r *Request) { r.Sub = s } }
	for _, c := range []struct {
		name   string
		o, old kind.Object
		change func(*Request)
		want   string
	}{
		{"ordinary pod", on("x", "a"), nil, nil, `pod does not have "kubernetes.io/config.mirror" annotation, node "a" can only create mirror pods`},
		{"mirror", mirror(nil), nil, nil, ""},
		{"mirror elsewhere", mirror(func(p *corev1.Pod) { p.Spec.NodeName = "b" }), nil, nil, `node "a" can only create pods with spec.nodeName set to itself`},
		{"mirror without owner", mirror(func(p *corev1.Pod) { p.OwnerReferences = nil }), nil, nil, `node "a" can only create pods with an owner reference set to itself`},
		{"mirror of another node", mirror(func(p *corev1.Pod) { p.OwnerReferences[0].UID = "?" }), nil, nil, "node a UID mismatch: expected ? got /a"},
		{"mirror not controlled", mirror(func(p *corev1.Pod) { p.OwnerReferences[0].Controller = nil }), nil, nil, "controller owner reference set to itself"},
		{"mirror blocks", mirror(func(p *corev1.Pod) { p.OwnerReferences[0].BlockOwnerDeletion = &yes }), nil, nil, "must not set blockOwnerDeletion"},
		{"mirror with account", mirror(func(p *corev1.Pod) { p.Spec.ServiceAccountName = "x" }), nil, nil, `node "a" can not create pods that reference a service account`},
		{"mirror with secret", mirror(func(p *corev1.Pod) { p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "x"}} }), nil, nil, `node "a" can not create pods that reference secrets`},
		{"mirror with map", mirror(func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{}}}}}
		}), nil, nil, `can not create pods that reference configmaps`},
		{"mirror with claim", mirror(func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}}
		}), nil, nil, `can not create pods that reference persistentvolumeclaims`},
		{"own pod's status", on("plain", "a"), plain, sub("status"), ""},
		{"other pod's status", on("other", "b"), other, sub("status"), `node "a" can only update pod status for pods with spec.nodeName set to itself`},
		{"label by status", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "plain", Labels: map[string]string{"a": "b"}}, Spec: plain.Spec}, plain, sub("status"), `node "a" cannot update labels through pod status`},
		{"delete own", nil, plain, nil, ""},
		{"delete other", nil, other, nil, `node "a" can only delete pods with spec.nodeName set to itself`},
		{"evict own", nil, plain, func(r *Request) { r.Operation, r.Sub = Create, "eviction" }, ""},
		{"evict other", nil, other, func(r *Request) { r.Operation, r.Sub = Create, "eviction" }, "node a can only evict pods with spec.nodeName set to itself"},
		{"bind", nil, other, func(r *Request) { r.Operation, r.Sub = Create, "binding" }, `unexpected pod subresource "binding"`},
		{"update pod", on("plain", "a"), plain, nil, "can only create and delete mirror pods"},
		{"register", labels("kubernetes.io/hostname", "a", "kubernetes.io/os", "linux", "node.kubernetes.io/x", "y", "mine", "z", "example.com/q", "r"), nil, nil, ""},
		{"register another", &corev1.Node{ObjectMeta: named("", "b")}, nil, nil, `node "a" is not allowed to modify node "b"`},
		{"register isolated", labels("node-restriction.kubernetes.io/secure", "yes"), nil, nil, "is not allowed to set the following labels on a Node: node-restriction.kubernetes.io/secure"},
		{"register a role", labels("node-role.kubernetes.io/control-plane", ""), nil, nil, "node-role.kubernetes.io/control-plane"},
		{"change a label", labels("x.node-restriction.kubernetes.io/secure", "no"), labels("x.node-restriction.kubernetes.io/secure", "yes"), nil, "is not allowed to modify labels: x.node-restriction.kubernetes.io/secure"},
		{"remove a label", labels(), labels("node-restriction.kubernetes.io/secure", "yes"), nil, "is not allowed to modify labels"},
		{"keep a label", labels("node-restriction.kubernetes.io/secure", "yes"), labels("node-restriction.kubernetes.io/secure", "yes"), sub("status"), ""},
		{"untaint", labels(), tainted, nil, `node "a" is not allowed to modify taints`},
		{"owner", owned, labels(), nil, "is not allowed to modify ownerReferences"},
		{"status of another", &corev1.Node{ObjectMeta: named("", "b")}, &corev1.Node{ObjectMeta: named("", "b")}, sub("status"), `node "a" is not allowed to modify node "b"`},
		{"token of no pod", account, nil, token("", ""), "node requested token not bound to a pod"},
		{"token without uid", account, nil, token("plain", ""), "node requested token with a pod binding without a uid"},
		{"token of another's pod", account, nil, token("other", other.UID), "node requested token bound to a pod scheduled on a different node"},
		{"token of an old pod", account, nil, token("plain", "old"), "does not match the UID in record"},
		{"token of no such pod", account, nil, token("none", "x"), `pods "none" not found`},
		{"token", account, nil, token("plain", plain.UID), ""},
		{"token for the pod's audience", account, nil, token("needy", needy.UID, "vault"), ""},
		{"token for the API that the pod did not ask for", account, nil, token("needy", needy.UID), `audience "" not found in pod spec volume`},
		{"token for another audience", account, nil, token("plain", plain.UID, "bank"), `audience "bank" not found in pod spec volume`},
		{"CSR", csr(t, certificatesv1.KubeletServingSignerName, "system:node:a", auth.NodesGroup), nil, nil, ""},
		{"CSR of another", csr(t, certificatesv1.KubeAPIServerClientKubeletSignerName, "system:node:b", auth.NodesGroup), nil, nil, "can only create a node CSR with CN=system:node:a"},
	} {
		r := ask(v, c.o, c.old)
		r.User = auth.User{Name: "system:node:a", Groups: []string{auth.NodesGroup}}
		if c.change != nil {
			c.change(r)
		}
		err := run(NodeRestriction(), r)
		wants(t, c.name, err, c.want)
		// Nobody else is held to it.
		r.User = anyone
		wants(t, c.name+" by another", run(NodeRestriction(), r), "")
	}
}

func csr(t *testing.T, signer, cn string, groups ...string) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn, Organization: groups}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return &certificatesv1.CertificateSigningRequest{ObjectMeta: named("", "c"), Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: signer,
		Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}}
}

func TestCertificates(t *testing.T) {
	z := grants{"approve signers kubernetes.io/kubelet-serving": true, "sign signers example.com/*": true}
	v := loaded()
	old := csr(t, certificatesv1.KubeletServingSignerName, "x")
	r := ask(v, old.DeepCopy(), old)
	r.Sub = "approval"
	wants(t, "approve", run(CertificateApproval(z), r), "")
	other := csr(t, "example.com/x", "x")
	r = ask(v, other.DeepCopy(), other)
	r.Sub = "approval"
	wants(t, "approve another", run(CertificateApproval(z), r), `user not permitted to approve requests with signerName "example.com/x"`)
	sent := other.DeepCopy()
	sent.Status.Certificate = []byte("x")
	r = ask(v, sent, other)
	r.Sub = "status"
	wants(t, "sign by domain", run(CertificateSigning(z), r), "")
	sent = old.DeepCopy()
	sent.Status.Certificate = []byte("x")
	r = ask(v, sent, old)
	r.Sub = "status"
	wants(t, "sign another", run(CertificateSigning(z), r), `user not permitted to sign requests with signerName "kubernetes.io/kubelet-serving"`)
	r = ask(v, old.DeepCopy(), old)
	r.Sub = "status"
	wants(t, "no change", run(CertificateSigning(z), r), "")
	wants(t, "masters", run(CertificateSubjectRestriction(), ask(v, csr(t, certificatesv1.KubeAPIServerClientSignerName, "me", "a", auth.Masters), nil)),
		`certificatesigningrequests.certificates.k8s.io "c" is forbidden: use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed`)
	wants(t, "no masters", run(CertificateSubjectRestriction(), ask(v, csr(t, certificatesv1.KubeAPIServerClientSignerName, auth.Masters, "a"), nil)), "")
	wants(t, "own signer", run(CertificateSubjectRestriction(), ask(v, csr(t, "example.com/x", "me", auth.Masters), nil)), "")
}

// grants are "verb resource name" that are allowed.
type grants map[string]bool

func (g grants) Authorize(_ context.Context, a auth.Attributes) (auth.Decision, string, error) {
	if g[a.Verb+" "+a.Resource+" "+a.Name] {
		return auth.Allow, "", nil
	}
	return auth.NoOpinion, "", nil
}

type owns []rbacv1.PolicyRule

func (o owns) Rules(auth.User, string) ([]rbacv1.PolicyRule, bool, error) { return o, false, nil }

func TestEscalation(t *testing.T) {
	rule := func(group, res string, verbs ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{res}, Verbs: verbs}
	}
	cluster := func(name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{ObjectMeta: named("", name), Rules: rules}
	}
	strong, weak := cluster("strong", rule("*", "*", "*")), cluster("weak", rule("", "pods", "get"))
	v := loaded(strong, weak, &rbacv1.Role{ObjectMeta: named("n", "weak"), Rules: weak.Rules})
	mine := owns{rule("", "pods", "get", "list"), rule("rbac.authorization.k8s.io", "*", "*")}
	to := func(kindName, name string) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: named("n", "b"), RoleRef: rbacv1.RoleRef{Kind: kindName, Name: name}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "joe"}}}
	}
	labelled := strong.DeepCopy()
	labelled.Labels = map[string]string{"rbac.authorization.k8s.io/aggregate-to-view": "true"}
	finalized := strong.DeepCopy()
	finalized.Finalizers = []string{"x/y"}
	sum := cluster("sum")
	sum.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{}}}
	for _, c := range []struct {
		name   string
		o, old kind.Object
		grant  grants
		want   string
	}{
		{"what I have", cluster("new", rule("", "pods", "get")), nil, nil, ""},
		{"more", cluster("new", rule("", "pods", "get", "watch", "delete"), rule("", "secrets", "get")), nil, nil,
			"clusterroles.rbac.authorization.k8s.io \"new\" is forbidden: user \"joe\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n" +
				"{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"watch\" \"delete\"]}\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}"},
		{"more, allowed to escalate", cluster("new", rule("", "secrets", "get")), nil, grants{"escalate clusterroles new": true}, ""},
		{"a role", &rbacv1.Role{ObjectMeta: named("n", "r"), Rules: []rbacv1.PolicyRule{rule("", "secrets", "get")}}, nil, nil, `Resources:["secrets"]`},
		{"a label on a strong role", labelled, strong, nil, "not currently held"},
		{"a finalizer on a strong role", finalized, strong, nil, ""},
		{"aggregation", sum, nil, nil, "must have cluster-admin privileges to use an aggregationRule"},
		{"aggregation taken away", cluster("sum"), sum, nil, "must have cluster-admin privileges to use an aggregationRule"},
		{"bind weak", to("ClusterRole", "weak"), nil, nil, ""},
		{"bind weak role", to("Role", "weak"), nil, nil, ""},
		{"bind strong", to("ClusterRole", "strong"), nil, nil, `rolebindings.rbac.authorization.k8s.io "b" is forbidden: user "joe"`},
		{"bind strong, allowed to bind", to("ClusterRole", "strong"), nil, grants{"bind clusterroles strong": true}, ""},
		{"bind strong, allowed to bind another", to("ClusterRole", "strong"), nil, grants{"bind clusterroles weak": true, "escalate clusterroles strong": true}, "not currently held"},
		{"bind nothing", to("Role", "none"), nil, nil, `roles.rbac.authorization.k8s.io "none" not found`},
		{"bind nothing in the cluster", &rbacv1.ClusterRoleBinding{ObjectMeta: named("", "b"), RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "none"}}, nil, nil, `clusterroles.rbac.authorization.k8s.io "none" not found`},
		{"subject added to strong", func() kind.Object {
			b := to("ClusterRole", "strong")
			b.Subjects = append(b.Subjects, rbacv1.Subject{Kind: "User", Name: "eve"})
			return b
		}(), to("ClusterRole", "strong"), nil, "not currently held"},
		{"no change", to("ClusterRole", "strong"), to("ClusterRole", "strong"), nil, ""},
		{"delete", nil, strong, nil, ""},
		{"another kind", podWith("p"), nil, nil, ""},
	} {
		wants(t, c.name, run(Escalation(c.grant, mine), ask(v, c.o, c.old)), c.want)
	}
	r := ask(v, cluster("new", rule("*", "*", "*")), nil)
	r.User.Groups = []string{auth.Masters}
	wants(t, "administrator", run(Escalation(grants{}, owns{}), r), "")
}

func TestClasses(t *testing.T) {
	def := func(key, name string, at int64) metav1.ObjectMeta {
		m := named("", name)
		m.Annotations, m.CreationTimestamp = map[string]string{key: "true"}, metav1.Unix(at, 0)
		return m
	}
	const sc = "storageclass.kubernetes.io/is-default-class"
	v := loaded(&storagev1.StorageClass{ObjectMeta: def(sc, "old", 1)}, &storagev1.StorageClass{ObjectMeta: def(sc, "z-new", 2)}, &storagev1.StorageClass{ObjectMeta: def(sc, "new", 2)},
		&storagev1.StorageClass{ObjectMeta: named("", "plain")}, &networkingv1.IngressClass{ObjectMeta: def(networkingv1.AnnotationIsDefaultIngressClass, "web", 1)})
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: named("n", "c")}
	wants(t, "claim", run(DefaultStorageClass(), ask(v, claim, nil)), "")
	if claim.Spec.StorageClassName == nil || *claim.Spec.StorageClassName != "new" {
		t.Errorf("%v", claim.Spec.StorageClassName)
	}
	none := ""
	claim = &corev1.PersistentVolumeClaim{ObjectMeta: named("n", "c"), Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &none}}
	wants(t, "claim for none", run(DefaultStorageClass(), ask(v, claim, nil)), "")
	if *claim.Spec.StorageClassName != "" {
		t.Error("a claim that wants no class gets one")
	}
	claim = &corev1.PersistentVolumeClaim{ObjectMeta: named("n", "c")}
	wants(t, "no class there", run(DefaultStorageClass(), ask(loaded(), claim, nil)), "")
	if claim.Spec.StorageClassName != nil {
		t.Error("a class from nowhere")
	}
	in := &networkingv1.Ingress{ObjectMeta: named("n", "i")}
	wants(t, "ingress", run(DefaultIngressClass(), ask(v, in, nil)), "")
	if in.Spec.IngressClassName == nil || *in.Spec.IngressClassName != "web" {
		t.Errorf("%v", in.Spec.IngressClassName)
	}
	in = &networkingv1.Ingress{ObjectMeta: named("n", "i")}
	in.Annotations = map[string]string{"kubernetes.io/ingress.class": "old"}
	wants(t, "annotated ingress", run(DefaultIngressClass(), ask(v, in, nil)), "")
	if in.Spec.IngressClassName != nil {
		t.Error("two classes")
	}
	n := &corev1.Node{ObjectMeta: named("", "a")}
	for range 2 {
		wants(t, "node", run(TaintNodesByCondition(), ask(v, n, nil)), "")
	}
	if len(n.Spec.Taints) != 1 || n.Spec.Taints[0].Key != corev1.TaintNodeNotReady || n.Spec.Taints[0].Effect != corev1.TaintEffectNoSchedule {
		t.Errorf("%+v", n.Spec.Taints)
	}
}

func TestRuntimeClass(t *testing.T) {
	v := loaded(&nodev1.RuntimeClass{ObjectMeta: named("", "vm"), Handler: "vm", Overhead: &nodev1.Overhead{PodFixed: quantities("memory=100Mi")},
		Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{"vm": "yes"}, Tolerations: []corev1.Toleration{{Key: "vm", Operator: corev1.TolerationOpExists}}}},
		&nodev1.RuntimeClass{ObjectMeta: named("", "plain"), Handler: "plain"})
	with := func(class string, change func(*corev1.PodSpec)) (*corev1.Pod, error) {
		p := podWith("p")
		if class != "" {
			p.Spec.RuntimeClassName = &class
		}
		if change != nil {
			change(&p.Spec)
		}
		return p, run(RuntimeClass(), ask(v, p, nil))
	}
	p, err := with("vm", nil)
	wants(t, "vm", err, "")
	if q := p.Spec.Overhead[corev1.ResourceMemory]; q.String() != "100Mi" || p.Spec.NodeSelector["vm"] != "yes" || len(p.Spec.Tolerations) != 1 {
		t.Errorf("%+v", p.Spec)
	}
	_, err = with("plain", nil)
	wants(t, "plain", err, "")
	_, err = with("none", nil)
	wants(t, "none", err, `pods "p" is forbidden: pod rejected: RuntimeClass "none" not found`)
	_, err = with("vm", func(s *corev1.PodSpec) { s.Overhead = quantities("memory=1Mi") })
	wants(t, "other overhead", err, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
	_, err = with("", func(s *corev1.PodSpec) { s.Overhead = quantities("memory=1Mi") })
	wants(t, "overhead of nothing", err, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
	_, err = with("vm", func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{"vm": "no"} })
	wants(t, "conflict", err, "conflict: runtimeClass.scheduling.nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no")
}

func TestPodSecurity(t *testing.T) {
	ns := func(name string, kv ...string) *corev1.Namespace {
		n := &corev1.Namespace{ObjectMeta: named("", name)}
		n.Labels = map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			n.Labels["pod-security.kubernetes.io/"+kv[i]] = kv[i+1]
		}
		return n
	}
	yes := true
	bad := podWith("bad", corev1.Container{Name: "c", Image: "i", SecurityContext: &corev1.SecurityContext{Privileged: &yes}})
	check := func(n *corev1.Namespace, o, old kind.Object, sub string) (warned []string, err error) {
		v := loaded(n, bad)
		r := ask(v, o, old)
		r.Sub = sub
		r.Warn = func(s string) { warned = append(warned, s) }
		return warned, run(PodSecurity(PodSecurityConfig{}), r)
	}
	_, err := check(ns("n"), bad, nil, "")
	wants(t, "no labels", err, "")
	_, err = check(ns("n", "enforce", "baseline"), bad, nil, "")
	wants(t, "baseline", err, `pods "bad" is forbidden: violates PodSecurity "baseline:latest": privileged (container "c" must not set securityContext.privileged=true)`)
	_, err = check(ns("n", "enforce", "restricted"), podWith("p", container("c", "", "")), nil, "")
	wants(t, "restricted", err, `violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "c" must set securityContext.allowPrivilegeEscalation=false)`)
	_, err = check(ns("n", "enforce", "baseline"), podWith("p", container("c", "", "")), nil, "")
	wants(t, "baseline, decent", err, "")
	w, err := check(ns("n", "warn", "baseline"), bad, nil, "")
	wants(t, "warn", err, "")
	if len(w) != 1 || !strings.HasPrefix(w[0], `would violate PodSecurity "baseline:latest": privileged`) {
		t.Errorf("%q", w)
	}
	d := &appsv1.Deployment{ObjectMeta: named("n", "d"), Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{Spec: bad.Spec}}}
	w, err = check(ns("n", "enforce", "baseline", "warn", "baseline"), d, nil, "")
	wants(t, "a workload is warned, not refused", err, "")
	if len(w) != 1 {
		t.Errorf("%q", w)
	}
	_, err = check(ns("n", "enforce", "baseline"), bad.DeepCopy(), bad, "")
	wants(t, "an update of no weight", err, "")
	image := bad.DeepCopy()
	image.Spec.Containers[0].Image = "j"
	_, err = check(ns("n", "enforce", "baseline"), image, bad, "")
	wants(t, "a new image", err, "violates PodSecurity")
	debug := bad.DeepCopy()
	debug.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "d", Image: "x"}}}
	_, err = check(ns("n", "enforce", "baseline"), debug, bad, "ephemeralcontainers")
	wants(t, "a debugging container", err, "violates PodSecurity")
	_, err = check(ns("n", "enforce", "baseline"), image, bad, "status")
	wants(t, "status", err, "")
	_, err = check(ns("n"), ns("new", "enforce", "strong"), nil, "")
	wants(t, "unknown level", err, `Namespace "new" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: "strong": must be one of privileged, baseline, restricted`)
	w, err = check(ns("n"), ns("n", "enforce", "baseline"), ns("n"), "")
	wants(t, "a stricter level", err, "")
	if len(w) != 2 || w[0] != `existing pods in namespace "n" violate the new PodSecurity enforce level "baseline:latest"` || w[1] != "bad: privileged" {
		t.Errorf("%q", w)
	}
}

func service(name string, change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: named("n", name), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}}}
	if change != nil {
		change(s)
	}
	kind.Service.Default(s)
	return s
}

func addresses(v *view.View, network string) *Addresses {
	return &Addresses{Range: netip.MustParsePrefix(network), PortFirst: 30000, PortEnd: 30020, View: v, Rand: env.SystemRand()}
}

func TestAddressesByType(t *testing.T) {
	v := loaded(service("have", func(s *corev1.Service) {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.0.0.9", []string{"10.0.0.9"}
		s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30007
	}))
	set := func(f func(*corev1.ServiceSpec)) func(*corev1.Service) {
		return func(s *corev1.Service) { f(&s.Spec) }
	}
	two, dual, six := corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack, corev1.IPv6Protocol
	off := false
	for _, c := range []struct {
		name   string
		change func(*corev1.ServiceSpec)
		want   string
		check  func(*corev1.ServiceSpec) bool
	}{
		{"plain", func(*corev1.ServiceSpec) {}, "", func(s *corev1.ServiceSpec) bool {
			return netip.MustParsePrefix("10.0.0.0/24").Contains(netip.MustParseAddr(s.ClusterIP)) && s.ClusterIPs[0] == s.ClusterIP && s.IPFamilies[0] == corev1.IPv4Protocol &&
				*s.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack && s.Ports[0].NodePort == 0
		}},
		{"headless with selector", func(s *corev1.ServiceSpec) {
			s.ClusterIP, s.Selector = "None", map[string]string{"a": "b"}
		}, "", func(s *corev1.ServiceSpec) bool {
			return s.ClusterIPs[0] == "None" && len(s.IPFamilies) == 1 && *s.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack
		}},
		{"headless without selector", func(s *corev1.ServiceSpec) { s.ClusterIP = "None" }, "", func(s *corev1.ServiceSpec) bool {
			return len(s.IPFamilies) == 2 && *s.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack
		}},
		{"named address", func(s *corev1.ServiceSpec) { s.ClusterIP = "10.0.0.77" }, "", func(s *corev1.ServiceSpec) bool { return s.ClusterIPs[0] == "10.0.0.77" }},
		{"taken address", func(s *corev1.ServiceSpec) { s.ClusterIP = "10.0.0.9" }, `Service "s" is invalid: spec.clusterIPs[0]: Invalid value: "10.0.0.9": failed to allocate IP 10.0.0.9: provided IP is already allocated`, nil},
		{"outside", func(s *corev1.ServiceSpec) { s.ClusterIP = "10.0.1.9" }, "the provided IP (10.0.1.9) is not in the valid range. The range of valid IPs is 10.0.0.0/24", nil},
		{"broadcast", func(s *corev1.ServiceSpec) { s.ClusterIP = "10.0.0.255" }, "is not in the valid range", nil},
		{"network", func(s *corev1.ServiceSpec) { s.ClusterIP = "10.0.0.0" }, "is not in the valid range", nil},
		{"external name", func(s *corev1.ServiceSpec) { s.Type, s.ExternalName = corev1.ServiceTypeExternalName, "x" }, "", func(s *corev1.ServiceSpec) bool {
			return s.ClusterIP == "" && s.ClusterIPs == nil && s.IPFamilies == nil && s.IPFamilyPolicy == nil
		}},
		{"prefer dual", func(s *corev1.ServiceSpec) { s.IPFamilyPolicy = &two }, "", func(s *corev1.ServiceSpec) bool { return len(s.ClusterIPs) == 1 }},
		{"require dual", func(s *corev1.ServiceSpec) { s.IPFamilyPolicy = &dual }, `spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services`, nil},
		{"IPv6", func(s *corev1.ServiceSpec) { s.IPFamilies = []corev1.IPFamily{six} }, `spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster`, nil},
		{"node port", func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeNodePort }, "", func(s *corev1.ServiceSpec) bool {
			return s.Ports[0].NodePort >= 30000 && s.Ports[0].NodePort < 30020 && s.Ports[0].NodePort != 30007
		}},
		{"taken node port", func(s *corev1.ServiceSpec) { s.Type, s.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30007 }, `spec.ports[0].nodePort: Invalid value: 30007: provided port is already allocated`, nil},
		{"node port outside", func(s *corev1.ServiceSpec) { s.Type, s.Ports[0].NodePort = corev1.ServiceTypeNodePort, 80 }, "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-30019", nil},
		{"two protocols", func(s *corev1.ServiceSpec) {
			s.Type = corev1.ServiceTypeNodePort
			s.Ports = append(s.Ports, corev1.ServicePort{Port: 80, Protocol: corev1.ProtocolUDP}, corev1.ServicePort{Port: 81, Protocol: corev1.ProtocolTCP})
		}, "", func(s *corev1.ServiceSpec) bool {
			return s.Ports[0].NodePort == s.Ports[1].NodePort && s.Ports[2].NodePort != s.Ports[0].NodePort
		}},
		{"load balancer", func(s *corev1.ServiceSpec) {
			s.Type, s.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
		}, "", func(s *corev1.ServiceSpec) bool {
			return s.Ports[0].NodePort != 0 && s.HealthCheckNodePort != 0 && s.HealthCheckNodePort != s.Ports[0].NodePort
		}},
		{"load balancer without node ports", func(s *corev1.ServiceSpec) {
			s.Type, s.AllocateLoadBalancerNodePorts = corev1.ServiceTypeLoadBalancer, &off
		}, "", func(s *corev1.ServiceSpec) bool { return s.Ports[0].NodePort == 0 && s.HealthCheckNodePort == 0 }},
		{"taken health port", func(s *corev1.ServiceSpec) {
			s.Type, s.ExternalTrafficPolicy, s.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal, 30007
		}, "spec.healthCheckNodePort: Invalid value: 30007: provided port is already allocated", nil},
	} {
		s := service("s", set(c.change))
		err := run(addresses(v, "10.0.0.0/24").Plugin(), ask(v, s, nil))
		wants(t, c.name, err, c.want)
		if err == nil && c.check != nil && !c.check(&s.Spec) {
			t.Errorf("%s: %+v", c.name, s.Spec)
		}
	}
}

// TestAddressesOfRanges: ranges that people add give addresses when they are ready,
// and an address that somebody else has is not given.
func TestAddressesOfRanges(t *testing.T) {
	cidr := func(name, status string, deleted bool, cidrs ...string) *networkingv1.ServiceCIDR {
		c := &networkingv1.ServiceCIDR{ObjectMeta: named("", name), Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs},
			Status: networkingv1.ServiceCIDRStatus{Conditions: []metav1.Condition{{Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionStatus(status)}}}}
		if deleted {
			c.DeletionTimestamp, c.Finalizers = &metav1.Time{Time: time.Unix(1, 0)}, []string{"a/b"}
		}
		return c
	}
	owned := func(ip, group, resource string) *networkingv1.IPAddress {
		return &networkingv1.IPAddress{ObjectMeta: named("", ip), Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Group: group, Resource: resource, Name: "x"}}}
	}
	v := loaded(cidr("a-more", "True", false, "fd00::/112", "10.0.1.0/30"), cidr("b-new", "Unknown", false, "10.0.2.0/24"), cidr("c-gone", "True", true, "10.0.3.0/24"),
		owned("10.0.0.2", "gateway.networking.k8s.io", "gateways"), owned("10.0.1.1", "", "services"))
	at := func(ip string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.ClusterIP = ip }
	}
	for ip, want := range map[string]string{
		"10.0.1.1": "", "10.0.1.3": "not in the valid range", "10.0.2.1": "not in the valid range", "10.0.3.1": "not in the valid range",
		"10.0.0.2": "failed to allocate IP 10.0.0.2: provided IP is already allocated",
	} {
		wants(t, ip, run(addresses(v, "10.0.0.0/30").Plugin(), ask(v, service("s", at(ip)), nil)), want)
	}
	a, got := addresses(v, "10.0.0.0/30"), map[string]bool{}
	for i := range 3 {
		s := service(fmt.Sprint("s", i), nil)
		s.UID = types.UID(s.Name)
		wants(t, s.Name, run(a.Plugin(), ask(v, s, nil)), "")
		got[s.Spec.ClusterIP] = true
	}
	if len(got) != 3 || !got["10.0.0.1"] || !got["10.0.1.1"] || !got["10.0.1.2"] {
		t.Errorf("three Services have %v", got)
	}
	wants(t, "a fourth", run(a.Plugin(), ask(v, service("s3", nil), nil)), "range is full")
}

// write puts what was admitted into the view.
func write(v *view.View, rev int64, o kind.Object) {
	o.SetResourceVersion(strconv.FormatInt(rev, 10))
	v.Apply(view.Change{Kind: kindOf(o), Revision: rev, New: o})
}

func TestAddressesOverTime(t *testing.T) {
	v := loaded()
	a := addresses(v, "10.0.0.0/29") // six addresses
	p := a.Plugin()
	node := func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }
	one := service("one", node)
	r := ask(v, one, nil)
	wants(t, "one", run(p, r), "")
	rev := int64(2)
	write(v, rev, one)
	ip, port := one.Spec.ClusterIP, one.Spec.Ports[0].NodePort

	// A manifest applied again keeps what was given.
	again := service("one", node)
	wants(t, "again", run(p, ask(v, again, one)), "")
	if again.Spec.ClusterIP != ip || again.Spec.Ports[0].NodePort != port {
		t.Errorf("%+v", again.Spec)
	}
	// A change of the type gives back what it had no more.
	to := one.DeepCopy()
	to.Spec.Type = corev1.ServiceTypeClusterIP
	wants(t, "to cluster IP", run(p, ask(v, to, one)), "")
	if to.Spec.Ports[0].NodePort != 0 || to.Spec.ClusterIP != ip {
		t.Errorf("%+v", to.Spec)
	}
	ext := one.DeepCopy()
	ext.Spec.Type, ext.Spec.ExternalName = corev1.ServiceTypeExternalName, "x"
	wants(t, "to a name", run(p, ask(v, ext, one)), "")
	if ext.Spec.ClusterIP != "" || ext.Spec.Ports[0].NodePort != 0 {
		t.Errorf("%+v", ext.Spec)
	}
	rev++
	write(v, rev, ext)
	back := ext.DeepCopy()
	back.Spec.Type, back.Spec.ExternalName = corev1.ServiceTypeClusterIP, ""
	wants(t, "back", run(p, ask(v, back, ext)), "")
	if back.Spec.ClusterIP == "" {
		t.Error("no address")
	}
	taker := service("taker", func(s *corev1.Service) { s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, port })
	wants(t, "the port that was given back", run(p, ask(v, taker, nil)), "")
	rev++
	v.Apply(view.Change{Kind: kind.Service, Revision: rev, Last: ext})
	a.promised = nil

	// A dry run keeps nothing, a failure gives back, a promise holds.
	dry := ask(v, service("dry", func(s *corev1.Service) { s.Spec.ClusterIP = "10.0.0.3" }), nil)
	dry.DryRun = true
	wants(t, "dry", run(p, dry), "")
	first := ask(v, service("first", func(s *corev1.Service) { s.Spec.ClusterIP = "10.0.0.3" }), nil)
	wants(t, "after the dry run", run(p, first), "")
	twin := ask(v, service("first", func(s *corev1.Service) { s.Spec.ClusterIP = "10.0.0.3"; s.UID = "twin" }), nil)
	wants(t, "promised", run(p, twin), "already allocated")
	p.Release(twin) // the loser of two creates of one name must not free the winner's
	third := ask(v, service("third", func(s *corev1.Service) { s.Spec.ClusterIP = "10.0.0.3" }), nil)
	wants(t, "still promised", run(p, third), "already allocated")
	p.Release(first)
	wants(t, "given back", run(p, third), "")
	p.Release(third)

	// The range ends, and a removal makes room.
	var all []*corev1.Service
	for i := range 6 {
		s := service(fmt.Sprint("s", i), nil)
		wants(t, s.Name, run(p, ask(v, s, nil)), "")
		rev++
		write(v, rev, s)
		all = append(all, s)
	}
	err := run(p, ask(v, service("full", nil), nil))
	wants(t, "full", err, "failed to allocate a serviceIP: range is full")
	if !apierrors.IsInternalError(err) {
		t.Error(err)
	}
	rev++
	v.Apply(view.Change{Kind: kind.Service, Revision: rev, Last: all[3]})
	s := service("room", nil)
	wants(t, "room", run(p, ask(v, s, nil)), "")
	if s.Spec.ClusterIP != all[3].Spec.ClusterIP {
		t.Errorf("%s, want %s", s.Spec.ClusterIP, all[3].Spec.ClusterIP)
	}
	rev++
	write(v, rev, s)
	run(p, ask(v, service("settle", func(s *corev1.Service) { s.Spec.ClusterIP = "None" }), nil))
	if len(a.promised) != 1 {
		t.Errorf("%d promises are held after all writes", len(a.promised))
	}
	// Node ports end, too.
	big := addresses(v, "10.1.0.0/16")
	var ports []int32
	for i := range 20 {
		n := service(fmt.Sprint("p", i), node)
		wants(t, n.Name, run(big.Plugin(), ask(v, n, nil)), "")
		ports = append(ports, n.Spec.Ports[0].NodePort)
	}
	slices.Sort(ports)
	if len(slices.Compact(ports)) != 20 {
		t.Errorf("%v", ports)
	}
	wants(t, "no port left", run(big.Plugin(), ask(v, service("last", node), nil)), "failed to allocate a nodePort: range is full")
}

func quota(name, hard string, change func(*corev1.ResourceQuota)) *corev1.ResourceQuota {
	q := &corev1.ResourceQuota{ObjectMeta: named("n", name), Spec: corev1.ResourceQuotaSpec{Hard: quantities(hard)}}
	if change != nil {
		change(q)
	}
	return q
}

func TestQuota(t *testing.T) {
	best := func(q *corev1.ResourceQuota) {
		q.Spec.Scopes = []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeBestEffort}
	}
	have := podWith("have", container("c", "cpu=1 memory=1Gi", "cpu=2"))
	for _, c := range []struct {
		name  string
		quota *corev1.ResourceQuota
		o     kind.Object
		want  string
	}{
		{"count", quota("q", "pods=2", nil), podWith("p"), ""},
		{"count over", quota("q", "pods=1", nil), podWith("p"), `pods "p" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1`},
		{"requests over", quota("q", "requests.cpu=1500m requests.memory=1Gi", nil), podWith("p", container("c", "cpu=1 memory=1", "")),
			"exceeded quota: q, requested: requests.cpu=1,requests.memory=1, used: requests.cpu=1,requests.memory=1Gi, limited: requests.cpu=1500m,requests.memory=1Gi"},
		{"says nothing", quota("q", "limits.cpu=10 memory=9Gi", nil), podWith("p", container("b", "", "cpu=1"), container("a", "memory=1Mi", "")),
			`pods "p" is forbidden: failed quota: q: must specify limits.cpu for: a; memory for: b`},
		{"scope does not match", quota("q", "pods=0", best), podWith("p", container("c", "cpu=1", "")), ""},
		{"scope matches", quota("q", "pods=0", best), podWith("p", container("c", "", "")), "exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0"},
		{"objects", quota("q", "count/configmaps=0 configmaps=5", nil), &corev1.ConfigMap{ObjectMeta: named("n", "c")}, "exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=0, limited: count/configmaps=0"},
		{"workloads", quota("q", "count/deployments.apps=0", nil), &appsv1.Deployment{ObjectMeta: named("n", "d")}, "count/deployments.apps=1"},
		{"node ports", quota("q", "services.nodeports=1", nil), service("s", func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeNodePort
			s.Spec.Ports = append(s.Spec.Ports, s.Spec.Ports[0])
		}), "requested: services.nodeports=2"},
		{"another namespace", quota("q", "pods=0", func(q *corev1.ResourceQuota) { q.Namespace = "m" }), podWith("p"), ""},
	} {
		v := loaded(c.quota, have)
		err := run((&Quota{View: v}).Plugin(), ask(v, c.o, nil))
		wants(t, c.name, err, c.want)
		if err != nil && !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestQuotaOverTime(t *testing.T) {
	v := loaded(quota("q", "pods=2 requests.cpu=3", nil))
	q := &Quota{View: v}
	p := q.Plugin()
	one := func(name string) *corev1.Pod { return podWith(name, container("c", "cpu=1", "")) }
	a, b := ask(v, one("a"), nil), ask(v, one("b"), nil)
	wants(t, "a", run(p, a), "")
	wants(t, "b", run(p, b), "")
	wants(t, "c while two are promised", run(p, ask(v, one("c"), nil)), "exceeded quota")
	p.Release(b)
	wants(t, "c after b failed", run(p, ask(v, one("c"), nil)), "")
	q.promised = nil

	// Written and gone before anybody looks: nothing is counted, at once.
	for i := range int64(5) {
		r := ask(v, one("x"), nil)
		wants(t, "again and again", run(p, r), "")
		r.Object.SetName("generated-" + strconv.FormatInt(i, 10)) // another name was free
		write(v, 10+2*i, r.Object)
		v.Apply(view.Change{Kind: kind.Pod, Revision: 11 + 2*i, Last: r.Object})
	}
	// Written: counted once.
	r := ask(v, one("a"), nil)
	wants(t, "a", run(p, r), "")
	write(v, 30, r.Object)
	wants(t, "b", run(p, ask(v, one("b"), nil)), "")
	wants(t, "c", run(p, ask(v, one("c"), nil)), "used: pods=2")
	if len(q.promised) != 1 {
		t.Errorf("%d promises, want b's", len(q.promised))
	}
	dry := ask(v, one("c"), nil)
	dry.DryRun = true
	q.promised = nil
	wants(t, "dry", run(p, dry), "")
	if len(q.promised) != 0 {
		t.Error("a dry run holds a place")
	}
	// An update that asks for more, by its difference; one that asks for less passes.
	old := r.Object.(*corev1.Pod)
	grown := old.DeepCopy()
	grown.Spec.Containers[0].Resources.Requests = quantities("cpu=4")
	up := ask(v, grown, old)
	up.Sub = "resize"
	wants(t, "grown", run(p, up), "exceeded quota: q, requested: requests.cpu=3, used: requests.cpu=1, limited: requests.cpu=3")
	grown.Spec.Containers[0].Resources.Requests = quantities("cpu=2500m")
	wants(t, "grown a little", run(p, up), "")
	wants(t, "what is left", run(p, ask(v, one("d"), nil)), "requested: requests.cpu=1, used: requests.cpu=2500m")
	small := old.DeepCopy()
	small.Spec.Containers[0].Resources.Requests = quantities("cpu=1m")
	v.Apply(view.Change{Kind: kind.ResourceQuota, Revision: 40, New: quota("q", "pods=0 requests.cpu=0", nil)})
	down := ask(v, small, old)
	down.Sub = "resize"
	wants(t, "smaller under a full quota", run(p, down), "")
	// Another scope: counted anew.
	v.Apply(view.Change{Kind: kind.ResourceQuota, Revision: 41, New: quota("q", "pods=1", func(q *corev1.ResourceQuota) {
		q.Spec.Scopes = []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeBestEffort}
	})})
	q.promised = nil
	wants(t, "another scope", run(p, ask(v, podWith("e", container("c", "", "")), nil)), "")
	// A promise that nobody redeems ends.
	late := ask(v, podWith("f", container("c", "", "")), nil)
	wants(t, "still promised", run(p, late), "exceeded quota")
	late.Now = late.Now.Add(2 * promiseLife)
	wants(t, "forgotten", run(p, late), "")
}

// BenchmarkQuota: an admission does not count the namespace again.
func BenchmarkQuota(b *testing.B) {
	v := loaded(quota("q", "pods=1000000", nil))
	for i := range 10000 {
		v.Apply(view.Change{Kind: kind.Pod, Revision: int64(2 + i), New: podWith(fmt.Sprint("p", i), container("c", "cpu=1", ""))})
	}
	q := &Quota{View: v}
	p := q.Plugin()
	for b.Loop() {
		r := ask(v, podWith("x", container("c", "cpu=1", "")), nil)
		if err := run(p, r); err != nil {
			b.Fatal(err)
		}
		p.Release(r)
	}
}
