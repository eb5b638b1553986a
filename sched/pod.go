package sched

import (
	"encoding/binary"
	"hash/fnv"
	"maps"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

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
	on     string // node that it occupies, or that it is nominated for
	row    int

	cpu, mem, disk   int64
	seenCPU, seenMem int64
	extended         map[corev1.ResourceName]int64
	ports            []port
	classKey         string
	shapeKey         string
	hash             uint64 // of the UID

	affinity, antiAffinity []term // required
	prefer, preferNot      []weighted
	spread                 []spread
}

// term is a pod affinity term, compiled. id is the same for equal terms.
type term struct {
	id         string
	liveID     string // id of the tally that leaves out pods that are being deleted
	notID      string // id of the tally with the opposite sign
	hook       string // what the labels of a pod that it means lead to (tallies.each)
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

// IsSocial says whether other pods' placement decides where this one may go.
func (p *Pod) IsSocial() bool { return len(p.affinity)+len(p.antiAffinity)+len(p.spread) > 0 }

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
	p.shapeKey = p.shape()
	p.hash = hashOf(string(o.UID))
	return p
}

// hashOf is FNV-1a.
func hashOf(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := 0; i < len(s); i++ {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// shape is equal for pods that fit on the same nodes and score the same there,
// other pods' labels and volumes aside.
func (p *Pod) shape() string {
	b := make([]byte, 0, 128)
	number := func(n int64) { b = binary.AppendVarint(b, n) }
	text := func(s string) { number(int64(len(s))); b = append(b, s...) }
	text(p.classKey)
	text(p.Object.Spec.NodeName)
	number(p.cpu)
	number(p.mem)
	number(p.disk)
	number(p.seenCPU)
	number(p.seenMem)
	for _, name := range slices.Sorted(maps.Keys(p.extended)) {
		text(string(name))
		number(p.extended[name])
	}
	text("")
	for _, q := range p.ports {
		text(q.ip)
		text(string(q.proto))
		number(int64(q.n))
	}
	text("")
	for i := range p.Object.Spec.InitContainers {
		text(p.Object.Spec.InitContainers[i].Image)
	}
	for i := range p.Object.Spec.Containers {
		text(p.Object.Spec.Containers[i].Image)
	}
	return string(b)
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
	t.liveID, t.notID = t.id+"\x00live", t.id+"\x00not"
	if len(names) == 1 && t.nsSelector == nil {
		t.hook = names[0] + "\x00"
		if want, selectable := sel.Requirements(); selectable {
			for i := range want {
				if op := want[i].Operator(); op == selection.Equals || op == selection.In || op == selection.DoubleEquals {
					if v := want[i].ValuesUnsorted(); len(v) == 1 {
						t.hook += want[i].Key() + "=" + v[0]
						break
					}
				}
			}
		}
	}
	return t
}

// matches says whether a term means a pod.
func (t *Table) matches(m *term, p *corev1.Pod) bool {
	if !m.namespaces[p.Namespace] {
		if m.nsSelector == nil || !m.nsSelector.Matches(labels.Set(t.namespaces[p.Namespace])) {
			return false
		}
	}
	return m.selector.Matches(labels.Set(p.Labels))
}

// classKey is equal for pods that the same nodes admit, resources aside.
func classKey(o *corev1.Pod) string {
	s := &o.Spec
	if len(s.NodeSelector) == 0 && (s.Affinity == nil || s.Affinity.NodeAffinity == nil) && plainTolerations(s.Tolerations) {
		return [...]string{"bare", "", "usual"}[len(s.Tolerations)]
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

// plainTolerations are none, or the two that admission gives every pod: one for
// each of two taints.
func plainTolerations(list []corev1.Toleration) bool {
	if len(list) != 2 {
		return len(list) == 0
	}
	for i := range list {
		t := &list[i]
		if t.Effect != corev1.TaintEffectNoExecute || t.Operator != corev1.TolerationOpExists || t.TolerationSeconds == nil ||
			t.Key != corev1.TaintNodeNotReady && t.Key != corev1.TaintNodeUnreachable {
			return false
		}
	}
	return list[0].Key != list[1].Key
}
