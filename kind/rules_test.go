package kind

import (
	"reflect"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

func parse[T any](t *testing.T, text string) *T {
	t.Helper()
	obj := new(T)
	if err := yaml.UnmarshalStrict([]byte(text), obj); err != nil {
		t.Fatal(err)
	}
	return obj
}

func TestPullPolicy(t *testing.T) {
	for image, want := range map[string]corev1.PullPolicy{
		"nginx": corev1.PullAlways, "nginx:latest": corev1.PullAlways, "reg:5000/nginx": corev1.PullAlways,
		"nginx:1": corev1.PullIfNotPresent, "reg:5000/nginx:1": corev1.PullIfNotPresent,
		"nginx@sha256:00": corev1.PullIfNotPresent, "nginx:latest@sha256:00": corev1.PullAlways,
	} {
		if got := pullPolicy(image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}

func TestHostPortsOfHostNetworkPods(t *testing.T) {
	p := parse[corev1.Pod](t, `spec: {hostNetwork: true, containers: [{name: a, ports: [{containerPort: 80}]}]}`)
	Pod.Default(p)
	if n := p.Spec.Containers[0].Ports[0].HostPort; n != 80 {
		t.Errorf("host port %d", n)
	}
	d := parse[appsv1.Deployment](t, `spec: {template: {spec: {hostNetwork: true, containers: [{name: a, ports: [{containerPort: 80}]}]}}}`)
	Deployment.Default(d)
	if n := d.Spec.Template.Spec.Containers[0].Ports[0].HostPort; n != 0 {
		t.Errorf("host port %d in a template", n)
	}
}

func TestPodLevelRequests(t *testing.T) {
	p := parse[corev1.Pod](t, `spec: {resources: {limits: {cpu: "2", memory: 1Gi}}, containers: [{name: a, resources: {requests: {cpu: 250m}}}, {name: b, resources: {requests: {cpu: 250m}}}]}`)
	Pod.Default(p)
	if got := p.Spec.Resources.Requests; got.Cpu().String() != "500m" || got.Memory().String() != "1Gi" {
		t.Errorf("requests %v", got)
	}
}

func TestGrace(t *testing.T) {
	scheduled := func() *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{NodeName: "n", TerminationGracePeriodSeconds: ptr.To[int64](30)}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	}
	unscheduled, ended := scheduled(), scheduled()
	unscheduled.Spec.NodeName, ended.Status.Phase = "", corev1.PodSucceeded
	for name, c := range map[string]struct {
		pod   *corev1.Pod
		asked *int64
		want  *int64
	}{
		"own time":    {scheduled(), nil, ptr.To[int64](30)},
		"asked":       {scheduled(), ptr.To[int64](5), ptr.To[int64](5)},
		"at once":     {scheduled(), ptr.To[int64](0), nil},
		"negative":    {scheduled(), ptr.To[int64](-3), ptr.To[int64](1)},
		"unscheduled": {unscheduled, ptr.To[int64](5), nil},
		"ended":       {ended, nil, nil},
	} {
		if got := Pod.Grace(c.pod, c.asked); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", name, ptr.Deref(got, -1), ptr.Deref(c.want, -1))
		}
	}
}

func TestGenerationCountsSpecChanges(t *testing.T) {
	old := parse[corev1.Pod](t, `{metadata: {name: p, generation: 4}, spec: {containers: [{name: a, image: x}]}, status: {phase: Running}}`)
	next := old.DeepCopy()
	next.Generation, next.Status.Phase = 9, corev1.PodFailed
	Pod.PrepareUpdate(next, old)
	if next.Generation != 4 || next.Status.Phase != corev1.PodRunning {
		t.Errorf("generation %d, phase %s", next.Generation, next.Status.Phase)
	}
	next.Spec.Containers[0].Image = "y"
	Pod.PrepareUpdate(next, old)
	if next.Generation != 5 {
		t.Errorf("generation %d after a change", next.Generation)
	}
	next = old.DeepCopy()
	next.Status.Phase, next.Spec.Containers[0].Image = corev1.PodFailed, "y"
	Pod.Status.PrepareUpdate(next, old)
	if next.Status.Phase != corev1.PodFailed || next.Spec.Containers[0].Image != "x" || next.Generation != 4 {
		t.Errorf("status door: %v", next)
	}
}

func TestResizeDoorLetsOnlyResourcesThrough(t *testing.T) {
	old := parse[corev1.Pod](t, `{spec: {containers: [{name: a, image: x, resources: {requests: {cpu: 1}}}]}}`)
	next := parse[corev1.Pod](t, `{metadata: {labels: {a: b}}, spec: {containers: [{name: a, image: y, resources: {requests: {cpu: 2}}}]}}`)
	for _, s := range Pod.Subresources {
		if s.Name == "resize" {
			s.Door.PrepareUpdate(next, old)
		}
	}
	c := next.Spec.Containers[0]
	if c.Image != "x" || c.Resources.Requests.Cpu().Value() != 2 || next.Labels != nil || next.Generation != 1 {
		t.Errorf("got %v", next)
	}
}

func TestLabelKeysBecomeRequirements(t *testing.T) {
	p := parse[corev1.Pod](t, `
metadata: {labels: {pod-template-hash: abc}}
spec:
  containers: [{name: a}]
  topologySpreadConstraints: [{maxSkew: 1, topologyKey: z, labelSelector: {matchLabels: {app: web}}, matchLabelKeys: [pod-template-hash, absent]}]
  affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: z, labelSelector: {}, mismatchLabelKeys: [pod-template-hash]}]}}`)
	Pod.PrepareCreate(p)
	if got := scaleSelector(p.Spec.TopologySpreadConstraints[0].LabelSelector); got != "app=web,pod-template-hash in (abc)" {
		t.Errorf("spread: %s", got)
	}
	if got := scaleSelector(p.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0].LabelSelector); got != "pod-template-hash notin (abc)" {
		t.Errorf("affinity: %s", got)
	}
	if p.Status.QOSClass != corev1.PodQOSBestEffort || p.Generation != 1 {
		t.Errorf("status %v generation %d", p.Status, p.Generation)
	}
}

