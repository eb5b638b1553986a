package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"proa.dev/cluster"
	"proa.dev/cluster/kubeconfig"
	"proa.dev/engine"
	"proa.dev/engine/image"
	"proa.dev/network"
)

func downCommand(o *options) *cobra.Command {
	return &cobra.Command{Use: "down", Short: "Stop the cluster and its containers, keeping its data", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.cluster()
			if err != nil {
				return err
			}
			return down(c.Context(), c.OutOrStdout(), cl)
		}}
}

// down is harmless when nothing runs.
func down(ctx context.Context, out io.Writer, cl cluster.Cluster) error {
	pid := runningPID(cl)
	if pid == 0 {
		left, err := leftovers(ctx, cl)
		if err != nil {
			return err
		}
		if left {
			fmt.Fprintf(out, "cluster %q was not running; what it had left behind is removed, its data is kept in %s\n", cl.Name, cl.DataDir)
			return nil
		}
		fmt.Fprintf(out, "cluster %q is not running\n", cl.Name)
		return nil
	}
	began := time.Now()
	if err := knock(ctx, cl, "POST", "/down", nil, func(l line) error {
		if l.Message != "" {
			fmt.Fprintln(out, "  "+l.Message)
		}
		return nil
	}); err != nil && (!errors.Is(err, errCut) || waitGone(ctx, cl, pid) != nil) {
		// A server that is gone has closed the door behind itself, perhaps before its
		// last word was read.
		return fmt.Errorf("stop cluster %q: %w", cl.Name, err)
	}
	if err := waitGone(ctx, cl, pid); err != nil {
		return err
	}
	fmt.Fprintf(out, "cluster %q is down after %s; its data is kept in %s\n", cl.Name, round(time.Since(began)), cl.DataDir)
	return nil
}

func waitGone(ctx context.Context, cl cluster.Cluster, pid int) error {
	deadline := time.Now().Add(30 * time.Second)
	for runningPID(cl) == pid {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("stop cluster %q: process %d has not ended after 30 s; see %s", cl.Name, pid, cl.Path("proa.log"))
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 10e6}, nil)
	}
	return nil
}

// leftovers removes what a killed server left on the host: containers, links,
// rules, control groups. True when there was something.
func leftovers(ctx context.Context, cl cluster.Cluster) (bool, error) {
	card, err := cl.Load()
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if card.NoNode {
		return false, nil
	}
	if os.Geteuid() != 0 {
		return false, fmt.Errorf("clean up after cluster %q: not root; run it with sudo", cl.Name)
	}
	if isEmpty(cl.Run("engine", "sandbox")) && isEmpty(cl.Path("network")) {
		return false, nil
	}
	unlock, err := lockPID(cl)
	if err != nil {
		return false, err
	}
	defer unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	images, err := image.Open(imageConfig(cl, cluster.Settings{}))
	if err != nil {
		return false, err
	}
	defer images.Close()
	ec, err := engineConfig(cl)
	if err != nil {
		return false, err
	}
	nc, err := networkConfig(cl, card)
	if err != nil {
		return false, err
	}
	net, err := network.New(nc)
	if err != nil {
		return false, err
	}
	defer net.Close()
	ec.Images, ec.Network = images, net
	e, err := engine.New(ec)
	if err != nil {
		return false, err
	}
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	defer func() { cancel(); <-done }()
	if err := e.Purge(ctx); err != nil {
		return false, err
	}
	if err := deleteServiceRules(cl); err != nil {
		return false, err
	}
	if err := unmountBelow(cl.DataDir); err != nil {
		return false, err
	}
	return true, net.Clean(ctx)
}

// isEmpty is true as well of a directory that does not exist.
func isEmpty(dir string) bool {
	list, _ := os.ReadDir(dir)
	return len(list) == 0
}

