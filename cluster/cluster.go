// Package cluster is bring-up and day two of one cluster on this machine: its
// directories, its identity card (cluster.json), ports and networks, the first
// objects, and the merge into a person's kubeconfig.
//
// Layout of the data directory (default /var/lib/proa/NAME), mode 0700:
//
//	cluster.json   identity: name, node, networks, ports; written once
//	pki/           authority and keys (package cluster/pki)
//	store/         the state
//	images/        image store          engine/     containers' writable layers
//	pods/          volumes of pods      logs/pods/  container logs
//	bin/           helpers unpacked from the proa binary, by content hash
//	proa.log       what the server says
//
// The run directory (/run/proa/NAME) holds what a reboot may forget: proa.pid,
// admin.sock, sandboxes, and the ledger of what was created on the host.
package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Settings are what a person may choose; zero values mean "choose for me". They
// come from flags or from a file (--config, YAML, unknown keys are an error).
type Settings struct {
	// Name of the cluster: lower-case letters, digits and dashes, 1–32 characters.
	Name string `json:"name,omitempty"`
	// DataDir holds everything that must survive; default /var/lib/proa/NAME.
	DataDir string `json:"dataDir,omitempty"`
	// Node is this machine's node name; default: the host name.
	Node string `json:"node,omitempty"`
	// PodNetwork and ServiceNetwork in CIDR notation; default: the first free pair
	// from 10.244.0.0/16 and 10.96.0.0/16 on.
	PodNetwork     string `json:"podNetwork,omitempty"`
	ServiceNetwork string `json:"serviceNetwork,omitempty"`
	// APIPort of HTTPS; default: the first free one from 6443 on. KubeletPort from
	// 10250 on.
	APIPort     int `json:"apiPort,omitempty"`
	KubeletPort int `json:"kubeletPort,omitempty"`
	// MaxPods of the node; default 250.
	MaxPods int `json:"maxPods,omitempty"`
	// NoNode runs the API server and the deciders without a node.
	NoNode bool `json:"noNode,omitempty"`
	// Mirrors of image registries: host name → endpoints, tried in order.
	Mirrors map[string][]Mirror `json:"mirrors,omitempty"`
	// ExtraNames are more DNS names or addresses of the API server's certificate.
	ExtraNames []string `json:"extraNames,omitempty"`
	// Etcd carries the state, for several servers; default: the data directory does.
	Etcd *Etcd `json:"etcd,omitempty"`
	// API is what else the API server is told. The card remembers it (Remember).
	API API `json:"api,omitzero"`
}

// API has the API server's files and lists under the names of its flags. Files that
// are not absolute lie beside the file of settings.
type API struct {
	// AuditPolicyFile says what is recorded of requests, AuditLogFile ("-": the log) and
	// AuditWebhookFile (a kubeconfig) where.
	AuditPolicyFile  string `json:"auditPolicyFile,omitempty"`
	AuditLogFile     string `json:"auditLogFile,omitempty"`
	AuditWebhookFile string `json:"auditWebhookFile,omitempty"`
	// EncryptionFile is an EncryptionConfiguration; default: Secrets are sealed with the
	// cluster's own key.
	EncryptionFile string `json:"encryptionFile,omitempty"`
	// AuthenticationFile and AuthorizationFile are an AuthenticationConfiguration and an
	// AuthorizationConfiguration.
	AuthenticationFile string `json:"authenticationFile,omitempty"`
	AuthorizationFile  string `json:"authorizationFile,omitempty"`
	// AdmissionFile is an AdmissionConfiguration.
	AdmissionFile string `json:"admissionFile,omitempty"`
	// EnableAdmission and DisableAdmission name admission plugins.
	EnableAdmission  []string `json:"enableAdmission,omitempty"`
	DisableAdmission []string `json:"disableAdmission,omitempty"`
	// Controllers that run: *, name, -name; default: all.
	Controllers []string `json:"controllers,omitempty"`
}

// Equal says whether both tell the API server the same.
func (a API) Equal(b API) bool {
	return a.String() == b.String()
}

// String is the settings on one line, as in the file of settings; "{}": none.
func (a API) String() string {
	data, err := json.Marshal(a)
	if err != nil {
		panic("cluster: " + err.Error())
	}
	return string(data)
}

func kept(a API) *API {
	if a.Equal(API{}) {
		return nil
	}
	return &a
}

