// Package serve offers an engine on a Unix socket, as the gRPC services that
// CRI defines, so that crictl and the CRI validation suite can use it. Exec,
// Attach and PortForward answer with one-time addresses of a streaming server on
// the loopback device, which lives as long as Serve.
//
// The socket has mode 0600: whoever can connect is root on this machine.
package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"proa.dev/engine/term"
)

// Runtime is what can be served; *engine.Engine is one.
type Runtime interface {
	runtimeapi.RuntimeServiceServer
	runtimeapi.ImageServiceServer

	ExecStream(ctx context.Context, containerID string, cmd []string, tty bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan term.Size) (exitCode int, err error)
	AttachStream(ctx context.Context, containerID string, stdin io.Reader, stdout, stderr io.Writer, resize <-chan term.Size) error
	PortForwardStream(ctx context.Context, sandboxID string, port int32, rw io.ReadWriteCloser) error
}

// maxMessage is the largest list that goes through; the kubelet's own limit.
const maxMessage = 16 << 20

// Serve answers on the socket until ctx ends. A socket that nobody answers on
// is replaced, one that somebody does is an error.
func Serve(ctx context.Context, r Runtime, socket string) error {
	if c, err := net.DialTimeout("unix", socket, time.Second); err == nil {
		c.Close()
		return fmt.Errorf("listen on %q: another runtime answers there", socket)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listen on %q: %w", socket, err)
	}
	defer l.Close()
	if err := os.Chmod(socket, 0o600); err != nil {
		return err
	}
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for streams: %w", err)
	}
	defer web.Close()
	cfg := streaming.DefaultConfig
	cfg.Addr = web.Addr().String()
	streams, err := streaming.NewServer(cfg, adapter{r})
	if err != nil {
		return err
	}
	// The base context ends the streams: a hijacked connection has no other end.
	httpServer := &http.Server{Handler: streams, BaseContext: func(net.Listener) context.Context { return ctx }, ReadHeaderTimeout: 10 * time.Second}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	svc := &service{Runtime: r, streams: streams}
	runtimeapi.RegisterRuntimeServiceServer(s, runtimeService{svc})
	runtimeapi.RegisterImageServiceServer(s, imageService{svc})
	ended := make(chan error, 2)
	go func() { ended <- s.Serve(l) }()
	go func() { ended <- httpServer.Serve(web) }()
	stopped := 0
	select {
	case <-ctx.Done():
		err = nil
	case err = <-ended:
		stopped = 1
	}
	s.Stop()
	httpServer.Close()
	for ; stopped < 2; stopped++ {
		<-ended
	}
	return err
}

// service adds to a runtime what only makes sense over a connection.
type service struct {
	Runtime
	streams streaming.Server
}

// runtimeService and imageService each show one of the two services.
type runtimeService struct{ *service }

type imageService struct{ *service }

func (s *service) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return s.streams.GetExec(req)
}

func (s *service) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return s.streams.GetAttach(req)
}

func (s *service) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return s.streams.GetPortForward(req)
}

// chunk is how many items go into one message of a streamed list.
const chunk = 100

func sendAll[T, R any](items []T, stream grpc.ServerStreamingServer[R], wrap func([]T) *R) error {
	for len(items) > 0 {
		n := min(chunk, len(items))
		if err := stream.Send(wrap(items[:n])); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

func (s *service) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	r, err := s.ListPodSandbox(stream.Context(), &runtimeapi.ListPodSandboxRequest{Filter: req.GetFilter()})
	if err != nil {
		return err
	}
	return sendAll(r.Items, stream, func(x []*runtimeapi.PodSandbox) *runtimeapi.StreamPodSandboxesResponse {
		return &runtimeapi.StreamPodSandboxesResponse{PodSandboxes: x}
	})
}

func (s *service) StreamContainers(req *runtimeapi.StreamContainersRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	r, err := s.ListContainers(stream.Context(), &runtimeapi.ListContainersRequest{Filter: req.GetFilter()})
	if err != nil {
		return err
	}
	return sendAll(r.Containers, stream, func(x []*runtimeapi.Container) *runtimeapi.StreamContainersResponse {
		return &runtimeapi.StreamContainersResponse{Containers: x}
	})
}

func (s *service) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	r, err := s.ListContainerStats(stream.Context(), &runtimeapi.ListContainerStatsRequest{Filter: req.GetFilter()})
	if err != nil {
		return err
	}
	return sendAll(r.Stats, stream, func(x []*runtimeapi.ContainerStats) *runtimeapi.StreamContainerStatsResponse {
		return &runtimeapi.StreamContainerStatsResponse{ContainerStats: x}
	})
}

func (s *service) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	r, err := s.ListPodSandboxStats(stream.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: req.GetFilter()})
	if err != nil {
		return err
	}
	return sendAll(r.Stats, stream, func(x []*runtimeapi.PodSandboxStats) *runtimeapi.StreamPodSandboxStatsResponse {
		return &runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: x}
	})
}

func (s *service) StreamImages(req *runtimeapi.StreamImagesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	r, err := s.ListImages(stream.Context(), &runtimeapi.ListImagesRequest{Filter: req.GetFilter()})
	if err != nil {
		return err
	}
	return sendAll(r.Images, stream, func(x []*runtimeapi.Image) *runtimeapi.StreamImagesResponse {
		return &runtimeapi.StreamImagesResponse{Images: x}
	})
}

// adapter gives the streaming server what it asks of a runtime.
type adapter struct{ r Runtime }

// writer keeps an absent stream absent: a nil pointer in an interface is not nil.
func writer(w io.WriteCloser) io.Writer {
	if w == nil {
		return nil
	}
	return w
}

func sizes(ctx context.Context, in <-chan remotecommand.TerminalSize) <-chan term.Size {
	out := make(chan term.Size)
	go func() {
		defer close(out)
		for {
			select {
			case s, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- term.Size{Width: s.Width, Height: s.Height}:
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

func (a adapter) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	code, err := a.r.ExecStream(ctx, id, cmd, tty, in, writer(out), writer(errOut), sizes(ctx, resize))
	if err == nil && code != 0 {
		err = utilexec.CodeExitError{Err: fmt.Errorf("error executing command %v, exit code %d", cmd, code), Code: code}
	}
	return err
}

func (a adapter) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return a.r.AttachStream(ctx, id, in, writer(out), writer(errOut), sizes(ctx, resize))
}

func (a adapter) PortForward(ctx context.Context, sandboxID string, port int32, stream io.ReadWriteCloser) error {
	return a.r.PortForwardStream(ctx, sandboxID, port, stream)
}
