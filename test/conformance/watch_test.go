package conformance

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/watch"
)

func init() {
	it("Servers with support for API chunking should return chunks of results for list calls", chunks)
	it("should support continue listing from the last key if the original version has been compacted away", chunksAfterCompaction)
	it("Watchers should be able to restart watching from the last resource version observed by the previous watch", watchRestarts)
	it("Watchers should be able to start watching from a specific resource version", watchFromVersion)
	it("Watchers should observe add, update, and delete watch notifications on configmaps", watchLabels)
	it("Watchers should observe an object deletion if it stops meeting the requirements of the selector", watchSelector)
	it("Watchers should receive events on concurrent watches in same order", watchOrder)
	it("should return a 406 for a backend which does not implement metadata", notAcceptable)
}

func (c *cluster) configMap(t *testing.T, ns, name string, labels, data map[string]string) *corev1.ConfigMap {
	t.Helper()
	cm, err := c.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Data: data}, metav1.CreateOptions{})
	ok(t, err)
	return cm
}

func (c *cluster) setData(t *testing.T, cm *corev1.ConfigMap, value string) *corev1.ConfigMap {
	t.Helper()
	cm = cm.DeepCopy()
	cm.Data = map[string]string{"mutation": value}
	cm, err := c.CoreV1().ConfigMaps(cm.Namespace).Update(t.Context(), cm, metav1.UpdateOptions{})
	ok(t, err)
	return cm
}

const manyTemplates = 400

func (c *cluster) templates(t *testing.T) string {
	t.Helper()
	ns := c.namespace(t)
	errs := make(chan error, manyTemplates)
	work := make(chan int)
	for range 8 {
		go func() {
			for i := range work {
				_, err := c.CoreV1().PodTemplates(ns).Create(t.Context(), &corev1.PodTemplate{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("template-%04d", i)},
					Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "test", Image: "test2"}}}}}, metav1.CreateOptions{})
				errs <- err
			}
		}()
	}
	for i := range manyTemplates {
		work <- i
	}
	close(work)
	for range manyTemplates {
		ok(t, <-errs)
	}
	return ns
}

func chunks(t *testing.T, c *cluster) {
	ns := c.templates(t)
	api := c.CoreV1().PodTemplates(ns)
	for _, size := range []int64{1 + int64(rand.Intn(manyTemplates/2)), 17, manyTemplates} {
		o, seen, version := metav1.ListOptions{Limit: size}, 0, ""
		for {
			list, err := api.List(t.Context(), o)
			ok(t, err)
			if len(list.Items) > int(size) {
				t.Fatalf("%d items in a chunk of %d", len(list.Items), size)
			}
			for _, item := range list.Items {
				same(t, "next item", item.Name, fmt.Sprintf("template-%04d", seen))
				seen++
			}
			if version == "" {
				version = list.ResourceVersion
			}
			same(t, "version of a chunk", list.ResourceVersion, version)
			if list.Continue == "" {
				if list.RemainingItemCount != nil {
					t.Fatalf("the last chunk says that %d remain", *list.RemainingItemCount)
				}
				break
			}
			if list.RemainingItemCount == nil || int(*list.RemainingItemCount) != manyTemplates-seen {
				t.Fatalf("%d seen, remaining is said to be %v", seen, list.RemainingItemCount)
			}
			o.Continue = list.Continue
		}
		same(t, "items in all chunks", seen, manyTemplates)
	}
	all, err := api.List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	same(t, "items in one list", len(all.Items), manyTemplates)
}

