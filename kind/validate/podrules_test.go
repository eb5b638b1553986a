package validate

import (
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// TestPodRules holds the rules about pods that were compared with the release one by
// one: paths and words are upstream's, odd ones too.
func TestPodRules(t *testing.T) {
	app := func(p *corev1.Pod) *corev1.Container { return &p.Spec.Containers[0] }
	list := func(s string) corev1.ResourceList { return corev1.ResourceList{"cpu": resource.MustParse(s)} }
	merged := &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}, MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "In", Values: []string{"b"}}}}
	checkNew(t, podText, Pod, []change[corev1.Pod]{
		{"pull secret without name", func(p *corev1.Pod) { p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{}} }, nil},
		{"host name", func(p *corev1.Pod) { p.Spec.HostnameOverride = ptr("") },
			[]string{`spec.hostnameOverride: Invalid value: "": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')`}},
		{"claims of static pods", func(p *corev1.Pod) {
			p.Annotations, p.Spec.NodeName = map[string]string{"kubernetes.io/config.mirror": "x"}, "n"
			p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "a", ResourceClaimName: ptr("x")}, {Name: "a", ResourceClaimName: ptr("y")}}
		}, []string{"[]: Forbidden: static pods do not support resource claims", `spec.resourceClaims[1].name: Duplicate value: "a"`}},
		{"claim of nothing", func(p *corev1.Pod) { p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "a"}} },
			[]string{"spec.resourceClaims[0]: Invalid value: {\"Name\":\"a\",\"ResourceClaimName\":null,\"ResourceClaimTemplateName\":null}: must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"}},
		{"file of a volume", func(p *corev1.Pod) {
			file := func(volume string) corev1.EnvVar {
				return corev1.EnvVar{Name: "F", ValueFrom: &corev1.EnvVarSource{FileKeyRef: &corev1.FileKeySelector{VolumeName: volume, Path: "a/..b", Key: "K"}}}
			}
			app(p).Env = []corev1.EnvVar{file("data"), file("token"), file("none")}
		}, []string{`spec.containers[0].env[1].valueFrom.fileKeyRef.volumeName: Invalid value: "token": referenced volume must be of type emptyDir`,
			`spec.containers[0].env[2].valueFrom.fileKeyRef.volumeName: Not found: "none"`}},
		{"no source", func(p *corev1.Pod) { app(p).Env[0].Value, app(p).Env[0].ValueFrom = "x", &corev1.EnvVarSource{} },
			[]string{"spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"}},
		{"names of sources", func(p *corev1.Pod) {
			app(p).Env[0].Value, app(p).Env[0].ValueFrom = "", &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "A"}, Key: "k"}}
			app(p).EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "a-"}}}}
		}, []string{`spec.containers[0].env[0].valueFrom.secretKeyRef.name: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')`}},
		{"message policy", func(p *corev1.Pod) { app(p).TerminationMessagePolicy = "x" },
			[]string{`spec.containers[0].terminationMessagePolicy: Unsupported value: "x": supported values: "File", "FallbackToLogsOnError"`}},
		{"resize policy", func(p *corev1.Pod) {
			p.Spec.RestartPolicy = "Never"
			app(p).ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: "cpu", RestartPolicy: "RestartContainer"}}
			p.Spec.InitContainers[0].ResizePolicy = app(p).ResizePolicy
		}, []string{"spec.containers[0].resizePolicy: Invalid value: \"RestartContainer\": must be 'NotRequired' when pod `restartPolicy` is 'Never'",
			"spec.initContainers[0].resizePolicy: Invalid value: \"RestartContainer\": must be 'NotRequired' when pod `restartPolicy` is 'Never'",
			`spec.initContainers[0].resizePolicy[0].restartPolicy: Invalid value: "RestartContainer": must not be set to 'RestartContainer' for non-sidecar initContainers`}},
		{"many rules", func(p *corev1.Pod) {
			app(p).RestartPolicy = ptr(corev1.ContainerRestartPolicyNever)
			for range 21 {
				app(p).RestartPolicyRules = append(app(p).RestartPolicyRules, corev1.ContainerRestartRule{Action: "Restart", ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: "In"}})
			}
		}, []string{"spec.containers[0].restartPolicyRules: Too many: 21: must have at most 20 items"}},
		{"mount and device", func(p *corev1.Pod) {
			p.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}
			app(p).VolumeDevices = []corev1.VolumeDevice{{Name: "data", DevicePath: "/dev/x"}}
		}, []string{`spec.containers[0].volumeMounts[0].name: Invalid value: "data": must not already exist in volumeDevices`,
			`spec.containers[0].volumeDevices[0].name: Invalid value: "data": must not already exist in volumeMounts`}},
		{"tolerations", func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Key: "k", Operator: "Exists", Value: "v"}, {Key: "k", Operator: "Lt", Value: "5"}, {Key: "k", Operator: "x"}}
		}, []string{"spec.tolerations[0].operator: Invalid value: \"v\": value must be empty when `operator` is 'Exists'",
			`spec.tolerations[1].operator: Unsupported value: "Lt": supported values: "Equal", "Exists", "Lt", "Gt"`,
			`spec.tolerations[2].operator: Unsupported value: "x": supported values: "Equal", "Exists"`}},
		{"node values", func(p *corev1.Pod) {
			term := corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "a", Operator: "In", Values: []string{"b", "c d"}}}}
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution:  &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{term}},
				PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 1, Preference: term}}}}
		}, []string{`spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].values[1]: Invalid value: "c d": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')`}},
		{"label keys", func(p *corev1.Pod) {
			p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{
				{MaxSkew: 1, TopologyKey: "z", WhenUnsatisfiable: "DoNotSchedule", LabelSelector: merged, MatchLabelKeys: []string{"a"}},
				{MaxSkew: 1, TopologyKey: "z", WhenUnsatisfiable: "ScheduleAnyway", MatchLabelKeys: []string{"a"}, MinDomains: ptr(int32(1))},
			}
			p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{
				{TopologyKey: "z", LabelSelector: merged, MismatchLabelKeys: []string{"a"}},
				{TopologyKey: "z", LabelSelector: &metav1.LabelSelector{}, MatchLabelKeys: []string{"c"}, MismatchLabelKeys: []string{"c"}},
			}}}
		}, []string{`spec.topologySpreadConstraints[0][0]: Invalid value: "a": exists in both matchLabelKeys and labelSelector`,
			"spec.topologySpreadConstraints[1].matchLabelKeys: Forbidden: must not be specified when labelSelector is not set",
			"spec.topologySpreadConstraints[1].minDomains: Invalid value: 1: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway",
			`spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[1].matchLabelKeys[0]: Invalid value: "c": exists in both matchLabelKeys and mismatchLabelKeys`}},
		{"sysctl name", func(p *corev1.Pod) { p.Spec.SecurityContext.Sysctls = []corev1.Sysctl{{Name: "A"}} },
			[]string{`spec.securityContext.sysctls[0].name: Invalid value: "A": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`}},
		{"annotations and fields", func(p *corev1.Pod) {
			p.Annotations = map[string]string{"seccomp.security.alpha.kubernetes.io/pod": "unconfined", "container.seccomp.security.alpha.kubernetes.io/app": "localhost/a",
				"container.apparmor.security.beta.kubernetes.io/app": "runtime/default"}
			p.Spec.SecurityContext.SeccompProfile = &corev1.SeccompProfile{Type: "RuntimeDefault"}
			app(p).SecurityContext = &corev1.SecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: "Localhost", LocalhostProfile: ptr("b")}, AppArmorProfile: &corev1.AppArmorProfile{Type: "Unconfined"}}
		}, []string{"spec.securityContext.seccompProfile.type: Forbidden: seccomp type in annotation and field must match",
			"spec.containers[0].securityContext.seccompProfile.localhostProfile: Forbidden: seccomp profile in annotation and field must match",
			"spec.containers[0].securityContext.appArmorProfile.type: Forbidden: apparmor type in annotation and field must match"}},
		{"whole pod", func(p *corev1.Pod) {
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: list("50m"), Limits: list("150m")}
		}, []string{`spec.resources.requests[cpu]: Invalid value: "50m": must be greater than or equal to aggregate container requests of 100m`,
			`spec.resources.containers[0][cpu].limits: Invalid value: "200m": must be less than or equal to pod limits of 150m`}},
		{"whole windows pod", func(p *corev1.Pod) {
			p.Spec.OS, p.Spec.Resources = &corev1.PodOS{Name: "windows"}, &corev1.ResourceRequirements{}
			p.Spec.SecurityContext.SELinuxChangePolicy = ptr(corev1.SELinuxChangePolicyRecursive)
		}, []string{"spec.resources: Forbidden: may not be set for a windows pod", "spec.securityContext.seLinuxChangePolicy: Forbidden: cannot be set for a windows pod"}},
	})
	t.Run("template", func(t *testing.T) {
		p := parse[corev1.Pod](t, podText)
		p.Spec.HostNetwork = true
		same(t, PodSpec(&p.Spec, nil, spec()), nil)
	})
}

