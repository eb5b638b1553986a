// Package elect lets one of several servers do what only one may do at a time. They
// agree by a Lease (coordination.k8s.io/v1), as client libraries' leader election
// does, and with its times: who holds the Lease renews it every RetryPeriod; who has
// not managed to for RenewDeadline stops leading; who has seen the Lease unchanged
// for as long as it says takes it over. Clocks of different machines are never
// compared: only how long ago this process has seen a change counts.
//
// Losing the Lease ends Lead's context and waits for Lead; the process goes on and
// tries again. A server that ends gives the Lease back, so that another one leads
// within RetryPeriod. Writes of a leader that does not know yet that it is none
// are conditional on the revision that they were decided from, as all writes are.
package elect

import (
	"context"
	"errors"
	"log/slog"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/client"
	"proa.dev/env"
	"proa.dev/kind"
)

// Times of an election, as upstream's defaults.
const (
	DefaultLeaseDuration = 15 * time.Second
	DefaultRenewDeadline = 10 * time.Second
	DefaultRetryPeriod   = 2 * time.Second
)

// Config of Run.
type Config struct {
	Client          client.Client
	Clock           env.Clock
	Log             *slog.Logger
	Namespace, Name string // of the Lease
	// Identity of this process; no other one has it.
	Identity string

	LeaseDuration, RenewDeadline, RetryPeriod time.Duration // 0: the defaults

	// Lead does what the leader does until its context ends.
	Lead func(ctx context.Context) error
	// Leads is told when leading begins and ends. Optional.
	Leads func(bool)
}

// elector is one candidate.
type elector struct {
	Config
	seen   *coordinationv1.Lease // newest state
	seenAt time.Time             // when it was first seen like that
}

