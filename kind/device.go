package kind

import (
	"strings"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind/validate"
)

// The kinds of dynamic resource allocation. Fields of gates that are off in this
// release (derived attributes, node operations to skip, node allocatable
// resources, compatibility groups) are dropped unless the object had them before.

// DeviceClass names devices with selectors and configuration.
var DeviceClass = define[resourcev1.DeviceClassList](Row[*resourcev1.DeviceClass]{
	Names: Names{
		Group: "resource.k8s.io", Version: "v1", Kind: "DeviceClass", Plural: "deviceclasses",
		Scope:  Cluster,
		Prefix: "deviceclasses",
	},
	Validate:            validate.DeviceClass,
	ValidateUpdate:      validate.DeviceClassUpdate,
	UnconditionalUpdate: true,
	PrepareCreate:       func(c *resourcev1.DeviceClass) { c.Generation = 1 },
	PrepareUpdate:       func(new, old *resourcev1.DeviceClass) { raiseIf(!same(new.Spec, old.Spec), new) },
	Columns:             columns(""),
	Cells:               func(c *resourcev1.DeviceClass, now time.Time) []any { return []any{c.Name, age(c, now)} },
})

// DeviceTaintRule taints devices that it selects.
var DeviceTaintRule = define[resourcev1.DeviceTaintRuleList](Row[*resourcev1.DeviceTaintRule]{
	Names: Names{
		Group: "resource.k8s.io", Version: "v1", Kind: "DeviceTaintRule", Plural: "devicetaintrules",
		Scope:  Cluster,
		Prefix: "devicetaintrules",
	},
	Validate:            validate.DeviceTaintRule,
	ValidateUpdate:      validate.DeviceTaintRuleUpdate,
	UnconditionalUpdate: true,
	PrepareCreate: func(r *resourcev1.DeviceTaintRule) {
		r.Generation, r.Status = 1, resourcev1.DeviceTaintRuleStatus{}
	},
	PrepareUpdate: func(new, old *resourcev1.DeviceTaintRule) {
		new.Status = old.Status
		// A changed taint counts from now on: the server fills its time in again.
		if was, is := old.Spec.Taint, &new.Spec.Taint; equality.Semantic.DeepEqual(was.TimeAdded, is.TimeAdded) &&
			(was.Key != is.Key || was.Value != is.Value || was.Effect != is.Effect) {
			is.TimeAdded = nil
		}
		raiseIf(!same(new.Spec, old.Spec), new)
	},
	Status: &DoorOf[*resourcev1.DeviceTaintRule]{
		ValidateUpdate: validate.DeviceTaintRuleStatusUpdate,
		PrepareUpdate:  func(new, old *resourcev1.DeviceTaintRule) { new.Spec = old.Spec },
	},
	Stamp:   func(r *resourcev1.DeviceTaintRule, now time.Time) { stampTaint(&r.Spec.Taint, now) },
	Columns: columns(""),
	Cells:   func(r *resourcev1.DeviceTaintRule, now time.Time) []any { return []any{r.Name, age(r, now)} },
})

func stampTaint(t *resourcev1.DeviceTaint, now time.Time) {
	if t.TimeAdded == nil {
		t.TimeAdded = &metav1.Time{Time: now.Truncate(time.Second)}
	}
}

// ResourceClaim asks for devices.
var ResourceClaim = define[resourcev1.ResourceClaimList](Row[*resourcev1.ResourceClaim]{
	Names: Names{
		Group: "resource.k8s.io", Version: "v1", Kind: "ResourceClaim", Plural: "resourceclaims",
		Scope:  Namespaced,
		Prefix: "resourceclaims",
	},
	Validate:            validate.ResourceClaim,
	ValidateUpdate:      validate.ResourceClaimUpdate,
	UnconditionalUpdate: true,
	Default: func(c *resourcev1.ResourceClaim) {
		defaultDeviceClaim(&c.Spec.Devices)
		if a := c.Status.Allocation; a != nil {
			for i := range a.Devices.Results {
				defaultTolerations(a.Devices.Results[i].Tolerations)
			}
		}
	},
	PrepareCreate: func(c *resourcev1.ResourceClaim) { c.Status = resourcev1.ResourceClaimStatus{} },
	PrepareUpdate: func(new, old *resourcev1.ResourceClaim) { new.Status = old.Status },
	Status: &DoorOf[*resourcev1.ResourceClaim]{
		ValidateUpdate: validate.ResourceClaimStatusUpdate,
		PrepareUpdate: func(new, old *resourcev1.ResourceClaim) {
			new.Spec = old.Spec
			// What devices reported goes with their allocation.
			if old.Status.Allocation != nil && new.Status.Allocation == nil && same(new.Status.Devices, old.Status.Devices) {
				new.Status.Devices = nil
			}
		},
	},
	Columns: columns("State"),
	Cells: func(c *resourcev1.ResourceClaim, now time.Time) []any {
		return []any{c.Name, claimState(c), age(c, now)}
	},
})