func TestPodStatusRules(t *testing.T) {
	checkUpdate(t, podText, PodStatusUpdate, []change[corev1.Pod]{
		{"conditions", func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: "Ready", ObservedGeneration: -1}, {Type: "a b"}}
		},
			[]string{"status.conditions[0].observedGeneration: Invalid value: -1: must be a non-negative integer",
				`status.conditions[1].Type: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')`}},
		{"class", func(p *corev1.Pod) { p.Status.QOSClass = "BestEffort" }, []string{`status.qosClass: Invalid value: "BestEffort": field is immutable`}},
		{"claims", func(p *corev1.Pod) {
			p.Status.ResourceClaimStatuses = []corev1.PodResourceClaimStatus{{Name: "a"}, {Name: "a"}}
		},
			[]string{"status.resourceClaimStatuses[0].name: Invalid value: \"a\": must match the name of an entry in `spec.resourceClaims`",
				"status.resourceClaimStatuses[1].name: Invalid value: \"a\": must match the name of an entry in `spec.resourceClaims`",
				`status.resourceClaimStatuses[1].name: Duplicate value: "a"`}},
		{"extended claim", func(p *corev1.Pod) {
			p.Status.ExtendedResourceClaimStatus = &corev1.PodExtendedResourceClaimStatus{RequestMappings: []corev1.ContainerExtendedResourceRequest{{ContainerName: "app", ResourceName: "example.com/x", RequestName: "r"}}}
		}, []string{`status.extendedResourceClaimStatus.requestMappings[0].resourceName: Invalid value: "example.com/x": must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests`,
			"status.extendedResourceClaimStatus.resourceClaimName: Required value"}},
		{"user and devices", func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app", User: &corev1.ContainerUser{Linux: &corev1.LinuxContainerUser{UID: -1}},
				AllocatedResourcesStatus: []corev1.ResourceStatus{{Name: "example.com/x", Resources: []corev1.ResourceHealth{{ResourceID: "1", Health: "Ill"}}}}}}
			p.Status.EphemeralContainerStatuses = []corev1.ContainerStatus{{Name: "d", AllocatedResourcesStatus: []corev1.ResourceStatus{{Name: "x"}}}}
		}, []string{"status.containerStatuses[0].user.linux.uid: Invalid value: -1: must be between 0 and 2147483647, inclusive",
			`status.containerStatuses[0].allocatedResourcesStatus[0].name: Invalid value: "example.com/x": must match one of the container's resource requests`,
			`status.containerStatuses[0].allocatedResourcesStatus[0].resources[0].health: Unsupported value: "Ill": supported values: "Healthy", "Unhealthy", "Unknown"`,
			"status.ephemeralContainerStatuses[0].allocatedResourcesStatus: Forbidden: must not be specified in container status"}},
		{"host addresses", func(p *corev1.Pod) { p.Status.HostIPs = []corev1.HostIP{{IP: "10.0.0.1"}, {IP: "10.0.0.2"}} },
			[]string{"status.hostIPs[0].ip: Invalid value: \"10.0.0.1\": must be equal to `hostIP`",
				`status.hostIPs: Invalid value: [{"IP":"10.0.0.1"},{"IP":"10.0.0.2"}]: may specify no more than one IP for each IP family`}},
		{"mirror", func(p *corev1.Pod) { p.Annotations = map[string]string{"kubernetes.io/config.mirror": "x"} },
			[]string{`metadata.annotations[kubernetes.io/config.mirror]: Forbidden: may not add mirror pod annotation`,
				`metadata.annotations[kubernetes.io/config.mirror]: Invalid value: "x": must set spec.nodeName if mirror pod annotation is set`}},
	})
	t.Run("bound", func(t *testing.T) {
		new, old := parse[corev1.Pod](t, podText), parse[corev1.Pod](t, podText)
		new.Spec.NodeName, old.Spec.NodeName, new.Status.NominatedNodeName = "n", "n", "m"
		same(t, PodStatusUpdate(new, old), []string{"status.nominatedNodeName: Forbidden: may not be set on pods that are already bound to a node"})
	})
	restart := func(policy string, rules ...corev1.ContainerRestartRule) *corev1.Container {
		c := &corev1.Container{RestartPolicyRules: rules}
		if policy != "" {
			c.RestartPolicy = ptr(corev1.ContainerRestartPolicy(policy))
		}
		return c
	}
	on := func(op corev1.ContainerRestartRuleOnExitCodesOperator, codes ...int32) corev1.ContainerRestartRule {
		return corev1.ContainerRestartRule{Action: "Restart", ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: op, Values: codes}}
	}
	for _, c := range []struct {
		c    *corev1.Container
		pod  corev1.RestartPolicy
		code int32
		want bool
	}{
		{restart(""), "Always", 0, true}, {restart(""), "OnFailure", 0, false}, {restart(""), "OnFailure", 1, true}, {restart(""), "Never", 1, false},
		{restart("Never"), "Always", 1, false}, {restart("Always"), "Never", 0, true},
		{restart("Never", on("In", 42)), "Never", 42, true}, {restart("Never", on("In", 42)), "Never", 1, false},
		{restart("Never", on("NotIn", 42)), "Never", 1, true}, {restart("OnFailure", on("NotIn", 0)), "Never", 0, false},
	} {
		if got := mayRestart(c.c, c.pod, c.code); got != c.want {
			t.Errorf("container %+v of a pod %s that ended with %d: may restart %v, want %v", c.c, c.pod, c.code, got, c.want)
		}
	}
}