// Run takes part until ctx ends, or Lead ends with an error while leading.
func Run(ctx context.Context, c Config) error {
	if c.LeaseDuration == 0 {
		c.LeaseDuration = DefaultLeaseDuration
	}
	if c.RenewDeadline == 0 {
		c.RenewDeadline = DefaultRenewDeadline
	}
	if c.RetryPeriod == 0 {
		c.RetryPeriod = DefaultRetryPeriod
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.RenewDeadline >= c.LeaseDuration || c.RetryPeriod >= c.RenewDeadline {
		return errors.New("elect a leader: the lease must be longer than the time to renew it, and that longer than the pause between two tries")
	}
	e := &elector{Config: c}
	for ctx.Err() == nil {
		if !e.acquire(ctx) {
			return nil
		}
		e.Log.Info("this server leads", "lease", e.Name, "identity", e.Identity)
		if err := e.lead(ctx); err != nil {
			return err
		}
		e.Log.Warn("this server leads no longer", "lease", e.Name, "identity", e.Identity)
	}
	return nil
}

// acquire returns true when this process holds the Lease, false when ctx ended.
func (e *elector) acquire(ctx context.Context) bool {
	for {
		ok, err := e.try(ctx)
		if ok {
			return true
		}
		if err != nil && ctx.Err() == nil {
			e.Log.Debug("lease was not taken", "lease", e.Name, "error", err)
		}
		if !env.Sleep(ctx, e.Clock, e.RetryPeriod) {
			return false
		}
	}
}

// lead runs Lead and renews the Lease beside it.
func (e *elector) lead(ctx context.Context) error {
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	if e.Leads != nil {
		e.Leads(true)
		defer e.Leads(false)
	}
	go func() { ended <- e.Lead(work) }()
	renewed := e.Clock.Now()
	for {
		t := e.Clock.NewTimer(e.RetryPeriod)
		select {
		case err := <-ended:
			t.Stop()
			e.release(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if err == nil {
				err = errors.New("leading ended by itself")
			}
			return err
		case <-ctx.Done():
			t.Stop()
			<-ended
			e.release(ctx)
			return nil
		case <-t.C():
		}
		left := renewed.Add(e.RenewDeadline).Sub(e.Clock.Now())
		asked, stop := context.WithTimeout(ctx, max(left, time.Millisecond))
		began := e.Clock.Now()
		ok, err := e.try(asked)
		stop()
		switch {
		case ok:
			renewed = began
			continue
		case err != nil && ctx.Err() == nil:
			e.Log.Debug("lease was not renewed", "lease", e.Name, "error", err)
		}
		taken := err == nil // somebody else has it
		if taken || !e.Clock.Now().Before(renewed.Add(e.RenewDeadline)) {
			cancel()
			<-ended
			return nil
		}
	}
}

// try takes or renews the Lease. False without an error: somebody else holds it.
func (e *elector) try(ctx context.Context) (bool, error) {
	got, err := e.Client.Get(ctx, kind.Lease, e.Namespace, e.Name, metav1.GetOptions{})
	now := metav1.NewMicroTime(e.Clock.Now())
	seconds := int32((e.LeaseDuration + time.Second - 1) / time.Second)
	if apierrors.IsNotFound(err) {
		zero := int32(0)
		made, err := e.Client.Create(ctx, kind.Lease, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: e.Name},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: &e.Identity, LeaseDurationSeconds: &seconds,
				AcquireTime: &now, RenewTime: &now, LeaseTransitions: &zero},
		}, metav1.CreateOptions{})
		if err != nil {
			return false, err
		}
		e.see(made.(*coordinationv1.Lease))
		return true, nil
	}
	if err != nil {
		return false, err
	}
	have := got.(*coordinationv1.Lease)
	e.see(have)
	holder := ""
	if have.Spec.HolderIdentity != nil {
		holder = *have.Spec.HolderIdentity
	}
	if holder != "" && holder != e.Identity && !e.isOver(have) {
		return false, nil
	}
	next := have.DeepCopy()
	next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds, next.Spec.RenewTime = &e.Identity, &seconds, &now
	if holder != e.Identity {
		next.Spec.AcquireTime = &now
		n := int32(1)
		if have.Spec.LeaseTransitions != nil {
			n += *have.Spec.LeaseTransitions
		}
		next.Spec.LeaseTransitions = &n
	}
	made, err := e.Client.Update(ctx, kind.Lease, next, "", metav1.UpdateOptions{})
	if err != nil {
		return false, err
	}
	e.see(made.(*coordinationv1.Lease))
	return true, nil
}

// see notes when the Lease was first seen as it is.
func (e *elector) see(l *coordinationv1.Lease) {
	if e.seen == nil || e.seen.ResourceVersion != l.ResourceVersion || e.seen.UID != l.UID {
		e.seen, e.seenAt = l, e.Clock.Now()
	}
}

// isOver: the Lease has been as it is for longer than it says.
func (e *elector) isOver(l *coordinationv1.Lease) bool {
	d := e.LeaseDuration
	if l.Spec.LeaseDurationSeconds != nil {
		d = time.Duration(*l.Spec.LeaseDurationSeconds) * time.Second
	}
	return !e.Clock.Now().Before(e.seenAt.Add(d))
}

// releaseTime bounds giving the Lease back.
const releaseTime = 2 * time.Second

// release gives the Lease back, if it is still held.
func (e *elector) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
	defer cancel()
	got, err := e.Client.Get(ctx, kind.Lease, e.Namespace, e.Name, metav1.GetOptions{})
	if err != nil {
		return // it runs out by itself
	}
	l := got.(*coordinationv1.Lease).DeepCopy()
	if l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity != e.Identity {
		return
	}
	none, second, now := "", int32(1), metav1.NewMicroTime(e.Clock.Now())
	l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime = &none, &second, &now
	if _, err := e.Client.Update(ctx, kind.Lease, l, "", metav1.UpdateOptions{}); err != nil {
		e.Log.Debug("lease was not given back; it runs out", "lease", e.Name, "error", err)
	}
}
