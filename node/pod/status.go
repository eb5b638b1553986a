package pod

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// publish emits SetStatus when the status differs from the last one.
func (m *machine) publish() {
	if m.Pod == nil || m.Stage == Gone || m.Stage == Waiting || m.End.Cause == WasVanished {
		return
	}
	s := m.status()
	if m.Published != nil && equality.Semantic.DeepEqual(s, m.Published) {
		return
	}
	m.Published = s
	m.do(SetStatus{s})
}

// stamp is a time as the API carries it, in whole seconds: what is compared with
// what the API gives back must have no more.
func stamp(t time.Time) metav1.Time {
	if t.IsZero() {
		return metav1.Time{}
	}
	return metav1.NewTime(t.Truncate(time.Second))
}

// OwnConditions are the pod conditions that the node writes; all others belong to
// someone else and are kept by whoever carries SetStatus out.
var OwnConditions = []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady,
	corev1.ContainersReady, corev1.PodScheduled, corev1.DisruptionTarget}

func (m *machine) status() *corev1.PodStatus {
	p := m.Pod
	s := &corev1.PodStatus{
		ObservedGeneration: p.Generation,
		Reason:             m.End.Reason,
		Message:            m.End.Message,
		QOSClass:           QOS(p),
		NominatedNodeName:  p.Status.NominatedNodeName,
		// Written by others, or not by this machine; carried along.
		Resize:                      p.Status.Resize,
		ResourceClaimStatuses:       p.Status.ResourceClaimStatuses,
		ExtendedResourceClaimStatus: p.Status.ExtendedResourceClaimStatus,
	}
	if !m.StartTime.IsZero() {
		t := stamp(m.StartTime)
		s.StartTime = &t
	}
	for i, ip := range m.Node.IPs {
		if i == 0 {
			s.HostIP = ip
		}
		s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip})
	}
	for i, ip := range m.Sandbox.IPs {
		if i == 0 {
			s.PodIP = ip
		}
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip})
	}
	for i := range m.Containers {
		c := &m.Containers[i]
		cs := m.containerStatus(c)
		switch c.Role {
		case Init, Sidecar:
			s.InitContainerStatuses = append(s.InitContainerStatuses, cs)
		case Main:
			s.ContainerStatuses = append(s.ContainerStatuses, cs)
		case Ephemeral:
			s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, cs)
		}
	}
	s.Phase = m.phase()
	if m.End.Cause == Refused {
		s.QOSClass, s.InitContainerStatuses, s.ContainerStatuses = "", nil, nil
		s.QOSClass = QOS(p)
	}
	m.conditions(s)
	return s
}

// phase follows upstream: what ended and what is to run again decide; a pod that
// is being ended gets its terminal phase when nothing runs any more.
func (m *machine) phase() corev1.PodPhase {
	if m.Stage >= Cleaning && m.Stage != Gone {
		idle := true
		for i := range m.Containers {
			if m.Containers[i].busy() {
				idle = false
			}
		}
		if idle {
			return m.terminalPhase()
		}
	}
	if !m.Initialized {
		if m.anyMain(func(c *Container) bool { return c.running() || c.Term != nil || c.Last != nil }) {
			return corev1.PodRunning // the sandbox was made anew: init containers run again
		}
		return corev1.PodPending
	}
	waiting := 0
	for i := range m.Containers {
		if c := &m.Containers[i]; c.Role == Main && !c.running() && c.Term == nil && c.Last == nil {
			waiting++
		}
	}
	if waiting > 0 {
		return corev1.PodPending
	}
	return corev1.PodRunning
}

func (m *machine) anyMain(is func(*Container) bool) bool {
	for i := range m.Containers {
		if c := &m.Containers[i]; c.Role == Main && is(c) {
			return true
		}
	}
	return false
}

func (m *machine) terminalPhase() corev1.PodPhase {
	switch m.End.Cause {
	case Deadline, Evicted, Refused:
		return corev1.PodFailed
	}
	if m.terminalInAPI() {
		return m.Pod.Status.Phase
	}
	if m.anyMain(func(c *Container) bool { return c.Term == nil || c.Term.ExitCode != 0 }) {
		return corev1.PodFailed
	}
	return corev1.PodSucceeded
}

