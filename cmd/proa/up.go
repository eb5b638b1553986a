package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"proa.dev/cluster"
	"proa.dev/cluster/kubeconfig"
)

// step is one line of progress that the server tells its parent on file
// descriptor 3, as JSON.
type step struct {
	Name  string        `json:"name,omitempty"`
	Took  time.Duration `json:"took,omitempty"`
	Done  bool          `json:"done,omitempty"` // everything is ready
	Error string        `json:"error,omitempty"`
}

const progressFD = 3

func upCommand(o *options) *cobra.Command {
	var s cluster.Settings
	var e cluster.Etcd
	var config, kubeconfigPath string
	var foreground, child bool
	var extra []string
	c := &cobra.Command{
		Use: "up", Short: "Start the cluster (harmless when it runs already)",
		Long: `Starts the cluster in the background and returns when the API and the node are
ready. Shows each step with its time, merges the context proa (or proa-NAME) into
your kubeconfig, and says what to try next.

Containers that ran when proa was stopped by force are adopted, not restarted.

The file of --config is YAML with the same settings as the flags:
  podNetwork: 10.244.0.0/16
  maxPods: 250
  mirrors:
    docker.io: [{endpoint: "http://127.0.0.1:5000", insecure: true}]
  etcd: {servers: ["https://10.0.0.1:2379"], caFile: /etc/etcd/ca.crt, certFile: /etc/etcd/client.crt, keyFile: /etc/etcd/client.key}
  api:
    auditPolicyFile: audit.yaml           # audit.k8s.io/v1 Policy
    auditLogFile: /var/log/proa-audit.log
    auditWebhookFile: audit.kubeconfig
    encryptionFile: encryption.yaml       # EncryptionConfiguration
    authenticationFile: authn.yaml        # AuthenticationConfiguration
    authorizationFile: authz.yaml         # AuthorizationConfiguration
    admissionFile: admission.yaml         # AdmissionConfiguration
    enableAdmission: [AlwaysPullImages]
    disableAdmission: [ResourceQuota]
    controllers: ["*", "-ttl-after-finished"]

There are no feature gates: what is stable is on, alpha and beta are not there.
What is below api is remembered once the server has started with it: an up
without --config keeps it, flags change it one by one, and the api section of a
file replaces all of it (an empty one, too). A cluster that runs does not take
it over: stop it first (proa down).`,
		Example: "  proa up\n  proa up --name test --no-node\n  proa up --foreground        # for systemd and containers",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return errors.New("start the cluster: not root; containers, networks and cgroups need it: run `sudo proa up`")
			}
			if len(e.Servers) > 0 || e.Prefix+e.CAFile+e.CertFile+e.KeyFile != "" {
				s.Etcd = &e
			}
			remembered, err := o.remembered(config)
			if err != nil {
				return err
			}
			set, err := settings(config, s, remembered)
			if err != nil {
				return err
			}
			set.ExtraNames = append(set.ExtraNames, extra...)
			if o.dataDir == "" {
				o.dataDir = set.DataDir
			}
			if !c.Flags().Changed("name") && set.Name != "" {
				o.name = set.Name
			}
			cl, err := o.cluster()
			if err != nil {
				return err
			}
			if child {
				return serve(c.Context(), cl, set, tellParent(os.NewFile(progressFD, "progress")))
			}
			if foreground {
				return runForeground(c.Context(), c.OutOrStdout(), cl, set, kubeconfigPath)
			}
			return up(c.Context(), c.OutOrStdout(), cl, set, kubeconfigPath, config)
		}}
	f := c.Flags()
	f.StringVar(&config, "config", "", "file with settings (YAML)")
	f.StringVar(&kubeconfigPath, "kubeconfig", "", "file to merge the context into (default: yours, also under sudo)")
	f.BoolVar(&foreground, "foreground", false, "stay in the foreground")
	f.BoolVar(&s.NoNode, "no-node", false, "API server and controllers only: no node on this machine")
	f.StringVar(&s.Node, "node", "", "name of this machine's node (default: the host name)")
	f.StringVar(&s.PodNetwork, "pod-network", "", "network of pods (default: the first free from 10.244.0.0/16)")
	f.StringVar(&s.ServiceNetwork, "service-network", "", "network of services (default: the first free from 10.96.0.0/16)")
	f.IntVar(&s.APIPort, "api-port", 0, "HTTPS port of the API (default: the first free from 6443)")
	f.IntVar(&s.KubeletPort, "kubelet-port", 0, "HTTPS port of the node (default: the first free from 10250)")
	f.IntVar(&s.MaxPods, "max-pods", 0, "most pods on this node (default 250)")
	f.StringSliceVar(&extra, "tls-san", nil, "more names or addresses for the API's certificate")
	f.StringSliceVar(&e.Servers, "etcd-servers", nil, "keep the state in this etcd (v3.5 or newer) instead of the data directory, as https://10.0.0.1:2379,...")
	f.StringVar(&e.Prefix, "etcd-prefix", "", "prefix of all keys in etcd (default /registry)")
	f.StringVar(&e.CAFile, "etcd-cafile", "", "authority of etcd's certificates (default: the system's)")
	f.StringVar(&e.CertFile, "etcd-certfile", "", "client certificate for etcd")
	f.StringVar(&e.KeyFile, "etcd-keyfile", "", "key of the client certificate for etcd")
	apiFlags(f, &s.API)
	f.BoolVar(&child, "as-server", false, "")
	f.MarkHidden("as-server")
	return c
}

