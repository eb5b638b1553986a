package conformance

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/kind"
)

// The webhooks run in the test's process, on loopback, and are named by URL, where
// upstream's run in a pod behind a Service: who they are, what they answer and what
// comes of it is the same. That a webhook is found behind a Service is tested in
// apiserver/extend/webhook. Each configuration takes the namespace of its own test
// only, so that the behaviours can run beside each other.
func init() {
	hook := func(words string, f func(t *testing.T, c *cluster), needs ...need) {
		it("AdmissionWebhook [Privileged:ClusterAdmin] "+words, f, append(needs, plugin("MutatingAdmissionWebhook", "ValidatingAdmissionWebhook"))...)
	}
	hook("listing mutating webhooks should work", listMutating)
	hook("listing validating webhooks should work", listValidating)
	hook("patching/updating a mutating webhook should work", changeMutating)
	hook("patching/updating a validating webhook should work", changeValidating)
	hook("should be able to create and update mutating webhook configurations with match conditions", mutatingConditions)
	hook("should be able to create and update validating webhook configurations with match conditions", validatingConditions)
	hook("should reject mutating webhook configurations with invalid match conditions", wrongMutatingConditions)
	hook("should reject validating webhook configurations with invalid match conditions", wrongValidatingConditions)
	hook("should mutate everything except 'skip-me' configmaps", skipMe)
	hook("should be able to deny attaching pod", denyAttach)
	hook("should be able to deny pod and configmap creation", denyPods)
	hook("should honor timeout", honorTimeout)
	hook("should include webhook resources in discovery documents", discoverWebhooks)
	hook("should mutate configmap", mutateConfigMap)
	hook("should mutate pod and apply defaults after mutation", mutatePod)
	hook("should not be able to mutate or prevent deletion of webhook configuration objects", webhooksAreSafe)
	hook("should unconditionally reject operations on fail closed webhook", failClosed)
	hook("should deny crd creation", denyDefinition, row(kind.CustomResourceDefinition))
	hook("should be able to deny custom resource creation, update and deletion", denyCustom, row(kind.CustomResourceDefinition))
	hook("should mutate custom resource", mutateCustom(false), row(kind.CustomResourceDefinition))
	hook("should mutate custom resource with pruning", mutateCustom(true), row(kind.CustomResourceDefinition))
	hook("should mutate custom resource with different stored version", mutateStoredVersion, row(kind.CustomResourceDefinition))
}

type decide func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse

// webhookServer answers reviews until the test ends.
func webhookServer(t *testing.T, f decide) admissionregv1.WebhookClientConfig {
	t.Helper()
	if !onThisMachine(t) {
		cannot(t, "the cluster cannot reach webhooks in this process")
	}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var doc admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&doc); err != nil || doc.Request == nil {
			http.Error(w, "no review", http.StatusBadRequest)
			return
		}
		doc.Response = f(doc.Request)
		doc.Response.UID = doc.Request.UID
		doc.Request = nil
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(&doc)
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	url := s.URL + "/hook"
	return admissionregv1.WebhookClientConfig{URL: &url, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})}
}

func allowed(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Allowed: true}
}

func denied(why string) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{Message: why}}
}

func patching(patch string) *admissionv1.AdmissionResponse {
	p := admissionv1.PatchTypeJSONPatch
	return &admissionv1.AdmissionResponse{Allowed: true, Patch: []byte(patch), PatchType: &p}
}

func sent(r *admissionv1.AdmissionRequest) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	raw := r.Object.Raw
	if len(raw) == 0 || string(raw) == "null" {
		raw = r.OldObject.Raw
	}
	if err := json.Unmarshal(raw, &u.Object); err != nil {
		u.Object = map[string]any{}
	}
	return u
}

func in(ns string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": ns}}
}

