package kind

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind/validate"
)

// Pod is a group of containers that run together on one node.
var Pod = define[corev1.PodList](Row[*corev1.Pod]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Pod", Plural: "pods",
		ShortNames: []string{"po"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "pods",
	},
	Validate:            validate.Pod,
	ValidateUpdate:      validate.PodUpdate,
	UnconditionalUpdate: true,
	Default:             defaultPod,
	PrepareCreate:       preparePod,
	PrepareUpdate:       preparePodUpdate,
	Warnings:            podWarnings,
	Subresources: []Subresource{
		{Name: "attach", Kind: "PodAttachOptions", Verbs: []string{"create", "get"}},
		{Name: "binding", Kind: "Binding", Verbs: []string{"create"}},
		{Name: "ephemeralcontainers", Kind: "Pod", Verbs: []string{"get", "patch", "update"},
			Door: (&DoorOf[*corev1.Pod]{PrepareUpdate: prepareEphemeralContainers, ValidateUpdate: validate.PodEphemeralContainersUpdate}).erase()},
		{Name: "eviction", Group: "policy", Version: "v1", Kind: "Eviction", Verbs: []string{"create"}},
		{Name: "exec", Kind: "PodExecOptions", Verbs: []string{"create", "get"}},
		{Name: "log", Kind: "Pod", Verbs: []string{"get"}},
		{Name: "portforward", Kind: "PodPortForwardOptions", Verbs: []string{"create", "get"}},
		{Name: "proxy", Kind: "PodProxyOptions", Verbs: []string{"create", "delete", "get", "patch", "update"}},
		{Name: "resize", Kind: "Pod", Verbs: []string{"get", "patch", "update"},
			Door: (&DoorOf[*corev1.Pod]{PrepareUpdate: preparePodResize, ValidateUpdate: validate.PodResize}).erase()},
	},
	Status: &DoorOf[*corev1.Pod]{
		ValidateUpdate: validate.PodStatusUpdate, PrepareUpdate: preparePodStatus},
	Selectable: map[string]func(*corev1.Pod) string{
		"spec.nodeName":            func(p *corev1.Pod) string { return p.Spec.NodeName },
		"spec.restartPolicy":       func(p *corev1.Pod) string { return string(p.Spec.RestartPolicy) },
		"spec.schedulerName":       func(p *corev1.Pod) string { return p.Spec.SchedulerName },
		"spec.serviceAccountName":  func(p *corev1.Pod) string { return p.Spec.ServiceAccountName },
		"spec.hostNetwork":         func(p *corev1.Pod) string { return strconv.FormatBool(p.Spec.HostNetwork) },
		"status.phase":             func(p *corev1.Pod) string { return string(p.Status.Phase) },
		"status.podIP":             podIP,
		"status.nominatedNodeName": func(p *corev1.Pod) string { return p.Status.NominatedNodeName },
	},
	Columns: columns("Ready, Status, Restarts | IP, Node, Nominated Node, Readiness Gates"),
	Cells:   podCells,
	Grace:   podGrace,
})

// Binding names the node of a pod. It is not stored: it is carried out.
var Binding = defineVirtual(Row[*corev1.Binding]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Binding", Plural: "bindings",
		Scope: Namespaced,
	},
	Validate: validate.Binding,
	Verbs:    []string{"create"},
})

// podIP is the first address.
func podIP(p *corev1.Pod) string {
	if len(p.Status.PodIPs) > 0 {
		return p.Status.PodIPs[0].IP
	}
	return p.Status.PodIP
}

func preparePod(p *corev1.Pod) {
	p.Generation = 1
	p.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: QOSClass(&p.Spec)}
	mergeLabelKeys(&p.Spec, p.Labels)
	if len(p.Spec.SchedulingGates) > 0 {
		p.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonSchedulingGated,
			Message: "Scheduling is blocked due to non-empty scheduling gates",
		}}
	}
}

func preparePodUpdate(new, old *corev1.Pod) {
	new.Status = old.Status
	raiseIf(!same(new.Spec, old.Spec), new)
}

// preparePodStatus lets the status through, and metadata but for its owners and
// the deletion mark.
func preparePodStatus(new, old *corev1.Pod) {
	new.Spec = old.Spec
	new.DeletionTimestamp = old.DeletionTimestamp
	new.OwnerReferences = old.OwnerReferences
	fill(&new.Status.QOSClass, old.Status.QOSClass)
}

