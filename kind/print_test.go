package kind

import (
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

var testNow = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// line prints one row as kubectl's columns, wide ones after a bar.
func line(k *Kind, obj Object) string {
	var shown, wide []string
	for i, cell := range k.Cells(obj, testNow) {
		if k.Columns[i].Priority == 0 {
			shown = append(shown, fmt.Sprint(cell))
		} else {
			wide = append(wide, fmt.Sprint(cell))
		}
	}
	return strings.Join(shown, " ") + " | " + strings.Join(wide, " ")
}

func TestPodLines(t *testing.T) {
	const base = `
metadata: {name: web, creationTimestamp: "2026-01-02T11:00:00Z"}
spec:
  nodeName: n1
  containers: [{name: a}, {name: b}]
`
	for name, c := range map[string]struct{ status, want string }{
		"pending": {`status: {phase: Pending}`, "web 0/2 Pending 0 60m | <none> n1 <none> <none>"},
		"gated": {`status: {phase: Pending, conditions: [{type: PodScheduled, status: "False", reason: SchedulingGated}]}`,
			"web 0/2 SchedulingGated 0 60m | <none> n1 <none> <none>"},
		"running": {`status: {phase: Running, podIPs: [{ip: 10.42.0.2}], containerStatuses: [{name: a, ready: true, state: {running: {}}}, {name: b, ready: true, state: {running: {}}}]}`,
			"web 2/2 Running 0 60m | 10.42.0.2 n1 <none> <none>"},
		"back-off": {`status: {phase: Running, containerStatuses: [
  {name: a, restartCount: 3, state: {waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {exitCode: 1, finishedAt: "2026-01-02T11:55:00Z"}}},
  {name: b, ready: true, restartCount: 1, state: {running: {}}, lastState: {terminated: {exitCode: 1, finishedAt: "2026-01-02T11:50:00Z"}}}]}`,
			"web 1/2 CrashLoopBackOff 4 (5m ago) 60m | <none> n1 <none> <none>"},
		"half done": {`status: {phase: Running, containerStatuses: [{name: a, state: {terminated: {reason: Completed}}}, {name: b, ready: true, state: {running: {}}}]}`,
			"web 1/2 NotReady 0 60m | <none> n1 <none> <none>"},
		"exit code": {`status: {phase: Failed, containerStatuses: [{name: a, state: {terminated: {exitCode: 3}}}]}`,
			"web 0/2 ExitCode:3 0 60m | <none> n1 <none> <none>"},
		"signal": {`status: {phase: Failed, containerStatuses: [{name: a, state: {terminated: {exitCode: 137, signal: 9}}}]}`,
			"web 0/2 Signal:9 0 60m | <none> n1 <none> <none>"},
		"evicted": {`status: {phase: Failed, reason: Evicted}`, "web 0/2 Evicted 0 60m | <none> n1 <none> <none>"},
	} {
		t.Run(name, func(t *testing.T) {
			p := &corev1.Pod{}
			if err := yaml.UnmarshalStrict([]byte(base+c.status), p); err != nil {
				t.Fatal(err)
			}
			if got := line(Pod, p); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if p.Status.Phase == corev1.PodFailed {
				return
			}
			p.DeletionTimestamp = &metav1.Time{Time: testNow}
			if got := line(Pod, p); !strings.Contains(got, " Terminating ") {
				t.Errorf("deleted: got %s", got)
			}
		})
	}
}

func TestInitLines(t *testing.T) {
	const base = `
metadata: {name: web}
spec:
  containers: [{name: a}]
  initContainers: [{name: one}, {name: side, restartPolicy: Always}, {name: two}]
`
	for name, c := range map[string]struct{ status, want string }{
		"first runs": {`status: {phase: Pending, initContainerStatuses: [{name: one, state: {running: {}}}, {name: side, state: {waiting: {reason: PodInitializing}}}]}`,
			"web 0/2 Init:0/3 0 <unknown>"},
		"sidecar up": {`status: {phase: Pending, initContainerStatuses: [{name: one, state: {terminated: {exitCode: 0}}}, {name: side, ready: true, started: true, state: {running: {}}}, {name: two, state: {running: {}}}]}`,
			"web 1/2 Init:2/3 0 <unknown>"},
		"fails": {`status: {phase: Pending, initContainerStatuses: [{name: one, restartCount: 2, state: {waiting: {reason: CrashLoopBackOff}}}]}`,
			"web 0/2 Init:CrashLoopBackOff 2 <unknown>"},
		"ended badly": {`status: {phase: Pending, initContainerStatuses: [{name: one, state: {terminated: {exitCode: 2}}}]}`,
			"web 0/2 Init:ExitCode:2 0 <unknown>"},
		"all up": {`status: {phase: Running, initContainerStatuses: [{name: one, restartCount: 5, state: {terminated: {exitCode: 0}}}, {name: side, ready: true, started: true, restartCount: 1, state: {running: {}}}, {name: two, state: {terminated: {exitCode: 0}}}], containerStatuses: [{name: a, ready: true, state: {running: {}}}]}`,
			"web 2/2 Running 1 <unknown>"},
	} {
		t.Run(name, func(t *testing.T) {
			p := &corev1.Pod{}
			if err := yaml.UnmarshalStrict([]byte(base+c.status), p); err != nil {
				t.Fatal(err)
			}
			if got, _, _ := strings.Cut(line(Pod, p), " |"); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestLines(t *testing.T) {
	for _, c := range []struct {
		kind *Kind
		text string
		want string
	}{
		{Deployment, `
metadata: {name: web, creationTimestamp: "2026-01-01T11:00:00Z"}
spec: {replicas: 3, selector: {matchLabels: {app: web}}, template: {spec: {containers: [{name: a, image: x}, {name: b, image: z}]}}}
status: {readyReplicas: 2, updatedReplicas: 1, availableReplicas: 2}`, "web 2/3 1 2 25h | a,b x,z app=web"},
		{Service, `
metadata: {name: web, creationTimestamp: "2026-01-02T11:59:00Z"}
spec: {type: LoadBalancer, clusterIP: 10.43.0.1, clusterIPs: [10.43.0.1], selector: {app: web}, ports: [{port: 80, nodePort: 30080, protocol: TCP}, {port: 53, protocol: UDP}]}`,
			"web LoadBalancer 10.43.0.1 <pending> 80:30080/TCP,53/UDP 60s | app=web"},
		{Service, `
metadata: {name: ext}
spec: {type: ExternalName, externalName: example.com}`, "ext ExternalName <none> example.com <none> <unknown> | <none>"},
		{Service, `
metadata: {name: lb}
spec: {type: LoadBalancer, externalIPs: [192.0.2.9]}
status: {loadBalancer: {ingress: [{hostname: b.example}, {ip: 192.0.2.2}, {ip: 192.0.2.1}, {ip: 192.0.2.2}]}}`,
			"lb LoadBalancer <none> 192.0.2.1,192.0.2.2,b.example,192.0.2.9 <none> <unknown> | <none>"},
		{Ingress, `
metadata: {name: i, annotations: {kubernetes.io/ingress.class: old}}
spec: {rules: [{host: a}, {}, {host: b}, {host: c}, {host: d}], tls: [{}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.2}, {ip: 192.0.2.1}]}}`, "i <none> a,b,c + 2 more... 192.0.2.1,192.0.2.2 80, 443 <unknown> | "},
		{CSIDriver, `{metadata: {name: d}, spec: {tokenRequests: [{audience: ""}, {audience: a}]}}`, "d true false false ,a false <none> <unknown> | "},
		{StorageClass, `{metadata: {name: s}, provisioner: p}`, "s p Delete Immediate false <unknown> | "},
		{VolumeAttributesClass, `{metadata: {name: v, annotations: {volumeattributesclass.alpha.kubernetes.io/is-default-class: "true"}}, driverName: d}`, "v (default) d <unknown> | "},
		{IPAddress, `{metadata: {name: 10.0.0.1}, spec: {parentRef: {resource: services, namespace: default, name: web}}}`, "10.0.0.1 services/default/web | "},
		{IPAddress, `{metadata: {name: 10.0.0.1}, spec: {parentRef: {group: gateway.example, resource: Gateways, name: web}}}`, "10.0.0.1 gateways.gateway.example/web | "},
		{EndpointSlice, `{metadata: {name: s}, addressType: IPv4, ports: [{name: ""}]}`, "s IPv4 <unset> <unset> <unknown> | "},
		{Node, `
metadata: {name: n1, labels: {node-role.kubernetes.io/control-plane: "", kubernetes.io/role: edge}}
spec: {unschedulable: true}
status: {conditions: [{type: Ready, status: "True"}], addresses: [{type: InternalIP, address: 192.0.2.1}], nodeInfo: {kubeletVersion: v1.37.0, osImage: Debian}}`,
			"n1 Ready,SchedulingDisabled control-plane,edge <unknown> v1.37.0 | 192.0.2.1 <none> Debian <unknown> <unknown>"},
		{Event, `
metadata: {name: e}
involvedObject: {kind: Pod, name: web}
reason: Pulled
type: Normal
message: "pulled \n"
source: {component: kubelet, host: n1}
firstTimestamp: "2026-01-02T11:00:00Z"
lastTimestamp: "2026-01-02T11:59:30Z"
count: 7`, "30s Normal Pulled pod/web pulled |  kubelet, n1 60m 7 e"},
		{EventsEvent, `
metadata: {name: e}
regarding: {kind: Pod, name: web}
eventTime: "2026-01-02T11:00:00.000000Z"
reportingController: sched
reason: Scheduled
type: Normal
note: bound`, "60m Normal Scheduled pod/web bound |  sched 60m 1 e"},
		{Job, `
metadata: {name: j}
spec: {completions: 3, template: {spec: {containers: [{name: a, image: x}]}}}
status: {succeeded: 3, startTime: "2026-01-02T11:00:00Z", completionTime: "2026-01-02T11:01:05Z", conditions: [{type: Complete, status: "True"}]}`,
			"j Complete 3/3 65s <unknown> | a x <none>"},
		{Namespace, `{metadata: {name: room}, status: {phase: Active}}`, "room Active <unknown> | "},
		{ResourceQuota, `{metadata: {name: q}, status: {hard: {pods: "10", limits.cpu: "2"}, used: {pods: "3", limits.cpu: "1"}}}`,
			"q pods: 3/10 limits.cpu: 1/2 <unknown> | "},
		{EndpointSlice, `{metadata: {name: s}, addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}, {addresses: [10.0.0.3]}, {addresses: [10.0.0.4]}]}`,
			"s IPv4 80 10.0.0.1,10.0.0.2,10.0.0.3 + 1 more... <unknown> | "},
		{HorizontalPodAutoscaler, `
metadata: {name: h}
spec: {minReplicas: 1, maxReplicas: 5, scaleTargetRef: {kind: Deployment, name: web}, metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}]}
status: {currentReplicas: 2, currentMetrics: [{type: Resource, resource: {name: cpu, current: {averageUtilization: 55}}}]}`,
			"h Deployment/web cpu: 55%/80% 1 5 2 <unknown> | "},
	} {
		obj := c.kind.New()
		if err := yaml.UnmarshalStrict([]byte(c.text), obj); err != nil {
			t.Fatal(err)
		}
		if got := line(c.kind, obj); got != c.want {
			t.Errorf("%s\ngot  %s\nwant %s", c.kind, got, c.want)
		}
	}
}

func TestJobStates(t *testing.T) {
	for want, j := range map[string]*batchv1.Job{
		"Running":   {},
		"Suspended": {Status: batchv1.JobStatus{Conditions: []batchv1.JobCondition{{Type: batchv1.JobSuspended, Status: corev1.ConditionTrue}}}},
		"Failed":    {Status: batchv1.JobStatus{Conditions: []batchv1.JobCondition{{Type: batchv1.JobFailed, Status: corev1.ConditionTrue}}}},
	} {
		if got := jobState(j); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestScale(t *testing.T) {
	d := &appsv1.Deployment{}
	d.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"},
		MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpIn, Values: []string{"b", "a"}}}}
	Deployment.Scale.SetSpecReplicas(d, 4)
	if n := Deployment.Scale.SpecReplicas(d); n != 4 {
		t.Errorf("replicas %d", n)
	}
	if s := Deployment.Scale.Selector(d); s != "app=web,tier in (a,b)" {
		t.Errorf("selector %q", s)
	}
}

// TestDescriptions: every column of every kind has a description, and those that
// point to a field point to one.
func TestDescriptions(t *testing.T) {
	for _, k := range All.Rows() {
		for _, c := range k.Columns {
			if k.Describe(c) == "" {
				t.Errorf("%s: column %q is not described", k, c.Name)
			}
		}
	}
	if got := Service.Describe(Column{Name: "Cluster-IP"}); got != (corev1.ServiceSpec{}).SwaggerDoc()["clusterIP"] {
		t.Errorf("cluster IP: %q", got)
	}
}
