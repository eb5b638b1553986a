package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
	"proa.dev/store"
	"proa.dev/store/etcd"
)

// etcdBench measures the store on etcd: one member on this machine, which syncs to
// the same disk as the others. Without bin/etcd (`make etcd`) there is nothing to
// measure.
func etcdBench(ctx context.Context, l *lab) ([]Figure, error) {
	binary := filepath.Join("bin", "etcd")
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("find the etcd to measure: %w; `make etcd` builds it", err)
	}
	url, end, err := startEtcd(ctx, binary, filepath.Join(l.tmp, "etcd"))
	if err != nil {
		return nil, err
	}
	defer end()
	runtime.GC()
	before := resident()
	st, err := etcd.Open(ctx, etcd.Config{Endpoints: []string{url}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	runtime.GC()
	idle := Figure{Name: "etcd client, idle", Unit: "MB", How: "resident memory of this process with a client minus without"}
	idle.Samples = append(idle.Samples, float64(resident()-before)/1e6)
	out := []Figure{idle}
	value := make([]byte, 1024)
	for _, writers := range []int{1, 64, 256} {
		f := Figure{Name: fmt.Sprintf("store puts on etcd, %d writers", writers), Unit: "/s", More: true}
		say("store puts on etcd, %d writers", writers)
		watched := startWatch(0)
		n, err := hammer(writers, func(i int64) error {
			_, err := st.Put(ctx, fmt.Sprintf("/registry/configmaps/default/b-%d-%d", writers, i), value, store.PutOptions{Expect: store.Absent})
			return err
		})
		if err != nil {
			return nil, err
		}
		f.Samples = append(f.Samples, float64(n)/watched.stop(&f).Seconds())
		f.How = fmt.Sprintf("keys of their own, 1 KB, each one transaction; one member of etcd beside it; %s µs of this side's CPU per put", number(f.ServerCPU/float64(n)*1e6))
		out = append(out, f)
	}
	c, err := coreOn(ctx, st)
	if err != nil {
		return nil, err
	}
	admin := c.admin()
	if err := makeNamespace(ctx, admin, "default"); err != nil {
		return nil, errors.Join(err, c.end())
	}
	say("creates through the verbs on etcd")
	f := Figure{Name: "creates through the verbs on etcd, 64 writers", Unit: "/s", More: true}
	watched := startWatch(0)
	n, err := hammer(64, func(i int64) error {
		_, err := admin.Create(ctx, kind.ConfigMap, configMap("default", fmt.Sprintf("name-%09d", i)), metav1.CreateOptions{})
		return err
	})
	f.Samples = append(f.Samples, float64(n)/watched.stop(&f).Seconds())
	f.How = fmt.Sprintf("ConfigMap of 1 KB, RBAC, admission and validation on, acknowledged by etcd and in the view; %s µs of this side's CPU per create", number(f.ServerCPU/float64(n)*1e6))
	return append(out, f), errors.Join(err, c.end())
}

// resident memory of this process in bytes.
func resident() int64 {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "VmRSS:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kb << 10
		}
	}
	return 0
}

// startEtcd runs one member until end is called.
func startEtcd(ctx context.Context, binary, dir string) (url string, end func(), err error) {
	var ports [2]int
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", nil, err
		}
		ports[i] = l.Addr().(*net.TCPAddr).Port
		l.Close()
	}
	url, peer := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	cmd := exec.CommandContext(ctx, binary, "--data-dir", dir, "--name", "b", "--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "b="+peer, "--log-level", "error")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return "", nil, fmt.Errorf("start etcd: %w", err)
	}
	return url, func() {
		cmd.Process.Kill()
		cmd.Wait()
	}, nil
}
