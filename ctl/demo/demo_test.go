package demo

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/apiserver/apitest"
	"proa.dev/client"
	"proa.dev/examples/dockercoins"
	"proa.dev/kind"
)

var quick = times{poll: 5 * time.Millisecond, silence: 100 * time.Millisecond, patience: 500 * time.Millisecond, whole: 20 * time.Second}

func start(t *testing.T) client.Client {
	t.Helper()
	s := apitest.Start(t, nil)
	c, err := client.NewHTTP(client.HTTPConfig{Servers: []string{s.HTTP.URL}, TLS: &tls.Config{InsecureSkipVerify: true},
		Token: func() (string, error) { return "admin", nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// controller does for Deployments and Services what the test wants: each look it
// makes one more replica ready.
func controller(t *testing.T, c client.Client, namespace string, ready func(name string) bool) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		for pause(ctx, 10*time.Millisecond) == nil {
			list, err := c.List(ctx, kind.Deployment, namespace, metav1.ListOptions{})
			if err != nil {
				continue
			}
			for _, obj := range list.Items {
				d := obj.DeepCopyObject().(*appsv1.Deployment)
				if s := &d.Status; ready(d.Name) && (s.AvailableReplicas < *d.Spec.Replicas || s.ObservedGeneration < d.Generation) {
					s.ObservedGeneration = d.Generation
					n := min(s.AvailableReplicas+1, *d.Spec.Replicas)
					s.Replicas, s.UpdatedReplicas, s.ReadyReplicas, s.AvailableReplicas = *d.Spec.Replicas, *d.Spec.Replicas, n, n
					c.Update(ctx, kind.Deployment, d, "status", metav1.UpdateOptions{})
				}
			}
			svcs, err := c.List(ctx, kind.Service, namespace, metav1.ListOptions{})
			if err != nil {
				continue
			}
			for _, obj := range svcs.Items {
				s := obj.DeepCopyObject().(*corev1.Service)
				if s.Spec.Type == corev1.ServiceTypeLoadBalancer && len(s.Status.LoadBalancer.Ingress) == 0 {
					s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.2"}}
					c.Update(ctx, kind.Service, s, "status", metav1.UpdateOptions{})
				}
			}
		}
	})
	return func() { cancel(); group.Wait() }
}

func TestDeploySample(t *testing.T) {
	c := start(t)
	ctx := context.Background()
	stop := controller(t, c, "dockercoins", func(string) bool { return true })
	defer stop()
	var out strings.Builder
	address, err := deploy(ctx, c, dockercoins.Manifests(), &out, times{quick.poll, 5 * time.Second, 10 * time.Second, time.Minute})
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if address != "http://192.0.2.2:8080/" {
		t.Errorf("address %q", address)
	}
	for _, want := range []string{"namespace dockercoins created\n", "secret redis created\n", "  rng     3/3 ready\n", "  webui   1/1 ready\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &out)
		}
	}
	// Once more: nothing to do, whatever the cluster has filled in meanwhile.
	out.Reset()
	if _, err := deploy(ctx, c, dockercoins.Manifests(), &out, quick); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "changed") || strings.Contains(out.String(), "created") {
		t.Errorf("the second run did\n%s", &out)
	}
	// What was changed by hand comes back.
	if _, err := c.Patch(ctx, kind.Deployment, "dockercoins", "rng", "application/merge-patch+json", []byte(`{"spec":{"replicas":0}}`), "", metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if _, err := deploy(ctx, c, dockercoins.Manifests(), &out, quick); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "deployment rng changed\n") {
		t.Errorf("the third run did\n%s", &out)
	}
	s, err := c.Get(ctx, kind.Secret, "dockercoins", "redis", metav1.GetOptions{})
	if err != nil || string(s.(*corev1.Secret).Data["password"]) != "not-much-of-a-secret" {
		t.Errorf("%v %v", s, err)
	}
}

const one = `apiVersion: v1
kind: Namespace
metadata: {name: one}
---
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: one}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: nowhere/web:1}]}
`

func manifest(s string) fstest.MapFS { return fstest.MapFS{"a.yaml": {Data: []byte(s)}} }

func TestStuck(t *testing.T) {
	c := start(t)
	ctx := context.Background()
	pod := func(name string, change func(*corev1.Pod)) {
		t.Helper()
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "one", Name: name, Labels: map[string]string{"app": "web"}},
			Spec: corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "web", Image: "nowhere/web:1"}}}}
		got, err := c.Create(ctx, kind.Pod, p, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		p = got.DeepCopyObject().(*corev1.Pod)
		change(p)
		if _, err := c.Update(ctx, kind.Pod, p, "status", metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		e := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "one", Name: name + ".1"}, Type: corev1.EventTypeWarning, Reason: "Failed", Message: "no such host",
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "one", Name: name, UID: p.UID}}
		if _, err := c.Create(ctx, kind.Event, e, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	_, err := deploy(ctx, c, manifest(one), &out, quick)
	if err == nil || !strings.Contains(err.Error(), "deploy web: nothing has changed") || !strings.Contains(err.Error(), "web waits: it has no pods") {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "web waits: it has no pods") {
		t.Errorf("it said nothing meanwhile:\n%s", &out)
	}
	pod("web-1", func(p *corev1.Pod) {
		p.Status = corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{Name: "web", Image: "nowhere/web:1",
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "Back-off pulling"}}}}}
	})
	_, err = deploy(ctx, c, manifest(one), &out, quick)
	if want := "web waits: pod web-1: container web: ImagePullBackOff: Back-off pulling (last event: Failed: no such host)"; err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("%v\nwant %s", err, want)
	}
	ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err = deploy(ctx, c, manifest(one), &out, usual); err == nil || !strings.Contains(err.Error(), "ImagePullBackOff") {
		t.Errorf("interrupted: %v", err)
	}
}

