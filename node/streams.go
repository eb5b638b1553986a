package node

import (
	"context"
	"io"
)

// engineStreams is the form in which package engine offers its streams; S is
// its own type of a terminal's size.
type engineStreams[S ~struct{ Width, Height uint16 }] interface {
	ExecStream(ctx context.Context, containerID string, cmd []string, tty bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan S) (int, error)
	AttachStream(ctx context.Context, containerID string, stdin io.Reader, stdout, stderr io.Writer, resize <-chan S) error
	PortForwardStream(ctx context.Context, sandboxID string, port int32, rw io.ReadWriteCloser) error
}

// StreamsOf makes Streams of an engine in process.
func StreamsOf[S ~struct{ Width, Height uint16 }](e engineStreams[S]) Streams { return adapted[S]{e} }

type adapted[S ~struct{ Width, Height uint16 }] struct{ e engineStreams[S] }

// Exec runs a command.
func (a adapted[S]) Exec(ctx context.Context, id string, cmd []string, tty bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan Size) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return a.e.ExecStream(ctx, id, cmd, tty, stdin, stdout, stderr, sizesFor[S](ctx, resize))
}

// Attach joins a container's own streams.
func (a adapted[S]) Attach(ctx context.Context, id string, _ bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan Size) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return a.e.AttachStream(ctx, id, stdin, stdout, stderr, sizesFor[S](ctx, resize))
}

// PortForward connects to a port inside the sandbox.
func (a adapted[S]) PortForward(ctx context.Context, id string, port int32, rw io.ReadWriteCloser) error {
	return a.e.PortForwardStream(ctx, id, port, rw)
}

// sizesFor translates sizes until ctx, which the caller cancels, ends.
func sizesFor[S ~struct{ Width, Height uint16 }](ctx context.Context, in <-chan Size) <-chan S {
	if in == nil {
		return nil
	}
	out := make(chan S)
	go func() {
		defer close(out)
		for {
			select {
			case s, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- S(s):
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
