package validate

import (
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const namespacedMeta = "metadata: {name: web, namespace: default, resourceVersion: \"1\"}\n"
const clusterMeta = "metadata: {name: web, resourceVersion: \"1\"}\n"

const templateText = "\n    metadata: {labels: {app: web}}\n    spec:"

// template is the pod specification one level deeper, inside a controller's spec.
func template(restart string) string {
	deeper := strings.ReplaceAll(podSpecText, "\n", "\n    ")
	return "\n  template:" + templateText + strings.Replace(deeper, "restartPolicy: Always", "restartPolicy: "+restart, 1) + "\n"
}

func TestService(t *testing.T) {
	text := namespacedMeta + `
spec:
  type: ClusterIP
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, protocol: TCP}]
  sessionAffinity: None
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  ipFamilies: [IPv4]
  ipFamilyPolicy: SingleStack
  internalTrafficPolicy: Cluster
`
	checkNew(t, text, Service, []change[corev1.Service]{
		{"no ports", func(s *corev1.Service) { s.Spec.Ports = nil }, []string{"spec.ports: Required value"}},
		{"ports without names", func(s *corev1.Service) {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "b", Port: 0, Protocol: "TCP", TargetPort: intstr.FromInt32(1)})
		},
			[]string{"spec.ports[0].name: Required value", "spec.ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive"}},
		{"type", func(s *corev1.Service) { s.Spec.Type = "Cloud" }, []string{`spec.type: Unsupported value: "Cloud": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"`}},
		{"node port", func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30000 }, []string{"spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"}},
		{"external policy", func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = "Local" },
			[]string{`spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services`}},
		{"affinity", func(s *corev1.Service) { s.Spec.SessionAffinity = "ClientIP" }, []string{"spec.sessionAffinityConfig: Required value: when session affinity type is ClientIP"}},
		{"external name", func(s *corev1.Service) {
			s.Spec = corev1.ServiceSpec{Type: "ExternalName", SessionAffinity: "None"}
		}, []string{"spec.externalName: Required value"}},
		{"headless node port", func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalTrafficPolicy = "NodePort", "Cluster"
			s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"}
		}, []string{`spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for NodePort services`}},
		{"family", func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{"IPv6"} },
			[]string{"spec.clusterIPs[0]: Invalid value: \"10.96.0.10\": expected an IPv6 value as indicated by `ipFamilies[0]`"}},
		{"external ip", func(s *corev1.Service) {
			s.Spec.ExternalIPs, s.Spec.ExternalTrafficPolicy = []string{"127.0.0.1"}, "Cluster"
		}, []string{`spec.externalIPs[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)`}},
	})
	checkUpdate(t, text, ServiceUpdate, []change[corev1.Service]{
		{"other address", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.96.0.11", []string{"10.96.0.11"} },
			[]string{`spec.clusterIPs[0]: Invalid value: ["10.96.0.11"]: may not change once set`}},
		{"no address", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "", nil },
			[]string{`spec.clusterIPs[0]: Invalid value: null: primary clusterIP can not be unset`}},
	})
}

func TestEndpoints(t *testing.T) {
	checkNew(t, namespacedMeta+"addressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]\nports: [{name: http, port: 80, protocol: TCP}]\n", EndpointSlice, []change[discoveryv1.EndpointSlice]{
		{"family", func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses[0] = "fd00::1" }, []string{`endpoints[0].addresses[0]: Invalid value: "fd00::1": must be an IPv4 address`}},
		{"no address", func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses = nil }, []string{"endpoints[0].addresses: Required value"}},
		{"type", func(s *discoveryv1.EndpointSlice) { s.AddressType = "" }, []string{"addressType: Required value"}},
	})
	checkNew(t, namespacedMeta+"subsets: [{addresses: [{ip: 10.0.0.1}], ports: [{port: 80, protocol: TCP}]}]\n", Endpoints, []change[corev1.Endpoints]{
		{"empty", func(e *corev1.Endpoints) { e.Subsets[0].Addresses = nil }, []string{"subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"}},
	})
}

