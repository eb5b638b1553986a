package validate

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
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
	return append(errs, volumeSpec(&pv.Spec, pv.Name, false, spec())...)
}

// volumeSpec checks a volume. One that is inline, in an attachment, is a volume of
// a storage driver of which the cluster knows nothing more.
func volumeSpec(s *corev1.PersistentVolumeSpec, name string, inline bool, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if inline {
		errs = append(errs, inlineVolume(s, p)...)
	}
	if len(s.AccessModes) == 0 {
		errs = append(errs, field.Required(p.Child("accessModes"), ""))
	}
	errs = append(errs, accessModeList(s.AccessModes, p.Child("accessModes"))...)
	if !inline {
		errs = append(errs, volumeCapacity(s, p)...)
	}
	errs = append(errs, persistentSource(s, name, p)...)
	if s.HostPath != nil && path.Clean(s.HostPath.Path) == "/" && s.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		errs = append(errs, field.Forbidden(p.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'"))
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

// inlineVolume forbids what only a volume of its own has.
func inlineVolume(s *corev1.PersistentVolumeSpec, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	const why = " in the context of inline volumes"
	for _, f := range []struct {
		name string
		set  bool
		msg  string
	}{
		{"claimRef", s.ClaimRef != nil, "may not be specified"},
		{"capacity", len(s.Capacity) != 0, "may not be specified"},
		{"persistentVolumeReclaimPolicy", s.PersistentVolumeReclaimPolicy != "" && s.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain, "may only be Retain"},
		{"nodeAffinity", s.NodeAffinity != nil, "may not be specified"},
		{"storageClassName", s.StorageClassName != "", "may not be specified"},
		{"volumeMode", s.VolumeMode != nil && *s.VolumeMode != corev1.PersistentVolumeFilesystem, "may not specify volumeMode other than Filesystem"},
	} {
		if f.set {
			errs = append(errs, field.Forbidden(p.Child(f.name), f.msg+why))
		}
	}
	if s.CSI == nil {
		errs = append(errs, field.Required(p.Child("csi"), "has to be specified"+why))
	}
	return errs
}

// volumeCapacity checks what inline volumes have not.
func volumeCapacity(s *corev1.PersistentVolumeSpec, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(s.Capacity) == 0 {
		errs = append(errs, field.Required(p.Child("capacity"), ""))
	}
	if _, ok := s.Capacity[corev1.ResourceStorage]; !ok || len(s.Capacity) > 1 {
		errs = append(errs, field.NotSupported(p.Child("capacity"), s.Capacity, []corev1.ResourceName{corev1.ResourceStorage}))
	}
	for _, name := range sortedNames(s.Capacity) {
		kp := p.Child("capacity").Key(string(name))
		errs = append(errs, basicQuantity(s.Capacity[name], kp)...)
		errs = append(errs, positiveQuantity(s.Capacity[name], kp)...)
	}
	if s.PersistentVolumeReclaimPolicy != "" {
		errs = append(errs, supported(s.PersistentVolumeReclaimPolicy, p.Child("persistentVolumeReclaimPolicy"),
			corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain)...)
	}
	if a := s.NodeAffinity; a != nil && a.Required != nil {
		errs = append(errs, nodeSelector(a.Required, p.Child("nodeAffinity", "required"))...)
	} else if a != nil {
		errs = append(errs, field.Required(p.Child("nodeAffinity", "required"), "must specify required node constraints"))
	}
	if s.StorageClassName != "" {
		errs = append(errs, invalid(p.Child("storageClassName"), s.StorageClassName, NameDNSSubdomain(s.StorageClassName, false))...)
	}
	if s.VolumeMode != nil {
		errs = append(errs, supported(*s.VolumeMode, p.Child("volumeMode"), volumeModes...)...)
	}
	return errs
}

// basicQuantity refuses what is less than nothing.
func basicQuantity(q resource.Quantity, p *field.Path) field.ErrorList {
	if q.Value() < 0 {
		return field.ErrorList{field.Invalid(p, q.Value(), "must be a valid resource quantity")}
	}
	return nil
}

// persistentSource checks that a volume has one source and what it says: of several
// the first one is looked at.
func persistentSource(v *corev1.PersistentVolumeSpec, name string, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	s := &v.PersistentVolumeSource
	count := 0
	is := func(set bool, name string) bool {
		if !set {
			return false
		}
		if count++; count > 1 {
			errs = append(errs, field.Forbidden(p.Child(name), oneVolumeType))
		}
		return count == 1
	}
	add := func(more field.ErrorList) { errs = append(errs, more...) }
	must := func(value string, names ...string) { add(required(value, p.Child(names[0], names[1:]...))) }
	if is(s.HostPath != nil, "hostPath") {
		add(hostPath(s.HostPath, p.Child("hostPath")))
	}
	if is(s.GCEPersistentDisk != nil, "gcePersistentDisk") {
		must(s.GCEPersistentDisk.PDName, "persistentDisk", "pdName")
		add(partition(s.GCEPersistentDisk.Partition, p.Child("persistentDisk", "partition")))
	}
	if is(s.AWSElasticBlockStore != nil, "awsElasticBlockStore") {
		must(s.AWSElasticBlockStore.VolumeID, "awsElasticBlockStore", "volumeID")
		add(partition(s.AWSElasticBlockStore.Partition, p.Child("awsElasticBlockStore", "partition")))
	}
	if is(s.Glusterfs != nil, "glusterfs") {
		must(s.Glusterfs.EndpointsName, "glusterfs", "endpoints")
		must(s.Glusterfs.Path, "glusterfs", "path")
		if ns := s.Glusterfs.EndpointsNamespace; ns != nil && *ns == "" {
			errs = append(errs, field.Invalid(p.Child("glusterfs", "endpointsNamespace"), *ns, "if the endpointnamespace is set, it must be a valid namespace name"))
		} else if ns != nil {
			add(dnsLabel(*ns, p.Child("glusterfs", "endpointsNamespace")))
		}
	}
	if is(s.Flocker != nil, "flocker") {
		add(flocker(s.Flocker, p.Child("flocker")))
	}
	if is(s.NFS != nil, "nfs") {
		add(nfs(s.NFS, p.Child("nfs")))
	}
	if is(s.RBD != nil, "rbd") {
		add(rbd(s.RBD.CephMonitors, s.RBD.RBDImage, p.Child("rbd")))
	}
	if is(s.Quobyte != nil, "quobyte") {
		add(quobyte(s.Quobyte, p.Child("quobyte")))
	}
	if is(s.CephFS != nil, "cephFS") && len(s.CephFS.Monitors) == 0 {
		errs = append(errs, field.Required(p.Child("cephfs", "monitors"), ""))
	}
	if is(s.ISCSI != nil, "iscsi") {
		i, ip := s.ISCSI, p.Child("iscsi")
		add(iscsi(i.TargetPortal, i.IQN, i.Lun, i.InitiatorName, i.DiscoveryCHAPAuth || i.SessionCHAPAuth, i.SecretRef != nil, badISCSIName, ip))
		if i.InitiatorName != nil && len(name+":"+i.TargetPortal) > 64 {
			errs = append(errs, field.Invalid(ip.Child("targetportal"), i.TargetPortal, longPortal))
		}
		if i.SecretRef != nil {
			must(i.SecretRef.Name, "iscsi", "secretRef", "name")
		}
	}
	if is(s.Cinder != nil, "cinder") {
		must(s.Cinder.VolumeID, "cinder", "volumeID")
		if r := s.Cinder.SecretRef; r != nil {
			must(r.Name, "cinder", "secretRef", "name")
			must(r.Namespace, "cinder", "secretRef", "namespace")
		}
	}
	if is(s.FC != nil, "fc") {
		add(fc(s.FC, p.Child("fc")))
	}
	if s.FlexVolume != nil { // the one kind that has always been allowed beside another
		count++
		add(flexVolume(s.FlexVolume.Driver, s.FlexVolume.Options, p.Child("flexVolume")))
	}
	if is(s.AzureFile != nil, "azureFile") {
		must(s.AzureFile.SecretName, "azureFile", "secretName")
		must(s.AzureFile.ShareName, "azureFile", "shareName")
		if s.AzureFile.SecretNamespace != nil {
			must(*s.AzureFile.SecretNamespace, "azureFile", "secretNamespace")
		}
	}
	if is(s.VsphereVolume != nil, "vsphereVolume") {
		must(s.VsphereVolume.VolumePath, "vsphereVolume", "volumePath")
	}
	if is(s.PhotonPersistentDisk != nil, "photonPersistentDisk") {
		must(s.PhotonPersistentDisk.PdID, "photonPersistentDisk", "pdID")
	}
	if is(s.PortworxVolume != nil, "portworxVolume") {
		must(s.PortworxVolume.VolumeID, "portworxVolume", "volumeID")
	}
	if is(s.AzureDisk != nil, "azureDisk") {
		add(azureDisk(s.AzureDisk, p.Child("azureDisk")))
	}
	if is(s.ScaleIO != nil, "scaleIO") {
		add(scaleIO(s.ScaleIO.Gateway, s.ScaleIO.System, s.ScaleIO.VolumeName, p.Child("scaleIO")))
	}
	if is(s.Local != nil, "local") {
		if s.Local.Path == "" {
			errs = append(errs, field.Required(p.Child("local", "path"), ""))
		} else {
			add(noBacksteps(s.Local.Path, p.Child("local", "path")))
		}
		if v.NodeAffinity == nil {
			errs = append(errs, field.Required(p.Child("nodeAffinity"), "Local volume requires node affinity"))
		}
	}
	if is(s.StorageOS != nil, "storageos") {
		add(storageOS(s.StorageOS.VolumeName, s.StorageOS.VolumeNamespace, p.Child("storageos")))
		if r := s.StorageOS.SecretRef; r != nil {
			must(r.Name, "storageos", "secretRef", "name")
			must(r.Namespace, "storageos", "secretRef", "namespace")
		}
	}
	if is(s.CSI != nil, "csi") {
		c, cp := s.CSI, p.Child("csi")
		add(csiDriverName(c.Driver, cp.Child("driver")))
		must(c.VolumeHandle, "csi", "volumeHandle")
		add(secretReference(c.ControllerPublishSecretRef, cp.Child("controllerPublishSecretRef")))
		add(secretReference(c.ControllerExpandSecretRef, cp.Child("controllerExpandSecretRef")))
		add(secretReference(c.NodePublishSecretRef, cp.Child("nodePublishSecretRef")))
		add(secretReference(c.NodeExpandSecretRef, cp.Child("nodeExpandSecretRef")))
	}
	if count == 0 {
		errs = append(errs, field.Required(p, "must specify a volume type"))
	}
	return errs
}

func secretReference(r *corev1.SecretReference, p *field.Path) field.ErrorList {
	if r == nil {
		return nil
	}
	var errs field.ErrorList
	if r.Name == "" {
		errs = append(errs, field.Required(p.Child("name"), ""))
	} else {
		errs = append(errs, dnsSubdomain(r.Name, p.Child("name"))...)
	}
	if r.Namespace == "" {
		return append(errs, field.Required(p.Child("namespace"), ""))
	}
	return append(errs, dnsLabel(r.Namespace, p.Child("namespace"))...)
}

// PersistentVolumeUpdate checks an update of a volume: its source stays, but for the
// secret for growing it, which may come later. The paths of volumeMode and
// nodeAffinity are the API's.
func PersistentVolumeUpdate(new, old *corev1.PersistentVolume) field.ErrorList {
	errs := PersistentVolume(new)
	errs = append(errs, ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
	source := &new.Spec.PersistentVolumeSource
	if is, was := source.CSI, old.Spec.CSI; is != nil && was != nil && was.ControllerExpandSecretRef == nil && is.ControllerExpandSecretRef != nil {
		source = source.DeepCopy()
		source.CSI.ControllerExpandSecretRef = nil
	}
	if !equality.Semantic.DeepEqual(*source, old.Spec.PersistentVolumeSource) {
		errs = append(errs, field.Forbidden(spec().Child("persistentvolumesource"), fmt.Sprintf("spec.persistentvolumesource is immutable after creation\n%v", diff.Diff(old.Spec.PersistentVolumeSource, *source))))
	}
	errs = append(errs, unchanged(new.Spec.VolumeMode, old.Spec.VolumeMode, field.NewPath("volumeMode"))...)
	if old.Spec.NodeAffinity != nil && !equality.Semantic.DeepEqual(renamedKeys(new.Spec.NodeAffinity, old.Spec.NodeAffinity), new.Spec.NodeAffinity) {
		errs = append(errs, field.Invalid(field.NewPath("nodeAffinity"), new.Spec.NodeAffinity, immutable+", except for updating from beta label to GA"))
	}
	if old.Spec.VolumeAttributesClassName != nil && new.Spec.VolumeAttributesClassName == nil {
		errs = append(errs, field.Forbidden(spec().Child("volumeAttributesClassName"), "update from non-nil value to nil is forbidden"))
	}
	return errs
}

// stableLabels are the names that labels of nodes got when they left beta.
var stableLabels = map[string]string{
	corev1.LabelFailureDomainBetaZone: corev1.LabelTopologyZone, corev1.LabelFailureDomainBetaRegion: corev1.LabelTopologyRegion,
	"beta.kubernetes.io/os": corev1.LabelOSStable, "beta.kubernetes.io/arch": corev1.LabelArchStable,
	corev1.LabelInstanceType: corev1.LabelInstanceTypeStable,
}

// renamedKeys is old with those beta labels renamed that new has renamed.
func renamedKeys(new, old *corev1.VolumeNodeAffinity) *corev1.VolumeNodeAffinity {
	if new == nil || new.Required == nil || old.Required == nil {
		return old
	}
	out := old.DeepCopy()
	for i := range out.Required.NodeSelectorTerms {
		if i >= len(new.Required.NodeSelectorTerms) {
			break
		}
		was, is := &out.Required.NodeSelectorTerms[i], &new.Required.NodeSelectorTerms[i]
		for _, pair := range [][2][]corev1.NodeSelectorRequirement{{was.MatchExpressions, is.MatchExpressions}, {was.MatchFields, is.MatchFields}} {
			for j := range pair[0] {
				if j < len(pair[1]) && stableLabels[pair[0][j].Key] == pair[1][j].Key {
					pair[0][j].Key = pair[1][j].Key
				}
			}
		}
	}
	return out
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
	return append(errs, claimSpec(&c.Spec, nil, spec())...)
}

// PersistentVolumeClaimUpdate checks an update of a claim: a bound one may grow. The
// path of volumeMode is the API's.
func PersistentVolumeClaimUpdate(new, old *corev1.PersistentVolumeClaim) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, ObjectMeta(&new.ObjectMeta, true, NameDNSSubdomain, meta())...)
	errs = append(errs, claimSpec(&new.Spec, &old.Spec, spec())...)
	before, after := old.Spec.DeepCopy(), new.Spec.DeepCopy()
	if before.VolumeName == "" {
		before.VolumeName = after.VolumeName // the binder fills it in
	}
	errs = append(errs, claimClassUpdate(new, old, before, after)...)
	bound := new.Status.Phase == corev1.ClaimBound
	if bound && after.Resources.Requests != nil {
		after.Resources.Requests[corev1.ResourceStorage] = before.Resources.Requests[corev1.ResourceStorage]
	}
	if bound {
		after.VolumeAttributesClassName = before.VolumeAttributesClassName
	}
	if !equality.Semantic.DeepEqual(after, before) {
		errs = append(errs, field.Forbidden(spec(), fmt.Sprintf("spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n%v", diff.Diff(*before, *after))))
	}
	is, was, capacity := new.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage], old.Status.Capacity[corev1.ResourceStorage]
	if is.Cmp(was) < 0 && is.Cmp(capacity) <= 0 {
		errs = append(errs, field.Forbidden(spec().Child("resources", "requests", "storage"), "field can not be less than status.capacity"))
	}
	errs = append(errs, unchanged(new.Spec.VolumeMode, old.Spec.VolumeMode, field.NewPath("volumeMode"))...)
	const applied = " is forbidden when status.currentVolumeAttributesClassName is not nil"
	if n := new.Spec.VolumeAttributesClassName; old.Status.CurrentVolumeAttributesClassName != nil && !equality.Semantic.DeepEqual(n, old.Spec.VolumeAttributesClassName) {
		if n == nil {
			errs = append(errs, field.Forbidden(spec().Child("volumeAttributesClassName"), "update to nil"+applied))
		} else if *n == "" {
			errs = append(errs, field.Forbidden(spec().Child("volumeAttributesClassName"), "update to empty string"+applied))
		}
	}
	return errs
}

// claimClassUpdate lets a class be filled in where there was none, also where only
// the annotation named it; the annotation itself stays. It makes after like before
// where that is what happened.
func claimClassUpdate(new, old *corev1.PersistentVolumeClaim, before, after *corev1.PersistentVolumeClaimSpec) field.ErrorList {
	const key = corev1.BetaStorageClassAnnotation
	was, annotated := old.Annotations[key]
	is, still := new.Annotations[key]
	filled := before.StorageClassName == nil && after.StorageClassName != nil && (!annotated || *after.StorageClassName == was)
	if filled {
		after.StorageClassName = nil
	}
	if filled && annotated && (!still || is == was) || is == was {
		return nil
	}
	return field.ErrorList{field.Invalid(meta().Child("annotations", key), is, immutable)}
}

var resizeStates = []corev1.ClaimResourceStatus{corev1.PersistentVolumeClaimControllerResizeInProgress, corev1.PersistentVolumeClaimControllerResizeInfeasible,
	corev1.PersistentVolumeClaimNodeResizePending, corev1.PersistentVolumeClaimNodeResizeInProgress, corev1.PersistentVolumeClaimNodeResizeInfeasible}

// PersistentVolumeClaimStatusUpdate checks an update of a claim's status.
func PersistentVolumeClaimStatusUpdate(new, old *corev1.PersistentVolumeClaim) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	if new.ResourceVersion == "" {
		errs = append(errs, field.Required(field.NewPath("resourceVersion"), ""))
	}
	if len(new.Spec.AccessModes) == 0 {
		errs = append(errs, field.Required(field.NewPath("Spec", "accessModes"), ""))
	}
	for _, name := range sortedNames(new.Status.Capacity) {
		errs = append(errs, basicQuantity(new.Status.Capacity[name], status().Child("capacity").Key(string(name)))...)
	}
	states := slices.Sorted(slices.Values(resizeStates))
	for _, name := range sets.List(sets.KeySet(new.Status.AllocatedResourceStatuses)) {
		p := status().Child("allocatedResourceStatuses")
		errs = append(errs, claimResource(name, p)...)
		if !slices.Contains(states, new.Status.AllocatedResourceStatuses[name]) {
			errs = append(errs, field.NotSupported(p, name, states))
		}
	}
	for _, name := range sortedNames(new.Status.AllocatedResources) {
		p, q := status().Child("allocatedResources"), new.Status.AllocatedResources[name]
		if bad := claimResource(name, p); len(bad) > 0 {
			errs = append(errs, bad...)
		} else if bad := basicQuantity(q, p.Key(string(name))); len(bad) > 0 {
			errs = append(errs, bad...)
		} else {
			errs = append(errs, resourceQuantity(string(corev1.ResourceStorage), q, p.Key(string(name)))...)
		}
	}
	return errs
}