func when(group, version, resource string, ops ...admissionregv1.OperationType) []admissionregv1.RuleWithOperations {
	return []admissionregv1.RuleWithOperations{{Operations: ops, Rule: admissionregv1.Rule{APIGroups: []string{group}, APIVersions: []string{version}, Resources: []string{resource}}}}
}

const (
	onCreate = admissionregv1.Create
	onUpdate = admissionregv1.Update
	onDelete = admissionregv1.Delete
)

var noEffects = admissionregv1.SideEffectClassNone

func validatingHook(name, ns string, server admissionregv1.WebhookClientConfig, rules []admissionregv1.RuleWithOperations) admissionregv1.ValidatingWebhook {
	return admissionregv1.ValidatingWebhook{Name: name + ".example.com", ClientConfig: server, Rules: rules, NamespaceSelector: in(ns), SideEffects: &noEffects, AdmissionReviewVersions: []string{"v1"}}
}

func mutatingHook(name, ns string, server admissionregv1.WebhookClientConfig, rules []admissionregv1.RuleWithOperations) admissionregv1.MutatingWebhook {
	return admissionregv1.MutatingWebhook{Name: name + ".example.com", ClientConfig: server, Rules: rules, NamespaceSelector: in(ns), SideEffects: &noEffects, AdmissionReviewVersions: []string{"v1"}}
}

func (c *cluster) validating(t *testing.T, name string, hooks ...admissionregv1.ValidatingWebhook) *admissionregv1.ValidatingWebhookConfiguration {
	t.Helper()
	api := c.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	w, err := api.Create(t.Context(), &admissionregv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": name}}, Webhooks: hooks}, metav1.CreateOptions{})
	ok(t, err)
	t.Cleanup(func() { api.Delete(contextOf(t), name, metav1.DeleteOptions{}) })
	return w
}

func (c *cluster) mutating(t *testing.T, name string, hooks ...admissionregv1.MutatingWebhook) *admissionregv1.MutatingWebhookConfiguration {
	t.Helper()
	api := c.AdmissionregistrationV1().MutatingWebhookConfigurations()
	w, err := api.Create(t.Context(), &admissionregv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": name}}, Webhooks: hooks}, metav1.CreateOptions{})
	ok(t, err)
	t.Cleanup(func() { api.Delete(contextOf(t), name, metav1.DeleteOptions{}) })
	return w
}

// tryConfigMap makes a ConfigMap and takes it away again.
func (c *cluster) tryConfigMap(t *testing.T, ns, name string, data map[string]string) (*corev1.ConfigMap, error) {
	cm, err := c.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}, metav1.CreateOptions{})
	if err == nil {
		c.CoreV1().ConfigMaps(ns).Delete(t.Context(), name, metav1.DeleteOptions{})
	}
	return cm, err
}

func refusedWith(t *testing.T, err error, words string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("got %v, want %q", err, words)
	}
}

func noBadData(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	data, _, _ := unstructured.NestedStringMap(sent(r).Object, "data")
	if data["webhook-e2e-test"] == "webhook-disallow" {
		return denied("the configmap contains unwanted key and value")
	}
	return allowed(r)
}

// stages adds what follows from what is there.
func stages(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	data, _, _ := unstructured.NestedStringMap(sent(r).Object, "data")
	switch {
	case data["mutation-stage-1"] == "yes":
		return patching(`[{"op":"add","path":"/data/mutation-stage-2","value":"yes"}]`)
	case data["mutation-start"] == "yes":
		return patching(`[{"op":"add","path":"/data/mutation-stage-1","value":"yes"}]`)
	}
	return allowed(r)
}

// configurations is the client of one of the two kinds of webhooks.
type configurations[W metav1.Object, L runtime.Object] interface {
	Update(context.Context, W, metav1.UpdateOptions) (W, error)
	List(context.Context, metav1.ListOptions) (L, error)
	DeleteCollection(context.Context, metav1.DeleteOptions, metav1.ListOptions) error
}

