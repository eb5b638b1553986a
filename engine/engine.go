// Package engine runs containers: an implementation of the Container Runtime
// Interface (k8s.io/cri-api, runtime/v1) on libcontainer, used as Go calls in
// process and served on a socket for others. It knows pods only as CRI
// sandboxes, and no Kubernetes API kinds at all.
//
//	            ┌ RunDir/sandbox/<id>/ ns/{net,ipc,uts} shm hostname resolv.conf monitor.sock
//	engine ─────┤
//	   │        └ DataDir/{sandbox/<id>.json, container/<id>/{record.json,run.json,exit,upper,work}}
//	   │ seqpacket socket, one per sandbox
//	   ▼
//	proa-monitor (one per pod, outlives us) ──fork──▶ proa-runner ──▶ container
//
// # States
//
//	sandbox    creating ─▶ READY ─▶ NOTREADY ─▶ removed
//	container  CREATED ─▶ RUNNING ─▶ EXITED ─▶ removed
//	                └──────(start failed: exit code 128, StartError)──▶ EXITED
//
// A sandbox is NOTREADY once StopPodSandbox has begun, or when its monitor is
// found dead; its containers are then killed and EXITED. Nothing ever goes back.
// Reasons of EXITED: Completed (code 0), Error, OOMKilled, StartError, Unknown
// (code 255: nobody saw the end, such as after a power cut).
//
// # Restart
//
// Run adopts what an earlier engine on the same directories left: it connects to
// the monitors that live, reads the exit files of containers that ended
// meanwhile, and clears away what was only half made. Other calls wait until
// that is done.
//
// # Files and limits
//
// RunDir is made a private mount, so that what is mounted below it never spreads.
// Container root file systems are mounted in the container's own mount namespace
// only. Control groups are CgroupParent, then the sandbox's cgroup_parent, then
// the container's ID; see package cgroup for what a relative CgroupParent means.
// Without CAP_SYS_RESOURCE, oom_score_adj is never set below this process's own
// and rlimits stay as they are.
//
// # Errors
//
// Errors carry gRPC codes (google.golang.org/grpc/status): NotFound for an
// unknown ID, AlreadyExists for a metadata that is in use, FailedPrecondition
// for a wrong state, InvalidArgument, Unimplemented (user namespaces, checkpoints).
// Stop and Remove of something unknown succeed.
package engine

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"proa.dev/engine/cgroup"
	"proa.dev/engine/image"
	"proa.dev/env"
)

// ImageStore is what the engine asks of the store of images; *image.Store has it.
type ImageStore interface {
	Get(ref string) (image.Image, bool)
	List() []image.Image
	// Lowers are overlayfs lower directories, topmost first.
	Lowers(image.Image) ([]string, error)
	Pull(ctx context.Context, ref string, auth *image.Auth, progress func(image.Progress)) (image.Image, error)
	Remove(ref string) error
	HoldFor(owner, imageID string) error
	ReleaseFor(owner string) error
	Owners() []string
	Usage() (bytes, inodes int64)
}

// Network connects sandboxes that have a network namespace of their own. Both
// calls may be repeated.
type Network interface {
	Setup(ctx context.Context, sandboxID, netnsPath string, cfg *runtimeapi.PodSandboxConfig) (ips []string, err error)
	Teardown(ctx context.Context, sandboxID, netnsPath string) error
}

// Config is what an Engine needs. DataDir, RunDir, MonitorPath, RunnerPath,
// Images are required; a nil Network gives sandboxes a loopback device only.
type Config struct {
	DataDir      string // kept across reboots
	RunDir       string // need not be
	ImageDir     string // for ImageFsInfo; "" means DataDir
	MonitorPath  string
	RunnerPath   string
	CgroupParent string // default "proa"
	SeccompDir   string // where Localhost profiles lie that are named by a relative path
	Images       ImageStore
	Network      Network
	Clock        env.Clock // default env.SystemClock()
	Rand         env.Rand  // default env.SystemRand()
	Log          *slog.Logger
	Version      string
}

// Engine is the runtime. All methods may be called at the same time.
type Engine struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	cfg    Config
	clock  env.Clock
	log    *slog.Logger
	limits hostLimits
	events *broadcaster

	ready   chan struct{} // closed when adoption is done
	started sync.Once
	runCtx  context.Context
	group   sync.WaitGroup // goroutines of monitors

	mu         sync.Mutex
	sandboxes  map[string]*sandbox
	containers map[string]*container
	names      map[string]string // metadata in use → id
	cpuSamples map[string]cpuSample
	closed     bool
}

