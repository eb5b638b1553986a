package kind

import (
	"reflect"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Describe says what a column shows. Most columns show a field: they are described
// as the API describes the field.
func (k *Kind) Describe(c Column) string {
	if c.Description != "" {
		return c.Description
	}
	switch c.Name {
	case "Name":
		return metav1.ObjectMeta{}.SwaggerDoc()["name"]
	case "Age", "Created At":
		return metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]
	}
	root := k.Root()
	text, ok := columnDocs[root.Kind+"/"+c.Name]
	if !ok {
		text = columnDocs[c.Name]
	}
	if path, ok := strings.CutPrefix(text, "."); ok && !strings.Contains(path, " ") {
		return fieldDoc(reflect.TypeOf(root.New()), strings.Split(path, "."))
	}
	return text
}

// fieldDoc is the API's description of the field at path below t; "" when there is
// no such field.
func fieldDoc(t reflect.Type, path []string) string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return ""
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" && strings.Contains(options, "inline") {
			if doc := fieldDoc(f.Type, path); doc != "" {
				return doc
			}
			continue
		}
		if name != path[0] {
			continue
		}
		if len(path) > 1 {
			return fieldDoc(f.Type, path[1:])
		}
		if d, ok := reflect.New(t).Interface().(interface{ SwaggerDoc() map[string]string }); ok {
			return d.SwaggerDoc()[name]
		}
	}
	return ""
}

