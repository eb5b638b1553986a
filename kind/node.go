package kind

import (
	"sort"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind/validate"
)

// ComponentStatus is upstream's abandoned health list. The parts of one binary are
// well when it answers at all, so the list is made from nothing.
var ComponentStatus = define[corev1.ComponentStatusList](Row[*corev1.ComponentStatus]{
	Names: Names{
		Group: "", Version: "v1", Kind: "ComponentStatus", Plural: "componentstatuses",
		ShortNames: []string{"cs"},
		Scope:      Cluster,
	},
	Verbs:      []string{"get", "list"},
	Virtual:    true,
	Deprecated: "v1 ComponentStatus is deprecated in v1.19+",
	Computed: func() []*corev1.ComponentStatus {
		var all []*corev1.ComponentStatus
		for _, name := range []string{"controller-manager", "etcd-0", "scheduler"} {
			all = append(all, &corev1.ComponentStatus{ObjectMeta: metav1.ObjectMeta{Name: name},
				Conditions: []corev1.ComponentCondition{{Type: corev1.ComponentHealthy, Status: corev1.ConditionTrue, Message: "ok"}}})
		}
		return all
	},
	Columns: columnsExactly("Name, Status, Message, Error"),
	Cells: func(c *corev1.ComponentStatus, _ time.Time) []any {
		status, message, trouble := "Unknown", "", ""
		for _, x := range c.Conditions {
			if x.Type != corev1.ComponentHealthy {
				continue
			}
			if status = "Unhealthy"; x.Status == corev1.ConditionTrue {
				status = "Healthy"
			}
			message, trouble = x.Message, x.Error
		}
		return []any{c.Name, status, message, trouble}
	},
})

// Node is a machine.
var Node = define[corev1.NodeList](Row[*corev1.Node]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Node", Plural: "nodes",
		ShortNames: []string{"no"},
		Scope:      Cluster,
		Prefix:     "minions",
	},
	Validate:            validate.Node,
	ValidateUpdate:      validate.NodeUpdate,
	UnconditionalUpdate: true,
	Default: func(n *corev1.Node) {
		roundQuantities(n.Status.Capacity)
		roundQuantities(n.Status.Allocatable)
		if n.Status.Allocatable == nil && n.Status.Capacity != nil {
			n.Status.Allocatable = n.Status.Capacity.DeepCopy()
		}
	},
	// On create a node brings its status along: agents register that way.
	PrepareUpdate: func(new, old *corev1.Node) { new.Status = old.Status },
	Warnings:      nodeWarnings,
	Subresources: []Subresource{
		{Name: "proxy", Kind: "NodeProxyOptions", Verbs: []string{"create", "delete", "get", "patch", "update"}},
	},
	Status: &DoorOf[*corev1.Node]{
		PrepareUpdate:  func(new, old *corev1.Node) { new.Spec = old.Spec },
		ValidateUpdate: validate.NodeUpdate,
	},
	Selectable: map[string]func(*corev1.Node) string{
		"spec.unschedulable": func(n *corev1.Node) string { return strconv.FormatBool(n.Spec.Unschedulable) },
	},
	Columns: columnsExactly("Name, Status, Roles, Age, Version | Internal-IP, External-IP, OS-Image, Kernel-Version, Container-Runtime"),
	Cells: func(n *corev1.Node, now time.Time) []any {
		info := &n.Status.NodeInfo
		image, kernel, runtime := info.OSImage, info.KernelVersion, info.ContainerRuntimeVersion
		fill(&image, unknown)
		fill(&kernel, unknown)
		fill(&runtime, unknown)
		return []any{n.Name, nodeState(n), nodeRoles(n), age(n, now), info.KubeletVersion,
			nodeAddress(n, corev1.NodeInternalIP), nodeAddress(n, corev1.NodeExternalIP), image, kernel, runtime}
	},
})

func nodeState(n *corev1.Node) string {
	state := "Unknown"
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			state = "NotReady"
			if c.Status == corev1.ConditionTrue {
				state = "Ready"
			}
		}
	}
	if n.Spec.Unschedulable {
		state += ",SchedulingDisabled"
	}
	return state
}

func nodeRoles(n *corev1.Node) string {
	seen := map[string]bool{}
	var roles []string
	for key, value := range n.Labels {
		role, ok := strings.CutPrefix(key, "node-role.kubernetes.io/")
		if !ok {
			role = ""
			if key == "kubernetes.io/role" {
				role = value
			}
		}
		if role != "" && !seen[role] {
			seen[role] = true
			roles = append(roles, role)
		}
	}
	sort.Strings(roles)
	return orNone(strings.Join(roles, ","))
}

func nodeAddress(n *corev1.Node, kind corev1.NodeAddressType) string {
	for _, a := range n.Status.Addresses {
		if a.Type == kind {
			return a.Address
		}
	}
	return none
}

func nodeWarnings(n, _ *corev1.Node) []string {
	var out []string
	if n.Spec.ConfigSource != nil {
		out = append(out, "spec.configSource: the feature is removed and will not have any effect")
	}
	if n.Spec.DoNotUseExternalID != "" {
		out = append(out, "spec.externalID: this field is deprecated, and is unused by Kubernetes")
	}
	return out
}
