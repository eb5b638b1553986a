package seal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sigs.k8s.io/yaml"

	"proa.dev/env"
)

// The file's form (Kubernetes docs, "Encrypting Confidential Data at Rest").
type configuration struct {
	APIVersion string           `json:"apiVersion"`
	Kind       string           `json:"kind"`
	Resources  []configResource `json:"resources"`
}

type configResource struct {
	Resources []string         `json:"resources"`
	Providers []configProvider `json:"providers"`
}

type configProvider struct {
	AESGCM    *configKeys `json:"aesgcm,omitempty"`
	AESCBC    *configKeys `json:"aescbc,omitempty"`
	Secretbox *configKeys `json:"secretbox,omitempty"`
	Identity  *struct{}   `json:"identity,omitempty"`
	KMS       *configKMS  `json:"kms,omitempty"`
}

type configKeys struct {
	Keys []configKey `json:"keys"`
}

type configKey struct {
	Name   string `json:"name"`
	Secret string `json:"secret"`
}

type configKMS struct {
	APIVersion string `json:"apiVersion,omitempty"`
	Name       string `json:"name"`
	CacheSize  *int   `json:"cachesize,omitempty"`
	Endpoint   string `json:"endpoint"`
	Timeout    string `json:"timeout,omitempty"`
}

// Options of Open.
type Options struct {
	// File is an EncryptionConfiguration; "": Secrets are sealed with the local key.
	File string
	// Local are the keys of before, or without, a file. Values that they sealed can be
	// read for ever.
	Local []Key
	// Resource names what a store key holds, as the file does: "secrets",
	// "deployments.apps".
	Resource func(key string) string
	// Revision of the store, for Stale; nil: rewrites after a change of keys are not
	// recognized before the next start.
	Revision func() int64
	Rand     env.Rand
	Clock    env.Clock
	Log      *slog.Logger
}

// Set seals each resource with the providers that a configuration names for it,
// in upstream's format: a store written by proa can be read by upstream with the
// same file, and the other way round. The first provider of a resource's list
// seals, all open. What no list names stays plain.
//
// A change of the file is in force within a minute after it (Run), for writes at
// once and without a restart; a file with a mistake changes nothing. Old values
// keep their old seal until they are written again: a write that changes nothing
// is carried out if Stale says so. So keys rotate as upstream's documentation has
// it: put the new key first, replace all objects, take the old key away.
//
// It implements disk.Transform; its methods may be called from many goroutines.
type Set struct {
	o     Options
	meter *meter
	local *Keys
	now   atomic.Pointer[state]
	seen  []byte
	wake  chan struct{}

	mu    sync.Mutex
	stale map[string]struct{} // opened with something else than what seals now
}

// state is one configuration.
type state struct {
	rules []rule
	kms   []*kms
}

type rule struct {
	resources []string
	providers []provider
	// rotated is the store's revision when the sealing key changed last.
	rotated *atomic.Int64
}

// poll is how often the file is looked at, as upstream.
const poll = time.Minute

// maxStale bounds what is remembered of old values.
const maxStale = 1 << 20

// Open reads the configuration. It connects to nothing.
func Open(o Options) (*Set, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Set{o: o, meter: newMeter(), stale: map[string]struct{}{}, wake: make(chan struct{}, 1)}
	if len(o.Local) > 0 {
		var err error
		if s.local, err = New(o.Rand, o.Local...); err != nil {
			return nil, err
		}
	}
	if o.File == "" {
		st := new(state)
		if len(o.Local) > 0 {
			r := rule{resources: []string{"secrets"}, rotated: new(atomic.Int64)}
			for _, k := range o.Local {
				p, err := newGCM(k.Name, k.Secret, o.Rand)
				if err != nil {
					return nil, err
				}
				r.providers = append(r.providers, p)
			}
			st.rules = []rule{r}
		}
		s.now.Store(st)
		return s, nil
	}
	data, err := os.ReadFile(o.File)
	if err != nil {
		return nil, fmt.Errorf("read encryption configuration: %w", err)
	}
	st, err := s.parse(data)
	if err != nil {
		return nil, fmt.Errorf("read encryption configuration %q: %w", o.File, err)
	}
	s.seen = data
	s.now.Store(st)
	return s, nil
}

