package sched

import (
	"hash/fnv"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"proa.dev/kind/usage"
)

// What a container that asks for nothing counts as in scores, so that many such
// pods spread: 100 millicores and 200 MiB, as upstream.
const (
	unaskedCPU = 100
	unaskedMem = 200 << 20
)

// Pod is a pod as placement sees it: requests as numbers, selectors compiled.
type Pod struct {
	Object *corev1.Pod
	on     string
	row    int

	cpu, mem, disk   int64
	seenCPU, seenMem int64
	extended         map[corev1.ResourceName]int64
	ports            []port
	classKey         string

	affinity, antiAffinity []term // required
	prefer, preferNot      []weighted
	spread                 []spread
}

// term is a pod affinity term, compiled. id is the same for equal terms.
type term struct {
	id         string
	key        string // topology key
	selector   labels.Selector
	namespaces map[string]bool
	nsSelector labels.Selector // nil: none
}

type weighted struct {
	term
	weight int64
}

type spread struct {
	term
	maxSkew    int64
	minDomains int64
	hard       bool
	// Whether nodes that the pod may not run on count (KEP-3094).
	honorAffinity, honorTaints bool
}

// Priority of the pod.
func (p *Pod) Priority() int32 {
	if p.Object.Spec.Priority != nil {
		return *p.Object.Spec.Priority
	}
	return 0
}

