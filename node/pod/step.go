package pod

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Figures of the machine, as upstream's kubelet has them unless said otherwise.
const (
	crashBackOff      = 10 * time.Second // first delay before a restart
	crashBackOffLimit = 5 * time.Minute
	crashForget       = 10 * time.Minute // a container that ran this long starts over
	pullBackOff       = 10 * time.Second
	pullBackOffLimit  = 5 * time.Minute
	pullFlip          = time.Second // ErrImagePull shows this long (upstream: until its next sync)
	launchRetryLimit  = 10 * time.Second
	sandboxRetryLimit = 10 * time.Second
	mountRetryLimit   = 2 * time.Minute
	cleanRetryLimit   = 10 * time.Second
	stopRetry         = time.Second
	// minimumGrace is given to a container even when the pod's period is used up.
	minimumGrace = 2 * time.Second
	// drainLimit bounds the wait for the data plane, together with half the grace
	// period (own; upstream does not wait).
	drainLimit = 10 * time.Second
)

type machine struct {
	State
	now     time.Time
	effects []Effect
}

// Step takes one event into account and says what is to be done now. It is pure:
// the same arguments give the same answer; s is not changed.
func Step(s State, e Event, now time.Time) (State, []Effect) {
	m := &machine{State: s, now: now}
	m.Containers = slices.Clone(s.Containers)
	if m.Stage != Gone {
		m.handle(e)
		for before := stages; int(m.Stage) != before; {
			before = int(m.Stage)
			m.advance()
		}
	}
	m.publish()
	m.wake()
	return m.State, m.effects
}

func (m *machine) do(e Effect) { m.effects = append(m.effects, e) }

func (m *machine) warn(container, reason, format string, args ...any) {
	m.do(Emit{container, corev1.EventTypeWarning, reason, fmt.Sprintf(format, args...)})
}

func (m *machine) tell(container, reason, format string, args ...any) {
	m.do(Emit{container, corev1.EventTypeNormal, reason, fmt.Sprintf(format, args...)})
}

func (m *machine) handle(e Event) {
	switch e := e.(type) {
	case Update:
		m.update(e.Pod)
	case Removed:
		grace := graceOf(m.Pod)
		if e.Last != nil && e.Last.DeletionGracePeriodSeconds != nil {
			grace = *e.Last.DeletionGracePeriodSeconds
		}
		m.Sandbox.Delete = Deed{Done: true}
		m.end(WasVanished, "", "", grace)
	case Admitted:
		m.admitted()
	case Adopted:
		if m.Stage == Waiting {
			m.adopt(e)
		}
	case Rejected:
		if m.Stage == Waiting {
			m.StartTime = m.now
			m.warn("", e.Reason, "%s", e.Message)
			m.end(Refused, e.Reason, e.Message, 0)
		}
	case Mounted:
		m.Volumes.finish(e.Err, m.now, mountRetryLimit)
	case Unmounted:
		m.Unmount.finish(e.Err, m.now, cleanRetryLimit)
	case SandboxUp:
		m.Sandbox.Create.finish(e.Err, m.now, sandboxRetryLimit)
		if e.Err != "" {
			m.warn("", "FailedCreatePodSandBox", "Failed to create pod sandbox: %s", e.Err)
			break
		}
		m.Sandbox.ID, m.Sandbox.IPs = e.ID, e.IPs
	case SandboxLost:
		m.sandboxLost(e)
	case Pulled:
		m.pulled(e)
	case Launched:
		m.launched(e)
	case Exited:
		m.exited(e)
	case HookDone:
		m.hookDone(e)
	case Probed:
		m.probed(e)
	case Drained:
		if m.Stage == Draining {
			m.Stage = Stopping
		}
	case StopFailed:
		if c := m.find(e.Container); c != nil && c.ID == e.ID && c.Step == Killing {
			c.Step, c.NotBefore = Up, m.now.Add(stopRetry)
		}
	case SandboxStopped:
		m.Sandbox.Stop.finish(e.Err, m.now, cleanRetryLimit)
	case SandboxRemoved:
		m.Sandbox.Remove.finish(e.Err, m.now, cleanRetryLimit)
	case Deleted:
		m.Sandbox.Delete.finish(e.Err, m.now, cleanRetryLimit)
	case Tick:
		// What it was for may still be ahead: the clock was set back, or the timer ran
		// fast. It has to be asked for again.
		m.wakeAt = time.Time{}
	case Evict:
		grace := graceOf(m.Pod)
		if e.GraceSeconds != nil {
			grace = *e.GraceSeconds
		}
		m.end(Evicted, e.Reason, e.Message, grace)
	case Nudge:
		m.Volumes.NotBefore, m.Sandbox.Create.NotBefore = time.Time{}, time.Time{}
		for i := range m.Containers {
			if c := &m.Containers[i]; c.Step == Idle && c.Failures > 0 {
				c.NotBefore = time.Time{}
			}
		}
	}
}

