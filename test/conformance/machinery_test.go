package conformance

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/util/retry"
)

func init() {
	it("AggregatedDiscovery should support aggregated discovery interface", aggregatedInterface)
	it("AggregatedDiscovery should support raw aggregated discovery endpoint Accept headers", aggregatedRaw)
	it("Discovery should locate the groupVersion and a resource within each APIGroup", discoveryGroups).alone() // groups of other tests come and go
	it("Discovery should validate PreferredVersion for each APIGroup", preferredVersions).alone()
	it("server version should find the server version", serverVersion)
	it("FieldValidation should detect unknown and duplicate fields of a typed object", unknownFields)
	it("FieldValidation should detect unknown metadata fields of a typed object", unknownMetadata)
	it("FieldValidation should detect duplicates in a CR when preserving unknown fields", customDuplicates)
	it("FieldValidation should detect unknown metadata fields in both the root and embedded object of a CR", customMetadata)
	it("should apply a finalizer to a Namespace", namespaceFinalizer)
	it("should apply an update to a Namespace", namespaceUpdate)
	it("should apply changes to a namespace status", namespaceStatus)
	it("should ensure that all pods are removed when a namespace is deleted", namespacePods)
	it("should ensure that all services are removed when a namespace is deleted", namespaceServices)
	it("should patch a Namespace", namespacePatch)
	it("namespace deletion should delete pod first", namespaceOrder)
	it("Conformance Tests should have at least two untainted nodes", twoNodes)
}