// NewPod compiles a pod. Broken selectors select nothing; validation refuses them
// long before.
func NewPod(o *corev1.Pod) *Pod {
	p := &Pod{Object: o}
	for name, q := range usage.PodRequests(o) {
		switch name {
		case corev1.ResourceCPU:
			p.cpu = q.MilliValue()
		case corev1.ResourceMemory:
			p.mem = q.Value()
		case corev1.ResourceEphemeralStorage:
			p.disk = q.Value()
		default:
			if p.extended == nil {
				p.extended = map[corev1.ResourceName]int64{}
			}
			p.extended[name] = q.Value()
		}
	}
	p.seenCPU, p.seenMem = p.cpu, p.mem
	for i := range o.Spec.Containers {
		c := &o.Spec.Containers[i]
		if _, ok := c.Resources.Requests[corev1.ResourceCPU]; !ok {
			p.seenCPU += unaskedCPU
		}
		if _, ok := c.Resources.Requests[corev1.ResourceMemory]; !ok {
			p.seenMem += unaskedMem
		}
		p.addPorts(c)
	}
	for i := range o.Spec.InitContainers {
		if c := &o.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			p.addPorts(c)
		}
	}
	if a := o.Spec.Affinity; a != nil {
		if a.PodAffinity != nil {
			p.affinity = terms(o, a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
			p.prefer = weightedTerms(o, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
		}
		if a.PodAntiAffinity != nil {
			p.antiAffinity = terms(o, a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
			p.preferNot = weightedTerms(o, a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
		}
	}
	for i := range o.Spec.TopologySpreadConstraints {
		c := &o.Spec.TopologySpreadConstraints[i]
		s := spread{maxSkew: int64(c.MaxSkew), minDomains: 1, hard: c.WhenUnsatisfiable == corev1.DoNotSchedule,
			honorAffinity: c.NodeAffinityPolicy == nil || *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor,
			honorTaints:   c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor}
		if c.MinDomains != nil {
			s.minDomains = int64(*c.MinDomains)
		}
		s.term = compile(o, c.TopologyKey, withKeys(c.LabelSelector, o.Labels, c.MatchLabelKeys, metav1.LabelSelectorOpIn), nil, nil)
		p.spread = append(p.spread, s)
	}
	p.classKey = classKey(o)
	return p
}

func (p *Pod) addPorts(c *corev1.Container) {
	for _, cp := range c.Ports {
		if cp.HostPort > 0 {
			ip, proto := cp.HostIP, cp.Protocol
			if ip == "" {
				ip = "0.0.0.0"
			}
			if proto == "" {
				proto = corev1.ProtocolTCP
			}
			p.ports = append(p.ports, port{ip, proto, cp.HostPort})
		}
	}
}

func terms(o *corev1.Pod, list []corev1.PodAffinityTerm) []term {
	var out []term
	for i := range list {
		out = append(out, affinityTerm(o, &list[i]))
	}
	return out
}

func weightedTerms(o *corev1.Pod, list []corev1.WeightedPodAffinityTerm) []weighted {
	var out []weighted
	for i := range list {
		out = append(out, weighted{affinityTerm(o, &list[i].PodAffinityTerm), int64(list[i].Weight)})
	}
	return out
}

func affinityTerm(o *corev1.Pod, t *corev1.PodAffinityTerm) term {
	sel := withKeys(t.LabelSelector, o.Labels, t.MatchLabelKeys, metav1.LabelSelectorOpIn)
	sel = withKeys(sel, o.Labels, t.MismatchLabelKeys, metav1.LabelSelectorOpNotIn)
	return compile(o, t.TopologyKey, sel, t.Namespaces, t.NamespaceSelector)
}

// withKeys adds the pod's own values of some labels to a selector (KEP-3243,
// KEP-3633).
func withKeys(s *metav1.LabelSelector, own map[string]string, keys []string, op metav1.LabelSelectorOperator) *metav1.LabelSelector {
	if s == nil || len(keys) == 0 {
		return s
	}
	s = s.DeepCopy()
	for _, k := range keys {
		if v, ok := own[k]; ok {
			s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{Key: k, Operator: op, Values: []string{v}})
		}
	}
	return s
}

func compile(o *corev1.Pod, key string, s *metav1.LabelSelector, namespaces []string, nsSelector *metav1.LabelSelector) term {
	t := term{key: key, namespaces: map[string]bool{}}
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		sel = labels.Nothing()
	}
	t.selector = sel
	if nsSelector != nil {
		if n, err := metav1.LabelSelectorAsSelector(nsSelector); err == nil {
			t.nsSelector = n
		}
	}
	for _, n := range namespaces {
		t.namespaces[n] = true
	}
	if len(namespaces) == 0 && nsSelector == nil {
		t.namespaces[o.Namespace] = true
	}
	names := make([]string, 0, len(t.namespaces))
	for n := range t.namespaces {
		names = append(names, n)
	}
	sort.Strings(names)
	t.id = key + "\x00" + sel.String() + "\x00" + strings.Join(names, ",")
	if s == nil {
		t.id += "\x00none"
	}
	if t.nsSelector != nil {
		t.id += "\x00" + t.nsSelector.String()
	}
	return t
}

// matches says whether a term means a pod.
func (t *Table) matches(m *term, p *corev1.Pod) bool {
	if !m.namespaces[p.Namespace] {
		if m.nsSelector == nil || !m.nsSelector.Matches(labels.Set(t.namespaceLabels(p.Namespace))) {
			return false
		}
	}
	return m.selector.Matches(labels.Set(p.Labels))
}

// classKey is equal for pods that the same nodes admit, resources aside.
func classKey(o *corev1.Pod) string {
	s := &o.Spec
	if len(s.NodeSelector) == 0 && (s.Affinity == nil || s.Affinity.NodeAffinity == nil) && plainTolerations(s.Tolerations) {
		return ""
	}
	h := fnv.New128a()
	keys := make([]string, 0, len(s.NodeSelector))
	for k, v := range s.NodeSelector {
		keys = append(keys, k+"="+v)
	}
	sort.Strings(keys)
	for _, k := range keys {
		h.Write([]byte(k))
		h.Write([]byte{0})
	}
	h.Write([]byte{1})
	if s.Affinity != nil && s.Affinity.NodeAffinity != nil {
		if b, err := s.Affinity.NodeAffinity.Marshal(); err == nil {
			h.Write(b)
		}
	}
	h.Write([]byte{2})
	for i := range s.Tolerations {
		if b, err := s.Tolerations[i].Marshal(); err == nil {
			h.Write(b)
		}
	}
	return string(h.Sum(nil))
}

// plainTolerations are the two that admission gives every pod: they are about
// NoExecute and change nothing here but for the taints' own key.
func plainTolerations(list []corev1.Toleration) bool {
	if len(list) != 2 {
		return len(list) == 0
	}
	for _, t := range list {
		if t.Effect != corev1.TaintEffectNoExecute || t.Operator != corev1.TolerationOpExists || t.TolerationSeconds == nil ||
			t.Key != corev1.TaintNodeNotReady && t.Key != corev1.TaintNodeUnreachable {
			return false
		}
	}
	return true
}
