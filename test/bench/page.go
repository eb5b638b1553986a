package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// results of all measurements, the newest of each.
type results struct {
	Benches map[string]result `json:"benches"`
}

type result struct {
	At      time.Time `json:"at"`
	Load    string    `json:"load"` // the machine's load average at the end
	Figures []Figure  `json:"figures"`
}

// isBusy: over the last quarter of an hour more wanted to run than cores and this
// measurement explain.
func (r result) isBusy() bool {
	f := strings.Fields(r.Load)
	if len(f) != 3 {
		return false
	}
	n, err := strconv.ParseFloat(f[2], 64)
	return err == nil && n > 2.5*float64(runtime.NumCPU())
}

func readState(path string) (*results, error) {
	r := &results{Benches: map[string]result{}}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, r)
	}
	if err != nil {
		return nil, fmt.Errorf("read earlier results %q: %w; remove the file to start anew", path, err)
	}
	return r, nil
}

func (r *results) put(name string, figures []Figure) {
	r.Benches[name] = result{At: time.Now().UTC().Truncate(time.Second), Load: loadAverage(), Figures: figures}
}

func (r *results) write(path string) error {
	data, err := json.MarshalIndent(r, "", " ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, data, 0o644)
	}
	if err != nil {
		return fmt.Errorf("keep results: %w", err)
	}
	return nil
}

func loadAverage() string {
	data, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(data))
	if len(f) < 3 {
		return "?"
	}
	return strings.Join(f[:3], " ")
}

// show prints one measurement for a person.
func show(w io.Writer, b bench, figures []Figure, took time.Duration) {
	fmt.Fprintf(w, "\n%s (%s, load %s)\n", b.title, took.Round(time.Second), loadAverage())
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "  figure\tmeasured (min–max)\tbudget\tgoal\tverdict\tCPU server / load")
	for _, f := range figures {
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%s\n", f.Name, f.measured(), f.limit(f.Budget), f.limit(f.Goal), strings.ReplaceAll(f.verdict(), "*", ""), f.cpu())
	}
	t.Flush()
}

// limits is written by hand: what bounds each figure, and how others compare.
//
//go:embed limits.md
var limits string

func writePage(path string, r *results, o options) error {
	var b strings.Builder
	b.WriteString("# Benchmarks\n\nWritten by `make bench`; the budgets are those of [the design](ARCHITECTURE.md). ")
	b.WriteString("A figure is the median of its samples, with the least and the greatest. Server and load share one machine; \"CPU\" is seconds of the server and of the load generator while the clock ran.\n\n")
	fmt.Fprintf(&b, "Machine: %s. Binary: %s.\n", machineLine(), binaryLine(o.proa))
	for _, x := range benches {
		got, ok := r.Benches[x.name]
		if !ok {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\nMeasured %s, load average %s.", x.title, got.At.Format("2006-01-02 15:04 MST"), got.Load)
		if got.isBusy() {
			b.WriteString(" **The machine was busy with other work**: rates are lower and times longer than on a quiet one; CPU per operation says more.")
		}
		b.WriteString("\n\n")
		b.WriteString("| figure | measured (min–max) | budget now | goal | | CPU: server / load | how |\n|---|---|---|---|---|---|---|\n")
		for _, f := range got.Figures {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", f.Name, f.measured(), f.limit(f.Budget), f.limit(f.Goal), f.verdict(), f.cpu(), f.How)
		}
	}
	var missed []string
	for _, x := range benches {
		for _, f := range r.Benches[x.name].Figures {
			if strings.Contains(f.verdict(), "missed") {
				missed = append(missed, fmt.Sprintf("- %s: %s, budget %s", f.Name, f.measured(), f.limit(f.Budget)))
			}
		}
	}
	b.WriteString("\n## Missed budgets\n\n")
	if slices.Sort(missed); len(missed) == 0 {
		b.WriteString("None.\n")
	} else {
		b.WriteString(strings.Join(missed, "\n") + "\n")
	}
	b.WriteString("\n" + limits)
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}

func machineLine() string {
	var u unix.Utsname
	var info unix.Sysinfo_t
	unix.Uname(&u)
	unix.Sysinfo(&info)
	model := "unknown processor"
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			model = strings.TrimSpace(v)
			break
		}
	}
	return fmt.Sprintf("%d cores (%s), %d GB, Linux %s, %s", runtime.NumCPU(), model, (info.Totalram*uint64(info.Unit)+1<<29)>>30, unix.ByteSliceToString(u.Release[:]), runtime.Version())
}

func binaryLine(path string) string {
	st, err := os.Stat(path)
	if err != nil {
		return "unknown"
	}
	out, err := exec.Command(path, "version").Output()
	if err != nil {
		return "unknown"
	}
	return fmt.Sprintf("%.1f MB, %s", float64(st.Size())/1e6, strings.Join(strings.Fields(string(out)), " "))
}
