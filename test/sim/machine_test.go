package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/node/pod"
	"proa.dev/sim"
)

// machine is the hardware of one node with its containers, which outlive the
// agent and end with the power.
type machine struct {
	w      *world
	name   string
	number int
	boot   int
	agent  *agent // nil while it is down
	boxes  []*box
	lastIP int
	serial int
}

// box is a sandbox.
type box struct {
	id         string
	uid        types.UID
	name       string // of the pod
	attempt    uint32
	ip         string
	isReady    bool
	containers []*container
}

type container struct {
	id, name, image string
	restarts        int32
	running         bool
	started, ended  time.Time
	code            int32
}

func newMachine(w *world, name string, number int) *machine {
	return &machine{w: w, name: name, number: number}
}

// later is what happens to the machine, whatever its agent does, unless the power
// goes.
func (m *machine) later(d time.Duration, what string, f func()) {
	boot := m.boot
	m.w.At(d, m.name+" "+what, func() {
		if boot == m.boot {
			f()
		}
	})
}

// powerOff loses everything that runs; the agent has crashed with it.
func (m *machine) powerOff() {
	m.boot++
	for _, b := range m.boxes {
		m.w.gone(m, b)
	}
	m.boxes = nil
}

// addresses of one machine; a freed one is used again when all others were.
const addresses = 250

func (m *machine) address() string {
	if m.w.plant == "address" && m.lastIP > 0 {
		return fmt.Sprintf("10.1.%d.1", m.number)
	}
	for range addresses {
		m.lastIP = m.lastIP%addresses + 1
		ip := fmt.Sprintf("10.1.%d.%d", m.number, m.lastIP)
		if !slices.ContainsFunc(m.boxes, func(b *box) bool { return b.isReady && b.ip == ip }) {
			return ip
		}
	}
	m.w.fail("%s has no address left", m.name)
	return ""
}

func (m *machine) find(id string) (*box, *container) {
	for _, b := range m.boxes {
		for _, c := range b.containers {
			if c.id == id {
				return b, c
			}
		}
	}
	return nil, nil
}

// run makes a sandbox; older ones of the pod are let go of.
func (m *machine) run(p *corev1.Pod, attempt uint32) *box {
	for _, b := range m.boxes {
		if b.uid == p.UID {
			m.stop(b)
		}
	}
	m.serial++
	b := &box{id: fmt.Sprintf("box-%d-%d", m.number, m.serial), uid: p.UID, name: id(p), attempt: attempt, ip: m.address(), isReady: true}
	m.boxes = append(m.boxes, b)
	m.w.stats.sandboxes++
	m.w.boxed(m, b)
	return b
}

func (m *machine) stop(b *box) {
	for _, c := range b.containers {
		m.exit(c.id, 137)
	}
	b.isReady = false
}

func (m *machine) remove(uid types.UID) {
	m.boxes = slices.DeleteFunc(m.boxes, func(b *box) bool {
		if b.uid == uid {
			m.stop(b)
			m.w.gone(m, b)
		}
		return b.uid == uid
	})
}

// launch starts a container in the pod's ready sandbox; nil when there is none.
func (m *machine) launch(uid types.UID, spec *corev1.Container, restarts int32) *container {
	for _, b := range m.boxes {
		if b.uid != uid || !b.isReady {
			continue
		}
		for _, c := range b.containers {
			if c.name == spec.Name && c.running {
				m.w.fail("two containers %s of pod %s run on %s", spec.Name, b.name, m.name)
			}
		}
		m.serial++
		c := &container{id: fmt.Sprintf("c-%d-%d", m.number, m.serial), name: spec.Name, image: spec.Image, restarts: restarts, running: true, started: m.now()}
		b.containers = append(b.containers, c)
		if strings.HasPrefix(spec.Image, "task") {
			m.later(m.w.between(100*time.Millisecond, 5*time.Second), "task ends", func() { m.exit(c.id, 0) })
		}
		return c
	}
	return nil
}

// exit ends a container and tells the agent, if there is one.
func (m *machine) exit(cid string, code int32) {
	b, c := m.find(cid)
	if c == nil || !c.running {
		return
	}
	c.running, c.code, c.ended = false, code, m.now()
	m.w.Logf(m.name, "container %s of %s ends with %d", c.name, b.name, code)
	if g := m.agent; g != nil {
		if w := g.workers[b.uid]; w != nil {
			g.soon(0, time.Millisecond, "exit", func() {
				if g.workers[b.uid] == w {
					w.post(pod.Exited{Container: c.name, ID: c.id, ExitCode: c.code, Reason: reasonOf(c.code), StartedAt: c.started, FinishedAt: c.ended})
				}
			})
		}
	}
}

func reasonOf(code int32) string {
	if code == 0 {
		return "Completed"
	}
	return "Error"
}

func (m *machine) now() time.Time { return m.w.Actor(m.name).Clock().Now() }

// running containers in their order.
func (m *machine) running() []*container {
	var out []*container
	for _, b := range m.boxes {
		for _, c := range b.containers {
			if c.running {
				out = append(out, c)
			}
		}
	}
	return out
}

// adopted is what the machine holds of a pod; nil: nothing.
func (m *machine) adopted(uid types.UID) *pod.Adopted {
	var newest *box
	for _, b := range m.boxes {
		if b.uid == uid && (newest == nil || b.attempt >= newest.attempt) {
			newest = b
		}
	}
	if newest == nil {
		return nil
	}
	a := &pod.Adopted{Seen: true, Attempt: newest.attempt}
	if newest.isReady {
		a.SandboxID, a.IPs = newest.id, []string{newest.ip}
	}
	found := map[string]*container{}
	last := map[string]*container{}
	var names []string
	for _, b := range m.boxes {
		if b.uid != uid {
			continue
		}
		for _, c := range b.containers {
			if old := found[c.name]; old == nil {
				names = append(names, c.name)
				found[c.name] = c
			} else if c.restarts >= old.restarts {
				found[c.name], last[c.name] = c, old
			}
		}
	}
	for _, name := range names {
		c := found[name]
		f := pod.Found{Name: name, ID: c.id, Image: c.image, ImageID: "sha256:" + c.image, Restarts: c.restarts, Running: c.running, StartedAt: c.started}
		if !c.running {
			f.Terminated = terminated(c)
		}
		if l := last[name]; l != nil {
			f.Last = terminated(l)
		}
		a.Containers = append(a.Containers, f)
	}
	return a
}

func terminated(c *container) *corev1.ContainerStateTerminated {
	return &corev1.ContainerStateTerminated{ExitCode: c.code, Reason: reasonOf(c.code), StartedAt: metav1.NewTime(c.started), FinishedAt: metav1.NewTime(c.ended), ContainerID: "containerd://" + c.id}
}

// start begins a life of the agent.
func (m *machine) start(a *sim.Actor) sim.Handler {
	g := &agent{w: m.w, m: m, actor: a, life: a.Life(), workers: map[types.UID]*worker{}, waiting: map[int]answerTo{}, early: map[[2]int]frame{}, versions: map[types.UID]int64{}}
	m.agent = g
	g.dial(true)
	g.listen()
	g.heartbeat()
	return g.message
}