// claimResource: of the cluster's own resources a claim has storage only.
func claimResource(name corev1.ResourceName, p *field.Path) field.ErrorList {
	if bad := qualifiedName(string(name), p); len(bad) > 0 {
		return bad
	}
	if own := !strings.Contains(string(name), "/") || strings.Contains(string(name), corev1.ResourceDefaultNamespacePrefix); own && name != corev1.ResourceStorage {
		return field.ErrorList{field.NotSupported(p, name, []corev1.ResourceName{corev1.ResourceStorage})}
	}
	return nil
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
	return append(errs, allowedTopologies(c.AllowedTopologies, field.NewPath("allowedTopologies"))...)
}

// allowedTopologies checks terms; two may not say the same, and none may say nothing.
func allowedTopologies(terms []corev1.TopologySelectorTerm, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	known := []map[string]sets.Set[string]{{}}
	for i, t := range terms {
		p := path.Index(i).Child("matchLabelExpressions")
		term := map[string]sets.Set[string]{}
		for j, e := range t.MatchLabelExpressions {
			ep := p.Index(j)
			if len(e.Values) == 0 {
				errs = append(errs, field.Required(ep.Child("values"), ""))
			}
			values := sets.New[string]()
			for k, v := range e.Values {
				if values.Has(v) {
					errs = append(errs, field.Duplicate(ep.Child("values").Index(k), v))
				}
				values.Insert(v)
			}
			errs = append(errs, labelName(e.Key, ep.Child("key"))...)
			if _, dup := term[e.Key]; dup {
				errs = append(errs, field.Duplicate(ep.Child("key"), e.Key))
			}
			term[e.Key] = values
		}
		for _, other := range known {
			if equality.Semantic.DeepEqual(term, other) {
				errs = append(errs, field.Duplicate(p, ""))
			}
		}
		known = append(known, term)
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
		errs = append(errs, field.Forbidden(field.NewPath("parameters"), "updates to parameters are forbidden."))
	}
	return append(errs, VolumeAttributesClass(new)...)
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
	case src.InlineVolumeSpec != nil:
		errs = append(errs, volumeSpec(src.InlineVolumeSpec, "", true, p.Child("inlineVolumeSpec"))...)
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
			errs = append(errs, field.TooLong(status().Child(f.name, "message"), "", maxAttachedMetadata)) // the API names the other bound
		}
		if f.err != nil && f.err.ErrorCode != nil && *f.err.ErrorCode < 0 {
			errs = append(errs, field.Invalid(status().Child(f.name, "errorCode"), *f.err.ErrorCode, validation.InclusiveRangeError(0, math.MaxInt32)))
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
	return append(errs, csiDriverSpec(&d.Spec)...)
}