func graceOf(p *corev1.Pod) int64 {
	if p != nil && p.Spec.TerminationGracePeriodSeconds != nil {
		return max(*p.Spec.TerminationGracePeriodSeconds, 0)
	}
	return corev1.DefaultTerminationGracePeriodSeconds
}

func (m *machine) update(p *corev1.Pod) {
	first := m.Pod == nil
	m.Pod = p
	if first {
		m.Published = p.Status.DeepCopy()
		if p.Status.StartTime != nil {
			m.StartTime = p.Status.StartTime.Time
		}
		for i := range p.Spec.InitContainers {
			c := &p.Spec.InitContainers[i]
			role := Init
			if IsSidecar(c) {
				role = Sidecar
			}
			m.add(c.Name, role, c.Image, p.Status.InitContainerStatuses)
		}
		for i := range p.Spec.Containers {
			m.add(p.Spec.Containers[i].Name, Main, p.Spec.Containers[i].Image, p.Status.ContainerStatuses)
		}
	}
	for i := range p.Spec.EphemeralContainers {
		if c := &p.Spec.EphemeralContainers[i]; m.find(c.Name) == nil {
			m.add(c.Name, Ephemeral, c.Image, p.Status.EphemeralContainerStatuses)
		}
	}
	for i := range m.Containers {
		c := &m.Containers[i]
		spec := Spec(p, c.Name)
		if spec == nil || spec.Image == c.SpecImage {
			continue
		}
		c.SpecImage = spec.Image
		if c.running() && c.Role != Init && m.Stage == Running {
			c.Condemned = fmt.Sprintf("Container %s definition changed, will be restarted", c.Name)
		}
		c.PullBackOff, c.PullAfter, c.FlipAt = 0, time.Time{}, time.Time{}
	}
	if p.DeletionTimestamp != nil {
		grace := graceOf(p)
		if p.DeletionGracePeriodSeconds != nil {
			grace = max(*p.DeletionGracePeriodSeconds, 0)
		}
		m.end(WasDeleted, "", "", grace)
	}
}

// add makes a container's record from what the API remembers of it.
func (m *machine) add(name string, role Role, image string, known []corev1.ContainerStatus) {
	c := Container{Name: name, Role: role, SpecImage: image}
	for i := range known {
		k := &known[i]
		if k.Name != name {
			continue
		}
		c.Restarts, c.ImageID, c.Last = k.RestartCount, k.ImageID, k.LastTerminationState.Terminated
		if t := k.State.Terminated; t != nil {
			c.Step, c.Term, c.ID = Ended, t, bareID(t.ContainerID)
		}
		if r := k.State.Running; r != nil {
			// Only if the engine does not know it: adopt overwrites this.
			c.Step = Ended
			c.Term = &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "ContainerStatusUnknown",
				Message:   "The container could not be located when the pod was deleted.  The container used to be Running",
				StartedAt: r.StartedAt, ContainerID: k.ContainerID}
			c.StartedAt = r.StartedAt.Time
		}
	}
	m.Containers = append(m.Containers, c)
}

func (m *machine) terminalInAPI() bool {
	return m.Pod.Status.Phase == corev1.PodSucceeded || m.Pod.Status.Phase == corev1.PodFailed
}

func (m *machine) admitted() {
	if m.Stage != Waiting {
		return
	}
	if m.terminalInAPI() || m.End.Cause != NotEnding {
		m.Stage = Cleaning
		if m.End.Cause < Completed {
			m.End = End{Cause: Completed, Reason: m.Pod.Status.Reason, Message: m.Pod.Status.Message}
		}
		return
	}
	if m.StartTime.IsZero() {
		m.StartTime = m.now
	}
	m.Stage = Starting
}

