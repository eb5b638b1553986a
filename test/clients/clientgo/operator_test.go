package clientgo

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"proa.dev/envtest"
	"proa.dev/test/clients/lab"
)

// The rights that the operator's chart would give it, and no others.
var rights = []any{
	&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
	&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: manager}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get", "list", "watch", "create", "patch"}},
		{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
		{APIGroups: []string{"sea.example.com"}, Resources: []string{"boats"}, Verbs: []string{"get", "list", "watch", "update"}},
		{APIGroups: []string{"sea.example.com"}, Resources: []string{"boats/status"}, Verbs: []string{"update"}},
		{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"get", "create", "update"}},
	}},
	&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: manager},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: manager},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "operators"}}},
}

func TestOperator(t *testing.T) {
	cp := envtest.Start(t, envtest.CRDs("testdata"), envtest.Objects(rights...), envtest.Controllers("garbagecollector", "namespace"))
	core, err := kubernetes.NewForConfig(cp.Config)
	lab.Must(t, err)
	dyn, err := dynamic.NewForConfig(cp.Config)
	lab.Must(t, err)

	// Two candidates; one leads.
	start := func(id string) (*operator, func()) {
		config, err := cp.User(id, "operators")
		lab.Must(t, err)
		o, err := newOperator(id, config)
		lab.Must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- o.run(ctx) }()
		stop := sync.OnceFunc(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("operator %q: %v", id, err)
			}
		})
		t.Cleanup(stop)
		return o, stop
	}
	a, stopA := start("a")
	lab.Eventually(t, "a leads", func(ctx context.Context) error {
		if !a.leads.Load() {
			return fmt.Errorf("it does not")
		}
		return nil
	})
	b, _ := start("b")

	const ns = "harbour"
	_, err = core.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{})
	lab.Must(t, err)
	door := dyn.Resource(boats).Namespace(ns)
	newBoat := func(name string) *unstructured.Unstructured {
		t.Helper()
		o, err := door.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "sea.example.com/v1", "kind": "Boat", "metadata": map[string]any{"name": name}, "spec": map[string]any{"sails": int64(1)}}}, metav1.CreateOptions{})
		lab.Must(t, err)
		return o
	}
	reported := func(name string, sails int64, by string) {
		t.Helper()
		lab.Eventually(t, fmt.Sprintf("boat %s with %d sails by %s", name, sails, by), func(ctx context.Context) error {
			o, err := door.Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			m, err := core.CoreV1().ConfigMaps(ns).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			status, _, _ := unstructured.NestedMap(o.Object, "status")
			if status["sails"] != sails || status["by"] != by || status["observedGeneration"] != o.GetGeneration() || m.Data["sails"] != fmt.Sprint(sails) {
				return fmt.Errorf("generation %d, status %v, config map %v", o.GetGeneration(), status, m.Data)
			}
			return nil
		})
	}

	first := newBoat("first")
	reported("first", 1, "a")
	m, err := core.CoreV1().ConfigMaps(ns).Get(t.Context(), "first", metav1.GetOptions{})
	lab.Must(t, err)
	if owner := metav1.GetControllerOf(m); owner == nil || owner.UID != first.GetUID() {
		t.Errorf("owners: %v", m.OwnerReferences)
	}
	if f := m.ManagedFields; len(f) != 1 || f[0].Manager != manager || f[0].Operation != metav1.ManagedFieldsOperationApply {
		t.Errorf("managed fields: %v", f)
	}

	// Another manager may not take the operator's field, and may have one of its own.
	apply := func(data map[string]string) error {
		_, err := core.CoreV1().ConfigMaps(ns).Apply(t.Context(), applycorev1.ConfigMap("first", ns).WithData(data), metav1.ApplyOptions{FieldManager: "passenger"})
		return err
	}
	if err := apply(map[string]string{"sails": "9"}); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "boatswain": .data.sails`) {
		t.Errorf("apply of another's field: %v", err)
	}
	lab.Must(t, apply(map[string]string{"luggage": "heavy"}))

	// What others take away comes back.
	m.Data["sails"] = "77"
	m.ResourceVersion = ""
	_, err = core.CoreV1().ConfigMaps(ns).Update(t.Context(), m, metav1.UpdateOptions{})
	lab.Must(t, err)
	reported("first", 1, "a")
	lab.Must(t, core.CoreV1().ConfigMaps(ns).Delete(t.Context(), "first", metav1.DeleteOptions{}))
	reported("first", 1, "a")

	// An update on an old version is a conflict; with retries nothing is lost, with
	// the operator's status in between.
	first.Object["spec"] = map[string]any{"sails": int64(5)}
	if _, err := door.Update(t.Context(), first, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("update of an old version: %v", err)
	}
	if _, err := door.UpdateStatus(t.Context(), first, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("update of an old version's status: %v", err)
	}
	var sailors sync.WaitGroup
	for range 4 {
		sailors.Go(func() {
			for range 5 {
				if err := retry.RetryOnConflict(wait.Backoff{Steps: 1000, Duration: time.Millisecond, Jitter: 1}, func() error {
					o, err := door.Get(t.Context(), "first", metav1.GetOptions{})
					if err != nil {
						return err
					}
					n, _, _ := unstructured.NestedInt64(o.Object, "spec", "sails")
					if err := unstructured.SetNestedField(o.Object, n+1, "spec", "sails"); err != nil {
						return err
					}
					_, err = door.Update(t.Context(), o, metav1.UpdateOptions{})
					return err
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	sailors.Wait()
	reported("first", 21, "a")
	t.Logf("the operator met %d conflicts", a.conflicts.Load())

	// Events tell of it.
	lab.Eventually(t, "events", func(ctx context.Context) error {
		list, err := core.CoreV1().Events(ns).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.kind=Boat,involvedObject.name=first,reason=Rigged"})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if strings.HasSuffix(e.Message, "sails: 21") && // the recorder combines similar ones
				e.Source.Component == manager && e.InvolvedObject.UID == first.GetUID() {
				return nil
			}
		}
		return fmt.Errorf("%d events, none tells of 21 sails", len(list.Items))
	})

	// The leader is gone without a word: the other takes over when the lease has run out.
	if b.leads.Load() {
		t.Error("both lead")
	}
	stopA()
	reported("first", 21, "b")
	lease, err := core.CoordinationV1().Leases(namespace).Get(t.Context(), manager, metav1.GetOptions{})
	lab.Must(t, err)
	if *lease.Spec.HolderIdentity != "b" || *lease.Spec.LeaseTransitions != 1 {
		t.Errorf("lease: %v", lease.Spec)
	}

	// Deletion waits for the finalizer; the collector takes the config map after its
	// owner, or before it when asked to.
	gone := func(name string) {
		t.Helper()
		lab.Eventually(t, name+" is gone", func(ctx context.Context) error {
			if _, err := door.Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				return fmt.Errorf("the boat: %v", err)
			}
			if _, err := core.CoreV1().ConfigMaps(ns).Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				return fmt.Errorf("its config map: %v", err)
			}
			return nil
		})
	}
	w, err := door.Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=first"})
	lab.Must(t, err)
	defer w.Stop()
	lab.Must(t, door.Delete(t.Context(), "first", metav1.DeleteOptions{}))
	for e := range w.ResultChan() {
		if e.Type == "DELETED" {
			if o := e.Object.(*unstructured.Unstructured); o.GetAnnotations()["sea.example.com/last-words"] != "b" {
				t.Errorf("the boat went without its operator: %v", o.GetAnnotations())
			}
			break
		}
	}
	gone("first")
	newBoat("second")
	reported("second", 1, "b")
	foreground := metav1.DeletePropagationForeground
	lab.Must(t, door.Delete(t.Context(), "second", metav1.DeleteOptions{PropagationPolicy: &foreground}))
	gone("second")

	// A namespace goes with all that is in it.
	newBoat("third")
	reported("third", 1, "b")
	lab.Must(t, core.CoreV1().Namespaces().Delete(t.Context(), ns, metav1.DeleteOptions{}))
	gone("third")
	lab.Eventually(t, "the namespace is gone", func(ctx context.Context) error {
		if _, err := core.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("get: %v", err)
		}
		return nil
	})
}
