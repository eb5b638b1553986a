package kind

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

func TestGatedFieldsAreDropped(t *testing.T) {
	const with = `
spec:
  schedulingGroup: {podGroupName: g}
  evictionResponders: [{name: a.example.com/b}]
  volumes:
  - {name: e, emptyDir: {mode: 448}}
  - {name: p, projected: {defaultUser: 7, sources: [{serviceAccountToken: {path: t, user: 7}}]}}
  containers:
  - name: c
    volumeMounts: [{name: e, mountPath: /e, bindMountOptions: [noexec]}]
    livenessProbe: {httpGet: {port: 80, protocol: HTTP2}}
    readinessProbe: {grpc: {port: 80, mode: TLS}}`
	const without = `
spec:
  volumes:
  - {name: e, emptyDir: {}}
  - {name: p, projected: {sources: [{serviceAccountToken: {path: t}}]}}
  containers:
  - name: c
    volumeMounts: [{name: e, mountPath: /e}]
    livenessProbe: {httpGet: {port: 80}}
    readinessProbe: {grpc: {port: 80}}`
	made, want := parse[corev1.Pod](t, with), parse[corev1.Pod](t, without)
	Pod.PrepareCreate(made)
	if !equality.Semantic.DeepEqual(made.Spec, want.Spec) {
		t.Errorf("create keeps %+v", made.Spec)
	}
	next := parse[corev1.Pod](t, with)
	Pod.PrepareUpdate(next, want.DeepCopy())
	if !equality.Semantic.DeepEqual(next.Spec, want.Spec) {
		t.Errorf("update keeps %+v", next.Spec)
	}
	used, again := parse[corev1.Pod](t, with), parse[corev1.Pod](t, with)
	Pod.PrepareUpdate(again, used)
	if !equality.Semantic.DeepEqual(again.Spec, used.Spec) {
		t.Errorf("an update drops what was used: %+v", again.Spec)
	}
	for _, k := range []*Kind{PodTemplate, ReplicationController, Deployment, ReplicaSet, StatefulSet, DaemonSet, Job, CronJob} {
		obj := k.New()
		if rc, ok := obj.(*corev1.ReplicationController); ok {
			rc.Spec.Template = &corev1.PodTemplateSpec{}
		}
		*podSpecOf(obj) = parse[corev1.Pod](t, with).Spec
		if k.PrepareCreate(obj); !equality.Semantic.DeepEqual(*podSpecOf(obj), want.Spec) {
			t.Errorf("%s keeps %+v", k, *podSpecOf(obj))
		}
	}
}
