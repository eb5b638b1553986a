package kind

// All is the table of the kinds that are served, in the order in which upstream
// shows their groups in discovery. A row that is declared but not in this list
// is not served (see withheld and declared).
var All = NewTable(
	// core
	Binding, ComponentStatus, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolumeClaim, PersistentVolume, Pod, PodTemplate,
	ReplicationController, ResourceQuota, Secret, ServiceAccount, Service,
	// apps
	ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
	// events.k8s.io
	EventsEvent,
	// authentication.k8s.io, authorization.k8s.io
	SelfSubjectReview, TokenReview,
	LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
	// autoscaling
	HorizontalPodAutoscaler, HorizontalPodAutoscalerV1,
	// batch
	CronJob, Job,
	// certificates.k8s.io
	CertificateSigningRequest, ClusterTrustBundle, PodCertificateRequest,
	// networking.k8s.io
	IngressClass, Ingress, IPAddress, NetworkPolicy, ServiceCIDR,
	// policy
	PodDisruptionBudget,
	// rbac.authorization.k8s.io
	ClusterRoleBinding, ClusterRole, RoleBinding, Role,
	// storage.k8s.io
	CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass,
	// admissionregistration.k8s.io
	MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration,
	ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
	// scheduling.k8s.io
	PriorityClass,
	// coordination.k8s.io
	Lease,
	// node.k8s.io
	RuntimeClass,
	// discovery.k8s.io
	EndpointSlice,
	// flowcontrol.apiserver.k8s.io
	FlowSchema, PriorityLevelConfiguration,
	// resource.k8s.io
	DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice,
	// storagemigration.k8s.io
	StorageVersionMigration,
	// apiextensions.k8s.io
	CustomResourceDefinition,
	// apiregistration.k8s.io
	APIService,
)

// withheld are whole rows that are not served because nothing acts on them yet:
// a policy that is accepted and not enforced would look like protection. Each
// moves to All together with what enforces it.
var withheld = []*Kind{}
