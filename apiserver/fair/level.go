package fair

import (
	"math"
	"sync"
	"time"
)

// guess is how long a request is expected to work; what it really took is
// charged when it ends.
const guess = 0.003 // seconds

// Reasons of a rejection, as in the metric apiserver_flowcontrol_rejected_requests_total.
const (
	ReasonFull        = "queue-full"
	ReasonConcurrency = "concurrency-limit"
	ReasonTimeout     = "time-out"
	ReasonCancelled   = "cancelled"
)

// Shape is the part of a PriorityLevelConfiguration that says how requests wait.
type Shape struct {
	Exempt bool
	// Queues 0: what cannot start at once is rejected.
	Queues, HandSize, QueueLength int
}

// level is the state of one priority level. All methods with now are
// deterministic: the same calls give the same dispatches.
type level struct {
	name string

	mu      sync.Mutex
	shape   Shape
	limit   int // seats now
	queues  []*queue
	next    int // where the search for the next queue begins
	busy    int // queues that have something waiting or in work
	waiting int // requests
	// waitingSeats and seats are what waits and what is in work.
	waitingSeats, seats int
	executing           int

	virtual float64 // service that each busy queue has had since the beginning, seat-seconds
	lastS   float64 // virtual start of the newest dispatch
	at      time.Time
	demand  demand

	working *ticket // first of the requests in work

	dispatched, rejected, timedOut, cancelled int

	// What follows is set when the configuration is made.
	nominal, lower, upper, maxSeats int
	smoothed                        float64
	last                            observation
	target                          float64
	quiescing                       bool
}

// queue holds the requests of the flows that were dealt to it. start is the
// virtual time at which its oldest waiting request begins.
type queue struct {
	index           int
	waiting         []*ticket
	seats, requests int // in work
	waitingSeats    int
	start           float64
}

// ticket is one request at a limited level.
type ticket struct {
	q       *queue
	seats   int
	arrived time.Time
	started time.Time
	granted chan struct{} // nil: it never waited
	running bool
	info    info
	// before and after are the neighbours in the level's list of requests in work.
	before, after *ticket
}

// info is what the debug dump shows of a request.
type info struct {
	flow          *flow
	distinguisher string
	user, verb    string
	path          string
	namespace     string
	name          string
	group         string
	apiVersion    string
	resource, sub string
}

// reshape changes the way of waiting. Requests that wait already keep their queue
// until it is empty.
func (l *level) reshape(s Shape) {
	l.shape = s
	for len(l.queues) < max(s.Queues, 1) {
		l.queues = append(l.queues, &queue{index: len(l.queues)})
	}
	l.trim()
}

// trim takes away queues beyond the configured ones that are empty.
func (l *level) trim() {
	for n := len(l.queues); n > max(l.shape.Queues, 1); n-- {
		if q := l.queues[n-1]; len(q.waiting) > 0 || q.requests > 0 {
			return
		}
		l.queues = l.queues[:n-1]
	}
}

// advance moves virtual time: the seats in use are shared by the busy queues.
func (l *level) advance(now time.Time) {
	d := now.Sub(l.at).Seconds()
	if d <= 0 {
		return
	}
	l.at = now
	if l.busy > 0 {
		l.virtual += d * float64(min(l.seats+l.waitingSeats, l.limit)) / float64(l.busy)
	}
	l.demand.advance(d)
}

func (l *level) demandChanged() { l.demand.set(float64(l.seats + l.waitingSeats)) }

// deal picks handSize different queues by the flow's hash and returns the one
// with the least work (shuffle sharding: two flows seldom share all of their
// hand, so that a flood fills a few queues only).
func (l *level) deal(hash uint64) *queue {
	n, hand := l.shape.Queues, l.shape.HandSize
	if n <= 1 {
		return l.queues[0]
	}
	var taken [64]int
	var best *queue
	work := math.MaxInt
	hand = min(hand, n, len(taken))
	for i := range hand {
		card := int(hash % uint64(n-i))
		hash /= uint64(n - i)
		// The card-th of those not taken yet; taken is kept sorted.
		at := 0
		for at < i && taken[at] <= card {
			card++
			at++
		}
		copy(taken[at+1:i+1], taken[at:i])
		taken[at] = card
		if q := l.queues[card]; q.waitingSeats+q.seats < work {
			best, work = q, q.waitingSeats+q.seats
		}
	}
	return best
}

// arrive admits, queues or rejects a request of so many seats. A non-empty
// reason rejects; a ticket that is not running waits for its channel. position is
// the length of the queue behind it.
func (l *level) arrive(now time.Time, hash uint64, t *ticket) (position int, reason string) {
	l.advance(now)
	t.arrived = now
	q := l.deal(hash)
	if l.waiting == 0 && l.fits(t.seats) {
		l.wake(q)
		t.q = q
		l.start(now, q, t)
		l.demandChanged()
		return 0, ""
	}
	if l.shape.Queues == 0 {
		l.rejected++
		return 0, ReasonConcurrency
	}
	if len(q.waiting) >= l.shape.QueueLength {
		l.rejected++
		return len(q.waiting), ReasonFull
	}
	l.wake(q)
	t.q = q
	t.granted = make(chan struct{})
	q.waiting = append(q.waiting, t)
	q.waitingSeats += t.seats
	l.waiting++
	l.waitingSeats += t.seats
	position = len(q.waiting)
	l.dispatch(now)
	l.demandChanged()
	return position, ""
}

