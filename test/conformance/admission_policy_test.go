package conformance

import (
	"testing"

	admissionregv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func init() {
	const group = "admissionregistration.k8s.io"
	match := `matchConstraints: {resourceRules: [{apiGroups: [example.com], apiVersions: [v1], operations: [CREATE], resources: [nothing]}]}`
	condition := `{"conditions":[{"type":"StatusUpdate","status":"True","reason":"Test","message":"by the test","lastTransitionTime":"2026-01-02T03:04:05Z"}]}`
	it("should support ValidatingAdmissionPolicy API operations", crud{group: group, version: "v1", plural: "validatingadmissionpolicies", kind: "ValidatingAdmissionPolicy", cluster: true,
		object: `{spec: {` + match + `, validations: [{expression: "object.spec.replicas <= 100"}]}}`, subresources: []string{"status"},
		status: condition, statusField: []string{"status", "conditions"},
		statusWant: []any{map[string]any{"type": "StatusUpdate", "status": "True", "reason": "Test", "message": "by the test", "lastTransitionTime": "2026-01-02T03:04:05Z"}}}.run, plugin("ValidatingAdmissionPolicy"))
	it("should support ValidatingAdmissionPolicyBinding API operations", crud{group: group, version: "v1", plural: "validatingadmissionpolicybindings", kind: "ValidatingAdmissionPolicyBinding", cluster: true,
		object: `{spec: {policyName: none.example.com, validationActions: [Deny]}}`}.run, plugin("ValidatingAdmissionPolicy"))
	it("should support MutatingAdmissionPolicy API operations", crud{group: group, version: "v1", plural: "mutatingadmissionpolicies", kind: "MutatingAdmissionPolicy", cluster: true,
		object: `{spec: {` + match + `, reinvocationPolicy: Never, mutations: [{patchType: ApplyConfiguration, applyConfiguration: {expression: "Object{}"}}]}}`}.run, plugin("MutatingAdmissionPolicy"))
	it("should support MutatingAdmissionPolicyBinding API operations", crud{group: group, version: "v1", plural: "mutatingadmissionpolicybindings", kind: "MutatingAdmissionPolicyBinding", cluster: true,
		object: `{spec: {policyName: none.example.com}}`}.run, plugin("MutatingAdmissionPolicy"))
	it("ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should validate against a Deployment", func(t *testing.T, c *cluster) {
		c.replicasPolicy(t, admissionregv1.ValidatingAdmissionPolicySpec{Validations: []admissionregv1.Validation{{Expression: "object.spec.replicas > 1", MessageExpression: `"wants more than one, has " + string(object.spec.replicas)`}, {Expression: "namespaceObject.metadata.name == object.metadata.namespace", Message: "Internal error! Other namespace."}}},
			"wants more than one, has 1")
	}, plugin("ValidatingAdmissionPolicy"))
	it("ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should allow expressions to refer variables.", func(t *testing.T, c *cluster) {
		c.replicasPolicy(t, admissionregv1.ValidatingAdmissionPolicySpec{Variables: []admissionregv1.Variable{{Name: "replicas", Expression: "object.spec.replicas"}, {Name: "oddReplicas", Expression: "variables.replicas % 2 == 1"}},
			Validations: []admissionregv1.Validation{{Expression: "variables.replicas > 1"}, {Expression: "variables.oddReplicas || variables.replicas == 2"}}}, "failed expression: variables.replicas > 1")
	}, plugin("ValidatingAdmissionPolicy"))
	it("MutatingAdmissionPolicy [Privileged:ClusterAdmin] should mutate a Deployment", func(t *testing.T, c *cluster) {
		c.mutatedDeployment(t, `Object{spec: Object.spec{replicas: object.spec.replicas + 1}}`, func(d *appsv1.Deployment) bool { return *d.Spec.Replicas == 2 })
	}, plugin("MutatingAdmissionPolicy"))
	it("MutatingAdmissionPolicy [Privileged:ClusterAdmin] should mutate a Deployment with annotations", func(t *testing.T, c *cluster) {
		c.mutatedDeployment(t, `Object{metadata: Object.metadata{annotations: {"my-foo-annotation": "myAnnotationValue"}}}`, func(d *appsv1.Deployment) bool {
			return d.Annotations["my-foo-annotation"] == "myAnnotationValue"
		})
	}, plugin("MutatingAdmissionPolicy"))
}

func deploymentsIn(ns string, ops ...admissionregv1.OperationType) *admissionregv1.MatchResources {
	return &admissionregv1.MatchResources{NamespaceSelector: in(ns), ResourceRules: []admissionregv1.NamedRuleWithOperations{{RuleWithOperations: when("apps", "v1", "deployments", ops...)[0]}}}
}

// replicasPolicy puts a policy to work that refuses a deployment with one replica
// and lets one with two pass.
func (c *cluster) replicasPolicy(t *testing.T, spec admissionregv1.ValidatingAdmissionPolicySpec, words string) {
	ns := c.namespace(t)
	api := c.AdmissionregistrationV1()
	spec.MatchConstraints = deploymentsIn(ns, onCreate, onUpdate)
	_, err := api.ValidatingAdmissionPolicies().Create(t.Context(), &admissionregv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: ns}, Spec: spec}, metav1.CreateOptions{})
	ok(t, err)
	t.Cleanup(func() { api.ValidatingAdmissionPolicies().Delete(contextOf(t), ns, metav1.DeleteOptions{}) })
	_, err = api.ValidatingAdmissionPolicyBindings().Create(t.Context(), &admissionregv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: ns},
		Spec: admissionregv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: ns, ValidationActions: []admissionregv1.ValidationAction{admissionregv1.Deny}}}, metav1.CreateOptions{})
	ok(t, err)
	t.Cleanup(func() { api.ValidatingAdmissionPolicyBindings().Delete(contextOf(t), ns, metav1.DeleteOptions{}) })
	eventually(t, func() string {
		_, err = c.AppsV1().Deployments(ns).Create(t.Context(), deployment("one", 1), metav1.CreateOptions{})
		if err == nil {
			c.AppsV1().Deployments(ns).Delete(t.Context(), "one", metav1.DeleteOptions{})
			return "the policy does not refuse yet"
		}
		return ""
	})
	if !apierrors.IsInvalid(err) {
		t.Errorf("got %v", err)
	}
	refusedWith(t, err, "ValidatingAdmissionPolicy '"+ns+"' with binding '"+ns+"' denied request: "+words)
	_, err = c.AppsV1().Deployments(ns).Create(t.Context(), deployment("two", 2), metav1.CreateOptions{})
	ok(t, err)
}

