package validate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	resourcev1 "k8s.io/api/resource/v1"
	migrationv1 "k8s.io/api/storagemigration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

func TestClaims(t *testing.T) {
	text := namespacedMeta + `
spec:
  devices:
    requests: [{name: gpu, exactly: {deviceClassName: gpu.example.com, allocationMode: ExactCount, count: 1}}]
    constraints: [{requests: [gpu], matchAttribute: example.com/numa}]
    config: [{requests: [gpu], opaque: {driver: gpu.example.com, parameters: {a: b}}}]
`
	checkNew(t, text, ResourceClaim, []change[resourcev1.ResourceClaim]{
		{"class", func(c *resourcev1.ResourceClaim) { c.Spec.Devices.Requests[0].Exactly.DeviceClassName = "" },
			[]string{"spec.devices.requests[0].exactly.deviceClassName: Required value"}},
		{"all with count", func(c *resourcev1.ResourceClaim) { c.Spec.Devices.Requests[0].Exactly.AllocationMode = "All" },
			[]string{"spec.devices.requests[0].exactly.count: Invalid value: 1: must not be specified when allocationMode is 'All'"}},
		{"mode", func(c *resourcev1.ResourceClaim) { c.Spec.Devices.Requests[0].Exactly.AllocationMode = "Some" },
			[]string{`spec.devices.requests[0].exactly.allocationMode: Unsupported value: "Some": supported values: "All", "ExactCount"`}},
		{"unknown request", func(c *resourcev1.ResourceClaim) { c.Spec.Devices.Constraints[0].Requests[0] = "net" },
			[]string{`spec.devices.constraints[0].requests[0]: Invalid value: "net": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'`}},
		{"attribute", func(c *resourcev1.ResourceClaim) {
			c.Spec.Devices.Constraints[0].MatchAttribute = ptr(resourcev1.FullyQualifiedName("numa"))
		}, []string{`spec.devices.constraints[0].matchAttribute: Invalid value: "numa": a fully qualified name must be a domain and a name separated by a slash`}},
		{"no object", func(c *resourcev1.ResourceClaim) { c.Spec.Devices.Config[0].Opaque.Parameters.Raw = []byte(`[1]`) },
			[]string{`spec.devices.config[0].opaque.parameters: Invalid value: "<value omitted>": must be a valid JSON object`}},
		{"toleration", func(c *resourcev1.ResourceClaim) {
			c.Spec.Devices.Requests[0].Exactly.Tolerations = []resourcev1.DeviceToleration{{Operator: "Exists", Value: "x", Effect: "Soon"}}
		}, []string{"spec.devices.requests[0].exactly.tolerations[0].value: Invalid value: \"x\": must be empty for operator `Exists`",
			`spec.devices.requests[0].exactly.tolerations[0].effect: Unsupported value: "Soon": supported values: "NoExecute", "NoSchedule", "None"`}},
		{"expression", func(c *resourcev1.ResourceClaim) {
			c.Spec.Devices.Requests[0].Exactly.Selectors = []resourcev1.DeviceSelector{{}}
		}, []string{"spec.devices.requests[0].exactly.selectors[0].cel: Required value"}},
		{"many", func(c *resourcev1.ResourceClaim) {
			c.Spec.Devices.Config = make([]resourcev1.DeviceClaimConfiguration, 33)
		}, []string{"spec.devices.config: Too many: 33: must have at most 32 items"}},
	})
	checkUpdate(t, text, ResourceClaimUpdate, []change[resourcev1.ResourceClaim]{
		{"spec", func(c *resourcev1.ResourceClaim) { c.Spec.Devices.Requests[0].Name = "other" }, []string{"spec: Invalid value: null: field is immutable"}},
	})
	result := resourcev1.DeviceRequestAllocationResult{Request: "gpu", Driver: "gpu.example.com", Pool: "node-1", Device: "gpu-0"}
	allocated := &resourcev1.AllocationResult{Devices: resourcev1.DeviceAllocationResult{Results: []resourcev1.DeviceRequestAllocationResult{result}}}
	checkUpdate(t, text, ResourceClaimStatusUpdate, []change[resourcev1.ResourceClaim]{
		{"allocated", func(c *resourcev1.ResourceClaim) { c.Status.Allocation = allocated }, nil},
		{"reserved alone", func(c *resourcev1.ResourceClaim) {
			c.Status.ReservedFor = []resourcev1.ResourceClaimConsumerReference{{Resource: "pods", Name: "p", UID: "1"}}
		}, []string{"status.reservedFor: Forbidden: may not be specified when `allocated` is not set"}},
		{"consumer", func(c *resourcev1.ResourceClaim) {
			c.Status.Allocation = allocated
			c.Status.ReservedFor = []resourcev1.ResourceClaimConsumerReference{{Resource: "pods", Name: "p", UID: "1"}, {Resource: "pods", UID: "1"}}
		}, []string{"status.reservedFor[1].name: Required value", `status.reservedFor[1]: Duplicate value: {"resource":"pods","name":"","uid":"1"}`}},
		{"foreign device", func(c *resourcev1.ResourceClaim) {
			c.Status.Allocation = allocated
			c.Status.Devices = []resourcev1.AllocatedDeviceStatus{{Driver: "gpu.example.com", Pool: "node-1", Device: "gpu-1"}}
		}, []string{`status.devices[0]: Invalid value: "gpu.example.com/node-1/gpu-1": must be an allocated device in the claim`}},
		{"pool", func(c *resourcev1.ResourceClaim) {
			c.Status.Allocation = allocated.DeepCopy()
			c.Status.Allocation.Devices.Results[0].Pool = ""
		}, []string{"status.allocation.devices.results[0].pool: Required value"}},
	})
	old, changed := parse[resourcev1.ResourceClaim](t, text), parse[resourcev1.ResourceClaim](t, text)
	old.Status.Allocation, changed.Status.Allocation = allocated, allocated.DeepCopy()
	changed.Status.Allocation.Devices.Results[0].Device = "gpu-1"
	same(t, ResourceClaimStatusUpdate(changed, old), []string{"status.allocation: Invalid value: null: field cannot be modified once set"})

	checkNew(t, namespacedMeta+"spec: {spec: {devices: {requests: [{name: a, exactly: {deviceClassName: c, allocationMode: All}}]}}}\n", ResourceClaimTemplate, []change[resourcev1.ResourceClaimTemplate]{
		{"name", func(c *resourcev1.ResourceClaimTemplate) { c.Spec.ObjectMeta.Name = "x" }, []string{"spec.metadata.name: Forbidden: cannot be set"}},
	})
}

