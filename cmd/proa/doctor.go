package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"proa.dev/cluster"
	"proa.dev/cluster/doctor"
	"proa.dev/network"
)

func doctorCommand(o *options) *cobra.Command {
	var output string
	c := &cobra.Command{Use: "doctor", Short: "Probe this host by doing what a cluster does, and say how to fix what is missing", Args: cobra.NoArgs,
		Long: `Makes namespaces, control groups, an overlay mount and an nftables table, times
the disk, and removes all of it again. Exit code 1 when something keeps a cluster
from running; warnings do not.`,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.cluster()
			if err != nil {
				return err
			}
			cfg := doctor.Config{DataDir: cl.DataDir}
			if card, err := cl.Load(); err == nil && !card.NoNode {
				cfg.ForeignDrops = func() ([]string, error) { return obstacles(cl, card) }
			}
			if runningPID(cl) == 0 {
				cfg.Ports = []int{6443, 10250}
				if card, err := cl.Load(); err == nil {
					cfg.Ports = []int{card.APIPort, card.KubeletPort}
				}
			}
			list := doctor.Examine(cfg)
			out := c.OutOrStdout()
			switch output {
			case "json":
				enc := json.NewEncoder(out)
				enc.SetIndent("", "  ")
				if err := enc.Encode(list); err != nil {
					return err
				}
			case "":
				w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
				for _, f := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\n", f.Level, f.Check, f.Detail)
					if f.Fix != "" {
						fmt.Fprintf(w, "\t\t→ %s\n", f.Fix)
					}
				}
				if err := w.Flush(); err != nil {
					return err
				}
			default:
				return fmt.Errorf("output format %q: must be json, or left out for a table", output)
			}
			if doctor.Worst(list) == doctor.Fail {
				return exitCode(1)
			}
			return nil
		}}
	c.Flags().StringVarP(&output, "output", "o", "", "json, or nothing for a table")
	return c
}

// obstacles names what others' rules do to forwarded traffic.
func obstacles(cl cluster.Cluster, card cluster.Card) ([]string, error) {
	nc, err := networkConfig(cl, card)
	if err != nil {
		return nil, err
	}
	n, err := network.New(nc)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	list, err := n.Obstacles()
	var out []string
	for _, o := range list {
		out = append(out, o.What+" ("+o.Why+"; "+o.Fix+")")
	}
	return out, err
}