// remembered is what the API server of the cluster was told last; nothing where a
// file of settings says it anew.
func (o *options) remembered(config string) (cluster.API, error) {
	if config != "" {
		return cluster.API{}, nil
	}
	cl, err := o.cluster()
	if err != nil {
		return cluster.API{}, err
	}
	card, err := cl.Load()
	if errors.Is(err, os.ErrNotExist) {
		return cluster.API{}, nil
	}
	return card.Told(), err
}

// settings are those of the file, or what is remembered of the API server,
// overridden by flags.
func settings(path string, flags cluster.Settings, remembered cluster.API) (cluster.Settings, error) {
	s := cluster.Settings{API: remembered}
	if path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return s, fmt.Errorf("read settings: %w", err)
		}
		if err := yaml.UnmarshalStrict(data, &s); err != nil {
			return s, fmt.Errorf("read settings %q: %w; `proa up --help` lists them", path, err)
		}
		if err := beside(filepath.Dir(path), s.API.Files()); err != nil {
			return s, err
		}
	}
	if err := pickAPI(&s.API, flags.API); err != nil {
		return s, err
	}
	pick := func(to *string, from string) {
		if from != "" {
			*to = from
		}
	}
	pick(&s.Node, flags.Node)
	pick(&s.PodNetwork, flags.PodNetwork)
	pick(&s.ServiceNetwork, flags.ServiceNetwork)
	for _, n := range []struct {
		to   *int
		from int
	}{{&s.APIPort, flags.APIPort}, {&s.KubeletPort, flags.KubeletPort}, {&s.MaxPods, flags.MaxPods}} {
		if n.from != 0 {
			*n.to = n.from
		}
	}
	s.NoNode = s.NoNode || flags.NoNode
	if e := flags.Etcd; e != nil {
		if s.Etcd == nil {
			s.Etcd = &cluster.Etcd{}
		}
		if len(e.Servers) > 0 {
			s.Etcd.Servers = e.Servers
		}
		pick(&s.Etcd.Prefix, e.Prefix)
		for _, f := range []struct {
			to   *string
			from string
		}{{&s.Etcd.CAFile, e.CAFile}, {&s.Etcd.CertFile, e.CertFile}, {&s.Etcd.KeyFile, e.KeyFile}} {
			if f.from == "" {
				continue
			}
			path, err := filepath.Abs(f.from) // the server runs in another directory
			if err != nil {
				return s, err
			}
			*f.to = path
		}
	}
	if s.Etcd != nil && len(s.Etcd.Servers) == 0 {
		return s, errors.New("settings for etcd: no server is named; name them with --etcd-servers")
	}
	return s, nil
}