func csiDriverSpec(s *storagev1.CSIDriverSpec) field.ErrorList {
	var errs field.ErrorList
	for _, f := range []struct {
		name  string
		unset bool
	}{{"attachedRequired", s.AttachRequired == nil}, {"podInfoOnMount", s.PodInfoOnMount == nil}, {"storageCapacity", s.StorageCapacity == nil}, {"seLinuxMount", s.SELinuxMount == nil}} {
		if f.unset {
			errs = append(errs, field.Required(spec().Child(f.name), ""))
		}
	}
	if s.FSGroupPolicy != nil {
		errs = append(errs, supported(*s.FSGroupPolicy, spec().Child("fsGroupPolicy"), storagev1.FileFSGroupPolicy, storagev1.NoneFSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)...)
	}
	audiences := sets.New[string]()
	for i, t := range s.TokenRequests {
		p := spec().Child("tokenRequests").Index(i)
		if audiences.Has(t.Audience) {
			errs = append(errs, field.Duplicate(p.Child("audience"), t.Audience))
			continue
		}
		audiences.Insert(t.Audience)
		if e := t.ExpirationSeconds; e != nil && *e < minTokenSeconds {
			errs = append(errs, field.Invalid(p.Child("expirationSeconds"), *e, "may not specify a duration less than 10 minutes"))
		} else if e != nil && *e > 1<<32 {
			errs = append(errs, field.Invalid(p.Child("expirationSeconds"), *e, "may not specify a duration larger than 2^32 seconds"))
		}
	}
	for _, m := range s.VolumeLifecycleModes {
		errs = append(errs, supported(m, spec().Child("volumeLifecycleModes"), storagev1.VolumeLifecyclePersistent, storagev1.VolumeLifecycleEphemeral)...)
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
			if k == "" {
				errs = append(errs, field.Required(p, ""))
			}
			if keys.Has(k) {
				errs = append(errs, field.Duplicate(p, k))
			}
			keys.Insert(k)
			errs = append(errs, qualifiedName(k, p)...)
		}
	}
	return errs
}

// CSINodeUpdate checks an update of a CSINode: a driver that stays, stays as it is.
func CSINodeUpdate(new, old *storagev1.CSINode) field.ErrorList {
	errs := append(CSINode(new), ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
	for _, was := range old.Spec.Drivers {
		for _, is := range new.Spec.Drivers {
			was, is := was, is
			was.Allocatable, is.Allocatable = nil, nil
			if is.Name == was.Name {
				errs = append(errs, unchanged(is, was, spec().Child("drivers"))...)
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
	return errs
}

// CSIStorageCapacityUpdate checks an update: place and class stay.
func CSIStorageCapacityUpdate(new, old *storagev1.CSIStorageCapacity) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, unchanged(new.NodeTopology, old.NodeTopology, field.NewPath("nodeTopology"))...)
	return append(errs, unchanged(new.StorageClassName, old.StorageClassName, field.NewPath("storageClassName"))...)
}