func TestSlices(t *testing.T) {
	text := clusterMeta + `
spec:
  driver: gpu.example.com
  nodeName: node-1
  pool: {name: node-1, generation: 1, resourceSliceCount: 1}
  devices: [{name: gpu-0, attributes: {memory: {int: 1}}, capacity: {memory: {value: 8Gi}}}]
`
	attribute := func(s *resourcev1.ResourceSlice, a resourcev1.DeviceAttribute) {
		s.Spec.Devices[0].Attributes = map[resourcev1.QualifiedName]resourcev1.DeviceAttribute{"memory": a}
	}
	checkNew(t, text, ResourceSlice, []change[resourcev1.ResourceSlice]{
		{"two ways", func(s *resourcev1.ResourceSlice) { s.Spec.AllNodes = ptr(true) },
			[]string{"spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set"}},
		{"false", func(s *resourcev1.ResourceSlice) { s.Spec.AllNodes = ptr(false) },
			[]string{"spec.allNodes: Invalid value: false: must be either unset or set to true"}},
		{"pool", func(s *resourcev1.ResourceSlice) { s.Spec.Pool.ResourceSliceCount = 0 },
			[]string{"spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero"}},
		{"device node", func(s *resourcev1.ResourceSlice) { s.Spec.Devices[0].AllNodes = ptr(true) },
			[]string{"spec.devices[0]: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec"}},
		{"no value", func(s *resourcev1.ResourceSlice) { attribute(s, resourcev1.DeviceAttribute{}) },
			[]string{"spec.devices[0].attributes[memory]: Invalid value: \"\": must specify one of: `int`, `bool`, `string`, `version`, `ints`, `bools`, `strings`, `versions`"}},
		{"two values", func(s *resourcev1.ResourceSlice) {
			attribute(s, resourcev1.DeviceAttribute{IntValue: ptr(int64(1)), BoolValue: ptr(true)})
		}, []string{"spec.devices[0].attributes[memory]: Invalid value: \"{`int`, `bool`}\": must specify exactly one of: `int`, `bool`, `string`, `version`, `ints`, `bools`, `strings`, `versions`"}},
		{"version", func(s *resourcev1.ResourceSlice) { attribute(s, resourcev1.DeviceAttribute{VersionValue: ptr("1.2")}) },
			[]string{`spec.devices[0].attributes[memory].version: Invalid value: "1.2": must be a string compatible with semver.org spec 2.0.0`}},
		{"policy alone", func(s *resourcev1.ResourceSlice) {
			c := s.Spec.Devices[0].Capacity["memory"]
			c.RequestPolicy = &resourcev1.CapacityRequestPolicy{}
			s.Spec.Devices[0].Capacity["memory"] = c
		}, []string{"spec.devices[0].capacity[memory].requestPolicy: Forbidden: allowMultipleAllocations must be true"}},
		{"taint", func(s *resourcev1.ResourceSlice) {
			s.Spec.Devices[0].Taints = []resourcev1.DeviceTaint{{Key: "a", Effect: ""}}
		}, []string{"spec.devices[0].taints[0].effect: Required value"}},
		{"conditions", func(s *resourcev1.ResourceSlice) { s.Spec.Devices[0].BindingConditions = []string{"Ready"} },
			[]string{"spec.devices[0].bindingFailureConditions: Invalid value: null: bindingFailureConditions are required to use bindingConditions"}},
		{"same device", func(s *resourcev1.ResourceSlice) { s.Spec.Devices = append(s.Spec.Devices, s.Spec.Devices[0]) },
			[]string{`spec.devices[1]: Duplicate value: "gpu-0"`}},
		{"gated", func(s *resourcev1.ResourceSlice) {
			s.Spec.PartitionTypeAttribute = ptr(resourcev1.FullyQualifiedName("a/b"))
		}, []string{"spec.partitionTypeAttribute: Forbidden"}},
		{"counters", func(s *resourcev1.ResourceSlice) {
			s.Spec.Devices, s.Spec.SharedCounters = nil, []resourcev1.CounterSet{{Name: "a"}}
		}, []string{"spec.sharedCounters[0].counters: Required value"}},
	})
	checkUpdate(t, text, ResourceSliceUpdate, []change[resourcev1.ResourceSlice]{
		{"driver", func(s *resourcev1.ResourceSlice) { s.Spec.Driver = "other" }, []string{`spec.driver: Invalid value: "other": field is immutable`}},
	})
	step := clusterMeta + `
spec:
  driver: gpu.example.com
  allNodes: true
  pool: {name: a, resourceSliceCount: 1}
  devices: [{name: gpu-0, allowMultipleAllocations: true, capacity: {memory: {value: 8, requestPolicy: {default: 3, validRange: {min: 1, max: 8, step: 2}}}}}]
`
	same(t, ResourceSlice(parse[resourcev1.ResourceSlice](t, step)), []string{
		`spec.devices[0].capacity[memory].requestPolicy.validRange.step: Invalid value: "8": value is not a multiple of a given step (2) from (1)`})
	checkNew(t, clusterMeta+"spec: {taint: {key: a, effect: NoExecute}}\n", DeviceTaintRule, []change[resourcev1.DeviceTaintRule]{
		{"effect", func(r *resourcev1.DeviceTaintRule) { r.Spec.Taint.Effect = "Later" },
			[]string{`spec.taint.effect: Unsupported value: "Later": supported values: "NoExecute", "NoSchedule", "None"`}},
		{"device", func(r *resourcev1.DeviceTaintRule) {
			r.Spec.DeviceSelector = &resourcev1.DeviceTaintSelector{Driver: ptr(""), Pool: ptr("")}
		}, []string{"spec.deviceSelector.driver: Required value", "spec.deviceSelector.pool: Required value"}},
	})
}

