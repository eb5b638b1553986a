// Package network gives pods of one machine their links, addresses and port
// mappings. It knows sandboxes and network namespaces, no API kinds.
//
// A pod's link is a pair of veth devices and no bridge:
//
//	pod namespace                         host namespace
//	eth0 10.1.0.7/32 ───── veth ───────── proaXXXXYYYYYYY (no address)
//	default via 169.254.1.1 onlink        10.1.0.7/32 dev proaXXXXYYYYYYY src 10.1.0.1
//	neighbour 169.254.1.1 = host's MAC    neighbour 10.1.0.7 = pod's MAC
//
// Both neighbour entries are permanent: no ARP, so the first packet does not
// wait. XXXX comes from the cluster's name and YYYYYYY from the sandbox's id; the
// link's alias holds both in full. The first address of the node's pod range is
// the host's own among the pods; it stands on lo, so that it needs no device.
// Service ranges are routed to lo as well: nothing is there, but the host's own
// connections to a service get past routing (and get a source address that pods
// on every node can answer) before the rules of package proxy rewrite them.
//
// Rules stand in the nftables table "proa-NAME" of this cluster: what pods send
// outside is masqueraded, so is what a pod sends to itself through a rewritten
// address; host ports are one map element each. Foreign tables are never touched
// (Obstacles names those that drop forwarded packets).
//
// Forwarding is switched on per link, not for the whole host; what was changed is
// written down in the shared directory before it is changed, with the clusters that
// need it, and Clean of the last of them puts it back.
//
// Removing a veth costs 18 ms, so that Teardown only takes the address off the
// host (route, neighbour, rules) and marks the link; it goes away with its
// namespace, or with others in one request a second later (Run), or in Drain.
// Pending counts the marked ones.
//
// Addresses are handed out in turn: never used ones first, then the one that has
// been free for the longest time. Each sandbox has one file in the state
// directory, written before its link is made and renamed away when it is torn
// down, so that a killed process loses nothing: New reads them back.
package network

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/network/nft"
)

// Config says where pods of this node live.
type Config struct {
	// ClusterName sets the names of everything made here. Required; two clusters on
	// one host have different names.
	ClusterName string
	// PodCIDRs are this node's own ranges: one of IPv4, optionally one of IPv6, at
	// most one of each, at least one. At most 65,536 addresses of each are used.
	PodCIDRs []netip.Prefix
	// ClusterCIDRs are the pod ranges of the whole cluster: traffic to them is not
	// masqueraded. Default: PodCIDRs.
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs are routed into the rules of package proxy. Optional.
	ServiceCIDRs []netip.Prefix
	// StateDir holds the sandboxes' records. It is made when it is missing. Required.
	// It must outlive the process.
	StateDir string
	// SharedDir holds the ledger of changed settings; all clusters of this host
	// should have the same, since they may need the same settings. It is made when
	// it is missing, and may be gone after the machine has started anew, as the settings are.
	// It must be for this purpose only. Default: in StateDir.
	SharedDir string
	// MTU of pod links in bytes. Default: that of the host's default route, or 1500.
	MTU int
	// HostNetns is the path of the network namespace that plays the host. Default:
	// the process's own.
	HostNetns string
	// Log receives what the operator should know. Default: slog.Default().
	Log *slog.Logger
}

// Check returns every problem of a configuration.
func (c Config) Check() error {
	var errs []error
	if c.ClusterName == "" {
		errs = append(errs, errors.New("clusterName: must be set"))
	}
	if len(tableName(c.ClusterName)) > 200 {
		errs = append(errs, fmt.Errorf("clusterName: %d characters, at most 195 fit", len(c.ClusterName)))
	}
	if c.StateDir == "" {
		errs = append(errs, errors.New("stateDir: must be set"))
	}
	if c.MTU != 0 && (c.MTU < 576 || c.MTU > 65535) {
		errs = append(errs, fmt.Errorf("mtu: %d: must be between 576 and 65535", c.MTU))
	}
	if len(c.PodCIDRs) == 0 {
		errs = append(errs, errors.New("podCIDRs: must have an entry"))
	}
	seen := map[bool]bool{}
	for _, p := range c.PodCIDRs {
		switch {
		case !p.IsValid():
			errs = append(errs, errors.New("podCIDRs: an entry is no range"))
		case seen[p.Addr().Is4()]:
			errs = append(errs, fmt.Errorf("podCIDRs: %s: one range of a family is enough", p))
		case p.Addr().BitLen()-p.Bits() < 2:
			errs = append(errs, fmt.Errorf("podCIDRs: %s: too small for a pod; use /24 or so", p))
		}
		seen[p.Addr().Is4()] = true
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("network configuration: %w", err)
	}
	return nil
}

