package auth

import (
	"context"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/fields"

	"proa.dev/kind"
	"proa.dev/view"
)

// Node authorizes node agents for what their own pods need (Kubernetes docs,
// "Using Node Authorization"): reads of Secrets, ConfigMaps, claims and volumes
// that a pod on the node refers to, tokens of its service accounts, its own Node,
// Lease, CSINode, slices and attachments, and its own pods. What every node may do
// besides is NodeRules, which is checked here too, since the group is not bound
// to the role system:node.
//
// Mirror pods give no relations: a node makes them itself.
type Node struct {
	Snapshot func() view.Snapshot
}

// Authorize implements Authorizer.
func (n Node) Authorize(_ context.Context, a Attributes) (Decision, string, error) {
	node, ok := strings.CutPrefix(a.User.Name, NodePrefix)
	if !ok || node == "" || !a.User.In(NodesGroup) || a.Path != "" {
		return NoOpinion, "", nil
	}
	s := n.Snapshot()
	reads := a.Verb == "get" || a.Verb == "list" || a.Verb == "watch"
	unrelated := "no relationship found between node '" + node + "' and this object"
	related := func(uses func(*corev1.Pod) bool) (Decision, string, error) {
		if refers(s, node, a.Namespace, uses) {
			return Allow, "", nil
		}
		return NoOpinion, unrelated, nil
	}
	switch a.Group + "/" + a.Resource {
	case "/secrets", "/configmaps":
		switch {
		case !reads || a.Subresource != "":
			return NoOpinion, "can only read resources of this type", nil
		case a.Name == "":
			return NoOpinion, "No Object name found", nil
		case a.Resource == "configmaps":
			return related(func(p *corev1.Pod) bool { return podUsesConfigMap(p, a.Name) })
		}
		return related(func(p *corev1.Pod) bool {
			return podUsesSecret(p, a.Name) || volumeUsesSecret(s, p, a.Namespace, a.Name)
		})
	case "/persistentvolumeclaims":
		switch {
		case a.Subresource == "status" && (a.Verb == "get" || a.Verb == "update" || a.Verb == "patch"):
		case a.Verb != "get" || a.Subresource != "":
			return NoOpinion, "can only get individual resources of this type", nil
		}
		return related(func(p *corev1.Pod) bool { return podUsesClaim(p, a.Name) })
	case "/persistentvolumes":
		if a.Verb != "get" || a.Subresource != "" {
			return NoOpinion, "can only get individual resources of this type", nil
		}
		if pv := view.Get[*corev1.PersistentVolume](s, kind.PersistentVolume, "", a.Name); pv != nil && pv.Spec.ClaimRef != nil {
			a.Namespace = pv.Spec.ClaimRef.Namespace
			return related(func(p *corev1.Pod) bool { return podUsesClaim(p, pv.Spec.ClaimRef.Name) })
		}
		return NoOpinion, unrelated, nil
	case "resource.k8s.io/resourceclaims":
		if a.Verb != "get" || a.Subresource != "" {
			return NoOpinion, "can only get individual resources of this type", nil
		}
		return related(func(p *corev1.Pod) bool { return podUsesDevices(p, a.Name) })
	case "resource.k8s.io/resourceslices":
		// Slices of a node have to name it; the selector is what holds lists to it.
		switch a.Verb {
		case "list", "watch", "deletecollection":
			if selects(a.FieldSelector, "spec.nodeName", node) {
				return Allow, "", nil
			}
			return NoOpinion, "can only list/watch/deletecollection resourceslices with nodeName field selector", nil
		case "get", "create", "update", "patch", "delete":
			return Allow, "", nil // NodeRestriction looks at spec.nodeName
		}
		return NoOpinion, "", nil
	case "storage.k8s.io/volumeattachments":
		if a.Verb != "get" || a.Subresource != "" {
			return NoOpinion, "can only get individual resources of this type", nil
		}
		if va := view.Get[*storagev1.VolumeAttachment](s, kind.VolumeAttachment, "", a.Name); va != nil && va.Spec.NodeName == node {
			return Allow, "", nil
		}
		return NoOpinion, unrelated, nil
	case "/serviceaccounts":
		switch {
		case a.Subresource == "token" && a.Verb != "create":
			return NoOpinion, "can only create tokens for individual service accounts", nil
		case a.Subresource == "token" && a.Verb == "create", a.Subresource == "" && a.Verb == "get":
			return related(func(p *corev1.Pod) bool { return p.Spec.ServiceAccountName == a.Name })
		}
		return NoOpinion, "can only get individual resources of this type", nil
	case "coordination.k8s.io/leases":
		switch {
		case !isWrite(a.Verb) || a.Subresource != "":
			return NoOpinion, "can only get, create, update, patch, or delete a node lease", nil
		case a.Namespace != corev1.NamespaceNodeLease:
			return NoOpinion, "can only access leases in the \"kube-node-lease\" system namespace", nil
		case a.Verb != "create" && a.Name != node: // NodeRestriction looks at the name of a new one
			return NoOpinion, "can only access node lease with the same name as the requesting node", nil
		}
		return Allow, "", nil
	case "storage.k8s.io/csinodes":
		switch {
		case !isWrite(a.Verb) || a.Subresource != "":
			return NoOpinion, "can only get, create, update, patch, or delete a CSINode", nil
		case a.Verb != "create" && a.Name != node:
			return NoOpinion, "can only access CSINode with the same name as the requesting node", nil
		}
		return Allow, "", nil
	case "/nodes":
		switch {
		case a.Verb == "create" && a.Subresource == "", reads && a.Name == node && a.Subresource == "",
			(a.Verb == "update" || a.Verb == "patch") && a.Name == node && (a.Subresource == "" || a.Subresource == "status"):
			return Allow, "", nil
		case reads:
			return NoOpinion, "node '" + node + "' cannot read '" + a.Name + "', only its own Node object", nil
		}
		return NoOpinion, "can only modify its own Node", nil
	case "/pods":
		switch {
		case reads && a.Subresource == "":
			if a.Name == "" {
				if selects(a.FieldSelector, "spec.nodeName", node) {
					return Allow, "", nil
				}
				return NoOpinion, "can only list/watch pods with spec.nodeName field selector", nil
			}
			if p := view.Get[*corev1.Pod](s, kind.Pod, a.Namespace, a.Name); p != nil && p.Spec.NodeName == node {
				return Allow, "", nil
			}
			return NoOpinion, unrelated, nil
		case a.Subresource == "" && (a.Verb == "create" || a.Verb == "delete"),
			a.Subresource == "status" && (a.Verb == "update" || a.Verb == "patch"), a.Subresource == "eviction" && a.Verb == "create":
			return Allow, "", nil // NodeRestriction looks at spec.nodeName
		}
		return NoOpinion, "", nil
	}
	for i := range NodeRules {
		if RuleAllows(&NodeRules[i], &a) {
			return Allow, "", nil
		}
	}
	return NoOpinion, "", nil
}

