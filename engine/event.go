package engine

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventBuffer is how many events a subscriber may be behind before it is cut off.
const eventBuffer = 1024

// broadcaster hands events to all subscribers in one order.
type broadcaster struct {
	mu     sync.Mutex
	subs   map[chan *runtimeapi.ContainerEventResponse]bool
	closed bool
}

func newBroadcaster() *broadcaster {
	return &broadcaster{subs: map[chan *runtimeapi.ContainerEventResponse]bool{}}
}

func (b *broadcaster) send(ev *runtimeapi.ContainerEventResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ch := range b.subs {
		select {
		case ch <- ev:
		default: // it must list anew anyway: a closed channel tells it so
			delete(b.subs, ch)
			close(ch)
		}
	}
}

func (b *broadcaster) subscribe(ctx context.Context) <-chan *runtimeapi.ContainerEventResponse {
	ch := make(chan *runtimeapi.ContainerEventResponse, eventBuffer)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		close(ch)
		return ch
	}
	b.subs[ch] = true
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.subs[ch] {
			delete(b.subs, ch)
			close(ch)
		}
	})
	return ch
}

func (b *broadcaster) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for ch := range b.subs {
		delete(b.subs, ch)
		close(ch)
	}
}

// Events are what happens to sandboxes and containers from now on, in order.
// The channel is closed when ctx or Run ends, or when the reader is 1024 events
// behind; it then subscribes again and lists.
func (e *Engine) Events(ctx context.Context) <-chan *runtimeapi.ContainerEventResponse {
	return e.events.subscribe(ctx)
}

// GetContainerEvents is Events for gRPC.
func (e *Engine) GetContainerEvents(_ *runtimeapi.GetEventsRequest, s grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	for ev := range e.Events(s.Context()) {
		if err := s.Send(ev); err != nil {
			return err
		}
	}
	if err := s.Context().Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.ResourceExhausted, "watch container events: the reader is too slow or the engine stops; list and watch again")
}

// emit reports what happened to a container or a sandbox that is still known.
func (e *Engine) emit(id string, kind runtimeapi.ContainerEventType) {
	e.mu.Lock()
	s := e.sandboxes[id]
	if c := e.containers[id]; c != nil {
		s = c.sandbox
	}
	e.mu.Unlock()
	if s == nil {
		return
	}
	st, list := e.sandboxView(s)
	e.events.send(&runtimeapi.ContainerEventResponse{
		ContainerId: id, ContainerEventType: kind, CreatedAt: e.now(), PodSandboxStatus: st, ContainersStatuses: list,
	})
}

func (e *Engine) emitRemoved(c *container) {
	st, list := e.sandboxView(c.sandbox)
	e.events.send(&runtimeapi.ContainerEventResponse{
		ContainerId: c.id, ContainerEventType: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
		CreatedAt: e.now(), PodSandboxStatus: st, ContainersStatuses: list,
	})
}