// Told is what the API server was told last.
func (c *Card) Told() API {
	if c.API == nil {
		return API{}
	}
	return *c.API
}

// Files are the fields of files.
func (a *API) Files() []*string {
	return []*string{&a.AuditPolicyFile, &a.AuditLogFile, &a.AuditWebhookFile, &a.EncryptionFile, &a.AuthenticationFile, &a.AuthorizationFile, &a.AdmissionFile}
}

// Etcd is an etcd cluster of version 3.5 or newer.
type Etcd struct {
	// Servers are the endpoints: https://10.0.0.1:2379.
	Servers []string `json:"servers"`
	// Prefix of all keys; default /registry.
	Prefix string `json:"prefix,omitempty"`
	// CAFile is the authority of the servers' certificates (default: the system's);
	// CertFile and KeyFile a client certificate. All are PEM.
	CAFile   string `json:"caFile,omitempty"`
	CertFile string `json:"certFile,omitempty"`
	KeyFile  string `json:"keyFile,omitempty"`
}

// Mirror of a registry.
type Mirror struct {
	Endpoint string `json:"endpoint"` // http://127.0.0.1:5000
	Insecure bool   `json:"insecure,omitempty"`
}

// DefaultName of a cluster.
const DefaultName = "proa"

var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

// CheckName returns an error for a name that cannot be used.
func CheckName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("cluster name %q: must be 1–32 lower-case letters, digits and dashes, with a letter or digit at both ends", name)
	}
	return nil
}

// Card is a cluster's identity, written at the first up and kept.
type Card struct {
	Name           string `json:"name"`
	Node           string `json:"node"`
	PodNetwork     string `json:"podNetwork"`
	ServiceNetwork string `json:"serviceNetwork"`
	APIPort        int    `json:"apiPort"`
	KubeletPort    int    `json:"kubeletPort"`
	MaxPods        int    `json:"maxPods"`
	NoNode         bool   `json:"noNode,omitempty"`
	// Etcd carries the state; nil: the data directory does.
	Etcd *Etcd `json:"etcd,omitempty"`
	// API is what the API server was told last (nil: nothing); an up that says nothing
	// about it says this again.
	API *API `json:"api,omitempty"`
	// Kubeconfig is the file that the context was merged into, and its owner.
	Kubeconfig         string `json:"kubeconfig,omitempty"`
	KubeconfigUID      int    `json:"kubeconfigUID,omitempty"`
	KubeconfigGID      int    `json:"kubeconfigGID,omitempty"`
	KubeconfigUserHome string `json:"kubeconfigUserHome,omitempty"`
}

// Cluster is one cluster's place on this machine.
type Cluster struct {
	Name, DataDir, RunDir string
}

// Where clusters are by default; tests use other places.
var (
	dataRoot = "/var/lib/proa"
	runRoot  = "/run/proa"
)

// At finds the place of a cluster. An empty dataDir means the one recorded by a
// running or earlier cluster of that name, or the default.
func At(name, dataDir string) (Cluster, error) {
	if name == "" {
		name = DefaultName
	}
	if err := CheckName(name); err != nil {
		return Cluster{}, err
	}
	c := Cluster{Name: name, DataDir: dataDir, RunDir: filepath.Join(runRoot, name)}
	if c.DataDir == "" {
		c.DataDir = filepath.Join(dataRoot, name)
		if recorded, err := os.ReadFile(filepath.Join(c.RunDir, "datadir")); err == nil && len(recorded) > 0 {
			c.DataDir = strings.TrimSpace(string(recorded))
		}
	}
	abs, err := filepath.Abs(c.DataDir)
	if err != nil {
		return Cluster{}, fmt.Errorf("find data directory %q: %w", c.DataDir, err)
	}
	c.DataDir = abs
	return c, nil
}

// Path below the data directory.
func (c Cluster) Path(elem ...string) string {
	return filepath.Join(append([]string{c.DataDir}, elem...)...)
}

// Run is a path below the run directory.
func (c Cluster) Run(elem ...string) string {
	return filepath.Join(append([]string{c.RunDir}, elem...)...)
}

// Load reads the card; os.ErrNotExist when the cluster was never up.
func (c Cluster) Load() (Card, error) {
	var card Card
	data, err := os.ReadFile(c.Path("cluster.json"))
	if err != nil {
		return card, err
	}
	if err := json.Unmarshal(data, &card); err != nil {
		return card, fmt.Errorf("read identity %q: %w; restore it from a backup", c.Path("cluster.json"), err)
	}
	return card, nil
}

