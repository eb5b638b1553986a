package pod

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Event is one thing that happened. Each type is a column of the table in the
// package comment.
type Event interface{ column() string }

// Update brings the newest version of the API object. The first event of every
// machine.
type Update struct{ Pod *corev1.Pod }

// Removed says that the API object is gone; Last is its final state (may be nil).
type Removed struct{ Last *corev1.Pod }

// Admitted says that the node takes the pod.
type Admitted struct{}

// Rejected says that the node cannot take the pod: Reason as upstream
// ("OutOfcpu", "NodeAffinity", ...).
type Rejected struct{ Reason, Message string }

// Adopted brings what the engine held of this pod when the agent started; it
// comes instead of Admitted.
type Adopted struct {
	SandboxID  string // "" when no sandbox is ready
	Attempt    uint32 // of the newest sandbox, ready or not
	Seen       bool   // a sandbox of this pod exists, ready or not
	IPs        []string
	Containers []Found
}

// Found is the newest container of one name in the engine.
type Found struct {
	Name, ID, Image, ImageID string
	Restarts                 int32
	Running                  bool
	StartedAt                time.Time
	Terminated               *corev1.ContainerStateTerminated // unless Running
	Last                     *corev1.ContainerStateTerminated // of the one before
}

// Mounted ends Mount. Reason is the event's reason on error (FailedMount).
type Mounted struct{ Err string }

// Unmounted ends Unmount.
type Unmounted struct{ Err string }

// SandboxUp ends CreateSandbox.
type SandboxUp struct {
	ID  string
	IPs []string
	Err string
}

// SandboxLost says that the sandbox with ID is dead though nobody stopped it, and
// how its containers ended.
type SandboxLost struct {
	ID    string
	Exits []Exited
}

// Pulled ends PullImage. Reason is empty on success, otherwise the waiting
// reason (ErrImagePull, ErrImageNeverPull, InvalidImageName, ImageInspectError,
// RegistryUnavailable ...).
type Pulled struct {
	Container       string
	ImageID         string
	Reason, Message string
}

// Launched ends Launch. Reason is empty on success. With an ID and a reason the
// container was created but did not start, which counts as an exit.
type Launched struct {
	Container, ID, Image string
	StartedAt            time.Time
	Reason, Message      string
}

// Exited says that a container's process has ended.
type Exited struct {
	Container, ID         string
	ExitCode, Signal      int32
	Reason, Message       string
	StartedAt, FinishedAt time.Time
}

// HookDone ends RunHook.
type HookDone struct {
	Container, ID string
	Hook          Hook
	Err           string
}

// Probed brings a probe's verdict after thresholds.
type Probed struct {
	Container, ID string
	Probe         ProbeKind
	OK            bool
	Message       string
}

// Drained says that the data plane sends no new connections to the pod.
type Drained struct{}

// StopFailed says that StopContainer did not work; it is tried again.
type StopFailed struct{ Container, ID, Err string }

// SandboxStopped ends StopSandbox.
type SandboxStopped struct{ Err string }

// SandboxRemoved ends RemoveSandbox.
type SandboxRemoved struct{ Err string }

// Deleted ends DeletePod; the object may live on while it has finalizers.
type Deleted struct{ Err string }

// Evict asks the pod to fail: node pressure, preemption by a critical pod.
type Evict struct {
	Reason, Message string
	// GraceSeconds overrides the pod's own period when it is not nil.
	GraceSeconds *int64
}

// Tick says that a time asked for by Wake has come.
type Tick struct{}

// Nudge says that something a failed deed may have waited for has changed (a
// ConfigMap, a Secret): try again now.
type Nudge struct{}

func (Update) column() string         { return "update" }
func (Removed) column() string        { return "removed" }
func (Admitted) column() string       { return "admitted" }
func (Rejected) column() string       { return "rejected" }
func (Adopted) column() string        { return "adopted" }
func (Mounted) column() string        { return "mounted" }
func (Unmounted) column() string      { return "unmounted" }
func (SandboxUp) column() string      { return "sandbox-up" }
func (SandboxLost) column() string    { return "sandbox-lost" }
func (Pulled) column() string         { return "pulled" }
func (Launched) column() string       { return "launched" }
func (Exited) column() string         { return "exited" }
func (HookDone) column() string       { return "hook-done" }
func (Probed) column() string         { return "probed" }
func (Drained) column() string        { return "drained" }
func (StopFailed) column() string     { return "stop-failed" }
func (SandboxStopped) column() string { return "sandbox-stopped" }
func (SandboxRemoved) column() string { return "sandbox-removed" }
func (Deleted) column() string        { return "deleted" }
func (Evict) column() string          { return "evict" }
func (Tick) column() string           { return "tick" }
func (Nudge) column() string          { return "nudge" }
