package kind

import (
	resourcev1 "k8s.io/api/resource/v1"

	"proa.dev/kind/validate"
)

var DeviceClass = define[resourcev1.DeviceClassList](Row[*resourcev1.DeviceClass]{
	Names: Names{
		Group: "resource.k8s.io", Version: "v1", Kind: "DeviceClass", Plural: "deviceclasses",
		Scope:  Cluster,
		Prefix: "deviceclasses",
	},
	Validate:            validate.DeviceClass,
	ValidateUpdate:      validate.DeviceClassUpdate,
	UnconditionalUpdate: true,
})

var DeviceTaintRule = define[resourcev1.DeviceTaintRuleList](Row[*resourcev1.DeviceTaintRule]{
	Names: Names{
		Group: "resource.k8s.io", Version: "v1", Kind: "DeviceTaintRule", Plural: "devicetaintrules",
		Scope:  Cluster,
		Prefix: "devicetaintrules",
	},
	UnconditionalUpdate: true,
	Status:              &DoorOf[*resourcev1.DeviceTaintRule]{},
})

var ResourceClaim = define[resourcev1.ResourceClaimList](Row[*resourcev1.ResourceClaim]{
	Names: Names{
		Group: "resource.k8s.io", Version: "v1", Kind: "ResourceClaim", Plural: "resourceclaims",
		Scope:  Namespaced,
		Prefix: "resourceclaims",
	},
	Validate:            validate.ResourceClaim,
	ValidateUpdate:      validate.ResourceClaimUpdate,
	UnconditionalUpdate: true,
	Status: &DoorOf[*resourcev1.ResourceClaim]{
		ValidateUpdate: validate.ResourceClaimStatusUpdate},
})

var ResourceClaimTemplate = define[resourcev1.ResourceClaimTemplateList](Row[*resourcev1.ResourceClaimTemplate]{
	Names: Names{
		Group: "resource.k8s.io", Version: "v1", Kind: "ResourceClaimTemplate", Plural: "resourceclaimtemplates",
		Scope:  Namespaced,
		Prefix: "resourceclaimtemplates",
	},
	Validate:            validate.ResourceClaimTemplate,
	ValidateUpdate:      validate.ResourceClaimTemplateUpdate,
	UnconditionalUpdate: true,
})

var ResourceSlice = define[resourcev1.ResourceSliceList](Row[*resourcev1.ResourceSlice]{
	Names: Names{
		Group: "resource.k8s.io", Version: "v1", Kind: "ResourceSlice", Plural: "resourceslices",
		Scope:  Cluster,
		Prefix: "resourceslices",
	},
	Validate:            validate.ResourceSlice,
	ValidateUpdate:      validate.ResourceSliceUpdate,
	UnconditionalUpdate: true,
})