func TestPodWarnings(t *testing.T) {
	p := parse[corev1.Pod](t, `
metadata: {annotations: {scheduler.alpha.kubernetes.io/critical-pod: ""}}
spec:
  nodeSelector: {beta.kubernetes.io/arch: amd64}
  terminationGracePeriodSeconds: -1
  imagePullSecrets: [{}]
  containers:
  - {name: a, env: [{name: X, value: a}, {name: X, value: b}, {name: X, value: "$(X)c"}], resources: {requests: {memory: 100m}}, ports: [{name: p, containerPort: 80}]}
  - {name: b, ports: [{name: p, containerPort: 80}]}`)
	got := strings.Join(Pod.Warnings(p, nil), "\n")
	want := `spec.nodeSelector[beta.kubernetes.io/arch]: deprecated since v1.14; use "kubernetes.io/arch" instead
spec.imagePullSecrets[0].name: invalid empty name ""
metadata.annotations[scheduler.alpha.kubernetes.io/critical-pod]: non-functional in v1.16+; use the "priorityClassName" field instead
spec.containers[0].resources.requests[memory]: fractional byte value "100m" is invalid, must be an integer
spec.containers[0].env[1]: hides previous definition of "X", which may be dropped when using apply
spec.containers[1].ports[0]: duplicate port definition with spec.containers[0].ports[0]
spec.containers[1].ports[0].name: duplicate port name "p" with spec.containers[0].ports[0].name, services and probes that select ports by name will use spec.containers[0].ports[0]
spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if again := Pod.Warnings(p, p.DeepCopy()); again != nil {
		t.Errorf("an update without a change warns: %v", again)
	}
}

func TestJobSelectsItsOwnPods(t *testing.T) {
	j := parse[batchv1.Job](t, `{metadata: {name: j, uid: u1}, spec: {template: {metadata: {labels: {app: x}}}}}`)
	Job.PrepareCreate(j)
	want := map[string]string{"app": "x", "batch.kubernetes.io/controller-uid": "u1", "controller-uid": "u1", "batch.kubernetes.io/job-name": "j", "job-name": "j"}
	if !reflect.DeepEqual(j.Spec.Template.Labels, want) || !reflect.DeepEqual(j.Spec.Selector.MatchLabels, map[string]string{"batch.kubernetes.io/controller-uid": "u1"}) {
		t.Errorf("labels %v selector %v", j.Spec.Template.Labels, j.Spec.Selector)
	}
	j = parse[batchv1.Job](t, `{metadata: {name: j, uid: u1}, spec: {manualSelector: true, selector: {matchLabels: {app: x}}, template: {metadata: {labels: {app: x}}}}}`)
	Job.PrepareCreate(j)
	if len(j.Spec.Template.Labels) != 1 || len(j.Spec.Selector.MatchLabels) != 1 {
		t.Errorf("manual: labels %v selector %v", j.Spec.Template.Labels, j.Spec.Selector)
	}
}

func TestServiceUpdates(t *testing.T) {
	const old = `
spec: {type: NodePort, clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1], ipFamilies: [IPv4], ipFamilyPolicy: SingleStack, externalTrafficPolicy: Cluster, internalTrafficPolicy: Cluster, ports: [{protocol: TCP, port: 80, nodePort: 30080}]}`
	for name, c := range map[string]struct{ next, want string }{
		"left out stays": {
			`spec: {type: NodePort, ports: [{protocol: TCP, port: 80}, {protocol: TCP, port: 81}]}`,
			`spec: {type: NodePort, clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1], ports: [{protocol: TCP, port: 80, nodePort: 30080}, {protocol: TCP, port: 81}]}`},
		"to ClusterIP": {
			`spec: {type: ClusterIP, clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1], externalTrafficPolicy: Cluster, ports: [{protocol: TCP, port: 80, nodePort: 30080}]}`,
			`spec: {type: ClusterIP, clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1], ports: [{protocol: TCP, port: 80}]}`},
		"to ExternalName": {
			`spec: {type: ExternalName, externalName: x.example.com, clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1], ipFamilies: [IPv4], ipFamilyPolicy: SingleStack, internalTrafficPolicy: Cluster, ports: [{protocol: TCP, port: 80, nodePort: 30080}]}`,
			`spec: {type: ExternalName, externalName: x.example.com, ports: [{protocol: TCP, port: 80}]}`},
		"singular cleared": {
			`spec: {type: ExternalName, externalName: x.example.com, clusterIP: "", clusterIPs: [10.0.0.1]}`,
			`spec: {type: ExternalName, externalName: x.example.com}`},
	} {
		got, want := parse[corev1.Service](t, c.next), parse[corev1.Service](t, c.want)
		if Service.PrepareUpdate(got, parse[corev1.Service](t, old)); !equality.Semantic.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got.Spec, want.Spec)
		}
	}
}

func TestDaemonSetCountsTemplates(t *testing.T) {
	d := parse[appsv1.DaemonSet](t, `{spec: {template: {spec: {containers: [{name: a, image: x}]}}}}`)
	DaemonSet.PrepareCreate(d)
	next := d.DeepCopy()
	next.Annotations = nil
	next.Spec.Template.Spec.Containers[0].Image = "y"
	DaemonSet.PrepareUpdate(next, d)
	if got := next.Annotations["deprecated.daemonset.template.generation"]; got != "2" || next.Generation != 2 {
		t.Errorf("template generation %q, generation %d", got, next.Generation)
	}
}

func TestNamespaceNameLabelAndFinalizer(t *testing.T) {
	n := parse[corev1.Namespace](t, `{metadata: {name: a, labels: {kubernetes.io/metadata.name: other}}}`)
	Namespace.Default(n)
	Namespace.PrepareCreate(n)
	if n.Labels["kubernetes.io/metadata.name"] != "a" || len(n.Spec.Finalizers) != 1 || n.Status.Phase != corev1.NamespaceActive {
		t.Errorf("got %v", n)
	}
}

func TestRepackSubsets(t *testing.T) {
	e := parse[corev1.Endpoints](t, `
