// Command bench measures what the design has budgets for, and prints each figure
// beside its budget:
//
//	go run ./test/bench -proa bin/proa -out docs/BENCHMARKS.md
//	go run ./test/bench -proa bin/proa -only start,pods
//
// It needs root. Clusters are real ones of the given proa, named bench-… with data
// below -dir and a kubeconfig of their own, and are deleted afterwards; load goes over
// loopback only. Every measurement runs in a process of its own, so that one's
// garbage is not another's CPU. Results are kept in -state, so that -only renews
// some and the page always shows all.
//
// Machines are noisy: a figure is the median of its samples with the least and the
// greatest; nothing here passes or fails.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bench is one measurement: a few figures that share a set-up.
type bench struct {
	name  string
	title string
	// netns: its process gets a network namespace of its own.
	netns bool
	run   func(ctx context.Context, l *lab) ([]Figure, error)
}

// benches in the order of the page.
var benches = []bench{
	{name: "start", title: "Start", run: startBench},
	{name: "idle", title: "Idle", run: idleBench},
	{name: "pods", title: "Pods", run: podsBench},
	{name: "creates", title: "Creates over HTTPS", run: createsBench},
	{name: "requests", title: "Requests over HTTPS", run: requestsBench},
	{name: "inprocess", title: "Writes in process", run: inProcessBench},
	{name: "etcd", title: "Writes on etcd", run: etcdBench},
	{name: "watch", title: "Watch", run: watchBench},
	{name: "list", title: "Lists and memory at many pods", run: listBench},
	{name: "custom", title: "Many custom kinds", run: customBench},
	{name: "envtest", title: "Control planes in Go tests", run: envtestBench},
	{name: "sched", title: "Scheduling", run: schedBench},
	{name: "endpoint", title: "Services in the kernel", netns: true, run: endpointBench},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	proa, dir, out, state, only, child, cpuprofile string
	runs, pods                                     int
	watched                                        time.Duration
}

func run(ctx context.Context) error {
	var o options
	flag.StringVar(&o.proa, "proa", "bin/proa", "the binary to measure")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "directory on a real disk for data")
	flag.StringVar(&o.out, "out", "", "page to write (Markdown)")
	flag.StringVar(&o.state, "state", "bin/bench.json", "where results are kept between runs")
	flag.StringVar(&o.only, "only", "", "names of measurements, with commas between")
	flag.IntVar(&o.runs, "runs", 5, "runs of what is short")
	flag.IntVar(&o.pods, "pods", 100_000, "how many pods to list; less is for trying things out")
	flag.DurationVar(&o.watched, "idle", time.Minute, "how long an idle cluster is watched")
	flag.StringVar(&o.cpuprofile, "cpuprofile", "", "write CPU profiles: of the measurement to this file, of a server to files with more in their names")
	flag.StringVar(&o.child, "child", "", "")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("arguments %q: not understood; see -help", flag.Args())
	}
	if os.Geteuid() != 0 {
		return errors.New("not root; clusters and namespaces need it: run it with sudo")
	}
	if o.child != "" {
		return child(ctx, o)
	}
	if _, err := os.Stat(o.proa); err != nil {
		return fmt.Errorf("find proa: %w; build it with `make build`", err)
	}
	chosen, err := choose(o.only)
	if err != nil {
		return err
	}
	results, err := readState(o.state)
	if err != nil {
		return err
	}
	var errs []error
	for _, b := range chosen {
		began := time.Now()
		figures, err := spawn(ctx, b, o)
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", b.name, err))
			fmt.Fprintf(os.Stderr, "bench %s: %v\n", b.name, err)
			continue
		}
		show(os.Stdout, b, figures, time.Since(began))
		results.put(b.name, figures)
		if err := results.write(o.state); err != nil {
			return err
		}
	}
	if o.out != "" {
		if err := writePage(o.out, results, o); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func choose(only string) ([]bench, error) {
	if only == "" {
		return benches, nil
	}
	var out []bench
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(benches, func(b bench) bool { return b.name == name })
		if i < 0 {
			var names []string
			for _, b := range benches {
				names = append(names, b.name)
			}
			return nil, fmt.Errorf("measurement %q: there is none; these are: %s", name, strings.Join(names, ", "))
		}
		out = append(out, benches[i])
	}
	return out, nil
}

// spawn measures in a process of its own and reads its figures from standard
// output.
func spawn(ctx context.Context, b bench, o options) ([]Figure, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	proa, err := filepath.Abs(o.proa)
	if err != nil {
		return nil, err
	}
	if o.cpuprofile != "" {
		if o.cpuprofile, err = filepath.Abs(o.cpuprofile); err != nil {
			return nil, err
		}
	}
	cmd := exec.CommandContext(ctx, self, "-child", b.name, "-proa", proa, "-dir", o.dir, fmt.Sprintf("-runs=%d", o.runs), fmt.Sprintf("-pods=%d", o.pods),
		"-idle", o.watched.String(), "-cpuprofile", o.cpuprofile)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it deletes its cluster
	cmd.WaitDelay = time.Minute
	cmd.Stderr = os.Stderr
	var out bytes.Buffer
	cmd.Stdout = &out
	if b.netns {
		cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	}
	if err := cmd.Run(); err != nil {
		return nil, err
	}
	var figures []Figure
	if err := json.Unmarshal(out.Bytes(), &figures); err != nil {
		return nil, fmt.Errorf("read figures: %w", err)
	}
	return figures, nil
}

func child(ctx context.Context, o options) error {
	list, err := choose(o.child)
	if err != nil {
		return err
	}
	l, err := newLab(o)
	if err != nil {
		return err
	}
	figures, err := list[0].run(ctx, l)
	if e := l.close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	for i := range figures {
		figures[i].Bench = o.child
	}
	return json.NewEncoder(os.Stdout).Encode(figures)
}
