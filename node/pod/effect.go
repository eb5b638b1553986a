package pod

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Effect is one thing to be done outside. Unless its comment says otherwise, an
// effect is answered by exactly one event.
type Effect interface{ String() string }

// Hook is a lifecycle handler of a container.
type Hook string

// The two hooks.
const (
	PostStart Hook = "postStart"
	PreStop   Hook = "preStop"
)

// ProbeKind is one of a container's three probes.
type ProbeKind string

// The three probes.
const (
	Startup   ProbeKind = "startup"
	Liveness  ProbeKind = "liveness"
	Readiness ProbeKind = "readiness"
)

// Mount makes the pod's directories and volumes. Answer: Mounted.
type Mount struct{}

// Unmount takes the pod's volumes away. Answer: Unmounted.
type Unmount struct{}

// CreateSandbox. Answer: SandboxUp.
type CreateSandbox struct{ Attempt uint32 }

// StopSandbox releases the network and ends whatever still runs. Answer:
// SandboxStopped.
type StopSandbox struct{ ID string }

// RemoveSandbox removes every sandbox and container of the pod, with their
// logs. Answer: SandboxRemoved.
type RemoveSandbox struct{}

// PullImage makes sure, by the pull policy, that the image is here. Answer: Pulled.
type PullImage struct{ Container string }

// Launch creates and starts a container; Restarts is its attempt number. Answer:
// Launched.
type Launch struct {
	Container string
	Restarts  int32
	ImageID   string
}

// RunHook runs a lifecycle handler, for at most Timeout (zero: no bound). Answer:
// HookDone.
type RunHook struct {
	Container, ID string
	Hook          Hook
	Timeout       time.Duration
}

// StopContainer sends the stop signal and, after Grace, SIGKILL. Answer: Exited
// (from the engine's events) or StopFailed.
type StopContainer struct {
	Container, ID string
	Grace         time.Duration
}

// RemoveContainer removes a dead container that is not needed any more. No answer.
type RemoveContainer struct{ ID string }

// StartProbe runs a probe until StopProbes. Answers: Probed, any number.
type StartProbe struct {
	Container, ID string
	Probe         ProbeKind
	StartedAt     time.Time
}

// StopProbes ends all probes of a container, or only one kind. No answer.
type StopProbes struct {
	Container string
	Probe     ProbeKind // "": all
}

// Drain waits until the data plane has let go of the pod's addresses. Answer:
// Drained; after Timeout the machine goes on without it.
type Drain struct{ Timeout time.Duration }

// SetStatus publishes the status. No answer; later ones replace earlier ones
// that were not written yet.
type SetStatus struct{ Status *corev1.PodStatus }

// DeletePod deletes the API object with grace 0 under a UID precondition, after
// the last SetStatus has been written. Answer: Deleted.
type DeletePod struct{}

// Wake asks for a Tick at a time; a later Wake replaces it.
type Wake struct{ At time.Time }

// Emit records an API Event about the pod or, with Container, about one of its
// containers. No answer.
type Emit struct {
	Container             string
	Type, Reason, Message string
}

func (Mount) String() string           { return "mount" }
func (Unmount) String() string         { return "unmount" }
func (e CreateSandbox) String() string { return fmt.Sprintf("create-sandbox attempt=%d", e.Attempt) }
func (e StopSandbox) String() string   { return "stop-sandbox " + e.ID }
func (RemoveSandbox) String() string   { return "remove-sandbox" }
func (e PullImage) String() string     { return "pull " + e.Container }
func (e Launch) String() string        { return fmt.Sprintf("launch %s restarts=%d", e.Container, e.Restarts) }
func (e RunHook) String() string {
	return fmt.Sprintf("hook %s %s timeout=%s", e.Hook, e.Container, e.Timeout)
}
func (e StopContainer) String() string {
	return fmt.Sprintf("stop %s id=%s grace=%s", e.Container, e.ID, e.Grace)
}
func (e RemoveContainer) String() string { return "remove-container " + e.ID }
func (e StartProbe) String() string      { return fmt.Sprintf("probe %s %s", e.Probe, e.Container) }
func (e StopProbes) String() string {
	if e.Probe == "" {
		return "stop-probes " + e.Container
	}
	return fmt.Sprintf("stop-probe %s %s", e.Probe, e.Container)
}
func (e Drain) String() string { return fmt.Sprintf("drain timeout=%s", e.Timeout) }
func (e SetStatus) String() string {
	return "status " + Summary(e.Status)
}
func (DeletePod) String() string { return "delete-pod" }
func (e Wake) String() string    { return "wake" }
func (e Emit) String() string {
	on := ""
	if e.Container != "" {
		on = e.Container + " "
	}
	return fmt.Sprintf("event %s%s %s %q", on, e.Type, e.Reason, e.Message)
}
