package apiserver_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"proa.dev/apiserver"
	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/apitest"
)

// TestAdmission: both halves run in order, see what they should, and what they
// hold is given back when the write does not happen.
func TestAdmission(t *testing.T) {
	var steps []string
	held := map[string]int{}
	chain := admit.Chain{
		{Name: "Label", Mutate: func(_ context.Context, r *admit.Request) error {
			if r.Object != nil && r.Sub == "" {
				steps = append(steps, "mutate "+string(r.Operation))
				l := r.Object.GetLabels()
				if l == nil {
					l = map[string]string{}
				}
				l["seen"] = "yes"
				r.Object.SetLabels(l)
				r.Warn("careful")
			}
			return nil
		}},
		{Name: "Hold", Mutate: func(_ context.Context, r *admit.Request) error {
			held[r.Name]++
			return nil
		}, Release: func(r *admit.Request) { held[r.Name]-- }},
		{Name: "Refuse", Validate: func(_ context.Context, r *admit.Request) error {
			steps = append(steps, "validate "+string(r.Operation))
			if strings.HasPrefix(r.Name, "bad") {
				return errors.New("no bad names")
			}
			return nil
		}},
	}
	c := apitest.Start(t, func(cfg *apiserver.Config) { cfg.Admit = chain })
	cms := clients(t, c)["json"].CoreV1().ConfigMaps("n")
	made, err := cms.Create(ctx, configMap("good", "1"), metav1.CreateOptions{})
	if err != nil || made.Labels["seen"] != "yes" || held["good"] != 1 {
		t.Fatalf("%v %v %v", made, held, err)
	}
	_, err = cms.Create(ctx, configMap("bad", "1"), metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `configmaps "bad" is forbidden: admission plugin Refuse: no bad names`) || held["bad"] != 0 {
		t.Fatalf("%v %v", err, held)
	}
	if _, err = cms.Create(ctx, configMap("No Name", "1"), metav1.CreateOptions{}); !apierrors.IsInvalid(err) || held["No Name"] != 0 {
		t.Fatalf("%v %v", err, held)
	}
	if _, err = cms.Create(ctx, configMap("good", "1"), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) || held["good"] != 1 {
		t.Fatalf("%v %v", err, held)
	}
	if err := cms.Delete(ctx, "good", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"mutate CREATE", "validate CREATE"}; !slices.Equal(steps[:2], want) || steps[len(steps)-1] != "validate DELETE" {
		t.Fatalf("%v", steps)
	}
}

// TestEvictionBudget: an eviction takes one disruption off the budget, and is
// refused with 429 when none is left.
func TestEvictionBudget(t *testing.T) {
	c := apitest.Start(t, nil)
	cs := clients(t, c)["json"]
	one := intstr.FromInt32(1)
	b, err := cs.PolicyV1().PodDisruptionBudgets("n").Create(ctx, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "b"},
		Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"p", "q"} {
		p := pod(name)
		p.Labels = map[string]string{"a": "b"}
		if p, err = cs.CoreV1().Pods("n").Create(ctx, p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		p.Status.Phase = corev1.PodRunning
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		if _, err := cs.CoreV1().Pods("n").UpdateStatus(ctx, p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	b.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: b.Generation, DisruptionsAllowed: 1, CurrentHealthy: 2, DesiredHealthy: 1, ExpectedPods: 2}
	if _, err := cs.PolicyV1().PodDisruptionBudgets("n").UpdateStatus(ctx, b, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	evict := func(name string) error {
		return cs.PolicyV1().Evictions("n").Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "n"}})
	}
	if err := evict("p"); err != nil {
		t.Fatal(err)
	}
	err = evict("q")
	if !apierrors.IsTooManyRequests(err) || err.Error() != "Cannot evict pod as it would violate the pod's disruption budget." {
		t.Fatalf("%v", err)
	}
	b, err = cs.PolicyV1().PodDisruptionBudgets("n").Get(ctx, "b", metav1.GetOptions{})
	if err != nil || b.Status.DisruptionsAllowed != 0 || len(b.Status.DisruptedPods) != 1 {
		t.Fatalf("%+v %v", b.Status, err)
	}
}