func TestConfig(t *testing.T) {
	text := namespacedMeta + "data: {a: b}\nimmutable: true\n"
	checkNew(t, text, ConfigMap, []change[corev1.ConfigMap]{
		{"key", func(c *corev1.ConfigMap) { c.Data = map[string]string{"a/b": ""} },
			[]string{`data[a/b]: Invalid value: "a/b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')`}},
		{"twice", func(c *corev1.ConfigMap) { c.BinaryData = map[string][]byte{"a": nil} }, []string{`data[a]: Invalid value: "a": duplicate of key present in binaryData`}},
		{"size", func(c *corev1.ConfigMap) { c.Data["a"] = strings.Repeat("x", 1<<20+1) }, []string{"[]: Too long: may not be more than 1048576 bytes"}},
	})
	checkUpdate(t, text, ConfigMapUpdate, []change[corev1.ConfigMap]{
		{"data", func(c *corev1.ConfigMap) { c.Data["a"] = "c" }, []string{"data: Forbidden: field is immutable when `immutable` is set"}},
	})
	checkNew(t, namespacedMeta+"type: kubernetes.io/tls\ndata: {tls.crt: eA==, tls.key: eA==}\n", Secret, []change[corev1.Secret]{
		{"no key", func(s *corev1.Secret) { delete(s.Data, "tls.key") }, []string{"data[tls.key]: Required value"}},
		{"size", func(s *corev1.Secret) { s.Data["x"] = make([]byte, 1<<20) }, []string{"data: Too long: may not be more than 1048576 bytes"}},
	})
	checkUpdate(t, namespacedMeta+"type: Opaque\n", SecretUpdate, []change[corev1.Secret]{
		{"type", func(s *corev1.Secret) { s.Type = "other" }, []string{`type: Invalid value: "other": field is immutable`}},
	})
}

func TestCluster(t *testing.T) {
	checkNew(t, "metadata: {name: team, resourceVersion: \"1\"}\nspec: {finalizers: [kubernetes]}\n", Namespace, []change[corev1.Namespace]{
		{"finalizer", func(n *corev1.Namespace) { n.Spec.Finalizers[0] = "mine" }, []string{`spec.finalizers: Invalid value: "mine": name is neither a standard finalizer name nor is it fully qualified`}},
	})
	checkUpdate(t, clusterMeta+"spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24]}\n", NodeUpdate, []change[corev1.Node]{
		{"taint", func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: "a", Effect: "NoSchedule"}, {Key: "a", Value: "b", Effect: "NoSchedule"}}
		}, []string{`metadata.taints[1]: Duplicate value: {"Key":"a","Value":"b","Effect":"NoSchedule","TimeAdded":null}: taints must be unique by key and effect pair`}},
		{"range", func(n *corev1.Node) { n.Spec.PodCIDRs = []string{"10.2.0.0/24"} }, []string{
			`spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid`}},
	})
}

