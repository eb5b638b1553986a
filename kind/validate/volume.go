package validate

import (
	"fmt"
	"net"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	badFileMode     = "must be a number between 0 and 0777 (octal), both inclusive"
	oneVolumeType   = "may not specify more than 1 volume type"
	duplicatePaths  = "conflicting duplicate paths"
	minTokenSeconds = 10 * 60
)

// volumes checks the volumes of a pod and returns those that mounts may refer to.
func volumes(list []corev1.Volume, podMeta *metav1.ObjectMeta, path *field.Path) (map[string]corev1.VolumeSource, field.ErrorList) {
	var errs field.ErrorList
	known := map[string]corev1.VolumeSource{}
	created := sets.New[string]() // claims that come with the pod
	if podMeta != nil && podMeta.Name != "" {
		for i := range list {
			if list[i].Ephemeral != nil {
				created.Insert(podMeta.Name + "-" + list[i].Name)
			}
		}
	}
	for i := range list {
		v, p := &list[i], path.Index(i)
		bad := volumeSource(v, podMeta, p)
		if v.Name == "" {
			bad = append(bad, field.Required(p.Child("name"), ""))
		} else {
			bad = append(bad, dnsLabel(v.Name, p.Child("name"))...)
		}
		if _, dup := known[v.Name]; dup {
			bad = append(bad, field.Duplicate(p.Child("name"), v.Name))
		}
		if errs = append(errs, bad...); len(bad) == 0 {
			known[v.Name] = v.VolumeSource
		}
		if c := v.PersistentVolumeClaim; c != nil && created.Has(c.ClaimName) {
			errs = append(errs, field.Invalid(p.Child("persistentVolumeClaim", "claimName"), c.ClaimName, "must not reference a PVC that gets created for an ephemeral volume"))
		}
	}
	return known, errs
}

