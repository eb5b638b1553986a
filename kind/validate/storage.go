package validate

import (
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Bounds of the storage kinds.
const (
	maxProvisionerParameters     = 512
	maxProvisionerParametersSize = 256 * 1024
	maxAttachedMetadata          = 256 * 1024
	maxVolumeErrorMessage        = 1024
	maxNodeIDBytes               = 256
)

// PersistentVolume checks a new volume.
func PersistentVolume(pv *corev1.PersistentVolume) field.ErrorList {
	errs := ObjectMeta(&pv.ObjectMeta, false, NameDNSSubdomain, meta())
	s, p := &pv.Spec, spec()
	if len(s.AccessModes) == 0 {
		errs = append(errs, field.Required(p.Child("accessModes"), ""))
	}
	errs = append(errs, accessModeList(s.AccessModes, p.Child("accessModes"))...)
	if len(s.Capacity) == 0 {
		errs = append(errs, field.Required(p.Child("capacity"), ""))
	}
	if _, ok := s.Capacity[corev1.ResourceStorage]; !ok || len(s.Capacity) > 1 {
		errs = append(errs, field.NotSupported(p.Child("capacity"), s.Capacity, []corev1.ResourceName{corev1.ResourceStorage}))
	}
	for _, name := range sortedNames(s.Capacity) {
		kp := p.Child("capacity").Key(string(name))
		q := s.Capacity[name]
		errs = append(errs, resourceName(string(name), kp)...)
		errs = append(errs, positiveQuantity(q, kp)...)
	}
	if s.PersistentVolumeReclaimPolicy != "" {
		errs = append(errs, supported(s.PersistentVolumeReclaimPolicy, p.Child("persistentVolumeReclaimPolicy"),
			corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain)...)
	}
	if s.NodeAffinity != nil && s.NodeAffinity.Required != nil {
		errs = append(errs, nodeSelector(s.NodeAffinity.Required, p.Child("nodeAffinity", "required"))...)
	} else if s.NodeAffinity != nil {
		errs = append(errs, field.Required(p.Child("nodeAffinity", "required"), "must specify required node constraints"))
	}
	errs = append(errs, persistentSource(pv, p)...)
	if s.HostPath != nil && path.Clean(s.HostPath.Path) == "/" && s.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		errs = append(errs, field.Forbidden(p.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'"))
	}
	if s.StorageClassName != "" {
		errs = append(errs, invalid(p.Child("storageClassName"), s.StorageClassName, NameDNSSubdomain(s.StorageClassName, false))...)
	}
	if s.VolumeMode != nil {
		errs = append(errs, supported(*s.VolumeMode, p.Child("volumeMode"), volumeModes...)...)
	}
	if n := s.VolumeAttributesClassName; n != nil {
		if *n == "" {
			errs = append(errs, field.Required(p.Child("volumeAttributesClassName"), "an empty string is disallowed"))
		} else {
			errs = append(errs, invalid(p.Child("volumeAttributesClassName"), *n, NameDNSSubdomain(*n, false))...)
		}
		if s.CSI == nil {
			errs = append(errs, field.Required(p.Child("csi"), "has to be specified when using volumeAttributesClassName"))
		}
	}
	return errs
}

// persistentSource checks that a volume has one source and what it says.
func persistentSource(pv *corev1.PersistentVolume, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	s := &pv.Spec.PersistentVolumeSource
	value, count := reflect.ValueOf(*s), 0
	for i := range value.NumField() {
		if value.Field(i).IsNil() {
			continue
		}
		count++
		if count > 1 {
			name, _, _ := strings.Cut(value.Type().Field(i).Tag.Get("json"), ",")
			errs = append(errs, field.Forbidden(p.Child(name), oneVolumeType))
		}
	}
	if count == 0 {
		return append(errs, field.Required(p, "must specify a volume type"))
	}
	if count > 1 {
		return errs
	}
	add := func(more field.ErrorList) { errs = append(errs, more...) }
	switch {
	case s.HostPath != nil:
		add(hostPath(s.HostPath, p.Child("hostPath")))
	case s.Local != nil:
		if s.Local.Path == "" {
			errs = append(errs, field.Required(p.Child("local", "path"), ""))
		} else {
			add(noBacksteps(s.Local.Path, p.Child("local", "path")))
		}
		if pv.Spec.NodeAffinity == nil {
			errs = append(errs, field.Required(p.Child("nodeAffinity"), "Local volume requires node affinity"))
		}
	case s.NFS != nil:
		add(nfs(s.NFS, p.Child("nfs")))
	case s.GCEPersistentDisk != nil:
		add(required(s.GCEPersistentDisk.PDName, p.Child("gcePersistentDisk", "pdName")))
		add(partition(s.GCEPersistentDisk.Partition, p.Child("gcePersistentDisk", "partition")))
	case s.AWSElasticBlockStore != nil:
		add(required(s.AWSElasticBlockStore.VolumeID, p.Child("awsElasticBlockStore", "volumeID")))
		add(partition(s.AWSElasticBlockStore.Partition, p.Child("awsElasticBlockStore", "partition")))
	case s.Glusterfs != nil:
		add(required(s.Glusterfs.EndpointsName, p.Child("glusterfs", "endpoints")))
		add(required(s.Glusterfs.Path, p.Child("glusterfs", "path")))
	case s.RBD != nil:
		add(rbd(s.RBD.CephMonitors, s.RBD.RBDImage, p.Child("rbd")))
	case s.ISCSI != nil:
		add(iscsi(s.ISCSI.TargetPortal, s.ISCSI.IQN, s.ISCSI.Lun, s.ISCSI.InitiatorName, s.ISCSI.DiscoveryCHAPAuth || s.ISCSI.SessionCHAPAuth, s.ISCSI.SecretRef != nil, p.Child("iscsi")))
	case s.Cinder != nil:
		add(required(s.Cinder.VolumeID, p.Child("cinder", "volumeID")))
	case s.CephFS != nil:
		if len(s.CephFS.Monitors) == 0 {
			errs = append(errs, field.Required(p.Child("cephfs", "monitors"), ""))
		}
	case s.FC != nil:
		add(fc(s.FC, p.Child("fc")))
	case s.Flocker != nil:
		add(flocker(s.Flocker, p.Child("flocker")))
	case s.FlexVolume != nil:
		add(flexVolume(s.FlexVolume.Driver, s.FlexVolume.Options, p.Child("flexVolume")))
	case s.AzureFile != nil:
		add(required(s.AzureFile.SecretName, p.Child("azureFile", "secretName")))
		add(required(s.AzureFile.ShareName, p.Child("azureFile", "shareName")))
	case s.VsphereVolume != nil:
		add(required(s.VsphereVolume.VolumePath, p.Child("vsphereVolume", "volumePath")))
	case s.Quobyte != nil:
		add(quobyte(s.Quobyte, p.Child("quobyte")))
	case s.AzureDisk != nil:
		add(azureDisk(s.AzureDisk, p.Child("azureDisk")))
	case s.PhotonPersistentDisk != nil:
		add(required(s.PhotonPersistentDisk.PdID, p.Child("photonPersistentDisk", "pdID")))
	case s.PortworxVolume != nil:
		add(required(s.PortworxVolume.VolumeID, p.Child("portworxVolume", "volumeID")))
	case s.ScaleIO != nil:
		add(scaleIO(s.ScaleIO.Gateway, s.ScaleIO.System, s.ScaleIO.VolumeName, p.Child("scaleIO")))
	case s.StorageOS != nil:
		add(storageOS(s.StorageOS.VolumeName, s.StorageOS.VolumeNamespace, p.Child("storageos")))
	case s.CSI != nil:
		c, cp := s.CSI, p.Child("csi")
		add(csiDriverName(c.Driver, cp.Child("driver")))
		add(required(c.VolumeHandle, cp.Child("volumeHandle")))
		for _, f := range []struct {
			name string
			ref  *corev1.SecretReference
		}{{"controllerPublishSecretRef", c.ControllerPublishSecretRef}, {"controllerExpandSecretRef", c.ControllerExpandSecretRef},
			{"nodePublishSecretRef", c.NodePublishSecretRef}, {"nodeExpandSecretRef", c.NodeExpandSecretRef}, {"nodeStageSecretRef", c.NodeStageSecretRef}} {
			if f.ref == nil {
				continue
			}
			rp := cp.Child(f.name)
			if f.ref.Name == "" {
				errs = append(errs, field.Required(rp.Child("name"), ""))
			} else {
				add(dnsSubdomain(f.ref.Name, rp.Child("name")))
			}
			if f.ref.Namespace == "" {
				errs = append(errs, field.Required(rp.Child("namespace"), ""))
			} else {
				add(dnsLabel(f.ref.Namespace, rp.Child("namespace")))
			}
		}
	}
	return errs
}

// PersistentVolumeUpdate checks an update of a volume: its source stays.
func PersistentVolumeUpdate(new, old *corev1.PersistentVolume) field.ErrorList {
	errs := PersistentVolume(new)
	errs = append(errs, ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
	if !equality.Semantic.DeepEqual(new.Spec.PersistentVolumeSource, old.Spec.PersistentVolumeSource) {
		errs = append(errs, field.Forbidden(spec().Child("persistentvolumesource"), fmt.Sprintf("spec.persistentvolumesource is immutable after creation\n%v", diff.Diff(old.Spec.PersistentVolumeSource, new.Spec.PersistentVolumeSource))))
	}
	errs = append(errs, unchanged(new.Spec.VolumeMode, old.Spec.VolumeMode, spec().Child("volumeMode"))...)
	if old.Spec.NodeAffinity != nil {
		errs = append(errs, unchanged(new.Spec.NodeAffinity, old.Spec.NodeAffinity, spec().Child("nodeAffinity"))...)
	}
	return errs
}

// PersistentVolumeStatusUpdate checks an update of a volume's status.
func PersistentVolumeStatusUpdate(new, old *corev1.PersistentVolume) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	if new.ResourceVersion == "" {
		errs = append(errs, field.Required(field.NewPath("resourceVersion"), ""))
	}
	return errs
}

// PersistentVolumeClaim checks a new claim.
func PersistentVolumeClaim(c *corev1.PersistentVolumeClaim) field.ErrorList {
	errs := ObjectMeta(&c.ObjectMeta, true, NameDNSSubdomain, meta())
	return append(errs, claimSpec(&c.Spec, spec())...)
}

// PersistentVolumeClaimUpdate checks an update of a claim: a bound one may grow.
func PersistentVolumeClaimUpdate(new, old *corev1.PersistentVolumeClaim) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, claimSpec(&new.Spec, spec())...)
	before, after := old.Spec.DeepCopy(), new.Spec.DeepCopy()
	if before.VolumeName == "" {
		before.VolumeName = after.VolumeName // the binder fills it in
	}
	bound := new.Status.Phase == corev1.ClaimBound && old.Status.Phase == corev1.ClaimBound
	if bound && after.Resources.Requests != nil {
		if q, ok := before.Resources.Requests[corev1.ResourceStorage]; ok {
			after.Resources.Requests[corev1.ResourceStorage] = q
		}
	}
	if bound {
		after.VolumeAttributesClassName = before.VolumeAttributesClassName
	}
	// An unset class of a claim may be filled in later.
	if before.StorageClassName == nil && before.VolumeName == "" && after.StorageClassName != nil {
		before.StorageClassName = after.StorageClassName
	}
	if !equality.Semantic.DeepEqual(after, before) {
		errs = append(errs, field.Forbidden(spec(), fmt.Sprintf("spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n%v", diff.Diff(old.Spec, new.Spec))))
	}
	is, was, capacity := new.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage], old.Status.Capacity[corev1.ResourceStorage]
	if is.Cmp(was) < 0 && is.Cmp(capacity) <= 0 {
		errs = append(errs, field.Forbidden(spec().Child("resources", "requests", "storage"), "field can not be less than status.capacity"))
	}
	errs = append(errs, unchanged(new.Spec.VolumeMode, old.Spec.VolumeMode, spec().Child("volumeMode"))...)
	if deref(old.Spec.VolumeAttributesClassName) != "" && deref(new.Spec.VolumeAttributesClassName) == "" {
		errs = append(errs, field.Forbidden(spec().Child("volumeAttributesClassName"), "update from non-nil value to nil is forbidden"))
	}
	return errs
}