subsets:
- {addresses: [{ip: 10.0.0.2}], notReadyAddresses: [{ip: 10.0.0.1}], ports: [{name: b, port: 2}, {name: a, port: 1}]}
- {addresses: [{ip: 10.0.0.1}], ports: [{name: a, port: 1}]}`)
	want := parse[corev1.Endpoints](t, `
subsets:
- {addresses: [{ip: 10.0.0.1}, {ip: 10.0.0.2}], ports: [{name: a, port: 1}]}
- {addresses: [{ip: 10.0.0.2}], notReadyAddresses: [{ip: 10.0.0.1}], ports: [{name: b, port: 2}]}`)
	got := RepackSubsets(e.Subsets)
	if !equality.Semantic.DeepEqual(got, want.Subsets) {
		t.Errorf("got %+v", got)
	}
	if again := RepackSubsets(got); !equality.Semantic.DeepEqual(got, again) {
		t.Errorf("again %+v", again)
	}
}

func TestEventTwins(t *testing.T) {
	text := `
metadata: {name: e, namespace: d}
eventTime: "2026-01-02T03:04:05.000006Z"
series: {count: 3, lastObservedTime: "2026-01-02T03:05:05.000006Z"}
reportingController: c
reportingInstance: i
action: Bind
reason: R
regarding: {kind: Pod, name: p}
related: {kind: Node, name: n}
note: text
type: Normal
deprecatedSource: {component: x}
deprecatedFirstTimestamp: "2026-01-02T03:04:05Z"
deprecatedLastTimestamp: "2026-01-02T03:04:06Z"
deprecatedCount: 4`
	e := parse[eventsv1.Event](t, text)
	core, err := EventsEvent.ToStored(e)
	if err != nil {
		t.Fatal(err)
	}
	if c := core.(*corev1.Event); c.Message != "text" || c.Count != 4 || c.InvolvedObject.Name != "p" || c.Kind != "Event" || c.APIVersion != "v1" {
		t.Errorf("core event %+v", c)
	}
	back, err := EventsEvent.FromStored(core)
	if err != nil {
		t.Fatal(err)
	}
	e.APIVersion, e.Kind = "events.k8s.io/v1", "Event"
	if !equality.Semantic.DeepEqual(e, back) {
		t.Errorf("got %+v", back)
	}
	if _, err := EventsEvent.FromStored(&corev1.Pod{}); err == nil {
		t.Error("a pod became an event")
	}
}

func TestAutoscalerVersions(t *testing.T) {
	v2 := parse[autoscalingv2.HorizontalPodAutoscaler](t, `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: h, annotations: {mine: "1"}}
