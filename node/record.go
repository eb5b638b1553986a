package node

import (
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/act"
	"proa.dev/client"
	"proa.dev/client/record"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/view"
)

// recorder writes events in the background, so that no pod waits for them.
type recorder struct {
	*record.Recorder
	node string
}

func newRecorder(c client.Client, clock env.Clock, rand env.Rand, node string, log *slog.Logger) *recorder {
	r := record.New(c, clock, rand, "kubelet", node)
	r.Log = log
	return &recorder{r, node}
}

// about records an event about a pod, or a part of it named by field.
func (r *recorder) about(p *corev1.Pod, field, eventType, reason, message string) {
	r.Emit(act.Event{About: view.RefOf(kind.Pod, p), UID: p.UID, ResourceVersion: p.ResourceVersion, Field: field, Type: eventType, Reason: reason, Message: message})
}

// aboutNode records an event about the node; its UID is the name, as kubectl asks
// for events of nodes.
func (r *recorder) aboutNode(eventType, reason, message string) {
	r.Emit(act.Event{About: view.Ref{Kind: kind.Node, Name: r.node}, UID: types.UID(r.node), Type: eventType, Reason: reason, Message: message})
}