// PersistentVolumeClaimStatusUpdate checks an update of a claim's status.
func PersistentVolumeClaimStatusUpdate(new, old *corev1.PersistentVolumeClaim) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	if new.ResourceVersion == "" {
		errs = append(errs, field.Required(field.NewPath("resourceVersion"), ""))
	}
	for _, name := range sortedNames(new.Status.Capacity) {
		p := status().Child("capacity").Key(string(name))
		errs = append(errs, resourceName(string(name), p)...)
		errs = append(errs, resourceQuantity(string(name), new.Status.Capacity[name], p)...)
	}
	return errs
}

// StorageClass checks a new storage class.
func StorageClass(c *storagev1.StorageClass) field.ErrorList {
	errs := ObjectMeta(&c.ObjectMeta, false, NameDNSSubdomain, meta())
	errs = append(errs, provisioner(c.Provisioner, field.NewPath("provisioner"))...)
	errs = append(errs, provisionerParameters(c.Parameters, true, field.NewPath("parameters"))...)
	if c.ReclaimPolicy != nil && *c.ReclaimPolicy != "" {
		errs = append(errs, supported(*c.ReclaimPolicy, field.NewPath("reclaimPolicy"), corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain)...)
	}
	if c.VolumeBindingMode == nil {
		errs = append(errs, field.Required(field.NewPath("volumeBindingMode"), ""))
	} else {
		errs = append(errs, supported(*c.VolumeBindingMode, field.NewPath("volumeBindingMode"), storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer)...)
	}
	for i, t := range c.AllowedTopologies {
		p := field.NewPath("allowedTopologies").Index(i).Child("matchLabelExpressions")
		seen := sets.New[string]()
		for j, e := range t.MatchLabelExpressions {
			errs = append(errs, labelName(e.Key, p.Index(j).Child("key"))...)
			if seen.Has(e.Key) {
				errs = append(errs, field.Duplicate(p.Index(j).Child("key"), e.Key))
			}
			seen.Insert(e.Key)
			if len(e.Values) == 0 {
				errs = append(errs, field.Required(p.Index(j).Child("values"), ""))
			}
			for k, v := range e.Values {
				if slices.Contains(e.Values[:k], v) {
					errs = append(errs, field.Duplicate(p.Index(j).Child("values").Index(k), v))
				}
			}
		}
	}
	return errs
}