func TestPodResizeRules(t *testing.T) {
	app := func(p *corev1.Pod) *corev1.Container { return &p.Spec.Containers[0] }
	checkUpdate(t, podText, PodResize, []change[corev1.Pod]{
		{"init container", func(p *corev1.Pod) {
			p.Spec.InitContainers[0].Resources.Requests = corev1.ResourceList{"cpu": resource.MustParse("1")}
		}, nil},
		{"class", func(p *corev1.Pod) { app(p).Resources.Requests["cpu"] = resource.MustParse("200m") }, nil},
		{"other resource", func(p *corev1.Pod) {
			for _, l := range []corev1.ResourceList{app(p).Resources.Requests, app(p).Resources.Limits} {
				l["ephemeral-storage"] = resource.MustParse("1")
			}
		}, []string{"spec: Forbidden: only cpu and memory resources are mutable"}},
		{"other resource of init", func(p *corev1.Pod) {
			p.Spec.InitContainers[0].Resources.Requests = corev1.ResourceList{"ephemeral-storage": resource.MustParse("1")}
		}, []string{"spec.initContainers[0]: Forbidden: only cpu and memory resources for init or sidecar containers are mutable"}},
		{"rename", func(p *corev1.Pod) { app(p).Name = "x" }, []string{"spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize"}},
		{"one less", func(p *corev1.Pod) { p.Spec.InitContainers = nil }, []string{"spec.initContainers: Forbidden: initContainers may not be added or removed on resize"}},
		{"whole pod", func(p *corev1.Pod) {
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("1")}}
		}, nil},
		{"whole pod's pages", func(p *corev1.Pod) {
			huge := corev1.ResourceList{"cpu": resource.MustParse("1"), "hugepages-2Mi": resource.MustParse("2Mi")}
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: huge, Limits: huge}
		}, []string{"spec: Forbidden: only cpu and memory resources are mutable at pod-level"}},
		{"label", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"a": "b"} }, []string{"spec: Forbidden: only cpu and memory resources are mutable"}},
	})
	new, old := parse[corev1.Pod](t, podText), parse[corev1.Pod](t, podText)
	old.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	same(t, PodResize(new, old), []string{"spec: Forbidden: Pod running on node without support for resize"})
	old.Status.ContainerStatuses, old.Annotations = nil, map[string]string{"kubernetes.io/config.mirror": "x"}
	same(t, PodResize(new, old), []string{"[]: Forbidden: static pods cannot be resized"})
	old.Annotations, old.Status.QOSClass, new.Status.QOSClass = nil, "Guaranteed", "Guaranteed"
	same(t, PodResize(new, old), []string{`spec: Invalid value: "Guaranteed": Pod QOS Class may not change as a result of resizing`})
}