func (m *machine) containerStatus(c *Container) corev1.ContainerStatus {
	spec := Spec(m.Pod, c.Name)
	cs := corev1.ContainerStatus{Name: c.Name, RestartCount: c.Restarts, Image: c.Image, ImageID: c.ImageID,
		ContainerID: ContainerID(c.ID)}
	if cs.Image == "" {
		cs.Image = c.SpecImage
	}
	last := c.Last
	started := false
	switch {
	case c.running():
		cs.State.Running = &corev1.ContainerStateRunning{StartedAt: stamp(c.StartedAt)}
		started = c.Started && c.Step != Hooking
		cs.Ready = c.Ready && started
	case c.WaitReason != "":
		cs.State.Waiting = &corev1.ContainerStateWaiting{Reason: c.WaitReason, Message: c.WaitMessage}
		if c.Term != nil {
			last = c.Term
		}
		if m.Stage >= Stopping && c.Term != nil { // nothing waits any more
			cs.State = corev1.ContainerState{Terminated: c.Term}
			last = c.Last
		}
	case c.Term != nil:
		cs.State.Terminated = c.Term
		cs.Ready = c.Role == Init && c.Term.ExitCode == 0 && c.Step == Ended
	default:
		reason := "ContainerCreating"
		if c.Role == Main && !m.Initialized && len(m.Pod.Spec.InitContainers) > 0 || c.Role == Init && m.beforeTurn(c) {
			reason = "PodInitializing"
		}
		cs.State.Waiting = &corev1.ContainerStateWaiting{Reason: reason}
	}
	if last != nil {
		cs.LastTerminationState.Terminated = last
	}
	cs.Started = &started
	if len(spec.Resources.Requests) > 0 {
		cs.AllocatedResources = spec.Resources.Requests
	}
	if len(spec.Resources.Requests)+len(spec.Resources.Limits) > 0 {
		cs.Resources = &corev1.ResourceRequirements{Requests: spec.Resources.Requests, Limits: spec.Resources.Limits}
	}
	for i := range spec.VolumeMounts {
		v := &spec.VolumeMounts[i]
		vs := corev1.VolumeMountStatus{Name: v.Name, MountPath: v.MountPath, ReadOnly: v.ReadOnly}
		if v.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			vs.RecursiveReadOnly = &mode
		}
		cs.VolumeMounts = append(cs.VolumeMounts, vs)
	}
	return cs
}

// beforeTurn says whether an init container waits for an earlier one.
func (m *machine) beforeTurn(c *Container) bool {
	for i := range m.Containers {
		o := &m.Containers[i]
		if o.Name == c.Name {
			return false
		}
		if o.Role == Init && !(o.Step == Ended && o.Term.ExitCode == 0) || o.Role == Sidecar && !o.Started {
			return true
		}
	}
	return false
}