// listTen makes ten configurations, lists them by a label, sees that they work, and
// deletes them together: then ended says "" in time.
func listTen[W metav1.Object, L runtime.Object](t *testing.T, ns string, api configurations[W, L], create func(name, hook string) W, work func(), ended func() string) {
	t.Helper()
	for i := range 10 {
		w := create(fmt.Sprintf("%s-%d", ns, i), fmt.Sprintf("list%d", i))
		w.GetLabels()["list"] = ns
		_, err := api.Update(t.Context(), w, metav1.UpdateOptions{})
		ok(t, err)
	}
	opts := metav1.ListOptions{LabelSelector: "list=" + ns}
	l, err := api.List(t.Context(), opts)
	ok(t, err)
	if n := meta.LenList(l); n != 10 {
		t.Fatalf("%d are listed", n)
	}
	work()
	ok(t, api.DeleteCollection(t.Context(), metav1.DeleteOptions{}, opts))
	eventually(t, ended)
}

func listMutating(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	server := webhookServer(t, stages)
	start := map[string]string{"mutation-start": "yes"}
	listTen(t, ns, c.AdmissionregistrationV1().MutatingWebhookConfigurations(), func(name, hook string) *admissionregv1.MutatingWebhookConfiguration {
		return c.mutating(t, name, mutatingHook(hook, ns, server, when("", "v1", "configmaps", onCreate)))
	}, func() {
		cm, err := c.tryConfigMap(t, ns, "listed", start)
		ok(t, err)
		if cm.Data["mutation-stage-1"] != "yes" {
			t.Errorf("not mutated: %v", cm.Data)
		}
	}, func() string {
		cm, err := c.tryConfigMap(t, ns, "listed", start)
		if err != nil || len(cm.Data) != 1 {
			return fmt.Sprint("still mutated: ", err)
		}
		return ""
	})
}

func listValidating(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	server := webhookServer(t, noBadData)
	bad := map[string]string{"webhook-e2e-test": "webhook-disallow"}
	listTen(t, ns, c.AdmissionregistrationV1().ValidatingWebhookConfigurations(), func(name, hook string) *admissionregv1.ValidatingWebhookConfiguration {
		return c.validating(t, name, validatingHook(hook, ns, server, when("", "v1", "configmaps", onCreate)))
	}, func() {
		_, err := c.tryConfigMap(t, ns, "listed", bad)
		refusedWith(t, err, "denied the request: the configmap contains unwanted key and value")
	}, func() string {
		if _, err := c.tryConfigMap(t, ns, "listed", bad); err != nil {
			return err.Error()
		}
		return ""
	})
}

func changeMutating(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.AdmissionregistrationV1().MutatingWebhookConfigurations()
	w := c.mutating(t, ns, mutatingHook("change", ns, webhookServer(t, stages), when("", "v1", "configmaps", onCreate)))
	start := map[string]string{"mutation-start": "yes"}
	mutated := func(want bool) {
		t.Helper()
		eventually(t, func() string {
			cm, err := c.tryConfigMap(t, ns, "changed", start)
			if err != nil || (cm.Data["mutation-stage-1"] == "yes") != want {
				return fmt.Sprintf("want mutated %t: %v", want, err)
			}
			return ""
		})
	}
	mutated(true)
	w.Webhooks[0].Rules[0].Operations = []admissionregv1.OperationType{onUpdate}
	_, err := api.Update(t.Context(), w, metav1.UpdateOptions{})
	ok(t, err)
	mutated(false)
	_, err = api.Patch(t.Context(), ns, types.JSONPatchType, []byte(`[{"op":"replace","path":"/webhooks/0/rules/0/operations/0","value":"CREATE"}]`), metav1.PatchOptions{})
	ok(t, err)
	mutated(true)
}

