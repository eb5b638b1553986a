package validate

import (
	"testing"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Rules that were compared with the release one by one: what was missing, or said
// something else.

const serviceText = namespacedMeta + `
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, protocol: TCP}]
  sessionAffinity: None
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00::10"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: PreferDualStack
  allocateLoadBalancerNodePorts: true
  internalTrafficPolicy: Cluster
  externalTrafficPolicy: Local
  healthCheckNodePort: 30100
`

func TestServiceRules(t *testing.T) {
	type s = corev1.Service
	checkNew(t, serviceText, Service, []change[s]{
		{"annotations", func(s *s) {
			s.Annotations = map[string]string{"service.kubernetes.io/topology-mode": "Auto", "service.kubernetes.io/topology-aware-hints": "Disabled"}
		}, []string{`metadata.annotations[service.kubernetes.io/topology-mode]: Invalid value: "Auto": must match annotations[service.kubernetes.io/topology-aware-hints] when both are specified`}},
		{"any port", func(s *s) { s.Spec.Ports[0].Port = 10250 }, nil},
		{"singular alone", func(s *s) { s.Spec.ClusterIPs, s.Spec.IPFamilies = nil, nil }, []string{"spec.clusterIPs: Required value"}},
		{"plural alone", func(s *s) { s.Spec.ClusterIP = "" },
			[]string{"spec.clusterIPs: Invalid value: [\"10.96.0.10\",\"fd00::10\"]: must be empty when `clusterIP` is not specified"}},
		{"other first", func(s *s) { s.Spec.ClusterIP = "10.96.0.11" },
			[]string{"spec.clusterIPs: Invalid value: [\"10.96.0.10\",\"fd00::10\"]: first value must match `clusterIP`"}},
		{"none and more", func(s *s) { s.Spec.ClusterIP, s.Spec.ClusterIPs[0] = "None", "None" },
			[]string{`spec.clusterIPs: Invalid value: ["None","fd00::10"]: 'None' must be the first and only value`}},
		{"one family", func(s *s) { s.Spec.ClusterIPs[1], s.Spec.IPFamilies = "10.96.0.11", nil },
			[]string{`spec.clusterIPs: Invalid value: ["10.96.0.10","10.96.0.11"]: may specify no more than one IP for each IP family`}},
		{"families", func(s *s) { s.Spec.IPFamilies = []corev1.IPFamily{"IPv4", "IPv4"} },
			[]string{`spec.ipFamilies[1]: Duplicate value: "IPv4"`, "spec.clusterIPs[1]: Invalid value: \"fd00::10\": expected an IPv4 value as indicated by `ipFamilies[1]`"}},
		{"policy", func(s *s) { s.Spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicy("Both")) },
			[]string{`spec.ipFamilyPolicy: Unsupported value: "Both": supported values: "PreferDualStack", "RequireDualStack", "SingleStack"`}},
		{"ranges", func(s *s) { s.Spec.LoadBalancerSourceRanges = []string{" 10.0.0.0/8 ", "10.0.0.0"} },
			[]string{`spec.LoadBalancerSourceRanges[1]: Invalid value: "10.0.0.0": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`}},
		{"ranges in the annotation", func(s *s) {
			s.Annotations = map[string]string{corev1.AnnotationLoadBalancerSourceRangesKey: "10.0.0.0/8, x"}
		}, []string{`metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]: Invalid value: "x": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`}},
	})
	checkUpdate(t, serviceText, ServiceUpdate, []change[s]{
		{"second given up", func(s *s) { s.Spec.ClusterIPs, s.Spec.IPFamilies = s.Spec.ClusterIPs[:1], s.Spec.IPFamilies[:1] },
			[]string{`spec.ipFamilyPolicy: Invalid value: "PreferDualStack": must be set to 'SingleStack' when releasing the secondary clusterIP`,
				`spec.ipFamilyPolicy: Invalid value: "PreferDualStack": must be set to 'SingleStack' when releasing the secondary ipFamily`}},
		{"second given up rightly", func(s *s) {
			s.Spec.ClusterIPs, s.Spec.IPFamilies, s.Spec.IPFamilyPolicy = s.Spec.ClusterIPs[:1], s.Spec.IPFamilies[:1], ptr(corev1.IPFamilyPolicySingleStack)
		}, nil},
		{"first family", func(s *s) { s.Spec.IPFamilies = nil }, nil},
		{"check port", func(s *s) { s.Spec.HealthCheckNodePort = 30101 }, []string{"spec.healthCheckNodePort: Forbidden: field is immutable"}},
		{"class", func(s *s) { s.Spec.LoadBalancerClass = ptr("a.example/b") },
			[]string{`spec.loadBalancerClass: Invalid value: "a.example/b": may not change once set`}},
		{"label once", func(s *s) { s.Labels = map[string]string{"a b": ""} },
			[]string{`metadata.labels: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')`}},
	})
	checkUpdate(t, serviceText, ServiceStatusUpdate, []change[s]{
		{"not balanced", func(s *s) {
			s.Spec.Type = "NodePort"
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{Hostname: "a.example"}}
		}, []string{"status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"}},
	})
}

