package apiserver

import (
	"context"
	"encoding/binary"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/auth"
	"proa.dev/apiserver/fair"
	"proa.dev/env"
	"proa.dev/internal/uuid"
	"proa.dev/kind"
)

// ids are the Audit-IDs of requests that bring none: unique, not secret, and
// cheaper than a UUID of fresh random bytes for each.
type ids struct {
	high, low uint64
	n         atomic.Uint64
}

func newIDs(r env.Rand) *ids { return &ids{high: r.Uint64(), low: r.Uint64()} }

func (i *ids) next() string {
	var b [16]byte
	// Odd multiplication is a permutation: no two are alike.
	binary.BigEndian.PutUint64(b[:8], i.high)
	binary.BigEndian.PutUint64(b[8:], (i.low+i.n.Add(1))*0x9e3779b97f4a7c15&(1<<62-1))
	return uuid.Of(b)
}

const auditIDHeader = "Audit-Id"

// identify answers the request's Audit-ID, the client's or a new one.
func (q *request) identify() {
	if v := q.r.Header[auditIDHeader]; len(v) > 0 && v[0] != "" {
		q.auditID = v[:1]
	} else {
		q.auditID = []string{q.s.ids.next()}
	}
	q.w.Header()[auditIDHeader] = q.auditID
}

// record begins the audit of the request: as the user that is authenticated,
// before impersonation.
func (q *request) record() {
	if q.s.cfg.Audit == nil {
		return
	}
	a := q.attributes()
	q.entry = q.s.cfg.Audit.Begin(q.r, &a, q.auditID[0], q.started, true)
}

// refuse records a request whose credentials were not accepted.
func (q *request) refuse() error {
	if q.s.cfg.Audit != nil {
		q.refine()
		a := q.route.attributes(auth.User{}, q.r.URL.Path, "")
		q.entry = q.s.cfg.Audit.Begin(q.r, &a, q.auditID[0], q.started, false)
		q.refused = true
	}
	return apierrors.NewUnauthorized("Unauthorized")
}

func (q *request) attributes() auth.Attributes {
	a := q.route.attributes(q.user, q.r.URL.Path, "")
	if len(q.query) > 0 && (a.Verb == "list" || a.Verb == "watch" || a.Verb == "deletecollection") {
		// Elsewhere selectors narrow nothing.
		a.FieldSelector, a.LabelSelector = q.query.Get("fieldSelector"), q.query.Get("labelSelector")
	}
	return a
}

// errAnswered: the answer is out.
var errAnswered = errors.New("answered")

// enter waits until the request may work. leave gives its place back and may be
// called more than once.
func (q *request) enter() (leave func(), err error) {
	s := q.s
	reading := q.r.Method == http.MethodGet || q.r.Method == http.MethodHead
	n, limit := &s.reading, int64(s.cfg.MaxInFlight)
	if !reading {
		n, limit = &s.writing, int64(s.cfg.MaxMutatingInFlight)
	}
	if s.cfg.Fair == nil {
		if q.long || q.user.In(auth.Masters) {
			return nothing, nil
		}
		if n.Add(1) > limit {
			n.Add(-1)
			return nothing, q.tooMany(1)
		}
		return func() { n.Add(-1) }, nil
	}
	watching := q.route.verb == "watch"
	if q.long && !watching {
		return nothing, nil
	}
	a := q.attributes()
	class := s.cfg.Fair.Classify(&a)
	schema, level := class.UIDs()
	if schema != nil {
		q.w.Header()["X-Kubernetes-Pf-Flowschema-Uid"] = schema
	}
	if level != nil {
		q.w.Header()["X-Kubernetes-Pf-Prioritylevel-Uid"] = level
	}
	seats, typ := 1, "regular"
	if watching {
		typ = "watch"
	}
	if watching || q.route.verb == "list" {
		seats = q.width(min(class.MaxSeats(), 10))
	}
	t, err := s.cfg.Fair.Begin(q.r.Context(), class, &a, seats, typ)
	q.waited = t.Waited
	if err != nil {
		var r *fair.Rejected
		if errors.As(err, &r) {
			q.s.metrics.dropped(q)
			return nothing, q.tooMany(r.RetryAfter)
		}
		return nothing, err
	}
	n.Add(1)
	left := false
	return func() {
		if !left {
			left = true
			n.Add(-1)
			t.End()
		}
	}, nil
}

