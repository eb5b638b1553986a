package kind

import (
	storagev1 "k8s.io/api/storage/v1"
)

var CSIDriver = define[storagev1.CSIDriverList](Row[*storagev1.CSIDriver]{
	Names: Names{
		Group: "storage.k8s.io", Version: "v1", Kind: "CSIDriver", Plural: "csidrivers",
		Scope:  Cluster,
		Prefix: "csidrivers",
	},
})

var CSINode = define[storagev1.CSINodeList](Row[*storagev1.CSINode]{
	Names: Names{
		Group: "storage.k8s.io", Version: "v1", Kind: "CSINode", Plural: "csinodes",
		Scope:  Cluster,
		Prefix: "csinodes",
	},
})

var CSIStorageCapacity = define[storagev1.CSIStorageCapacityList](Row[*storagev1.CSIStorageCapacity]{
	Names: Names{
		Group: "storage.k8s.io", Version: "v1", Kind: "CSIStorageCapacity", Plural: "csistoragecapacities",
		Scope:  Namespaced,
		Prefix: "csistoragecapacities",
	},
})

var StorageClass = define[storagev1.StorageClassList](Row[*storagev1.StorageClass]{
	Names: Names{
		Group: "storage.k8s.io", Version: "v1", Kind: "StorageClass", Plural: "storageclasses",
		ShortNames: []string{"sc"},
		Scope:      Cluster,
		Prefix:     "storageclasses",
	},
	UnconditionalUpdate: true,
})

var VolumeAttachment = define[storagev1.VolumeAttachmentList](Row[*storagev1.VolumeAttachment]{
	Names: Names{
		Group: "storage.k8s.io", Version: "v1", Kind: "VolumeAttachment", Plural: "volumeattachments",
		Scope:  Cluster,
		Prefix: "volumeattachments",
	},
	Status: &DoorOf[*storagev1.VolumeAttachment]{},
})

var VolumeAttributesClass = define[storagev1.VolumeAttributesClassList](Row[*storagev1.VolumeAttributesClass]{
	Names: Names{
		Group: "storage.k8s.io", Version: "v1", Kind: "VolumeAttributesClass", Plural: "volumeattributesclasses",
		ShortNames: []string{"vac"},
		Scope:      Cluster,
		Prefix:     "volumeattributesclasses",
	},
})