func (m *machine) conditions(s *corev1.PodStatus) {
	p := m.Pod
	set := func(t corev1.PodConditionType, ok bool, reason, message string) {
		c := corev1.PodCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message,
			ObservedGeneration: p.Generation, LastTransitionTime: stamp(m.now)}
		if ok {
			c.Status = corev1.ConditionTrue
		}
		if old := condition(m.Published, t); old != nil && old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		s.Conditions = append(s.Conditions, c)
	}
	done := s.Phase == corev1.PodSucceeded
	failed := s.Phase == corev1.PodFailed

	set(corev1.PodReadyToStartContainers, m.Sandbox.ID != "" && !m.Sandbox.Stop.Done && m.Stage < Finished, "", "")

	var incomplete []string
	for i := range m.Containers {
		c := &m.Containers[i]
		if c.Role == Init && !(c.Step == Ended && c.Term != nil && c.Term.ExitCode == 0) ||
			c.Role == Sidecar && !(c.running() && c.Started) {
			incomplete = append(incomplete, c.Name)
		}
	}
	switch {
	case done:
		set(corev1.PodInitialized, true, "PodCompleted", "")
	case m.Initialized || len(incomplete) == 0:
		set(corev1.PodInitialized, true, "", "")
	default:
		set(corev1.PodInitialized, false, "ContainersNotInitialized",
			fmt.Sprintf("containers with incomplete status: %s", incomplete))
	}

	var unready []string
	for i := range m.Containers {
		c := &m.Containers[i]
		if (c.Role == Main || c.Role == Sidecar) && !(c.running() && c.Ready && c.Step != Hooking) {
			unready = append(unready, c.Name)
		}
	}
	ready, reason, message := true, "", ""
	switch {
	case failed:
		ready, reason = false, "PodFailed"
	case done:
		ready, reason = false, "PodCompleted"
	case len(unready) > 0:
		ready, reason = false, "ContainersNotReady"
		message = fmt.Sprintf("containers with unready status: %s", unready)
	case m.Stage >= Draining && m.End.Cause != WasDeleted && m.End.Cause != WasVanished:
		ready, reason, message = false, "PodEnding", "the node is ending this pod: "+m.End.Reason
	}
	podReady, podReason, podMessage := ready, reason, message
	if ready {
		var open []string
		for _, g := range p.Spec.ReadinessGates {
			switch c := condition(&p.Status, g.ConditionType); {
			case c == nil:
				open = append(open, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", g.ConditionType))
			case c.Status != corev1.ConditionTrue:
				open = append(open, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", g.ConditionType, c.Status))
			}
		}
		if len(open) > 0 {
			podReady, podReason, podMessage = false, "ReadinessGatesNotReady", strings.Join(open, ", ")
		}
	}
	set(corev1.PodReady, podReady, podReason, podMessage)
	set(corev1.ContainersReady, ready, reason, message)
	set(corev1.PodScheduled, true, "", "")
	if m.End.Cause == Evicted {
		set(corev1.DisruptionTarget, true, "TerminationByKubelet", m.End.Message)
	} else if old := condition(&p.Status, corev1.DisruptionTarget); old != nil {
		s.Conditions = append(s.Conditions, *old)
	}
}

func condition(s *corev1.PodStatus, t corev1.PodConditionType) *corev1.PodCondition {
	if s == nil {
		return nil
	}
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

// QOS is the pod's quality-of-service class from its containers' CPU and memory.
// Behaviour: Kubernetes docs, "Pod Quality of Service Classes"; pod-level resources
// stand for all containers when they are set.
func QOS(p *corev1.Pod) corev1.PodQOSClass {
	if p.Status.QOSClass != "" {
		return p.Status.QOSClass
	}
	type amounts struct{ requests, limits corev1.ResourceList }
	var all []amounts
	if r := p.Spec.Resources; r != nil && len(r.Requests)+len(r.Limits) > 0 {
		all = append(all, amounts{r.Requests, r.Limits})
	} else {
		for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range list {
				all = append(all, amounts{list[i].Resources.Requests, list[i].Resources.Limits})
			}
		}
	}
	guaranteed, any := true, false
	for _, a := range all {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := a.requests[name], a.limits[name]
			any = any || positive(request) || positive(limit)
			if !positive(limit) || positive(request) && request.Cmp(limit) != 0 {
				guaranteed = false
			}
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

func positive(q resource.Quantity) bool { return q.Sign() > 0 }

// Summary is a status on one line, for scenarios and logs:
//
//	Running ready ip=10.1.0.7 app=Running/ready(2) init=Completed:0
func Summary(s *corev1.PodStatus) string {
	var b strings.Builder
	b.WriteString(string(s.Phase))
	if s.Reason != "" {
		b.WriteString(" reason=" + s.Reason)
	}
	if c := condition(s, corev1.PodReady); c != nil && c.Status == corev1.ConditionTrue {
		b.WriteString(" ready")
	} else if c != nil && c.Reason == "ReadinessGatesNotReady" {
		b.WriteString(" gated")
	}
	if s.PodIP != "" {
		b.WriteString(" ip=" + s.PodIP)
	}
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			c := &list[i]
			b.WriteString(" " + c.Name + "=")
			switch {
			case c.State.Running != nil:
				b.WriteString("Running")
			case c.State.Terminated != nil:
				fmt.Fprintf(&b, "%s:%d", c.State.Terminated.Reason, c.State.Terminated.ExitCode)
			case c.State.Waiting != nil:
				b.WriteString(c.State.Waiting.Reason)
			}
			if c.Ready {
				b.WriteString("/ready")
			}
			if c.RestartCount > 0 {
				fmt.Fprintf(&b, "(%d)", c.RestartCount)
			}
		}
	}
	return b.String()
}

// Until is how long after now a Wake is due, never negative.
func Until(at, now time.Time) time.Duration { return max(at.Sub(now), 0) }
