package policy_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	admissionregv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"proa.dev/apiserver"
	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/apitest"
	"proa.dev/apiserver/extend/policy"
	"proa.dev/apiserver/fields"
)

type fixture struct {
	*apitest.Cluster
	*kubernetes.Clientset
	warned *warnings
}

type warnings struct {
	sync.Mutex
	texts []string
}

func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.Lock()
	defer w.Unlock()
	w.texts = append(w.texts, text)
}

func start(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{warned: &warnings{}}
	f.Cluster = apitest.Start(t, func(c *apiserver.Config) {
		p := policy.New(policy.Config{Authz: c.Authz, TypeConverter: fields.Of})
		c.Admit = admit.Chain{policy.Expressions(), p.Mutating(), p.Validating()}
	})
	cfg := rest.CopyConfig(f.Admin)
	cfg.WarningHandler = f.warned
	var err error
	f.Clientset, err = kubernetes.NewForConfig(cfg)
	ok(t, err)
	for name, labels := range map[string]map[string]string{"one": {"env": "test"}, "two": nil} {
		_, err := f.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{})
		ok(t, err)
	}
	return f
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func rules(group, resource string, ops ...admissionregv1.OperationType) *admissionregv1.MatchResources {
	return &admissionregv1.MatchResources{ResourceRules: []admissionregv1.NamedRuleWithOperations{{RuleWithOperations: admissionregv1.RuleWithOperations{Operations: ops,
		Rule: admissionregv1.Rule{APIGroups: []string{group}, APIVersions: []string{"v1"}, Resources: []string{resource}}}}}}
}

var writes = []admissionregv1.OperationType{admissionregv1.Create, admissionregv1.Update}

func (f *fixture) validating(t testing.TB, name string, spec admissionregv1.ValidatingAdmissionPolicySpec, b admissionregv1.ValidatingAdmissionPolicyBindingSpec) {
	t.Helper()
	if spec.MatchConstraints == nil {
		spec.MatchConstraints = rules("", "configmaps", writes...)
	}
	_, err := f.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(t.Context(), &admissionregv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	ok(t, err)
	b.PolicyName = name
	if b.ValidationActions == nil {
		b.ValidationActions = []admissionregv1.ValidationAction{admissionregv1.Deny}
	}
	_, err = f.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Create(t.Context(), &admissionregv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name + "-b"}, Spec: b}, metav1.CreateOptions{})
	ok(t, err)
}

func (f *fixture) mutating(t testing.TB, name string, spec admissionregv1.MutatingAdmissionPolicySpec, b admissionregv1.MutatingAdmissionPolicyBindingSpec) {
	t.Helper()
	if spec.ReinvocationPolicy == "" {
		spec.ReinvocationPolicy = admissionregv1.NeverReinvocationPolicy
	}
	_, err := f.AdmissionregistrationV1().MutatingAdmissionPolicies().Create(t.Context(), &admissionregv1.MutatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	ok(t, err)
	b.PolicyName = name
	_, err = f.AdmissionregistrationV1().MutatingAdmissionPolicyBindings().Create(t.Context(), &admissionregv1.MutatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name + "-b"}, Spec: b}, metav1.CreateOptions{})
	ok(t, err)
}

func (f *fixture) configMap(t testing.TB, ns, name string, data map[string]string) (*corev1.ConfigMap, error) {
	return f.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}, metav1.CreateOptions{})
}

type validation = admissionregv1.Validation