func TestFlows(t *testing.T) {
	text := clusterMeta + `
spec:
  matchingPrecedence: 500
  priorityLevelConfiguration: {name: low}
  rules: [{subjects: [{kind: User, user: {name: a}}], resourceRules: [{verbs: [get], apiGroups: [""], resources: [pods], namespaces: [default]}]}]
`
	checkNew(t, text, FlowSchema, []change[flowcontrolv1.FlowSchema]{
		{"first", func(f *flowcontrolv1.FlowSchema) { f.Spec.MatchingPrecedence = 1 },
			[]string{"spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1"}},
		{"level", func(f *flowcontrolv1.FlowSchema) { f.Spec.PriorityLevelConfiguration.Name = "" },
			[]string{"spec.priorityLevelConfiguration.name: Required value: must reference a priority level"}},
		{"namespace", func(f *flowcontrolv1.FlowSchema) { f.Spec.Rules[0].ResourceRules[0].Namespaces = nil },
			[]string{"spec.rules[0].resourceRules[0].namespaces: Required value: resource rules that are not cluster scoped must supply at least one namespace"}},
		{"subject", func(f *flowcontrolv1.FlowSchema) { f.Spec.Rules[0].Subjects[0].Kind = "Group" },
			[]string{"spec.rules[0].subjects[0].group: Required value: group is required when subject kind is 'Group'",
				"spec.rules[0].subjects[0].user: Forbidden: user is forbidden when subject kind is not 'User'"}},
		{"condition", func(f *flowcontrolv1.FlowSchema) { f.Status.Conditions = []flowcontrolv1.FlowSchemaCondition{{}} },
			[]string{"status.conditions[0].type: Required value: must not be empty"}},
	})
	for _, name := range []string{"exempt", "catch-all"} {
		f := &flowcontrolv1.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: *FixedFlowSchema(name)}
		same(t, FlowSchema(f), nil)
		if f.Spec.Rules = nil; !strings.Contains(FlowSchema(f).ToAggregate().Error(), "spec of '"+name+"' must equal the fixed value") {
			t.Errorf("%s: %v", name, FlowSchema(f))
		}
		c := &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: *FixedPriorityLevel(name)}
		same(t, PriorityLevelConfiguration(c), nil)
	}
	exempt := &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "exempt"}, Spec: *FixedPriorityLevel("exempt")}
	exempt.Spec.Exempt.NominalConcurrencyShares = ptr(int32(7))
	same(t, PriorityLevelConfiguration(exempt), nil)
	checkNew(t, clusterMeta+"spec: {type: Limited, limited: {nominalConcurrencyShares: 1, limitResponse: {type: Queue, queuing: {queues: 64, handSize: 8, queueLengthLimit: 50}}}}\n", PriorityLevelConfiguration, []change[flowcontrolv1.PriorityLevelConfiguration]{
		{"type", func(c *flowcontrolv1.PriorityLevelConfiguration) { c.Spec.Type, c.Spec.Limited = "Exempt", nil },
			[]string{`spec.type: Invalid value: "Exempt": type must be 'Exempt' if and only if name is 'exempt'`}},
		{"hand", func(c *flowcontrolv1.PriorityLevelConfiguration) { c.Spec.Limited.LimitResponse.Queuing.HandSize = 16 },
			[]string{"spec.limited.limitResponse.queuing.handSize: Invalid value: 16: required entropy bits of deckSize 64 and handSize 16 should not be greater than 60"}},
		{"lend", func(c *flowcontrolv1.PriorityLevelConfiguration) { c.Spec.Limited.LendablePercent = ptr(int32(101)) },
			[]string{"spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive"}},
	})
}