func TestNetworkRules(t *testing.T) {
	checkNew(t, namespacedMeta+"spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 80}], from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]}\n", NetworkPolicy, []change[networkingv1.NetworkPolicy]{
		{"protocol", func(p *networkingv1.NetworkPolicy) {
			p.Spec.Ingress[0].Ports[0].Protocol = ptr(corev1.Protocol("ICMP"))
		},
			[]string{`spec.ingress[0].ports[0].protocol: Unsupported value: "ICMP": supported values: "TCP", "UDP", "SCTP"`}},
		{"end of a name", func(p *networkingv1.NetworkPolicy) {
			p.Spec.Ingress[0].Ports[0] = networkingv1.NetworkPolicyPort{Port: ptr(intstr.FromString("http")), EndPort: ptr(int32(90))}
		}, []string{"spec.ingress[0].ports[0].endPort: Invalid value: 90: may not be specified when `port` is non-numeric"}},
		{"end of nothing", func(p *networkingv1.NetworkPolicy) {
			p.Spec.Ingress[0].Ports[0] = networkingv1.NetworkPolicyPort{EndPort: ptr(int32(90))}
		}, []string{"spec.ingress[0].ports[0].endPort: Invalid value: 90: may not be specified when `port` is not specified"}},
		{"types", func(p *networkingv1.NetworkPolicy) { p.Spec.PolicyTypes[0] = "Both" },
			[]string{`spec.policyTypes[0]: Unsupported value: "Both": supported values: "Ingress", "Egress"`}},
		{"range", func(p *networkingv1.NetworkPolicy) {
			p.Spec.Ingress[0].From[0].IPBlock = &networkingv1.IPBlock{CIDR: "x", Except: []string{"y"}}
		}, []string{`spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "x": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`}},
	})
	ingress := namespacedMeta + "spec: {ingressClassName: a, rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}], tls: [{secretName: s}]}\n"
	checkNew(t, ingress, Ingress, []change[networkingv1.Ingress]{
		{"two classes", func(i *networkingv1.Ingress) { i.Annotations = map[string]string{"kubernetes.io/ingress.class": "b"} },
			[]string{"annotations.kubernetes.io/ingress.class: Invalid value: \"b\": must match `ingressClassName` when both are specified"}},
		{"one class twice", func(i *networkingv1.Ingress) { i.Annotations = map[string]string{"kubernetes.io/ingress.class": "a"} }, nil},
		{"resource", func(i *networkingv1.Ingress) {
			i.Spec.DefaultBackend = &networkingv1.IngressBackend{Resource: &corev1.TypedLocalObjectReference{Kind: "Bucket", Name: "b"}}
		}, nil},
	})
	was := parse[networkingv1.Ingress](t, ingress)
	was.Spec.TLS[0].SecretName = "a/b"
	same(t, IngressUpdate(was.DeepCopy(), was), nil)

	checkNew(t, clusterMeta+"spec: {controller: a.example/b, parameters: {kind: K, name: n, scope: Namespace, namespace: x}}\n", IngressClass, []change[networkingv1.IngressClass]{
		{"namespace", func(c *networkingv1.IngressClass) { c.Spec.Parameters.Namespace = nil },
			[]string{"spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"}},
	})
	checkNew(t, "metadata: {name: 10.0.0.1}\nspec: {parentRef: {resource: services, name: web}}\n", IPAddress, []change[networkingv1.IPAddress]{
		{"name", func(a *networkingv1.IPAddress) { a.Name = "web" },
			[]string{`metadata.name: Invalid value: "web": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`}},
	})
	checkNew(t, clusterMeta+"spec: {cidrs: [10.0.0.0/8]}\n", ServiceCIDR, []change[networkingv1.ServiceCIDR]{
		{"same family", func(c *networkingv1.ServiceCIDR) { c.Spec.CIDRs = append(c.Spec.CIDRs, "192.168.0.0/16") },
			[]string{`spec.cidrs: Invalid value: ["10.0.0.0/8","192.168.0.0/16"]: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64`}},
	})
	checkUpdate(t, clusterMeta+"spec: {cidrs: [10.0.0.0/8]}\n", ServiceCIDRUpdate, []change[networkingv1.ServiceCIDR]{
		{"other", func(c *networkingv1.ServiceCIDR) { c.Spec.CIDRs[0] = "192.168.0.0/16" },
			[]string{`spec.cidrs[0]: Invalid value: "192.168.0.0/16": field is immutable`}},
		{"second", func(c *networkingv1.ServiceCIDR) { c.Spec.CIDRs = append(c.Spec.CIDRs, "fd00::/64") }, nil},
		{"none", func(c *networkingv1.ServiceCIDR) { c.Spec.CIDRs = nil }, []string{"spec.cidrs: Invalid value: null: field is immutable"}},
	})
	slice := namespacedMeta + "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], hints: {forZones: [{name: a}]}}]\n"
	checkNew(t, slice, EndpointSlice, []change[discoveryv1.EndpointSlice]{
		{"zone", func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Hints.ForZones[0].Name = "a/b" },
			[]string{`endpoints[0].hints.forZones[0].name: Invalid value: "a/b": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')`}},
		{"topology", func(s *discoveryv1.EndpointSlice) {
			s.Endpoints[0].DeprecatedTopology = map[string]string{corev1.LabelTopologyZone: "a"}
		}, []string{"endpoints[0].deprecatedTopology[topology.kubernetes.io/zone]: Internal error: reserved key was not removed in conversion"}},
	})
	old := parse[corev1.Endpoints](t, namespacedMeta+"subsets: [{addresses: [{ip: 127.0.0.1}]}]\n")
	same(t, EndpointsUpdate(old.DeepCopy(), old), nil)
}

