package pod

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// FullName is how upstream's messages name a pod: name_namespace(uid).
func FullName(p *corev1.Pod) string { return fmt.Sprintf("%s_%s(%s)", p.Name, p.Namespace, p.UID) }

// idPrefix heads container IDs in the API, as "containerd://" does elsewhere.
const idPrefix = "proa://"

func bareID(id string) string {
	for i := 0; i+3 <= len(id); i++ {
		if id[i:i+3] == "://" {
			return id[i+3:]
		}
	}
	return id
}

// ContainerID is the form of an engine's ID in the API.
func ContainerID(id string) string {
	if id == "" {
		return ""
	}
	return idPrefix + id
}

// BareID is an API container ID without its scheme.
func BareID(id string) string { return bareID(id) }

// restartsAll says whether a container that ended so takes all others with it: a
// rule with the action RestartAllContainers matches first.
func restartsAll(p *corev1.Pod, c *Container) bool {
	if c.Role == Ephemeral || c.Term == nil {
		return false
	}
	r := matchingRule(Spec(p, c.Name), c.Term.ExitCode)
	return r != nil && r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
}

// matchingRule is the first rule for an exit code, or nil.
func matchingRule(spec *corev1.Container, code int32) *corev1.ContainerRestartRule {
	for i := range spec.RestartPolicyRules {
		r := &spec.RestartPolicyRules[i]
		if r.ExitCodes == nil {
			continue
		}
		in := slices.Contains(r.ExitCodes.Values, code)
		if in == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return r
		}
	}
	return nil
}

// restarts says whether a container that ended so is to run again while the pod
// lives.
func restarts(p *corev1.Pod, c *Container) bool {
	if c.Role == Ephemeral || c.Term == nil {
		return false
	}
	spec := Spec(p, c.Name)
	code := c.Term.ExitCode
	if c.Role == Sidecar {
		return true
	}
	if matchingRule(spec, code) != nil {
		return true // both actions run it again
	}
	policy := p.Spec.RestartPolicy
	if spec.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*spec.RestartPolicy)
	}
	if c.Role == Init && code == 0 {
		return false // done
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return code != 0
	}
	return true
}

// settled says whether the pod's work is over: an init container has failed for
// good, or every main container has ended and none is to run again.
func (m *machine) settled() bool {
	if m.initFailed() {
		return true
	}
	for i := range m.Containers {
		c := &m.Containers[i]
		if c.Role == Main && (c.Step != Ended || restarts(m.Pod, c)) {
			return false
		}
	}
	return true
}

func (m *machine) initFailed() bool {
	for i := range m.Containers {
		c := &m.Containers[i]
		if c.Role == Init && c.Step == Ended && c.Term.ExitCode != 0 && !m.Initialized && !restarts(m.Pod, c) {
			return true
		}
	}
	return false
}

// runContainers brings every container that may run into motion.
func (m *machine) runContainers() {
	if m.RestartAll && !m.restartAll() {
		return
	}
	if m.settled() {
		m.end(Completed, "", "", graceOf(m.Pod))
		return
	}
	if m.Sandbox.ID == "" {
		m.Stage = Starting
		return
	}
	blocked := false
	for i := range m.Containers {
		c := &m.Containers[i]
		switch c.Role {
		case Sidecar:
			if blocked {
				continue
			}
			m.keep(c)
			if !m.Initialized && !(c.running() && c.Started && c.Step != Hooking) {
				blocked = true
			}
		case Init:
			if blocked || m.Initialized || c.Step == Ended && c.Term.ExitCode == 0 {
				continue
			}
			m.keep(c)
			blocked = true
		}
	}
	if !blocked {
		m.Initialized = true
	}
	for i := range m.Containers {
		c := &m.Containers[i]
		if c.Role == Main && m.Initialized || c.Role == Ephemeral {
			m.keep(c)
		}
	}
}

// restartAll ends what runs, and when nothing does, lets the pod begin again in the
// same sandbox, init containers first. It reports whether that is done.
func (m *machine) restartAll() bool {
	busy := false
	for i := range m.Containers {
		c := &m.Containers[i]
		if c.Role == Ephemeral {
			continue
		}
		busy = busy || c.busy()
		if c.Step == Hooking || c.Step == Up && c.Condemned == "" {
			c.Step = Up
			c.Condemned = fmt.Sprintf("Container %s will be restarted with all containers of the pod", c.Name)
		}
		if c.running() {
			m.keep(c)
		}
	}
	if busy {
		return false
	}
	m.RestartAll, m.Initialized = false, false
	for i := range m.Containers {
		if c := &m.Containers[i]; c.Role != Ephemeral && c.Step == Ended {
			c.Step = Idle
		}
	}
	return true
}