// prepareEphemeralContainers lets only spec.ephemeralContainers through.
func prepareEphemeralContainers(new, old *corev1.Pod) {
	asked := new.Spec.EphemeralContainers
	keepAllBut(new, old)
	new.Spec.EphemeralContainers = asked
	raiseIf(!same(new.Spec, old.Spec), new)
}

// preparePodResize lets only the containers' and the pod's resources through.
func preparePodResize(new, old *corev1.Pod) {
	asked := new.Spec
	keepAllBut(new, old)
	for _, pair := range [][2][]corev1.Container{{new.Spec.Containers, asked.Containers}, {new.Spec.InitContainers, asked.InitContainers}} {
		for i := range pair[0] {
			c := &pair[0][i]
			j := slices.IndexFunc(pair[1], func(a corev1.Container) bool { return a.Name == c.Name })
			if j >= 0 {
				c.Resources, c.ResizePolicy = pair[1][j].Resources, pair[1][j].ResizePolicy
			}
		}
	}
	new.Spec.Resources = asked.Resources
	raiseIf(!same(new.Spec, old.Spec), new)
}

// keepAllBut makes new a copy of old with new's resource version.
func keepAllBut(new, old *corev1.Pod) {
	version, fields := new.ResourceVersion, new.ManagedFields
	old.DeepCopyInto(new)
	new.ResourceVersion, new.ManagedFields = version, fields
}

