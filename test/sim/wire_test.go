package sim

import (
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
	"proa.dev/view"
)

// What agents and the server say to each other. A watch is a connection: its
// frames are numbered, and a gap ends it.
type (
	// open asks for a watch from a revision; 0 lists first.
	open struct {
		conn int
		from int64
	}
	frame struct {
		life, conn, number int // of the server, and of the connection

		list     bool // pods are all there are
		gone     bool // list again
		pods     []*corev1.Pod
		removed  []*corev1.Pod
		revision int64
	}
	// call asks the server to do something; do is its name for the log.
	call struct {
		id   int
		life int
		do   string
		run  func(s *server) (kind.Object, error)
	}
	answer struct {
		id, life int
		obj      kind.Object
		err      error
	}
)

// stream is the server's end of one agent's watch.
type stream struct {
	conn, number int
	at           int64
}

func (s *server) message(from string, m any) {
	s.look()
	switch m := m.(type) {
	case open:
		if old := s.streams[from]; old != nil && old.conn >= m.conn {
			break // it came twice, or late
		}
		st := &stream{conn: m.conn, at: m.from}
		s.streams[from] = st
		if m.from == 0 {
			snap := s.view.Snapshot()
			f := frame{conn: m.conn, list: true, revision: snap.Revision()}
			for p := range snap.PodsOn(from) {
				f.pods = append(f.pods, p)
			}
			st.at = snap.Revision()
			s.send(from, st, f)
			return
		}
		s.push(from)
	case call:
		o, err := m.run(s)
		if apierrors.IsInvalid(err) {
			s.w.fail("%s asked for what is not valid: %s: %v", from, m.do, err)
		}
		s.actor.Send(from, m.do+" answered"+errorText(err), answer{m.id, m.life, o, err})
	}
	s.wake()
}

func (s *server) send(to string, st *stream, f frame) {
	st.number++
	f.life, f.conn, f.number = s.actor.Life(), st.conn, st.number
	s.actor.Send(to, fmt.Sprintf("frame %d/%d at %d: %d pods, %d removed", f.conn, f.number, f.revision, len(f.pods), len(f.removed)), f)
}

// push sends what an agent has not heard of.
func (s *server) push(to string) {
	st := s.streams[to]
	if st == nil {
		return
	}
	changes, progress, _, err := s.view.Changes(kind.Pod, st.at)
	if errors.Is(err, view.ErrGone) {
		s.send(to, st, frame{gone: true})
		delete(s.streams, to)
		return
	}
	f := frame{revision: progress}
	for _, c := range changes {
		if c.New == nil {
			if p := c.Last.(*corev1.Pod); p.Spec.NodeName == to {
				f.removed = append(f.removed, p)
			}
			continue
		}
		if p := c.New.(*corev1.Pod); p.Spec.NodeName == to {
			f.pods = append(f.pods, p)
		}
	}
	st.at = progress
	if len(f.pods)+len(f.removed) > 0 {
		s.send(to, st, f)
	}
}

// ping keeps the watches alive.
func (s *server) ping() {
	s.actor.After(time.Second, "ping", func() {
		for _, m := range s.w.nodes {
			if st := s.streams[m.name]; st != nil {
				s.push(m.name)
				s.send(m.name, st, frame{revision: st.at})
			}
		}
		s.ping()
	})
}

var errTimeout = errors.New("no answer in time")

// call sends a request and hands its answer, or the lack of one, to then.
func (g *agent) call(do string, run func(s *server) (kind.Object, error), then func(kind.Object, error)) {
	g.calls++
	n := g.calls
	g.waiting[n] = then
	g.actor.Send("server", do, call{n, g.life, do, run})
	g.actor.After(3*time.Second, "timeout of "+do, func() {
		if then := g.waiting[n]; then != nil {
			delete(g.waiting, n)
			then(nil, errTimeout)
		}
	})
}

func (g *agent) message(_ string, m any) {
	switch m := m.(type) {
	case answer:
		if then := g.waiting[m.id]; then != nil && m.life == g.life {
			delete(g.waiting, m.id)
			then(m.obj, m.err)
		}
	case frame:
		g.frame(m)
	}
}

// dial opens a watch anew; a relist forgets where the last one was.
func (g *agent) dial(relist bool) {
	g.conn++
	g.number = 0
	clear(g.early)
	g.heard = g.actor.Clock().Now()
	if relist {
		g.at = 0
		g.w.stats.relists++
	}
	g.actor.Send("server", fmt.Sprintf("watch %d from %d", g.conn, g.at), open{g.conn, g.at})
}

// listen makes a new connection when the old one is silent.
func (g *agent) listen() {
	g.actor.After(time.Second, "listen", func() {
		if d := g.actor.Clock().Now().Sub(g.heard); d > 4*time.Second || d < 0 {
			g.dial(g.actor.Rand().Percent(30))
		}
		g.listen()
	})
}

// frame takes the frames of the present connection in their order, each once.
func (g *agent) frame(f frame) {
	if f.conn != g.conn || f.number <= g.number || g.number > 0 && f.life != g.peer {
		return
	}
	g.early[[2]int{f.life, f.number}] = f
	if g.number == 0 {
		g.peer = f.life
	}
	for {
		next := [2]int{g.peer, g.number + 1}
		f, ok := g.early[next]
		if !ok {
			return
		}
		delete(g.early, next)
		g.number++
		g.heard = g.actor.Clock().Now()
		if f.gone {
			g.dial(true)
			return
		}
		if f.revision < g.at {
			g.w.fail("the watch of %s went back from revision %d to %d", g.m.name, g.at, f.revision)
		}
		if g.at = f.revision; g.w.plant == "back" && len(f.pods) > 0 {
			g.at = f.pods[0].Generation
		}
		seen := map[string]bool{}
		for _, p := range f.pods {
			seen[string(p.UID)] = true
			if last := g.versions[p.UID]; last > version(p) {
				g.w.fail("the watch of %s went back from revision %d to %d of pod %s", g.m.name, last, version(p), id(p))
			}
			g.versions[p.UID] = version(p)
			g.offer(p)
		}
		for _, p := range f.removed {
			g.gone(p)
		}
		if f.list {
			for _, uid := range sorted(g.workers) {
				if !seen[string(uid)] {
					g.workers[uid].removed(nil)
				}
			}
			g.listed()
		}
	}
}

func version(o metav1.Object) int64 {
	var n int64
	fmt.Sscan(o.GetResourceVersion(), &n)
	return n
}
