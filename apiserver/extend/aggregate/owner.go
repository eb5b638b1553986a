package aggregate

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"proa.dev/apiserver/auth"
	"proa.dev/view"
)

// Owner is what is known of an object that a server behind an APIService has.
type Owner struct {
	// IsKnown: its server has answered. The others count only then.
	IsKnown bool
	// IsAbsent: there is no object of this kind, name and UID, and there never will be.
	IsAbsent bool
	// IsWaiting: it is being deleted and waits for its dependents.
	IsWaiting bool
	// Unreachable: its server could not be asked lately.
	Unreachable bool

	wanted bool
	asked  time.Time // when it was last wanted
	used   time.Time // when somebody last looked
}

const (
	ownerEvery   = 20 * time.Second // how old an answer may be
	ownerTimeout = 10 * time.Second
	ownerKept    = 10 * time.Minute
	maxOwners    = 20_000
	ownerAtOnce  = 8
)

// ownerKey names what an owner reference means.
type ownerKey struct{ apiVersion, kind, namespace, name, uid string }

var collector = auth.User{Name: auth.ServiceAccountUser + "kube-system:generic-garbage-collector",
	Groups: []string{auth.ServiceAccounts, auth.ServiceAccounts + ":kube-system", auth.AllAuthenticated}}

// Owner says how the object is that an owner reference of an object in a namespace
// names ("" for cluster-wide ones); ok is false when no server behind an APIService
// has its kind. It does not block: what is not known is found out in the background.
func (a *Aggregator) Owner(s view.Snapshot, r metav1.OwnerReference, namespace string) (o Owner, ok bool) {
	group, version, isNamed := strings.Cut(r.APIVersion, "/")
	if !isNamed || Find(s, group, version) == nil {
		return Owner{}, false
	}
	key := ownerKey{r.APIVersion, r.Kind, namespace, r.Name, string(r.UID)}
	now := a.cfg.Clock.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	have := a.owners[key]
	if have == nil {
		if len(a.owners) >= maxOwners {
			for k, old := range a.owners {
				if now.Sub(old.used) > ownerKept {
					delete(a.owners, k)
				}
			}
		}
		if len(a.owners) >= maxOwners {
			return Owner{Unreachable: true}, true
		}
		if a.owners == nil {
			a.owners = map[ownerKey]*Owner{}
		}
		have = &Owner{}
		a.owners[key] = have
	}
	have.used = now
	if !have.IsAbsent && !have.wanted && (have.asked.IsZero() || now.Sub(have.asked) >= ownerEvery) {
		have.wanted, have.asked = true, now
		select {
		case a.wanted <- struct{}{}:
		default:
		}
	}
	return *have, true
}

// asking finds out what Owner wants to know, until ctx ends.
func (a *Aggregator) asking(ctx context.Context) {
	for {
		select {
		case <-a.wanted:
		case <-ctx.Done():
			return
		}
		var keys []ownerKey
		a.mu.Lock()
		for key, o := range a.owners {
			if o.wanted {
				keys = append(keys, key)
			}
		}
		a.mu.Unlock()
		sort.Slice(keys, func(i, j int) bool { return keys[i].uid < keys[j].uid })
		work := make(chan ownerKey)
		var all sync.WaitGroup
		for range min(ownerAtOnce, len(keys)) {
			all.Go(func() {
				for key := range work {
					o, err := a.askOne(ctx, key)
					a.mu.Lock()
					if have := a.owners[key]; have != nil {
						if have.wanted = false; err != nil {
							// What was known before stays; nothing is absent because nobody answers.
							have.Unreachable = true
						} else {
							have.IsKnown, have.IsAbsent, have.IsWaiting, have.Unreachable = true, o.IsAbsent, o.IsWaiting, false
						}
					}
					a.mu.Unlock()
					if err != nil && ctx.Err() == nil {
						a.cfg.Log.Warn("owner cannot be looked up on the server that has it; its dependents stay", "owner", key.apiVersion+" "+key.kind+" "+key.namespace+"/"+key.name, "error", err)
					}
				}
			})
		}
		for _, key := range keys {
			if ctx.Err() != nil {
				break
			}
			work <- key
		}
		close(work)
		all.Wait()
	}
}

// askOne gets the metadata of one owner.
func (a *Aggregator) askOne(ctx context.Context, key ownerKey) (o Owner, err error) {
	ctx, cancel := context.WithTimeout(ctx, ownerTimeout)
	defer cancel()
	group, version, _ := strings.Cut(key.apiVersion, "/")
	var svc *apiregistrationv1.APIService
	var resource *apidiscovery.APIResourceDiscovery
	a.mu.Lock()
	if n := a.known[version+"."+group]; n != nil && n.current {
		svc = n.svc
		for i := range n.resources {
			if r := &n.resources[i]; r.ResponseKind != nil && r.ResponseKind.Kind == key.kind && slices.Contains(r.Verbs, "get") {
				resource = r
				break
			}
		}
	}
	a.mu.Unlock()
	if resource == nil {
		return o, fmt.Errorf("discovery of %s shows no %s", key.apiVersion, key.kind)
	}
	path := "/apis/" + key.apiVersion + "/"
	if resource.Scope == apidiscovery.ScopeNamespace {
		if key.namespace == "" {
			return o, fmt.Errorf("%s is namespaced and its dependent is not", key.kind)
		}
		path += "namespaces/" + url.PathEscape(key.namespace) + "/"
	}
	w, err := a.Way(svc)
	if err != nil {
		return o, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+w.Host()+path+resource.Resource+"/"+url.PathEscape(key.name), nil)
	if err != nil {
		return o, err
	}
	req.Header.Set("Accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json")
	resp, err := w.For(collector, false).RoundTrip(req)
	if err != nil {
		return o, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return Owner{IsAbsent: true}, nil
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, MaxDocument))
	if err != nil {
		return o, err
	}
	if resp.StatusCode != http.StatusOK {
		return o, fmt.Errorf("status %d", resp.StatusCode)
	}
	var meta metav1.PartialObjectMetadata
	if err := json.Unmarshal(data, &meta); err != nil {
		return o, err
	}
	switch {
	case meta.UID == "":
		return o, fmt.Errorf("%s %q is answered without a UID", key.kind, key.name)
	case string(meta.UID) != key.uid:
		return Owner{IsAbsent: true}, nil
	}
	o.IsWaiting = meta.DeletionTimestamp != nil && slices.Contains(meta.Finalizers, metav1.FinalizerDeleteDependents)
	return o, nil
}
