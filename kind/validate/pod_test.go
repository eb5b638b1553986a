package validate

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const podSpecText = `
  restartPolicy: Always
  dnsPolicy: ClusterFirst
  terminationGracePeriodSeconds: 30
  securityContext: {}
  schedulerName: default-scheduler
  serviceAccountName: web
  volumes:
  - name: data
    emptyDir: {}
  - name: token
    projected:
      defaultMode: 420
      sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - downwardAPI:
          items:
          - path: ns
            fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}
  initContainers:
  - name: init
    image: busybox
    terminationMessagePath: /dev/termination-log
    terminationMessagePolicy: File
    imagePullPolicy: IfNotPresent
  containers:
  - name: app
    image: app:1
    terminationMessagePath: /dev/termination-log
    terminationMessagePolicy: File
    imagePullPolicy: IfNotPresent
    ports:
    - {name: http, containerPort: 8080, protocol: TCP}
    env:
    - {name: GREETING, value: hello}
    - name: NODE
      valueFrom: {fieldRef: {apiVersion: v1, fieldPath: spec.nodeName}}
    - name: CPU
      valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}
    resources:
      requests: {cpu: 100m, memory: 64Mi}
      limits: {cpu: 200m, memory: 64Mi}
    volumeMounts:
    - {name: data, mountPath: /data, subPath: a/b}
    - {name: token, mountPath: /var/run/token, readOnly: true}
    livenessProbe:
      httpGet: {path: /healthz, port: http, scheme: HTTP}
      timeoutSeconds: 1
      periodSeconds: 10
      successThreshold: 1
      failureThreshold: 3
    readinessProbe:
      tcpSocket: {port: 8080}
      timeoutSeconds: 1
      periodSeconds: 10
      successThreshold: 2
      failureThreshold: 3
`

const podText = "metadata: {name: web, namespace: default, resourceVersion: \"1\"}\nspec:" + podSpecText

