package enginetest

import (
	"context"
	"testing"
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
