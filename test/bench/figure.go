package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Figure is one measured quantity with its budget.
type Figure struct {
	Bench string `json:"bench"`
	Name  string `json:"name"`
	// Unit of Samples, Budget and Goal: "s", "ms", "µs", "MB", "%", "/s", "/GB".
	Unit    string    `json:"unit"`
	Samples []float64 `json:"samples"`
	// Budget and Goal of the design; 0: it has none for this figure.
	Budget float64 `json:"budget,omitempty"`
	Goal   float64 `json:"goal,omitempty"`
	// More is better; otherwise less is.
	More bool `json:"more,omitempty"`
	// How: durability, encoding, object size, number of runs: whatever someone
	// must know to repeat it.
	How string `json:"how"`
	// ServerCPU and LoadCPU in seconds; 0: not measured or one process.
	ServerCPU float64 `json:"serverCPU,omitempty"`
	LoadCPU   float64 `json:"loadCPU,omitempty"`
	// Seconds of wall clock that the CPU figures cover.
	Wall float64 `json:"wall,omitempty"`
}

func (f Figure) median() float64 { return percentile(f.Samples, 50) }

// percentile by nearest rank; p of 50 averages the two middle ones.
func percentile(samples []float64, p float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	s := slices.Clone(samples)
	slices.Sort(s)
	if n := len(s); p == 50 {
		return (s[(n-1)/2] + s[n/2]) / 2
	}
	i := int(math.Ceil(p/100*float64(len(s)))) - 1
	return s[min(max(i, 0), len(s)-1)]
}

// verdict says whether the budget is met and by what factor.
func (f Figure) verdict() string {
	if f.Budget == 0 {
		return "–"
	}
	ratio := f.Budget / f.median()
	if f.More {
		ratio = 1 / ratio
	}
	if ratio >= 1 {
		return "met, " + number(ratio) + "× better"
	}
	return "**missed**, " + number(1/ratio) + "× worse"
}

// measured is "median (min–max)" with the unit.
func (f Figure) measured() string {
	m := number(f.median()) + unit(f.Unit)
	if len(f.Samples) < 2 {
		return m
	}
	return fmt.Sprintf("%s (%s–%s)", m, number(slices.Min(f.Samples)), number(slices.Max(f.Samples)))
}

func (f Figure) limit(v float64) string {
	if v == 0 {
		return "–"
	}
	return number(v) + unit(f.Unit)
}

func unit(u string) string {
	if u == "/s" || u == "/GB" {
		return u
	}
	return " " + u
}

func (f Figure) cpu() string {
	switch {
	case f.ServerCPU == 0 && f.LoadCPU == 0:
		return "–"
	case f.LoadCPU == 0:
		return fmt.Sprintf("%.1f s in %.1f s", f.ServerCPU, f.Wall)
	}
	return fmt.Sprintf("%.1f s / %.1f s in %.1f s", f.ServerCPU, f.LoadCPU, f.Wall)
}

// number shows three significant digits, with a thin mark between thousands.
func number(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "?"
	}
	switch a := math.Abs(v); {
	case a >= 1000:
		n := int64(math.Round(v))
		if a >= 100_000 {
			n = int64(math.Round(v/1000)) * 1000
		} else if a >= 10_000 {
			n = int64(math.Round(v/100)) * 100
		}
		s := fmt.Sprint(n)
		for i := len(s) - 3; i > 0; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		return s
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.3g", v)
	case a == 0:
		return "0"
	default:
		return fmt.Sprintf("%.2g", v)
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func millis(list []time.Duration) []float64 {
	out := make([]float64, len(list))
	for i, d := range list {
		out[i] = ms(d)
	}
	return out
}

// quantiles gives the figures p50 and p99 of one list of latencies.
func quantiles(f Figure, latencies []time.Duration, p99Budget float64) []Figure {
	s := millis(latencies)
	lo, hi := f, f
	lo.Name, lo.Unit, lo.Samples = f.Name+", p50", "ms", s
	hi.Name, hi.Unit, hi.Samples = f.Name+", p99", "ms", []float64{percentile(s, 99)}
	hi.Budget, hi.Goal = p99Budget, 0
	hi.ServerCPU, hi.LoadCPU, hi.Wall = 0, 0, 0
	return []Figure{lo, hi}
}