func (s *Set) parse(data []byte) (*state, error) {
	var c configuration
	if err := yaml.UnmarshalStrict(data, &c); err != nil {
		return nil, err
	}
	if c.APIVersion != "apiserver.config.k8s.io/v1" || c.Kind != "EncryptionConfiguration" {
		return nil, fmt.Errorf("is %s of %s: it must be EncryptionConfiguration of apiserver.config.k8s.io/v1", c.Kind, c.APIVersion)
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Resources) == 0 {
		bad("resources: Required value: at least one resources is required")
	}
	st := new(state)
	names := map[string]bool{}
	for i, r := range c.Resources {
		path := fmt.Sprintf("resources[%d]", i)
		if len(r.Resources) == 0 {
			bad("%s.resources: Required value: at least one %s.resources is required", path, path)
		}
		errs = append(errs, checkResources(r.Resources, path+".resources")...)
		if len(r.Providers) == 0 {
			bad("%s.providers: Required value: at least one %s.providers is required", path, path)
		}
		ru := rule{resources: r.Resources, rotated: new(atomic.Int64)}
		for n, p := range r.Providers {
			path := fmt.Sprintf("%s.providers[%d]", path, n)
			set := 0
			for _, has := range []bool{p.AESGCM != nil, p.AESCBC != nil, p.Secretbox != nil, p.Identity != nil, p.KMS != nil} {
				if has {
					set++
				}
			}
			switch {
			case set == 0:
				bad("%s: Invalid value: provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity", path)
				continue
			case set > 1:
				bad("%s: Invalid value: more than one provider specified in a single element, should split into different list elements", path)
				continue
			}
			add := func(list []provider, es []error) {
				ru.providers, errs = append(ru.providers, list...), append(errs, es...)
			}
			switch {
			case p.AESGCM != nil:
				add(fixed("aesgcm", p.AESGCM.Keys, s.o.Rand, path+".aesgcm"))
			case p.AESCBC != nil:
				add(fixed("aescbc", p.AESCBC.Keys, s.o.Rand, path+".aescbc"))
			case p.Secretbox != nil:
				add(fixed("secretbox", p.Secretbox.Keys, s.o.Rand, path+".secretbox"))
			case p.Identity != nil:
				ru.providers = append(ru.providers, identity{})
			default:
				if names[p.KMS.Name] && p.KMS.Name != "" {
					bad("%s.kms.name: Invalid value: %q: duplicate KMS provider name %s, names must be unique", path, p.KMS.Name, p.KMS.Name)
				}
				names[p.KMS.Name] = true
				k, es := newKMS(p.KMS, path+".kms", s.o, s.meter, ru.rotated)
				errs = append(errs, es...)
				if k != nil {
					ru.providers, st.kms = append(ru.providers, k), append(st.kms, k)
				}
			}
		}
		st.rules = append(st.rules, ru)
	}
	if err := errors.Join(errs...); err != nil {
		st.close()
		return nil, err
	}
	return st, nil
}

// checkResources of one list.
func checkResources(list []string, path string) (errs []error) {
	seen := map[string]bool{}
	bad := func(i int, why string) {
		errs = append(errs, fmt.Errorf("%s[%d]: Invalid value: %q: %s", path, i, list[i], why))
	}
	for i, r := range list {
		name, group, _ := strings.Cut(r, ".")
		switch {
		case seen[r]:
			bad(i, "the same resource cannot be specified multiple times")
		case r != strings.ToLower(r):
			bad(i, "resource name should not contain capital letters")
		case r == "" || r == "*":
			bad(i, "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources")
		case name != "*" && strings.Contains(r, "*"):
			bad(i, "encrypting the same resource across groups is not supported")
		case name == "*" && group == "events.k8s.io":
			bad(i, "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file")
		case group == "extensions":
			bad(i, "'extensions' group has been removed and cannot be used for encryption")
		}
		seen[r] = true
		for _, other := range list {
			if other != r && covers(r, other) {
				bad(i, "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked")
				break
			}
		}
	}
	return errs
}

// covers says whether a pattern of a list speaks for a resource (or another
// pattern).
func covers(pattern, resource string) bool {
	if pattern == resource || pattern == "*.*" {
		return true
	}
	group, wild := strings.CutPrefix(pattern, "*.")
	if !wild {
		return false
	}
	_, g, _ := strings.Cut(resource, ".")
	return g == group
}

func (st *state) rule(resource string) *rule {
	for i := range st.rules {
		if slices.ContainsFunc(st.rules[i].resources, func(p string) bool { return covers(p, resource) }) {
			return &st.rules[i]
		}
	}
	return nil
}

func (st *state) close() {
	for _, k := range st.kms {
		k.conn.Close()
	}
}