func deleteCommand(o *options) *cobra.Command {
	return &cobra.Command{Use: "delete", Short: "Stop the cluster and remove everything that was created, data included", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.cluster()
			if err != nil {
				return err
			}
			card, err := cl.Load()
			if errors.Is(err, os.ErrNotExist) {
				os.RemoveAll(cl.RunDir)
				os.Remove(filepath.Dir(cl.RunDir))
				fmt.Fprintf(c.OutOrStdout(), "cluster %q does not exist\n", cl.Name)
				return nil
			}
			if err != nil {
				return err
			}
			if os.Geteuid() != 0 {
				return fmt.Errorf("delete cluster %q: not root; run it with sudo", cl.Name)
			}
			if err := down(c.Context(), c.OutOrStdout(), cl); err != nil {
				return err
			}
			if card.Kubeconfig != "" {
				owner := kubeconfig.Owner{UID: card.KubeconfigUID, GID: card.KubeconfigGID, Home: card.KubeconfigUserHome}
				if err := kubeconfig.Remove(card.Kubeconfig, owner, kubeconfig.ContextName(cl.Name)); err != nil {
					return err
				}
			}
			if err := removeData(cl); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "cluster %q is deleted\n", cl.Name)
			return nil
		}}
}

// ours are the names that a cluster makes in its data directory: someone who chose
// a directory with other things in it keeps those.
var ours = []string{"cluster.json", "pki", "store", "images", "engine", "pods", "plugins", "plugins_registry", "logs", "network", "bin", "seccomp", "proa.log", "admin.kubeconfig", "admin.kubeconfig.proa-backup"}

func removeData(cl cluster.Cluster) error {
	for _, dir := range []string{cl.DataDir, cl.RunDir} {
		if err := unmountBelow(dir); err != nil {
			return err
		}
	}
	for _, name := range ours {
		if err := os.RemoveAll(cl.Path(name)); err != nil {
			return fmt.Errorf("remove %q: %w", cl.Path(name), err)
		}
	}
	os.Remove(cl.DataDir) // if nothing else is in it
	if err := os.RemoveAll(cl.RunDir); err != nil {
		return fmt.Errorf("remove %q: %w", cl.RunDir, err)
	}
	if len(cluster.All()) == 0 {
		os.RemoveAll(helperDir())
	}
	os.Remove(filepath.Dir(cl.RunDir))
	os.Remove(filepath.Dir(cl.DataDir))
	return nil
}

// status is what `proa status` shows.
type status struct {
	Name    string `json:"name"`
	State   string `json:"state"` // running, stopped, absent
	PID     int    `json:"pid,omitempty"`
	API     string `json:"api,omitempty"`
	Node    string `json:"node,omitempty"`
	Pods    string `json:"podNetwork,omitempty"`
	Service string `json:"serviceNetwork,omitempty"`
	DataDir string `json:"dataDir"`
	Since   string `json:"since,omitempty"`
}

func statusOf(cl cluster.Cluster) (status, error) {
	st := status{Name: cl.Name, State: "absent", DataDir: cl.DataDir}
	card, err := cl.Load()
	if errors.Is(err, os.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	st.State, st.Node, st.Pods, st.Service = "stopped", card.Node, card.PodNetwork, card.ServiceNetwork
	if card.NoNode {
		st.Node = ""
	}
	if pid := runningPID(cl); pid != 0 {
		st.State, st.PID, st.API = "running", pid, fmt.Sprintf("https://127.0.0.1:%d", card.APIPort)
		if fi, err := os.Stat(cl.Run("proa.pid")); err == nil {
			st.Since = fi.ModTime().UTC().Format(time.RFC3339)
		}
	}
	return st, nil
}

func statusCommand(o *options) *cobra.Command {
	var output string
	var all bool
	c := &cobra.Command{Use: "status", Short: "Show whether the cluster runs and where", Args: cobra.NoArgs,
		Long: "Shows whether the cluster runs and where. Exit code 0 when it runs, 1 when not.",
		RunE: func(c *cobra.Command, _ []string) error {
			list := cluster.All()
			if !all {
				cl, err := o.cluster()
				if err != nil {
					return err
				}
				list = []cluster.Cluster{cl}
			}
			var states []status
			running := false
			for _, cl := range list {
				st, err := statusOf(cl)
				if err != nil {
					return err
				}
				running = running || st.State == "running"
				states = append(states, st)
			}
			if err := printStatus(c.OutOrStdout(), states, output); err != nil {
				return err
			}
			if !running && !all {
				return exitCode(1)
			}
			return nil
		}}
	c.Flags().StringVarP(&output, "output", "o", "", "json, or nothing for a table")
	c.Flags().BoolVar(&all, "all", false, "every cluster on this machine")
	return c
}

func printStatus(out io.Writer, states []status, format string) error {
	switch format {
	case "json":
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		if len(states) == 1 {
			return enc.Encode(states[0])
		}
		return enc.Encode(states)
	case "":
	default:
		return fmt.Errorf("output format %q: must be json, or left out for a table", format)
	}
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATE\tAPI\tNODE\tPOD NETWORK\tSERVICE NETWORK\tDATA")
	dash := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	for _, s := range states {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, s.State, dash(s.API), dash(s.Node), dash(s.Pods), dash(s.Service), s.DataDir)
	}
	return w.Flush()
}

func imageCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "Bring container images in, list them, remove them"}
	onlyGroups(c)
	c.AddCommand(
		&cobra.Command{Use: "import FILE...|-", Short: "Import docker or OCI archives, also from standard input",
			Example: "  proa image import app.tar\n  docker save app:1 | proa image import -", Args: cobra.MinimumNArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				cl, err := o.cluster()
				if err != nil {
					return err
				}
				for _, a := range args {
					if err := importImage(c.Context(), c.OutOrStdout(), cl, a, c.InOrStdin()); err != nil {
						return err
					}
				}
				return nil
			}},
		&cobra.Command{Use: "pull REF", Short: "Pull an image from its registry", Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				cl, err := o.cluster()
				if err != nil {
					return err
				}
				return transfer(c.Context(), c.OutOrStdout(), cl, "/images/pull?ref="+query(args[0]), nil)
			}},
		imageList(o),
		&cobra.Command{Use: "rm REF...", Short: "Remove images by name or ID", Args: cobra.MinimumNArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				cl, err := o.cluster()
				if err != nil {
					return err
				}
				for _, a := range args {
					if err := knock(c.Context(), cl, "DELETE", "/images?ref="+query(a), nil, func(line) error { return nil }); err != nil {
						return err
					}
					fmt.Fprintln(c.OutOrStdout(), "removed", a)
				}
				return nil
			}})
	return c
}

func importImage(ctx context.Context, out io.Writer, cl cluster.Cluster, path string, stdin io.Reader) error {
	if path == "-" {
		return transfer(ctx, out, cl, "/images/import", stdin)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	defer f.Close()
	return transfer(ctx, out, cl, "/images/import", f)
}

// transfer shows each layer once it is done, and the images at the end.
func transfer(ctx context.Context, out io.Writer, cl cluster.Cluster, path string, body io.Reader) error {
	shown := 0
	return knock(ctx, cl, "POST", path, body, func(l line) error {
		if p := l.Progress; p != nil && p.LayersDone > shown {
			shown = p.LayersDone
			fmt.Fprintf(out, "  layer %d of %d\n", p.LayersDone, p.Layers)
		}
		for _, img := range l.Images {
			name := img.ID
			if len(img.Names) > 0 {
				name = strings.Join(img.Names, ", ")
			}
			fmt.Fprintf(out, "%s (%s)\n", name, size(img.SizeBytes))
		}
		return nil
	})
}

func imageList(o *options) *cobra.Command {
	var output string
	c := &cobra.Command{Use: "ls", Short: "List images", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.cluster()
			if err != nil {
				return err
			}
			var images []image.Image
			if err := knock(c.Context(), cl, "GET", "/images", nil, func(l line) error {
				images = append(images, l.Images...)
				return nil
			}); err != nil {
				return err
			}
			out := c.OutOrStdout()
			switch output {
			case "json":
				enc := json.NewEncoder(out)
				enc.SetIndent("", "  ")
				return enc.Encode(images)
			case "":
			default:
				return fmt.Errorf("output format %q: must be json, or left out for a table", output)
			}
			w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
			fmt.Fprintln(w, "NAME\tID\tSIZE\tSOURCE")
			for _, img := range images {
				names := slices.Clone(img.Names)
				if len(names) == 0 {
					names = []string{"<none>"}
				}
				for _, n := range names {
					fmt.Fprintf(w, "%s\t%.12s\t%s\t%v\n", n, strings.TrimPrefix(img.ID, "sha256:"), size(img.SizeBytes), img.Source)
				}
			}
			return w.Flush()
		}}
	c.Flags().StringVarP(&output, "output", "o", "", "json, or nothing for a table")
	return c
}

func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f kB", float64(n)/(1<<10))
}
