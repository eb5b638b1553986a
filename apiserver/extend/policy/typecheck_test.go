package policy_test

import (
	"testing"

	admissionregv1 "k8s.io/api/admissionregistration/v1"

	"proa.dev/apiserver/extend/policy"
	"proa.dev/kind"
)

func TestWarnings(t *testing.T) {
	rule := func(group, version string, resources ...string) admissionregv1.NamedRuleWithOperations {
		return admissionregv1.NamedRuleWithOperations{RuleWithOperations: admissionregv1.RuleWithOperations{Rule: admissionregv1.Rule{
			APIGroups: []string{group}, APIVersions: []string{version}, Resources: resources}}}
	}
	for name, c := range map[string]struct {
		rules      []admissionregv1.NamedRuleWithOperations
		params     *admissionregv1.ParamKind
		variables  []admissionregv1.Variable
		expression string
		message    string
		want       []string // field, warning, ...
	}{
		"right":             {rules: []admissionregv1.NamedRuleWithOperations{rule("apps", "v1", "deployments")}, expression: "object.spec.replicas > 1"},
		"containers":        {rules: []admissionregv1.NamedRuleWithOperations{rule("", "v1", "pods")}, expression: "object.spec.containers.all(c, c.image.startsWith('a') && c.ports.all(p, p.containerPort > 1024))"},
		"quantity, time":    {rules: []admissionregv1.NamedRuleWithOperations{rule("", "v1", "pods")}, expression: "quantity(object.spec.containers[0].resources.limits['cpu']).isGreaterThan(quantity('1')) && object.metadata.creationTimestamp < timestamp('2030-01-01T00:00:00Z')"},
		"int or string":     {rules: []admissionregv1.NamedRuleWithOperations{rule("", "v1", "services")}, expression: "object.spec.ports.all(p, p.targetPort == 80 || p.targetPort == 'http')"},
		"request":           {rules: []admissionregv1.NamedRuleWithOperations{rule("", "v1", "pods")}, expression: "request.userInfo.username == 'x' && namespaceObject.metadata.name == 'y' && authorizer.group('').resource('pods').check('get').allowed() && authorizer.requestResource.check('x').allowed()"},
		"definition":        {rules: []admissionregv1.NamedRuleWithOperations{rule("apiextensions.k8s.io", "v1", "customresourcedefinitions")}, expression: "object.spec.versions.all(v, has(v.schema))"},
		"wildcard":          {rules: []admissionregv1.NamedRuleWithOperations{rule("*", "v1", "pods")}, expression: "object.foo == 1"},
		"all resources":     {rules: []admissionregv1.NamedRuleWithOperations{rule("apps", "v1", "*")}, expression: "object.foo == 1"},
		"subresource":       {rules: []admissionregv1.NamedRuleWithOperations{rule("apps", "v1", "deployments/scale")}, expression: "object.foo == 1"},
		"not served":        {rules: []admissionregv1.NamedRuleWithOperations{rule("x.io", "v1", "widgets")}, expression: "object.foo == 1"},
		"params not served": {rules: []admissionregv1.NamedRuleWithOperations{rule("apps", "v1", "deployments")}, params: &admissionregv1.ParamKind{APIVersion: "x.io/v1", Kind: "Limit"}, expression: "object.spec.replicas < params.max"},
		"unknown field": {rules: []admissionregv1.NamedRuleWithOperations{rule("apps", "v1", "deployments")}, expression: "object.replicas > 1",
			want: []string{"spec.validations[0].expression", "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'\n | object.replicas > 1\n | ......^\n"}},
		"two kinds, message": {rules: []admissionregv1.NamedRuleWithOperations{rule("apps", "v1", "deployments", "replicasets"), rule("apps", "v1", "deployments")}, expression: "true", message: "object.spec.nope",
			want: []string{"spec.validations[0].messageExpression", "apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'nope'\n | object.spec.nope\n | ...........^\n" +
				"\napps/v1, Kind=ReplicaSet: ERROR: <input>:1:12: undefined field 'nope'\n | object.spec.nope\n | ...........^\n"}},
		"params": {rules: []admissionregv1.NamedRuleWithOperations{rule("", "v1", "configmaps")}, params: &admissionregv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"}, expression: "params.dada == object.data",
			want: []string{"spec.validations[0].expression", "/v1, Kind=ConfigMap: ERROR: <input>:1:7: undefined field 'dada'\n | params.dada == object.data\n | ......^\n"}},
		"variable": {rules: []admissionregv1.NamedRuleWithOperations{rule("apps", "v1", "deployments")}, variables: []admissionregv1.Variable{{Name: "n", Expression: "object.spec.replicas"}, {Name: "bad", Expression: "object.x"}}, expression: "variables.n == 'x' && variables.bad == 1",
			want: []string{"spec.validations[0].expression", "apps/v1, Kind=Deployment: ERROR: <input>:1:13: found no matching overload for '_==_' applied to '(int, string)'\n | variables.n == 'x' && variables.bad == 1\n | ............^\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := &admissionregv1.ValidatingAdmissionPolicy{Spec: admissionregv1.ValidatingAdmissionPolicySpec{ParamKind: c.params, Variables: c.variables,
				MatchConstraints: &admissionregv1.MatchResources{ResourceRules: c.rules},
				Validations:      []admissionregv1.Validation{{Expression: c.expression, MessageExpression: c.message}}}}
			var got []string
			for _, w := range policy.Warnings(kind.All, p) {
				got = append(got, w.FieldRef, w.Warning)
			}
			if len(got) != len(c.want) {
				t.Fatalf("got %q, want %q", got, c.want)
			}
			for i := range got {
				if got[i] != c.want[i] {
					t.Errorf("got %q, want %q", got[i], c.want[i])
				}
			}
		})
	}
}