func TestPod(t *testing.T) {
	app := func(p *corev1.Pod) *corev1.Container { return &p.Spec.Containers[0] }
	checkNew(t, podText, Pod, []change[corev1.Pod]{
		{"no containers", func(p *corev1.Pod) { p.Spec.Containers = nil }, []string{"spec.containers: Required value"}},
		{"several at once", func(p *corev1.Pod) {
			app(p).Name = ""
			app(p).Image = ""
			app(p).Ports[0].ContainerPort = 70000
		}, []string{"spec.containers[0].name: Required value", "spec.containers[0].image: Required value",
			"spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"}},
		{"port zero", func(p *corev1.Pod) { app(p).Ports[0].ContainerPort = 0 }, []string{"spec.containers[0].ports[0].containerPort: Required value"}},
		{"protocol", func(p *corev1.Pod) { app(p).Ports[0].Protocol = "ICMP" },
			[]string{`spec.containers[0].ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"`}},
		{"same name", func(p *corev1.Pod) { p.Spec.InitContainers[0].Name = "app" }, []string{`spec.initContainers[0].name: Duplicate value: "app"`}},
		{"image spaces", func(p *corev1.Pod) { app(p).Image = " app" }, []string{`spec.containers[0].image: Invalid value: " app": must not have leading or trailing whitespace`}},
		{"request above limit", func(p *corev1.Pod) { app(p).Resources.Requests["cpu"] = resource.MustParse("2") },
			[]string{`spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 200m`}},
		{"unknown resource", func(p *corev1.Pod) { app(p).Resources.Limits["foo"] = resource.MustParse("1") },
			[]string{`spec.containers[0].resources.limits[foo]: Invalid value: "foo": must be a standard resource type or fully qualified`,
				`spec.containers[0].resources.limits[foo]: Invalid value: "foo": must be a standard resource for containers`}},
		{"extended resource", func(p *corev1.Pod) { app(p).Resources.Requests["example.com/gpu"] = resource.MustParse("500m") },
			[]string{`spec.containers[0].resources.requests[example.com/gpu]: Invalid value: "500m": must be an integer`,
				"spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources"}},
		{"negative", func(p *corev1.Pod) { app(p).Resources.Requests["cpu"] = resource.MustParse("-1") },
			[]string{`spec.containers[0].resources.requests[cpu]: Invalid value: "-1": must be greater than or equal to 0`}},
		{"huge pages alone", func(p *corev1.Pod) {
			app(p).Resources = corev1.ResourceRequirements{Requests: corev1.ResourceList{"hugepages-2Mi": resource.MustParse("4Mi")}, Limits: corev1.ResourceList{"hugepages-2Mi": resource.MustParse("4Mi")}}
		}, []string{"spec.containers[0].resources: Forbidden: HugePages require cpu or memory"}},
		{"unknown claim", func(p *corev1.Pod) { app(p).Resources.Claims = []corev1.ResourceClaim{{Name: "gpu"}} },
			[]string{`spec.containers[0].resources.claims[0].name: Not found: "gpu": must be one of the names in pod.spec.resourceClaims which is empty`}},
		{"no such volume", func(p *corev1.Pod) { app(p).VolumeMounts[0].Name = "other" }, []string{`spec.containers[0].volumeMounts[0].name: Not found: "other"`}},
		{"same mount path", func(p *corev1.Pod) { app(p).VolumeMounts[1].MountPath = "/data" },
			[]string{`spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/data": must be unique`}},
		{"sub path", func(p *corev1.Pod) { app(p).VolumeMounts[0].SubPath = "../etc" },
			[]string{`spec.containers[0].volumeMounts.subPath: Invalid value: "../etc": must not contain '..'`}},
		{"propagation", func(p *corev1.Pod) {
			app(p).VolumeMounts[0].MountPropagation = ptr(corev1.MountPropagationBidirectional)
		},
			[]string{"spec.containers[0].volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers"}},
		{"recursive", func(p *corev1.Pod) { app(p).VolumeMounts[0].RecursiveReadOnly = ptr(corev1.RecursiveReadOnlyEnabled) },
			[]string{"spec.containers[0].volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true"}},
		{"two volume types", func(p *corev1.Pod) { p.Spec.Volumes[0].HostPath = &corev1.HostPathVolumeSource{Path: "/x"} },
			[]string{"spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type", `spec.containers[0].volumeMounts[0].name: Not found: "data"`}},
		{"no volume type", func(p *corev1.Pod) { p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "x"}) },
			[]string{"spec.volumes[2]: Required value: must specify a volume type"}},
		{"same volume", func(p *corev1.Pod) { p.Spec.Volumes = append(p.Spec.Volumes, p.Spec.Volumes[0]) },
			[]string{`spec.volumes[2].name: Duplicate value: "data"`}},
		{"token life", func(p *corev1.Pod) {
			p.Spec.Volumes[1].Projected.Sources[0].ServiceAccountToken.ExpirationSeconds = ptr(int64(5))
		},
			[]string{"spec.volumes[1].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes",
				`spec.containers[0].volumeMounts[1].name: Not found: "token"`}},
		{"token without account", func(p *corev1.Pod) { p.Spec.ServiceAccountName = "" },
			[]string{"spec.volumes[1].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is not set"}},
		{"no handler", func(p *corev1.Pod) { app(p).LivenessProbe.HTTPGet = nil }, []string{"spec.containers[0].livenessProbe: Required value: must specify a handler type"}},
		{"two handlers", func(p *corev1.Pod) {
			app(p).LivenessProbe.TCPSocket = &corev1.TCPSocketAction{Port: intstr.FromInt32(1)}
		},
			[]string{"spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type"}},
		{"threshold", func(p *corev1.Pod) { app(p).LivenessProbe.SuccessThreshold = 2 },
			[]string{"spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1"}},
		{"init probe", func(p *corev1.Pod) { p.Spec.InitContainers[0].LivenessProbe = app(p).LivenessProbe },
			[]string{"spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always"}},
		{"sidecar probe", func(p *corev1.Pod) {
			p.Spec.InitContainers[0].RestartPolicy = ptr(corev1.ContainerRestartPolicyAlways)
			p.Spec.InitContainers[0].ReadinessProbe = app(p).ReadinessProbe
		}, nil},
		{"sleep", func(p *corev1.Pod) {
			app(p).Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 31}}}
		}, []string{"spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)"}},
		{"env name", func(p *corev1.Pod) { app(p).Env[0].Name = "a=b" },
			[]string{`spec.containers[0].env[0].name: Invalid value: "a=b": a valid environment variable name must consist only of printable ASCII characters other than '='`}},
		{"env value twice", func(p *corev1.Pod) { app(p).Env[1].Value = "x" },
			[]string{"spec.containers[0].env[1].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"}},
		{"env field", func(p *corev1.Pod) { app(p).Env[1].ValueFrom.FieldRef.FieldPath = "spec.foo" },
			[]string{`spec.containers[0].env[1].valueFrom.fieldRef.fieldPath: Invalid value: "spec.foo": error converting fieldPath: field label not supported: spec.foo`}},
		{"env field not for env", func(p *corev1.Pod) { app(p).Env[1].ValueFrom.FieldRef.FieldPath = "status.phase" },
			[]string{`spec.containers[0].env[1].valueFrom.fieldRef.fieldPath: Unsupported value: "status.phase": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"`}},
		{"env label", func(p *corev1.Pod) { app(p).Env[1].ValueFrom.FieldRef.FieldPath = "metadata.labels['app']" }, nil},
		{"divisor", func(p *corev1.Pod) { app(p).Env[2].ValueFrom.ResourceFieldRef.Divisor = resource.MustParse("2") },
			[]string{`spec.containers[0].env[2].valueFrom.resourceFieldRef.divisor: Invalid value: "limits.cpu": only divisor's values 1m and 1 are supported with the cpu resource`}},
		{"host port twice", func(p *corev1.Pod) {
			app(p).Ports[0].HostPort = 80
			app(p).Ports = append(app(p).Ports, corev1.ContainerPort{ContainerPort: 81, HostPort: 80, Protocol: "TCP"})
		}, []string{`spec.containers[0].ports[1].hostPort: Duplicate value: "TCP//80"`}},
		{"host network", func(p *corev1.Pod) { p.Spec.HostNetwork = true },
			[]string{"spec.containers[0].ports[0].hostPort: Invalid value: 0: must match `containerPort` when `hostNetwork` is true"}},
		{"host users", func(p *corev1.Pod) { p.Spec.HostUsers = ptr(false); p.Spec.HostPID = true }, []string{"spec.HostPID: Forbidden: when `hostUsers` is false"}},
		{"restart policy", func(p *corev1.Pod) { p.Spec.RestartPolicy = "Sometimes" },
			[]string{`spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"`}},
		{"dns none", func(p *corev1.Pod) { p.Spec.DNSPolicy = "None" }, []string{"spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"}},
		{"deadline", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr(int64(0)) },
			[]string{"spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive"}},
		{"toleration", func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Value: "x"}, {Key: "k", Operator: "Exists", Effect: "NoSchedule", TolerationSeconds: ptr(int64(1))}}
		}, []string{"spec.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
			"spec.tolerations[1].effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' when `tolerationSeconds` is set"}},
		{"spread", func(p *corev1.Pod) {
			c := corev1.TopologySpreadConstraint{MaxSkew: 0, TopologyKey: "zone", WhenUnsatisfiable: "Maybe"}
			p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{c}
		}, []string{"spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
			`spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: "Maybe": supported values: "DoNotSchedule", "ScheduleAnyway"`}},
		{"affinity", func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{
				NodeAffinity:    &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{}},
				PodAntiAffinity: &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 101, PodAffinityTerm: corev1.PodAffinityTerm{TopologyKey: "zone"}}}}}
		}, []string{"spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
			"spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 101: must be in the range 1-100"}},
		{"gate and node", func(p *corev1.Pod) {
			p.Spec.NodeName = "n"
			p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "wait"}}
		}, []string{"spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"}},
		{"seccomp", func(p *corev1.Pod) { p.Spec.SecurityContext.SeccompProfile = &corev1.SeccompProfile{Type: "Localhost"} },
			[]string{"spec.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost"}},
		{"user", func(p *corev1.Pod) { p.Spec.SecurityContext.RunAsUser = ptr(int64(-1)) },
			[]string{"spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive"}},
		{"sysctl", func(p *corev1.Pod) {
			p.Spec.SecurityContext.Sysctls = []corev1.Sysctl{{Name: "kernel.msgmax", Value: "1"}}
			p.Spec.HostIPC = true
		}, []string{`spec.securityContext.sysctls[0].name: Invalid value: "kernel.msgmax": may not be specified when 'hostIPC' is true`}},
		{"windows", func(p *corev1.Pod) {
			p.Spec.OS = &corev1.PodOS{Name: "windows"}
			p.Spec.SecurityContext.RunAsUser = ptr(int64(1))
		},
			[]string{"spec.securityContext.runAsUser: Forbidden: cannot be set for a windows pod"}},
		{"ephemeral", func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "d", Image: "i", TerminationMessagePolicy: "File", ImagePullPolicy: "Always", Ports: []corev1.ContainerPort{{ContainerPort: 1, Protocol: "TCP"}}}, TargetContainerName: "x"}}
		}, []string{"spec.ephemeralContainers: Forbidden: cannot be set on create", "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container",
			`spec.ephemeralContainers[0].targetContainerName: Not found: "x"`}},
	})
}

