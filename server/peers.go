package server

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/client"
	"proa.dev/cluster/first"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/store"
)

// peers keeps the endpoints of the Service default/kubernetes: the servers that
// are alive. Each server has a key with a TTL in the store, as upstream's lease
// reconciler has (an Endpoints object under masterleases/, by address), so that
// one that vanishes is taken out by the others within peerTTL + peerEvery.
type peers struct {
	store  store.Store
	client client.Client
	clock  env.Clock
	api    netip.Addr
	port   int32
}

// PeerPrefix is where servers say that they are alive.
const PeerPrefix = "/registry/masterleases/"

// Times of the reconciler, as upstream's.
const (
	peerTTL   = 15 * time.Second
	peerEvery = 10 * time.Second
	peerLeave = 2 * time.Second
)

// run keeps this server among the endpoints until ctx ends, and takes it out then.
func (p *peers) run(ctx context.Context, failed func(error)) error {
	for {
		pause := peerEvery
		if err := p.reconcile(ctx, true); err != nil && ctx.Err() == nil {
			failed(err)
			pause = time.Second
		}
		if env.Sleep(ctx, p.clock, pause) {
			continue
		}
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), peerLeave)
		defer cancel()
		if err := p.reconcile(end, false); err != nil {
			failed(err) // the key runs out by itself
		}
		return nil
	}
}

// reconcile says that this server is there, or not, and makes the endpoints what
// all say.
func (p *peers) reconcile(ctx context.Context, here bool) error {
	key := PeerPrefix + p.api.String()
	if here {
		e := &corev1.Endpoints{Subsets: []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: p.api.String()}}}}}
		e.GetObjectKind().SetGroupVersionKind(kind.Endpoints.GVK())
		value, err := kind.EncodeStored(kind.Endpoints, e)
		if err != nil {
			return err
		}
		if _, err := p.store.Put(ctx, key, value, store.PutOptions{Expect: store.Any, TTL: peerTTL}); err != nil {
			return fmt.Errorf("say that this server is there: %w", err)
		}
	} else if _, _, err := p.store.Delete(ctx, key, store.DeleteOptions{}); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("say that this server is gone: %w", err)
	}
	page, err := p.store.Range(ctx, PeerPrefix, store.PrefixEnd(PeerPrefix), 0, 0)
	if err != nil {
		return fmt.Errorf("look for other servers: %w", err)
	}
	var there []netip.Addr
	for _, kv := range page.KVs {
		if a, err := netip.ParseAddr(kv.Key[len(PeerPrefix):]); err == nil {
			there = append(there, a)
		}
	}
	if len(there) == 0 {
		return nil // the last one leaves its address: whoever comes next replaces it
	}
	slices.SortFunc(there, netip.Addr.Compare)
	return errors.Join(p.endpoints(ctx, there), p.slice(ctx, there))
}

// write makes or changes one object until it is as wanted.
func (p *peers) write(ctx context.Context, k *kind.Kind, fresh kind.Object, mend func(kind.Object) bool) error {
	for range 8 {
		have, err := p.client.Get(ctx, k, metav1.NamespaceDefault, "kubernetes", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			if _, err = p.client.Create(ctx, k, fresh, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
				continue
			}
			return err
		}
		if err != nil {
			return err
		}
		changed := have.DeepCopyObject().(kind.Object)
		if !mend(changed) {
			return nil
		}
		if _, err = p.client.Update(ctx, k, changed, "", metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			return err
		}
	}
	return fmt.Errorf("write %s of the API server: it changed eight times in a row", k)
}

func (p *peers) endpoints(ctx context.Context, there []netip.Addr) error {
	subset := corev1.EndpointSubset{Ports: []corev1.EndpointPort{{Name: "https", Port: p.port, Protocol: corev1.ProtocolTCP}}}
	for _, a := range there {
		subset.Addresses = append(subset.Addresses, corev1.EndpointAddress{IP: a.String()})
	}
	want := &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"}},
		Subsets:    []corev1.EndpointSubset{subset},
	}
	return p.write(ctx, kind.Endpoints, want, func(have kind.Object) bool {
		h := have.(*corev1.Endpoints)
		if apiequality.Semantic.DeepEqual(h.Subsets, want.Subsets) {
			return false
		}
		h.Subsets = want.Subsets
		return true
	})
}

func (p *peers) slice(ctx context.Context, there []netip.Addr) error {
	name, proto, port, yes := "https", corev1.ProtocolTCP, p.port, true
	want := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "kubernetes", Labels: map[string]string{
			discoveryv1.LabelServiceName: "kubernetes", discoveryv1.LabelManagedBy: "proa"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &proto, Port: &port}},
	}
	for _, a := range there {
		want.Endpoints = append(want.Endpoints, discoveryv1.Endpoint{Addresses: []string{a.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}})
	}
	return p.write(ctx, kind.EndpointSlice, want, func(have kind.Object) bool {
		h := have.(*discoveryv1.EndpointSlice)
		if apiequality.Semantic.DeepEqual(h.Endpoints, want.Endpoints) && apiequality.Semantic.DeepEqual(h.Ports, want.Ports) {
			return false
		}
		h.Endpoints, h.Ports = want.Endpoints, want.Ports
		return true
	})
}

// shared says whether other servers may use the same store, and starts what this
// one does for that.
func (s *Server) shared() bool {
	_, ok := s.Store.(store.Shared)
	return ok
}

// firstObjects are those that every server completes: where others serve too, the
// endpoints of the API are peers' business.
func (s *Server) firstObjects() first.Config {
	c := s.cfg.First
	c.NoEndpoints = s.shared()
	return c
}