// mergeLabelKeys turns the matchLabelKeys of spread constraints and affinity
// terms into requirements on the pod's own label values.
func mergeLabelKeys(s *corev1.PodSpec, labels map[string]string) {
	for i := range s.TopologySpreadConstraints {
		c := &s.TopologySpreadConstraints[i]
		requireLabels(c.LabelSelector, c.MatchLabelKeys, labels, metav1.LabelSelectorOpIn)
	}
	if s.Affinity == nil {
		return
	}
	each := func(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm) {
		for i := range required {
			mergeTerm(&required[i], labels)
		}
		for i := range preferred {
			mergeTerm(&preferred[i].PodAffinityTerm, labels)
		}
	}
	if a := s.Affinity.PodAffinity; a != nil {
		each(a.RequiredDuringSchedulingIgnoredDuringExecution, a.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if a := s.Affinity.PodAntiAffinity; a != nil {
		each(a.RequiredDuringSchedulingIgnoredDuringExecution, a.PreferredDuringSchedulingIgnoredDuringExecution)
	}
}

func mergeTerm(t *corev1.PodAffinityTerm, labels map[string]string) {
	requireLabels(t.LabelSelector, t.MatchLabelKeys, labels, metav1.LabelSelectorOpIn)
	requireLabels(t.LabelSelector, t.MismatchLabelKeys, labels, metav1.LabelSelectorOpNotIn)
}

func requireLabels(selector *metav1.LabelSelector, keys []string, labels map[string]string, op metav1.LabelSelectorOperator) {
	if selector == nil {
		return
	}
	for _, key := range keys {
		if value, ok := labels[key]; ok {
			selector.MatchExpressions = append(selector.MatchExpressions,
				metav1.LabelSelectorRequirement{Key: key, Operator: op, Values: []string{value}})
		}
	}
}

// podGrace: what was asked, else the pod's own time; nothing for a pod that no
// node runs or that has ended. A negative time counts as one second.
func podGrace(p *corev1.Pod, asked *int64) *int64 {
	var seconds int64
	switch {
	case asked != nil:
		seconds = *asked
	case p.Spec.TerminationGracePeriodSeconds != nil:
		seconds = *p.Spec.TerminationGracePeriodSeconds
	}
	if p.Spec.NodeName == "" || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded || seconds == 0 {
		return nil
	}
	if seconds < 0 {
		seconds = 1
	}
	return &seconds
}

// QOSClass says how soon a pod's resources make it go when a node runs short.
func QOSClass(s *corev1.PodSpec) corev1.PodQOSClass { return validate.QOSClass(s) }

func podCells(p *corev1.Pod, now time.Time) []any {
	s := summarizePod(p)
	restarts := strconv.Itoa(s.restarts)
	if s.restarts != 0 && !s.lastRestart.IsZero() {
		restarts = fmt.Sprintf("%d (%s ago)", s.restarts, since(s.lastRestart, now))
	}
	gates := none
	if n := len(p.Spec.ReadinessGates); n > 0 {
		fulfilled := 0
		for _, gate := range p.Spec.ReadinessGates {
			if podConditionTrue(p, gate.ConditionType) {
				fulfilled++
			}
		}
		gates = fmt.Sprintf("%d/%d", fulfilled, n)
	}
	return []any{p.Name, fmt.Sprintf("%d/%d", s.ready, s.total), s.reason, restarts, age(p, now),
		orNone(podIP(p)), orNone(p.Spec.NodeName), orNone(p.Status.NominatedNodeName), gates}
}

type podSummary struct {
	reason          string
	ready, total    int
	restarts        int
	lastRestart     metav1.Time
	initRestarts    int
	lastInitRestart metav1.Time
}

// restart adds one container's restarts.
func (s *podSummary) restart(status *corev1.ContainerStatus) {
	s.restarts += int(status.RestartCount)
	if t := status.LastTerminationState.Terminated; t != nil && s.lastRestart.Before(&t.FinishedAt) {
		s.lastRestart = t.FinishedAt
	}
}

// summarizePod finds the one word that tells most about a pod's state: what its
// initialisation waits for, else the first container's trouble, else the phase.
func summarizePod(p *corev1.Pod) podSummary {
	s := podSummary{reason: string(p.Status.Phase), total: len(p.Spec.Containers)}
	if p.Status.Reason != "" {
		s.reason = p.Status.Reason
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonSchedulingGated {
			s.reason = corev1.PodReasonSchedulingGated
		}
	}
	sidecars := map[string]bool{}
	for i := range p.Spec.InitContainers {
		if restartable(&p.Spec.InitContainers[i]) {
			sidecars[p.Spec.InitContainers[i].Name] = true
			s.total++
		}
	}
	initializing := s.initialization(p, sidecars)
	if !initializing || podConditionTrue(p, corev1.PodInitialized) {
		s.restarts, s.lastRestart = s.initRestarts, s.lastInitRestart
		running := false
		for i := len(p.Status.ContainerStatuses) - 1; i >= 0; i-- {
			c := &p.Status.ContainerStatuses[i]
			s.restart(c)
			switch {
			case c.State.Waiting != nil && c.State.Waiting.Reason != "":
				s.reason = c.State.Waiting.Reason
			case c.State.Terminated != nil:
				s.reason = endReason(c.State.Terminated)
			case c.Ready && c.State.Running != nil:
				running = true
				s.ready++
			}
		}
		if s.reason == "Completed" && running {
			s.reason = "NotReady"
			if podConditionTrue(p, corev1.PodReady) {
				s.reason = "Running"
			}
		}
	}
	if p.DeletionTimestamp != nil {
		switch {
		case p.Status.Reason == "NodeLost":
			s.reason = "Unknown"
		case p.Status.Phase != corev1.PodFailed && p.Status.Phase != corev1.PodSucceeded:
			s.reason = "Terminating"
		}
	}
	return s
}

// initialization counts over the init containers up to the first that has not
// done its part, and says whether there is one.
func (s *podSummary) initialization(p *corev1.Pod, sidecars map[string]bool) bool {
	for i := range p.Status.InitContainerStatuses {
		c := &p.Status.InitContainerStatuses[i]
		s.restart(c)
		if sidecars[c.Name] {
			s.initRestarts += int(c.RestartCount)
			if t := c.LastTerminationState.Terminated; t != nil && s.lastInitRestart.Before(&t.FinishedAt) {
				s.lastInitRestart = t.FinishedAt
			}
		}
		switch ended := c.State.Terminated; {
		case ended != nil && ended.ExitCode == 0:
			continue
		case sidecars[c.Name] && c.Started != nil && *c.Started:
			if c.Ready {
				s.ready++
			}
			continue
		case ended != nil:
			s.reason = "Init:" + endReason(ended)
		case c.State.Waiting != nil && c.State.Waiting.Reason != "" && c.State.Waiting.Reason != "PodInitializing":
			s.reason = "Init:" + c.State.Waiting.Reason
		default:
			s.reason = fmt.Sprintf("Init:%d/%d", i, len(p.Spec.InitContainers))
		}
		return true
	}
	return false
}

// endReason names how a container ended.
func endReason(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

func podConditionTrue(p *corev1.Pod, kind corev1.PodConditionType) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// PodImages are the images that a pod names, as it names them: those of its
// containers and those of its volumes.
func PodImages(p *corev1.Pod) []string {
	var out []string
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			out = append(out, list[i].Image)
		}
	}
	for i := range p.Spec.EphemeralContainers {
		out = append(out, p.Spec.EphemeralContainers[i].Image)
	}
	for i := range p.Spec.Volumes {
		if v := p.Spec.Volumes[i].Image; v != nil {
			out = append(out, v.Reference)
		}
	}
	return out
}
