package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/node/pod"
)

// hostname is what the pod calls itself, and its fully qualified name ("" when it
// has none).
func (a *Agent) hostname(p *corev1.Pod) (host, fqdn string, err error) {
	host = p.Name
	if len(host) > validation.DNS1123LabelMaxLength {
		host = strings.TrimRight(host[:validation.DNS1123LabelMaxLength], "-.")
	}
	if p.Spec.Hostname != "" {
		host = p.Spec.Hostname
	}
	if p.Spec.HostnameOverride != nil {
		return *p.Spec.HostnameOverride, "", nil
	}
	if p.Spec.Subdomain != "" {
		fqdn = fmt.Sprintf("%s.%s.%s.svc.%s", host, p.Spec.Subdomain, p.Namespace, a.cfg.ClusterDomain)
	}
	if p.Spec.SetHostnameAsFQDN != nil && *p.Spec.SetHostnameAsFQDN && fqdn != "" {
		if len(fqdn) > 64 {
			return "", "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (64 characters is the max, %d characters requested)", fqdn, len(fqdn))
		}
		return fqdn, fqdn, nil
	}
	return host, fqdn, nil
}

// dnsConfig is the content of the pod's resolv.conf by dnsPolicy and dnsConfig.
// Bounds as the kernel's resolver and upstream: 3 servers, 32 search domains of
// 2048 characters together; what is beyond is left out.
func (a *Agent) dnsConfig(p *corev1.Pod) (*runtimeapi.DNSConfig, error) {
	d := &runtimeapi.DNSConfig{}
	policy := p.Spec.DNSPolicy
	if policy == "" {
		policy = corev1.DNSClusterFirst
	}
	if policy == corev1.DNSClusterFirst && p.Spec.HostNetwork {
		policy = corev1.DNSDefault
	}
	if (policy == corev1.DNSClusterFirst || policy == corev1.DNSClusterFirstWithHostNet) && len(a.cfg.ClusterDNS) == 0 {
		policy = corev1.DNSDefault
	}
	switch policy {
	case corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet:
		host := readResolv(a.cfg.ResolvConf)
		d.Servers = append(d.Servers, a.cfg.ClusterDNS...)
		dom := a.cfg.ClusterDomain
		d.Searches = append([]string{p.Namespace + ".svc." + dom, "svc." + dom, dom}, host.Searches...)
		d.Options = []string{"ndots:5"}
	case corev1.DNSDefault:
		d = readResolv(a.cfg.ResolvConf)
	case corev1.DNSNone:
	default:
		return nil, fmt.Errorf("invalid DNSPolicy=%v", policy)
	}
	if c := p.Spec.DNSConfig; c != nil {
		d.Servers = unique(append(d.Servers, c.Nameservers...))
		d.Searches = unique(append(d.Searches, c.Searches...))
		for _, o := range c.Options {
			text := o.Name
			if o.Value != nil {
				text += ":" + *o.Value
			}
			replaced := false
			for i, old := range d.Options {
				if name, _, _ := strings.Cut(old, ":"); name == o.Name {
					d.Options[i], replaced = text, true
				}
			}
			if !replaced {
				d.Options = append(d.Options, text)
			}
		}
	}
	d.Servers = d.Servers[:min(len(d.Servers), 3)]
	d.Searches = unique(d.Searches)
	d.Searches = d.Searches[:min(len(d.Searches), 32)]
	for len(strings.Join(d.Searches, " ")) > 2048 {
		d.Searches = d.Searches[:len(d.Searches)-1]
	}
	return d, nil
}

