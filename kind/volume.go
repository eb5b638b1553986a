package kind

import (
	corev1 "k8s.io/api/core/v1"
)

var PersistentVolumeClaim = define[corev1.PersistentVolumeClaimList](Row[*corev1.PersistentVolumeClaim]{
	Names: Names{
		Group: "", Version: "v1", Kind: "PersistentVolumeClaim", Plural: "persistentvolumeclaims",
		ShortNames: []string{"pvc"},
		Scope:      Namespaced,
		Prefix:     "persistentvolumeclaims",
	},
	UnconditionalUpdate: true,
	Status:              &DoorOf[*corev1.PersistentVolumeClaim]{},
})

var PersistentVolume = define[corev1.PersistentVolumeList](Row[*corev1.PersistentVolume]{
	Names: Names{
		Group: "", Version: "v1", Kind: "PersistentVolume", Plural: "persistentvolumes",
		ShortNames: []string{"pv"},
		Scope:      Cluster,
		Prefix:     "persistentvolumes",
	},
	UnconditionalUpdate: true,
	Status:              &DoorOf[*corev1.PersistentVolume]{},
})