func (m *machine) adopt(a Adopted) {
	m.Sandbox.Seen = a.Seen
	m.Sandbox.Attempt = a.Attempt
	if a.SandboxID != "" {
		m.Sandbox.ID, m.Sandbox.IPs, m.Sandbox.Create = a.SandboxID, a.IPs, Deed{Done: true}
	} else if a.Seen {
		m.Sandbox.Attempt++
	}
	mains := false
	for _, f := range a.Containers {
		c := m.find(f.Name)
		if c == nil {
			continue
		}
		if k := m.known(c.Name); k == nil || bareID(k.ContainerID) != f.ID {
			c.Image, c.ImageID = f.Image, f.ImageID
		} else { // what was shown stays
			c.Image, c.ImageID = k.Image, k.ImageID
		}
		c.ID, c.Restarts = f.ID, f.Restarts
		c.Term, c.StartedAt = f.Terminated, f.StartedAt
		if f.Last != nil {
			c.Last = f.Last
		}
		mains = mains || c.Role == Main
		if !f.Running {
			c.Step = Ended
			if c.Term == nil {
				c.Step = Idle
			}
			continue
		}
		c.Step, c.Term = Up, nil
		c.Started, c.Ready = m.wasReady(c)
	}
	m.Initialized = mains && a.SandboxID != ""
	wasStopping := m.End.Cause != NotEnding
	m.admitted()
	if wasStopping || m.Stage == Cleaning {
		m.Volumes = Deed{Done: true}
		m.Stage = Stopping
	}
	for i := range m.Containers {
		if c := &m.Containers[i]; c.Step == Up && m.Stage == Starting {
			m.startProbes(c)
		}
	}
}

// wasReady carries the verdicts of before over a restart of the agent, so that a
// serving pod does not blink.
func (m *machine) wasReady(c *Container) (started, ready bool) {
	spec := Spec(m.Pod, c.Name)
	started, ready = spec.StartupProbe == nil, spec.StartupProbe == nil && spec.ReadinessProbe == nil
	if k := m.known(c.Name); k != nil && bareID(k.ContainerID) == c.ID {
		if k.Started != nil && *k.Started {
			started = true
		}
		ready = k.Ready
	}
	return started, ready
}

