// Package enginetest holds what every container engine behind proa must do, as a
// suite (Run), and a small engine in memory that does it without a machine
// (Fake), for tests of the node and for the simulator.
//
// The suite speaks CRI only. It asks of a runtime one image, Harness.Image,
// whose containers understand /bin/sh -c with these statements, separated by
// ";": echo WORD, sleep SECONDS, exit CODE, true, false, and
// trap 'exit CODE' TERM.
package enginetest

import (
	"context"
	"io"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/engine/term"
)

// Runtime is an engine as the node uses it. *engine.Engine and *Fake are ones.
type Runtime interface {
	runtimeapi.RuntimeServiceServer
	runtimeapi.ImageServiceServer

	ExecStream(ctx context.Context, containerID string, cmd []string, tty bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan term.Size) (exitCode int, err error)
	AttachStream(ctx context.Context, containerID string, stdin io.Reader, stdout, stderr io.Writer, resize <-chan term.Size) error
	PortForwardStream(ctx context.Context, sandboxID string, port int32, rw io.ReadWriteCloser) error
	Events(ctx context.Context) <-chan *runtimeapi.ContainerEventResponse
}