// volumeSource checks that a volume has one source and what it says. podMeta is nil
// in templates, where less needs to be known.
func volumeSource(v *corev1.Volume, podMeta *metav1.ObjectMeta, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	s := &v.VolumeSource
	count := 0
	// is reports whether a source is the first one that is set, and complains about more.
	is := func(set bool, name string) bool {
		if !set {
			return false
		}
		count++
		if count > 1 {
			errs = append(errs, field.Forbidden(path.Child(name), oneVolumeType))
		}
		return count == 1
	}
	add := func(more field.ErrorList) { errs = append(errs, more...) }
	if is(s.EmptyDir != nil, "emptyDir") {
		if s.EmptyDir.SizeLimit != nil && s.EmptyDir.SizeLimit.Sign() < 0 {
			errs = append(errs, field.Forbidden(path.Child("emptyDir", "sizeLimit"), "SizeLimit field must be a valid resource quantity"))
		}
		add(fileMode(s.EmptyDir.Mode, path.Child("emptyDir", "mode")))
	}
	if is(s.HostPath != nil, "hostPath") {
		add(hostPath(s.HostPath, path.Child("hostPath")))
	}
	if is(s.GitRepo != nil, "gitRepo") {
		add(required(s.GitRepo.Repository, path.Child("gitRepo", "repository")))
		add(descendingPath(s.GitRepo.Directory, path.Child("gitRepo", "directory")))
	}
	if is(s.GCEPersistentDisk != nil, "gcePersistentDisk") {
		p := path.Child("persistentDisk")
		add(required(s.GCEPersistentDisk.PDName, p.Child("pdName")))
		add(partition(s.GCEPersistentDisk.Partition, p.Child("partition")))
	}
	if is(s.AWSElasticBlockStore != nil, "awsElasticBlockStore") {
		p := path.Child("awsElasticBlockStore")
		add(required(s.AWSElasticBlockStore.VolumeID, p.Child("volumeID")))
		add(partition(s.AWSElasticBlockStore.Partition, p.Child("partition")))
	}
	if is(s.Secret != nil, "secret") {
		p := path.Child("secret")
		add(required(s.Secret.SecretName, p.Child("secretName")))
		add(fileMode(s.Secret.DefaultMode, p.Child("defaultMode")))
		add(keyPaths(s.Secret.Items, p.Child("items")))
	}
	if is(s.NFS != nil, "nfs") {
		add(nfs(s.NFS, path.Child("nfs")))
	}
	if is(s.ISCSI != nil, "iscsi") {
		i := s.ISCSI
		add(iscsi(i.TargetPortal, i.IQN, i.Lun, i.InitiatorName, i.DiscoveryCHAPAuth || i.SessionCHAPAuth, i.SecretRef != nil, "must be valid format starting with iqn, eui, or naa", path.Child("iscsi")))
	}
	if s.ISCSI != nil && s.ISCSI.InitiatorName != nil && len(v.Name+":"+s.ISCSI.TargetPortal) > 64 {
		errs = append(errs, field.Invalid(path.Child("name"), v.Name, longPortal))
	}
	if is(s.Glusterfs != nil, "glusterfs") {
		add(required(s.Glusterfs.EndpointsName, path.Child("glusterfs", "endpoints")))
		add(required(s.Glusterfs.Path, path.Child("glusterfs", "path")))
	}
	if is(s.Flocker != nil, "flocker") {
		add(flocker(s.Flocker, path.Child("flocker")))
	}
	if is(s.PersistentVolumeClaim != nil, "persistentVolumeClaim") {
		add(required(s.PersistentVolumeClaim.ClaimName, path.Child("persistentVolumeClaim", "claimName")))
	}
	if is(s.RBD != nil, "rbd") {
		add(rbd(s.RBD.CephMonitors, s.RBD.RBDImage, path.Child("rbd")))
	}
	if is(s.Cinder != nil, "cinder") {
		add(required(s.Cinder.VolumeID, path.Child("cinder", "volumeID")))
		if s.Cinder.SecretRef != nil {
			add(required(s.Cinder.SecretRef.Name, path.Child("cinder", "secretRef", "name")))
		}
	}
	if is(s.CephFS != nil, "cephFS") && len(s.CephFS.Monitors) == 0 {
		errs = append(errs, field.Required(path.Child("cephfs", "monitors"), ""))
	}
	if is(s.Quobyte != nil, "quobyte") {
		add(quobyte(s.Quobyte, path.Child("quobyte")))
	}
	if is(s.DownwardAPI != nil, "downwarAPI") { // the API spells it so
		p := path.Child("downwardAPI")
		add(fileMode(s.DownwardAPI.DefaultMode, p.Child("defaultMode")))
		for i := range s.DownwardAPI.Items {
			add(downwardFile(&s.DownwardAPI.Items[i], p))
		}
	}
	if is(s.FC != nil, "fc") {
		add(fc(s.FC, path.Child("fc")))
	}
	if is(s.FlexVolume != nil, "flexVolume") {
		add(flexVolume(s.FlexVolume.Driver, s.FlexVolume.Options, path.Child("flexVolume")))
	}
	if is(s.ConfigMap != nil, "configMap") {
		p := path.Child("configMap")
		add(required(s.ConfigMap.Name, p.Child("name")))
		add(fileMode(s.ConfigMap.DefaultMode, p.Child("defaultMode")))
		add(keyPaths(s.ConfigMap.Items, p.Child("items")))
	}
	if is(s.AzureFile != nil, "azureFile") {
		add(required(s.AzureFile.SecretName, path.Child("azureFile", "secretName")))
		add(required(s.AzureFile.ShareName, path.Child("azureFile", "shareName")))
	}
	if is(s.VsphereVolume != nil, "vsphereVolume") {
		add(required(s.VsphereVolume.VolumePath, path.Child("vsphereVolume", "volumePath")))
	}
	if is(s.PhotonPersistentDisk != nil, "photonPersistentDisk") {
		add(required(s.PhotonPersistentDisk.PdID, path.Child("photonPersistentDisk", "pdID")))
	}
	if is(s.PortworxVolume != nil, "portworxVolume") {
		add(required(s.PortworxVolume.VolumeID, path.Child("portworxVolume", "volumeID")))
	}
	if is(s.AzureDisk != nil, "azureDisk") {
		add(azureDisk(s.AzureDisk, path.Child("azureDisk")))
	}
	if is(s.StorageOS != nil, "storageos") {
		add(storageOS(s.StorageOS.VolumeName, s.StorageOS.VolumeNamespace, path.Child("storageos")))
		if s.StorageOS.SecretRef != nil {
			add(required(s.StorageOS.SecretRef.Name, path.Child("storageos", "secretRef", "name")))
		}
	}
	if is(s.Projected != nil, "projected") {
		add(fileMode(s.Projected.DefaultMode, path.Child("projected", "defaultMode")))
		add(projections(s.Projected.Sources, path.Child("projected")))
	}
	if is(s.ScaleIO != nil, "scaleIO") {
		add(scaleIO(s.ScaleIO.Gateway, s.ScaleIO.System, s.ScaleIO.VolumeName, path.Child("scaleIO")))
	}
	if is(s.CSI != nil, "csi") {
		p := path.Child("csi")
		add(csiDriverName(s.CSI.Driver, p.Child("driver")))
		if ref := s.CSI.NodePublishSecretRef; ref != nil && ref.Name == "" {
			errs = append(errs, field.Required(p.Child("nodePublishSecretRef", "name"), ""))
		} else if ref != nil {
			add(dnsSubdomain(ref.Name, p.Child("name")))
		}
	}
	if is(s.Ephemeral != nil, "ephemeral") {
		add(ephemeralVolume(s.Ephemeral, path.Child("ephemeral")))
		if podMeta != nil && podMeta.Name != "" && v.Name != "" {
			name := podMeta.Name + "-" + v.Name
			for _, msg := range NameDNSSubdomain(name, false) {
				errs = append(errs, field.Invalid(path.Child("name"), v.Name, fmt.Sprintf("PVC name %q: %v", name, msg)))
			}
		}
	}
	if is(s.Image != nil, "image") {
		if podMeta != nil {
			add(required(s.Image.Reference, path.Child("image", "reference")))
		}
		add(requiredSupported(s.Image.PullPolicy, path.Child("image", "pullPolicy"), corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever))
	}
	if count == 0 {
		errs = append(errs, field.Required(path, "must specify a volume type"))
	}
	return errs
}