// mutatedDeployment puts an apply configuration to work and looks at what became of
// a deployment.
func (c *cluster) mutatedDeployment(t *testing.T, expression string, good func(*appsv1.Deployment) bool) {
	ns := c.namespace(t)
	api := c.AdmissionregistrationV1()
	_, err := api.MutatingAdmissionPolicies().Create(t.Context(), &admissionregv1.MutatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: ns},
		Spec: admissionregv1.MutatingAdmissionPolicySpec{MatchConstraints: deploymentsIn(ns, onCreate), ReinvocationPolicy: admissionregv1.NeverReinvocationPolicy,
			Mutations: []admissionregv1.Mutation{{PatchType: admissionregv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionregv1.ApplyConfiguration{Expression: expression}}}}}, metav1.CreateOptions{})
	ok(t, err)
	t.Cleanup(func() { api.MutatingAdmissionPolicies().Delete(contextOf(t), ns, metav1.DeleteOptions{}) })
	_, err = api.MutatingAdmissionPolicyBindings().Create(t.Context(), &admissionregv1.MutatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: ns},
		Spec: admissionregv1.MutatingAdmissionPolicyBindingSpec{PolicyName: ns}}, metav1.CreateOptions{})
	ok(t, err)
	t.Cleanup(func() { api.MutatingAdmissionPolicyBindings().Delete(contextOf(t), ns, metav1.DeleteOptions{}) })
	eventually(t, func() string {
		d, err := c.AppsV1().Deployments(ns).Create(t.Context(), deployment("d", 1), metav1.CreateOptions{})
		if err != nil {
			return err.Error()
		}
		c.AppsV1().Deployments(ns).Delete(t.Context(), "d", metav1.DeleteOptions{})
		if !good(d) {
			return "not mutated yet"
		}
		return ""
	})
}