func claimState(c *resourcev1.ResourceClaim) string {
	var words []string
	if c.DeletionTimestamp != nil {
		words = append(words, "deleted")
	}
	switch {
	case c.Status.Allocation != nil:
		words = append(words, "allocated")
		if len(c.Status.ReservedFor) > 0 {
			words = append(words, "reserved")
		}
	case c.DeletionTimestamp == nil:
		words = append(words, "pending")
	}
	return strings.Join(words, ",")
}

func defaultDeviceClaim(c *resourcev1.DeviceClaim) {
	for i := range c.Requests {
		r := &c.Requests[i]
		if e := r.Exactly; e != nil {
			defaultWish(&e.AllocationMode, &e.Count, e.Tolerations)
		}
		for j := range r.FirstAvailable {
			s := &r.FirstAvailable[j]
			defaultWish(&s.AllocationMode, &s.Count, s.Tolerations)
		}
	}
}

func defaultWish(mode *resourcev1.DeviceAllocationMode, count *int64, tolerations []resourcev1.DeviceToleration) {
	fill(mode, resourcev1.DeviceAllocationModeExactCount)
	if *mode == resourcev1.DeviceAllocationModeExactCount {
		fill(count, 1)
	}
	defaultTolerations(tolerations)
}

func defaultTolerations(list []resourcev1.DeviceToleration) {
	for i := range list {
		fill(&list[i].Operator, resourcev1.DeviceTolerationOpEqual)
	}
}

// ResourceClaimTemplate is what claims of pods are made from.
var ResourceClaimTemplate = define[resourcev1.ResourceClaimTemplateList](Row[*resourcev1.ResourceClaimTemplate]{
	Names: Names{
		Group: "resource.k8s.io", Version: "v1", Kind: "ResourceClaimTemplate", Plural: "resourceclaimtemplates",
		Scope:  Namespaced,
		Prefix: "resourceclaimtemplates",
	},
	Validate:            validate.ResourceClaimTemplate,
	ValidateUpdate:      validate.ResourceClaimTemplateUpdate,
	UnconditionalUpdate: true,
	Default:             func(t *resourcev1.ResourceClaimTemplate) { defaultDeviceClaim(&t.Spec.Spec.Devices) },
	Columns:             columns(""),
	Cells:               func(t *resourcev1.ResourceClaimTemplate, now time.Time) []any { return []any{t.Name, age(t, now)} },
})

// ResourceSlice is what a driver offers.
var ResourceSlice = define[resourcev1.ResourceSliceList](Row[*resourcev1.ResourceSlice]{
	Names: Names{
		Group: "resource.k8s.io", Version: "v1", Kind: "ResourceSlice", Plural: "resourceslices",
		Scope:  Cluster,
		Prefix: "resourceslices",
	},
	Validate:            validate.ResourceSlice,
	ValidateUpdate:      validate.ResourceSliceUpdate,
	UnconditionalUpdate: true,
	PrepareCreate:       func(s *resourcev1.ResourceSlice) { s.Generation = 1 },
	PrepareUpdate:       func(new, old *resourcev1.ResourceSlice) { raiseIf(!same(new.Spec, old.Spec), new) },
	Stamp: func(s *resourcev1.ResourceSlice, now time.Time) {
		for i := range s.Spec.Devices {
			for j := range s.Spec.Devices[i].Taints {
				stampTaint(&s.Spec.Devices[i].Taints[j], now)
			}
		}
	},
	Selectable: map[string]func(*resourcev1.ResourceSlice) string{
		resourcev1.ResourceSliceSelectorNodeName: func(s *resourcev1.ResourceSlice) string {
			if s.Spec.NodeName == nil {
				return ""
			}
			return *s.Spec.NodeName
		},
		resourcev1.ResourceSliceSelectorDriver:   func(s *resourcev1.ResourceSlice) string { return s.Spec.Driver },
		resourcev1.ResourceSliceSelectorPoolName: func(s *resourcev1.ResourceSlice) string { return s.Spec.Pool.Name },
	},
	Columns: columns("Node, Driver, Pool"),
	Cells: func(s *resourcev1.ResourceSlice, now time.Time) []any {
		node := unset
		if s.Spec.NodeName != nil {
			node = *s.Spec.NodeName
		}
		return []any{s.Name, node, s.Spec.Driver, s.Spec.Pool.Name, age(s, now)}
	},
})
