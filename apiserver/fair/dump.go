package fair

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Dump writes one of the tables of /debug/api_priority_and_fairness
// (Kubernetes docs, "API Priority and Fairness", "Debug endpoints"):
// "dump_priority_levels", "dump_queues" or "dump_requests"; details adds the
// columns about each request. ok is false for another name.
func (d *Dispatcher) Dump(w io.Writer, name string, details bool) (ok bool, err error) {
	out := tabwriter.NewWriter(w, 8, 0, 1, ' ', 0)
	row := func(cells ...any) {
		text := make([]string, len(cells))
		for i, c := range cells {
			text[i] = fmt.Sprint(c)
		}
		fmt.Fprintln(out, strings.Join(text, ",\t"))
	}
	c := d.config.Load()
	switch name {
	case "dump_priority_levels":
		row("PriorityLevelName", "ActiveQueues", "IsIdle", "IsQuiescing", "WaitingRequests", "ExecutingRequests", "DispatchedRequests", "RejectedRequests", "TimedoutRequests", "CancelledRequests")
		for _, l := range c.levels {
			l.mu.Lock()
			active := 0
			for _, q := range l.queues {
				if len(q.waiting) > 0 {
					active++
				}
			}
			row(l.name, active, l.waiting+l.executing == 0, l.quiescing, l.waiting, l.executing, l.dispatched, l.rejected, l.timedOut, l.cancelled)
			l.mu.Unlock()
		}
	case "dump_queues":
		row("PriorityLevelName", "Index", "PendingRequests", "ExecutingRequests", "SeatsInUse", "NextDispatchR", "InitialSeatsSum", "MaxSeatsSum", "TotalWorkSum")
		for _, l := range c.levels {
			l.mu.Lock()
			for i, q := range l.queues {
				if l.shape.Queues > 0 {
					row(l.name, i, len(q.waiting), q.requests, q.seats, strconv.FormatFloat(q.start, 'f', 8, 64)+"ss", q.waitingSeats, q.waitingSeats,
						strconv.FormatFloat(guess*float64(q.waitingSeats), 'f', 8, 64)+"ss")
				}
			}
			l.mu.Unlock()
		}
	case "dump_requests":
		head := []any{"PriorityLevelName", "FlowSchemaName", "QueueIndex", "RequestIndexInQueue", "FlowDistingsher", "ArriveTime", "InitialSeats", "FinalSeats", "AdditionalLatency", "StartTime"}
		if details {
			head = append(head, "UserName", "Verb", "APIPath", "Namespace", "Name", "APIVersion", "Resource", "SubResource")
		}
		row(head...)
		for _, l := range c.levels {
			one := func(queue, index int, t *ticket) {
				i := &t.info
				cells := []any{l.name, i.flow.schema.Name, queue, index, i.distinguisher, t.arrived.UTC().Format(time.RFC3339Nano), t.seats, 0, time.Duration(0), t.started.UTC().Format(time.RFC3339Nano)}
				if details {
					cells = append(cells, i.user, i.verb, i.path, i.namespace, i.name, i.version(), i.resource, i.sub)
				}
				row(cells...)
			}
			l.mu.Lock()
			for i, q := range l.queues {
				for n, t := range q.waiting {
					one(i, n, t)
				}
			}
			for t := l.working; t != nil; t = t.after {
				queue := -1
				if t.q != nil && l.shape.Queues > 0 {
					queue = t.q.index
				}
				one(queue, -1, t)
			}
			l.mu.Unlock()
		}
	default:
		return false, nil
	}
	return true, out.Flush()
}

func (i *info) version() string {
	if i.group == "" {
		return i.apiVersion
	}
	return i.group + "/" + i.apiVersion
}
