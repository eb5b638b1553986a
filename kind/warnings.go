package kind

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"
)

// deprecatedLabels are node labels with a newer name.
var deprecatedLabels = map[string]struct{ since, use string }{
	"beta.kubernetes.io/arch":                  {"v1.14", "kubernetes.io/arch"},
	"beta.kubernetes.io/os":                    {"v1.14", "kubernetes.io/os"},
	"failure-domain.beta.kubernetes.io/region": {"v1.17", "topology.kubernetes.io/region"},
	"failure-domain.beta.kubernetes.io/zone":   {"v1.17", "topology.kubernetes.io/zone"},
	"beta.kubernetes.io/instance-type":         {"v1.17", "node.kubernetes.io/instance-type"},
}

func deprecatedLabel(key string) (string, bool) {
	d, ok := deprecatedLabels[key]
	if !ok {
		return "", false
	}
	return fmt.Sprintf("deprecated since %s; use %q instead", d.since, d.use), ok
}

// podWarnings are sent on create and when the spec's generation changed.
func podWarnings(new, old *corev1.Pod) []string {
	if old != nil && same(new.Spec, old.Spec) && same(new.Annotations, old.Annotations) {
		return nil
	}
	return specWarnings(field.NewPath("spec"), &new.Spec, field.NewPath("metadata"), &new.ObjectMeta)
}

// templateWarnings are those of a pod template below path.
func templateWarnings(path *field.Path, new, old *corev1.PodTemplateSpec) []string {
	if old != nil && same(new, old) {
		return nil
	}
	return specWarnings(path.Child("spec"), &new.Spec, path.Child("metadata"), &new.ObjectMeta)
}

func specWarnings(path *field.Path, s *corev1.PodSpec, metaPath *field.Path, meta *metav1.ObjectMeta) []string {
	var out []string
	warn := func(at *field.Path, format string, args ...any) {
		out = append(out, at.String()+": "+fmt.Sprintf(format, args...))
	}
	for key := range s.NodeSelector {
		if msg, ok := deprecatedLabel(key); ok {
			warn(path.Child("nodeSelector").Key(key), "%s", msg)
		}
	}
	affinityWarnings(path.Child("affinity"), s.Affinity, warn)
	for i, c := range s.TopologySpreadConstraints {
		if msg, ok := deprecatedLabel(c.TopologyKey); ok {
			warn(path.Child("topologySpreadConstraints").Index(i).Child("topologyKey"), "%s is %s", c.TopologyKey, msg)
		}
	}
	for i, a := range s.HostAliases {
		addressWarning(path.Child("hostAliases").Index(i).Child("ip"), a.IP, warn)
	}
	for i, r := range s.ImagePullSecrets {
		if r.Name == "" {
			warn(path.Child("imagePullSecrets").Index(i).Child("name"), "invalid empty name %q", r.Name)
		}
	}
	for i := range s.Volumes {
		volumeWarnings(path.Child("volumes").Index(i), &s.Volumes[i], warn)
	}
	const seccompPod, seccompContainer = "seccomp.security.alpha.kubernetes.io/pod", "container.seccomp.security.alpha.kubernetes.io/"
	if _, ok := meta.Annotations[seccompPod]; ok && (s.SecurityContext == nil || s.SecurityContext.SeccompProfile == nil) {
		warn(metaPath.Child("annotations").Key(seccompPod), `non-functional in v1.27+; use the "seccompProfile" field instead`)
	}
	if _, ok := meta.Annotations["scheduler.alpha.kubernetes.io/critical-pod"]; ok {
		warn(metaPath.Child("annotations").Key("scheduler.alpha.kubernetes.io/critical-pod"), `non-functional in v1.16+; use the "priorityClassName" field instead`)
	}
	containers := func(list []corev1.Container, name string) {
		for i := range list {
			c, at := &list[i], path.Child(name).Index(i)
			if key := seccompContainer + c.Name; meta.Annotations[key] != "" && (c.SecurityContext == nil || c.SecurityContext.SeccompProfile == nil) {
				warn(metaPath.Child("annotations").Key(key), `non-functional in v1.27+; use the "seccompProfile" field instead`)
			}
			if key := corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix + c.Name; meta.Annotations[key] != "" && (c.SecurityContext == nil || c.SecurityContext.AppArmorProfile == nil) {
				warn(metaPath.Child("annotations").Key(key), `deprecated since v1.30; use the "appArmorProfile" field instead`)
			}
			containerWarnings(at, c, warn)
		}
	}
	containers(s.InitContainers, "initContainers")
	containers(s.Containers, "containers")
	portWarnings(path.Child("containers"), s.Containers, warn)
	if ptr.Deref(s.TerminationGracePeriodSeconds, 0) < 0 {
		warn(path.Child("terminationGracePeriodSeconds"), "must be >= 0; negative values are invalid and will be treated as 1")
	}
	return out
}

type warnFunc func(at *field.Path, format string, args ...any)

