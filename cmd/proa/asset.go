package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"proa.dev/env"
	core "proa.dev/server"
)

// Called by one of these names, proa is that program, as test environments for
// controllers (envtest of controller-runtime) use it: an API server without a
// cluster around it, the etcd that owns its data, and kubectl.
var assets = map[string]func(ctx context.Context, args []string) error{
	"kube-apiserver": runAPIServer,
	"etcd":           runEtcd,
	"kubectl":        func(_ context.Context, args []string) error { return execKubectl(args, os.Environ()) },
}

// runAsset is the main function under another name.
func runAsset(name string, run func(context.Context, []string) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintln(os.Stderr, name+": "+err.Error())
		return 1
	}
	return 0
}

// withParent ends the context when the process that started this one has ended, so
// that a test that is killed leaves nothing behind. A process that init started has
// no parent in this sense.
func withParent(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	parent := unix.Getppid()
	if parent <= 1 {
		return ctx, cancel
	}
	go func() {
		defer cancel()
		fd, err := unix.PidfdOpen(parent, 0)
		if err == nil {
			defer unix.Close(fd)
		}
		for ctx.Err() == nil && unix.Getppid() == parent {
			if fd < 0 || err != nil {
				env.Sleep(ctx, env.SystemClock(), 200*time.Millisecond)
				continue
			}
			// Readable when the parent has ended.
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
		}
	}()
	return ctx, cancel
}

func assetLog(debug bool) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	if debug {
		level.Set(slog.LevelDebug)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	slog.SetDefault(log)
	return log, level
}

// place is what an etcd of proa says about its data at /proa.
type place struct {
	Dir  string `json:"dir"`
	Sync bool   `json:"sync"` // wait for the disk
}

const placePath = "/proa"

// etcdVersion is the version of the protocol that is not spoken: for programs that
// ask for it only.
const etcdVersion = `{"etcdserver":"3.6.0","etcdcluster":"3.6.0","proa":true}`

// runEtcd owns a data directory: it answers /health, and tells API servers of proa
// where the data is. It does not speak etcd's own protocol.
func runEtcd(ctx context.Context, args []string) error {
	t := newFlagTable("etcd", etcdFlags)
	t.set.Usage = func() {
		fmt.Printf("etcd of proa: owns the data of a kube-apiserver of proa. It answers /health and does not\nspeak etcd's protocol.\n\nUsage:\n  etcd [flags]\n\n%s", t.set.FlagUsages())
	}
	if err := t.parse(args); err != nil {
		return err
	}
	if t.is("version") {
		fmt.Printf("etcd Version: none (proa %s)\n", version)
		return nil
	}
	log, _ := assetLog(t.str("log-level") == "debug")
	t.warn(log)
	data := t.str("data-dir")
	if !t.given("data-dir") && t.given("name") {
		data = t.str("name") + ".etcd"
	}
	dir, err := filepath.Abs(filepath.Join(data, "proa"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create data directory: %w", err)
	}
	lock, err := env.SystemFiles().Lock(filepath.Join(filepath.Dir(dir), "proa.lock"))
	if err != nil {
		return fmt.Errorf("own data directory %q: %w; another etcd has it", data, err)
	}
	defer lock.Close()
	where, err := json.Marshal(place{Dir: dir, Sync: !t.is("unsafe-no-fsync")})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	answer := func(path, body string) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, body)
		})
	}
	answer("/health", `{"health":"true","reason":""}`)
	answer("/version", etcdVersion)
	answer(placePath, string(where))
	ctx, cancel := withParent(ctx)
	defer cancel()
	failed := make(chan error, len(t.list("listen-client-urls")))
	var servers []*http.Server
	defer func() {
		for _, s := range servers {
			s.Close()
		}
	}()
	for _, u := range t.list("listen-client-urls") {
		at, err := url.Parse(u)
		if err != nil || at.Host == "" {
			return fmt.Errorf("listen for clients at %q: it is no URL", u)
		}
		if at.Scheme != "http" {
			return fmt.Errorf("listen for clients at %q: only http is served; use http://127.0.0.1:PORT", u)
		}
		l, err := net.Listen("tcp", at.Host)
		if err != nil {
			return fmt.Errorf("listen for clients at %q: %w", u, err)
		}
		s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
		servers = append(servers, s)
		go func() { failed <- s.Serve(l) }()
		log.Info("serving clients", "url", u, "data", dir)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("serve clients: %w", err)
	}
}

// unsynced are files of which nobody waits for the disk.
type unsynced struct{ env.Files }

type unsyncedFile struct{ env.File }

func (unsyncedFile) Sync() error { return nil }

func (u unsynced) SyncDir(string) error { return nil }

func (u unsynced) OpenWrite(name string) (env.File, error) { return wrap(u.Files.OpenWrite(name)) }

func (u unsynced) Create(name string) (env.File, error) { return wrap(u.Files.Create(name)) }

func wrap(f env.File, err error) (env.File, error) {
	if err != nil {
		return nil, err
	}
	return unsyncedFile{f}, nil
}

// askPlace asks the server at an etcd URL whether it is proa's; ok is false when it
// is another.
func askPlace(ctx context.Context, endpoint string) (p place, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(endpoint, "/")+placePath, nil)
	if err != nil {
		return p, false, err
	}
	tr := &http.Transport{DisableKeepAlives: true}
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return p, false, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return p, false, nil
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<16)).Decode(&p); err != nil || p.Dir == "" {
		return p, false, nil
	}
	return p, true, nil
}

// envtestCommand prints where the assets are.
func envtestCommand() *cobra.Command {
	c := &cobra.Command{Use: "envtest", Short: "Be the kube-apiserver and etcd of test environments for controllers",
		Long: `Test environments for controllers (envtest of controller-runtime) start programs
named kube-apiserver, etcd and kubectl. proa is all three when it is called so:

  KUBEBUILDER_ASSETS=$(proa envtest path) go test ./...

The API server is ready in a fraction of a second, runs no controllers unless
--controllers names some, and ends with the test. The Go package proa.dev/envtest
does the same inside the test's own process. See docs/envtest.md.`}
	onlyGroups(c)
	c.AddCommand(&cobra.Command{Use: "path", Short: "Print a directory with kube-apiserver, etcd and kubectl, for KUBEBUILDER_ASSETS", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find the proa executable: %w", err)
			}
			dir, err := linkAssets(filepath.Join(helperDir(), "envtest"), self)
			if err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), dir)
			return nil
		}})
	return c
}

// linkAssets makes a directory below root with the names linked to the executable;
// each executable has its own.
func linkAssets(root, self string) (string, error) {
	dir := filepath.Join(root, core.KubernetesVersion+"-"+shortHash(self))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the directory of assets: %w", err)
	}
	for name := range assets {
		path := filepath.Join(dir, name)
		if to, err := os.Readlink(path); err == nil && to == self {
			continue
		}
		tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
		if err := os.Symlink(self, tmp); err != nil {
			return "", fmt.Errorf("link %s to this executable: %w", name, err)
		}
		if err := os.Rename(tmp, path); err != nil {
			os.Remove(tmp)
			return "", fmt.Errorf("link %s to this executable: %w", name, err)
		}
	}
	return dir, nil
}
