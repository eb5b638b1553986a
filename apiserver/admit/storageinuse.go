package admit

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// StorageObjectInUseProtection gives new claims, volumes and volume attribute
// classes the finalizer that keeps them while they are used; control/protection
// takes it away (docs, "Storage Object in Use Protection").
func StorageObjectInUseProtection() Plugin {
	return Plugin{Name: "StorageObjectInUseProtection", Mutate: func(_ context.Context, r *Request) error {
		if r.Operation != Create || r.Sub != "" || r.Object == nil {
			return nil
		}
		finalizer := ""
		switch r.Object.(type) {
		case *corev1.PersistentVolumeClaim:
			finalizer = "kubernetes.io/pvc-protection"
		case *corev1.PersistentVolume:
			finalizer = "kubernetes.io/pv-protection"
		case *storagev1.VolumeAttributesClass:
			finalizer = "kubernetes.io/vac-protection"
		default:
			return nil
		}
		if have := r.Object.GetFinalizers(); !slices.Contains(have, finalizer) {
			r.Object.SetFinalizers(append(slices.Clone(have), finalizer))
		}
		return nil
	}}
}