func TestValidation(t *testing.T) {
	f := start(t)
	forbidden := metav1.StatusReasonForbidden
	f.validating(t, "size", admissionregv1.ValidatingAdmissionPolicySpec{
		Variables: []admissionregv1.Variable{{Name: "data", Expression: `has(object.data) ? object.data : {}`}, {Name: "n", Expression: `size(variables.data)`}},
		Validations: []validation{
			{Expression: `variables.n < 3`, MessageExpression: `"there are " + string(variables.n) + " keys in " + namespaceObject.metadata.name`},
			{Expression: `!("bad" in variables.data)`, Message: "no bad keys", Reason: &forbidden},
			{Expression: `!("odd" in variables.data) || request.userInfo.username == "nobody"`},
		},
	}, admissionregv1.ValidatingAdmissionPolicyBindingSpec{MatchResources: &admissionregv1.MatchResources{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"env": "test"}}}})
	_, err := f.configMap(t, "one", "a", map[string]string{"a": "", "b": "", "c": ""})
	apitest.Refused(t, err, 422, `configmaps "a" is forbidden: ValidatingAdmissionPolicy 'size' with binding 'size-b' denied request: there are 3 keys in one`)
	if !apierrors.IsInvalid(err) {
		t.Errorf("reason %q", apierrors.ReasonForError(err))
	}
	_, err = f.configMap(t, "one", "a", map[string]string{"bad": ""})
	apitest.Refused(t, err, 403, "no bad keys")
	_, err = f.configMap(t, "one", "a", map[string]string{"odd": ""})
	apitest.Refused(t, err, 422, `failed expression: !("odd" in variables.data) || request.userInfo.username == "nobody"`)
	_, err = f.configMap(t, "two", "a", map[string]string{"bad": ""})
	ok(t, err)
	cm, err := f.configMap(t, "one", "a", map[string]string{"a": ""})
	ok(t, err)
	cm.Data["bad"] = ""
	_, err = f.CoreV1().ConfigMaps("one").Update(t.Context(), cm, metav1.UpdateOptions{})
	apitest.Refused(t, err, 403, "no bad keys")
}

func TestActionsAndParams(t *testing.T) {
	f := start(t)
	deny, allow := admissionregv1.DenyAction, admissionregv1.AllowAction
	spec := admissionregv1.ValidatingAdmissionPolicySpec{ParamKind: &admissionregv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"},
		MatchConstraints: rules("apps", "deployments", writes...),
		Validations:      []validation{{Expression: `params == null || object.spec.replicas <= int(params.data.max)`, MessageExpression: `"at most " + params.data.max`}}}
	deployment := func(name string, n int32) error {
		_, err := f.AppsV1().Deployments("one").Create(t.Context(), deploymentOf(name, n), metav1.CreateOptions{})
		return err
	}
	f.validating(t, "max", spec, admissionregv1.ValidatingAdmissionPolicyBindingSpec{ParamRef: &admissionregv1.ParamRef{Name: "limit", Namespace: "two", ParameterNotFoundAction: &deny}})
	apitest.Refused(t, deployment("a", 1), 422, "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction")
	_, err := f.configMap(t, "two", "limit", map[string]string{"max": "2"})
	ok(t, err)
	ok(t, deployment("a", 2))
	apitest.Refused(t, deployment("b", 3), 422, "at most 2")
	// By selector, from the request's own namespace: each parameter counts.
	f.validating(t, "own", spec, admissionregv1.ValidatingAdmissionPolicyBindingSpec{ValidationActions: []admissionregv1.ValidationAction{admissionregv1.Warn, admissionregv1.Audit},
		ParamRef: &admissionregv1.ParamRef{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"limit": "yes"}}, ParameterNotFoundAction: &allow}})
	ok(t, deployment("c", 1))
	for i, max := range []string{"0", "5"} {
		_, err := f.CoreV1().ConfigMaps("one").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("l%d", i), Labels: map[string]string{"limit": "yes"}}, Data: map[string]string{"max": max}}, metav1.CreateOptions{})
		ok(t, err)
	}
	ok(t, deployment("d", 1))
	want := "Validation failed for ValidatingAdmissionPolicy 'own' with binding 'own-b': at most 0"
	if got := strings.Join(f.warned.texts, "\n"); got != want {
		t.Errorf("warned %q instead of %q", got, want)
	}
	// A kind that is not there.
	spec.ParamKind = &admissionregv1.ParamKind{APIVersion: "example.com/v1", Kind: "Limit"}
	f.validating(t, "ghost", spec, admissionregv1.ValidatingAdmissionPolicyBindingSpec{ParamRef: &admissionregv1.ParamRef{Name: "x", ParameterNotFoundAction: &allow}})
	apitest.Refused(t, deployment("e", 1), 422, "failed to configure policy: failed to find resource referenced by paramKind: 'example.com/v1, Kind=Limit'")
}