// keep does the next thing so that c runs.
func (m *machine) keep(c *Container) {
	switch c.Step {
	case Idle:
		if !c.FlipAt.IsZero() && !m.now.Before(c.FlipAt) {
			c.FlipAt = time.Time{}
			message := fmt.Sprintf("Back-off pulling image %q", c.SpecImage)
			m.tell(c.Name, "BackOff", "%s", message)
			m.warn(c.Name, "Failed", "Error: ImagePullBackOff")
			c.WaitReason, c.WaitMessage = "ImagePullBackOff", message+": "+"ErrImagePull: "+c.WaitMessage
		}
		if m.now.Before(c.PullAfter) || m.now.Before(c.NotBefore) {
			return
		}
		c.Step = Pulling
		m.do(PullImage{c.Name})
	case Ended:
		if !restarts(m.Pod, c) {
			return
		}
		if m.now.Before(c.NotBefore) {
			return
		}
		c.NotBefore = time.Time{}
		c.Step = Idle
		m.keep(c)
	case Up:
		if c.Condemned != "" && !m.now.Before(c.NotBefore) {
			grace := graceOf(m.Pod)
			spec := Spec(m.Pod, c.Name)
			for _, p := range []*corev1.Probe{spec.LivenessProbe, spec.StartupProbe} {
				if p != nil && p.TerminationGracePeriodSeconds != nil {
					grace = *p.TerminationGracePeriodSeconds
					break
				}
			}
			c.KillBy = m.now.Add(time.Duration(grace) * time.Second)
			m.stop(c, c.Condemned, c.KillBy)
		}
	case Ending:
		if !m.now.Before(c.KillBy) {
			m.kill(c, c.KillBy)
		}
	}
}

// backOff decides when a container that has just ended may run again.
func (m *machine) backOff(c *Container) {
	finished := c.EndedAt
	if finished.IsZero() {
		finished = m.now
	}
	if c.BackOff == 0 || finished.Sub(c.BackOffAt) > crashForget {
		c.BackOff, c.BackOffAt = crashBackOff, m.now
		return // at once
	}
	until := finished.Add(c.BackOff)
	if !until.After(m.now) {
		c.BackOff, c.BackOffAt = min(2*c.BackOff, crashBackOffLimit), m.now
		return
	}
	c.NotBefore = until
	c.WaitReason = "CrashLoopBackOff"
	c.WaitMessage = fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", c.BackOff, c.Name, FullName(m.Pod))
	m.warn(c.Name, "BackOff", "Back-off restarting failed container %s in pod %s", c.Name, FullName(m.Pod))
	c.BackOff, c.BackOffAt = min(2*c.BackOff, crashBackOffLimit), until
}

func (m *machine) pulled(e Pulled) {
	c := m.find(e.Container)
	if c == nil || c.Step != Pulling {
		return
	}
	c.Step = Idle
	if m.Stage >= Draining {
		return
	}
	if e.Reason == "" {
		c.PulledID = e.ImageID
		if c.PullBackOff > 0 && c.Failures == 0 {
			c.WaitReason, c.WaitMessage = "", ""
		}
		c.PullBackOff, c.PullAfter, c.FlipAt = 0, time.Time{}, time.Time{}
		c.Step = Launching
		m.do(Launch{Container: c.Name, Restarts: c.next(), ImageID: e.ImageID})
		return
	}
	c.WaitReason, c.WaitMessage = e.Reason, e.Message
	m.warn(c.Name, "Failed", "Error: %s", e.Reason)
	c.PullBackOff = max(pullBackOff, min(2*c.PullBackOff, pullBackOffLimit))
	c.PullAfter = m.now.Add(c.PullBackOff)
	if e.Reason == "ErrImagePull" {
		c.FlipAt = m.now.Add(pullFlip)
	}
}

// next is the attempt number of the launch to come.
func (c *Container) next() int32 {
	if c.Term != nil {
		return c.Restarts + 1
	}
	return c.Restarts
}

// attempt turns the page: the attempt that ended becomes the last one.
func (m *machine) attempt(c *Container, id string) {
	if c.PrevID != "" {
		m.do(RemoveContainer{c.PrevID})
	}
	c.PrevID, c.ID, c.ImageID = c.ID, id, c.PulledID
	if c.Term != nil {
		c.Last, c.Restarts = c.Term, c.Restarts+1
	}
	c.Term, c.Condemned, c.Failures = nil, "", 0
	c.WaitReason, c.WaitMessage = "", ""
	c.NotBefore = time.Time{}
}