spec:
  minReplicas: 2
  maxReplicas: 9
  scaleTargetRef: {kind: Deployment, name: web, apiVersion: apps/v1}
  metrics:
  - {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 70}}}
  - {type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 1Gi}}}
  - {type: Pods, pods: {metric: {name: qps}, target: {type: AverageValue, averageValue: "10"}}}
  - {type: Object, object: {metric: {name: hits}, describedObject: {kind: Service, name: s}, target: {type: Value, value: "5"}}}
  - {type: External, external: {metric: {name: queue, selector: {matchLabels: {a: b}}}, target: {type: Value, value: "5"}}}
  - {type: ContainerResource, containerResource: {name: cpu, container: c, target: {type: Utilization, averageUtilization: 60}}}
  behavior: {scaleDown: {stabilizationWindowSeconds: 7}}
status:
  desiredReplicas: 3
  conditions: [{type: AbleToScale, status: "True", reason: R}]
  currentMetrics: [{type: Resource, resource: {name: cpu, current: {averageValue: 300m, averageUtilization: 55}}}]`)
	v1, err := HorizontalPodAutoscalerV1.FromStored(v2)
	if err != nil {
		t.Fatal(err)
	}
	h := v1.(*autoscalingv1.HorizontalPodAutoscaler)
	if ptr.Deref(h.Spec.TargetCPUUtilizationPercentage, 0) != 70 || ptr.Deref(h.Status.CurrentCPUUtilizationPercentage, 0) != 55 || h.Annotations["mine"] != "1" {
		t.Errorf("v1 %+v", h)
	}
	if a := h.Annotations["autoscaling.alpha.kubernetes.io/metrics"]; !strings.Contains(a, `"targetAverageValue":"1Gi"`) {
		t.Errorf("metrics annotation %s", a)
	}
	back, err := HorizontalPodAutoscalerV1.ToStored(h)
	if err != nil {
		t.Fatal(err)
	}
	if !equality.Semantic.DeepEqual(v2, back) {
		t.Errorf("got  %+v\nwant %+v", back, v2)
	}
	h.Annotations["autoscaling.alpha.kubernetes.io/behavior"] = "{"
	if _, err := HorizontalPodAutoscalerV1.ToStored(h); err == nil {
		t.Error("a broken annotation was taken")
	}
	// What a store of an older cluster holds is read as well.
	old := v1.DeepCopyObject().(*autoscalingv1.HorizontalPodAutoscaler)
	delete(old.Annotations, "autoscaling.alpha.kubernetes.io/behavior")
	plain := *HorizontalPodAutoscalerV1
	plain.Stored = nil // as an older cluster would have stored it
	data, err := EncodeStored(&plain, old)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := DecodeStored(HorizontalPodAutoscaler, data)
	if err != nil {
		t.Fatal(err)
	}
	if got := stored.(*autoscalingv2.HorizontalPodAutoscaler); len(got.Spec.Metrics) != 6 || got.APIVersion != "autoscaling/v2" {
		t.Errorf("from v1 in the store: %+v", got)
	}
}