// Save writes the card.
func (c Cluster) Save(card Card) error {
	data, _ := json.MarshalIndent(card, "", "  ")
	tmp := c.Path("cluster.json.tmp")
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	if err := os.Rename(tmp, c.Path("cluster.json")); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}

// Remember notes on the card what the API server was told, once it has started
// with it: what kept it from starting is not to be said again by the next up.
func (c Cluster) Remember(a API) error {
	unlock, err := lockChoice()
	if err != nil {
		return err
	}
	defer unlock()
	card, err := c.Load()
	if err != nil || card.Told().Equal(a) {
		return err
	}
	card.API = kept(a)
	return c.Save(card)
}

// Prepare makes the directories and the card: the recorded one completed by
// settings, or a new one with free ports and networks. It refuses settings that
// contradict what was chosen at the first up. Two clusters that are prepared at
// the same time never choose the same ports or networks: a lock makes them take
// turns.
func (c Cluster) Prepare(s Settings) (Card, error) {
	for _, d := range []string{c.DataDir, c.RunDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return Card{}, fmt.Errorf("create directory %q: %w; choose another with --data-dir", d, err)
		}
	}
	probe := c.Path(".writable")
	if err := os.WriteFile(probe, nil, 0o600); err != nil {
		return Card{}, fmt.Errorf("write to data directory %q: %w; choose another with --data-dir", c.DataDir, err)
	}
	os.Remove(probe)
	if err := os.WriteFile(c.Run("datadir"), []byte(c.DataDir+"\n"), 0o600); err != nil {
		return Card{}, fmt.Errorf("write %q: %w", c.Run("datadir"), err)
	}
	// Clusters that come up at the same time choose one after the other.
	unlock, err := lockChoice()
	if err != nil {
		return Card{}, err
	}
	defer unlock()
	card, err := c.Load()
	if err == nil {
		if card.Name != c.Name {
			return card, fmt.Errorf("data directory %q: it holds the cluster %q, not %q; name that one with --name, or choose another directory with --data-dir", c.DataDir, card.Name, c.Name)
		}
		if err := contradicts(card, s); err != nil || s.Etcd == nil {
			return card, err
		}
		// Endpoints and certificates may change.
		card.Etcd = s.Etcd
		return card, c.Save(card)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return Card{}, err
	}
	card = Card{Name: c.Name, Node: s.Node, PodNetwork: s.PodNetwork, ServiceNetwork: s.ServiceNetwork, APIPort: s.APIPort, KubeletPort: s.KubeletPort, MaxPods: s.MaxPods, NoNode: s.NoNode, Etcd: s.Etcd}
	if card.Node == "" {
		host, err := os.Hostname()
		if err != nil {
			return card, fmt.Errorf("read host name: %w; name the node with --node", err)
		}
		card.Node = strings.ToLower(host)
		if c.Name != DefaultName {
			card.Node += "-" + c.Name
		}
	}
	if errs := validation.IsDNS1123Subdomain(card.Node); len(errs) > 0 {
		return card, fmt.Errorf("node name %q: %s; name the node with --node", card.Node, errs[0])
	}
	if card.MaxPods == 0 {
		card.MaxPods = 250
	}
	if card.MaxPods < 1 || card.MaxPods > 16000 {
		return card, fmt.Errorf("--max-pods %d: must be from 1 to 16000", card.MaxPods)
	}
	if err := c.chooseNetworks(&card); err != nil {
		return card, err
	}
	others := c.others()
	for _, p := range []struct {
		flag string
		port int
	}{{"--api-port", card.APIPort}, {"--kubelet-port", card.KubeletPort}} {
		if p.port < 0 || p.port > 65535 {
			return card, fmt.Errorf("%s %d: must be from 1 to 65535", p.flag, p.port)
		}
	}
	if card.APIPort != 0 && card.APIPort == card.KubeletPort {
		return card, fmt.Errorf("--kubelet-port %d: is the port of the API too; choose two", card.KubeletPort)
	}
	if card.APIPort == 0 {
		if card.APIPort, err = freePort(6443, others, func(o Card) int { return o.APIPort }); err != nil {
			return card, err
		}
	}
	if card.KubeletPort == 0 {
		if card.KubeletPort, err = freePort(10250, others, func(o Card) int { return o.KubeletPort }); err != nil {
			return card, err
		}
	}
	return card, c.Save(card)
}