func fileMode(mode *int32, path *field.Path) field.ErrorList {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		return field.ErrorList{field.Invalid(path, *mode, badFileMode)}
	}
	return nil
}

func partition(n int32, path *field.Path) field.ErrorList {
	if n < 0 || n > 255 {
		return field.ErrorList{field.Invalid(path, n, validation.InclusiveRangeError(1, 255))}
	}
	return nil
}

func hostPath(h *corev1.HostPathVolumeSource, path *field.Path) field.ErrorList {
	if h.Path == "" {
		return field.ErrorList{field.Required(path.Child("path"), "")}
	}
	errs := noBacksteps(h.Path, path.Child("path"))
	if h.Type != nil {
		errs = append(errs, supported(*h.Type, path.Child("type"), corev1.HostPathUnset, corev1.HostPathBlockDev, corev1.HostPathCharDev,
			corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathFileOrCreate, corev1.HostPathSocket)...)
	}
	return errs
}

func keyPaths(items []corev1.KeyToPath, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range items {
		errs = append(errs, keyPath(&items[i], path.Index(i))...)
	}
	return errs
}

func keyPath(kp *corev1.KeyToPath, path *field.Path) field.ErrorList {
	errs := required(kp.Key, path.Child("key"))
	errs = append(errs, required(kp.Path, path.Child("path"))...)
	errs = append(errs, nonReservedPath(kp.Path, path.Child("path"))...)
	return append(errs, fileMode(kp.Mode, path.Child("mode"))...)
}

// nonReservedPath keeps users' files apart from the "..data" entries that atomic
// writers use.
func nonReservedPath(value string, path *field.Path) field.ErrorList {
	errs := descendingPath(value, path)
	if strings.HasPrefix(value, "..") && !strings.HasPrefix(value, "../") {
		errs = append(errs, field.Invalid(path, value, "must not start with '..'"))
	}
	return errs
}