func TestWorkloads(t *testing.T) {
	deployment := namespacedMeta + `
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  progressDeadlineSeconds: 600
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 25%, maxUnavailable: 25%}}` + template("Always")
	checkNew(t, deployment, Deployment, []change[appsv1.Deployment]{
		{"selector", func(d *appsv1.Deployment) { d.Spec.Selector.MatchLabels["app"] = "x" },
			[]string{"spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`"}},
		{"no selector", func(d *appsv1.Deployment) { d.Spec.Selector = nil }, []string{"spec.selector: Required value"}},
		{"replicas", func(d *appsv1.Deployment) { d.Spec.Replicas = ptr(int32(-1)) }, []string{"spec.replicas: Invalid value: -1: must be greater than or equal to 0"}},
		{"both zero", func(d *appsv1.Deployment) {
			zero := intstr.FromInt32(0)
			d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: &zero, MaxUnavailable: &zero}
		}, []string{"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"}},
		{"recreate", func(d *appsv1.Deployment) { d.Spec.Strategy.Type = "Recreate" }, []string{"spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"}},
		{"restart policy", func(d *appsv1.Deployment) { d.Spec.Template.Spec.RestartPolicy = "Never" },
			[]string{`spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"`}},
		{"deep", func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Ports[0].ContainerPort = 70000 },
			[]string{"spec.template.spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"}},
		{"deadline", func(d *appsv1.Deployment) { d.Spec.MinReadySeconds = 600 }, []string{"spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"}},
	})
	checkUpdate(t, deployment, DeploymentUpdate, []change[appsv1.Deployment]{
		{"selector", func(d *appsv1.Deployment) {
			d.Spec.Selector.MatchLabels["app"], d.Spec.Template.Labels["app"] = "x", "x"
		}, []string{`spec.selector: Invalid value: {"matchLabels":{"app":"x"}}: field is immutable`}},
	})
	checkNew(t, namespacedMeta+"spec:\n  selector: {matchLabels: {app: web}}\n  updateStrategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 1, maxSurge: 0}}"+template("Always"), DaemonSet, []change[appsv1.DaemonSet]{
		{"both", func(d *appsv1.DaemonSet) { d.Spec.UpdateStrategy.RollingUpdate.MaxSurge = ptr(intstr.FromInt32(1)) },
			[]string{"spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero"}},
	})
	set := namespacedMeta + "spec:\n  serviceName: web\n  podManagementPolicy: OrderedReady\n  selector: {matchLabels: {app: web}}\n  updateStrategy: {type: RollingUpdate, rollingUpdate: {partition: 0}}" + template("Always")
	checkNew(t, set, StatefulSet, []change[appsv1.StatefulSet]{
		{"management", func(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = "x" }, []string{`spec.podManagementPolicy: Invalid value: "x": must be 'OrderedReady' or 'Parallel'`}},
	})
	checkUpdate(t, set, StatefulSetUpdate, []change[appsv1.StatefulSet]{
		{"scale", func(s *appsv1.StatefulSet) { s.Spec.Replicas = ptr(int32(3)) }, nil},
		{"service", func(s *appsv1.StatefulSet) { s.Spec.ServiceName = "x" }, []string{"spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"}},
	})
}

func TestJobs(t *testing.T) {
	job := namespacedMeta + "spec:\n  completions: 1\n  parallelism: 1\n  backoffLimit: 6\n  completionMode: NonIndexed\n  selector: {matchLabels: {app: web}}" + template("Never")
	checkNew(t, job, Job, []change[batchv1.Job]{
		{"restart policy", func(j *batchv1.Job) { j.Spec.Template.Spec.RestartPolicy = "Always" }, []string{`spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"`}},
		{"indexed", func(j *batchv1.Job) { j.Spec.CompletionMode, j.Spec.Completions = ptr(batchv1.IndexedCompletion), nil },
			[]string{"spec.completions: Required value: when completion mode is Indexed"}},
		{"failure policy", func(j *batchv1.Job) {
			j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{Action: "FailJob", OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: "In", Values: []int32{2, 0}}}}}
		}, []string{"spec.podFailurePolicy.rules[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator", "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [2,0]: must be ordered"}},
		{"success policy", func(j *batchv1.Job) {
			j.Spec.CompletionMode, j.Spec.Completions = ptr(batchv1.IndexedCompletion), ptr(int32(5))
			j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: ptr("0-2"), SucceededCount: ptr(int32(4))}}}
		}, []string{"spec.successPolicy.rules[0].succeededCount: Invalid value: 4: must be less than or equal to 3 (the number of indexes in the specified succeededIndexes field)"}},
	})
	checkUpdate(t, job, JobUpdate, []change[batchv1.Job]{
		{"completions", func(j *batchv1.Job) { j.Spec.Completions = ptr(int32(2)) }, []string{"spec.completions: Invalid value: 2: field is immutable"}},
		{"parallelism", func(j *batchv1.Job) { j.Spec.Parallelism = ptr(int32(2)) }, nil},
	})
	for schedule, want := range map[string]string{
		"* * * * *": "", "*/5 0-3,7 1 jan sun": "", "@hourly": "", "@every 90m": "",
		"* * * *": "expected exactly 5 fields, found 4: [* * * *]", "60 * * * *": "end of range (60) above maximum (59): 60",
		"* * 0 * *": "beginning of range (0) below minimum (1): 0", "5-1 * * * *": "beginning of range (5) beyond end of range (1): 5-1",
		"*/0 * * * *": "step of range should be a positive number: */0", "@sometimes": "unrecognized descriptor: @sometimes",
		"x * * * *": `failed to parse int from x: strconv.Atoi: parsing "x": invalid syntax`,
	} {
		got := ""
		if err := cronSchedule(schedule); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("schedule %q: got %q, want %q", schedule, got, want)
		}
	}
}