// Network is one cluster's network on this machine.
type Network struct {
	cfg    Config
	names  names
	log    *slog.Logger
	hostNS netns.NsHandle // -1: the process's own

	up      sync.Mutex // held while the host is programmed
	isUp    bool
	cleaned bool // nothing is programmed any more
	nl      *netlink.Handle
	nft     *nft.Conn
	raw     *rawLink
	mtu     int
	sandbox keyedLock

	mu       sync.Mutex // guards what follows
	pool     *pool
	doomed   map[string]bool // links that Teardown has marked
	doomWake chan struct{}
	calm     calm // of WaitTaken
}

// names of what one cluster makes on a host.
type names struct {
	cluster string
	prefix  string // of links, 8 characters
	dead    uint32 // group of links that wait for their end
}

func namesOf(cluster string) names {
	sum := sha256.Sum256([]byte(cluster))
	return names{
		cluster: cluster,
		prefix:  "proa" + short(sum[:], 4),
		dead:    0x70720000 | uint32(sum[30])<<8 | uint32(sum[31]),
	}
}

func short(sum []byte, n int) string {
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum)[:n])
}

func tableName(cluster string) string { return "proa-" + cluster }

func (n names) link(sandboxID string) string {
	sum := sha256.Sum256([]byte(sandboxID))
	return n.prefix + short(sum[:], 7)
}

func (n names) alias(sandboxID string) string {
	a := n.aliasPrefix() + sandboxID
	return a[:min(len(a), 255)] // IFALIASZ
}

func (n names) aliasPrefix() string { return "proa/" + n.cluster + "/" }

// New reads the records of earlier runs. It touches nothing on the host; Up (or
// the first Setup) does.
func New(cfg Config) (*Network, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	for i, p := range cfg.PodCIDRs {
		cfg.PodCIDRs[i] = p.Masked()
	}
	if len(cfg.ClusterCIDRs) == 0 {
		cfg.ClusterCIDRs = cfg.PodCIDRs
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.SharedDir == "" {
		cfg.SharedDir = filepath.Join(cfg.StateDir, "shared")
	}
	n := &Network{cfg: cfg, names: namesOf(cfg.ClusterName), log: cfg.Log, hostNS: -1,
		doomed: map[string]bool{}, doomWake: make(chan struct{}, 1)}
	if cfg.HostNetns != "" {
		ns, err := netns.GetFromPath(cfg.HostNetns)
		if err != nil {
			return nil, fmt.Errorf("open host network namespace %q: %w", cfg.HostNetns, err)
		}
		n.hostNS = ns
	}
	pool, err := openPool(filepath.Join(cfg.StateDir, "sandboxes"), cfg.PodCIDRs)
	if err != nil {
		return nil, err
	}
	n.pool = pool
	return n, nil
}

// Close lets go of sockets; links, rules and records stay. Nothing else may be
// running.
func (n *Network) Close() error {
	n.up.Lock()
	defer n.up.Unlock()
	n.closeSockets()
	if n.hostNS >= 0 {
		n.hostNS.Close()
		n.hostNS = -1
	}
	return nil
}

func (n *Network) closeSockets() {
	if n.nl != nil {
		n.nl.Close()
		n.nl = nil
	}
	if n.nft != nil {
		n.nft.Close()
		n.nft = nil
	}
	if n.raw != nil {
		n.raw.close()
		n.raw = nil
	}
	n.isUp = false
}

// Table is the name of this cluster's nftables table.
func (n *Network) Table() string { return tableName(n.cfg.ClusterName) }

// LinkPrefix is what the names of all pod links of this cluster start with.
func (n *Network) LinkPrefix() string { return n.names.prefix }

// Gateways are the host's own addresses among the pods, one of each family.
func (n *Network) Gateways() []netip.Addr {
	var out []netip.Addr
	for _, p := range n.cfg.PodCIDRs {
		out = append(out, gatewayOf(p))
	}
	return out
}

func gatewayOf(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }

// Setup gives a sandbox its link, addresses and port mappings and returns the
// addresses, IPv4 first when the node has both. netnsPath is the sandbox's network namespace. For a
// sandbox that has all that already it changes nothing and returns the same.
func (n *Network) Setup(ctx context.Context, sandboxID, netnsPath string, cfg *runtimeapi.PodSandboxConfig) ([]string, error) {
	if err := n.Up(ctx); err != nil {
		return nil, err
	}
	defer n.sandbox.lock(sandboxID)()
	ports, err := portsOf(cfg)
	if err != nil {
		return nil, fmt.Errorf("set up network of sandbox %q: %w", sandboxID, err)
	}

	n.mu.Lock()
	rec, isNew, err := n.pool.take(sandboxID, func(r *record) {
		r.Netns, r.Ports, r.Link = netnsPath, ports, n.names.link(sandboxID)
	})
	n.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("set up network of sandbox %q: %w", sandboxID, err)
	}
	undo := func() {
		if isNew {
			if terr := n.teardown(rec); terr != nil {
				n.log.Warn("sandbox network left behind", "sandbox", sandboxID, "err", terr)
			}
		}
	}
	if err := n.connect(rec, netnsPath); err != nil {
		undo()
		return nil, fmt.Errorf("set up network of sandbox %q: %w", sandboxID, err)
	}
	if err := n.addRules(rec); err != nil {
		undo()
		return nil, fmt.Errorf("set up network of sandbox %q: %w", sandboxID, err)
	}
	return rec.ipStrings(), nil
}