// New checks cfg and returns an engine that does nothing yet: call Run.
func New(cfg Config) (*Engine, error) {
	var errs []error
	for _, f := range []struct{ name, value string }{
		{"DataDir", cfg.DataDir}, {"RunDir", cfg.RunDir}, {"MonitorPath", cfg.MonitorPath}, {"RunnerPath", cfg.RunnerPath},
	} {
		if !filepath.IsAbs(f.value) {
			errs = append(errs, fmt.Errorf("configure engine: %s %q is not an absolute path", f.name, f.value))
		}
	}
	if cfg.Images == nil {
		errs = append(errs, errors.New("configure engine: no image store"))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = "proa"
	}
	if cfg.Clock == nil {
		cfg.Clock = env.SystemClock()
	}
	if cfg.Rand == nil {
		cfg.Rand = env.SystemRand()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.ImageDir == "" {
		cfg.ImageDir = cfg.DataDir
	}
	return &Engine{
		cfg: cfg, clock: cfg.Clock, log: cfg.Log,
		events: newBroadcaster(), ready: make(chan struct{}),
		sandboxes: map[string]*sandbox{}, containers: map[string]*container{},
		names: map[string]string{}, cpuSamples: map[string]cpuSample{},
	}, nil
}

// Run adopts what is there, then follows the monitors until ctx ends. The
// containers go on after it. It can be called once.
func (e *Engine) Run(ctx context.Context) error {
	err := errors.New("run engine: it runs already")
	e.started.Do(func() { err = e.run(ctx) })
	return err
}

func (e *Engine) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e.runCtx = ctx
	for _, d := range []string{e.sandboxDir(), e.containerDir(), e.cfg.RunDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("prepare engine's directories: %w", err)
		}
	}
	if err := makePrivateMount(e.cfg.RunDir); err != nil {
		return fmt.Errorf("make %q a private mount: %w; the engine needs CAP_SYS_ADMIN", e.cfg.RunDir, err)
	}
	if err := os.MkdirAll(e.rootfs(), 0o700); err != nil {
		return fmt.Errorf("prepare engine's directories: %w", err)
	}
	tree, err := cgroup.Detect("self")
	if err != nil {
		return err
	}
	if e.limits, err = detectLimits(); err != nil {
		return fmt.Errorf("read this process's limits: %w", err)
	}
	if err := e.leaveCgroup(tree); err != nil {
		return err
	}
	e.adopt(ctx)
	close(e.ready)

	<-ctx.Done()
	e.mu.Lock()
	e.closed = true
	for _, s := range e.sandboxes {
		if s.monitor != nil {
			s.monitor.close()
		}
	}
	e.mu.Unlock()
	e.group.Wait()
	e.events.close()
	return nil
}

// Ready is closed when adoption is done and calls are answered.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// wait holds a call up until adoption is done.
func (e *Engine) wait(ctx context.Context) error {
	select {
	case <-e.ready:
		return nil
	default:
	}
	select {
	case <-e.ready:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// Directories. The root file system of every container is mounted at the same
// place, each in its own mount namespace.
func (e *Engine) rootfs() string       { return filepath.Join(e.cfg.RunDir, "rootfs") }
func (e *Engine) sandboxDir() string   { return filepath.Join(e.cfg.DataDir, "sandbox") }
func (e *Engine) containerDir() string { return filepath.Join(e.cfg.DataDir, "container") }
func (e *Engine) runDir(sandboxID string) string {
	return filepath.Join(e.cfg.RunDir, "sandbox", sandboxID)
}
func (e *Engine) bundleDir(containerID string) string {
	return filepath.Join(e.containerDir(), containerID)
}

func (e *Engine) newID() string {
	var b [32]byte
	e.cfg.Rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func (e *Engine) now() int64 { return e.clock.Now().UnixNano() }

// sandbox finds by ID or by a prefix that fits one only. e.mu is held.
func (e *Engine) sandbox(id string) (*sandbox, error) {
	if s := e.sandboxes[id]; s != nil && s.state != creating {
		return s, nil
	}
	var found *sandbox
	for k, s := range e.sandboxes {
		if id != "" && strings.HasPrefix(k, id) && s.state != creating {
			if found != nil {
				return nil, status.Errorf(codes.NotFound, "find sandbox %q: the ID prefix fits more than one", id)
			}
			found = s
		}
	}
	if found == nil {
		return nil, status.Errorf(codes.NotFound, "find sandbox %q: not found", id)
	}
	return found, nil
}

// container finds by ID or by a prefix that fits one only. e.mu is held.
func (e *Engine) container(id string) (*container, error) {
	if c := e.containers[id]; c != nil {
		return c, nil
	}
	var found *container
	for k, c := range e.containers {
		if id != "" && strings.HasPrefix(k, id) {
			if found != nil {
				return nil, status.Errorf(codes.NotFound, "find container %q: the ID prefix fits more than one", id)
			}
			found = c
		}
	}
	if found == nil {
		return nil, status.Errorf(codes.NotFound, "find container %q: not found", id)
	}
	return found, nil
}