// up starts the server in the background and waits until it is ready.
func up(ctx context.Context, out io.Writer, cl cluster.Cluster, s cluster.Settings, kubeconfigPath, config string) error {
	if pid := runningPID(cl); pid != 0 {
		card, err := cl.Load()
		if errors.Is(err, os.ErrNotExist) {
			where, _ := os.ReadFile(cl.Run("datadir"))
			return fmt.Errorf("start cluster %q in %q: it runs already (process %d) in %q; leave --data-dir out, or choose another --name", cl.Name, cl.DataDir, pid, strings.TrimSpace(string(where)))
		}
		if err != nil {
			return err
		}
		if config == "" && s.Etcd == nil {
			s.Etcd = card.Etcd
		}
		if !card.Told().Equal(s.API) {
			return fmt.Errorf("change the settings of the API server of cluster %q: it runs (process %d) with %s, which is not %s; run `proa down` first, then this again", cl.Name, pid, card.Told(), s.API)
		}
		card, err = cl.Prepare(s)
		if err != nil {
			return err
		}
		if err := mergeKubeconfig(cl, &card, kubeconfigPath); err != nil {
			return err
		}
		fmt.Fprintf(out, "cluster %q is running already (process %d, https://127.0.0.1:%d)\n", cl.Name, pid, card.APIPort)
		return nil
	}
	for _, d := range []string{cl.DataDir, cl.RunDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("create directory %q: %w; choose another with --data-dir", d, err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the proa executable: %w", err)
	}
	log, err := os.OpenFile(cl.Path("proa.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w; choose another directory with --data-dir", err)
	}
	defer log.Close()
	if config == "" && !s.API.Equal(cluster.API{}) {
		fmt.Fprintf(out, "  settings of the API server: %s\n", s.API)
	}
	settled, err := json.Marshal(s)
	if err != nil {
		return err
	}
	file := cl.Run("settings.json")
	if err := os.WriteFile(file, settled, 0o600); err != nil {
		return fmt.Errorf("hand settings to the server: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "up", "--as-server", "--name", cl.Name, "--data-dir", cl.DataDir, "--config", file)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	w.Close()
	if err := follow(ctx, out, r); err != nil {
		if ctx.Err() == nil {
			cmd.Wait() // its locks are free when this returns
		}
		return fmt.Errorf("%w; the log is %s", err, cl.Path("proa.log"))
	}
	cmd.Process.Release()
	card, err := cl.Load()
	if err != nil {
		return err
	}
	if err := mergeKubeconfig(cl, &card, kubeconfigPath); err != nil {
		return err
	}
	fmt.Fprintf(out, "\ncluster %q is up after %s: https://127.0.0.1:%d\n", cl.Name, round(time.Since(began)), card.APIPort)
	fmt.Fprintf(out, "context %q is in %s\n\ntry:\n", kubeconfig.ContextName(cl.Name), card.Kubeconfig)
	flag := ""
	if cl.Name != cluster.DefaultName {
		flag = "--name " + cl.Name + " "
	}
	fmt.Fprintf(out, "  proa %[1]skubectl get nodes\n  proa %[1]sdemo\n  proa %[1]sstatus\n", flag)
	return nil
}

// follow shows the server's steps until it is ready or has failed.
func follow(ctx context.Context, out io.Writer, r *os.File) error {
	defer r.Close()
	go func() {
		<-ctx.Done()
		r.Close()
	}()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var s step
		if json.Unmarshal(lines.Bytes(), &s) != nil {
			continue
		}
		switch {
		case s.Error != "":
			return errors.New(s.Error)
		case s.Done:
			return nil
		default:
			fmt.Fprintf(out, "  %-24s %8s\n", s.Name, round(s.Took))
		}
	}
	if ctx.Err() != nil {
		return errors.New("interrupted; the server goes on in the background: `proa down` stops it")
	}
	return errors.New("the server ended before it was ready")
}

func round(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// tellParent returns a function that reports steps; the pipe is closed after the
// last one.
func tellParent(f *os.File) func(step) {
	if f != nil {
		unix.CloseOnExec(int(f.Fd()))
	}
	return func(s step) {
		if f == nil {
			return
		}
		data, _ := json.Marshal(s)
		f.Write(append(data, '\n'))
		if s.Done || s.Error != "" {
			f.Close()
			f = nil
		}
	}
}

func runForeground(ctx context.Context, out io.Writer, cl cluster.Cluster, s cluster.Settings, kubeconfigPath string) error {
	return serve(ctx, cl, s, func(st step) {
		switch {
		case st.Error != "":
		case st.Done:
			if card, err := cl.Load(); err == nil {
				if err := mergeKubeconfig(cl, &card, kubeconfigPath); err != nil {
					fmt.Fprintln(out, "  "+err.Error())
				}
			}
			fmt.Fprintln(out, "  ready")
		default:
			fmt.Fprintf(out, "  %-24s %8s\n", st.Name, round(st.Took))
		}
	})
}

// mergeKubeconfig puts the admin's context into the invoking person's file.
func mergeKubeconfig(cl cluster.Cluster, card *cluster.Card, path string) error {
	owner := kubeconfig.Invoker()
	if path == "" {
		path = kubeconfig.DefaultPath(owner)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	entry, err := adminEntry(cl, *card)
	if err != nil {
		return err
	}
	if err := kubeconfig.Merge(path, owner, entry); err != nil {
		return err
	}
	card.Kubeconfig, card.KubeconfigUID, card.KubeconfigGID, card.KubeconfigUserHome = path, owner.UID, owner.GID, owner.Home
	return cl.Save(*card)
}

// runningPID is the live server's process, or 0.
func runningPID(cl cluster.Cluster) int {
	data, err := os.ReadFile(cl.Run("proa.pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 0 {
		return 0
	}
	// The file stays behind after a kill -9: believe it only while that process is
	// this cluster's server.
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(cmdline), "proa") {
		return 0
	}
	f, err := os.OpenFile(cl.Run("proa.pid"), os.O_RDWR, 0)
	if err != nil {
		return 0
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return 0 // nobody holds it
	}
	return pid
}