func TestClaimRules(t *testing.T) {
	type c = corev1.PersistentVolumeClaim
	text := namespacedMeta + `
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
  storageClassName: fast
  volumeMode: Filesystem
  volumeName: v
  volumeAttributesClassName: gold
status: {phase: Bound, capacity: {storage: 1Gi}, currentVolumeAttributesClassName: gold}
`
	checkNew(t, text, PersistentVolumeClaim, []change[c]{
		{"core source", func(c *c) { c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "Pod", Name: "p"} },
			[]string{`spec.dataSource: Invalid value: "Pod": must be 'PersistentVolumeClaim' when referencing the default apiGroup`}},
		{"no storage", func(c *c) { c.Spec.Resources.Requests = nil }, []string{"spec.resources[storage]: Required value"}},
	})
	checkUpdate(t, text, PersistentVolumeClaimUpdate, []change[c]{
		{"grow", func(c *c) { c.Spec.Resources.Requests["storage"] = resource.MustParse("2Gi") }, nil},
		{"shrink", func(c *c) { c.Spec.Resources.Requests["storage"] = resource.MustParse("500Mi") },
			[]string{"spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"}},
		{"attributes", func(c *c) { c.Spec.VolumeAttributesClassName = ptr("silver") }, nil},
		{"no attributes", func(c *c) { c.Spec.VolumeAttributesClassName = nil },
			[]string{"spec.volumeAttributesClassName: Forbidden: update to nil is forbidden when status.currentVolumeAttributesClassName is not nil"}},
		{"empty attributes", func(c *c) { c.Spec.VolumeAttributesClassName = ptr("") },
			[]string{"spec.volumeAttributesClassName: Forbidden: update to empty string is forbidden when status.currentVolumeAttributesClassName is not nil"}},
		{"class annotation", func(c *c) { c.Annotations = map[string]string{corev1.BetaStorageClassAnnotation: "x"} },
			[]string{`metadata.annotations.volume.beta.kubernetes.io/storage-class: Invalid value: "x": field is immutable`}},
	})
	old := parse[c](t, text)
	old.Spec.StorageClassName, old.Annotations = nil, map[string]string{corev1.BetaStorageClassAnnotation: "fast"}
	same(t, PersistentVolumeClaimUpdate(parse[c](t, text), old), nil) // from the annotation to the field
	checkUpdate(t, text, PersistentVolumeClaimStatusUpdate, []change[c]{
		{"resize", func(c *c) {
			c.Status.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{"storage": "Soon", "cpu": "NodeResizePending"}
		}, []string{`status.allocatedResourceStatuses: Unsupported value: "storage": supported values: "ControllerResizeInProgress", "ControllerResizeInfeasible", "NodeResizeInProgress", "NodeResizeInfeasible", "NodeResizePending"`,
			`status.allocatedResourceStatuses: Unsupported value: "cpu": supported values: "storage"`}},
		{"capacity", func(c *c) { c.Status.Capacity["storage"] = resource.MustParse("-1") },
			[]string{"status.capacity[storage]: Invalid value: -1: must be a valid resource quantity"}},
	})
}