// known are resources of every cluster: what discovery must show.
var known = []schema.GroupVersionResource{
	{Version: "v1", Resource: "namespaces"}, {Version: "v1", Resource: "pods"}, {Version: "v1", Resource: "services"},
	{Version: "v1", Resource: "replicationcontrollers"}, {Version: "v1", Resource: "nodes"},
	{Group: "apps", Version: "v1", Resource: "deployments"}, {Group: "batch", Version: "v1", Resource: "jobs"},
	{Group: "networking.k8s.io", Version: "v1", Resource: "ingresses"}, {Group: "events.k8s.io", Version: "v1", Resource: "events"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"}, {Group: "autoscaling", Version: "v2", Resource: "horizontalpodautoscalers"},
}

func aggregatedInterface(t *testing.T, c *cluster) {
	d, is := discovery.DiscoveryInterface(c.Discovery()).(discovery.AggregatedDiscoveryInterface)
	if !is {
		t.Fatal("no aggregated interface")
	}
	groups, resources, failed, err := d.GroupsAndMaybeResources()
	ok(t, err)
	same(t, "failed group versions", len(failed), 0)
	if resources == nil {
		t.Fatal("discovery is not aggregated")
	}
	for _, r := range known {
		if !slices.ContainsFunc(groups.Groups, func(g metav1.APIGroup) bool { return g.Name == r.Group }) {
			t.Errorf("no group %q", r.Group)
		}
		list := resources[r.GroupVersion()]
		if list == nil || !slices.ContainsFunc(list.APIResources, func(a metav1.APIResource) bool { return a.Name == r.Resource }) {
			t.Errorf("no %v", r)
		}
	}
}

func aggregatedRaw(t *testing.T, c *cluster) {
	for _, path := range []string{"/api", "/apis"} {
		for _, accept := range []string{
			"application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
			"application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
			"application/json;as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io, application/json",
		} {
			var kind string
			r := c.Discovery().RESTClient().Get().AbsPath(path).SetHeader("Accept", accept).Do(t.Context()).ContentType(&kind)
			raw, err := r.Raw()
			ok(t, err)
			same(t, path+" content type", kind, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
			for _, k := range known {
				if (k.Group == "") == (path == "/api") && !strings.Contains(string(raw), `"resource":"`+k.Resource+`"`) {
					t.Errorf("%s with %s does not show %s", path, accept, k.Resource)
				}
			}
		}
		var kind string
		raw, err := c.Discovery().RESTClient().Get().AbsPath(path).SetHeader("Accept", "application/json").Do(t.Context()).ContentType(&kind).Raw()
		ok(t, err)
		if strings.Contains(string(raw), "APIGroupDiscoveryList") || strings.Contains(kind, "as=") {
			t.Errorf("%s: plain JSON was asked for, aggregated discovery came as %s", path, kind)
		}
	}
}

func discoveryGroups(t *testing.T, c *cluster) {
	groups, err := c.Discovery().ServerGroups()
	ok(t, err)
	for _, g := range groups.Groups {
		list, err := c.Discovery().ServerResourcesForGroupVersion(g.PreferredVersion.GroupVersion)
		if unlisted(c, g.Name, err) {
			continue
		}
		ok(t, err)
		same(t, "group version", list.GroupVersion, g.PreferredVersion.GroupVersion)
		if len(list.APIResources) == 0 {
			t.Errorf("%s has no resources", list.GroupVersion)
		}
		for _, r := range list.APIResources {
			if r.Name == "" || r.Kind == "" || len(r.Verbs) == 0 {
				t.Errorf("%s: not a valid resource: %+v", list.GroupVersion, r)
			}
		}
	}
}

// unlisted says that a group was not found because it is not listed any more: other
// behaviours, which run at the same time, make definitions and take them away.
func unlisted(c *cluster, group string, err error) bool {
	if !apierrors.IsNotFound(err) {
		return false
	}
	now, err := c.Discovery().ServerGroups()
	return err == nil && !slices.ContainsFunc(now.Groups, func(g metav1.APIGroup) bool { return g.Name == group })
}

func preferredVersions(t *testing.T, c *cluster) {
	groups := new(metav1.APIGroupList)
	ok(t, c.Discovery().RESTClient().Get().AbsPath("/apis").Do(t.Context()).Into(groups))
	if len(groups.Groups) == 0 {
		t.Fatal("no groups")
	}
	for _, g := range groups.Groups {
		one := new(metav1.APIGroup)
		err := c.Discovery().RESTClient().Get().AbsPath("/apis/" + g.Name).Do(t.Context()).Into(one)
		if unlisted(c, g.Name, err) {
			continue
		}
		ok(t, err)
		if one.PreferredVersion.GroupVersion == "" || !slices.Contains(one.Versions, one.PreferredVersion) {
			t.Errorf("%s prefers %v, which is none of %v", g.Name, one.PreferredVersion, one.Versions)
		}
	}
}

func serverVersion(t *testing.T, c *cluster) {
	v, err := c.Discovery().ServerVersion()
	ok(t, err)
	for _, n := range []string{v.Major, v.Minor} {
		if _, err := strconv.Atoi(n); err != nil {
			t.Errorf("%q is not a number", n)
		}
	}
}

const typed = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"%s","labels":{"app":"nginx"}},
	"spec":{%s"replicas":1,"paused":true,"selector":{"matchLabels":{"app":"nginx"}},"template":{"metadata":{%s"labels":{"app":"nginx"}},"spec":{"containers":[{"name":"nginx","image":"none"}]}}}}`

func unknownFields(t *testing.T, c *cluster) {
	body := fmt.Sprintf(typed, "typed", `"unknownField":"unknown","paused":false,`, "")
	c.refuses(t, "typed", body, `strict decoding error: unknown field "spec.unknownField", duplicate field "spec.paused"`,
		`strict decoding error: duplicate field "spec.paused", unknown field "spec.unknownField"`)
}

func unknownMetadata(t *testing.T, c *cluster) {
	body := strings.Replace(fmt.Sprintf(typed, "meta", "", `"unknownSubMeta":"a",`), `"labels"`, `"unknownMeta":"b","labels"`, 1)
	c.refuses(t, "meta", body, `strict decoding error: unknown field "metadata.unknownMeta", unknown field "spec.template.metadata.unknownSubMeta"`)
}

// refuses tries a body as create, apply, merge patch and update with strict field
// validation, then with Warn and Ignore, which take it.
func (c *cluster) refuses(t *testing.T, name, body string, want ...string) {
	t.Helper()
	ns := c.namespace(t)
	rest := c.AppsV1().RESTClient()
	var warned warnings
	loud := c.as(t, func(cfg *restConfig) { cfg.WarningHandlerWithContext = &warned }).AppsV1().RESTClient()
	check := func(how string, err error) {
		t.Helper()
		if err == nil || !apierrors.IsBadRequest(err) && !apierrors.IsInvalid(err) || !slices.ContainsFunc(want, func(w string) bool { return strings.Contains(err.Error(), w) }) {
			t.Errorf("%s: %v, want %q", how, err, want[0])
		}
	}
	strict := func(r *request) *request {
		return r.Namespace(ns).Resource("deployments").Param("fieldValidation", "Strict")
	}
	check("create", strict(rest.Post()).Body([]byte(body)).Do(t.Context()).Error())
	ok(t, loud.Post().Namespace(ns).Resource("deployments").Param("fieldValidation", "Warn").Body([]byte(body)).Do(t.Context()).Error())
	if !strings.Contains(warned.all(), "unknown field") {
		t.Errorf("Warn warns of %q", warned.all())
	}
	check("update", strict(rest.Put()).Name(name).Body([]byte(body)).Do(t.Context()).Error())
	check("merge patch", strict(rest.Patch(types.MergePatchType)).Name(name).Body([]byte(body)).Do(t.Context()).Error())
	check("strategic merge patch", strict(rest.Patch(types.StrategicMergePatchType)).Name(name).Body([]byte(body)).Do(t.Context()).Error())
	if err := strict(rest.Patch(types.ApplyPatchType)).Name(name).Param("fieldManager", "conformance").Body([]byte(body)).Do(t.Context()).Error(); err == nil {
		t.Errorf("apply took it")
	}
	ok(t, rest.Patch(types.MergePatchType).Namespace(ns).Resource("deployments").Name(name).Param("fieldValidation", "Ignore").Body([]byte(body)).Do(t.Context()).Error())
}

func customDuplicates(t *testing.T, c *cluster) {
	d := c.define(t, newDefinition(`{"type":"object","x-kubernetes-preserve-unknown-fields":true,"properties":{"spec":{"type":"object","x-kubernetes-preserve-unknown-fields":true,"properties":{"foo":{"type":"string"}}}}}`))
	ns := c.namespace(t)
	head := fmt.Sprintf("apiVersion: %s/v1\nkind: %s\nmetadata:\n  name: x\n", d.group, d.kind)
	apply := func(body string) error {
		return c.customRequest(d, ns, types.ApplyPatchType).Body([]byte(body)).Do(t.Context()).Error()
	}
	ok(t, apply(head+"spec:\n  foo: one\n  unknown: kept\n"))
	if err := apply(head + "spec:\n  foo: one\n  foo: two\n"); err == nil || !strings.Contains(err.Error(), `line 7: key "foo" already set in map`) {
		t.Errorf("apply: %v", err)
	}
	for _, field := range []string{"foo", "unknown"} {
		merge := fmt.Sprintf(`{"spec":{%q:"one",%q:"two"}}`, field, field)
		err := c.customRequest(d, ns, types.MergePatchType).Body([]byte(merge)).Do(t.Context()).Error()
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf(`duplicate field "spec.%s"`, field)) {
			t.Errorf("merge patch: %v", err)
		}
	}
	u, err := c.custom(d, "v1", ns).Get(t.Context(), "x", metav1.GetOptions{})
	ok(t, err)
	same(t, "spec", fmt.Sprint(u.Object["spec"]), "map[foo:one unknown:kept]")
}

// customRequest is a strict patch of the object x.
func (c *cluster) customRequest(d *definition, ns string, how types.PatchType) *request {
	return c.CoreV1().RESTClient().Patch(how).AbsPath("apis", d.group, "v1", "namespaces", ns, d.plural, "x").
		Param("fieldManager", "conformance").Param("fieldValidation", "Strict")
}

func customMetadata(t *testing.T, c *cluster) {
	d := c.define(t, newDefinition(`{"type":"object","properties":{"spec":{"type":"object","x-kubernetes-preserve-unknown-fields":true,"properties":{"template":{"type":"object","x-kubernetes-embedded-resource":true,"properties":{"metadata":{"type":"object"},"spec":{"type":"object"}}}}}}}`))
	ns := c.namespace(t)
	body := fmt.Sprintf(`{"apiVersion":"%s/v1","kind":%q,"metadata":{"name":"x",%%s"labels":{"a":"b"}},"spec":{"template":{"apiVersion":"foo/v1","kind":"Sub","metadata":{%%s"name":"sub"}}}}`, d.group, d.kind)
	ok(t, c.customRequest(d, ns, types.ApplyPatchType).Body(fmt.Appendf(nil, body, "", "")).Do(t.Context()).Error())
	bad := fmt.Appendf(nil, body, `"unknownMeta":"u",`, `"unknownSubMeta":"u",`)
	post := c.CoreV1().RESTClient().Post().AbsPath("apis", d.group, "v1", "namespaces", ns, d.plural).Param("fieldValidation", "Strict")
	check := func(how string, err error, path string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("unknown field %q", path)) && !strings.Contains(err.Error(), "."+path+": field not declared in schema") {
			t.Errorf("%s: %v, want %s", how, err, path)
		}
	}
	const root, embedded = "metadata.unknownMeta", "spec.template.metadata.unknownSubMeta"
	for how, err := range map[string]error{
		"create":      post.Body(bad).Do(t.Context()).Error(),
		"merge patch": c.customRequest(d, ns, types.MergePatchType).Body(bad).Do(t.Context()).Error(),
	} {
		check(how, err, root)
		check(how, err, embedded)
	}
	// An apply names the first that its schema does not have.
	apply := func(a, b string) error {
		return c.customRequest(d, ns, types.ApplyPatchType).Body(fmt.Appendf(nil, body, a, b)).Do(t.Context()).Error()
	}
	check("apply", apply(`"unknownMeta":"u",`, ""), root)
	check("apply", apply("", `"unknownSubMeta":"u",`), embedded)
}

func namespaceFinalizer(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().Namespaces()
	const f = "conformance.example.com/finalizer"
	set := func(change func([]corev1.FinalizerName) []corev1.FinalizerName) []corev1.FinalizerName {
		var out *corev1.Namespace
		ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
			n, err := api.Get(t.Context(), ns, metav1.GetOptions{})
			if err != nil {
				return err
			}
			n.Spec.Finalizers = change(n.Spec.Finalizers)
			out, err = api.Finalize(t.Context(), n, metav1.UpdateOptions{})
			return err
		}))
		return out.Spec.Finalizers
	}
	if have := set(func(l []corev1.FinalizerName) []corev1.FinalizerName { return append(l, f) }); !slices.Contains(have, f) || !slices.Contains(have, corev1.FinalizerKubernetes) {
		t.Fatalf("finalizers: %v", have)
	}
	if have := set(func(l []corev1.FinalizerName) []corev1.FinalizerName {
		return slices.DeleteFunc(l, func(x corev1.FinalizerName) bool { return x == f })
	}); slices.Contains(have, f) {
		t.Fatalf("finalizers: %v", have)
	}
}

func namespaceUpdate(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().Namespaces()
	ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		n, err := api.Get(t.Context(), ns, metav1.GetOptions{})
		ok(t, err)
		n.Labels[ns] = "updated"
		n, err = api.Update(t.Context(), n, metav1.UpdateOptions{})
		if err == nil {
			same(t, "label", n.Labels[ns], "updated")
		}
		return err
	}))
}

func namespaceStatus(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().Namespaces()
	n, err := api.Get(t.Context(), ns, metav1.GetOptions{})
	ok(t, err)
	same(t, "phase", n.Status.Phase, corev1.NamespaceActive)
	n, err = api.Patch(t.Context(), ns, types.MergePatchType, []byte(`{"metadata":{"annotations":{"a":"b"}},"status":{"conditions":[{"type":"StatusPatch","status":"True","reason":"E2E","message":"Patched by the test"}]}}`), metav1.PatchOptions{}, "status")
	ok(t, err)
	same(t, "annotation", n.Annotations["a"], "b")
	same(t, "conditions", len(n.Status.Conditions), 1)
	ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		n, err := api.Get(t.Context(), ns, metav1.GetOptions{})
		ok(t, err)
		n.Status.Conditions = append(n.Status.Conditions, corev1.NamespaceCondition{Type: "StatusUpdate", Status: "True", Reason: "E2E", Message: "Updated by the test"})
		n, err = api.UpdateStatus(t.Context(), n, metav1.UpdateOptions{})
		if err == nil {
			same(t, "conditions", len(n.Status.Conditions), 2)
		}
		return err
	}))
}

// pause is a pod that does nothing.
func pausePod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}, Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: new(int64(1)),
		Containers:                    []corev1.Container{{Name: "c", Image: *image, Command: stays}}}}
}

// stays is a command that runs until it is told to end: the first process of a
// container does not hear of that unless it says so.
var stays = []string{"sh", "-c", "trap 'exit 0' TERM; sleep 3600 & wait"}

func (c *cluster) pod(t *testing.T, ns string, p *corev1.Pod) *corev1.Pod {
	t.Helper()
	p, err := c.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
	ok(t, err)
	return p
}

// running waits until a pod runs and is ready.
func (c *cluster) running(t *testing.T, ns, name string) *corev1.Pod {
	t.Helper()
	var p *corev1.Pod
	eventually(t, func() string {
		var err error
		p, err = c.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		ok(t, err)
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && p.Status.Phase == corev1.PodRunning {
				return ""
			}
		}
		return fmt.Sprintf("pod %s is not ready: %+v", name, p.Status)
	})
	return p
}

func namespacePods(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.pod(t, ns, pausePod("test-pod"))
	c.running(t, ns, "test-pod")
	c.deleteNamespace(t, ns)
	_, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{})
	ok(t, err)
	list, err := c.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	same(t, "pods", len(list.Items), 0)
}

func (c *cluster) deleteNamespace(t *testing.T, ns string) {
	t.Helper()
	ok(t, c.CoreV1().Namespaces().Delete(t.Context(), ns, metav1.DeleteOptions{}))
	gone(t, "namespace "+ns, func() error {
		_, err := c.CoreV1().Namespaces().Get(context.Background(), ns, metav1.GetOptions{})
		return err
	})
}

func service(name string, selector map[string]string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Selector: selector, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(80)}}}}
}

func namespaceServices(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	_, err := c.CoreV1().Services(ns).Create(t.Context(), service("test-service", map[string]string{"a": "b"}), metav1.CreateOptions{})
	ok(t, err)
	c.deleteNamespace(t, ns)
	_, err = c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{})
	ok(t, err)
	list, err := c.CoreV1().Services(ns).List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	same(t, "services", len(list.Items), 0)
}

func namespacePatch(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	n, err := c.CoreV1().Namespaces().Patch(t.Context(), ns, types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"testLabel":"testValue"}}}`), metav1.PatchOptions{})
	ok(t, err)
	same(t, "label", n.Labels["testLabel"], "testValue")
}