func TestPodUpdate(t *testing.T) {
	checkUpdate(t, podText, PodUpdate, []change[corev1.Pod]{
		{"image", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "app:2" }, nil},
		{"label", func(p *corev1.Pod) { p.Labels = map[string]string{"a": "b"} }, nil},
		{"toleration", func(p *corev1.Pod) { p.Spec.Tolerations = []corev1.Toleration{{Operator: "Exists"}} }, nil},
		{"deadline", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr(int64(10)) }, nil},
		{"containers", func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, p.Spec.InitContainers[0])
			p.Spec.InitContainers = nil
		},
			[]string{"spec.containers: Forbidden: pod updates may not add or remove containers"}},
		{"new gate", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "g"}} },
			[]string{"spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'g'"}},
	})
	new, old := parse[corev1.Pod](t, podText), parse[corev1.Pod](t, podText)
	new.Spec.NodeName = "other"
	errs := PodUpdate(new, old)
	const want = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n"
	if len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), want) || !strings.Contains(errs[0].Error(), "other") {
		t.Errorf("changed node name: got %v, want %q and the difference", errs, want)
	}
}

func TestPodDoors(t *testing.T) {
	t.Run("status", func(t *testing.T) {
		new, old := parse[corev1.Pod](t, podText), parse[corev1.Pod](t, podText)
		old.Spec.RestartPolicy = "Never"
		old.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}}
		new.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
		new.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "10.0.0.2"}}
		same(t, PodStatusUpdate(new, old), []string{"status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state",
			`status.podIPs: Invalid value: [{"IP":"10.0.0.1"},{"IP":"10.0.0.2"}]: may specify no more than one IP for each IP family`})
	})
	t.Run("resize", func(t *testing.T) {
		new, old := parse[corev1.Pod](t, podText), parse[corev1.Pod](t, podText)
		new.Spec.Containers[0].Resources.Limits["cpu"] = resource.MustParse("300m")
		same(t, PodResize(new, old), nil)
		delete(new.Spec.Containers[0].Resources.Limits, "memory")
		same(t, PodResize(new, old), []string{"spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed"})
	})
	t.Run("debug container", func(t *testing.T) {
		new, old := parse[corev1.Pod](t, podText), parse[corev1.Pod](t, podText)
		ec := corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "i", TerminationMessagePolicy: "File", ImagePullPolicy: "Always"}}
		new.Spec.EphemeralContainers = []corev1.EphemeralContainer{ec}
		same(t, PodEphemeralContainersUpdate(new, old), nil)
		same(t, PodEphemeralContainersUpdate(old, new), []string{"spec.ephemeralContainers: Forbidden: existing ephemeral containers \"debug\" may not be removed\n"})
	})
}