func (m *machine) launched(e Launched) {
	c := m.find(e.Container)
	if c == nil || c.Step != Launching {
		return
	}
	if e.ID == "" { // nothing was made
		c.Step = Idle
		c.WaitReason, c.WaitMessage = e.Reason, e.Message
		m.warn(c.Name, "Failed", "Error: %s", e.Message)
		c.NotBefore = m.now.Add(min(time.Second<<min(c.Failures, 10), launchRetryLimit))
		c.Failures++
		return
	}
	m.attempt(c, e.ID)
	m.tell(c.Name, "Created", "Container created")
	if e.Image != "" {
		c.Image = e.Image
	}
	c.StartedAt = e.StartedAt
	if c.StartedAt.IsZero() {
		c.StartedAt = m.now
	}
	if e.Reason != "" {
		m.warn(c.Name, "Failed", "Error: %s", e.Message)
		c.Step = Up
		m.exited(Exited{Container: c.Name, ID: e.ID, ExitCode: 128, Reason: "StartError", Message: e.Message,
			StartedAt: c.StartedAt, FinishedAt: m.now})
		return
	}
	m.tell(c.Name, "Started", "Container started")
	spec := Spec(m.Pod, c.Name)
	c.Step, c.Started, c.Ready = Up, false, false
	if early := c.Early; early != nil && early.ID == c.ID {
		c.Early = nil
		m.exited(*early)
		return
	}
	c.Early = nil
	if m.Stage >= Draining {
		return
	}
	if spec.Lifecycle != nil && spec.Lifecycle.PostStart != nil {
		c.Step = Hooking
		m.do(RunHook{Container: c.Name, ID: c.ID, Hook: PostStart})
		return
	}
	m.up(c)
}

// up is reached when the container runs and its postStart hook is over.
func (m *machine) up(c *Container) {
	spec := Spec(m.Pod, c.Name)
	c.Step = Up
	c.Started = spec.StartupProbe == nil
	c.Ready = c.Started && spec.ReadinessProbe == nil && c.Role != Init
	m.startProbes(c)
}

func (m *machine) startProbes(c *Container) {
	spec := Spec(m.Pod, c.Name)
	probe := func(kind ProbeKind, p *corev1.Probe) {
		if p != nil {
			m.do(StartProbe{Container: c.Name, ID: c.ID, Probe: kind, StartedAt: c.StartedAt})
		}
	}
	if c.Role == Init || c.Role == Ephemeral {
		return
	}
	if !c.Started {
		probe(Startup, spec.StartupProbe)
		return
	}
	probe(Liveness, spec.LivenessProbe)
	probe(Readiness, spec.ReadinessProbe)
}

func (m *machine) hasProbes(c *Container) bool {
	spec := Spec(m.Pod, c.Name)
	return spec.StartupProbe != nil || spec.LivenessProbe != nil || spec.ReadinessProbe != nil
}

func (m *machine) exited(e Exited) {
	c := m.find(e.Container)
	if c == nil {
		return
	}
	if c.Step == Launching && e.ID != c.ID {
		c.Early = &e // the engine was quicker than the answer to Launch
		return
	}
	if e.ID != c.ID || !c.running() {
		return
	}
	if m.hasProbes(c) {
		m.do(StopProbes{Container: c.Name})
	}
	started := e.StartedAt
	if started.IsZero() {
		started = c.StartedAt
	}
	if e.Reason == "" {
		e.Reason = "Completed"
		if e.ExitCode != 0 {
			e.Reason = "Error"
		}
	}
	c.Step, c.Started, c.Ready, c.Condemned, c.KillBy = Ended, false, false, "", time.Time{}
	c.NotBefore, c.EndedAt = time.Time{}, e.FinishedAt
	c.Term = &corev1.ContainerStateTerminated{ExitCode: e.ExitCode, Signal: e.Signal, Reason: e.Reason, Message: e.Message,
		StartedAt: stamp(started), FinishedAt: stamp(e.FinishedAt), ContainerID: ContainerID(c.ID)}
	if m.Stage >= Draining {
		return
	}
	if !m.RestartAll && restartsAll(m.Pod, c) {
		m.RestartAll = true
		m.tell(c.Name, "RestartAllContainers", "Container %s ended with exit code %d, all containers of the pod will be restarted", c.Name, e.ExitCode)
		m.backOff(c)
	} else if !m.RestartAll && restarts(m.Pod, c) {
		m.backOff(c)
	}
}

