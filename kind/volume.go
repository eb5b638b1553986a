package kind

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"proa.dev/kind/validate"
)

// PersistentVolumeClaim asks for storage.
var PersistentVolumeClaim = define[corev1.PersistentVolumeClaimList](Row[*corev1.PersistentVolumeClaim]{
	Names: Names{
		Group: "", Version: "v1", Kind: "PersistentVolumeClaim", Plural: "persistentvolumeclaims",
		ShortNames: []string{"pvc"},
		Scope:      Namespaced,
		Prefix:     "persistentvolumeclaims",
	},
	Validate:            validate.PersistentVolumeClaim,
	ValidateUpdate:      validate.PersistentVolumeClaimUpdate,
	UnconditionalUpdate: true,
	Default: func(c *corev1.PersistentVolumeClaim) {
		fill(&c.Status.Phase, corev1.ClaimPending)
		defaultClaimSpec(&c.Spec)
		roundQuantities(c.Status.Capacity)
		roundQuantities(c.Status.AllocatedResources)
	},
	PrepareCreate: func(c *corev1.PersistentVolumeClaim) {
		c.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
		normalizeDataSources(&c.Spec)
	},
	PrepareUpdate: func(new, old *corev1.PersistentVolumeClaim) {
		new.Status = old.Status
		normalizeDataSources(&new.Spec)
	},
	Status: &DoorOf[*corev1.PersistentVolumeClaim]{
		ValidateUpdate: validate.PersistentVolumeClaimStatusUpdate,
		PrepareUpdate:  func(new, old *corev1.PersistentVolumeClaim) { new.Spec = old.Spec },
	},
	Columns: columns("Status, Volume, Capacity, Access Modes, StorageClass, VolumeAttributesClass | VolumeMode"),
	Cells: func(c *corev1.PersistentVolumeClaim, now time.Time) []any {
		phase, capacity, modes := string(c.Status.Phase), "", ""
		if c.DeletionTimestamp != nil {
			phase = "Terminating"
		}
		if c.Spec.VolumeName != "" {
			q := c.Status.Capacity[corev1.ResourceStorage]
			capacity, modes = q.String(), accessModes(c.Status.AccessModes)
		}
		class := c.Annotations[corev1.BetaStorageClassAnnotation]
		fill(&class, ptr.Deref(c.Spec.StorageClassName, ""))
		return []any{c.Name, phase, c.Spec.VolumeName, capacity, modes, class, ptr.Deref(c.Spec.VolumeAttributesClassName, unset),
			age(c, now), volumeMode(c.Spec.VolumeMode)}
	},
})

// normalizeDataSources copies whichever of the two fields is set into the other.
func normalizeDataSources(s *corev1.PersistentVolumeClaimSpec) {
	switch {
	case s.DataSource != nil && s.DataSourceRef == nil:
		s.DataSourceRef = &corev1.TypedObjectReference{APIGroup: s.DataSource.APIGroup, Kind: s.DataSource.Kind, Name: s.DataSource.Name}
	case s.DataSourceRef != nil && s.DataSource == nil && ptr.Deref(s.DataSourceRef.Namespace, "") == "":
		s.DataSource = &corev1.TypedLocalObjectReference{APIGroup: s.DataSourceRef.APIGroup, Kind: s.DataSourceRef.Kind, Name: s.DataSourceRef.Name}
	}
}

// PersistentVolume is a piece of storage.
var PersistentVolume = define[corev1.PersistentVolumeList](Row[*corev1.PersistentVolume]{
	Names: Names{
		Group: "", Version: "v1", Kind: "PersistentVolume", Plural: "persistentvolumes",
		ShortNames: []string{"pv"},
		Scope:      Cluster,
		Prefix:     "persistentvolumes",
	},
	Validate:            validate.PersistentVolume,
	ValidateUpdate:      validate.PersistentVolumeUpdate,
	UnconditionalUpdate: true,
	Default:             defaultVolumeRecord,
	PrepareCreate: func(v *corev1.PersistentVolume) {
		v.Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumePending}
	},
	PrepareUpdate: func(new, old *corev1.PersistentVolume) { new.Status = old.Status },
	Status: &DoorOf[*corev1.PersistentVolume]{
		ValidateUpdate: validate.PersistentVolumeStatusUpdate,
		PrepareUpdate:  func(new, old *corev1.PersistentVolume) { new.Spec = old.Spec },
	},
	Columns: columns("Capacity, Access Modes, Reclaim Policy, Status, Claim, StorageClass, VolumeAttributesClass, Reason | VolumeMode"),
	Cells: func(v *corev1.PersistentVolume, now time.Time) []any {
		phase, claim := string(v.Status.Phase), ""
		if v.DeletionTimestamp != nil {
			phase = "Terminating"
		}
		if v.Spec.ClaimRef != nil {
			claim = v.Spec.ClaimRef.Namespace + "/" + v.Spec.ClaimRef.Name
		}
		class := v.Annotations[corev1.BetaStorageClassAnnotation]
		fill(&class, v.Spec.StorageClassName)
		size := v.Spec.Capacity[corev1.ResourceStorage]
		return []any{v.Name, size.String(), accessModes(v.Spec.AccessModes), string(v.Spec.PersistentVolumeReclaimPolicy), phase, claim,
			class, ptr.Deref(v.Spec.VolumeAttributesClassName, unset), v.Status.Reason, age(v, now), volumeMode(v.Spec.VolumeMode)}
	},
})

func defaultVolumeRecord(v *corev1.PersistentVolume) {
	s := &v.Spec
	fill(&v.Status.Phase, corev1.VolumePending)
	fill(&s.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
	fillPtr(&s.VolumeMode, corev1.PersistentVolumeFilesystem)
	roundQuantities(s.Capacity)
	switch {
	case s.HostPath != nil:
		fillPtr(&s.HostPath.Type, corev1.HostPathUnset)
	case s.ISCSI != nil:
		fill(&s.ISCSI.ISCSIInterface, "default")
	case s.RBD != nil:
		fill(&s.RBD.RBDPool, "rbd")
		fill(&s.RBD.RadosUser, "admin")
		fill(&s.RBD.Keyring, "/etc/ceph/keyring")
	case s.AzureDisk != nil:
		defaultAzureDisk(s.AzureDisk)
	case s.ScaleIO != nil:
		fill(&s.ScaleIO.StorageMode, "ThinProvisioned")
		fill(&s.ScaleIO.FSType, "xfs")
	}
}

// accessModes prints the usual abbreviations.
func accessModes(modes []corev1.PersistentVolumeAccessMode) string {
	short := map[corev1.PersistentVolumeAccessMode]string{
		corev1.ReadWriteOnce: "RWO", corev1.ReadOnlyMany: "ROX", corev1.ReadWriteMany: "RWX", corev1.ReadWriteOncePod: "RWOP",
	}
	given := map[corev1.PersistentVolumeAccessMode]bool{}
	for _, m := range modes {
		given[m] = true
	}
	var words []string
	for _, m := range []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOncePod} {
		if given[m] {
			words = append(words, short[m])
		}
	}
	return strings.Join(words, ",")
}

func volumeMode(m *corev1.PersistentVolumeMode) string { return string(ptr.Deref(m, unset)) }
