package conformance

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"strings"

	"proa.dev/kind"
)

const podTemplate = `{metadata: {labels: {app: "%s"}}, spec: {containers: [{name: c, image: "none", resources: {requests: {cpu: 10m}}}]}}`

// Behaviours that are one kind's API.
func init() {
	api := func(words string, k crud, needs ...need) {
		it(words, k.run, needs...)
	}
	condition := `{"conditions":[{"type":"StatusUpdate","status":"True","reason":"Test","message":"by the test","lastTransitionTime":"2026-01-02T03:04:05Z"}]}`

	api("RuntimeClass should support RuntimeClasses API operations", crud{group: "node.k8s.io", version: "v1", plural: "runtimeclasses", kind: "RuntimeClass", cluster: true,
		object: `{handler: conformance}`})
	api("Ingress API should support creating Ingress API operations", crud{group: "networking.k8s.io", version: "v1", plural: "ingresses", kind: "Ingress",
		object:      `{spec: {defaultBackend: {service: {name: default-backend, port: {number: 80}}}, rules: [{host: foo.bar.com, http: {paths: [{path: /, pathType: ImplementationSpecific, backend: {service: {name: test, port: {number: 8080}}}}]}}]}}`,
		status:      `{"loadBalancer":{"ingress":[{"ip":"169.1.1.1"}]}}`,
		statusField: []string{"status", "loadBalancer", "ingress"}, statusWant: []any{map[string]any{"ip": "169.1.1.1"}}})
	api("IngressClass API should support creating IngressClass API operations", crud{group: "networking.k8s.io", version: "v1", plural: "ingressclasses", kind: "IngressClass", cluster: true,
		object: `{spec: {controller: example.com/controller}}`})
	api("should support creating EndpointSlice API operations", crud{group: "discovery.k8s.io", version: "v1", plural: "endpointslices", kind: "EndpointSlice",
		object: `{addressType: IPv4, endpoints: [{addresses: [1.2.3.4, 5.6.7.8]}], ports: [{name: http, port: 80, protocol: TCP}]}`})
	api("CronJob should support CronJob API operations", crud{group: "batch", version: "v1", plural: "cronjobs", kind: "CronJob",
		object: `{spec: {schedule: "* 1 1 1 *", suspend: true, jobTemplate: {spec: {template: {spec: {restartPolicy: OnFailure, containers: [{name: c, image: none}]}}}}}}`,
		status: `{"lastScheduleTime":"2026-01-02T03:04:05Z"}`, statusField: []string{"status", "lastScheduleTime"}, statusWant: "2026-01-02T03:04:05Z"})
	api("Certificates API [Privileged:ClusterAdmin] should support CSR API operations", crud{group: "certificates.k8s.io", version: "v1", plural: "certificatesigningrequests", kind: "CertificateSigningRequest", cluster: true,
		object: `{spec: {signerName: example.com/conformance, usages: [digital signature, key encipherment, server auth], expirationSeconds: 3600, request: "` + signingRequest() + `"}}`,
		status: condition, statusField: []string{"status", "conditions"}, statusWant: []any{map[string]any{"type": "StatusUpdate", "status": "True", "reason": "Test", "message": "by the test", "lastTransitionTime": "2026-01-02T03:04:05Z"}},
		subresources: []string{"approval"}})
	api("CSIStorageCapacity should support CSIStorageCapacities API operations", crud{group: "storage.k8s.io", version: "v1", plural: "csistoragecapacities", kind: "CSIStorageCapacity",
		object: `{storageClassName: conformance, nodeTopology: {}, capacity: 1Gi}`})
	api("should run through the lifecycle of a CSIDriver", crud{group: "storage.k8s.io", version: "v1", plural: "csidrivers", kind: "CSIDriver", cluster: true,
		object: `{spec: {attachRequired: false, podInfoOnMount: true, volumeLifecycleModes: [Ephemeral]}}`})
	api("should run through the lifecycle of a csinode", crud{group: "storage.k8s.io", version: "v1", plural: "csinodes", kind: "CSINode", cluster: true,
		object: `{spec: {drivers: []}}`})
	api("should run through the lifecycle of a StorageClass", crud{group: "storage.k8s.io", version: "v1", plural: "storageclasses", kind: "StorageClass", cluster: true,
		object: `{provisioner: example.com/conformance}`})
	api("should run through the lifecycle of a VolumeAttributesClass", crud{group: "storage.k8s.io", version: "v1", plural: "volumeattributesclasses", kind: "VolumeAttributesClass", cluster: true,
		object: `{driverName: example.com/conformance, parameters: {key: value}}`})
	attachment := crud{group: "storage.k8s.io", version: "v1", plural: "volumeattachments", kind: "VolumeAttachment", cluster: true,
		object: `{spec: {attacher: csi.example.com, nodeName: "%s-node", source: {persistentVolumeName: "%s-pv"}}}`}
	api("should run through the lifecycle of a VolumeAttachment", attachment)
	attachment.status, attachment.statusField, attachment.statusWant = `{"attached":true}`, []string{"status", "attached"}, true
	api("should apply changes to a volumeattachment status", attachment)
	api("LimitRange should list, patch and delete a LimitRange by collection", crud{version: "v1", plural: "limitranges", kind: "LimitRange",
		object: `{spec: {limits: [{type: Container, max: {cpu: 500m}}]}}`})
	api("ResourceQuota should manage the lifecycle of a ResourceQuota", crud{version: "v1", plural: "resourcequotas", kind: "ResourceQuota",
		object: `{spec: {hard: {cpu: "1", memory: 500Mi}}}`, subresources: []string{"status"}})
	template := `{template: ` + podTemplate + `}`
	api("PodTemplates should delete a collection of pod templates", crud{version: "v1", plural: "podtemplates", kind: "PodTemplate", object: template})
	api("PodTemplates should replace a pod template", crud{version: "v1", plural: "podtemplates", kind: "PodTemplate", object: template})
	api("PodTemplates should run the lifecycle of PodTemplates", crud{version: "v1", plural: "podtemplates", kind: "PodTemplate", object: template})
	api("ConfigMap should run through a ConfigMap lifecycle", crud{version: "v1", plural: "configmaps", kind: "ConfigMap", object: `{data: {a: b}}`})
	api("Secrets should patch a secret", crud{version: "v1", plural: "secrets", kind: "Secret", object: `{type: Opaque, data: {key: dmFsdWU=}}`})
	api("ServiceAccounts should run through the lifecycle of a ServiceAccount", crud{version: "v1", plural: "serviceaccounts", kind: "ServiceAccount", object: `{automountServiceAccountToken: false}`})
	api("Endpoints should test the lifecycle of an Endpoint", crud{version: "v1", plural: "endpoints", kind: "Endpoints",
		object: `{subsets: [{addresses: [{ip: 10.0.0.24}], ports: [{name: http, port: 80, protocol: TCP}]}]}`})
	api("Services should delete a collection of services", crud{version: "v1", plural: "services", kind: "Service",
		object: `{spec: {ports: [{port: 80, protocol: TCP, targetPort: 80}], selector: {app: "%s"}}}`})
	api("Services should complete a service status lifecycle", crud{version: "v1", plural: "services", kind: "Service",
		object: `{spec: {type: ClusterIP, ports: [{port: 80}]}}`, status: condition, statusField: []string{"status", "conditions"},
		statusWant: []any{map[string]any{"type": "StatusUpdate", "status": "True", "reason": "Test", "message": "by the test", "lastTransitionTime": "2026-01-02T03:04:05Z"}}})
	core := `{involvedObject: {kind: Pod, namespace: "%n", name: none}, reason: Test, type: Normal, message: "this is a test", source: {component: conformance}}`
	api("[sig-instrumentation] Events should delete a collection of events", crud{version: "v1", plural: "events", kind: "Event", object: core})
	api("[sig-instrumentation] Events should manage the lifecycle of an event", crud{version: "v1", plural: "events", kind: "Event", object: core})
	event := `{eventTime: "2026-01-02T03:04:05.000000Z", reportingController: example.com/conformance, reportingInstance: conformance-1, action: Do, reason: Test, type: Normal, note: "this is a test", regarding: {kind: Pod, namespace: "%n", name: none}}`
	api("Events API should delete a collection of events", crud{group: "events.k8s.io", version: "v1", plural: "events", kind: "Event", object: event})
	api("Events API should ensure that an event can be fetched, patched, deleted, and listed", crud{group: "events.k8s.io", version: "v1", plural: "events", kind: "Event", object: event})
	api("[sig-node] Lease lease API should be available", crud{group: "coordination.k8s.io", version: "v1", plural: "leases", kind: "Lease",
		object: `{spec: {holderIdentity: holder, leaseDurationSeconds: 30, acquireTime: "2026-01-02T03:04:05.000000Z", renewTime: "2026-01-02T03:04:06.000000Z", leaseTransitions: 0}}`})

	set := `{spec: {replicas: 1, selector: {matchLabels: {app: "%s"}}, template: ` + podTemplate + `}}`
	api("should list and delete a collection of ReplicaSets", crud{group: "apps", version: "v1", plural: "replicasets", kind: "ReplicaSet", object: set, subresources: []string{"status", "scale"}})
	api("should list and delete a collection of DaemonSets", crud{group: "apps", version: "v1", plural: "daemonsets", kind: "DaemonSet", subresources: []string{"status"},
		object: strings.Replace(set, "replicas: 1, ", "", 1)})
	api("should list, patch and delete a collection of StatefulSets", crud{group: "apps", version: "v1", plural: "statefulsets", kind: "StatefulSet", object: strings.Replace(set, "spec: {", "spec: {serviceName: test, ", 1), subresources: []string{"status", "scale"}})
	api("Job should manage the lifecycle of a job", crud{group: "batch", version: "v1", plural: "jobs", kind: "Job", subresources: []string{"status"},
		object: `{spec: {suspend: true, template: {spec: {restartPolicy: Never, containers: [{name: c, image: none}]}}}}`})
	budget := crud{group: "policy", version: "v1", plural: "poddisruptionbudgets", kind: "PodDisruptionBudget",
		object: `{spec: {minAvailable: 1, selector: {matchLabels: {app: "%s"}}}}`, subresources: []string{"status"}}
	api("Listing PodDisruptionBudgets for all namespaces should list and delete a collection of PodDisruptionBudgets", budget)
	api("DisruptionController should create a PodDisruptionBudget", budget)
	api("PriorityClass endpoints verify PriorityClass endpoints can be operated with different HTTP methods", crud{group: "scheduling.k8s.io", version: "v1", plural: "priorityclasses", kind: "PriorityClass", cluster: true,
		object: `{value: 7}`})
	api("ServiceCIDR and IPAddress API should support IPAddress API operations", crud{group: "networking.k8s.io", version: "v1", plural: "ipaddresses", kind: "IPAddress", cluster: true,
		object: `{metadata: {name: "192.168.254.%d"}, spec: {parentRef: {resource: services, namespace: default, name: "%s"}}}`})
	api("ServiceCIDR and IPAddress API should support ServiceCIDR API operations", crud{group: "networking.k8s.io", version: "v1", plural: "servicecidrs", kind: "ServiceCIDR", cluster: true,
		object: `{spec: {cidrs: [10.254.0.0/24]}}`, status: condition, statusField: []string{"status", "conditions"},
		statusWant: []any{map[string]any{"type": "StatusUpdate", "status": "True", "reason": "Test", "message": "by the test", "lastTransitionTime": "2026-01-02T03:04:05Z"}}})

	flow := []string{"status", "conditions"}
	flowCondition := `{"conditions":[{"type":"Test","status":"True","reason":"Test","message":"by the test","lastTransitionTime":"2026-01-02T03:04:05Z"}]}`
	flowWant := []any{map[string]any{"type": "Test", "status": "True", "reason": "Test", "message": "by the test", "lastTransitionTime": "2026-01-02T03:04:05Z"}}
	api("API priority and fairness should support FlowSchema API operations", crud{group: "flowcontrol.apiserver.k8s.io", version: "v1", plural: "flowschemas", kind: "FlowSchema", cluster: true,
		object: `{spec: {matchingPrecedence: 10000, priorityLevelConfiguration: {name: global-default}, distinguisherMethod: {type: ByUser}, rules: [{subjects: [{kind: User, user: {name: conformance}}], nonResourceRules: [{verbs: ["*"], nonResourceURLs: ["*"]}]}]}}`,
		status: flowCondition, statusField: flow, statusWant: flowWant}, row(kind.FlowSchema))
	api("API priority and fairness should support PriorityLevelConfiguration API operations", crud{group: "flowcontrol.apiserver.k8s.io", version: "v1", plural: "prioritylevelconfigurations", kind: "PriorityLevelConfiguration", cluster: true,
		object: `{spec: {type: Limited, limited: {nominalConcurrencyShares: 2, limitResponse: {type: Reject}}}}`,
		status: flowCondition, statusField: flow, statusWant: flowWant}, row(kind.PriorityLevelConfiguration))
	api("StorageVersionMigration CRUD", crud{group: "storagemigration.k8s.io", version: "v1", plural: "storageversionmigrations", kind: "StorageVersionMigration", cluster: true,
		object: `{spec: {resource: {group: apps, resource: deployments}}}`, subresources: []string{"status"}}, row(kind.StorageVersionMigration))
	api("PodCertificateRequest API", crud{group: "certificates.k8s.io", version: "v1", plural: "podcertificaterequests", kind: "PodCertificateRequest",
		object: `{spec: {signerName: example.com/conformance, podName: "%s", podUID: 7f0c3a52-0d64-4a5e-9d0f-2f4c2c1b0001, serviceAccountName: default, serviceAccountUID: 7f0c3a52-0d64-4a5e-9d0f-2f4c2c1b0002,
			nodeName: hollow-1, nodeUID: 7f0c3a52-0d64-4a5e-9d0f-2f4c2c1b0003, stubPKCS10Request: "` + stubRequest() + `"}}`,
		status:      `{"conditions":[{"type":"Denied","status":"True","reason":"Test","message":"by the test","lastTransitionTime":"2026-01-02T03:04:05Z"}]}`,
		statusField: []string{"status", "conditions"},
		statusWant:  []any{map[string]any{"type": "Denied", "status": "True", "reason": "Test", "message": "by the test", "lastTransitionTime": "2026-01-02T03:04:05Z"}}}, row(kind.PodCertificateRequest))
	api("CRUD Tests certificates.k8s.io/v1 ClusterTrustBundles", crud{group: "certificates.k8s.io", version: "v1", plural: "clustertrustbundles", kind: "ClusterTrustBundle", cluster: true,
		object: `{spec: {trustBundle: "` + strings.ReplaceAll(authority(), "\n", `\n`) + `"}}`}, row(kind.ClusterTrustBundle))
	api("resource.k8s.io/v1 DeviceClass", crud{group: "resource.k8s.io", version: "v1", plural: "deviceclasses", kind: "DeviceClass", cluster: true,
		object: `{spec: {selectors: [{cel: {expression: 'device.driver == "example.com"'}}]}}`}, row(kind.DeviceClass))
	api("resource.k8s.io/v1 DeviceTaintRule", crud{group: "resource.k8s.io", version: "v1", plural: "devicetaintrules", kind: "DeviceTaintRule", cluster: true,
		object: `{spec: {deviceSelector: {driver: "%s.example.com"}, taint: {key: example.com/taint, effect: None}}}`, subresources: []string{"status"}}, row(kind.DeviceTaintRule))
	claim := `{devices: {requests: [{name: r, exactly: {deviceClassName: example.com}}]}}`
	api("resource.k8s.io/v1 ResourceClaim", crud{group: "resource.k8s.io", version: "v1", plural: "resourceclaims", kind: "ResourceClaim",
		object: `{spec: ` + claim + `}`, subresources: []string{"status"}}, row(kind.ResourceClaim))
	api("resource.k8s.io/v1 ResourceClaimTemplate", crud{group: "resource.k8s.io", version: "v1", plural: "resourceclaimtemplates", kind: "ResourceClaimTemplate",
		object: `{spec: {spec: ` + claim + `}}`}, row(kind.ResourceClaimTemplate))
	api("resource.k8s.io/v1 ResourceSlice", crud{group: "resource.k8s.io", version: "v1", plural: "resourceslices", kind: "ResourceSlice", cluster: true,
		object: `{spec: {driver: "%s.example.com", nodeName: hollow-1, pool: {name: "%s", generation: 1, resourceSliceCount: 1}}}`}, row(kind.ResourceSlice))
}

// signingRequest is a certificate request in PEM in base64.
func signingRequest() string {
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: certificateRequest()}))
}

// stubRequest is a certificate request in DER in base64.
func stubRequest() string { return base64.StdEncoding.EncodeToString(certificateRequest()) }

func certificateRequest() []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		panic(err)
	}
	der, err := x509.CreateCertificateRequest(crand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "conformance"}}, key)
	if err != nil {
		panic(err)
	}
	return der
}

// authority is a self-signed certificate in PEM.
func authority() string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		panic(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "conformance"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(crand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