func changeValidating(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	w := c.validating(t, ns, validatingHook("change", ns, webhookServer(t, noBadData), when("", "v1", "configmaps", onCreate)))
	bad := map[string]string{"webhook-e2e-test": "webhook-disallow"}
	refused := func(want bool) {
		t.Helper()
		eventually(t, func() string {
			if _, err := c.tryConfigMap(t, ns, "changed", bad); (err != nil) != want {
				return fmt.Sprintf("want refused %t: %v", want, err)
			}
			return ""
		})
	}
	refused(true)
	w.Webhooks[0].Rules[0].Operations = []admissionregv1.OperationType{onUpdate}
	_, err := api.Update(t.Context(), w, metav1.UpdateOptions{})
	ok(t, err)
	refused(false)
	_, err = api.Patch(t.Context(), ns, types.JSONPatchType, []byte(`[{"op":"replace","path":"/webhooks/0/rules/0/operations/0","value":"CREATE"}]`), metav1.PatchOptions{})
	ok(t, err)
	refused(true)
}

var matchConditions = []admissionregv1.MatchCondition{{Name: "first", Expression: `object.metadata.name != "skip"`}, {Name: "second", Expression: `request.userInfo.username != ""`}}

func sameConditions(t *testing.T, got []admissionregv1.MatchCondition, want []admissionregv1.MatchCondition) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("conditions %v instead of %v", got, want)
	}
}

func mutatingConditions(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.AdmissionregistrationV1().MutatingWebhookConfigurations()
	h := mutatingHook("cond", ns, webhookServer(t, allowed), when("", "v1", "configmaps", onCreate))
	h.MatchConditions = matchConditions[:1]
	w := c.mutating(t, ns, h)
	sameConditions(t, w.Webhooks[0].MatchConditions, matchConditions[:1])
	w.Webhooks[0].MatchConditions = matchConditions
	w, err := api.Update(t.Context(), w, metav1.UpdateOptions{})
	ok(t, err)
	sameConditions(t, w.Webhooks[0].MatchConditions, matchConditions)
}

func validatingConditions(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	h := validatingHook("cond", ns, webhookServer(t, allowed), when("", "v1", "configmaps", onCreate))
	h.MatchConditions = matchConditions[:1]
	w := c.validating(t, ns, h)
	sameConditions(t, w.Webhooks[0].MatchConditions, matchConditions[:1])
	w.Webhooks[0].MatchConditions = matchConditions
	w, err := api.Update(t.Context(), w, metav1.UpdateOptions{})
	ok(t, err)
	sameConditions(t, w.Webhooks[0].MatchConditions, matchConditions)
}

var wrongConditions = []admissionregv1.MatchCondition{{Name: "wrong", Expression: "... [} bad expression"}}

func wrongMutatingConditions(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	h := mutatingHook("cond", ns, webhookServer(t, allowed), when("", "v1", "configmaps", onCreate))
	h.MatchConditions = wrongConditions
	_, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(), &admissionregv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: ns}, Webhooks: []admissionregv1.MutatingWebhook{h}}, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) {
		t.Errorf("got %v", err)
	}
	refusedWith(t, err, "compilation failed")
}

func wrongValidatingConditions(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	h := validatingHook("cond", ns, webhookServer(t, allowed), when("", "v1", "configmaps", onCreate))
	h.MatchConditions = wrongConditions
	_, err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admissionregv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: ns}, Webhooks: []admissionregv1.ValidatingWebhook{h}}, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) {
		t.Errorf("got %v", err)
	}
	refusedWith(t, err, "compilation failed")
}

func skipMe(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	h := mutatingHook("skip", ns, webhookServer(t, stages), when("", "v1", "configmaps", onCreate))
	h.MatchConditions = []admissionregv1.MatchCondition{{Name: "not-skip-me", Expression: `object.metadata.name != "skip-me"`}}
	c.mutating(t, ns, h)
	start := map[string]string{"mutation-start": "yes"}
	cm, err := c.tryConfigMap(t, ns, "skip-me", start)
	ok(t, err)
	if len(cm.Data) != 1 {
		t.Errorf("skip-me was mutated: %v", cm.Data)
	}
	cm, err = c.tryConfigMap(t, ns, "to-be-mutated", start)
	ok(t, err)
	if cm.Data["mutation-stage-1"] != "yes" {
		t.Errorf("not mutated: %v", cm.Data)
	}
}