func deploymentOf(name string, n int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}}}
}

// TestBombs: expressions that cost too much end, and count as the failure policy says.
func TestBombs(t *testing.T) {
	f := start(t)
	ignore := admissionregv1.Ignore
	bomb := `[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, [1,2,3,4,5,6,7,8,9,10].all(f, [1,2,3,4,5,6,7,8,9,10].all(g, [1,2,3,4,5,6,7,8,9,10].all(h, h + a > 0))))))))`
	f.validating(t, "bomb", admissionregv1.ValidatingAdmissionPolicySpec{Validations: []validation{{Expression: bomb}}}, admissionregv1.ValidatingAdmissionPolicyBindingSpec{})
	_, err := f.configMap(t, "one", "a", nil)
	apitest.Refused(t, err, 422, "denied request")
	p, err := f.AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(t.Context(), "bomb", metav1.GetOptions{})
	ok(t, err)
	p.Spec.FailurePolicy = &ignore
	p, err = f.AdmissionregistrationV1().ValidatingAdmissionPolicies().Update(t.Context(), p, metav1.UpdateOptions{})
	ok(t, err)
	if p.Generation != 2 {
		t.Errorf("generation %d", p.Generation)
	}
	_, err = f.configMap(t, "one", "a", nil)
	ok(t, err)
	// Nobody can lock himself out of policies.
	f.validating(t, "all", admissionregv1.ValidatingAdmissionPolicySpec{MatchConstraints: &admissionregv1.MatchResources{ResourceRules: []admissionregv1.NamedRuleWithOperations{{RuleWithOperations: admissionregv1.RuleWithOperations{
		Operations: []admissionregv1.OperationType{"*"}, Rule: admissionregv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*"}}}}}},
		Validations: []validation{{Expression: "false"}}}, admissionregv1.ValidatingAdmissionPolicyBindingSpec{})
	_, err = f.configMap(t, "one", "b", nil)
	apitest.Refused(t, err, 422, "failed expression: false")
	ok(t, f.AdmissionregistrationV1().ValidatingAdmissionPolicies().Delete(t.Context(), "all", metav1.DeleteOptions{}))
	_, err = f.configMap(t, "one", "b", nil)
	ok(t, err)
}

func TestWrongExpressions(t *testing.T) {
	f := start(t)
	for _, c := range []struct{ expression, says string }{
		{"object.x ==", "spec.validations[0].expression: Invalid value: \"object.x ==\": compilation failed: ERROR: <input>:1:12: Syntax error"},
		{"1 + 1", "must evaluate to bool but got int"},
		{"variables.none", "undefined field 'none'"},
		{"params.x == 1", "undeclared reference to 'params'"},
	} {
		_, err := f.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(t.Context(), &admissionregv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "x"},
			Spec: admissionregv1.ValidatingAdmissionPolicySpec{MatchConstraints: rules("", "pods", "*"), Validations: []validation{{Expression: c.expression}}}}, metav1.CreateOptions{})
		apitest.Refused(t, err, 422, c.says)
	}
	_, err := f.AdmissionregistrationV1().MutatingAdmissionPolicies().Create(t.Context(), &admissionregv1.MutatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "x"},
		Spec: admissionregv1.MutatingAdmissionPolicySpec{MatchConstraints: rules("", "pods", "*"), ReinvocationPolicy: "Never", Mutations: []admissionregv1.Mutation{
			{PatchType: admissionregv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionregv1.ApplyConfiguration{Expression: "1"}}}}}, metav1.CreateOptions{})
	apitest.Refused(t, err, 422, "spec.mutations[0].applyConfiguration.expression", "must evaluate to Object but got int")
}

func apply(expression string) admissionregv1.Mutation {
	return admissionregv1.Mutation{PatchType: admissionregv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionregv1.ApplyConfiguration{Expression: expression}}
}

func jsonPatch(expression string) admissionregv1.Mutation {
	return admissionregv1.Mutation{PatchType: admissionregv1.PatchTypeJSONPatch, JSONPatch: &admissionregv1.JSONPatch{Expression: expression}}
}