func unique(list []string) []string {
	seen := map[string]bool{}
	out := list[:0:0]
	for _, s := range list {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

func readResolv(path string) *runtimeapi.DNSConfig {
	d := &runtimeapi.DNSConfig{}
	data, err := os.ReadFile(path)
	if err != nil {
		return d // no resolver: none for the pod either
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") || strings.HasPrefix(f[0], ";") {
			continue
		}
		switch f[0] {
		case "nameserver":
			if len(f) > 1 {
				d.Servers = append(d.Servers, f[1])
			}
		case "search":
			d.Searches = nil
			for _, s := range f[1:] {
				if s != "." {
					s = strings.TrimSuffix(s, ".")
				}
				d.Searches = append(d.Searches, s)
			}
		case "options":
			d.Options = append(d.Options, f[1:]...)
		}
	}
	return d
}

// makePodDir makes the pod's own directories.
func (a *Agent) makePodDir(p *corev1.Pod) error {
	if err := os.MkdirAll(a.volumes.PodDir(string(p.UID)), 0o755); err != nil {
		return err
	}
	return os.MkdirAll(a.podLogDir(p), 0o755)
}

func (a *Agent) hostsFile(p *corev1.Pod) string {
	return filepath.Join(a.volumes.PodDir(string(p.UID)), "etc-hosts")
}

// writeHosts writes the pod's /etc/hosts.
func (a *Agent) writeHosts(p *corev1.Pod, ips []string) error {
	var b strings.Builder
	if p.Spec.HostNetwork {
		data, err := os.ReadFile("/etc/hosts")
		if err != nil {
			return err
		}
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(data)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n")
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
		b.WriteString("fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		host, fqdn, err := a.hostname(p)
		if err != nil {
			return err
		}
		short, _, _ := strings.Cut(host, ".")
		for _, ip := range ips {
			if fqdn != "" {
				fmt.Fprintf(&b, "%s\t%s\t%s\n", ip, fqdn, short)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, host)
			}
		}
	}
	if len(p.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, h := range p.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", h.IP, strings.Join(h.Hostnames, "\t"))
		}
	}
	return os.WriteFile(a.hostsFile(p), []byte(b.String()), 0o644)
}

// hostsMount binds the pod's hosts file, unless the container mounts one itself.
func (a *Agent) hostsMount(p *corev1.Pod, c *corev1.Container) *runtimeapi.Mount {
	if p.Spec.HostNetwork && len(p.Spec.HostAliases) == 0 {
		return nil // the engine shows the host's
	}
	for i := range c.VolumeMounts {
		if filepath.Clean(c.VolumeMounts[i].MountPath) == "/etc/hosts" {
			return nil
		}
	}
	file := a.hostsFile(p)
	if _, err := os.Stat(file); err != nil {
		if err := a.writeHosts(p, ipsOf(p)); err != nil {
			a.log.Warn("pod has no hosts file of its own", "pod", p.Namespace+"/"+p.Name, "err", err)
			return nil
		}
	}
	return &runtimeapi.Mount{HostPath: file, ContainerPath: "/etc/hosts",
		Readonly: c.SecurityContext != nil && c.SecurityContext.ReadOnlyRootFilesystem != nil && *c.SecurityContext.ReadOnlyRootFilesystem}
}

func ipsOf(p *corev1.Pod) []string {
	var ips []string
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	return ips
}

// podLogDir holds all logs of a pod.
func (a *Agent) podLogDir(p *corev1.Pod) string {
	return filepath.Join(a.cfg.LogDir, p.Namespace+"_"+p.Name+"_"+string(p.UID))
}

func (a *Agent) messageFile(p *corev1.Pod, container string, restarts int32) string {
	return filepath.Join(a.volumes.PodDir(string(p.UID)), "containers", container, fmt.Sprint(restarts))
}

// Bounds of a termination message, as upstream's.
const (
	messageBytes         = 4096
	messageFallbackBytes = 2048
	messageFallbackLines = 80
)

// terminationMessage reads what an ended container left: its file, or the tail of
// its log when the policy says so and it failed without a message.
func (a *Agent) terminationMessage(p *corev1.Pod, name string, c *runtimeapi.ContainerStatus) string {
	own := c.Message
	spec := pod.Spec(p, name)
	if spec == nil {
		return own
	}
	restarts := int32(c.GetMetadata().GetAttempt())
	data := readTail(a.messageFile(p, name, restarts), messageBytes)
	text := string(data)
	if text == "" && spec.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError && c.ExitCode != 0 {
		text = tailText(filepath.Join(a.podLogDir(p), name, fmt.Sprintf("%d.log", restarts)), messageFallbackLines, messageFallbackBytes)
	}
	switch {
	case own == "":
		return text
	case text == "":
		return own
	}
	return own + ": " + text
}

func readTail(path string, n int64) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > n {
		f.Seek(-n, 2)
	}
	buf := make([]byte, n)
	total := 0
	for total < len(buf) {
		k, err := f.Read(buf[total:])
		total += k
		if err != nil {
			break
		}
	}
	return buf[:total]
}
