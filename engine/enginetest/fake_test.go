package enginetest

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/env"
)

func TestFake(t *testing.T) {
	Run(t, func(t *testing.T) Harness {
		f := NewFake(FakeConfig{Images: []Image{{Ref: "docker.io/library/busybox:test"}}, Log: FileLog})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
		return Harness{Runtime: f, Image: "docker.io/library/busybox:test"}
	})
}

// clock is one that the test moves; its timers never fire.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time                     { return c.now }
func (c *clock) NewTimer(d time.Duration) env.Timer { return env.SystemClock().NewTimer(time.Hour) }

type rand struct{ n uint64 }

func (r *rand) Uint64() uint64 { r.n++; return r.n }
func (r *rand) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(r.Uint64())
	}
	return len(p), nil
}

// A simulator drives the fake by Next and Advance alone, and the same seed gives
// the same history.
func TestFakeIsDeterministic(t *testing.T) {
	play := func() (history []string) {
		ctx := t.Context()
		c := &clock{now: time.Unix(1000, 0)}
		f := NewFake(FakeConfig{Clock: c, Rand: &rand{}, Images: []Image{{Ref: "i:1"}}})
		events := f.Events(ctx)
		sb, err := f.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}}})
		if err != nil {
			t.Fatal(err)
		}
		for i, script := range []string{"sleep 3; exit 1", "echo a; sleep 2; echo b", "trap 'exit 9' TERM; sleep 1000"} {
			r, err := f.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sb.PodSandboxId, Config: &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: "c", Attempt: uint32(i)}, Image: &runtimeapi.ImageSpec{Image: "i:1"}, Command: []string{"sh", "-c", script}}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: r.ContainerId}); err != nil {
				t.Fatal(err)
			}
			if i == 2 {
				if err := f.BeginStop(r.ContainerId, 30*time.Second); err != nil {
					t.Fatal(err)
				}
			}
		}
		for at, ok := f.Next(); ok; at, ok = f.Next() {
			c.now = at
			f.Advance(at)
		}
		for len(events) > 0 {
			ev := <-events
			history = append(history, fmt.Sprint(ev.CreatedAt/1e9, " ", ev.ContainerId[:8], " ", ev.ContainerEventType))
		}
		return history
	}
	first := play()
	if len(first) != 11 || !strings.HasPrefix(first[len(first)-1], "1003 ") || !reflect.DeepEqual(first, play()) {
		t.Errorf("history:\n%s", strings.Join(first, "\n"))
	}
}