func TestVolumeRules(t *testing.T) {
	type v = corev1.PersistentVolume
	text := clusterMeta + `
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: 1Gi}
  persistentVolumeReclaimPolicy: Delete
  volumeMode: Filesystem
  csi: {driver: d.example.com, volumeHandle: h}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: failure-domain.beta.kubernetes.io/zone, operator: In, values: [a]}]}]}}
`
	checkNew(t, text, PersistentVolume, []change[v]{
		{"two sources", func(v *v) { v.Spec.HostPath = &corev1.HostPathVolumeSource{Path: "/data"} },
			[]string{"spec.csi: Forbidden: may not specify more than 1 volume type"}},
		{"negative", func(v *v) { v.Spec.Capacity["storage"] = resource.MustParse("-1") },
			[]string{"spec.capacity[storage]: Invalid value: -1: must be a valid resource quantity", `spec.capacity[storage]: Invalid value: "-1": must be greater than zero`}},
		{"disk", func(v *v) {
			v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{GCEPersistentDisk: &corev1.GCEPersistentDiskVolumeSource{PDName: "d", Partition: 256}}
		}, []string{"spec.persistentDisk.partition: Invalid value: 256: must be between 1 and 255, inclusive"}},
		{"stage secret", func(v *v) { v.Spec.CSI.NodeStageSecretRef = &corev1.SecretReference{} }, nil},
		{"secret", func(v *v) { v.Spec.CSI.NodePublishSecretRef = &corev1.SecretReference{} },
			[]string{"spec.csi.nodePublishSecretRef.name: Required value", "spec.csi.nodePublishSecretRef.namespace: Required value"}},
		{"cinder", func(v *v) {
			v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{Cinder: &corev1.CinderPersistentVolumeSource{VolumeID: "x", SecretRef: &corev1.SecretReference{Name: "s"}}}
		}, []string{"spec.cinder.secretRef.namespace: Required value"}},
	})
	checkUpdate(t, text, PersistentVolumeUpdate, []change[v]{
		{"secret for growing", func(v *v) {
			v.Spec.CSI.ControllerExpandSecretRef = &corev1.SecretReference{Name: "s", Namespace: "n"}
		}, nil},
		{"stable label", func(v *v) {
			v.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Key = corev1.LabelTopologyZone
		}, nil},
		{"place", func(v *v) {
			v.Spec.NodeAffinity = nil
		}, []string{"nodeAffinity: Invalid value: null: field is immutable, except for updating from beta label to GA"}},
		{"mode", func(v *v) { v.Spec.VolumeMode = ptr(corev1.PersistentVolumeBlock) },
			[]string{`volumeMode: Invalid value: "Block": field is immutable`}},
	})
	checkNew(t, clusterMeta+"spec: {attacher: d.example.com, nodeName: n, source: {inlineVolumeSpec: {accessModes: [ReadWriteOnce], csi: {driver: d.example.com, volumeHandle: h}}}}\n", VolumeAttachment, []change[storagev1.VolumeAttachment]{
		{"inline", func(a *storagev1.VolumeAttachment) {
			s := a.Spec.Source.InlineVolumeSpec
			s.CSI, s.StorageClassName, s.HostPath = nil, "x", &corev1.HostPathVolumeSource{Path: "/data"}
		}, []string{"spec.source.inlineVolumeSpec.csi: Required value: has to be specified in the context of inline volumes",
			"spec.source.inlineVolumeSpec.storageClassName: Forbidden: may not be specified in the context of inline volumes"}},
		{"code", func(a *storagev1.VolumeAttachment) {
			a.Status.AttachError = &storagev1.VolumeError{ErrorCode: ptr(int32(-1))}
		}, []string{"status.attachError.errorCode: Invalid value: -1: must be between 0 and 2147483647, inclusive"}},
	})
}