func TestMutation(t *testing.T) {
	f := start(t)
	f.mutating(t, "b-replicas", admissionregv1.MutatingAdmissionPolicySpec{MatchConstraints: rules("apps", "deployments", admissionregv1.Create),
		Variables: []admissionregv1.Variable{{Name: "want", Expression: `object.spec.replicas + 1`}},
		Mutations: []admissionregv1.Mutation{
			apply(`Object{spec: Object.spec{replicas: variables.want}}`),
			jsonPatch(`[JSONPatch{op: "add", path: "/metadata/annotations", value: {"seen": string(object.spec.replicas)}}, JSONPatch{op: "add", path: "/metadata/annotations/" + jsonpatch.escapeKey("a/b"), value: "c"}]`),
		}}, admissionregv1.MutatingAdmissionPolicyBindingSpec{})
	d, err := f.AppsV1().Deployments("one").Create(t.Context(), deploymentOf("d", 3), metav1.CreateOptions{})
	ok(t, err)
	if *d.Spec.Replicas != 4 || d.Annotations["seen"] != "4" || d.Annotations["a/b"] != "c" {
		t.Errorf("replicas %d annotations %v", *d.Spec.Replicas, d.Annotations)
	}
	// A list by key: the container is merged; what is new gets defaults.
	f.mutating(t, "c-sidecar", admissionregv1.MutatingAdmissionPolicySpec{MatchConstraints: rules("", "pods", admissionregv1.Create),
		Mutations: []admissionregv1.Mutation{apply(`Object{spec: Object.spec{initContainers: [Object.spec.initContainers{name: "side", image: "s"}]}}`)}}, admissionregv1.MutatingAdmissionPolicyBindingSpec{})
	p, err := f.CoreV1().Pods("one").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
	ok(t, err)
	if len(p.Spec.InitContainers) != 1 || p.Spec.InitContainers[0].TerminationMessagePolicy != corev1.TerminationMessageReadFile || len(p.Spec.Containers) != 1 {
		t.Errorf("init containers %+v", p.Spec.InitContainers)
	}
	// An atomic field may not be set by an apply configuration.
	f.mutating(t, "d-atomic", admissionregv1.MutatingAdmissionPolicySpec{MatchConstraints: rules("", "services", admissionregv1.Create),
		Mutations: []admissionregv1.Mutation{apply(`Object{spec: Object.spec{selector: Object.spec.selector{app: "x"}}}`)}}, admissionregv1.MutatingAdmissionPolicyBindingSpec{})
	_, err = f.CoreV1().Services("one").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 1}}}}, metav1.CreateOptions{})
	apitest.Refused(t, err, 403, "policy 'd-atomic' with binding 'd-atomic-b' denied request: ", "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.selector")
}

func TestReinvocation(t *testing.T) {
	f := start(t)
	again := admissionregv1.IfNeededReinvocationPolicy
	configMaps := rules("", "configmaps", admissionregv1.Create)
	// a counts how often it ran; b changes something after it.
	f.mutating(t, "a", admissionregv1.MutatingAdmissionPolicySpec{MatchConstraints: configMaps, ReinvocationPolicy: again, Mutations: []admissionregv1.Mutation{
		jsonPatch(`[JSONPatch{op: "add", path: "/data/runs", value: string(int(object.data.runs) + 1)}]`)}}, admissionregv1.MutatingAdmissionPolicyBindingSpec{})
	f.mutating(t, "b", admissionregv1.MutatingAdmissionPolicySpec{MatchConstraints: configMaps, Mutations: []admissionregv1.Mutation{
		jsonPatch(`[JSONPatch{op: "add", path: "/data/b", value: "yes"}]`)}}, admissionregv1.MutatingAdmissionPolicyBindingSpec{})
	cm, err := f.configMap(t, "one", "r", map[string]string{"runs": "0"})
	ok(t, err)
	if cm.Data["runs"] != "2" || cm.Data["b"] != "yes" {
		t.Errorf("data %v", cm.Data)
	}
}