func denyAttach(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.validating(t, ns, validatingHook("attach", ns, webhookServer(t, func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if r.Operation != admissionv1.Connect || r.SubResource != "attach" || r.Kind.Kind != "PodAttachOptions" || r.Name != "to-be-attached" {
			return allowed(r)
		}
		return denied("attaching to pod 'to-be-attached' is not allowed")
	}), when("", "v1", "pods/attach", admissionregv1.Connect)))
	c.pod(t, ns, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "to-be-attached"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: *image, Stdin: true, Command: []string{"sh"}}}}})
	c.running(t, ns, "to-be-attached")
	err := c.CoreV1().RESTClient().Post().Namespace(ns).Resource("pods").Name("to-be-attached").SubResource("attach").Param("stdin", "true").Param("stdout", "true").Param("container", "c").Do(t.Context()).Error()
	refusedWith(t, err, "attaching to pod 'to-be-attached' is not allowed")
}

func denyPods(t *testing.T, c *cluster) {
	ns, exempt := c.namespace(t), c.namespace(t)
	pods := webhookServer(t, func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		u := sent(r)
		if u.GetName() == "hanging" {
			<-t.Context().Done()
		}
		if u.GetLabels()["webhook-e2e-test"] == "webhook-disallow" {
			return denied("the pod contains unwanted label")
		}
		return allowed(r)
	})
	one := int32(1)
	podHook := validatingHook("pods", ns, pods, when("", "v1", "pods", onCreate))
	podHook.TimeoutSeconds = &one
	c.validating(t, ns, podHook, validatingHook("configmaps", ns, webhookServer(t, noBadData), when("", "v1", "configmaps", onCreate, onUpdate, onDelete)))
	pod := func(name string, labels map[string]string) error {
		_, err := c.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: *image}}}}, metav1.CreateOptions{})
		return err
	}
	refusedWith(t, pod("disallowed", map[string]string{"webhook-e2e-test": "webhook-disallow"}), "the pod contains unwanted label")
	refusedWith(t, pod("hanging", nil), "deadline")
	if _, err := c.CoreV1().Pods(ns).Get(t.Context(), "hanging", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the hanging pod: %v", err)
	}
	bad := map[string]string{"webhook-e2e-test": "webhook-disallow"}
	_, err := c.tryConfigMap(t, ns, "bad", bad)
	refusedWith(t, err, "the configmap contains unwanted key and value")
	cm := c.configMap(t, ns, "good", nil, map[string]string{"admit": "this"})
	cm.Data = bad
	_, err = c.CoreV1().ConfigMaps(ns).Update(t.Context(), cm, metav1.UpdateOptions{})
	refusedWith(t, err, "the configmap contains unwanted key and value")
	_, err = c.CoreV1().ConfigMaps(ns).Patch(t.Context(), "good", types.MergePatchType, []byte(`{"data":{"webhook-e2e-test":"webhook-disallow"}}`), metav1.PatchOptions{})
	refusedWith(t, err, "the configmap contains unwanted key and value")
	_, err = c.tryConfigMap(t, exempt, "bad", bad)
	ok(t, err)
}