func (m *machine) hookDone(e HookDone) {
	c := m.find(e.Container)
	if c == nil || c.ID != e.ID {
		return
	}
	switch e.Hook {
	case PostStart:
		if e.Err != "" {
			m.warn(c.Name, "FailedPostStartHook", "PostStartHook failed")
		}
		if c.Step != Hooking {
			return
		}
		m.up(c)
		if e.Err != "" {
			c.Condemned = "FailedPostStartHook"
			c.Ready = false
			m.do(StopProbes{Container: c.Name})
		}
	case PreStop:
		if e.Err != "" {
			m.warn(c.Name, "FailedPreStopHook", "PreStopHook failed")
		}
		if c.Step == Ending {
			by := c.KillBy
			if m.End.Cause != NotEnding && (by.IsZero() || m.End.KillAt.Before(by)) {
				by = m.End.KillAt
			}
			m.kill(c, by)
		}
	}
}

func (m *machine) probed(e Probed) {
	c := m.find(e.Container)
	if c == nil || c.ID != e.ID || c.Step != Up {
		return
	}
	switch e.Probe {
	case Startup:
		if !e.OK {
			if m.Stage < Draining {
				c.Condemned = fmt.Sprintf("Container %s failed startup probe, will be restarted", c.Name)
			}
			return
		}
		if c.Started {
			return
		}
		m.do(StopProbes{c.Name, Startup})
		c.Started = true
		c.Ready = Spec(m.Pod, c.Name).ReadinessProbe == nil
		m.startProbes(c)
	case Liveness:
		if !e.OK && m.Stage < Draining {
			c.Condemned = fmt.Sprintf("Container %s failed liveness probe, will be restarted", c.Name)
		}
	case Readiness:
		c.Ready = e.OK && c.Started
	}
}

// stop begins to end a running container: preStop first, then the signal.
func (m *machine) stop(c *Container, why string, by time.Time) {
	m.tell(c.Name, "Killing", "%s", why)
	spec := Spec(m.Pod, c.Name)
	if m.hasProbes(c) {
		m.do(StopProbes{Container: c.Name})
	}
	left := by.Sub(m.now)
	if spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil && c.Step == Up && left > 0 {
		c.Step, c.KillBy = Ending, by
		m.do(RunHook{Container: c.Name, ID: c.ID, Hook: PreStop, Timeout: left})
		return
	}
	m.kill(c, by)
}

// kill sends the stop signal; SIGKILL follows at by, but not before the minimum
// grace, unless the pod's period is zero.
func (m *machine) kill(c *Container, by time.Time) {
	grace := max(by.Sub(m.now), minimumGrace)
	if m.End.Cause != NotEnding && m.End.GraceSeconds == 0 {
		grace = 0
	}
	c.Step, c.KillBy = Killing, by
	m.do(StopContainer{Container: c.Name, ID: c.ID, Grace: grace.Round(time.Millisecond)})
}

// stopContainers ends what runs: everything but the sidecars at once, then the
// sidecars one by one in reverse order. It reports whether nothing is left.
func (m *machine) stopContainers() bool {
	left := false
	for i := range m.Containers {
		if c := &m.Containers[i]; c.Role != Sidecar {
			left = m.halt(c) || left
		}
	}
	if left {
		return false
	}
	for i := len(m.Containers) - 1; i >= 0; i-- {
		if c := &m.Containers[i]; c.Role == Sidecar && m.halt(c) {
			return false
		}
	}
	return true
}

// halt moves a container towards its end; true while it is not there.
func (m *machine) halt(c *Container) bool {
	switch c.Step {
	case Pulling:
		c.Step = Idle // the answer no longer matters
	case Launching:
		return true
	case Up, Hooking:
		switch {
		case m.now.Before(c.NotBefore): // a StopContainer did not work
		case !c.NotBefore.IsZero():
			m.kill(c, m.End.KillAt)
		default:
			m.stop(c, fmt.Sprintf("Stopping container %s", c.Name), m.End.KillAt)
		}
		return true
	case Ending:
		if !m.now.Before(m.End.KillAt) {
			m.kill(c, m.End.KillAt)
		}
		return true
	case Killing:
		if m.End.KillAt.Before(c.KillBy) {
			m.kill(c, m.End.KillAt)
		}
		return true
	}
	return false
}