// wake counts a queue as busy; one that was idle has no claim from before.
func (l *level) wake(q *queue) {
	if len(q.waiting) == 0 && q.requests == 0 {
		q.start = l.virtual
		l.busy++
	}
}

func (l *level) rest(q *queue) {
	if len(q.waiting) == 0 && q.requests == 0 {
		l.busy--
		if q.index >= l.shape.Queues && q.index > 0 {
			l.trim()
		}
	}
}

// fits: a request wider than the level may start when nothing else is in work.
func (l *level) fits(seats int) bool {
	return l.seats+seats <= l.limit || l.seats == 0 && l.limit > 0
}

func (l *level) start(now time.Time, q *queue, t *ticket) {
	t.running, t.started = true, now
	l.link(t)
	l.lastS = q.start
	q.start += guess * float64(t.seats)
	q.requests++
	q.seats += t.seats
	l.executing++
	l.seats += t.seats
	l.dispatched++
}

// dispatch starts waiting requests while there are seats: always the one whose
// virtual finish is first. One that does not fit holds the others back, so that
// wide requests are not starved.
func (l *level) dispatch(now time.Time) {
	for l.waiting > 0 {
		var best *queue
		finish := math.Inf(1)
		n := len(l.queues)
		for i := range n {
			q := l.queues[(l.next+i)%n]
			if len(q.waiting) == 0 {
				continue
			}
			if f := q.start + guess*float64(q.waiting[0].seats); f < finish {
				best, finish = q, f
			}
		}
		if best == nil || !l.fits(best.waiting[0].seats) {
			return
		}
		t := best.waiting[0]
		best.waiting[0] = nil
		if best.waiting = best.waiting[1:]; len(best.waiting) == 0 {
			best.waiting = nil
		}
		l.unwait(best, t)
		l.next = (best.index + 1) % n
		l.start(now, best, t)
		close(t.granted)
	}
}

func (l *level) unwait(q *queue, t *ticket) {
	q.waitingSeats -= t.seats
	l.waiting--
	l.waitingSeats -= t.seats
}

// leave takes a request out of its queue; false when it runs already.
func (l *level) leave(now time.Time, t *ticket, reason string) bool {
	if t.running {
		return false
	}
	l.advance(now)
	q := t.q
	for i, e := range q.waiting {
		if e == t {
			q.waiting = append(q.waiting[:i], q.waiting[i+1:]...)
			break
		}
	}
	l.unwait(q, t)
	l.rest(q)
	if reason == ReasonCancelled {
		l.cancelled++
	} else {
		l.timedOut++
	}
	l.rejected++
	// What did not fit may have been this one.
	l.dispatch(now)
	l.demandChanged()
	return true
}

// finish frees the seats, charges what the request really took and starts what
// waits.
func (l *level) finish(now time.Time, t *ticket) {
	l.advance(now)
	q := t.q
	took := max(now.Sub(t.started).Seconds(), 0)
	q.start += (took - guess) * float64(t.seats)
	q.requests--
	q.seats -= t.seats
	l.executing--
	l.seats -= t.seats
	l.unlink(t)
	l.rest(q)
	l.dispatch(now)
	l.demandChanged()
}

func (l *level) link(t *ticket) {
	if t.after = l.working; t.after != nil {
		t.after.before = t
	}
	l.working = t
}

func (l *level) unlink(t *ticket) {
	if t.before != nil {
		t.before.after = t.after
	} else {
		l.working = t.after
	}
	if t.after != nil {
		t.after.before = t.before
	}
	t.before, t.after = nil, nil
}

// relimit changes the seats and starts what may start now.
func (l *level) relimit(now time.Time, limit int) {
	l.advance(now)
	l.limit = limit
	l.dispatch(now)
}

// demand integrates over time how many seats a level could use.
type demand struct {
	x, high           float64
	sum, square, for_ float64
}

type observation struct{ average, deviation, high float64 }

func (d *demand) advance(seconds float64) {
	d.sum += d.x * seconds
	d.square += d.x * d.x * seconds
	d.for_ += seconds
}

func (d *demand) set(x float64) {
	d.x = x
	d.high = max(d.high, x)
}

// take returns what was since the last take.
func (d *demand) take() (o observation, ok bool) {
	o.high = d.high
	if ok = d.for_ > 0; ok {
		o.average = d.sum / d.for_
		o.deviation = math.Sqrt(max(d.square/d.for_-o.average*o.average, 0))
	}
	*d = demand{x: d.x, high: d.x}
	return o, ok
}