// known is a container's status in the API, or nil.
func (m *machine) known(name string) *corev1.ContainerStatus {
	st := &m.Pod.Status
	for _, list := range [][]corev1.ContainerStatus{st.ContainerStatuses, st.InitContainerStatuses, st.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// end begins, or hastens, the end of the pod.
func (m *machine) end(cause Cause, reason, message string, grace int64) {
	killAt := m.now.Add(time.Duration(grace) * time.Second)
	switch {
	case m.End.Cause == NotEnding || m.End.Cause == Completed && m.Stage < Draining:
		m.End = End{Cause: cause, Reason: reason, Message: message, GraceSeconds: grace, KillAt: killAt}
	case cause > m.End.Cause:
		m.End.Cause = cause
		fallthrough
	default:
		if killAt.Before(m.End.KillAt) {
			m.End.KillAt, m.End.GraceSeconds = killAt, grace
		}
	}
	switch m.Stage {
	case Waiting: // a deletion waits for the admission, which knows of older containers
		if cause == Refused {
			m.Stage = Finished
		}
		if cause == WasVanished || cause == Refused && m.End.Cause >= WasDeleted {
			m.Stage = Cleaning
		}
	case Starting, Running:
		m.Stage = Stopping
		drains := cause == WasDeleted || cause == Evicted
		if drains && grace > 0 && len(m.Sandbox.IPs) > 0 && m.isPublishedReady() {
			wait := min(time.Duration(grace)*time.Second/2, drainLimit)
			m.End.DrainUntil = m.now.Add(wait)
			m.Stage = Draining
			m.do(Drain{Timeout: wait})
		}
	case Draining:
		if m.End.KillAt.Before(m.End.DrainUntil) || m.End.GraceSeconds == 0 {
			m.Stage = Stopping
		}
	case Finished:
		if cause == WasDeleted || cause == WasVanished {
			m.Stage = Removing
		}
	}
}

func (m *machine) isPublishedReady() bool {
	if m.Published == nil {
		return false
	}
	for i := range m.Published.Conditions {
		if c := &m.Published.Conditions[i]; c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (m *machine) sandboxLost(e SandboxLost) {
	for _, x := range e.Exits {
		m.exited(x)
	}
	if e.ID != m.Sandbox.ID || e.ID == "" || m.Stage > Stopping {
		return
	}
	for i := range m.Containers {
		c := &m.Containers[i]
		if c.running() {
			m.exited(Exited{Container: c.Name, ID: c.ID, ExitCode: 137, Reason: "Error",
				StartedAt: c.StartedAt, FinishedAt: m.now})
		}
	}
	if m.Stage == Draining || m.Stage == Stopping {
		return
	}
	m.Sandbox.ID, m.Sandbox.IPs, m.Sandbox.Create = "", nil, Deed{}
	m.Sandbox.Attempt++
	if m.settled() {
		return // advance ends the pod
	}
	m.tell("", "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
	m.Stage, m.Initialized = Starting, false
	for i := range m.Containers {
		if c := &m.Containers[i]; c.Role == Init && c.Step == Ended {
			c.Step = Idle
		}
	}
}

// advance does what the stage allows, and moves to the next one when its work is
// done.
func (m *machine) advance() {
	switch m.Stage {
	case Starting:
		m.deadline()
		if m.Stage != Starting {
			return
		}
		if m.Volumes.due(m.now) {
			m.Volumes.Asked = true
			m.do(Mount{})
		}
		if m.Volumes.Done && m.Sandbox.Create.due(m.now) {
			m.Sandbox.Create.Asked, m.Sandbox.Seen = true, true
			m.do(CreateSandbox{m.Sandbox.Attempt})
		}
		if m.Volumes.Done && m.Sandbox.Create.Done {
			m.Stage = Running
		}
	case Running:
		m.deadline()
		if m.Stage == Running {
			m.runContainers()
		}
	case Draining:
		if !m.now.Before(m.End.DrainUntil) || !m.anyMainRunning() {
			m.Stage = Stopping
		}
	case Stopping:
		if m.stopContainers() {
			m.Stage = Cleaning
		}
	case Cleaning:
		m.clean()
	case Removing:
		m.remove()
	}
}

func (m *machine) deadline() {
	d := m.Pod.Spec.ActiveDeadlineSeconds
	if d == nil || m.now.Before(m.StartTime.Add(time.Duration(*d)*time.Second)) {
		return
	}
	const message = "Pod was active on the node longer than the specified deadline"
	m.tell("", "DeadlineExceeded", message)
	m.end(Deadline, "DeadlineExceeded", message, graceOf(m.Pod))
}

func (m *machine) anyMainRunning() bool {
	for i := range m.Containers {
		if c := &m.Containers[i]; c.Role == Main && c.busy() {
			return true
		}
	}
	return false
}

func (m *machine) clean() {
	for i := range m.Containers {
		if m.Containers[i].busy() {
			return // an exit or a launch is still to be reported
		}
	}
	if m.Sandbox.Create.Asked || m.Volumes.Asked {
		return
	}
	if m.Sandbox.ID != "" && m.Sandbox.Stop.due(m.now) {
		m.Sandbox.Stop.Asked = true
		m.do(StopSandbox{m.Sandbox.ID})
	}
	if m.Sandbox.ID != "" && !m.Sandbox.Stop.Done {
		return
	}
	if m.Unmount.due(m.now) {
		m.Unmount.Asked = true
		m.do(Unmount{})
	}
	if !m.Unmount.Done {
		return
	}
	m.Stage = Finished
	if m.End.Cause == WasDeleted || m.End.Cause == WasVanished {
		m.Stage = Removing
	}
}

func (m *machine) remove() {
	if m.Sandbox.Seen && m.Sandbox.Remove.due(m.now) {
		m.Sandbox.Remove.Asked = true
		m.publish() // the final state is written before the object goes
		m.do(RemoveSandbox{})
	}
	if m.Sandbox.Seen && !m.Sandbox.Remove.Done {
		return
	}
	if m.End.Cause == WasVanished {
		m.Stage = Gone
		return
	}
	if m.Sandbox.Delete.due(m.now) {
		m.Sandbox.Delete.Asked = true
		m.publish()
		m.do(DeletePod{})
	}
}

// wake asks for a Tick at the next time that matters.
func (m *machine) wake() {
	var at time.Time
	soon := func(t time.Time) {
		if t.After(m.now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	deed := func(d *Deed) {
		if !d.Asked && !d.Done {
			soon(d.NotBefore)
		}
	}
	switch m.Stage {
	case Starting, Running:
		deed(&m.Volumes)
		deed(&m.Sandbox.Create)
		if d := m.Pod.Spec.ActiveDeadlineSeconds; d != nil {
			soon(m.StartTime.Add(time.Duration(*d) * time.Second))
		}
		for i := range m.Containers {
			switch c := &m.Containers[i]; c.Step {
			case Idle, Ended, Up:
				soon(c.NotBefore)
				soon(c.PullAfter)
				soon(c.FlipAt)
			}
		}
	case Draining:
		soon(m.End.DrainUntil)
	case Stopping:
		for i := range m.Containers {
			switch c := &m.Containers[i]; c.Step {
			case Up:
				soon(c.NotBefore)
			case Ending:
				soon(m.End.KillAt)
			}
		}
	case Cleaning:
		deed(&m.Sandbox.Stop)
		deed(&m.Unmount)
	case Removing:
		deed(&m.Sandbox.Remove)
		deed(&m.Sandbox.Delete)
	}
	if !at.Equal(m.wakeAt) {
		m.wakeAt = at
		if !at.IsZero() {
			m.do(Wake{at})
		}
	}
}