func provisioner(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return qualifiedName(strings.ToLower(name), path)
}

func provisionerParameters(params map[string]string, allowEmpty bool, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(params) > maxProvisionerParameters {
		return append(errs, field.TooLong(path, "", maxProvisionerParameters))
	}
	size := 0
	for k, v := range params {
		if k == "" {
			errs = append(errs, field.Invalid(path, k, "field can not be empty."))
		}
		size += len(k) + len(v)
	}
	if size > maxProvisionerParametersSize {
		errs = append(errs, field.TooLong(path, "", maxProvisionerParametersSize))
	}
	if !allowEmpty && len(params) == 0 {
		errs = append(errs, field.Required(path, "must contain at least one key/value pair"))
	}
	return errs
}

const parametersForbidden = "updates to parameters are forbidden."

// StorageClassUpdate checks an update of a storage class.
func StorageClassUpdate(new, old *storagev1.StorageClass) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, fixed(new.Parameters, old.Parameters, field.NewPath("parameters"))...)
	errs = append(errs, fixed(new.Provisioner, old.Provisioner, field.NewPath("provisioner"))...)
	errs = append(errs, fixed(new.ReclaimPolicy, old.ReclaimPolicy, field.NewPath("reclaimPolicy"))...)
	return append(errs, fixed(new.VolumeBindingMode, old.VolumeBindingMode, field.NewPath("volumeBindingMode"))...)
}