func namespaceOrder(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	p := pausePod("held")
	p.Finalizers = []string{"conformance.example.com/held"}
	c.pod(t, ns, p)
	c.running(t, ns, "held")
	c.configMap(t, ns, "stays", nil, nil)
	ok(t, c.CoreV1().Namespaces().Delete(t.Context(), ns, metav1.DeleteOptions{}))
	eventually(t, func() string {
		n, err := c.CoreV1().Namespaces().Get(t.Context(), ns, metav1.GetOptions{})
		ok(t, err)
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NamespaceContentRemaining && c.Status == corev1.ConditionTrue && strings.Contains(c.Message, "pods.") {
				return ""
			}
		}
		return fmt.Sprintf("the namespace does not say that pods remain: %+v", n.Status)
	})
	_, err := c.CoreV1().ConfigMaps(ns).Get(t.Context(), "stays", metav1.GetOptions{})
	if err != nil {
		t.Errorf("the ConfigMap went before the pod: %v", err)
	}
	_, err = c.CoreV1().Pods(ns).Patch(t.Context(), "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	ok(t, err)
	gone(t, "namespace", func() error {
		_, err := c.CoreV1().Namespaces().Get(t.Context(), ns, metav1.GetOptions{})
		return err
	})
}

func twoNodes(t *testing.T, c *cluster) {
	nodes, err := c.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	if len(nodes.Items) < 2 {
		cannot(t, "this cluster has one node")
	}
	n := 0
	for _, node := range nodes.Items {
		if !node.Spec.Unschedulable && len(node.Spec.Taints) == 0 {
			n++
		}
	}
	if n < 2 {
		t.Errorf("%d nodes are untainted", n)
	}
}

// raw sends a request to a path.
func (c *cluster) raw(t *testing.T, method, path string) (int, string) {
	t.Helper()
	var code int
	b, err := c.CoreV1().RESTClient().Verb(method).AbsPath(path).Do(t.Context()).StatusCode(&code).Raw()
	if err != nil && code == 0 {
		t.Fatal(err)
	}
	return code, string(b)
}
