package expr

import (
	"fmt"
	"testing"
	"time"

	admissionregv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/cel/environment"

	"proa.dev/apiserver/auth"
)

// FuzzExpression: any text is compiled or refused, as the expression of a policy's
// variable and as a match condition of a policy and of a webhook; what was compiled
// comes to an end within the budget, whatever it computes.
func FuzzExpression(f *testing.F) {
	for _, e := range []string{
		"object.metadata.name == 'a'", "has(object.spec) && object.spec.containers.all(c, c.image.startsWith('x'))", "authorizer.group('').resource('pods').check('get').allowed()",
		"[1,2,3].map(x, [1,2,3].map(y, [1,2,3].map(z, x*y*z))).size() > 0", "request.userInfo.groups.exists(g, g == 'a')", "oldObject == null", "object.metadata.labels['x'].matches('^(a+)+$')",
		"quantity('1Gi').isGreaterThan(quantity('1Mi'))", "url(object.metadata.name).getHost() == ''", "'x'.format([1])", "variables.v == 1", "1/0 == 1", "dyn(object).x.y.z", "cidr('10.0.0.0/8').containsIP('10.1.2.3')",
		"['a','b'].sum() == 1", "timestamp('2026-01-01T00:00:00Z') < timestamp(object.metadata.creationTimestamp)", "optional.of(1).orValue(2) == 1", "sets.contains([1],[1])", "semver('1.2.3').major() == 1",
		"'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'.replace('', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa').replace('', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa').size() > 1",
	} {
		f.Add(e)
	}
	pod := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "a", Labels: map[string]string{"x": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "x/y:1", Args: make([]string, 100)}}}}
	gvk, gvr := corev1.SchemeGroupVersion.WithKind("Pod"), corev1.SchemeGroupVersion.WithResource("pods")
	attributes := admission.NewAttributesRecord(pod, nil, gvk, "n", "a", gvr, "", admission.Create, &metav1.CreateOptions{}, false, &user.DefaultInfo{Name: "u", Groups: []string{"a"}})
	v := &admission.VersionedAttributes{Attributes: attributes, VersionedKind: gvk}
	v.VersionedObject.Set(pod)
	f.Fuzz(func(t *testing.T, text string) {
		// Nothing ends a compilation but its own limits.
		late := time.AfterFunc(10*time.Second, func() { panic(fmt.Sprintf("%q is not done", text)) })
		defer late.Stop()
		scope := NewScope(false)
		scope.Add(&Variable{Name: "v", Expression: text}, environment.StoredExpressions)
		for _, s := range []*Scope{nil, scope} {
			for _, e := range []string{text, "variables.v == " + text, "(" + text + ") && true"} {
				c := CompileConditions([]admissionregv1.MatchCondition{{Name: "c", Expression: e}}, s)
				c.Match(t.Context(), v, gvr, nil, Authorizer{auth.Chain{}}, nil)
			}
		}
	})
}