func TestMigrations(t *testing.T) {
	text := clusterMeta + "spec: {resource: {resource: secrets}}\n"
	checkNew(t, text, StorageVersionMigration, []change[migrationv1.StorageVersionMigration]{
		{"resource", func(m *migrationv1.StorageVersionMigration) { m.Spec.Resource.Resource = "" }, []string{"spec.resource.resource: Required value: resource is required"}},
	})
	checkUpdate(t, text, StorageVersionMigrationUpdate, []change[migrationv1.StorageVersionMigration]{
		{"resource", func(m *migrationv1.StorageVersionMigration) { m.Spec.Resource.Resource = "pods" }, []string{`resource: Invalid value: "pods": field is immutable`}},
	})
	at := metav1.Now()
	condition := func(m *migrationv1.StorageVersionMigration, types ...migrationv1.MigrationConditionType) {
		for _, c := range types {
			m.Status.Conditions = append(m.Status.Conditions, metav1.Condition{Type: string(c), Status: metav1.ConditionTrue, Reason: "Test", LastTransitionTime: at})
		}
	}
	for name, c := range map[string]struct {
		old, new []migrationv1.MigrationConditionType
		rv       string
		want     string
	}{
		"both":    {nil, []migrationv1.MigrationConditionType{"Succeeded", "Failed"}, "", "Both success and failed conditions cannot be true at the same time"},
		"running": {nil, []migrationv1.MigrationConditionType{"Succeeded", "Running"}, "", "Running condition cannot be true when success condition is true"},
		"back":    {[]migrationv1.MigrationConditionType{"Failed"}, nil, "", "Failed condition cannot be set to false once it is true"},
		"version": {nil, nil, "x", `status.resourceVersion: Invalid value: "x": failed to parse resource version "x": strconv.ParseInt: parsing "x": invalid syntax`},
	} {
		old, next := parse[migrationv1.StorageVersionMigration](t, text), parse[migrationv1.StorageVersionMigration](t, text)
		condition(old, c.old...)
		condition(next, c.new...)
		next.Status.ResourceVersion = c.rv
		errs := StorageVersionMigrationStatusUpdate(next, old)
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), c.want) {
			t.Errorf("%s: %v", name, errs)
		}
	}
}