func honorTimeout(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	slow := webhookServer(t, func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		<-ctx.Done()
		return allowed(r)
	})
	for i, x := range []struct {
		seconds int32 // 0: the default
		policy  admissionregv1.FailurePolicyType
		refused bool
	}{{1, admissionregv1.Fail, true}, {1, admissionregv1.Ignore, false}, {7, admissionregv1.Fail, false}, {0, admissionregv1.Fail, false}} {
		h := validatingHook("slow", ns, slow, when("", "v1", "configmaps", onCreate))
		h.FailurePolicy = &x.policy
		if x.seconds > 0 {
			h.TimeoutSeconds = &x.seconds
		}
		name := fmt.Sprintf("%s-%d", ns, i)
		w := c.validating(t, name, h)
		if x.seconds == 0 && (w.Webhooks[0].TimeoutSeconds == nil || *w.Webhooks[0].TimeoutSeconds != 10) {
			t.Errorf("the default is %v", w.Webhooks[0].TimeoutSeconds)
		}
		_, err := c.tryConfigMap(t, ns, name, nil)
		if (err != nil) != x.refused || err != nil && !strings.Contains(err.Error(), "deadline") {
			t.Errorf("%+v: %v", x, err)
		}
		ok(t, c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), name, metav1.DeleteOptions{}))
	}
}

func discoverWebhooks(t *testing.T, c *cluster) {
	groups, err := c.Discovery().ServerGroups()
	ok(t, err)
	found := false
	for _, g := range groups.Groups {
		if g.Name == "admissionregistration.k8s.io" {
			for _, v := range g.Versions {
				found = found || v.GroupVersion == "admissionregistration.k8s.io/v1"
			}
		}
	}
	if !found {
		t.Error("the group version is not in /apis")
	}
	list, err := c.Discovery().ServerResourcesForGroupVersion("admissionregistration.k8s.io/v1")
	ok(t, err)
	names := map[string]bool{}
	for _, r := range list.APIResources {
		names[r.Name] = true
	}
	if !names["mutatingwebhookconfigurations"] || !names["validatingwebhookconfigurations"] {
		t.Errorf("resources %v", names)
	}
}

func mutateConfigMap(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	server := webhookServer(t, stages)
	rules := when("", "v1", "configmaps", onCreate)
	c.mutating(t, ns, mutatingHook("first", ns, server, rules), mutatingHook("second", ns, server, rules))
	cm, err := c.tryConfigMap(t, ns, "to-be-mutated", map[string]string{"mutation-start": "yes"})
	ok(t, err)
	if len(cm.Data) != 3 || cm.Data["mutation-stage-1"] != "yes" || cm.Data["mutation-stage-2"] != "yes" {
		t.Errorf("data %v", cm.Data)
	}
}

func mutatePod(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.mutating(t, ns, mutatingHook("pods", ns, webhookServer(t, func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return patching(`[{"op":"add","path":"/spec/initContainers","value":[{"image":"webhook-added-image","name":"webhook-added-init-container","resources":{}}]}]`)
	}), when("", "v1", "pods", onCreate)))
	p := c.pod(t, ns, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "webhook-to-be-mutated"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: *image}}}})
	if n := len(p.Spec.InitContainers); n != 1 || p.Spec.InitContainers[0].Name != "webhook-added-init-container" || p.Spec.InitContainers[0].TerminationMessagePolicy != corev1.TerminationMessageReadFile {
		t.Errorf("init containers %+v", p.Spec.InitContainers)
	}
}

func webhooksAreSafe(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	rules := []admissionregv1.RuleWithOperations{{Operations: []admissionregv1.OperationType{"*"}, Rule: admissionregv1.Rule{APIGroups: []string{"admissionregistration.k8s.io"}, APIVersions: []string{"*"},
		Resources: []string{"validatingwebhookconfigurations", "mutatingwebhookconfigurations"}}}}
	deny := validatingHook("deny", ns, webhookServer(t, func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse { return denied("never") }), rules)
	change := mutatingHook("change", ns, webhookServer(t, func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return patching(`[{"op":"add","path":"/metadata/labels","value":{"changed":"yes"}}]`)
	}), rules)
	deny.NamespaceSelector, change.NamespaceSelector = nil, nil
	c.validating(t, ns+"-deny", deny)
	c.mutating(t, ns+"-change", change)
	v := c.validating(t, ns+"-v", validatingHook("v", ns, deny.ClientConfig, when("", "v1", "none", onCreate)))
	m := c.mutating(t, ns+"-m", mutatingHook("m", ns, deny.ClientConfig, when("", "v1", "none", onCreate)))
	if v.Labels["changed"] != "" || m.Labels["changed"] != "" {
		t.Errorf("labels %v %v", v.Labels, m.Labels)
	}
	ok(t, c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), v.Name, metav1.DeleteOptions{}))
	ok(t, c.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(t.Context(), m.Name, metav1.DeleteOptions{}))
}

