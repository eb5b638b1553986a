package validate

import (
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	resourcev1 "k8s.io/api/resource/v1"
)

func TestDevices(t *testing.T) {
	claim := namespacedMeta + "spec: {devices: {requests: [{name: gpu, exactly: {deviceClassName: gpu.example.com, allocationMode: ExactCount, count: 1}}]}}\n"
	checkNew(t, claim, ResourceClaim, []change[resourcev1.ResourceClaim]{
		{"neither", func(c *resourcev1.ResourceClaim) { c.Spec.Devices.Requests[0].Exactly = nil },
			[]string{"spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required"}},
		{"count", func(c *resourcev1.ResourceClaim) { c.Spec.Devices.Requests[0].Exactly.Count = 0 },
			[]string{"spec.devices.requests[0].exactly.count: Invalid value: 0: must be greater than zero"}},
		{"same name", func(c *resourcev1.ResourceClaim) {
			c.Spec.Devices.Requests = append(c.Spec.Devices.Requests, c.Spec.Devices.Requests[0])
		}, []string{`spec.devices.requests[1]: Duplicate value: {"name":"gpu","exactly":{"deviceClassName":"gpu.example.com","allocationMode":"ExactCount","count":1}}`}},
	})
	checkNew(t, clusterMeta+"spec: {driver: gpu.example.com, pool: {name: node-1, resourceSliceCount: 1}, nodeName: node-1, devices: [{name: gpu-0}]}\n", ResourceSlice, []change[resourcev1.ResourceSlice]{
		{"no node", func(s *resourcev1.ResourceSlice) { s.Spec.NodeName = nil },
			[]string{"spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"}},
	})
	for text, want := range map[string]string{
		"": "spec.trustBundle: Invalid value: \"<value omitted>\": at least one trust anchor must be provided",
		"-----BEGIN CERTIFICATE-----\neA==\n-----END CERTIFICATE-----\n": "spec.trustBundle: Invalid value: \"<value omitted>\": entry 0 does not parse as X.509",
	} {
		b := &certificatesv1.ClusterTrustBundle{Spec: certificatesv1.ClusterTrustBundleSpec{TrustBundle: text}}
		b.Name = "roots"
		same(t, ClusterTrustBundle(b), []string{want})
	}
}