// Seal implements disk.Transform.
func (s *Set) Seal(key string, plain []byte) ([]byte, error) {
	r := s.now.Load().rule(s.o.Resource(key))
	if r == nil {
		return plain, nil
	}
	out, err := r.providers[0].seal(context.Background(), key, plain)
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	s.mark(key, false)
	return out, nil
}

// Open implements disk.Transform: plain values and those of the local keys can
// always be read.
func (s *Set) Open(key string, data []byte) ([]byte, error) {
	r := s.now.Load().rule(s.o.Resource(key))
	if !bytes.HasPrefix(data, []byte(encrypted)) {
		s.mark(key, r != nil && r.providers[0].prefix() != "")
		return data, nil
	}
	var problems []error
	if r != nil {
		for i, p := range r.providers {
			head := p.prefix()
			if head == "" || !bytes.HasPrefix(data, []byte(head)) {
				continue
			}
			// The same name may stand for several keys, tried in turn.
			plain, stale, err := p.open(context.Background(), key, data[len(head):])
			if err == nil {
				s.mark(key, stale || i > 0)
				return plain, nil
			}
			problems = append(problems, fmt.Errorf("decrypt with %s: %w", strings.TrimSuffix(head, ":"), err))
		}
	}
	if s.local != nil && bytes.HasPrefix(data, []byte(prefix)) {
		if plain, err := s.local.Open(key, data); err == nil {
			s.mark(key, true)
			return plain, nil
		}
	}
	if len(problems) == 0 {
		head := data[:min(len(data), 64)]
		if n := bytes.LastIndexByte(head, ':'); n > 0 {
			head = head[:n]
		}
		return nil, fmt.Errorf("decrypt: value is sealed by %q, and no provider of that name is configured for %s", head, s.o.Resource(key))
	}
	return nil, errors.Join(problems...)
}

// mark remembers whether a value wants to be written again.
func (s *Set) mark(key string, stale bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !stale {
		delete(s.stale, key)
	} else if len(s.stale) < maxStale {
		s.stale[strings.Clone(key)] = struct{}{}
	}
}

// Stale says whether the value of a key, last written at a revision, is not
// sealed as it would be now, so that a write without a change is worth its while.
func (s *Set) Stale(key string, revision int64) bool {
	s.mu.Lock()
	_, old := s.stale[key]
	s.mu.Unlock()
	if old {
		return true
	}
	r := s.now.Load().rule(s.o.Resource(key))
	return r != nil && revision <= r.rotated.Load()
}

// Health of the key services; nil when all answer.
func (s *Set) Health(ctx context.Context) error {
	var errs []error
	for _, k := range s.now.Load().kms {
		if err := k.health(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Reload looks at the file at once, beside Run.
func (s *Set) Reload() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run follows the file and asks the key services how they are, until ctx ends;
// it returns nil then.
func (s *Set) Run(ctx context.Context) error {
	defer func() { s.now.Load().close() }()
	look := s.o.Clock.Now().Add(poll)
	for {
		wait := poll
		for _, k := range s.now.Load().kms {
			if err := k.refresh(ctx); err != nil && ctx.Err() == nil {
				s.o.Log.Error("key service does not answer", "name", k.name, "error", err)
				wait = kmsAgain
			}
		}
		t := s.o.Clock.NewTimer(wait)
		select {
		case <-t.C():
			if s.o.Clock.Now().Before(look) {
				continue
			}
		case <-s.wake:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		look = s.o.Clock.Now().Add(poll)
		s.reload()
	}
}

func (s *Set) reload() {
	if s.o.File == "" {
		return
	}
	data, err := os.ReadFile(s.o.File)
	if err != nil {
		s.o.Log.Error("encryption configuration cannot be read; the one before stays in force", "file", s.o.File, "error", err)
		return
	}
	if bytes.Equal(data, s.seen) {
		return
	}
	s.seen = data // a mistake is told once
	st, err := s.parse(data)
	if err != nil {
		s.meter.reloaded(s.o.Clock.Now(), false)
		s.o.Log.Error("encryption configuration has a mistake; the one before stays in force", "file", s.o.File, "error", err)
		return
	}
	old := s.now.Swap(st)
	if s.o.Revision != nil {
		// What was written until now may have another seal than the rules want.
		at := s.o.Revision()
		for i := range st.rules {
			st.rules[i].rotated.Store(at)
		}
	}
	old.close()
	s.meter.reloaded(s.o.Clock.Now(), true)
	s.o.Log.Info("encryption configuration is in force", "file", s.o.File)
}