func TestAccess(t *testing.T) {
	checkNew(t, namespacedMeta+"rules: [{verbs: [get], apiGroups: [''], resources: [pods]}]\n", Role, []change[rbacv1.Role]{
		{"empty", func(r *rbacv1.Role) { r.Rules[0] = rbacv1.PolicyRule{} }, []string{"rules[0].verbs: Required value",
			"rules[0].apiGroups: Required value: resource rules must supply at least one api group", "rules[0].resources: Required value: resource rules must supply at least one resource"}},
		{"url", func(r *rbacv1.Role) {
			r.Rules[0] = rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: []string{"/x"}}
		},
			[]string{`rules[0].nonResourceURLs: Invalid value: ["/x"]: namespaced rules cannot apply to non-resource URLs`}},
	})
	binding := namespacedMeta + "roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: r}\nsubjects: [{kind: ServiceAccount, name: sa, namespace: default}]\n"
	checkUpdate(t, binding, RoleBindingUpdate, []change[rbacv1.RoleBinding]{
		{"role", func(b *rbacv1.RoleBinding) { b.RoleRef.Name = "x" }, []string{`roleRef: Invalid value: {"APIGroup":"rbac.authorization.k8s.io","Kind":"Role","Name":"x"}: cannot change roleRef`}},
		{"subject", func(b *rbacv1.RoleBinding) { b.Subjects[0].Kind = "Robot" }, []string{`subjects[0].kind: Unsupported value: "Robot": supported values: "ServiceAccount", "User", "Group"`}},
	})
}

func TestPolicies(t *testing.T) {
	checkNew(t, clusterMeta+"value: 100\n", PriorityClass, []change[schedulingv1.PriorityClass]{
		{"high", func(p *schedulingv1.PriorityClass) { p.Value = 1000000001 }, []string{"value: Forbidden: maximum allowed value of a user defined priority is 1000000000"}},
		{"system", func(p *schedulingv1.PriorityClass) { p.Name = "system-x" },
			[]string{"metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-x is not a known system priority class"}},
	})
	checkNew(t, namespacedMeta+"spec: {limits: [{type: Container, min: {cpu: 1}, max: {cpu: 2}}]}\n", LimitRange, []change[corev1.LimitRange]{
		{"order", func(l *corev1.LimitRange) { l.Spec.Limits[0].Min["cpu"] = resource.MustParse("3") }, []string{`spec.limits[0].min[cpu]: Invalid value: "3": min value 3 is greater than max value 2`}},
	})
	checkNew(t, namespacedMeta+"spec: {hard: {pods: 5, requests.cpu: 1, count/jobs.batch: 3}}\n", ResourceQuota, []change[corev1.ResourceQuota]{
		{"name", func(q *corev1.ResourceQuota) { q.Spec.Hard["storage"] = resource.MustParse("1") }, []string{`spec.hard[storage]: Invalid value: "storage": must be a standard resource for quota`}},
		{"scope", func(q *corev1.ResourceQuota) { q.Spec.Scopes = []corev1.ResourceQuotaScope{"BestEffort"} },
			[]string{`spec.scopes: Invalid value: ["BestEffort"]: unsupported scope applied to resource`}},
	})
	checkNew(t, namespacedMeta+"spec: {holderIdentity: a, leaseDurationSeconds: 15}\n", Lease, []change[coordinationv1.Lease]{
		{"zero", func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = ptr(int32(0)) }, []string{"spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"}},
	})
	checkNew(t, namespacedMeta+"spec: {minAvailable: 1, selector: {}}\n", PodDisruptionBudget, []change[policyv1.PodDisruptionBudget]{
		{"percent", func(b *policyv1.PodDisruptionBudget) { b.Spec.MinAvailable = ptr(intstr.FromString("120%")) }, []string{`spec.minAvailable: Invalid value: "120%": must not be greater than 100%`}},
	})
	checkNew(t, namespacedMeta+"involvedObject: {namespace: default}\n", Event, []change[corev1.Event]{
		{"namespace", func(e *corev1.Event) { e.InvolvedObject.Namespace = "x" }, []string{`involvedObject.namespace: Invalid value: "x": does not match event.namespace`}},
	})
}