func TestPodReason(t *testing.T) {
	status := func(s corev1.ContainerStatus) *corev1.Pod {
		s.Name = "c"
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n"}, Spec: corev1.PodSpec{NodeName: "node"},
			Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{s}}}
	}
	for _, tt := range []struct {
		pod  *corev1.Pod
		want string
	}{
		{&corev1.Pod{}, "not placed on a node yet"},
		{&corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/1 nodes"}}}}, "no node for it: 0/1 nodes"},
		{&corev1.Pod{Spec: corev1.PodSpec{NodeName: "node"}}, "node node has not started it yet"},
		{&corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "disk"}}, "failed: Evicted: disk"},
		{&corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}, ""},
		{status(corev1.ContainerStatus{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}), "container c runs but is not ready; see `kubectl -n n logs p`"},
		{status(corev1.ContainerStatus{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}}}), "container c ended with code 137 (OOMKilled)"},
		{status(corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
			LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", Message: "no config\n"}}}),
			"container c: CrashLoopBackOff; last time it ended with code 1: no config"},
	} {
		if got := podReason(tt.pod); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestProgress(t *testing.T) {
	two := int32(2)
	for _, tt := range []struct {
		generation int64
		status     appsv1.DeploymentStatus
		done       bool
		line       string
	}{
		{1, appsv1.DeploymentStatus{}, false, "0/2 ready"},
		{1, appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 1}, false, "1/2 ready"},
		{1, appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2}, true, "2/2 ready"},
		{2, appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2}, false, "0/2 ready"},
		{2, appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 3, UpdatedReplicas: 1, AvailableReplicas: 3}, false, "1/2 ready, 2 old to go"},
	} {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Generation: tt.generation}, Spec: appsv1.DeploymentSpec{Replicas: &two}, Status: tt.status}
		if done, line := progress(d); done != tt.done || line != tt.line {
			t.Errorf("%+v: %v %q", tt.status, done, line)
		}
	}
}

func TestRead(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "no object"},
		{"# nothing\n", "no object"},
		{"kind: Nonsense\napiVersion: v1\n", `no kind "Nonsense"`},
		{"kind: Pod\napiVersion: v1\nmetadata: {name: a}\n", "without a namespace"},
		{"kind: Pod\napiVersion: v1\nmetadata: {namespace: a}\n", "without a name"},
		{"kind: Pod\napiVersion: v1\nmetadata: {namespace: a, name: a}\nspecs: {}\n", `unknown field "specs"`},
		{"kind: Pod\nkind: Pod\n", "already set"},
	} {
		if _, err := read(manifest(tt.in)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.in, err, tt.want)
		}
	}
	images, err := Images(dockercoins.Manifests())
	if err != nil || !slices.Equal(images, []string{"dockercoins/redis:7", "dockercoins/rng:v1", "dockercoins/hasher:v1", "dockercoins/worker:v1", "dockercoins/webui:v1"}) {
		t.Error(images, err)
	}
}

func TestDelete(t *testing.T) {
	c := start(t)
	ctx := context.Background()
	var out strings.Builder
	if err := remove(ctx, c, manifest(one), &out, time.Millisecond, time.Second); err != nil || !strings.Contains(out.String(), "nothing to delete") {
		t.Fatal(err, out.String())
	}
	stop := controller(t, c, "one", func(string) bool { return true })
	defer stop()
	if _, err := deploy(ctx, c, manifest(one), &out, quick); err != nil {
		t.Fatal(err)
	}
	// Nobody empties namespaces here: the first try ends with its bound.
	err := remove(ctx, c, manifest(one), &out, time.Millisecond, 100*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "wait for namespace one to go: not gone after 100ms; 0 pods are left") {
		t.Fatal(err)
	}
	// Deploy waits for a namespace that is going.
	began := make(chan error, 1)
	go func() {
		_, err := deploy(ctx, c, manifest(one), &strings.Builder{}, quick)
		began <- err
	}()
	if err := <-began; err == nil || !strings.Contains(err.Error(), "being deleted") {
		t.Fatal(err)
	}
	obj, err := c.Get(ctx, kind.Namespace, "", "one", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ns := obj.DeepCopyObject().(*corev1.Namespace)
	ns.Spec.Finalizers = nil
	if _, err := c.Update(ctx, kind.Namespace, ns, "finalize", metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	out.Reset()
	if err := remove(ctx, c, manifest(one), &out, time.Millisecond, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(ctx, kind.Namespace, "", "one", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the namespace is still there: %v", fmt.Sprint(err))
	}
}
