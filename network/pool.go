package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// record is what is known of one sandbox: one file, "ID.json".
type record struct {
	Sandbox string       `json:"sandbox"`
	Netns   string       `json:"netns"`
	Link    string       `json:"link"`
	IPs     []netip.Addr `json:"ips"`
	Ports   []portMap    `json:"ports,omitempty"`
}

func (r *record) ipStrings() []string {
	var out []string
	for _, ip := range r.IPs {
		out = append(out, ip.String())
	}
	return out
}

// portMap leads one port of the host to one of the pod.
type portMap struct {
	Protocol      uint8      `json:"protocol"` // IP protocol number
	HostIP        netip.Addr `json:"hostIP"`   // zero: every address of the host
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
}

var protocolNumbers = map[runtimeapi.Protocol]uint8{
	runtimeapi.Protocol_TCP: 6, runtimeapi.Protocol_UDP: 17, runtimeapi.Protocol_SCTP: 132,
}

func portsOf(cfg *runtimeapi.PodSandboxConfig) ([]portMap, error) {
	var out []portMap
	for _, p := range cfg.GetPortMappings() {
		if p.HostPort == 0 {
			continue
		}
		if p.HostPort < 0 || p.HostPort > math.MaxUint16 || p.ContainerPort < 1 || p.ContainerPort > math.MaxUint16 {
			return nil, fmt.Errorf("map host port %d to %d: ports must be between 1 and 65535", p.HostPort, p.ContainerPort)
		}
		m := portMap{Protocol: protocolNumbers[p.Protocol], HostPort: uint16(p.HostPort), ContainerPort: uint16(p.ContainerPort)}
		if p.HostIp != "" {
			ip, err := netip.ParseAddr(p.HostIp)
			if err != nil {
				return nil, fmt.Errorf("map host port %d: host address %q is no IP address", p.HostPort, p.HostIp)
			}
			if ip = ip.Unmap(); !ip.IsUnspecified() {
				m.HostIP = ip
			}
		}
		if !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	return out, nil
}

// pool hands out addresses and keeps the records. Not safe for concurrent use.
//
// The directory holds ID.json for a sandbox in use, and freed/ADDRESS for an
// address that has been used before; the files' order in time is the order of
// release.
type pool struct {
	dir     string
	ranges  []*addressRange
	records map[string]*record
}

// addressRange is the part of a range that is handed out: not the network's
// first address, not the gateway, not the last.
type addressRange struct {
	prefix netip.Prefix
	next   netip.Addr // the lowest one never used
	last   netip.Addr
	used   map[netip.Addr]string // by sandbox
	freed  []netip.Addr          // longest free first
}

const maxRange = 1 << 16

func newRange(p netip.Prefix) *addressRange {
	p = p.Masked()
	hostBits := p.Addr().BitLen() - p.Bits()
	size := uint64(maxRange)
	if hostBits < 16 {
		size = 1 << hostBits
	}
	b := p.Addr().As16()
	low := uint64(b[14])<<8 | uint64(b[15]) // the range is aligned: the rest does not carry
	top := low + size - 2
	b[14], b[15] = byte(top>>8), byte(top)
	last := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		last = last.Unmap()
	}
	return &addressRange{prefix: p, next: gatewayOf(p).Next(), last: last, used: map[netip.Addr]string{}}
}

var errFull = errors.New("all addresses are in use")

func (r *addressRange) take(sandbox string) (netip.Addr, error) {
	for r.next.Compare(r.last) <= 0 {
		a := r.next
		r.next = a.Next()
		if _, busy := r.used[a]; !busy && !slices.Contains(r.freed, a) {
			r.used[a] = sandbox
			return a, nil
		}
	}
	if len(r.freed) == 0 {
		return netip.Addr{}, fmt.Errorf("take an address from %s: %w; delete pods or give the node a larger range", r.prefix, errFull)
	}
	a := r.freed[0]
	r.freed = r.freed[1:]
	r.used[a] = sandbox
	return a, nil
}

func (r *addressRange) release(a netip.Addr) {
	if _, ok := r.used[a]; ok {
		delete(r.used, a)
		r.freed = append(r.freed, a)
	}
}

