package dns

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Files is what the server needs of the file system.
type Files interface {
	ReadFile(path string) ([]byte, error)
	// Stamp is a value that changes when the file does.
	Stamp(path string) (string, error)
}

// SystemFiles is the machine's.
func SystemFiles() Files { return systemFiles{} }

type systemFiles struct{}

func (systemFiles) ReadFile(path string) ([]byte, error) { return os.ReadFile(path) }

func (systemFiles) Stamp(path string) (string, error) {
	// Follows links: resolv.conf often is one, and is replaced by renaming.
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	return fmt.Sprint(info.ModTime().UnixNano(), info.Size()), nil
}

// resolvers is what a resolver file says.
type resolvers struct {
	servers []netip.AddrPort
	timeout time.Duration // of one attempt
	rotate  bool
}

// parseResolvConf reads what resolv.conf(5) describes; unknown words are ignored.
func parseResolvConf(b []byte) resolvers {
	r := resolvers{timeout: 2 * time.Second}
	for _, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 || f[0][0] == '#' || f[0][0] == ';' {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil && len(r.servers) < 3 {
				r.servers = append(r.servers, netip.AddrPortFrom(a.Unmap(), 53))
			}
		case "options":
			for _, o := range f[1:] {
				if n, ok := strings.CutPrefix(o, "timeout:"); ok {
					if sec, err := strconv.Atoi(n); err == nil && sec >= 1 {
						r.timeout = min(time.Duration(sec)*time.Second, r.timeout)
					}
				}
				r.rotate = r.rotate || o == "rotate"
			}
		}
	}
	return r
}

// upstream asks the host's resolvers, and remembers their answers for a while.
type upstream struct {
	cfg  Config
	self []netip.AddrPort
	mark string // of our own questions

	mu      sync.Mutex
	file    resolvers
	stamp   string
	looked  time.Time
	next    int
	cache   map[question]*cached
	flights map[question]*flight
}

type question struct {
	name string // lower case
	typ  uint16
	do   bool
	cd   bool
}

type cached struct {
	msg     *dns.Msg
	stored  time.Time
	expires time.Time
}

type flight struct {
	done chan struct{}
	msg  *dns.Msg
}

const (
	lookEvery   = time.Second
	maxCached   = 4096
	maxTTL      = 30 * time.Second // of an answer
	maxNegative = 5 * time.Second
	markOption  = 65313 // of the range for local use, RFC 6891
)

func newUpstream(cfg Config) *upstream {
	var b [8]byte
	cfg.Rand.Read(b[:])
	return &upstream{cfg: cfg, mark: hex.EncodeToString(b[:]), cache: map[question]*cached{}, flights: map[question]*flight{}}
}

// resolvers reads the host's resolver file if it has changed.
func (u *upstream) resolvers() (resolvers, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := u.cfg.Clock.Now()
	if !u.looked.IsZero() && now.Sub(u.looked) < lookEvery {
		return u.file, nil
	}
	stamp, err := u.cfg.Files.Stamp(u.cfg.ResolvConf)
	if err != nil {
		return u.file, fmt.Errorf("read resolvers of the host: %w", err)
	}
	if stamp != u.stamp || u.looked.IsZero() {
		b, err := u.cfg.Files.ReadFile(u.cfg.ResolvConf)
		if err != nil {
			return u.file, fmt.Errorf("read resolvers of the host: %w", err)
		}
		f := parseResolvConf(b)
		f.servers = slices.DeleteFunc(f.servers, func(a netip.AddrPort) bool { return slices.Contains(u.self, a) })
		u.file, u.stamp = f, stamp
		clear(u.cache) // another network, other answers
	}
	u.looked = now
	return u.file, nil
}