func TestShown(t *testing.T) {
	p := field.NewPath("x")
	for _, c := range []struct {
		value any
		want  string
	}{
		{corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{{ScopeName: "Terminating", Operator: "Exists"}}},
			`x: Invalid value: {"MatchExpressions":[{"ScopeName":"Terminating","Operator":"Exists","Values":null}]}`},
		{&resourcev1.DeviceToleration{Key: "k"}, `x: Invalid value: {"key":"k"}`},
		{&corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "d"}, TargetContainerName: "t"}, `x: Invalid value: {"Name":"d","Image":"","Command":null,"Args":null,"WorkingDir":"","Ports":null,"EnvFrom":null,"Env":null,` +
			`"Resources":{"Limits":null,"Requests":null,"Claims":null},"ResizePolicy":null,"RestartPolicy":null,"RestartPolicyRules":null,"VolumeMounts":null,"VolumeDevices":null,"LivenessProbe":null,"ReadinessProbe":null,"StartupProbe":null,` +
			`"Lifecycle":null,"TerminationMessagePath":"","TerminationMessagePolicy":"","ImagePullPolicy":"","SecurityContext":null,"Stdin":false,"StdinOnce":false,"TTY":false,"TargetContainerName":"t"}`},
		{[]corev1.PodIP{{IP: "10.0.0.1"}}, `x: Invalid value: [{"IP":"10.0.0.1"}]`},
		{(*corev1.PodResourceClaim)(nil), "x: Invalid value: null"},
		{"text", `x: Invalid value: "text"`},
		{&metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}, `x: Invalid value: {"matchLabels":{"a":"b"}}`},
		{corev1.ResourceList{"cpu": resource.MustParse("1")}, `x: Invalid value: {"cpu":"1"}`},
	} {
		got := Shown(field.ErrorList{field.Invalid(p, c.value, "")})[0].Error()
		if got != c.want {
			t.Errorf("%T: got %s, want %s", c.value, got, c.want)
		}
	}
}