// VolumeAttributesClass checks a new class of volume attributes.
func VolumeAttributesClass(c *storagev1.VolumeAttributesClass) field.ErrorList {
	errs := ObjectMeta(&c.ObjectMeta, false, NameDNSSubdomain, meta())
	errs = append(errs, provisioner(c.DriverName, field.NewPath("driverName"))...)
	return append(errs, provisionerParameters(c.Parameters, false, field.NewPath("parameters"))...)
}

// VolumeAttributesClassUpdate checks an update: driver and parameters stay.
func VolumeAttributesClassUpdate(new, old *storagev1.VolumeAttributesClass) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	if new.DriverName != old.DriverName {
		errs = append(errs, field.Forbidden(field.NewPath("driverName"), "updates to driverName are forbidden."))
	}
	if !equality.Semantic.DeepEqual(new.Parameters, old.Parameters) {
		errs = append(errs, field.Forbidden(field.NewPath("parameters"), parametersForbidden))
	}
	return errs
}

// VolumeAttachment checks a new attachment.
func VolumeAttachment(a *storagev1.VolumeAttachment) field.ErrorList {
	errs := ObjectMeta(&a.ObjectMeta, false, NameDNSSubdomain, meta())
	errs = append(errs, csiDriverName(a.Spec.Attacher, spec().Child("attacher"))...)
	p := spec().Child("source")
	src := a.Spec.Source
	switch {
	case src.InlineVolumeSpec == nil && src.PersistentVolumeName == nil:
		errs = append(errs, field.Required(p, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
	case src.InlineVolumeSpec != nil && src.PersistentVolumeName != nil:
		errs = append(errs, field.Forbidden(p, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
	case src.PersistentVolumeName != nil:
		if *src.PersistentVolumeName == "" {
			errs = append(errs, field.Required(p.Child("persistentVolumeName"), "must specify non empty persistentVolumeName"))
		} else {
			errs = append(errs, invalid(p.Child("persistentVolumeName"), *src.PersistentVolumeName, NameDNSSubdomain(*src.PersistentVolumeName, false))...)
		}
	}
	errs = append(errs, invalid(spec().Child("nodeName"), a.Spec.NodeName, NameDNSSubdomain(a.Spec.NodeName, false))...)
	return append(errs, attachmentStatus(&a.Status)...)
}

func attachmentStatus(s *storagev1.VolumeAttachmentStatus) field.ErrorList {
	var errs field.ErrorList
	size := 0
	for k, v := range s.AttachmentMetadata {
		size += len(k) + len(v)
	}
	if size > maxAttachedMetadata {
		errs = append(errs, field.TooLong(status().Child("attachmentMetadata"), "", maxAttachedMetadata))
	}
	for _, f := range []struct {
		name string
		err  *storagev1.VolumeError
	}{{"attachError", s.AttachError}, {"detachError", s.DetachError}} {
		if f.err != nil && len(f.err.Message) > maxVolumeErrorMessage {
			errs = append(errs, field.TooLong(status().Child(f.name, "message"), "", maxVolumeErrorMessage))
		}
	}
	return errs
}

// VolumeAttachmentUpdate checks an update, also of the status: the spec stays.
func VolumeAttachmentUpdate(new, old *storagev1.VolumeAttachment) field.ErrorList {
	errs := VolumeAttachment(new)
	errs = append(errs, fixed(new.Spec, old.Spec, spec())...)
	return append(errs, ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
}

// CSIDriver checks a new driver.
func CSIDriver(d *storagev1.CSIDriver) field.ErrorList {
	errs := ObjectMeta(&d.ObjectMeta, false, NameDNSSubdomain, meta())
	errs = append(errs, csiDriverName(d.Name, meta().Child("name"))...)
	return append(errs, csiDriverSpec(&d.Spec)...)
}

func csiDriverSpec(s *storagev1.CSIDriverSpec) field.ErrorList {
	var errs field.ErrorList
	for _, f := range []struct {
		name  string
		unset bool
	}{{"attachRequired", s.AttachRequired == nil}, {"podInfoOnMount", s.PodInfoOnMount == nil}, {"storageCapacity", s.StorageCapacity == nil}, {"seLinuxMount", s.SELinuxMount == nil}} {
		if f.unset {
			errs = append(errs, field.Required(spec().Child(f.name), ""))
		}
	}
	if s.FSGroupPolicy == nil {
		errs = append(errs, field.Required(spec().Child("fsGroupPolicy"), ""))
	} else {
		errs = append(errs, supported(*s.FSGroupPolicy, spec().Child("fsGroupPolicy"), storagev1.FileFSGroupPolicy, storagev1.NoneFSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)...)
	}
	audiences := sets.New[string]()
	for i, t := range s.TokenRequests {
		p := spec().Child("tokenRequests").Index(i)
		if audiences.Has(t.Audience) {
			errs = append(errs, field.Duplicate(p.Child("audience"), t.Audience))
		}
		audiences.Insert(t.Audience)
		if e := t.ExpirationSeconds; e != nil && *e < minTokenSeconds {
			errs = append(errs, field.Invalid(p.Child("expirationSeconds"), *e, "may not specify a duration less than 10 minutes"))
		} else if e != nil && *e > 1<<32 {
			errs = append(errs, field.Invalid(p.Child("expirationSeconds"), *e, "may not specify a duration larger than 2^32 seconds"))
		}
	}
	modes := sets.New[storagev1.VolumeLifecycleMode]()
	for i, m := range s.VolumeLifecycleModes {
		p := spec().Child("volumeLifecycleModes").Index(i)
		errs = append(errs, supported(m, p, storagev1.VolumeLifecycleEphemeral, storagev1.VolumeLifecyclePersistent)...)
		if modes.Has(m) {
			errs = append(errs, field.Duplicate(p, m))
		}
		modes.Insert(m)
	}
	if n := s.NodeAllocatableUpdatePeriodSeconds; n != nil && *n < 10 {
		errs = append(errs, field.Invalid(spec().Child("nodeAllocatableUpdatePeriodSeconds"), *n, "must be greater than or equal to 10 seconds"))
	}
	return errs
}

// CSIDriverUpdate checks an update of a driver.
func CSIDriverUpdate(new, old *storagev1.CSIDriver) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, csiDriverSpec(&new.Spec)...)
	errs = append(errs, unchanged(new.Spec.AttachRequired, old.Spec.AttachRequired, spec().Child("attachedRequired"))...)
	return append(errs, unchanged(new.Spec.VolumeLifecycleModes, old.Spec.VolumeLifecycleModes, spec().Child("volumeLifecycleModes"))...)
}

// CSINode checks a new CSINode.
func CSINode(n *storagev1.CSINode) field.ErrorList {
	errs := ObjectMeta(&n.ObjectMeta, false, NameDNSSubdomain, meta())
	return append(errs, csiNodeDrivers(n.Spec.Drivers)...)
}

func csiNodeDrivers(drivers []storagev1.CSINodeDriver) field.ErrorList {
	var errs field.ErrorList
	seen := sets.New[string]()
	for i, d := range drivers {
		p := spec().Child("drivers").Index(i)
		errs = append(errs, csiDriverName(d.Name, p.Child("name"))...)
		if d.NodeID == "" {
			errs = append(errs, field.Required(p.Child("nodeID"), ""))
		} else if len(d.NodeID) > maxNodeIDBytes {
			errs = append(errs, field.Invalid(p.Child("nodeID"), d.NodeID, fmt.Sprintf("must be %d characters or less", maxNodeIDBytes)))
		}
		if d.Allocatable != nil && d.Allocatable.Count != nil {
			errs = append(errs, nonNegative(int64(*d.Allocatable.Count), p.Child("allocatable", "count"))...)
		}
		if seen.Has(d.Name) {
			errs = append(errs, field.Duplicate(p.Child("name"), d.Name))
		}
		seen.Insert(d.Name)
		keys := sets.New[string]()
		for _, k := range d.TopologyKeys {
			if k == "" || keys.Has(k) {
				if k == "" {
					errs = append(errs, field.Required(p.Child("topologyKeys"), ""))
				} else {
					errs = append(errs, field.Duplicate(p.Child("topologyKeys"), k))
				}
			}
			keys.Insert(k)
			errs = append(errs, qualifiedName(k, p.Child("topologyKeys"))...)
		}
	}
	return errs
}

// CSINodeUpdate checks an update of a CSINode: a driver that stays, stays as it is.
func CSINodeUpdate(new, old *storagev1.CSINode) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, csiNodeDrivers(new.Spec.Drivers)...)
	for _, was := range old.Spec.Drivers {
		for _, is := range new.Spec.Drivers {
			was, is := was, is
			was.Allocatable, is.Allocatable = nil, nil
			if is.Name == was.Name && !equality.Semantic.DeepEqual(is, was) {
				errs = append(errs, field.Invalid(field.NewPath("CSINodeDriver"), is, immutable))
			}
		}
	}
	return errs
}

// CSIStorageCapacity checks a new capacity record.
func CSIStorageCapacity(c *storagev1.CSIStorageCapacity) field.ErrorList {
	errs := ObjectMeta(&c.ObjectMeta, true, NameDNSSubdomain, meta())
	errs = append(errs, invalid(field.NewPath("storageClassName"), c.StorageClassName, NameDNSSubdomain(c.StorageClassName, false))...)
	errs = append(errs, labelSelector(c.NodeTopology, field.NewPath("nodeTopology"))...)
	if c.Capacity != nil {
		errs = append(errs, nonNegativeQuantity(*c.Capacity, field.NewPath("capacity"))...)
	}
	if c.MaximumVolumeSize != nil {
		errs = append(errs, nonNegativeQuantity(*c.MaximumVolumeSize, field.NewPath("maximumVolumeSize"))...)
	}
	return errs
}

// CSIStorageCapacityUpdate checks an update: place and class stay.
func CSIStorageCapacityUpdate(new, old *storagev1.CSIStorageCapacity) field.ErrorList {
	errs := append(CSIStorageCapacity(new), ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
	errs = append(errs, unchanged(new.NodeTopology, old.NodeTopology, field.NewPath("nodeTopology"))...)
	return append(errs, unchanged(new.StorageClassName, old.StorageClassName, field.NewPath("storageClassName"))...)
}