// resolve answers a foreign question; SERVFAIL when nobody does.
func (u *upstream) resolve(ctx context.Context, m *dns.Msg) *dns.Msg {
	opt := m.IsEdns0()
	if opt != nil {
		for _, o := range opt.Option {
			if l, ok := o.(*dns.EDNS0_LOCAL); ok && l.Code == markOption && string(l.Data) == u.mark {
				return u.fail(m, "a question came back: the host's resolver asks us; set another one in "+u.cfg.ResolvConf)
			}
		}
	}
	q := question{strings.ToLower(m.Question[0].Name), m.Question[0].Qtype, opt != nil && opt.Do(), m.CheckingDisabled}
	file, err := u.resolvers()
	if err != nil {
		u.cfg.Log.Warn("host resolvers cannot be read; using the last known", "err", err)
	}
	if r := u.lookup(q); r != nil {
		return answerTo(m, r)
	}
	if len(file.servers) == 0 {
		return u.fail(m, "no name server but this one in "+u.cfg.ResolvConf)
	}

	u.mu.Lock()
	f := u.flights[q]
	isFirst := f == nil
	if isFirst {
		f = &flight{done: make(chan struct{})}
		u.flights[q] = f
	}
	u.mu.Unlock()
	if isFirst {
		f.msg = u.ask(ctx, file, m, q)
		u.mu.Lock()
		delete(u.flights, q)
		if f.msg != nil {
			u.store(q, f.msg)
		}
		u.mu.Unlock()
		close(f.done)
	} else {
		select {
		case <-f.done:
		case <-ctx.Done():
			return u.fail(m, "no answer in time")
		}
	}
	if f.msg == nil {
		return u.fail(m, "no answer from "+fmt.Sprint(file.servers))
	}
	return answerTo(m, f.msg)
}

func (u *upstream) fail(m *dns.Msg, why string) *dns.Msg {
	u.cfg.Log.Debug("foreign name not resolved", "name", m.Question[0].Name, "reason", why)
	r := new(dns.Msg).SetRcode(m, dns.RcodeServerFailure)
	r.RecursionAvailable = true
	if opt := m.IsEdns0(); opt != nil {
		r.SetEdns0(maxUDP, opt.Do())
		r.IsEdns0().Option = append(r.IsEdns0().Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeOther, ExtraText: why})
	}
	return r
}

// answerTo makes an answer to m of the same content as r.
func answerTo(m, r *dns.Msg) *dns.Msg {
	out := r.Copy()
	out.Id, out.Question = m.Id, append([]dns.Question(nil), m.Question...)
	out.RecursionDesired, out.RecursionAvailable, out.Authoritative = m.RecursionDesired, true, false
	// The client's own spelling of the name, by which some know answers.
	for _, rr := range out.Answer {
		if strings.EqualFold(rr.Header().Name, m.Question[0].Name) {
			rr.Header().Name = m.Question[0].Name
		}
	}
	out.Extra = slices.DeleteFunc(out.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	if opt := m.IsEdns0(); opt != nil {
		out.SetEdns0(maxUDP, opt.Do())
	}
	return out
}

// ask tries one server after the other. A server that is slow is not waited for
// before the next is asked: whoever answers first is right.
func (u *upstream) ask(ctx context.Context, file resolvers, m *dns.Msg, q question) *dns.Msg {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ask := new(dns.Msg)
	ask.Id = uint16(u.cfg.Rand.Uint64())
	ask.RecursionDesired, ask.CheckingDisabled = true, m.CheckingDisabled
	ask.Question = []dns.Question{{Name: m.Question[0].Name, Qtype: q.typ, Qclass: dns.ClassINET}}
	ask.SetEdns0(maxUDP, q.do)
	ask.IsEdns0().Option = append(ask.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: markOption, Data: []byte(u.mark)})

	servers := slices.Clone(file.servers)
	if file.rotate {
		u.mu.Lock()
		u.next++
		by := u.next % len(servers)
		u.mu.Unlock()
		servers = append(servers[by:], servers[:by]...)
	}
	servers = append(servers, servers...) // a lost packet is asked for once more
	type result struct{ msg *dns.Msg }
	results := make(chan result, len(servers))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel() // before waiting
	started, ended := 0, 0
	start := func() {
		if started < len(servers) {
			server, own := servers[started], ask.Copy() // packing a message writes to it
			started++
			wg.Go(func() { results <- result{u.askOne(ctx, server, own, file.timeout)} })
		}
	}
	start()
	const hurry = 700 * time.Millisecond
	timer := u.cfg.Clock.NewTimer(hurry)
	defer timer.Stop()
	var worst *dns.Msg
	for ended < started {
		select {
		case <-ctx.Done():
			return worst
		case <-timer.C():
			start()
			timer.Reset(hurry)
		case r := <-results:
			ended++
			if r.msg != nil && r.msg.Rcode != dns.RcodeServerFailure && r.msg.Rcode != dns.RcodeRefused {
				return r.msg
			}
			if r.msg != nil {
				worst = r.msg
			}
			start()
		}
	}
	return worst
}