// chunksAfterCompaction cannot wait for a compaction (five minutes upstream): a
// token whose version lies before everything that is kept says the same.
func chunksAfterCompaction(t *testing.T, c *cluster) {
	ns := c.templates(t)
	api := c.CoreV1().PodTemplates(ns)
	const size = 40
	first, err := api.List(t.Context(), metav1.ListOptions{Limit: size})
	ok(t, err)
	c.configMap(t, ns, "meanwhile", nil, nil)
	expired := c.expire(t, first.Continue)
	_, err = api.List(t.Context(), metav1.ListOptions{Limit: size, Continue: expired})
	if !apierrors.IsResourceExpired(err) {
		t.Fatalf("an old token: %v, want Expired", err)
	}
	status, is := err.(apierrors.APIStatus)
	if !is || status.Status().ListMeta.Continue == "" {
		t.Fatal("no token to go on with in the error")
	}
	next, err := api.List(t.Context(), metav1.ListOptions{Limit: size, Continue: status.Status().ListMeta.Continue})
	ok(t, err)
	if len(next.Items) != size || next.ResourceVersion == first.ResourceVersion {
		t.Fatalf("%d items at version %s after an inconsistent continuation (before: %s)", len(next.Items), next.ResourceVersion, first.ResourceVersion)
	}
	seen := size
	for o := (metav1.ListOptions{Limit: size}); ; {
		for _, item := range next.Items {
			same(t, "next item", item.Name, fmt.Sprintf("template-%04d", seen))
			seen++
		}
		if next.Continue == "" {
			break
		}
		same(t, "remaining", *next.RemainingItemCount, int64(manyTemplates-seen))
		o.Continue = next.Continue
		next, err = api.List(t.Context(), o)
		ok(t, err)
	}
	same(t, "items in all chunks", seen, manyTemplates)
}

func watchRestarts(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().ConfigMaps(ns)
	label := map[string]string{"watch-this-configmap": "watch-closed-and-restarted"}
	o := metav1.ListOptions{LabelSelector: "watch-this-configmap=watch-closed-and-restarted"}
	w, err := api.Watch(t.Context(), o)
	ok(t, err)
	cm := c.configMap(t, ns, "e2e-watch", label, nil)
	cm = c.setData(t, cm, "1")
	expect(t, w, watch.Added, "")
	last := expect(t, w, watch.Modified, "1")
	w.Stop()
	c.setData(t, cm, "2")
	o.ResourceVersion = last.ResourceVersion
	w, err = api.Watch(t.Context(), o)
	ok(t, err)
	defer w.Stop()
	ok(t, api.Delete(t.Context(), cm.Name, metav1.DeleteOptions{}))
	expect(t, w, watch.Modified, "2")
	expect(t, w, watch.Deleted, "2")
}

func watchFromVersion(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	cm := c.configMap(t, ns, "e2e-watch", nil, nil)
	first := c.setData(t, cm, "1")
	second := c.setData(t, first, "2")
	ok(t, c.CoreV1().ConfigMaps(ns).Delete(t.Context(), second.Name, metav1.DeleteOptions{}))
	w, err := c.CoreV1().ConfigMaps(ns).Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + cm.Name, ResourceVersion: first.ResourceVersion})
	ok(t, err)
	defer w.Stop()
	expect(t, w, watch.Modified, "2")
	expect(t, w, watch.Deleted, "2")
}

func watchLabels(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().ConfigMaps(ns)
	open := func(selector string) watch.Interface {
		w, err := api.Watch(t.Context(), metav1.ListOptions{LabelSelector: selector})
		ok(t, err)
		t.Cleanup(w.Stop)
		return w
	}
	a, b, both := open("w=a"), open("w=b"), open("w in (a,b)")
	first := c.configMap(t, ns, "first", map[string]string{"w": "a"}, nil)
	for _, w := range []watch.Interface{a, both} {
		same(t, "name", expect(t, w, watch.Added, "").Name, "first")
	}
	first = c.setData(t, first, "1")
	c.setData(t, first, "2")
	for _, w := range []watch.Interface{a, both} {
		expect(t, w, watch.Modified, "1")
		expect(t, w, watch.Modified, "2")
	}
	ok(t, api.Delete(t.Context(), "first", metav1.DeleteOptions{}))
	for _, w := range []watch.Interface{a, both} {
		expect(t, w, watch.Deleted, "2")
	}
	c.configMap(t, ns, "second", map[string]string{"w": "b"}, nil)
	ok(t, api.Delete(t.Context(), "second", metav1.DeleteOptions{}))
	for _, w := range []watch.Interface{b, both} {
		same(t, "name", expect(t, w, watch.Added, "").Name, "second")
		expect(t, w, watch.Deleted, "")
	}
	silent(t, a)
}