func TestStorageKinds(t *testing.T) {
	checkNew(t, clusterMeta+"provisioner: a.example/b\nvolumeBindingMode: Immediate\nallowedTopologies: [{matchLabelExpressions: [{key: zone, values: [a]}]}]\n", StorageClass, []change[storagev1.StorageClass]{
		{"nothing", func(c *storagev1.StorageClass) { c.AllowedTopologies[0].MatchLabelExpressions = nil },
			[]string{`allowedTopologies[0].matchLabelExpressions: Duplicate value: ""`}},
		{"twice", func(c *storagev1.StorageClass) {
			c.AllowedTopologies = append(c.AllowedTopologies, c.AllowedTopologies[0])
		},
			[]string{`allowedTopologies[1].matchLabelExpressions: Duplicate value: ""`}},
	})
	checkNew(t, "metadata: {name: d.example.com}\nspec: {attachRequired: true, podInfoOnMount: false, storageCapacity: false, seLinuxMount: false, volumeLifecycleModes: [Persistent]}\n", CSIDriver, []change[storagev1.CSIDriver]{
		{"attach", func(d *storagev1.CSIDriver) { d.Spec.AttachRequired = nil }, []string{"spec.attachedRequired: Required value"}},
		{"modes", func(d *storagev1.CSIDriver) { d.Spec.VolumeLifecycleModes[0] = "Short" },
			[]string{`spec.volumeLifecycleModes: Unsupported value: "Short": supported values: "Persistent", "Ephemeral"`}},
	})
	checkUpdate(t, clusterMeta+"spec: {drivers: [{name: d.example.com, nodeID: a, topologyKeys: [k]}]}\n", CSINodeUpdate, []change[storagev1.CSINode]{
		{"node", func(n *storagev1.CSINode) { n.Spec.Drivers[0].NodeID = "b" },
			[]string{`spec.drivers: Invalid value: {"Name":"d.example.com","NodeID":"b","TopologyKeys":["k"],"Allocatable":null}: field is immutable`}},
		{"key", func(n *storagev1.CSINode) {
			n.Spec.Drivers = append(n.Spec.Drivers, storagev1.CSINodeDriver{Name: "e", NodeID: "b", TopologyKeys: []string{"k", "k"}})
		},
			[]string{`spec.drivers[1]: Duplicate value: "k"`}},
	})
	checkUpdate(t, clusterMeta+"driverName: d.example.com\nparameters: {a: b}\n", VolumeAttributesClassUpdate, []change[storagev1.VolumeAttributesClass]{
		{"none", func(c *storagev1.VolumeAttributesClass) { c.Parameters = nil },
			[]string{"parameters: Forbidden: updates to parameters are forbidden.", "parameters: Required value: must contain at least one key/value pair"}},
	})
}

