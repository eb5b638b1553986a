package auth

import (
	"context"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"proa.dev/kind"
	"proa.dev/view"
)

// Node authorizes node agents for what their own pods need (Kubernetes docs,
// "Using Node Authorization"): reads of Secrets, ConfigMaps, claims and volumes
// that a pod on the node refers to, tokens of its service accounts, its own Node,
// Lease and CSINode. What every node may do is in the role system:node, which is
// checked here too, since the group is not bound to it.
type Node struct {
	Snapshot func() view.Snapshot
}

// Authorize implements Authorizer.
func (n Node) Authorize(_ context.Context, a Attributes) (Decision, string, error) {
	node, ok := strings.CutPrefix(a.User.Name, NodePrefix)
	if !ok || !a.User.In(NodesGroup) || a.Path != "" {
		return NoOpinion, "", nil
	}
	s := n.Snapshot()
	switch a.Group + "/" + a.Resource {
	case "/secrets", "/configmaps":
		if a.Verb != "get" && a.Verb != "list" && a.Verb != "watch" || a.Subresource != "" {
			return NoOpinion, "can only read resources of this type", nil
		}
		if a.Name == "" {
			return NoOpinion, "No Object name found", nil
		}
		if refers(s, node, a.Namespace, func(p *corev1.Pod) bool {
			if a.Resource == "secrets" {
				return podUsesSecret(p, a.Name)
			}
			return podUsesConfigMap(p, a.Name)
		}) {
			return Allow, "", nil
		}
		return NoOpinion, "no relationship found between node '" + node + "' and this object", nil
	case "/persistentvolumeclaims", "/persistentvolumes":
		if a.Verb == "get" && a.Subresource == "" {
			if a.Resource == "persistentvolumes" {
				if pv := view.Get[*corev1.PersistentVolume](s, kind.PersistentVolume, "", a.Name); pv != nil && pv.Spec.ClaimRef != nil {
					c := pv.Spec.ClaimRef
					if refers(s, node, c.Namespace, func(p *corev1.Pod) bool { return podUsesClaim(p, c.Name) }) {
						return Allow, "", nil
					}
				}
			} else if refers(s, node, a.Namespace, func(p *corev1.Pod) bool { return podUsesClaim(p, a.Name) }) {
				return Allow, "", nil
			}
		}
		return NoOpinion, "no relationship found between node '" + node + "' and this object", nil
	case "/serviceaccounts":
		if a.Verb == "create" && a.Subresource == "token" || a.Verb == "get" && a.Subresource == "" {
			if refers(s, node, a.Namespace, func(p *corev1.Pod) bool { return p.Spec.ServiceAccountName == a.Name }) {
				return Allow, "", nil
			}
		}
		return NoOpinion, "no relationship found between node '" + node + "' and this object", nil
	case "coordination.k8s.io/leases":
		if a.Namespace == corev1.NamespaceNodeLease && (a.Name == node || a.Name == "" && a.Verb == "create") {
			switch a.Verb {
			case "get", "create", "update", "patch", "delete":
				return Allow, "", nil
			}
		}
		return NoOpinion, "can only access node lease with the same name as the requesting node", nil
	case "storage.k8s.io/csinodes":
		if a.Name == node || a.Name == "" && a.Verb == "create" {
			return Allow, "", nil
		}
		return NoOpinion, "can only access CSINode with the same name as the requesting node", nil
	case "/nodes":
		switch a.Verb {
		case "get", "list", "watch":
			return Allow, "", nil
		case "create":
			return Allow, "", nil
		case "update", "patch":
			if a.Name == node {
				return Allow, "", nil
			}
		}
		return NoOpinion, "can only modify its own Node", nil
	}
	for i := range NodeRules {
		if RuleAllows(&NodeRules[i], &a) {
			return Allow, "", nil
		}
	}
	return NoOpinion, "", nil
}

func refers(s view.Snapshot, node, namespace string, uses func(*corev1.Pod) bool) bool {
	for p := range s.PodsOn(node) {
		if p.Namespace == namespace && uses(p) {
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
		case v.CSI != nil && v.CSI.NodePublishSecretRef != nil && v.CSI.NodePublishSecretRef.Name == name:
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