func affinityWarnings(path *field.Path, a *corev1.Affinity, warn warnFunc) {
	if a == nil {
		return
	}
	if n := a.NodeAffinity; n != nil {
		at := path.Child("nodeAffinity")
		if n.RequiredDuringSchedulingIgnoredDuringExecution != nil {
			for i, term := range n.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
				nodeTermWarnings(at.Child("requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms").Index(i), term, warn)
			}
		}
		for i, term := range n.PreferredDuringSchedulingIgnoredDuringExecution {
			nodeTermWarnings(at.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i).Child("preference"), term.Preference, warn)
		}
	}
	pods := func(at *field.Path, required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm) {
		topology := func(at *field.Path, key string) {
			if msg, ok := deprecatedLabel(key); ok {
				warn(at.Child("topologyKey"), "%s is %s", key, msg)
			}
		}
		for i, t := range required {
			topology(at.Child("requiredDuringSchedulingIgnoredDuringExecution").Index(i), t.TopologyKey)
		}
		for i, t := range preferred {
			topology(at.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i).Child("podAffinityTerm"), t.PodAffinityTerm.TopologyKey)
		}
	}
	if p := a.PodAffinity; p != nil {
		pods(path.Child("podAffinity"), p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if p := a.PodAntiAffinity; p != nil {
		pods(path.Child("podAntiAffinity"), p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution)
	}
}

func nodeTermWarnings(path *field.Path, term corev1.NodeSelectorTerm, warn warnFunc) {
	for i, e := range term.MatchExpressions {
		if msg, ok := deprecatedLabel(e.Key); ok {
			warn(path.Child("matchExpressions").Index(i).Child("key"), "%s is %s", e.Key, msg)
		}
	}
}

func volumeWarnings(path *field.Path, v *corev1.Volume, warn warnFunc) {
	switch {
	case v.PhotonPersistentDisk != nil:
		warn(path.Child("photonPersistentDisk"), "deprecated in v1.11, non-functional in v1.16+")
	case v.GitRepo != nil:
		warn(path.Child("gitRepo"), "deprecated in v1.11, and disabled by default in v1.33+")
	case v.ScaleIO != nil:
		warn(path.Child("scaleIO"), "deprecated in v1.16, non-functional in v1.22+")
	case v.Flocker != nil:
		warn(path.Child("flocker"), "deprecated in v1.22, non-functional in v1.25+")
	case v.StorageOS != nil:
		warn(path.Child("storageOS"), "deprecated in v1.22, non-functional in v1.25+")
	case v.Quobyte != nil:
		warn(path.Child("quobyte"), "deprecated in v1.22, non-functional in v1.25+")
	case v.Glusterfs != nil:
		warn(path.Child("glusterfs"), "deprecated in v1.25, non-functional in v1.26+")
	case v.CephFS != nil:
		warn(path.Child("cephfs"), "deprecated in v1.28, non-functional in v1.31+")
	case v.RBD != nil:
		warn(path.Child("rbd"), "deprecated in v1.28, non-functional in v1.31+")
	}
	claim := (*corev1.PersistentVolumeClaimSpec)(nil)
	if v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil {
		claim = &v.Ephemeral.VolumeClaimTemplate.Spec
	}
	if claim != nil {
		if q, ok := claim.Resources.Requests[corev1.ResourceStorage]; ok && q.MilliValue()%1000 != 0 {
			warn(path.Child("ephemeral", "volumeClaimTemplate", "spec", "resources", "requests").Key("storage"),
				"fractional byte value %q is invalid, must be an integer", q.String())
		}
	}
}

func containerWarnings(path *field.Path, c *corev1.Container, warn warnFunc) {
	for _, list := range []struct {
		name string
		of   corev1.ResourceList
	}{{"limits", c.Resources.Limits}, {"requests", c.Resources.Requests}} {
		for _, name := range []corev1.ResourceName{corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
			if q, ok := list.of[name]; ok && q.MilliValue()%1000 != 0 {
				warn(path.Child("resources", list.name).Key(string(name)), "fractional byte value %q is invalid, must be an integer", q.String())
			}
		}
	}
	seen := map[string]bool{}
	for i, e := range c.Env {
		if seen[e.Name] && !strings.Contains(e.Value, "$("+e.Name+")") {
			warn(path.Child("env").Index(i), "hides previous definition of %q, which may be dropped when using apply", e.Name)
		}
		seen[e.Name] = true
	}
}

// portWarnings find ports that are declared twice in a pod.
func portWarnings(path *field.Path, list []corev1.Container, warn warnFunc) {
	type port struct {
		protocol corev1.Protocol
		ip       string
		host     int32
		port     int32
	}
	seen, names := map[port]*field.Path{}, map[string]*field.Path{}
	for i := range list {
		local := map[string]bool{}
		for j, p := range list[i].Ports {
			at := path.Index(i).Child("ports").Index(j)
			key := port{p.Protocol, p.HostIP, p.HostPort, p.ContainerPort}
			if before := seen[key]; before != nil {
				warn(at, "duplicate port definition with %s", before)
			} else {
				seen[key] = at
			}
			if p.Name == "" || local[p.Name] {
				continue
			}
			local[p.Name] = true
			if before := names[p.Name]; before != nil {
				warn(at.Child("name"), "duplicate port name %q with %s, services and probes that select ports by name will use %s", p.Name, before.Child("name"), before)
			} else {
				names[p.Name] = at
			}
		}
	}
}

// addressWarning is for addresses that are accepted but not written as they
// should be.
func addressWarning(path *field.Path, s string, warn warnFunc) {
	if s == "" {
		return
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		if leadingZeros(s) {
			warn(path, "non-standard IP address %q will be considered invalid in a future Kubernetes release: use %q", s, stripZeros(s))
		}
		return
	}
	switch {
	case addr.Is4In6():
		warn(path, "non-standard IP address %q will be considered invalid in a future Kubernetes release: use %q", s, addr.Unmap())
	case addr.Is6() && addr.String() != s:
		warn(path, "IPv6 address %q should be in RFC 5952 canonical format (%q)", s, addr)
	}
}

func leadingZeros(s string) bool {
	_, err := netip.ParseAddr(stripZeros(s))
	return err == nil && stripZeros(s) != s
}

func stripZeros(s string) string {
	parts := strings.Split(s, ".")
	for i, p := range parts {
		if p = strings.TrimLeft(p, "0"); p == "" {
			p = "0"
		}
		parts[i] = p
	}
	return strings.Join(parts, ".")
}
