package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	corev1 "k8s.io/api/core/v1"
)

func resources(pairs ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

// crud is the API of one kind as most behaviours demand it.
type crud struct {
	group, version, plural, kind string
	// object in YAML; %s is a name that nothing else has, %d a number, %n the namespace.
	object  string
	cluster bool
	// status is a merge patch of the status and what it changes: a path to a field
	// and its value afterwards.
	status      string
	statusField []string
	statusWant  any
	// subresources that discovery has to show.
	subresources []string
	// lingers: the object stays with a deletion timestamp until a finalizer goes.
	lingers bool
}

func (k crud) run(t *testing.T, c *cluster) {
	ctx := t.Context()
	k.discovered(t, c)
	gvr := schema.GroupVersionResource{Group: k.group, Version: k.version, Resource: k.plural}
	var api dynamic.ResourceInterface = c.dynamic.Resource(gvr)
	ns := ""
	if !k.cluster {
		ns = c.namespace(t)
		api = c.dynamic.Resource(gvr).Namespace(ns)
	}
	mark := "conformance-" + rand.String(8)
	selector := metav1.ListOptions{LabelSelector: "test=" + mark}
	object := func(n int) *unstructured.Unstructured {
		u := new(unstructured.Unstructured)
		text := strings.ReplaceAll(strings.ReplaceAll(k.object, "%s", fmt.Sprintf("%s-%d", mark, n)), "%d", fmt.Sprint(n+10))
		text = strings.ReplaceAll(text, "%n", ns)
		ok(t, yaml.Unmarshal([]byte(text), &u.Object))
		u.SetAPIVersion(gvr.GroupVersion().String())
		u.SetKind(k.kind)
		if u.GetName() == "" {
			u.SetName(fmt.Sprintf("%s-%d", mark, n))
		}
		labels := map[string]string{"test": mark}
		maps.Copy(labels, u.GetLabels())
		u.SetLabels(labels)
		return u
	}
	t.Cleanup(func() {
		if err := api.DeleteCollection(context.Background(), metav1.DeleteOptions{}, selector); err != nil {
			t.Error(err)
		}
	})
	// Create, watch what follows.
	made, err := api.Create(ctx, object(0), metav1.CreateOptions{})
	ok(t, err)
	if made.GetUID() == "" || made.GetResourceVersion() == "" || made.GetCreationTimestamp() == (metav1.Time{}) {
		t.Fatalf("the created object lacks system fields: %v", made.Object["metadata"])
	}
	if _, err := api.Create(ctx, object(0), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Fatalf("created twice: %v", err)
	}
	w, err := api.Watch(ctx, metav1.ListOptions{LabelSelector: selector.LabelSelector, ResourceVersion: made.GetResourceVersion()})
	ok(t, err)
	defer w.Stop()
	got, err := api.Get(ctx, made.GetName(), metav1.GetOptions{})
	ok(t, err)
	same(t, "UID by get", got.GetUID(), made.GetUID())
	for i := range 2 {
		_, err := api.Create(ctx, object(i+1), metav1.CreateOptions{})
		ok(t, err)
	}
	list, err := api.List(ctx, selector)
	ok(t, err)
	same(t, "listed", len(list.Items), 3)
	if !k.cluster {
		all, err := c.dynamic.Resource(gvr).List(ctx, selector)
		ok(t, err)
		same(t, "listed in all namespaces", len(all.Items), 3)
	}
	// Patch and update.
	patched, err := api.Patch(ctx, made.GetName(), types.MergePatchType, []byte(`{"metadata":{"annotations":{"patched":"true"}}}`), metav1.PatchOptions{})
	ok(t, err)
	same(t, "patched annotation", patched.GetAnnotations()["patched"], "true")
	for {
		now, err := api.Get(ctx, made.GetName(), metav1.GetOptions{})
		ok(t, err)
		a := now.GetAnnotations()
		a["updated"] = "true"
		now.SetAnnotations(a)
		updated, err := api.Update(ctx, now, metav1.UpdateOptions{})
		if apierrors.IsConflict(err) {
			continue
		}
		ok(t, err)
		same(t, "updated annotation", updated.GetAnnotations()["updated"], "true")
		break
	}
	observe(t, w, "the updated object", func(e watch.Event) bool {
		u, is := e.Object.(*unstructured.Unstructured)
		return is && e.Type == watch.Modified && u.GetName() == made.GetName() && u.GetAnnotations()["updated"] == "true"
	})
	stale := got.DeepCopy()
	stale.SetAnnotations(map[string]string{"stale": "true"})
	if _, err := api.Update(ctx, stale, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Fatalf("a stale update: %v, want a conflict", err)
	}
	if k.status != "" {
		k.statusDoor(t, api, made.GetName())
	}
	// Delete one, then the rest.
	ok(t, api.Delete(ctx, made.GetName(), metav1.DeleteOptions{}))
	if k.lingers {
		left, err := api.Get(ctx, made.GetName(), metav1.GetOptions{})
		if err == nil && left.GetDeletionTimestamp() == nil {
			t.Fatal("deleted, but without a deletion timestamp")
		}
	}
	gone(t, made.GetName(), func() error { _, err := api.Get(ctx, made.GetName(), metav1.GetOptions{}); return err })
	observe(t, w, "the deletion", func(e watch.Event) bool {
		u, is := e.Object.(*unstructured.Unstructured)
		return is && e.Type == watch.Deleted && u.GetName() == made.GetName()
	})
	ok(t, api.DeleteCollection(ctx, metav1.DeleteOptions{}, selector))
	eventually(t, func() string {
		list, err := api.List(ctx, selector)
		ok(t, err)
		if len(list.Items) == 0 {
			return ""
		}
		return fmt.Sprintf("%d are left after deletecollection", len(list.Items))
	})
}

// statusDoor reads, patches and updates the status.
func (k crud) statusDoor(t *testing.T, api dynamic.ResourceInterface, name string) {
	t.Helper()
	ctx := t.Context()
	spec := func(u *unstructured.Unstructured) string { b, _ := json.Marshal(u.Object["spec"]); return string(b) }
	before, err := api.Get(ctx, name, metav1.GetOptions{}, "status")
	ok(t, err)
	patch := fmt.Sprintf(`{"metadata":{"annotations":{"patchedstatus":"true"}},"spec":{"unheard":"of"},"status":%s}`, k.status)
	after, err := api.Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	ok(t, err)
	same(t, "annotation through status", after.GetAnnotations()["patchedstatus"], "true")
	if spec(before) != spec(after) {
		t.Fatalf("a status patch changed the spec from\n%s to\n%s", spec(before), spec(after))
	}
	value, _, err := unstructured.NestedFieldNoCopy(after.Object, k.statusField...)
	ok(t, err)
	if !contains(value, k.statusWant) {
		t.Fatalf("%v after the patch is %v, want %v", k.statusField, value, k.statusWant)
	}
	for {
		now, err := api.Get(ctx, name, metav1.GetOptions{}, "status")
		ok(t, err)
		var want map[string]any
		ok(t, json.Unmarshal([]byte(k.status), &want))
		status, _ := now.Object["status"].(map[string]any)
		if status == nil {
			status = map[string]any{}
		}
		maps.Copy(status, want)
		now.Object["status"] = status
		a := now.GetAnnotations()
		a["updatedstatus"] = "true"
		now.SetAnnotations(a)
		updated, err := api.UpdateStatus(ctx, now, metav1.UpdateOptions{})
		if apierrors.IsConflict(err) {
			continue
		}
		ok(t, err)
		same(t, "annotation through a status update", updated.GetAnnotations()["updatedstatus"], "true")
		return
	}
}

// contains says that have is want, maps in it may have more.
func contains(have, want any) bool {
	switch w := want.(type) {
	case map[string]any:
		h, _ := have.(map[string]any)
		for key := range w {
			if !contains(h[key], w[key]) {
				return false
			}
		}
		return true
	case []any:
		h, _ := have.([]any)
		return slices.EqualFunc(h, w, contains)
	}
	return fmt.Sprint(have) == fmt.Sprint(want)
}

// discovered looks for the kind in the discovery documents.
func (k crud) discovered(t *testing.T, c *cluster) {
	t.Helper()
	gv := schema.GroupVersion{Group: k.group, Version: k.version}.String()
	if k.group != "" {
		groups, err := c.Discovery().ServerGroups()
		ok(t, err)
		i := slices.IndexFunc(groups.Groups, func(g metav1.APIGroup) bool { return g.Name == k.group })
		if i < 0 || !slices.ContainsFunc(groups.Groups[i].Versions, func(v metav1.GroupVersionForDiscovery) bool { return v.GroupVersion == gv }) {
			t.Fatalf("/apis does not show %s", gv)
		}
		one := new(metav1.APIGroup)
		ok(t, c.Discovery().RESTClient().Get().AbsPath("/apis/"+k.group).Do(t.Context()).Into(one))
		if !slices.ContainsFunc(one.Versions, func(v metav1.GroupVersionForDiscovery) bool { return v.GroupVersion == gv }) {
			t.Fatalf("/apis/%s does not show %s", k.group, gv)
		}
	}
	list, err := c.Discovery().ServerResourcesForGroupVersion(gv)
	ok(t, err)
	names := map[string]metav1.APIResource{}
	for _, r := range list.APIResources {
		names[r.Name] = r
	}
	r, found := names[k.plural]
	if !found {
		t.Fatalf("%s does not show %s", gv, k.plural)
	}
	for _, verb := range []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"} {
		if !slices.Contains(r.Verbs, verb) {
			t.Fatalf("%s cannot %s", k.plural, verb)
		}
	}
	subs := k.subresources
	if k.status != "" {
		subs = append(subs[:len(subs):len(subs)], "status")
	}
	for _, s := range subs {
		if _, found := names[k.plural+"/"+s]; !found {
			t.Fatalf("%s does not show %s/%s", gv, k.plural, s)
		}
	}
}

// observe reads a watch until an event is the wanted one.
func observe(t *testing.T, w watch.Interface, what string, is func(watch.Event) bool) watch.Event {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		select {
		case e, open := <-w.ResultChan():
			if !open {
				t.Fatalf("the watch ended before %s", what)
			}
			if e.Type == watch.Error {
				t.Fatalf("the watch met an error before %s: %v", what, e.Object)
			}
			if is(e) {
				return e
			}
		case <-late:
			t.Fatalf("the watch did not see %s", what)
		}
	}
}