func openPool(dir string, prefixes []netip.Prefix) (*pool, error) {
	p := &pool{dir: dir, records: map[string]*record{}}
	for _, c := range prefixes {
		p.ranges = append(p.ranges, newRange(c))
	}
	slices.SortStableFunc(p.ranges, func(a, b *addressRange) int { // IPv4 first
		return a.prefix.Addr().BitLen() - b.prefix.Addr().BitLen()
	})
	if err := os.MkdirAll(filepath.Join(dir, "freed"), 0o700); err != nil {
		return nil, fmt.Errorf("open address records: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open address records: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() {
			continue
		}
		id, isRecord := strings.CutSuffix(e.Name(), ".json")
		if !isRecord {
			os.Remove(path) // a file that was being written
			continue
		}
		var r record
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err != nil || r.Sandbox != id {
			// Records are renamed into place, so that this is a machine that lost its
			// power; no sandbox has survived that.
			os.Remove(path)
			continue
		}
		for _, ip := range r.IPs {
			if rg := p.rangeOf(ip); rg != nil {
				rg.used[ip] = id
			}
		}
		p.records[id] = &r
	}
	return p, p.readFreed()
}

func (p *pool) readFreed() error {
	entries, err := os.ReadDir(filepath.Join(p.dir, "freed"))
	if err != nil {
		return fmt.Errorf("open address records: %w", err)
	}
	type freed struct {
		ip   netip.Addr
		when int64
	}
	var all []freed
	for _, e := range entries {
		ip, err := netip.ParseAddr(e.Name())
		info, ierr := e.Info()
		if err != nil || ierr != nil {
			continue
		}
		all = append(all, freed{ip, info.ModTime().UnixNano()})
	}
	slices.SortFunc(all, func(a, b freed) int {
		if a.when != b.when {
			if a.when < b.when {
				return -1
			}
			return 1
		}
		return a.ip.Compare(b.ip)
	})
	for _, f := range all {
		if r := p.rangeOf(f.ip); r != nil && r.used[f.ip] == "" && f.ip.Compare(r.prefix.Addr().Next()) > 0 && f.ip.Compare(r.last) <= 0 {
			r.freed = append(r.freed, f.ip)
		}
	}
	return nil
}

func (p *pool) rangeOf(ip netip.Addr) *addressRange {
	for _, r := range p.ranges {
		if r.prefix.Contains(ip) {
			return r
		}
	}
	return nil
}

// take returns the record of a sandbox, a new one with fresh addresses if need
// be. fill completes a new record before it is written.
func (p *pool) take(sandbox string, fill func(*record)) (rec *record, isNew bool, err error) {
	if r := p.records[sandbox]; r != nil {
		return r, false, nil
	}
	if sandbox == "" || strings.ContainsAny(sandbox, "/\x00") || strings.HasPrefix(sandbox, ".") {
		return nil, false, fmt.Errorf("sandbox id %q cannot be a file name", sandbox)
	}
	r := &record{Sandbox: sandbox}
	fill(r)
	for _, m := range r.Ports {
		if other := p.portOwner(m); other != "" {
			return nil, false, fmt.Errorf("host port %d is taken by sandbox %q", m.HostPort, other)
		}
	}
	giveBack := func() {
		for _, ip := range r.IPs {
			p.rangeOf(ip).release(ip)
		}
	}
	for _, rg := range p.ranges {
		ip, err := rg.take(sandbox)
		if err != nil {
			giveBack()
			return nil, false, err
		}
		r.IPs = append(r.IPs, ip)
	}
	if err := p.write(r); err != nil {
		giveBack()
		return nil, false, fmt.Errorf("write address record: %w", err)
	}
	for _, ip := range r.IPs {
		os.Remove(p.freedPath(ip))
	}
	p.records[sandbox] = r
	return r, true, nil
}

func (p *pool) portOwner(m portMap) string {
	for _, r := range p.records {
		for _, o := range r.Ports {
			if o.Protocol == m.Protocol && o.HostPort == m.HostPort &&
				(o.HostIP == m.HostIP || !o.HostIP.IsValid() || !m.HostIP.IsValid()) {
				return r.Sandbox
			}
		}
	}
	return ""
}

func (p *pool) freedPath(ip netip.Addr) string { return filepath.Join(p.dir, "freed", ip.String()) }

func (p *pool) path(sandbox string) string { return filepath.Join(p.dir, sandbox+".json") }

func (p *pool) write(r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := filepath.Join(p.dir, r.Sandbox+".tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		os.Remove(tmp)
		return err
	}
	return os.Rename(tmp, p.path(r.Sandbox))
}

// release gives a sandbox's addresses back.
func (p *pool) release(sandbox string) error {
	r := p.records[sandbox]
	if r == nil {
		return nil
	}
	for _, ip := range r.IPs {
		if p.rangeOf(ip) == nil {
			continue
		}
		if err := os.WriteFile(p.freedPath(ip), nil, 0o600); err != nil {
			return fmt.Errorf("release address %s: %w", ip, err)
		}
	}
	if err := os.Remove(p.path(sandbox)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release addresses: %w", err)
	}
	for _, ip := range r.IPs {
		if rg := p.rangeOf(ip); rg != nil {
			rg.release(ip)
		}
	}
	delete(p.records, sandbox)
	return nil
}
