package pod

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Stage is how far a pod has come: a row of the table in the package comment.
type Stage uint8

// The stages, in their order.
const (
	Waiting  Stage = iota // bound to the node, not admitted yet
	Starting              // volumes and sandbox are being made
	Running               // the sandbox stands; containers are started and kept
	Draining              // going away; containers serve until the data plane let go
	Stopping              // containers are being stopped
	Cleaning              // sandbox and volumes are being taken away
	Finished              // terminal phase; only the record and the logs are left
	Removing              // records and the API object are being removed
	Gone                  // the object is gone, nothing is left
	stages   = iota
)

var stageNames = [stages]string{"Waiting", "Starting", "Running", "Draining", "Stopping", "Cleaning", "Finished", "Removing", "Gone"}

func (s Stage) String() string { return stageNames[s] }

// Node is what the machine has to know of the node.
type Node struct {
	Name string
	IPs  []string // first is status.hostIP
}

// State of one pod on this node. The zero State with Node set is the state
// before the first Update. Values are immutable to callers: Step returns a new one.
type State struct {
	Node  Node
	Stage Stage
	Pod   *corev1.Pod

	StartTime   time.Time
	Containers  []Container // init containers, containers, ephemeral containers
	Initialized bool        // all init containers are done, sidecars are started
	RestartAll  bool        // a rule asked for it: what runs is being ended
	Volumes     Deed
	Unmount     Deed
	Sandbox     Sandbox
	End         End

	// Published is the last status that SetStatus carried.
	Published *corev1.PodStatus
	wakeAt    time.Time
}

// Deed is one effect that may have to be repeated.
type Deed struct {
	Asked, Done bool
	Failures    int
	NotBefore   time.Time
	Err         string
}

func (d *Deed) due(now time.Time) bool { return !d.Asked && !d.Done && !now.Before(d.NotBefore) }

func (d *Deed) finish(err string, now time.Time, limit time.Duration) {
	d.Asked = false
	if err == "" {
		*d = Deed{Done: true}
		return
	}
	d.Err = err
	d.NotBefore = now.Add(min(500*time.Millisecond<<min(d.Failures, 16), limit))
	d.Failures++
}

// Sandbox of the pod.
type Sandbox struct {
	ID      string
	Attempt uint32
	Seen    bool // one was made: RemoveSandbox has something to do
	IPs     []string
	Create  Deed
	Stop    Deed
	Remove  Deed
	Delete  Deed // of the API object
}

// Cause of a pod's end.
type Cause uint8

// The causes; a greater one replaces a smaller one.
const (
	NotEnding Cause = iota
	Completed       // all containers have ended and none is to run again
	Deadline        // activeDeadlineSeconds
	Evicted
	Refused     // not admitted
	WasDeleted  // deletionTimestamp is set
	WasVanished // the object is gone
)

// End is why, and until when, the pod ends.
type End struct {
	Cause           Cause
	Reason, Message string
	GraceSeconds    int64
	KillAt          time.Time // no container runs longer
	DrainUntil      time.Time
}

// Role of a container.
type Role uint8

// The roles.
const (
	Init Role = iota
	Sidecar
	Main
	Ephemeral
)

// Step of one container's current attempt.
type ContainerStep uint8

// The steps.
const (
	Idle      ContainerStep = iota // nothing is on its way
	Pulling                        // PullImage was asked
	Launching                      // Launch was asked
	Hooking                        // runs; postStart has not answered
	Up                             // runs
	Ending                         // runs; preStop has not answered
	Killing                        // StopContainer was asked
	Ended                          // Term says how
)

// Container is one container's record.
type Container struct {
	Name string
	Role Role
	Step ContainerStep

	ID, Image, ImageID string
	PrevID             string // the dead container before, kept for its log
	SpecImage          string
	PulledID           string // the image of the launch to come
	Restarts           int32
	StartedAt          time.Time
	EndedAt            time.Time // of Term, to the nanosecond
	// Term is how this attempt ended. It stays until the next attempt runs, so Term
	// with a step before Hooking means: being restarted.
	Term        *corev1.ContainerStateTerminated
	Last        *corev1.ContainerStateTerminated // of the attempt before
	Early       *Exited                          // an exit seen before the launch answered
	WaitReason  string
	WaitMessage string
	Started     bool
	Ready       bool

	// BackOff is the next delay before a restart, counted from the last exit;
	// BackOffAt when it was raised.
	BackOff     time.Duration
	BackOffAt   time.Time
	NotBefore   time.Time
	PullBackOff time.Duration
	PullAfter   time.Time
	FlipAt      time.Time // when ErrImagePull becomes ImagePullBackOff
	Failures    int       // launches in a row that made no container
	KillBy      time.Time // of the StopContainer that was asked
	// Condemned says why a running container is to be stopped though the pod goes on.
	Condemned string
}

func (c *Container) running() bool {
	return c.Step == Hooking || c.Step == Up || c.Step == Ending || c.Step == Killing
}

// busy says that something is on its way that will still change the container.
func (c *Container) busy() bool { return c.Step == Launching || c.running() }

// Current is the engine's ID of the named container's newest attempt; "" if there
// was none.
func (s *State) Current(name string) string {
	if c := s.find(name); c != nil {
		return c.ID
	}
	return ""
}

func (s *State) find(name string) *Container {
	for i := range s.Containers {
		if s.Containers[i].Name == name {
			return &s.Containers[i]
		}
	}
	return nil
}

// Spec of a container by name, with ephemeral ones in the common form.
func Spec(p *corev1.Pod, name string) *corev1.Container {
	for i := range p.Spec.Containers {
		if p.Spec.Containers[i].Name == name {
			return &p.Spec.Containers[i]
		}
	}
	for i := range p.Spec.InitContainers {
		if p.Spec.InitContainers[i].Name == name {
			return &p.Spec.InitContainers[i]
		}
	}
	for i := range p.Spec.EphemeralContainers {
		if p.Spec.EphemeralContainers[i].Name == name {
			c := corev1.Container(p.Spec.EphemeralContainers[i].EphemeralContainerCommon)
			return &c
		}
	}
	return nil
}

// Target of an ephemeral container: the container whose processes it shall see;
// "" for none.
func Target(p *corev1.Pod, name string) string {
	for i := range p.Spec.EphemeralContainers {
		if p.Spec.EphemeralContainers[i].Name == name {
			return p.Spec.EphemeralContainers[i].TargetContainerName
		}
	}
	return ""
}

// FieldPath of a container inside the pod, as events name it.
func FieldPath(p *corev1.Pod, name string) string {
	for i := range p.Spec.InitContainers {
		if p.Spec.InitContainers[i].Name == name {
			return "spec.initContainers{" + name + "}"
		}
	}
	for i := range p.Spec.EphemeralContainers {
		if p.Spec.EphemeralContainers[i].Name == name {
			return "spec.ephemeralContainers{" + name + "}"
		}
	}
	return "spec.containers{" + name + "}"
}

// IsSidecar says whether an init container is a restartable one.
func IsSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}