func nothing() {}

// tooMany is upstream's answer: plain text, not a Status.
func (q *request) tooMany(seconds int) error {
	h := q.w.Header()
	h.Set("Retry-After", strconv.Itoa(seconds))
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	q.w.WriteHeader(http.StatusTooManyRequests)
	q.w.Write([]byte("Too many requests, please try again later.\n"))
	return errAnswered
}

// objectsPerSeat of a list or of a watch that begins with the present objects.
const objectsPerSeat = 100

// width estimates the seats of a list, most at the most: one for each hundred
// objects that it has to look at.
func (q *request) width(most int) int {
	k := q.route.kind
	if k == nil || k.Virtual || q.route.name != "" || most <= 1 {
		return 1
	}
	o, err := q.listOptions()
	if err != nil {
		return 1
	}
	if q.route.verb == "watch" && !(o.SendInitialEvents != nil && *o.SendInitialEvents) && o.ResourceVersion != "" && o.ResourceVersion != "0" {
		return 1
	}
	snap := q.s.view.Snapshot()
	root := k.Root()
	n := snap.Len(root)
	if o.Limit > 0 && o.LabelSelector == "" && o.FieldSelector == "" {
		n = min(n, int(min(o.Limit, int64(n))))
	}
	if k.Scope == kind.Namespaced && q.route.namespace != "" && n > objectsPerSeat {
		// Only those of the namespace are looked at; counting ends where it no longer
		// matters.
		n = 0
		for range snap.All(root, q.route.namespace) {
			if n++; n >= objectsPerSeat*most {
				break
			}
		}
	}
	return min(max((n+objectsPerSeat-1)/objectsPerSeat, 1), most)
}

// decide asks the authorizers and records the answer.
func (q *request) decide(ctx context.Context) error { return q.s.judge(ctx, q.attributes(), q.entry) }

// context of the verbs: it carries the audit entry for admission.
func (q *request) context() context.Context {
	if q.entry == nil {
		return q.r.Context()
	}
	return admit.WithAnnotations(q.r.Context(), q.entry.Annotate)
}

// slowWrite is how long one piece of an answer may take to leave: a client that
// does not read has gone by then.
const slowWrite = time.Minute

// guard ends writes that do not move. It costs nothing in between. Its time is the
// machine's, as that of the connection.
type guard struct {
	rc    *http.ResponseController
	timer *time.Timer
	mu    sync.Mutex
	over  bool
}

// newGuard takes the deadlines of the whole request away and watches single
// writes instead.
func newGuard(w http.ResponseWriter, limit time.Duration) *guard {
	g := &guard{rc: http.NewResponseController(w)}
	g.rc.SetWriteDeadline(time.Time{})
	g.timer = time.AfterFunc(limit, g.cut)
	g.timer.Stop()
	return g
}

func (g *guard) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over {
		g.rc.SetWriteDeadline(time.Unix(1, 0))
	}
}

// do runs one write.
func (g *guard) do(limit time.Duration, write func() error) error {
	g.timer.Reset(limit)
	defer g.timer.Stop()
	return write()
}

// end must be called before the handler returns.
func (g *guard) end() {
	g.timer.Stop()
	g.mu.Lock()
	g.over = true
	g.mu.Unlock()
}

// late is the Status of a request that was not done in its time.
func late() *apierrors.StatusError {
	e := apierrors.NewTimeoutError("request did not complete within requested timeout - context deadline exceeded", 0)
	e.ErrStatus.Details = &metav1.StatusDetails{}
	return e
}