func isWrite(verb string) bool {
	switch verb {
	case "get", "create", "update", "patch", "delete":
		return true
	}
	return false
}

// selects: the field selector asks for exactly this value.
func selects(selector, key, value string) bool {
	sel, err := fields.ParseSelector(selector)
	if err != nil {
		return false
	}
	got, ok := sel.RequiresExactMatch(key)
	return ok && got == value
}

func refers(s view.Snapshot, node, namespace string, uses func(*corev1.Pod) bool) bool {
	for p := range s.PodsOn(node) {
		if p.Namespace != namespace {
			continue
		}
		if _, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]; !mirror && uses(p) {
			return true
		}
	}
	return false
}

func containers(p *corev1.Pod, f func(*corev1.Container) bool) bool {
	for i := range p.Spec.InitContainers {
		if f(&p.Spec.InitContainers[i]) {
			return true
		}
	}
	for i := range p.Spec.Containers {
		if f(&p.Spec.Containers[i]) {
			return true
		}
	}
	for i := range p.Spec.EphemeralContainers {
		c := corev1.Container(p.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		if f(&c) {
			return true
		}
	}
	return false
}

func podUsesSecret(p *corev1.Pod, name string) bool {
	for _, r := range p.Spec.ImagePullSecrets {
		if r.Name == name {
			return true
		}
	}
	for _, v := range p.Spec.Volumes {
		switch {
		case v.Secret != nil && v.Secret.SecretName == name:
			return true
		case v.Projected != nil:
			for _, src := range v.Projected.Sources {
				if src.Secret != nil && src.Secret.Name == name {
					return true
				}
			}
		case v.CSI != nil && isLocal(v.CSI.NodePublishSecretRef, name),
			v.CephFS != nil && isLocal(v.CephFS.SecretRef, name), v.Cinder != nil && isLocal(v.Cinder.SecretRef, name),
			v.FlexVolume != nil && isLocal(v.FlexVolume.SecretRef, name), v.RBD != nil && isLocal(v.RBD.SecretRef, name),
			v.ISCSI != nil && isLocal(v.ISCSI.SecretRef, name), v.ScaleIO != nil && isLocal(v.ScaleIO.SecretRef, name),
			v.StorageOS != nil && isLocal(v.StorageOS.SecretRef, name), v.AzureFile != nil && v.AzureFile.SecretName == name:
			return true
		}
	}
	return containers(p, func(c *corev1.Container) bool {
		for _, e := range c.EnvFrom {
			if e.SecretRef != nil && e.SecretRef.Name == name {
				return true
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil && e.ValueFrom.SecretKeyRef.Name == name {
				return true
			}
		}
		return false
	})
}

func isLocal(r *corev1.LocalObjectReference, name string) bool { return r != nil && r.Name == name }

// volumeUsesSecret: the volume behind one of the pod's claims names the secret.
func volumeUsesSecret(s view.Snapshot, p *corev1.Pod, namespace, name string) bool {
	is := func(r *corev1.SecretReference) bool {
		return r != nil && r.Name == name && (r.Namespace == namespace || r.Namespace == "")
	}
	for _, v := range p.Spec.Volumes {
		claim := ""
		switch {
		case v.PersistentVolumeClaim != nil:
			claim = v.PersistentVolumeClaim.ClaimName
		case v.Ephemeral != nil:
			claim = p.Name + "-" + v.Name
		default:
			continue
		}
		pvc := view.Get[*corev1.PersistentVolumeClaim](s, kind.PersistentVolumeClaim, p.Namespace, claim)
		if pvc == nil || pvc.Spec.VolumeName == "" {
			continue
		}
		pv := view.Get[*corev1.PersistentVolume](s, kind.PersistentVolume, "", pvc.Spec.VolumeName)
		if pv == nil || pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.Name != claim || pv.Spec.ClaimRef.Namespace != p.Namespace {
			continue
		}
		switch src := pv.Spec.PersistentVolumeSource; {
		case src.CSI != nil && (is(src.CSI.NodePublishSecretRef) || is(src.CSI.NodeStageSecretRef) || is(src.CSI.NodeExpandSecretRef) ||
			is(src.CSI.ControllerPublishSecretRef) || is(src.CSI.ControllerExpandSecretRef)),
			src.CephFS != nil && is(src.CephFS.SecretRef), src.Cinder != nil && is(src.Cinder.SecretRef),
			src.FlexVolume != nil && is(src.FlexVolume.SecretRef), src.RBD != nil && is(src.RBD.SecretRef),
			src.ISCSI != nil && is(src.ISCSI.SecretRef), src.ScaleIO != nil && is(src.ScaleIO.SecretRef):
			return true
		}
	}
	return false
}

// podUsesDevices: the pod names the claim, or it was made for it.
func podUsesDevices(p *corev1.Pod, name string) bool {
	for _, c := range p.Spec.ResourceClaims {
		if c.ResourceClaimName != nil && *c.ResourceClaimName == name {
			return true
		}
	}
	for _, c := range p.Status.ResourceClaimStatuses {
		if c.ResourceClaimName != nil && *c.ResourceClaimName == name {
			return true
		}
	}
	e := p.Status.ExtendedResourceClaimStatus
	return e != nil && e.ResourceClaimName == name
}

func podUsesConfigMap(p *corev1.Pod, name string) bool {
	for _, v := range p.Spec.Volumes {
		switch {
		case v.ConfigMap != nil && v.ConfigMap.Name == name:
			return true
		case v.Projected != nil:
			for _, src := range v.Projected.Sources {
				if src.ConfigMap != nil && src.ConfigMap.Name == name {
					return true
				}
			}
		}
	}
	return containers(p, func(c *corev1.Container) bool {
		for _, e := range c.EnvFrom {
			if e.ConfigMapRef != nil && e.ConfigMapRef.Name == name {
				return true
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.ConfigMapKeyRef != nil && e.ValueFrom.ConfigMapKeyRef.Name == name {
				return true
			}
		}
		return false
	})
}

func podUsesClaim(p *corev1.Pod, name string) bool {
	for _, v := range p.Spec.Volumes {
		if v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == name || v.Ephemeral != nil && p.Name+"-"+v.Name == name {
			return true
		}
	}
	return false
}

// Refs says which kinds of objects a pod refers to.
type Refs struct{ Secrets, ConfigMaps, Claims, Tokens, Devices bool }

// References of a pod, by the same reading as the Node authorizer's.
func References(p *corev1.Pod) Refs {
	var r Refs
	r.Secrets = len(p.Spec.ImagePullSecrets) > 0
	r.Devices = len(p.Spec.ResourceClaims) > 0
	for _, v := range p.Spec.Volumes {
		r.Claims = r.Claims || v.PersistentVolumeClaim != nil || v.Ephemeral != nil
		r.ConfigMaps = r.ConfigMaps || v.ConfigMap != nil
		r.Secrets = r.Secrets || v.Secret != nil || v.CSI != nil && v.CSI.NodePublishSecretRef != nil || v.AzureFile != nil ||
			v.CephFS != nil && v.CephFS.SecretRef != nil || v.Cinder != nil && v.Cinder.SecretRef != nil || v.FlexVolume != nil && v.FlexVolume.SecretRef != nil ||
			v.RBD != nil && v.RBD.SecretRef != nil || v.ISCSI != nil && v.ISCSI.SecretRef != nil || v.ScaleIO != nil || v.StorageOS != nil && v.StorageOS.SecretRef != nil
		if v.Projected != nil {
			for _, src := range v.Projected.Sources {
				r.Secrets = r.Secrets || src.Secret != nil
				r.ConfigMaps = r.ConfigMaps || src.ConfigMap != nil
				r.Tokens = r.Tokens || src.ServiceAccountToken != nil || src.PodCertificate != nil
			}
		}
	}
	containers(p, func(c *corev1.Container) bool {
		for _, e := range c.EnvFrom {
			r.Secrets = r.Secrets || e.SecretRef != nil
			r.ConfigMaps = r.ConfigMaps || e.ConfigMapRef != nil
		}
		for _, e := range c.Env {
			if e.ValueFrom != nil {
				r.Secrets = r.Secrets || e.ValueFrom.SecretKeyRef != nil
				r.ConfigMaps = r.ConfigMaps || e.ValueFrom.ConfigMapKeyRef != nil
			}
		}
		return false
	})
	return r
}

// DriverOf is the CSI driver behind a volume of a pod, directly or through its
// claim; nil when there is none.
func DriverOf(s view.Snapshot, p *corev1.Pod, v corev1.Volume) *storagev1.CSIDriver {
	name, claim := "", ""
	switch {
	case v.CSI != nil:
		name = v.CSI.Driver
	case v.PersistentVolumeClaim != nil:
		claim = v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		claim = p.Name + "-" + v.Name
	}
	if claim != "" {
		if c := view.Get[*corev1.PersistentVolumeClaim](s, kind.PersistentVolumeClaim, p.Namespace, claim); c != nil && c.Spec.VolumeName != "" {
			if pv := view.Get[*corev1.PersistentVolume](s, kind.PersistentVolume, "", c.Spec.VolumeName); pv != nil && pv.Spec.CSI != nil {
				name = pv.Spec.CSI.Driver
			}
		}
	}
	if name == "" {
		return nil
	}
	return view.Get[*storagev1.CSIDriver](s, kind.CSIDriver, "", name)
}