func TestAPIServices(t *testing.T) {
	text := "metadata: {name: v1.example.com, resourceVersion: \"1\"}\nspec: {group: example.com, version: v1, groupPriorityMinimum: 100, versionPriority: 10, service: {namespace: a, name: b, port: 443}}\n"
	checkNew(t, text, APIService, []change[apiregistrationv1.APIService]{
		{"name", func(a *apiregistrationv1.APIService) { a.Spec.Version = "v2" },
			[]string{"metadata.name: Invalid value: \"v1.example.com\": must be `spec.version+\".\"+spec.group`: \"v2.example.com\""}},
		{"priority", func(a *apiregistrationv1.APIService) { a.Spec.VersionPriority = 0 },
			[]string{"spec.versionPriority: Invalid value: 0: must be positive and less than 1000"}},
		{"port", func(a *apiregistrationv1.APIService) { a.Spec.Service.Port = ptr(int32(0)) },
			[]string{"spec.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive"}},
		{"local", func(a *apiregistrationv1.APIService) { a.Spec.Service, a.Spec.InsecureSkipTLSVerify = nil, true },
			[]string{"spec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have insecureSkipTLSVerify"}},
		{"both", func(a *apiregistrationv1.APIService) {
			a.Spec.InsecureSkipTLSVerify, a.Spec.CABundle = true, []byte("x")
		},
			[]string{"spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present"}},
	})
}

// podCertificate is a request for a key, and a certificate that a signer gave for it.
func podCertificate(t *testing.T) (r *certificatesv1.PodCertificateRequest, status certificatesv1.PodCertificateRequestStatus) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stub, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: from.Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	r = parse[certificatesv1.PodCertificateRequest](t, namespacedMeta+`
spec: {signerName: example.com/pods, podName: p, podUID: "1", serviceAccountName: default, serviceAccountUID: "2", nodeName: n, nodeUID: "3", maxExpirationSeconds: 86400}`)
	r.Spec.StubPKCS10Request = stub
	at := func(d time.Duration) *metav1.Time { return &metav1.Time{Time: from.Add(d)} }
	return r, certificatesv1.PodCertificateRequestStatus{
		Conditions:       []metav1.Condition{{Type: "Issued", Status: metav1.ConditionTrue, Reason: "Issued", LastTransitionTime: metav1.NewTime(from)}},
		CertificateChain: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		NotBefore:        at(0), NotAfter: at(24 * time.Hour), BeginRefreshAt: at(20 * time.Hour),
	}
}