func failClosed(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	server := webhookServer(t, allowed)
	server.CABundle = nil
	c.validating(t, ns, validatingHook("closed", ns, server, when("", "v1", "configmaps", onCreate)))
	_, err := c.tryConfigMap(t, ns, "foo", nil)
	if !apierrors.IsInternalError(err) {
		t.Errorf("got %v", err)
	}
	refusedWith(t, err, "failed calling webhook")
}

// definition is a custom resource of one version or more.
func (c *cluster) definition(t *testing.T, group string, preserve bool, versions ...string) (schema.GroupVersionResource, error) {
	t.Helper()
	var list []any
	for i, v := range versions {
		list = append(list, map[string]any{"name": v, "served": true, "storage": i == 0, "schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object",
			"x-kubernetes-preserve-unknown-fields": preserve,
			"properties":                           map[string]any{"data": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": preserve, "properties": map[string]any{"mutation-start": map[string]any{"type": "string"}, "mutation-stage-1": map[string]any{"type": "string"}}}}}}})
		if !preserve {
			delete(list[i].(map[string]any)["schema"].(map[string]any)["openAPIV3Schema"].(map[string]any), "x-kubernetes-preserve-unknown-fields")
			delete(list[i].(map[string]any)["schema"].(map[string]any)["openAPIV3Schema"].(map[string]any)["properties"].(map[string]any)["data"].(map[string]any), "x-kubernetes-preserve-unknown-fields")
		}
	}
	crds := c.dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	name := "tests." + group
	_, err := crds.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": map[string]any{"name": name, "labels": map[string]any{"of": group}},
		"spec": map[string]any{"group": group, "scope": "Namespaced", "names": map[string]any{"plural": "tests", "singular": "test", "kind": "Test", "listKind": "TestList"}, "versions": list}}}, metav1.CreateOptions{})
	if err != nil {
		return schema.GroupVersionResource{}, err
	}
	t.Cleanup(func() { crds.Delete(contextOf(t), name, metav1.DeleteOptions{}) })
	eventually(t, func() string {
		u, err := crds.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		for _, x := range conditions {
			if m := x.(map[string]any); m["type"] == "Established" && m["status"] == "True" {
				return ""
			}
		}
		return "the definition is not established"
	})
	return schema.GroupVersionResource{Group: group, Version: versions[0], Resource: "tests"}, nil
}

func custom(gvr schema.GroupVersionResource, name string, data map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": gvr.GroupVersion().String(), "kind": "Test", "metadata": map[string]any{"name": name}, "data": data}}
}

func denyDefinition(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	h := validatingHook("crd", ns, webhookServer(t, func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return denied("the crd contains unwanted label")
	}), when("apiextensions.k8s.io", "*", "customresourcedefinitions", onCreate))
	h.NamespaceSelector = nil
	h.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"of": ns + ".example.com"}}
	c.validating(t, ns, h)
	_, err := c.definition(t, ns+".example.com", true, "v1")
	refusedWith(t, err, "the crd contains unwanted label")
}