// IPs of a sandbox that has been set up; none when it is unknown.
func (n *Network) IPs(sandboxID string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.pool.records[sandboxID]; r != nil {
		return r.ipStrings()
	}
	return nil
}

// Teardown takes a sandbox off the network: when it returns nil nothing reaches
// its addresses any more, its host ports are closed and its addresses are free.
// The link itself may stay for a moment (Pending). An unknown sandbox is fine.
func (n *Network) Teardown(ctx context.Context, sandboxID, netnsPath string) error {
	if err := n.Up(ctx); err != nil {
		return err
	}
	defer n.sandbox.lock(sandboxID)()
	n.mu.Lock()
	rec := n.pool.records[sandboxID]
	n.mu.Unlock()
	if rec == nil {
		rec = &record{Sandbox: sandboxID, Link: n.names.link(sandboxID)}
	}
	if err := n.teardown(rec); err != nil {
		return fmt.Errorf("tear down network of sandbox %q: %w", sandboxID, err)
	}
	return nil
}

func (n *Network) teardown(rec *record) error {
	// The rules first: a host port must not lead to an address that someone else gets.
	err := errors.Join(n.removeRules(rec), n.disconnect(rec))
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pool.release(rec.Sandbox)
}

// Reconcile tears down every sandbox that is not live, and every link of this
// cluster that belongs to none. Call it once after a start, with all sandboxes
// that the engine still has.
func (n *Network) Reconcile(ctx context.Context, live []string) error {
	if err := n.Up(ctx); err != nil {
		return err
	}
	isLive := map[string]bool{}
	isLink := map[string]bool{}
	for _, id := range live {
		isLive[id] = true
		isLink[n.names.link(id)] = true
	}
	n.mu.Lock()
	var gone []string
	for id := range n.pool.records {
		if !isLive[id] {
			gone = append(gone, id)
		}
	}
	n.mu.Unlock()
	var errs []error
	for _, id := range gone {
		errs = append(errs, n.Teardown(ctx, id, ""))
	}
	links, err := n.ownLinks()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, l := range links {
		if !isLink[l.Attrs().Name] {
			errs = append(errs, n.doom(l))
		}
	}
	return errors.Join(errs...)
}

// Run keeps the host's part up until ctx ends: it removes links that Teardown has
// marked, and switches forwarding on for host links that appear later.
func (n *Network) Run(ctx context.Context) error {
	if err := n.Up(ctx); err != nil {
		return err
	}
	updates := make(chan netlink.AddrUpdate, 64)
	done := make(chan struct{})
	opts := netlink.AddrSubscribeOptions{ErrorCallback: func(err error) {
		if ctx.Err() != nil {
			return // the socket was closed under it
		}
		n.log.Warn("address changes of the host are lost; restart proa if its addresses change", "err", err)
	}}
	if n.hostNS >= 0 {
		opts.Namespace = &n.hostNS
	}
	if err := netlink.AddrSubscribeWithOptions(updates, done, opts); err != nil {
		return fmt.Errorf("watch host addresses: %w", err)
	}
	watched := updates
	defer func() {
		close(done)
		for range watched { // closed when its goroutine ends
		}
	}()
	reap := time.NewTimer(reapDelay)
	defer reap.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-updates:
			if !ok {
				updates = nil // the callback has said so
				continue
			}
			if err := n.followHostLinks(); err != nil {
				n.log.Warn("forwarding not switched on", "err", err)
			}
		case <-n.doomWake:
			reap.Reset(reapDelay)
		case <-reap.C:
			if err := n.Drain(ctx); err != nil {
				n.log.Warn("pod links not removed yet", "err", err)
				reap.Reset(10 * reapDelay)
			}
		}
	}
}