func (u *upstream) askOne(ctx context.Context, server netip.AddrPort, ask *dns.Msg, timeout time.Duration) *dns.Msg {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r := u.exchange(ctx, "udp", server, ask)
	if r != nil && r.Rcode == dns.RcodeFormatError && ask.IsEdns0() != nil {
		plain := ask.Copy() // an old server that does not know EDNS
		plain.Extra = nil
		r = u.exchange(ctx, "udp", server, plain)
	}
	if r != nil && r.Truncated {
		if whole := u.exchange(ctx, "tcp", server, ask); whole != nil {
			return whole
		}
	}
	return r
}

func (u *upstream) exchange(ctx context.Context, network string, server netip.AddrPort, ask *dns.Msg) *dns.Msg {
	c, err := u.cfg.Network.Dial(ctx, network, server)
	if err != nil {
		return nil
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn := &dns.Conn{Conn: c, UDPSize: dns.MaxMsgSize}
	if conn.WriteMsg(ask) != nil {
		return nil
	}
	for {
		r, err := conn.ReadMsg()
		switch {
		case err != nil && isBroken(err):
			return nil
		case err != nil:
			if network == "tcp" {
				return nil
			}
		case r.Id == ask.Id && r.Response && len(r.Question) == 1 && strings.EqualFold(r.Question[0].Name, ask.Question[0].Name) && r.Question[0].Qtype == ask.Question[0].Qtype:
			return r
		}
		// Not an answer to this question: someone guesses.
		if ctx.Err() != nil {
			return nil
		}
	}
}

// isBroken tells an error of the socket from a message that cannot be read.
func isBroken(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

func (u *upstream) lookup(q question) *dns.Msg {
	u.mu.Lock()
	defer u.mu.Unlock()
	c := u.cache[q]
	if c == nil {
		return nil
	}
	now := u.cfg.Clock.Now()
	if !now.Before(c.expires) {
		delete(u.cache, q)
		return nil
	}
	out := c.msg.Copy()
	age := uint32(now.Sub(c.stored) / time.Second)
	for _, section := range [][]dns.RR{out.Answer, out.Ns, out.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(h.Ttl, age)
			}
		}
	}
	return out
}

// store remembers an answer as long as it allows, within bounds. The caller holds
// the lock.
func (u *upstream) store(q question, r *dns.Msg) {
	if r.Truncated || r.Rcode != dns.RcodeSuccess && r.Rcode != dns.RcodeNameError {
		return
	}
	life := maxTTL
	for _, rr := range r.Answer {
		life = min(life, time.Duration(rr.Header().Ttl)*time.Second)
	}
	if len(r.Answer) == 0 || r.Rcode == dns.RcodeNameError {
		soa := false
		life = min(life, maxNegative)
		for _, rr := range r.Ns {
			if s, ok := rr.(*dns.SOA); ok {
				soa = true
				life = min(life, time.Duration(min(s.Minttl, s.Hdr.Ttl))*time.Second)
			}
		}
		if !soa { // RFC 2308: not to be remembered
			return
		}
	}
	if life <= 0 {
		return
	}
	now := u.cfg.Clock.Now()
	if len(u.cache) >= maxCached {
		for old, c := range u.cache {
			if !now.Before(c.expires) {
				delete(u.cache, old)
			}
		}
		for old := range u.cache {
			if len(u.cache) < maxCached*3/4 {
				break
			}
			delete(u.cache, old)
		}
	}
	u.cache[q] = &cached{r.Copy(), now, now.Add(life)}
}