// columnDocs describe columns by kind and name, or by name alone: with a path to the
// field that is shown, or in words where what is shown is no field.
var columnDocs = map[string]string{
	"Containers": "Names of the containers in the template.",
	"Images":     "Images of the containers in the template.",
	"Selector":   ".spec.selector",

	"APIService/Service":                                  "Service that serves the group, or Local.",
	"APIService/Available":                                "Whether the group is served.",
	"CSIDriver/AttachRequired":                            ".spec.attachRequired",
	"CSIDriver/PodInfoOnMount":                            ".spec.podInfoOnMount",
	"CSIDriver/StorageCapacity":                           ".spec.storageCapacity",
	"CSIDriver/TokenRequests":                             ".spec.tokenRequests",
	"CSIDriver/RequiresRepublish":                         ".spec.requiresRepublish",
	"CSIDriver/Modes":                                     ".spec.volumeLifecycleModes",
	"CSINode/Drivers":                                     "How many storage drivers run on the node.",
	"CSIStorageCapacity/StorageClassName":                 ".storageClassName",
	"CSIStorageCapacity/Capacity":                         ".capacity",
	"CertificateSigningRequest/SignerName":                ".spec.signerName",
	"CertificateSigningRequest/Requestor":                 ".spec.request",
	"CertificateSigningRequest/RequestedDuration":         ".spec.expirationSeconds",
	"CertificateSigningRequest/Condition":                 ".status.conditions",
	"ClusterRoleBinding/Role":                             ".roleRef",
	"ClusterRoleBinding/Users":                            "Users that get the role.",
	"ClusterRoleBinding/Groups":                           "Groups that get the role.",
	"ClusterRoleBinding/ServiceAccounts":                  "Service accounts that get the role.",
	"ClusterTrustBundle/SignerName":                       ".spec.signerName",
	"ComponentStatus/Status":                              "Whether the part is healthy.",
	"ComponentStatus/Message":                             "What the part says about its health.",
	"ComponentStatus/Error":                               "What is wrong with the part.",
	"ConfigMap/Data":                                      ".data",
	"ControllerRevision/Controller":                       "The object whose past this is.",
	"ControllerRevision/Revision":                         ".revision",
	"CronJob/Schedule":                                    ".spec.schedule",
	"CronJob/Timezone":                                    ".spec.timeZone",
	"CronJob/Suspend":                                     ".spec.suspend",
	"CronJob/Active":                                      ".status.active",
	"CronJob/Last Schedule":                               ".status.lastScheduleTime",
	"CronJob/Selector":                                    ".spec.jobTemplate.spec.selector",
	"DaemonSet/Desired":                                   ".status.desiredNumberScheduled",
	"DaemonSet/Current":                                   ".status.currentNumberScheduled",
	"DaemonSet/Ready":                                     ".status.numberReady",
	"DaemonSet/Up-to-date":                                ".status.updatedNumberScheduled",
	"DaemonSet/Available":                                 ".status.numberAvailable",
	"DaemonSet/Node Selector":                             ".spec.template.spec.nodeSelector",
	"Deployment/Ready":                                    "How many of the wanted pods are ready.",
	"Deployment/Up-to-date":                               ".status.updatedReplicas",
	"Deployment/Available":                                ".status.availableReplicas",
	"EndpointSlice/AddressType":                           ".addressType",
	"EndpointSlice/Ports":                                 ".ports",
	"EndpointSlice/Endpoints":                             ".endpoints",
	"Endpoints/Endpoints":                                 ".subsets",
	"Event/Last Seen":                                     ".lastTimestamp",
	"Event/Type":                                          ".type",
	"Event/Reason":                                        ".reason",
	"Event/Object":                                        ".involvedObject",
	"Event/Subobject":                                     ".involvedObject.fieldPath",
	"Event/Source":                                        ".source",
	"Event/Message":                                       ".message",
	"Event/First Seen":                                    ".firstTimestamp",
	"Event/Count":                                         ".count",
	"FlowSchema/PriorityLevel":                            ".spec.priorityLevelConfiguration.name",
	"FlowSchema/MatchingPrecedence":                       ".spec.matchingPrecedence",
	"FlowSchema/DistinguisherMethod":                      ".spec.distinguisherMethod",
	"FlowSchema/MissingPL":                                "Whether the priority level is missing.",
	"HorizontalPodAutoscaler/Reference":                   ".spec.scaleTargetRef",
	"HorizontalPodAutoscaler/Targets":                     ".spec.metrics",
	"HorizontalPodAutoscaler/MinPods":                     ".spec.minReplicas",
	"HorizontalPodAutoscaler/MaxPods":                     ".spec.maxReplicas",
	"HorizontalPodAutoscaler/Replicas":                    ".status.currentReplicas",
	"IPAddress/ParentRef":                                 ".spec.parentRef",
	"Ingress/Class":                                       "Name of the class of ingress controllers.",
	"Ingress/Hosts":                                       "Hosts of the rules.",
	"Ingress/Address":                                     "Where the ingress can be reached.",
	"Ingress/Ports":                                       "Ports that are open.",
	"IngressClass/Controller":                             ".spec.controller",
	"IngressClass/Parameters":                             ".spec.parameters",
	"Job/Status":                                          "State of the job in one word.",
	"Job/Completions":                                     ".status.succeeded",
	"Job/Duration":                                        "How long the job has run.",
	"Lease/Holder":                                        ".spec.holderIdentity",
	"MutatingAdmissionPolicy/Mutations":                   "How many mutations the policy has.",
	"MutatingAdmissionPolicy/ParamKind":                   ".spec.paramKind",
	"MutatingAdmissionPolicyBinding/PolicyName":           ".spec.policyName",
	"MutatingAdmissionPolicyBinding/ParamRef":             ".spec.paramRef",
	"MutatingWebhookConfiguration/Webhooks":               "How many webhooks there are.",
	"Namespace/Status":                                    ".status.phase",
	"NetworkPolicy/Pod-Selector":                          ".spec.podSelector",
	"Node/Status":                                         "Whether the node is ready, and takes pods.",
	"Node/Roles":                                          "Roles that labels give to the node.",
	"Node/Version":                                        ".status.nodeInfo.kubeletVersion",
	"Node/Internal-IP":                                    ".status.addresses",
	"Node/External-IP":                                    ".status.addresses",
	"Node/OS-Image":                                       ".status.nodeInfo.osImage",
	"Node/Kernel-Version":                                 ".status.nodeInfo.kernelVersion",
	"Node/Container-Runtime":                              ".status.nodeInfo.containerRuntimeVersion",
	"PersistentVolume/Capacity":                           ".spec.capacity",
	"PersistentVolume/Access Modes":                       ".spec.accessModes",
	"PersistentVolume/Reclaim Policy":                     ".spec.persistentVolumeReclaimPolicy",
	"PersistentVolume/Status":                             ".status.phase",
	"PersistentVolume/Claim":                              ".spec.claimRef",
	"PersistentVolume/StorageClass":                       ".spec.storageClassName",
	"PersistentVolume/VolumeAttributesClass":              ".spec.volumeAttributesClassName",
	"PersistentVolume/Reason":                             ".status.reason",
	"PersistentVolume/VolumeMode":                         ".spec.volumeMode",
	"PersistentVolumeClaim/Status":                        ".status.phase",
	"PersistentVolumeClaim/Volume":                        ".spec.volumeName",
	"PersistentVolumeClaim/Capacity":                      ".status.capacity",
	"PersistentVolumeClaim/Access Modes":                  ".status.accessModes",
	"PersistentVolumeClaim/StorageClass":                  ".spec.storageClassName",
	"PersistentVolumeClaim/VolumeAttributesClass":         ".spec.volumeAttributesClassName",
	"PersistentVolumeClaim/VolumeMode":                    ".spec.volumeMode",
	"Pod/Ready":                                           "How many of the containers are ready.",
	"Pod/Status":                                          "State of the pod in one word.",
	"Pod/Restarts":                                        "How often containers were restarted, and when last.",
	"Pod/IP":                                              ".status.podIP",
	"Pod/Node":                                            ".spec.nodeName",
	"Pod/Nominated Node":                                  ".status.nominatedNodeName",
	"Pod/Readiness Gates":                                 ".spec.readinessGates",
	"PodCertificateRequest/PodName":                       ".spec.podName",
	"PodCertificateRequest/ServiceAccountName":            ".spec.serviceAccountName",
	"PodCertificateRequest/NodeName":                      ".spec.nodeName",
	"PodCertificateRequest/SignerName":                    ".spec.signerName",
	"PodCertificateRequest/State":                         ".status.conditions",
	"PodCertificateRequest/Reason":                        ".status.conditions",
	"PodDisruptionBudget/Min Available":                   ".spec.minAvailable",
	"PodDisruptionBudget/Max Unavailable":                 ".spec.maxUnavailable",
	"PodDisruptionBudget/Allowed Disruptions":             ".status.disruptionsAllowed",
	"PodTemplate/Pod Labels":                              ".template.metadata",
	"PriorityClass/Value":                                 ".value",
	"PriorityClass/Global-Default":                        ".globalDefault",
	"PriorityClass/PreemptionPolicy":                      ".preemptionPolicy",
	"PriorityLevelConfiguration/Type":                     ".spec.type",
	"PriorityLevelConfiguration/NominalConcurrencyShares": ".spec.limited.nominalConcurrencyShares",
	"PriorityLevelConfiguration/Queues":                   ".spec.limited.limitResponse.queuing.queues",
	"PriorityLevelConfiguration/HandSize":                 ".spec.limited.limitResponse.queuing.handSize",
	"PriorityLevelConfiguration/QueueLengthLimit":         ".spec.limited.limitResponse.queuing.queueLengthLimit",
	"ReplicaSet/Desired":                                  ".spec.replicas",
	"ReplicaSet/Current":                                  ".status.replicas",
	"ReplicaSet/Ready":                                    ".status.readyReplicas",
	"ReplicationController/Desired":                       ".spec.replicas",
	"ReplicationController/Current":                       ".status.replicas",
	"ReplicationController/Ready":                         ".status.readyReplicas",
	"ResourceClaim/State":                                 "Whether devices are allocated, and reserved for a consumer.",
	"ResourceQuota/Request":                               "Used and allowed amounts, without limits.",
	"ResourceQuota/Limit":                                 "Used and allowed limits.",
	"ResourceSlice/Node":                                  ".spec.nodeName",
	"ResourceSlice/Driver":                                ".spec.driver",
	"ResourceSlice/Pool":                                  ".spec.pool.name",
	"RoleBinding/Role":                                    ".roleRef",
	"RoleBinding/Users":                                   "Users that get the role.",
	"RoleBinding/Groups":                                  "Groups that get the role.",
	"RoleBinding/ServiceAccounts":                         "Service accounts that get the role.",
	"RuntimeClass/Handler":                                ".handler",
	"Secret/Type":                                         ".type",
	"Secret/Data":                                         ".data",
	"Service/Type":                                        ".spec.type",
	"Service/Cluster-IP":                                  ".spec.clusterIP",
	"Service/External-IP":                                 ".spec.externalIPs",
	"Service/Port(s)":                                     ".spec.ports",
	"ServiceAccount/Secrets":                              ".secrets",
	"ServiceCIDR/CIDRs":                                   ".spec.cidrs",
	"StatefulSet/Ready":                                   "How many of the wanted pods are ready.",
	"StorageClass/Provisioner":                            ".provisioner",
	"StorageClass/ReclaimPolicy":                          ".reclaimPolicy",
	"StorageClass/VolumeBindingMode":                      ".volumeBindingMode",
	"StorageClass/AllowVolumeExpansion":                   ".allowVolumeExpansion",
	"StorageVersionMigration/Resource":                    ".spec.resource",
	"ValidatingAdmissionPolicy/Validations":               "How many validations the policy has.",
	"ValidatingAdmissionPolicy/ParamKind":                 ".spec.paramKind",
	"ValidatingAdmissionPolicyBinding/PolicyName":         ".spec.policyName",
	"ValidatingAdmissionPolicyBinding/ParamRef":           ".spec.paramRef",
	"ValidatingWebhookConfiguration/Webhooks":             "How many webhooks there are.",
	"VolumeAttachment/Attacher":                           ".spec.attacher",
	"VolumeAttachment/PV":                                 ".spec.source.persistentVolumeName",
	"VolumeAttachment/Node":                               ".spec.nodeName",
	"VolumeAttachment/Attached":                           ".status.attached",
	"VolumeAttributesClass/DriverName":                    ".driverName",
}