func downwardFile(f *corev1.DownwardAPIVolumeFile, path *field.Path) field.ErrorList {
	errs := required(f.Path, path.Child("path"))
	errs = append(errs, nonReservedPath(f.Path, path.Child("path"))...)
	switch {
	case f.FieldRef != nil:
		errs = append(errs, fieldRef(f.FieldRef, volumeFieldPaths, path.Child("fieldRef"))...)
		if f.ResourceFieldRef != nil {
			errs = append(errs, field.Invalid(path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously"))
		}
	case f.ResourceFieldRef != nil:
		errs = append(errs, resourceFieldRef(f.ResourceFieldRef, true, path.Child("resourceFieldRef"))...)
	default:
		errs = append(errs, field.Required(path, "one of fieldRef and resourceFieldRef is required"))
	}
	return append(errs, fileMode(f.Mode, path.Child("mode"))...)
}

func nfs(n *corev1.NFSVolumeSource, path *field.Path) field.ErrorList {
	errs := required(n.Server, path.Child("server"))
	errs = append(errs, required(n.Path, path.Child("path"))...)
	if !strings.HasPrefix(n.Path, "/") {
		errs = append(errs, field.Invalid(path.Child("path"), n.Path, "must be an absolute path"))
	}
	return errs
}

var (
	iscsiIQN = regexp.MustCompile(`^iqn\.\d{4}-\d{2}\.([[:alnum:]-.]+)(:[^,;*&$|\s]+)$`)
	iscsiEUI = regexp.MustCompile(`^eui.[[:alnum:]]{16}$`)
	iscsiNAA = regexp.MustCompile(`^naa.[[:alnum:]]{32}$`)
)

const longPortal = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified."

// iscsi checks a target; foreign is what is said of a name of an unknown kind.
func iscsi(portal, iqn string, lun int32, initiator *string, chap, hasSecret bool, foreign string, path *field.Path) field.ErrorList {
	errs := required(portal, path.Child("targetPortal"))
	if iqn == "" {
		errs = append(errs, field.Required(path.Child("iqn"), ""))
	} else {
		errs = append(errs, iscsiName(iqn, foreign, path.Child("iqn"))...)
	}
	if lun < 0 || lun > 255 {
		errs = append(errs, field.Invalid(path.Child("lun"), lun, validation.InclusiveRangeError(0, 255)))
	}
	if chap && !hasSecret {
		errs = append(errs, field.Required(path.Child("secretRef"), ""))
	}
	if initiator != nil {
		errs = append(errs, iscsiName(*initiator, foreign, path.Child("initiatorname"))...)
	}
	return errs
}

const badISCSIName = "must be valid format"

func iscsiName(name, foreign string, path *field.Path) field.ErrorList {
	var ok bool
	switch {
	default:
		return field.ErrorList{field.Invalid(path, name, foreign)}
	case strings.HasPrefix(name, "iqn"):
		ok = iscsiIQN.MatchString(name)
	case strings.HasPrefix(name, "eui"):
		ok = iscsiEUI.MatchString(name)
	case strings.HasPrefix(name, "naa"):
		ok = iscsiNAA.MatchString(name)
	}
	if !ok {
		return field.ErrorList{field.Invalid(path, name, badISCSIName)}
	}
	return nil
}

func flocker(f *corev1.FlockerVolumeSource, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if f.DatasetName == "" && f.DatasetUUID == "" {
		errs = append(errs, field.Required(path, "one of datasetName and datasetUUID is required"))
	}
	if f.DatasetName != "" && f.DatasetUUID != "" {
		errs = append(errs, field.Invalid(path, "resource", "datasetName and datasetUUID can not be specified simultaneously"))
	}
	if strings.Contains(f.DatasetName, "/") {
		errs = append(errs, field.Invalid(path.Child("datasetName"), f.DatasetName, "must not contain '/'"))
	}
	return errs
}

func rbd(monitors []string, image string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(monitors) == 0 {
		errs = append(errs, field.Required(path.Child("monitors"), ""))
	}
	return append(errs, required(image, path.Child("image"))...)
}

func quobyte(q *corev1.QuobyteVolumeSource, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if q.Registry == "" {
		errs = append(errs, field.Required(path.Child("registry"), "must be a host:port pair or multiple pairs separated by commas"))
	} else if len(q.Tenant) >= 65 {
		errs = append(errs, field.Required(path.Child("tenant"), "must be a UUID and may not exceed a length of 64 characters"))
	} else {
		for host := range strings.SplitSeq(q.Registry, ",") {
			if _, _, err := net.SplitHostPort(host); err != nil {
				errs = append(errs, field.Invalid(path.Child("registry"), q.Registry, "must be a host:port pair or multiple pairs separated by commas"))
			}
		}
	}
	return append(errs, required(q.Volume, path.Child("volume"))...)
}

func fc(f *corev1.FCVolumeSource, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(f.TargetWWNs) < 1 && len(f.WWIDs) < 1 {
		errs = append(errs, field.Required(path.Child("targetWWNs"), "must specify either targetWWNs or wwids, but not both"))
	}
	if len(f.TargetWWNs) != 0 && len(f.WWIDs) != 0 {
		errs = append(errs, field.Invalid(path.Child("targetWWNs"), f.TargetWWNs, "targetWWNs and wwids can not be specified simultaneously"))
	}
	if len(f.TargetWWNs) != 0 {
		if f.Lun == nil {
			errs = append(errs, field.Required(path.Child("lun"), "lun is required if targetWWNs is specified"))
		} else if *f.Lun < 0 || *f.Lun > 255 {
			errs = append(errs, field.Invalid(path.Child("lun"), f.Lun, validation.InclusiveRangeError(0, 255)))
		}
	}
	return errs
}

func flexVolume(driver string, options map[string]string, path *field.Path) field.ErrorList {
	errs := required(driver, path.Child("driver"))
	for _, key := range sets.List(sets.KeySet(options)) {
		ns, _, _ := strings.Cut(key, "/")
		if ns = "." + strings.ToLower(ns); strings.HasSuffix(ns, ".kubernetes.io") || strings.HasSuffix(ns, ".k8s.io") {
			errs = append(errs, field.Invalid(path.Child("options").Key(key), key, "kubernetes.io and k8s.io namespaces are reserved"))
		}
	}
	return errs
}

func azureDisk(d *corev1.AzureDiskVolumeSource, path *field.Path) field.ErrorList {
	errs := required(d.DiskName, path.Child("diskName"))
	errs = append(errs, required(d.DataDiskURI, path.Child("diskURI"))...)
	if d.CachingMode != nil {
		errs = append(errs, supported(*d.CachingMode, path.Child("cachingMode"), corev1.AzureDataDiskCachingNone, corev1.AzureDataDiskCachingReadOnly, corev1.AzureDataDiskCachingReadWrite)...)
	}
	if d.Kind != nil {
		errs = append(errs, supported(*d.Kind, path.Child("kind"), corev1.AzureDedicatedBlobDisk, corev1.AzureManagedDisk, corev1.AzureSharedBlobDisk)...)
		switch {
		case *d.Kind == corev1.AzureManagedDisk && !strings.HasPrefix(d.DataDiskURI, "/subscriptions/"):
			errs = append(errs, field.NotSupported(path.Child("diskURI"), d.DataDiskURI, []string{"/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"}))
		case *d.Kind != corev1.AzureManagedDisk && !strings.HasPrefix(d.DataDiskURI, "https://"):
			errs = append(errs, field.NotSupported(path.Child("diskURI"), d.DataDiskURI, []string{"https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"}))
		}
	}
	return errs
}

func storageOS(name, namespace string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if name == "" {
		errs = append(errs, field.Required(path.Child("volumeName"), ""))
	} else {
		errs = append(errs, dnsLabel(name, path.Child("volumeName"))...)
	}
	if namespace != "" {
		errs = append(errs, dnsLabel(namespace, path.Child("volumeNamespace"))...)
	}
	return errs
}

func scaleIO(gateway, system, volume string, path *field.Path) field.ErrorList {
	errs := required(gateway, path.Child("gateway"))
	errs = append(errs, required(system, path.Child("system"))...)
	return append(errs, required(volume, path.Child("volumeName"))...)
}

func csiDriverName(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	if len(name) > 63 {
		errs = append(errs, field.TooLong(path, "", 63))
	}
	return append(errs, invalid(path, name, validation.IsDNS1123Subdomain(strings.ToLower(name)))...)
}

func ephemeralVolume(e *corev1.EphemeralVolumeSource, path *field.Path) field.ErrorList {
	p := path.Child("volumeClaimTemplate")
	if e.VolumeClaimTemplate == nil {
		return field.ErrorList{field.Required(p, "")}
	}
	errs := templateMeta(&e.VolumeClaimTemplate.ObjectMeta, p.Child("metadata"))
	return append(errs, claimSpec(&e.VolumeClaimTemplate.Spec, nil, p.Child("spec"))...)
}

// templateMeta checks metadata of which only labels and annotations are copied.
func templateMeta(m *metav1.ObjectMeta, path *field.Path) field.ErrorList {
	errs := annotations(m.Annotations, path.Child("annotations"))
	errs = append(errs, labels(m.Labels, path.Child("labels"))...)
	for _, f := range []struct {
		set  bool
		name string
	}{
		{m.Name != "", "name"}, {m.GenerateName != "", "generateName"}, {m.Namespace != "", "namespace"}, {m.SelfLink != "", "selfLink"},
		{m.UID != "", "uID"}, {m.ResourceVersion != "", "resourceVersion"}, {m.Generation != 0, "generation"},
		{!m.CreationTimestamp.IsZero(), "creationTimestamp"}, {m.DeletionTimestamp != nil, "deletionTimestamp"},
		{m.DeletionGracePeriodSeconds != nil, "deletionGracePeriodSeconds"}, {m.OwnerReferences != nil, "ownerReferences"},
		{m.Finalizers != nil, "finalizers"}, {m.ManagedFields != nil, "managedFields"},
	} {
		if f.set {
			errs = append(errs, field.Forbidden(path.Child(f.name), "cannot be set"))
		}
	}
	return errs
}

func projections(sources []corev1.VolumeProjection, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := sets.New[string]()
	note := func(p string, value any) {
		if p == "" {
			return
		}
		if seen.Has(p) {
			errs = append(errs, field.Invalid(path, value, duplicatePaths))
		}
		seen.Insert(p)
	}
	for i := range sources {
		s, sp := &sources[i], path.Child("sources").Index(i)
		count := 0
		is := func(set bool) bool {
			if set {
				count++
			}
			return set
		}
		if is(s.Secret != nil) {
			p := sp.Child("secret")
			errs = append(errs, required(s.Secret.Name, p.Child("name"))...)
			errs = append(errs, keyPaths(s.Secret.Items, p.Child("items"))...)
			for _, kp := range s.Secret.Items {
				note(kp.Path, s.Secret.Name)
			}
		}
		if is(s.ConfigMap != nil) {
			p := sp.Child("configMap")
			errs = append(errs, required(s.ConfigMap.Name, p.Child("name"))...)
			errs = append(errs, keyPaths(s.ConfigMap.Items, p.Child("items"))...)
			for _, kp := range s.ConfigMap.Items {
				note(kp.Path, s.ConfigMap.Name)
			}
		}
		if is(s.DownwardAPI != nil) {
			for f := range s.DownwardAPI.Items {
				errs = append(errs, downwardFile(&s.DownwardAPI.Items[f], sp.Child("downwardAPI"))...)
				note(s.DownwardAPI.Items[f].Path, s.DownwardAPI.Items[f].Path)
			}
		}
		if is(s.ServiceAccountToken != nil) {
			t, p := s.ServiceAccountToken, sp.Child("serviceAccountToken")
			if t.ExpirationSeconds != nil && *t.ExpirationSeconds < minTokenSeconds {
				errs = append(errs, field.Invalid(p.Child("expirationSeconds"), *t.ExpirationSeconds, "may not specify a duration less than 10 minutes"))
			}
			if t.ExpirationSeconds != nil && *t.ExpirationSeconds > 1<<32 {
				errs = append(errs, field.Invalid(p.Child("expirationSeconds"), *t.ExpirationSeconds, "may not specify a duration larger than 2^32 seconds"))
			}
			if t.Path == "" {
				errs = append(errs, field.Required(path.Child("path"), ""))
			} else {
				errs = append(errs, nonReservedPath(t.Path, path.Child("path"))...)
			}
		}
		if is(s.ClusterTrustBundle != nil) {
			errs = append(errs, trustBundleProjection(s.ClusterTrustBundle, sp.Child("clusterTrustBundle"))...)
			note(s.ClusterTrustBundle.Path, s.ClusterTrustBundle.Path)
		}
		if is(s.PodCertificate != nil) {
			errs = append(errs, podCertificateProjection(s.PodCertificate, sp.Child("podCertificate"))...)
			for _, p := range []string{s.PodCertificate.CredentialBundlePath, s.PodCertificate.KeyPath, s.PodCertificate.CertificateChainPath} {
				note(p, p)
			}
		}
		if count > 1 {
			errs = append(errs, field.Forbidden(sp, oneVolumeType+" per source"))
		}
	}
	return errs
}

func trustBundleProjection(b *corev1.ClusterTrustBundleProjection, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch {
	case b.Name != nil && b.SignerName != nil:
		errs = append(errs, field.Invalid(path, b, "only one of name and signerName may be used"))
	case b.Name != nil:
		if *b.Name == "" {
			errs = append(errs, field.Required(path.Child("name"), "must be a valid object name"))
		}
		// A name with colons begins with its signer's, slashes being colons.
		signer := ""
		if i := strings.LastIndex(*b.Name, ":"); i >= 0 {
			signer = strings.ReplaceAll((*b.Name)[:i], ":", "/")
		}
		for _, msg := range trustBundleName(signer)(*b.Name, false) {
			errs = append(errs, field.Invalid(path.Child("name"), *b.Name, "not a valid clustertrustbundlename: "+msg))
		}
		if b.LabelSelector != nil {
			errs = append(errs, field.Invalid(path.Child("labelSelector"), b.LabelSelector, "labelSelector must be unset if name is specified"))
		}
	case b.SignerName != nil:
		if *b.SignerName == "" {
			errs = append(errs, field.Required(path.Child("signerName"), "must be a valid signer name"))
		}
		errs = append(errs, signerName(*b.SignerName, path.Child("signerName"))...)
		errs = append(errs, labelSelector(b.LabelSelector, path.Child("labelSelector"))...)
	default:
		errs = append(errs, field.Required(path, "either name or signerName must be specified"))
	}
	errs = append(errs, required(b.Path, path.Child("path"))...)
	return append(errs, nonReservedPath(b.Path, path.Child("path"))...)
}

var podCertificateKeyTypes = []string{"RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"}

func podCertificateProjection(c *corev1.PodCertificateProjection, path *field.Path) field.ErrorList {
	errs := signerName(c.SignerName, path.Child("signerName"))
	errs = append(errs, supported(c.KeyType, path.Child("keyType"), podCertificateKeyTypes...)...)
	if s := c.MaxExpirationSeconds; s != nil {
		limit := int32(91 * 24 * 60 * 60)
		if strings.HasPrefix(c.SignerName, "kubernetes.io/") {
			limit = 24 * 60 * 60
		}
		if *s < 60*60 {
			errs = append(errs, field.Invalid(path.Child("maxExpirationSeconds"), *s, "if provided, maxExpirationSeconds must be >= 3600"))
		}
		if *s > limit {
			errs = append(errs, field.Invalid(path.Child("maxExpirationSeconds"), *s, fmt.Sprintf("if provided, maxExpirationSeconds must be <= %d", limit)))
		}
	}
	n := 0
	for _, f := range []struct{ name, value string }{{"credentialBundlePath", c.CredentialBundlePath}, {"keyPath", c.KeyPath}, {"certificateChainPath", c.CertificateChainPath}} {
		if f.value != "" {
			n++
			errs = append(errs, nonReservedPath(f.value, path.Child(f.name))...)
		}
	}
	if n == 0 {
		errs = append(errs, field.Required(path, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath"))
	}
	for key := range c.UserAnnotations {
		errs = append(errs, qualifiedName(strings.ToLower(key), path.Child("userAnnotations"))...)
	}
	return errs
}