// lockChoice waits for other clusters of this machine that choose networks and
// ports. The lock is the run directory itself: nothing is left behind.
func lockChoice() (unlock func(), err error) {
	f, err := os.Open(runRoot)
	if err != nil {
		return nil, fmt.Errorf("lock the choice of networks: %w", err)
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the choice of networks: %w", err)
	}
	return func() { f.Close() }, nil
}

// shares says that two servers have their state in one etcd: they are one cluster.
func (c *Card) shares(o *Card) bool {
	if c.Etcd == nil || o.Etcd == nil || strings.Trim(c.Etcd.Prefix, "/") != strings.Trim(o.Etcd.Prefix, "/") {
		return false
	}
	return slices.ContainsFunc(c.Etcd.Servers, func(s string) bool { return slices.Contains(o.Etcd.Servers, s) })
}

// join takes the networks of a server of the same cluster on this machine; those
// that were named must be the same. One of the two may have a node.
func (c *Card) join(o *Card) error {
	for _, n := range []struct {
		flag      string
		mine, its *string
	}{{"--pod-network", &c.PodNetwork, &o.PodNetwork}, {"--service-network", &c.ServiceNetwork, &o.ServiceNetwork}} {
		if p, err := netip.ParsePrefix(*n.mine); err == nil {
			*n.mine = p.Masked().String()
		}
		if *n.mine != "" && *n.mine != *n.its {
			return fmt.Errorf("%s %q: server %q has the same etcd and %s; name that", n.flag, *n.mine, o.Name, *n.its)
		}
		*n.mine = *n.its
	}
	if !c.NoNode && !o.NoNode {
		return fmt.Errorf("a node on this machine: server %q has the same etcd and a node here; use --no-node", o.Name)
	}
	return nil
}

// chooseNetworks checks the networks that were named and fills in the others.
func (c Cluster) chooseNetworks(card *Card) error {
	others := c.others()
	for i := range others {
		if card.shares(&others[i]) {
			if err := card.join(&others[i]); err != nil {
				return err
			}
		}
	}
	others = slices.DeleteFunc(others, func(o Card) bool { return card.shares(&o) })
	var named []netip.Prefix
	for _, n := range []struct {
		flag  string
		value *string
	}{{"--pod-network", &card.PodNetwork}, {"--service-network", &card.ServiceNetwork}} {
		if *n.value == "" {
			continue
		}
		p, err := netip.ParsePrefix(*n.value)
		if err != nil || !p.Addr().Is4() || p.Bits() > 24 || p.Bits() < 8 {
			return fmt.Errorf("%s %q: must be an IPv4 network from /8 to /24 in CIDR notation, such as 10.244.0.0/16", n.flag, *n.value)
		}
		p = p.Masked()
		*n.value = p.String()
		for _, o := range others {
			for _, theirs := range []string{o.PodNetwork, o.ServiceNetwork} {
				if q, err := netip.ParsePrefix(theirs); err == nil && q.Overlaps(p) {
					return fmt.Errorf("%s %q: overlaps %s of cluster %q; choose another", n.flag, *n.value, theirs, o.Name)
				}
			}
		}
		for _, q := range named {
			if q.Overlaps(p) {
				return fmt.Errorf("%s %q: overlaps the network of pods %s; choose another", n.flag, *n.value, q)
			}
		}
		named = append(named, p)
	}
	if card.PodNetwork != "" && card.ServiceNetwork != "" {
		return nil
	}
	pods, services, err := freeNetworks(others, named)
	if err != nil {
		return err
	}
	if card.PodNetwork == "" {
		card.PodNetwork = pods
	}
	if card.ServiceNetwork == "" {
		card.ServiceNetwork = services
	}
	return nil
}