func TestPodCertificates(t *testing.T) {
	r, status := podCertificate(t)
	other, _ := podCertificate(t)
	same(t, PodCertificateRequest(r), nil)
	for _, c := range []change[certificatesv1.PodCertificateRequest]{
		{"short", func(r *certificatesv1.PodCertificateRequest) { r.Spec.MaxExpirationSeconds = ptr(int32(3599)) },
			[]string{"spec.maxExpirationSeconds: Invalid value: 3599: must be in the range [3600, 7862400]"}},
		{"long for ours", func(r *certificatesv1.PodCertificateRequest) {
			r.Spec.SignerName, r.Spec.MaxExpirationSeconds = "kubernetes.io/kube-apiserver-client-pod", ptr(int32(86401))
		}, []string{"spec.maxExpirationSeconds: Invalid value: 86401: must be in the range [3600, 86400]"}},
		{"uid", func(r *certificatesv1.PodCertificateRequest) { r.Spec.PodUID = "" }, []string{"spec.podUID: Required value: must not be empty"}},
		{"annotation", func(r *certificatesv1.PodCertificateRequest) {
			r.Spec.UnverifiedUserAnnotations = map[string]string{"plain": "x"}
		}, []string{`spec.unverifiedUserAnnotations: Invalid value: "plain": must be a domain-prefixed key`}},
		{"no request", func(r *certificatesv1.PodCertificateRequest) { r.Spec.StubPKCS10Request = nil }, []string{"spec.stubPKCS10Request: Required value"}},
		{"garbage", func(r *certificatesv1.PodCertificateRequest) { r.Spec.StubPKCS10Request = []byte("x") },
			[]string{`spec.stubPKCS10Request: Invalid value: "<value omitted>": must be a valid PKCS#10 CSR`}},
		{"not held", func(r *certificatesv1.PodCertificateRequest) {
			der := append([]byte(nil), r.Spec.StubPKCS10Request...)
			der[len(der)-1] ^= 1
			r.Spec.StubPKCS10Request = der
		}, []string{`spec.stubPKCS10Request: Invalid value: "<value omitted>": could not verify proof-of-possession signature`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			obj := r.DeepCopy()
			c.do(obj)
			same(t, PodCertificateRequest(obj), c.want)
		})
	}
	for _, c := range []change[certificatesv1.PodCertificateRequest]{
		{"issued", func(*certificatesv1.PodCertificateRequest) {}, nil},
		{"other key", func(r *certificatesv1.PodCertificateRequest) { r.Spec = other.Spec },
			[]string{`status.certificateChain: Invalid value: "<value omitted>": leaf certificate was not issued to the requested public key`}},
		{"times", func(r *certificatesv1.PodCertificateRequest) { r.Status.NotAfter = nil },
			[]string{"status.notAfter: Required value: must be present and consistent with the issued certificate"}},
		{"refresh", func(r *certificatesv1.PodCertificateRequest) { r.Status.BeginRefreshAt = r.Status.NotAfter },
			[]string{`status.beginRefreshAt: Invalid value: "2026-01-02T00:00:00Z": must be at least 10 minutes before status.notAfter`}},
		{"denied with chain", func(r *certificatesv1.PodCertificateRequest) { r.Status.Conditions[0].Type = "Denied" },
			[]string{`status: Invalid value: "<value omitted>": non-condition status fields must be empty when denying or failing the PodCertificateRequest`}},
		{"unknown verdict", func(r *certificatesv1.PodCertificateRequest) { r.Status.Conditions[0].Type = "Maybe" },
			[]string{`status.conditions[0].type: Unsupported value: "Maybe": supported values: "Denied", "Failed", "Issued"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			obj := r.DeepCopy()
			obj.Status = *status.DeepCopy()
			c.do(obj)
			same(t, PodCertificateRequestStatusUpdate(obj, r), c.want)
		})
	}
	done, late := r.DeepCopy(), r.DeepCopy()
	done.Status = status
	if errs := PodCertificateRequestStatusUpdate(late, done); len(errs) != 1 || !strings.HasSuffix(errs[0].Error(), "field is immutable") {
		t.Errorf("an issued certificate was taken back: %v", errs)
	}
	if errs := PodCertificateTimes(done, r, status.NotBefore.Add(time.Hour)); len(errs) != 1 {
		t.Errorf("an hour late: %v", errs)
	}
	same(t, PodCertificateTimes(done, r, status.NotBefore.Add(time.Minute)), nil)
}