func TestNetworkAndStorage(t *testing.T) {
	checkNew(t, namespacedMeta+"spec: {rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}\n", Ingress, []change[networkingv1.Ingress]{
		{"path", func(i *networkingv1.Ingress) { i.Spec.Rules[0].HTTP.Paths[0].Path = "x" }, []string{`spec.rules[0].http.paths[0].path: Invalid value: "x": must be an absolute path`}},
		{"backend", func(i *networkingv1.Ingress) { i.Spec.Rules[0].HTTP.Paths[0].Backend.Service = nil }, []string{`spec.rules[0].http.paths[0].backend: Invalid value: "": resource or service backend is required`}},
	})
	checkNew(t, namespacedMeta+"spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]}\n", NetworkPolicy, []change[networkingv1.NetworkPolicy]{
		{"except", func(p *networkingv1.NetworkPolicy) { p.Spec.Ingress[0].From[0].IPBlock.Except[0] = "11.0.0.0/16" },
			[]string{"spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`"}},
		{"peer", func(p *networkingv1.NetworkPolicy) { p.Spec.Ingress[0].From[0].IPBlock = nil }, []string{"spec.ingress[0].from[0]: Required value: must specify a peer"}},
	})
	checkNew(t, namespacedMeta+"spec: {minReplicas: 1, maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: web, apiVersion: apps/v1}, metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}]}\n", HorizontalPodAutoscaler, []change[autoscalingv2.HorizontalPodAutoscaler]{
		{"bounds", func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Spec.MinReplicas = ptr(int32(5)) }, []string{"spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`"}},
	})
	claim := namespacedMeta + "spec: {accessModes: [ReadWriteOnce], volumeMode: Filesystem, resources: {requests: {storage: 1Gi}}}\n"
	checkNew(t, claim, PersistentVolumeClaim, []change[corev1.PersistentVolumeClaim]{
		{"modes", func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes = nil }, []string{"spec.accessModes: Required value: at least 1 access mode is required"}},
		{"size", func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = nil }, []string{"spec.resources[storage]: Required value"}},
	})
	grown := parse[corev1.PersistentVolumeClaim](t, strings.Replace(claim, "1Gi", "2Gi", 1))
	bound := parse[corev1.PersistentVolumeClaim](t, claim)
	grown.Status.Phase, bound.Status.Phase = corev1.ClaimBound, corev1.ClaimBound
	same(t, PersistentVolumeClaimUpdate(grown, bound), nil)
	checkNew(t, clusterMeta+"spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], volumeMode: Filesystem, hostPath: {path: /x}}\n", PersistentVolume, []change[corev1.PersistentVolume]{
		{"none", func(v *corev1.PersistentVolume) { v.Spec.HostPath = nil }, []string{"spec: Required value: must specify a volume type"}},
	})
	checkUpdate(t, clusterMeta+"provisioner: a/b\nvolumeBindingMode: Immediate\n", StorageClassUpdate, []change[storagev1.StorageClass]{
		{"provisioner", func(c *storagev1.StorageClass) { c.Provisioner = "x/y" }, []string{"provisioner: Invalid value: null: field is immutable"}},
	})
	checkNew(t, clusterMeta+"webhooks: [{name: a.b.c, sideEffects: None, admissionReviewVersions: [v1], clientConfig: {service: {name: s, namespace: n, port: 443}}, rules: [{operations: [CREATE], apiGroups: [''], apiVersions: [v1], resources: [pods]}]}]\n", ValidatingWebhookConfiguration, []change[admissionv1.ValidatingWebhookConfiguration]{
		{"client", func(c *admissionv1.ValidatingWebhookConfiguration) { c.Webhooks[0].ClientConfig.Service = nil }, []string{"webhooks[0].clientConfig: Required value: exactly one of url or service is required"}},
		{"timeout", func(c *admissionv1.ValidatingWebhookConfiguration) { c.Webhooks[0].TimeoutSeconds = ptr(int32(31)) }, []string{"webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds"}},
	})
}