func TestAutoscalerRules(t *testing.T) {
	type h = autoscalingv2.HorizontalPodAutoscaler
	text := namespacedMeta + "spec: {minReplicas: 1, maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: web}, metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}]}\n"
	checkNew(t, text, HorizontalPodAutoscaler, []change[h]{
		{"zero", func(h *h) { h.Spec.MinReplicas = ptr(int32(0)) },
			[]string{"spec.metrics: Forbidden: must specify at least one Object or External metric to support scaling to zero replicas"}},
		{"negative", func(h *h) { h.Spec.MinReplicas = ptr(int32(-1)) }, []string{"spec.minReplicas: Invalid value: -1: must be greater than or equal to 0"}},
		{"zero of a queue", func(h *h) {
			h.Spec.MinReplicas = ptr(int32(0))
			h.Spec.Metrics = []autoscalingv2.MetricSpec{{Type: "External", External: &autoscalingv2.ExternalMetricSource{
				Metric: autoscalingv2.MetricIdentifier{Name: "q"}, Target: autoscalingv2.MetricTarget{Type: "Value", Value: ptr(resource.MustParse("1"))}}}}
		}, nil},
		{"no most", func(h *h) { h.Spec.MaxReplicas = 0 },
			[]string{"spec.maxReplicas: Required value", "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`"}},
		{"kind", func(h *h) { h.Spec.Metrics[0].Type = "Nothing" },
			[]string{`spec.metrics[0].type: Unsupported value: "Nothing": supported values: "ContainerResource", "External", "Object", "Pods", "Resource"`}},
		{"two", func(h *h) { h.Spec.Metrics[0].Pods = &autoscalingv2.PodsMetricSource{} },
			[]string{"spec.metrics[0].pods.metric.name: Required value: must specify a metric name",
				"spec.metrics[0].pods.target.type: Required value: must specify a metric target type",
				`spec.metrics[0].pods.target.type: Invalid value: "": must be either Utilization, Value, or AverageValue`,
				"spec.metrics[0].pods.target.averageValue: Required value: must specify a positive target averageValue",
				"spec.metrics[0].pods: Forbidden: must populate the given metric source only"}},
		{"container", func(h *h) {
			r := h.Spec.Metrics[0].Resource
			h.Spec.Metrics[0] = autoscalingv2.MetricSpec{Type: "ContainerResource", ContainerResource: &autoscalingv2.ContainerResourceMetricSource{Name: "disk", Target: r.Target}}
		}, []string{"spec.metrics[0].containerResource.container: Required value: must specify a container",
			`spec.metrics[0].containerResource.name: Invalid value: "disk": must be a standard resource type or fully qualified`,
			`spec.metrics[0].containerResource.name: Invalid value: "disk": must be a standard resource for containers`}},
	})
}

