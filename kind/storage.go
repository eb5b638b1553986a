package kind

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/utils/ptr"

	"proa.dev/kind/validate"
)

// CSIDriver describes a storage driver.
var CSIDriver = define[storagev1.CSIDriverList](Row[*storagev1.CSIDriver]{
	Names: Names{
		Group: "storage.k8s.io", Version: "v1", Kind: "CSIDriver", Plural: "csidrivers",
		Scope:  Cluster,
		Prefix: "csidrivers",
	},
	Validate:       validate.CSIDriver,
	ValidateUpdate: validate.CSIDriverUpdate,
	Default: func(d *storagev1.CSIDriver) {
		s := &d.Spec
		fillPtr(&s.AttachRequired, true)
		fillPtr(&s.PodInfoOnMount, false)
		fillPtr(&s.StorageCapacity, false)
		fillPtr(&s.FSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
		if len(s.VolumeLifecycleModes) == 0 {
			s.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
		}
		fillPtr(&s.RequiresRepublish, false)
		fillPtr(&s.SELinuxMount, false)
	},
	PrepareCreate: func(d *storagev1.CSIDriver) { d.Generation = 1 },
	PrepareUpdate: func(new, old *storagev1.CSIDriver) { raiseIf(!same(new.Spec, old.Spec), new) },
	Columns:       columns("AttachRequired:boolean, PodInfoOnMount:boolean, StorageCapacity:boolean, TokenRequests, RequiresRepublish:boolean, Modes"),
	Cells: func(d *storagev1.CSIDriver, now time.Time) []any {
		var tokens, modes []string
		for _, t := range d.Spec.TokenRequests {
			tokens = append(tokens, t.Audience)
		}
		for _, m := range d.Spec.VolumeLifecycleModes {
			modes = append(modes, string(m))
		}
		requests := unset
		if d.Spec.TokenRequests != nil {
			requests = strings.Join(tokens, ",")
		}
		return []any{d.Name, ptr.Deref(d.Spec.AttachRequired, true), ptr.Deref(d.Spec.PodInfoOnMount, false), ptr.Deref(d.Spec.StorageCapacity, false),
			requests, ptr.Deref(d.Spec.RequiresRepublish, false), orNone(strings.Join(modes, ",")), age(d, now)}
	},
})

// CSINode lists the storage drivers of one node.
var CSINode = define[storagev1.CSINodeList](Row[*storagev1.CSINode]{
	Names: Names{
		Group: "storage.k8s.io", Version: "v1", Kind: "CSINode", Plural: "csinodes",
		Scope:  Cluster,
		Prefix: "csinodes",
	},
	Validate:       validate.CSINode,
	ValidateUpdate: validate.CSINodeUpdate,
	Columns:        columns("Drivers:integer"),
	Cells: func(n *storagev1.CSINode, now time.Time) []any {
		return []any{n.Name, int64(len(n.Spec.Drivers)), age(n, now)}
	},
})

// CSIStorageCapacity says how much room a driver has for a class in a part of
// the cluster.
var CSIStorageCapacity = define[storagev1.CSIStorageCapacityList](Row[*storagev1.CSIStorageCapacity]{
	Names: Names{
		Group: "storage.k8s.io", Version: "v1", Kind: "CSIStorageCapacity", Plural: "csistoragecapacities",
		Scope:  Namespaced,
		Prefix: "csistoragecapacities",
	},
	Validate:       validate.CSIStorageCapacity,
	ValidateUpdate: validate.CSIStorageCapacityUpdate,
	Columns:        columnsExactly("Name, StorageClassName, Capacity"),
	Cells: func(c *storagev1.CSIStorageCapacity, _ time.Time) []any {
		capacity := unset
		if c.Capacity != nil {
			capacity = c.Capacity.String()
		}
		return []any{c.Name, c.StorageClassName, capacity}
	},
})

// StorageClass names a way to make volumes.
var StorageClass = define[storagev1.StorageClassList](Row[*storagev1.StorageClass]{
	Names: Names{
		Group: "storage.k8s.io", Version: "v1", Kind: "StorageClass", Plural: "storageclasses",
		ShortNames: []string{"sc"},
		Scope:      Cluster,
		Prefix:     "storageclasses",
	},
	Validate:            validate.StorageClass,
	ValidateUpdate:      validate.StorageClassUpdate,
	UnconditionalUpdate: true,
	Default: func(c *storagev1.StorageClass) {
		fillPtr(&c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
		fillPtr(&c.VolumeBindingMode, storagev1.VolumeBindingImmediate)
	},
	Columns: columnsExactly("Name, Provisioner, ReclaimPolicy, VolumeBindingMode, AllowVolumeExpansion, Age"),
	Cells: func(c *storagev1.StorageClass, now time.Time) []any {
		name := c.Name
		if c.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" || c.Annotations["storageclass.beta.kubernetes.io/is-default-class"] == "true" {
			name += " (default)"
		}
		return []any{name, c.Provisioner, string(ptr.Deref(c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)),
			string(ptr.Deref(c.VolumeBindingMode, storagev1.VolumeBindingImmediate)), ptr.Deref(c.AllowVolumeExpansion, false), age(c, now)}
	},
})

// VolumeAttachment attaches a volume to a node.
var VolumeAttachment = define[storagev1.VolumeAttachmentList](Row[*storagev1.VolumeAttachment]{
	Names: Names{
		Group: "storage.k8s.io", Version: "v1", Kind: "VolumeAttachment", Plural: "volumeattachments",
		Scope:  Cluster,
		Prefix: "volumeattachments",
	},
	Validate:       validate.VolumeAttachment,
	ValidateUpdate: validate.VolumeAttachmentUpdate,
	PrepareCreate:  func(a *storagev1.VolumeAttachment) { a.Status = storagev1.VolumeAttachmentStatus{} },
	PrepareUpdate:  func(new, old *storagev1.VolumeAttachment) { new.Status = old.Status },
	Status: &DoorOf[*storagev1.VolumeAttachment]{
		ValidateUpdate: validate.VolumeAttachmentUpdate,
		PrepareUpdate:  func(new, old *storagev1.VolumeAttachment) { new.Spec = old.Spec },
	},
	Columns: columns("Attacher:name, PV, Node, Attached:boolean"),
	Cells: func(a *storagev1.VolumeAttachment, now time.Time) []any {
		return []any{a.Name, a.Spec.Attacher, ptr.Deref(a.Spec.Source.PersistentVolumeName, ""), a.Spec.NodeName,
			a.Status.Attached, age(a, now)}
	},
})

// VolumeAttributesClass names changeable properties of volumes.
var VolumeAttributesClass = define[storagev1.VolumeAttributesClassList](Row[*storagev1.VolumeAttributesClass]{
	Names: Names{
		Group: "storage.k8s.io", Version: "v1", Kind: "VolumeAttributesClass", Plural: "volumeattributesclasses",
		ShortNames: []string{"vac"},
		Scope:      Cluster,
		Prefix:     "volumeattributesclasses",
	},
	Validate:       validate.VolumeAttributesClass,
	ValidateUpdate: validate.VolumeAttributesClassUpdate,
	Columns:        columns("DriverName"),
	Cells: func(c *storagev1.VolumeAttributesClass, now time.Time) []any {
		name := c.Name
		if c.Annotations["volumeattributesclass.alpha.kubernetes.io/is-default-class"] == "true" {
			name += " (default)"
		}
		return []any{name, c.DriverName, age(c, now)}
	},
})
