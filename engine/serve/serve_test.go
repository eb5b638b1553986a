package serve

import (
	"bytes"
	"context"
	"errors"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/engine/enginetest"
)

const image = "docker.io/library/busybox:test"

func TestSocket(t *testing.T) {
	f := enginetest.NewFake(enginetest.FakeConfig{Images: []enginetest.Image{{Ref: image}}})
	socket := filepath.Join(t.TempDir(), "s", "cri.sock")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, f, socket) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	rt, im := runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	call, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	if v, err := rt.Version(call, &runtimeapi.VersionRequest{}); err != nil || v.RuntimeApiVersion != "v1" {
		t.Fatalf("version %v, %v", v, err)
	}
	if err := Serve(ctx, f, socket); err == nil || !strings.Contains(err.Error(), "another runtime") {
		t.Errorf("a second server on the socket: %v", err)
	}
	if l, err := im.ListImages(call, &runtimeapi.ListImagesRequest{}); err != nil || len(l.Images) != 1 {
		t.Errorf("images %v, %v", l, err)
	}
	sb, err := rt.RunPodSandbox(call, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := rt.CreateContainer(call, &runtimeapi.CreateContainerRequest{PodSandboxId: sb.PodSandboxId, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: image}, Command: []string{"sleep", "1000"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rt.StartContainer(call, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	if _, err := rt.ContainerStatus(call, &runtimeapi.ContainerStatusRequest{ContainerId: "nothing"}); status.Code(err) != codes.NotFound {
		t.Errorf("status of nothing: %v", err)
	}
	stream, err := rt.StreamContainers(call, &runtimeapi.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || len(m.Containers) != 1 {
		t.Errorf("streamed list %v, %v", m, err)
	}
	r, err := rt.Exec(call, &runtimeapi.ExecRequest{ContainerId: c.ContainerId, Cmd: []string{"sh", "-c", "echo over the wire; exit 6"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(r.Url)
	if err != nil || u.Hostname() != "127.0.0.1" {
		t.Fatalf("address %q, %v", r.Url, err)
	}
	x, err := remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = x.StreamWithContext(call, remotecommand.StreamOptions{Stdout: &out})
	var code utilexec.CodeExitError
	if !errors.As(err, &code) || code.Code != 6 || out.String() != "over the wire\n" {
		t.Errorf("exec: %v, %q", err, out.String())
	}
}
