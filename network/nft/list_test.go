package nft_test

import (
	"os/exec"
	"strings"
	"testing"

	"proa.dev/network/netlab"
	"proa.dev/network/nft"
)

// The nft program prints what this package makes; an operator's `nft list ruleset`
// and other programs that call it must not break on it.
func TestProgramUnderstands(t *testing.T) {
	program, err := exec.LookPath("nft")
	if err != nil {
		t.Fatalf("%v; tools/deps.sh test installs it", err)
	}
	a, m := nft.IPv4, nft.Mark
	for name, s := range map[string]*nft.Set{
		"one":       {Key: []nft.Type{a}},
		"pair":      {Key: []nft.Type{a, a}},
		"dest":      {Key: []nft.Type{a, nft.Proto, nft.Port}},
		"port":      {Key: []nft.Type{a, nft.Proto, nft.Port}, Data: []nft.Type{a, nft.Port}},
		"marks":     {Key: []nft.Type{a, nft.Proto, nft.Port}, Data: []nft.Type{m, m, m, m}},
		"group":     {Key: []nft.Type{m, m, m}, Data: []nft.Type{a, nft.Port}},
		"members":   {Key: []nft.Type{a, nft.Port, m, m}},
		"six":       {Key: []nft.Type{nft.IPv6, nft.Proto, nft.Port}, Data: []nft.Type{nft.IPv6, nft.Port}},
		"interval":  {Key: []nft.Type{a, nft.Proto, nft.Port, a}, Interval: true},
		"interval6": {Key: []nft.Type{nft.IPv6, nft.Proto, nft.Port, nft.IPv6}, Interval: true},
		"verdicts":  {Key: []nft.Type{m, m}, Verdict: true},
		"sticky":    {Key: []nft.Type{m, m, a}, Data: []nft.Type{a, nft.Port}, Dynamic: true, Size: 1 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			ns := netlab.New(t, "nft")
			s.Name = name
			var b nft.Batch
			b.AddTable("t")
			b.AddSet("t", s)
			ns.Must(func() error {
				c, err := nft.Open()
				if err != nil {
					return err
				}
				defer c.Close()
				return c.Apply(&b)
			})
			ns.Must(func() error {
				out, err := exec.Command(program, "list", "ruleset").CombinedOutput()
				if err != nil || !strings.Contains(string(out), name) {
					t.Errorf("nft list ruleset: %v: %s", err, out)
				} else {
					t.Logf("%s", out)
				}
				return nil
			})
		})
	}
}