// followHostLinks does nothing once the host is cleaned: that changes addresses
// too, and Run may still be there to see it.
func (n *Network) followHostLinks() error {
	n.up.Lock()
	defer n.up.Unlock()
	if !n.isUp {
		return nil
	}
	return n.forwardHostLinks()
}

// reapDelay is how long a marked link may wait for its namespace to end, and with
// it the link, at no cost of ours.
const reapDelay = time.Second

// Pending counts links that Teardown has marked and that may still exist.
func (n *Network) Pending() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.doomed)
}

// Drain removes all marked links now, in one request.
func (n *Network) Drain(ctx context.Context) error {
	n.mu.Lock()
	var marked []string
	for name := range n.doomed {
		marked = append(marked, name)
	}
	n.mu.Unlock()
	if len(marked) == 0 {
		return nil
	}
	if err := n.Up(ctx); err != nil {
		return err
	}
	if err := n.raw.deleteGroup(n.names.dead); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %d pod links: %w", len(marked), err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, name := range marked {
		delete(n.doomed, name)
	}
	return nil
}

// Clean removes what this cluster has made on the host: links, routes, the
// address on lo, both nftables tables, records; and puts settings back. What is
// not there is fine. The Network must not be used afterwards except for Close.
func (n *Network) Clean(ctx context.Context) error {
	n.up.Lock()
	defer n.up.Unlock()
	if err := n.open(); err != nil {
		return err
	}
	var errs []error
	links, err := n.ownLinks()
	errs = append(errs, err)
	if len(links) > 0 {
		for _, l := range links {
			errs = append(errs, ignore(n.nl.LinkSetGroup(l, int(n.names.dead)), unix.ENODEV))
		}
		errs = append(errs, ignore(n.raw.deleteGroup(n.names.dead), unix.ENODEV))
	}
	errs = append(errs, n.removeHostAddresses())
	tables, err := n.nft.Tables()
	errs = append(errs, err)
	for _, t := range tables {
		if t == n.Table() || t == ServiceTable(n.cfg.ClusterName) {
			errs = append(errs, n.nft.DeleteTable(t))
		}
	}
	errs = append(errs, n.restoreSettings())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove network of cluster %q: %w", n.cfg.ClusterName, err)
	}
	n.closeSockets()
	n.cleaned = true
	n.mu.Lock()
	clear(n.doomed)
	n.mu.Unlock()
	if err := os.RemoveAll(filepath.Join(n.cfg.StateDir, "sandboxes")); err != nil {
		return fmt.Errorf("remove network of cluster %q: %w", n.cfg.ClusterName, err)
	}
	return nil
}

// Clean removes the network of a cluster that may not be running, see
// Network.Clean.
func Clean(ctx context.Context, cfg Config) error {
	n, err := New(cfg)
	if err != nil {
		return err
	}
	defer n.Close()
	return n.Clean(ctx)
}

// ServiceTable is the name of the nftables table that package proxy keeps for a
// cluster. A dot cannot be in a cluster's name, so it is no other cluster's table.
func ServiceTable(cluster string) string { return tableName(cluster) + ".services" }

func ignore(err error, codes ...unix.Errno) error {
	for _, c := range codes {
		if errors.Is(err, c) {
			return nil
		}
	}
	return err
}

// keyedLock is a lock per name.
type keyedLock struct {
	mu    sync.Mutex
	locks map[string]*heldLock
}

type heldLock struct {
	mu    sync.Mutex
	users int
}

// lock waits for the lock of a name and returns the function that gives it back.
func (k *keyedLock) lock(name string) func() {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*heldLock{}
	}
	l := k.locks[name]
	if l == nil {
		l = &heldLock{}
		k.locks[name] = l
	}
	l.users++
	k.mu.Unlock()
	l.mu.Lock()
	return func() {
		l.mu.Unlock()
		k.mu.Lock()
		if l.users--; l.users == 0 {
			delete(k.locks, name)
		}
		k.mu.Unlock()
	}
}