func watchSelector(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().ConfigMaps(ns)
	w, err := api.Watch(t.Context(), metav1.ListOptions{LabelSelector: "w=this"})
	ok(t, err)
	defer w.Stop()
	label := func(cm *corev1.ConfigMap, value string) *corev1.ConfigMap {
		cm = cm.DeepCopy()
		cm.Labels = map[string]string{"w": value}
		cm, err := api.Update(t.Context(), cm, metav1.UpdateOptions{})
		ok(t, err)
		return cm
	}
	cm := c.configMap(t, ns, "changing", map[string]string{"w": "this"}, nil)
	cm = c.setData(t, cm, "1")
	cm = label(cm, "that")
	expect(t, w, watch.Added, "")
	expect(t, w, watch.Modified, "1")
	expect(t, w, watch.Deleted, "1")
	cm = c.setData(t, cm, "2")
	silent(t, w)
	cm = label(cm, "this")
	c.setData(t, cm, "3")
	ok(t, api.Delete(t.Context(), cm.Name, metav1.DeleteOptions{}))
	expect(t, w, watch.Added, "2")
	expect(t, w, watch.Modified, "3")
	expect(t, w, watch.Deleted, "3")
}

func watchOrder(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().ConfigMaps(ns)
	const rounds = 60
	list, err := api.List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	failed := make(chan error, 1)
	go func() {
		failed <- func() error {
			var made []string
			for i := range 3 * rounds {
				name := fmt.Sprintf("cm-%d", i)
				switch {
				case len(made) > 0 && i%3 == 1:
					cm, err := api.Get(t.Context(), made[rand.Intn(len(made))], metav1.GetOptions{})
					if err != nil {
						return err
					}
					cm.Data = map[string]string{"i": name}
					if _, err := api.Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
						return err
					}
				case len(made) > 3 && i%3 == 2:
					n := rand.Intn(len(made))
					if err := api.Delete(t.Context(), made[n], metav1.DeleteOptions{}); err != nil {
						return err
					}
					made = append(made[:n], made[n+1:]...)
				default:
					if _, err := api.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
						return err
					}
					made = append(made, name)
				}
			}
			return nil
		}()
	}()
	versions := []string{list.ResourceVersion}
	var watches []watch.Interface
	for i := range rounds {
		w, err := api.Watch(t.Context(), metav1.ListOptions{ResourceVersion: versions[i]})
		ok(t, err)
		t.Cleanup(w.Stop)
		watches = append(watches, w)
		version := next(t, watches[0]).ResourceVersion
		for _, w := range watches[1:] {
			same(t, "version seen by a second watch", next(t, w).ResourceVersion, version)
		}
		versions = append(versions, version)
	}
	ok(t, <-failed)
}

func next(t *testing.T, w watch.Interface) *corev1.ConfigMap {
	t.Helper()
	return observe(t, w, "an event", func(watch.Event) bool { return true }).Object.(*corev1.ConfigMap)
}

// expect reads one event.
func expect(t *testing.T, w watch.Interface, kind watch.EventType, data string) *corev1.ConfigMap {
	t.Helper()
	e := observe(t, w, string(kind), func(watch.Event) bool { return true })
	cm := e.Object.(*corev1.ConfigMap)
	if e.Type != kind || cm.Data["mutation"] != data {
		t.Fatalf("%s with %q, want %s with %q", e.Type, cm.Data["mutation"], kind, data)
	}
	return cm
}

// silent says that a watch has nothing; what could come is there already when
// the write that caused it is answered and read back.
func silent(t *testing.T, w watch.Interface) {
	t.Helper()
	select {
	case e := <-w.ResultChan():
		t.Fatalf("unexpected %s: %v", e.Type, e.Object)
	case <-time.After(300 * time.Millisecond):
	}
}

func notAcceptable(t *testing.T, c *cluster) {
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "get", Resource: "pods", Namespace: "default"}}}
	err := c.AuthorizationV1().RESTClient().Post().Resource("selfsubjectaccessreviews").SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").Body(review).Do(t.Context()).Error()
	if !apierrors.IsNotAcceptable(err) {
		t.Fatalf("a review as a table: %v, want 406", err)
	}
	same(t, "code", err.(apierrors.APIStatus).Status().Code, int32(http.StatusNotAcceptable))
	if !strings.Contains(err.Error(), "the only acceptable response types") && !strings.Contains(err.Error(), "only the following media types are accepted") {
		t.Logf("message: %v", err)
	}
}