func contradicts(card Card, s Settings) error {
	for _, n := range []*string{&s.PodNetwork, &s.ServiceNetwork} {
		if p, err := netip.ParsePrefix(*n); err == nil {
			*n = p.Masked().String()
		}
	}
	if s.NoNode && !card.NoNode {
		return errors.New("--no-node: this cluster was created with a node on this machine and keeps it; leave the flag out, or create another cluster with --name")
	}
	if s.Etcd != nil && card.Etcd == nil {
		return errors.New("--etcd-servers: this cluster was created with its state in the data directory and keeps it; create another cluster with --name")
	}
	if s.Etcd != nil && strings.Trim(s.Etcd.Prefix, "/") != strings.Trim(card.Etcd.Prefix, "/") {
		return fmt.Errorf("--etcd-prefix %q: this cluster was created with %q and keeps it", s.Etcd.Prefix, card.Etcd.Prefix)
	}
	for _, f := range []struct{ name, was, now string }{
		{"--node", card.Node, s.Node},
		{"--pod-network", card.PodNetwork, s.PodNetwork},
		{"--service-network", card.ServiceNetwork, s.ServiceNetwork},
	} {
		if f.now != "" && f.now != f.was {
			return fmt.Errorf("%s %q: this cluster was created with %q and keeps it; leave the flag out, or create another cluster with --name", f.name, f.now, f.was)
		}
	}
	for _, f := range []struct {
		name     string
		was, now int
	}{{"--api-port", card.APIPort, s.APIPort}, {"--kubelet-port", card.KubeletPort, s.KubeletPort}, {"--max-pods", card.MaxPods, s.MaxPods}} {
		if f.now != 0 && f.now != f.was {
			return fmt.Errorf("%s %d: this cluster was created with %d and keeps it; leave the flag out, or create another cluster with --name", f.name, f.now, f.was)
		}
	}
	return nil
}

// others are the cards of all other clusters known on this machine.
func (c Cluster) others() []Card {
	var cards []Card
	for _, o := range All() {
		if o.Name != c.Name {
			if card, err := o.Load(); err == nil {
				cards = append(cards, card)
			}
		}
	}
	return cards
}

// All clusters that this machine knows: by data directory or run directory.
func All() []Cluster {
	seen := map[string]bool{}
	var out []Cluster
	for _, root := range []string{dataRoot, runRoot} {
		entries, _ := os.ReadDir(root)
		for _, e := range entries {
			if e.IsDir() && !seen[e.Name()] {
				if c, err := At(e.Name(), ""); err == nil {
					seen[e.Name()] = true
					out = append(out, c)
				}
			}
		}
	}
	return out
}

func freeNetworks(others []Card, taken []netip.Prefix) (pods, services string, err error) {
	for _, o := range others {
		for _, n := range []string{o.PodNetwork, o.ServiceNetwork} {
			if p, err := netip.ParsePrefix(n); err == nil {
				taken = append(taken, p)
			}
		}
	}
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			taken = append(taken, p.Masked())
		}
	}
	free := func(n netip.Prefix) bool {
		for _, t := range taken {
			if t.Overlaps(n) {
				return false
			}
		}
		return true
	}
	for k := range 60 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(244 - k), 0, 0}), 16)
		s := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(96 + k), 0, 0}), 16)
		if free(p) && free(s) {
			return p.String(), s.String(), nil
		}
	}
	return "", "", errors.New("choose networks: no free pair of /16 networks in 10.0.0.0/8 is left; name them with --pod-network and --service-network")
}

func freePort(from int, others []Card, of func(Card) int) (int, error) {
	for p := from; p < from+200; p++ {
		taken := false
		for _, o := range others {
			taken = taken || of(o) == p
		}
		if taken {
			continue
		}
		if l, err := net.Listen("tcp", fmt.Sprintf(":%d", p)); err == nil {
			l.Close()
			return p, nil
		}
	}
	return 0, fmt.Errorf("choose a port: none is free from %d to %d; name one with --api-port or --kubelet-port", from, from+199)
}

// linkPrefix starts the names of all links that clusters make (package network).
const linkPrefix = "proa"

// HostAddress is the address that this machine is reached at: the source address
// of the default route, else the first global one, else loopback.
func HostAddress() netip.Addr {
	// Connecting a UDP socket sends nothing; it asks the routing table.
	if c, err := net.Dial("udp4", "1.1.1.1:9"); err == nil {
		defer c.Close()
		if a, ok := netip.AddrFromSlice(c.LocalAddr().(*net.UDPAddr).IP.To4()); ok && !a.IsLoopback() {
			return a
		}
	}
	links, _ := net.Interfaces()
	for _, l := range links {
		// Addresses of clusters' own links come and go with them.
		if l.Flags&net.FlagUp == 0 || l.Flags&net.FlagLoopback != 0 || strings.HasPrefix(l.Name, linkPrefix) {
			continue
		}
		addrs, _ := l.Addrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && p.Addr().IsGlobalUnicast() {
				return p.Addr()
			}
		}
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}