func denyCustom(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	gvr, err := c.definition(t, ns+".example.com", true, "v1")
	ok(t, err)
	c.validating(t, ns, validatingHook("cr", ns, webhookServer(t, noBadData), when(gvr.Group, "v1", "tests", onCreate, onUpdate, onDelete)))
	api := c.dynamic.Resource(gvr).Namespace(ns)
	bad := map[string]any{"webhook-e2e-test": "webhook-disallow"}
	_, err = api.Create(t.Context(), custom(gvr, "bad", bad), metav1.CreateOptions{})
	refusedWith(t, err, "unwanted key and value")
	u, err := api.Create(t.Context(), custom(gvr, "good", map[string]any{"a": "b"}), metav1.CreateOptions{})
	ok(t, err)
	u.Object["data"] = bad
	_, err = api.Update(t.Context(), u, metav1.UpdateOptions{})
	refusedWith(t, err, "unwanted key and value")
	// One that was there before the webhook may not be deleted.
	ok(t, c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), ns, metav1.DeleteOptions{}))
	eventually(t, func() string {
		if _, err := api.Patch(t.Context(), "good", types.MergePatchType, []byte(`{"data":{"webhook-e2e-test":"webhook-disallow"}}`), metav1.PatchOptions{}); err != nil {
			return err.Error()
		}
		return ""
	})
	c.validating(t, ns, validatingHook("cr", ns, webhookServer(t, noBadData), when(gvr.Group, "v1", "tests", onDelete)))
	refusedWith(t, api.Delete(t.Context(), "good", metav1.DeleteOptions{}), "unwanted key and value")
	_, err = api.Patch(t.Context(), "good", types.MergePatchType, []byte(`{"data":{"webhook-e2e-test":"fine"}}`), metav1.PatchOptions{})
	ok(t, err)
	ok(t, api.Delete(t.Context(), "good", metav1.DeleteOptions{}))
}

func mutateCustom(pruning bool) func(t *testing.T, c *cluster) {
	return func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		gvr, err := c.definition(t, ns+".example.com", !pruning, "v1")
		ok(t, err)
		server := webhookServer(t, stages)
		rules := when(gvr.Group, "v1", "tests", onCreate, onUpdate)
		c.mutating(t, ns, mutatingHook("first", ns, server, rules), mutatingHook("second", ns, server, rules))
		u, err := c.dynamic.Resource(gvr).Namespace(ns).Create(t.Context(), custom(gvr, "cr", map[string]any{"mutation-start": "yes"}), metav1.CreateOptions{})
		ok(t, err)
		data, _, _ := unstructured.NestedStringMap(u.Object, "data")
		if data["mutation-stage-1"] != "yes" || (data["mutation-stage-2"] == "yes") == pruning {
			t.Errorf("data %v", data)
		}
	}
}

func mutateStoredVersion(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	v1, err := c.definition(t, ns+".example.com", true, "v1", "v2")
	ok(t, err)
	server := webhookServer(t, stages)
	c.mutating(t, ns, mutatingHook("first", ns, server, when(v1.Group, "*", "tests", onCreate, onUpdate)))
	api := c.dynamic.Resource(v1).Namespace(ns)
	_, err = api.Create(t.Context(), custom(v1, "cr", map[string]any{"mutation-start": "yes"}), metav1.CreateOptions{})
	ok(t, err)
	crds := c.dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	_, err = crds.Patch(t.Context(), "tests."+v1.Group, types.JSONPatchType, []byte(`[{"op":"replace","path":"/spec/versions/0/storage","value":false},{"op":"replace","path":"/spec/versions/1/storage","value":true}]`), metav1.PatchOptions{})
	ok(t, err)
	v2 := v1
	v2.Version = "v2"
	eventually(t, func() string {
		u, err := c.dynamic.Resource(v2).Namespace(ns).Patch(t.Context(), "cr", types.MergePatchType, []byte(`{"data":{"other":"yes"}}`), metav1.PatchOptions{})
		if err != nil {
			return err.Error()
		}
		data, _, _ := unstructured.NestedStringMap(u.Object, "data")
		if data["mutation-stage-1"] != "yes" || data["mutation-stage-2"] != "yes" || data["other"] != "yes" {
			return fmt.Sprintf("data %v", data)
		}
		return ""
	})
}