func TestJobStatusRules(t *testing.T) {
	job := namespacedMeta + "spec:\n  completions: 5\n  parallelism: 1\n  backoffLimit: 6\n  completionMode: Indexed\n  selector: {matchLabels: {app: web}}" + template("Never") +
		"status: {active: 1, ready: 1, failed: 2, succeeded: 2, startTime: '2026-01-01T00:00:00Z', completedIndexes: '0,2-3'}\n"
	set := func(j *batchv1.Job, types ...batchv1.JobConditionType) {
		for _, c := range types {
			j.Status.Conditions = append(j.Status.Conditions, batchv1.JobCondition{Type: c, Status: "True"})
		}
	}
	day := func(n int) *metav1.Time { return ptr(metav1.Date(2026, 1, n, 0, 0, 0, 0, time.UTC)) }
	checkUpdate(t, job, JobStatusUpdate, []change[batchv1.Job]{
		{"complete", func(j *batchv1.Job) {
			set(j, "SuccessCriteriaMet", "Complete")
			j.Status.Active, j.Status.Ready, j.Status.CompletionTime = 0, nil, day(2)
		}, nil},
		{"complete at once", func(j *batchv1.Job) { set(j, "Complete", "Failed", "FailureTarget") }, []string{
			"status.conditions: Invalid value: cannot set Complete=True and Failed=true conditions", "status.conditions: Invalid value: cannot set Complete=True and FailureTarget=true conditions",
			"status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
			"status.completionTime: Required value: completionTime is required for Complete jobs", "status.active: Invalid value: 1: active>0 is invalid for finished job"}},
		{"failed at once", func(j *batchv1.Job) {
			set(j, "Failed")
			j.Status.Active, j.Status.Ready, j.Status.StartTime, j.Status.Terminating = 0, nil, nil, ptr(int32(1))
			j.Status.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{Failed: []types.UID{"a", "a"}}
		}, []string{"status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition", "status.startTime: Required value: startTime is required for finished job",
			"status.startTime: Required value: startTime cannot be removed for unsuspended job", "status.terminating: Invalid value: 1: terminating>0 is invalid for finished job",
			`status.uncountedTerminatedPods: Invalid value: {"Succeeded":null,"Failed":["a","a"]}: uncountedTerminatedPods needs to be empty for finished job`,
			`status.uncountedTerminatedPods.failed[1]: Duplicate value: "a"`}},
		{"time", func(j *batchv1.Job) { j.Status.CompletionTime = ptr(metav1.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)) }, []string{
			`status.completionTime: Invalid value: "2025-01-01T00:00:00Z": cannot set completionTime when there is no Complete=True condition`,
			`status.completionTime: Invalid value: "2025-01-01T00:00:00Z": completionTime cannot be set before startTime`}},
		{"counters", func(j *batchv1.Job) { j.Status.Failed, j.Status.Succeeded, j.Status.Ready = 1, 1, ptr(int32(2)) }, []string{"status.failed: Invalid value: 1: cannot decrease the failed counter",
			"status.succeeded: Invalid value: 1: cannot decrease the succeeded counter", "status.ready: Invalid value: 2: cannot set more ready pods than active"}},
		{"indexes", func(j *batchv1.Job) { j.Status.CompletedIndexes, j.Status.FailedIndexes = "0,7", ptr("1,7") }, []string{
			`status.completedIndexes: Invalid value: "0,7": error parsing completedIndexes: too large index: "7"`,
			`status.failedIndexes: Invalid value: "1,7": cannot set non-null failedIndexes when backoffLimitPerIndex is null`,
			`status.failedIndexes: Invalid value: "1,7": failedIndexes and completedIndexes overlap at index: 7`}},
	})
	t.Run("suspended", func(t *testing.T) {
		new, old := parse[batchv1.Job](t, job), parse[batchv1.Job](t, job)
		old.Spec.Suspend, old.Status.Active = ptr(true), 0
		new.Spec.Template.Spec.Containers[0].Resources.Requests["cpu"] = resource.MustParse("150m")
		same(t, JobUpdate(new, old), nil)
	})
	cron := namespacedMeta + "spec:\n  schedule: '* * * * *'\n  concurrencyPolicy: Allow\n  jobTemplate:\n    spec:\n      template:\n        spec:" + strings.ReplaceAll(strings.Replace(podSpecText, "Always", "Never", 1), "\n", "\n        ") + "\n"
	checkNew(t, cron, CronJob, []change[batchv1.CronJob]{
		{"selector", func(c *batchv1.CronJob) {
			c.Spec.JobTemplate.Spec.Selector, c.Spec.JobTemplate.Spec.ManualSelector = &metav1.LabelSelector{}, ptr(true)
		}, []string{"spec.jobTemplate.spec.selector: Invalid value: {}: `selector` will be auto-generated", `spec.jobTemplate.spec.manualSelector: Unsupported value: true: supported values: "nil", "false"`}},
		{"zone", func(c *batchv1.CronJob) { c.Spec.Schedule, c.Spec.TimeZone = "TZ=UTC * * * * *", ptr("UTC") },
			[]string{`spec.schedule: Invalid value: "TZ=UTC * * * * *": cannot use TZ or CRON_TZ in schedule, use timeZone field instead`}},
	})
}
