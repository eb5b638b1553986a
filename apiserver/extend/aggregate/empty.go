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
	"proa.dev/kind"
	"proa.dev/view"
)

// Emptied is what came of emptying a namespace on the servers behind APIServices.
type Emptied struct {
	// Groups that could not be asked, with the reasons; Problems of deleting.
	Groups, Problems []string
	// Remaining objects by RESOURCE.GROUP, and those with a finalizer by its name.
	Remaining, Finalizers map[string]int

	wanted bool      // to be done (again)
	isDone bool      // once at least
	at     time.Time // when it was asked for
}

const (
	// emptyEvery is how old an answer may be before the servers are asked again.
	emptyEvery   = 3 * time.Second
	emptyTimeout = 20 * time.Second
	emptyKept    = 10 * time.Minute
)

var emptier = auth.User{Name: auth.ServiceAccountUser + "kube-system:namespace-controller", Groups: []string{auth.Masters, auth.AllAuthenticated}}

// Empty has a namespace emptied in the background and returns what came of it
// lately; ok is false as long as nothing did. It does not block. It is for
// namespaces that are being deleted.
func (a *Aggregator) Empty(s view.Snapshot, namespace string) (e Emptied, ok bool) {
	isAny := false
	for svc := range view.List[*apiregistrationv1.APIService](s, kind.APIService, "") {
		if svc.Spec.Service != nil && Find(s, svc.Spec.Group, svc.Spec.Version) != nil {
			isAny = true
			break
		}
	}
	if !isAny {
		return Emptied{}, true
	}
	ns := s.Get(kind.Namespace, "", namespace)
	if ns == nil {
		return Emptied{}, true
	}
	key := namespace + "/" + string(ns.GetUID())
	now := a.cfg.Clock.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	for k, old := range a.empty {
		if now.Sub(old.at) > emptyKept {
			delete(a.empty, k)
		}
	}
	have := a.empty[key]
	if have == nil {
		have = &Emptied{}
		a.empty[key] = have
	}
	if !have.wanted && (!have.isDone || now.Sub(have.at) >= emptyEvery) {
		have.wanted, have.at = true, now
		select {
		case a.asked <- struct{}{}:
		default:
		}
	}
	return *have, have.isDone
}

// emptying does what Empty asks for, until ctx ends.
func (a *Aggregator) emptying(ctx context.Context) {
	for {
		select {
		case <-a.asked:
		case <-ctx.Done():
			return
		}
		var keys []string
		a.mu.Lock()
		for key, e := range a.empty {
			if e.wanted {
				keys = append(keys, key)
			}
		}
		a.mu.Unlock()
		sort.Strings(keys)
		for _, key := range keys {
			namespace, _, _ := strings.Cut(key, "/")
			e := a.emptyOne(ctx, namespace)
			if ctx.Err() != nil {
				return
			}
			e.isDone, e.at = true, a.cfg.Clock.Now()
			a.mu.Lock()
			a.empty[key] = e
			a.mu.Unlock()
		}
	}
}

// emptyOne asks all servers at the same time, each with its own bound.
func (a *Aggregator) emptyOne(ctx context.Context, namespace string) *Emptied {
	type target struct {
		svc       *apiregistrationv1.APIService
		resources []apidiscovery.APIResourceDiscovery
		current   bool
	}
	var targets []target
	a.mu.Lock()
	for _, n := range a.known {
		targets = append(targets, target{n.svc, n.resources, n.current})
	}
	a.mu.Unlock()
	sort.Slice(targets, func(i, j int) bool { return targets[i].svc.Name < targets[j].svc.Name })
	out := &Emptied{Remaining: map[string]int{}, Finalizers: map[string]int{}}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, t := range targets {
		gv := t.svc.Spec.Group + "/" + t.svc.Spec.Version
		if !t.current {
			out.Groups = append(out.Groups, gv+": stale GroupVersion discovery: "+gv)
			continue
		}
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, emptyTimeout)
			defer cancel()
			for i := range t.resources {
				r := &t.resources[i]
				if r.Scope != apidiscovery.ScopeNamespace || !slices.Contains(r.Verbs, "delete") {
					continue
				}
				items, err := a.emptyResource(ctx, t.svc, r, namespace)
				mu.Lock()
				if err != nil {
					out.Problems = append(out.Problems, err.Error())
				}
				if len(items) > 0 {
					out.Remaining[r.Resource+"."+t.svc.Spec.Group] += len(items)
				}
				for _, o := range items {
					for _, f := range o.Finalizers {
						out.Finalizers[f]++
					}
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	sort.Strings(out.Problems)
	return out
}

// emptyResource deletes the objects of one resource and returns those that are
// still there.
func (a *Aggregator) emptyResource(ctx context.Context, svc *apiregistrationv1.APIService, r *apidiscovery.APIResourceDiscovery, namespace string) ([]metav1.PartialObjectMetadata, error) {
	w, err := a.Way(svc)
	if err != nil {
		return nil, err
	}
	path := "/apis/" + svc.Spec.Group + "/" + svc.Spec.Version + "/namespaces/" + namespace + "/" + r.Resource
	const background = `{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background"}`
	list := func() (l metav1.PartialObjectMetadataList, err error) {
		if !slices.Contains(r.Verbs, "list") {
			return l, nil
		}
		data, err := w.do(ctx, http.MethodGet, path, "")
		if err == nil && data != nil {
			err = json.Unmarshal(data, &l)
		}
		return l, err
	}
	if slices.Contains(r.Verbs, "deletecollection") {
		if _, err := w.do(ctx, http.MethodDelete, path, background); err != nil {
			return nil, err
		}
	} else {
		l, err := list()
		if err != nil {
			return nil, err
		}
		for i := range l.Items {
			if _, err := w.do(ctx, http.MethodDelete, path+"/"+url.PathEscape(l.Items[i].Name), background); err != nil {
				return l.Items, err
			}
		}
	}
	l, err := list()
	return l.Items, err
}

// do one request as the controller of namespaces; what is not there or not
// possible is no error and has no data.
func (w *Way) do(ctx context.Context, method, path, body string) ([]byte, error) {
	var send io.Reader
	if body != "" {
		send = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+w.Host()+path, send)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Content-Type", "application/json")
	resp, err := w.For(emptier, false).RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", strings.ToLower(method), path, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, MaxDocument))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", strings.ToLower(method), path, err)
	}
	switch {
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed:
		return nil, nil
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return nil, fmt.Errorf("%s %s: status %d", strings.ToLower(method), path, resp.StatusCode)
	}
	return data, nil
}