func TestPolicyRules(t *testing.T) {
	checkNew(t, namespacedMeta+"spec: {minAvailable: 1, selector: {}}\n", PodDisruptionBudget, []change[policyv1.PodDisruptionBudget]{
		{"any name", func(b *policyv1.PodDisruptionBudget) { b.Name = "Web_1" }, nil},
	})
	checkUpdate(t, namespacedMeta+"spec: {minAvailable: 1, selector: {}}\n", PodDisruptionBudgetStatusUpdate, []change[policyv1.PodDisruptionBudget]{
		{"condition", func(b *policyv1.PodDisruptionBudget) {
			b.Status.Conditions = []metav1.Condition{{Type: "DisruptionAllowed", Status: "True", Reason: "SufficientPods", LastTransitionTime: metav1.Unix(1, 0)}, {Type: "X", LastTransitionTime: metav1.Unix(1, 0), Reason: "R"}}
		}, []string{"status.conditions[1].status: Required value"}},
	})
	checkNew(t, namespacedMeta+"spec: {limits: [{type: PersistentVolumeClaim, min: {storage: 1Gi}}]}\n", LimitRange, []change[corev1.LimitRange]{
		{"neither", func(l *corev1.LimitRange) { l.Spec.Limits[0].Min = nil },
			[]string{"spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither was provided"}},
	})
	checkNew(t, namespacedMeta+"spec: {hard: {pods: 5}, scopeSelector: {matchExpressions: [{scopeName: BestEffort, operator: Exists}]}}\n", ResourceQuota, []change[corev1.ResourceQuota]{
		{"operator", func(q *corev1.ResourceQuota) {
			q.Spec.ScopeSelector.MatchExpressions[0].Operator, q.Spec.ScopeSelector.MatchExpressions[0].Values = "In", []string{"a"}
		}, []string{`spec.scopeSelector.matchExpressions.operator: Invalid value: "In": must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity`}},
		{"other names", func(q *corev1.ResourceQuota) { q.Spec.Hard["count/jobs.batch"] = resource.MustParse("1") }, nil},
		{"scratch", func(q *corev1.ResourceQuota) {
			q.Spec.Hard["requests.ephemeral-storage"], q.Spec.ScopeSelector.MatchExpressions[0].ScopeName = resource.MustParse("1"), "Terminating"
		}, []string{`spec.scopeSelector.matchExpressions: Invalid value: {"MatchExpressions":[{"ScopeName":"Terminating","Operator":"Exists","Values":null}]}: unsupported scope applied to resource`}},
	})
	binding := namespacedMeta + "roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: r}\nsubjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: u}]\n"
	checkNew(t, binding, RoleBinding, []change[rbacv1.RoleBinding]{
		{"nobody", func(b *rbacv1.RoleBinding) { b.Subjects[0].Name = "" },
			[]string{"subjects[0].name: Required value", `subjects[0].name: Invalid value: "": user name cannot be empty`}},
	})
}

func TestNodeRules(t *testing.T) {
	text := clusterMeta + "status: {capacity: {cpu: 1}, declaredFeatures: [A, B/c]}\n"
	changes := []change[corev1.Node]{
		{"capacity", func(n *corev1.Node) { n.Status.Capacity["cpu"] = resource.MustParse("-1") },
			[]string{`status.capacity.cpu: Invalid value: "-1": must be greater than or equal to 0`}},
		{"features", func(n *corev1.Node) { n.Status.DeclaredFeatures = []string{"B", "A", "A", "c"} },
			[]string{`status.declaredFeatures[1]: Invalid value: "A": list must be sorted alphabetically`, `status.declaredFeatures[2]: Duplicate value: "A"`,
				`status.declaredFeatures[3]: Invalid value: "c": invalid feature name "c": must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes`}},
		{"taints annotation", func(n *corev1.Node) {
			n.Annotations = map[string]string{"scheduler.alpha.kubernetes.io/taints": `[{"key":"a","effect":"Now"}]`}
		}, []string{`metadata.annotations.scheduler.alpha.kubernetes.io/taints[0].effect: Unsupported value: "Now": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"`}},
	}
	checkNew(t, text, Node, changes)
	checkUpdate(t, text, NodeUpdate, append(changes, change[corev1.Node]{"id", func(n *corev1.Node) { n.Spec.DoNotUseExternalID = "x" },
		[]string{"spec.externalID: Forbidden: may not be updated"}}, change[corev1.Node]{"configuration", func(n *corev1.Node) {
		n.Spec.ConfigSource = &corev1.NodeConfigSource{ConfigMap: &corev1.ConfigMapNodeConfigSource{Namespace: "n", Name: "c", UID: "1"}}
	}, []string{"spec.configSource.configMap.uid: Forbidden: uid must not be set in spec", "spec.configSource.configMap.kubeletConfigKey: Required value"}}))
}
