package admit

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"proa.dev/kind"
)

// EventLimit is one limit of EventRateLimit: qps events a second with bursts, for
// each key of its type; CacheSize keys are remembered (0: 4,096).
type EventLimit struct {
	Type      string `json:"type"` // Server, Namespace, User, SourceAndObject
	QPS       int32  `json:"qps"`
	Burst     int32  `json:"burst"`
	CacheSize int32  `json:"cacheSize,omitempty"`
}

// Check says what is wrong with a limit.
func (l EventLimit) Check() error {
	switch l.Type {
	case "Server", "Namespace", "User", "SourceAndObject":
	default:
		return fmt.Errorf("type %q is none of Server, Namespace, User, SourceAndObject", l.Type)
	}
	if l.QPS <= 0 || l.Burst <= 0 || l.CacheSize < 0 {
		return fmt.Errorf("limit of type %q: qps and burst must be greater than 0, cacheSize not below", l.Type)
	}
	return nil
}

// EventRateLimit refuses events beyond its limits with 429 (docs, "Admission
// Control in Kubernetes"). Off unless enabled; without limits it refuses nothing.
func EventRateLimit(limits []EventLimit) Plugin {
	var mu sync.Mutex
	buckets := make([]map[string]*bucket, len(limits))
	for i := range buckets {
		buckets[i] = map[string]*bucket{}
	}
	return Plugin{Name: "EventRateLimit", Validate: func(_ context.Context, r *Request) error {
		if r.Kind != kind.Event || r.DryRun || r.Operation != Create && r.Operation != Update {
			return nil
		}
		e, _ := r.Object.(*corev1.Event)
		if e == nil {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		var refused error
		for i, l := range limits {
			key := ""
			switch l.Type {
			case "Namespace":
				key = r.Namespace
			case "User":
				key = r.User.Name
			case "SourceAndObject":
				o := e.InvolvedObject
				key = e.Source.Component + e.Source.Host + o.Kind + o.Namespace + o.Name + string(o.UID) + o.APIVersion
			}
			// Each limit has its say, so that none is spared by another.
			if !take(buckets[i], key, l, r.Now) && refused == nil {
				refused = apierrors.NewTooManyRequestsError(fmt.Sprintf("limit reached on type %s for key %s", l.Type, key))
			}
		}
		return refused
	}}
}

type bucket struct {
	tokens float64
	last   time.Time
}

// take a token of key; keys beyond the size of the cache push the one out that was
// used longest ago.
func take(all map[string]*bucket, key string, l EventLimit, now time.Time) bool {
	b := all[key]
	if b == nil {
		size := int(l.CacheSize)
		if size == 0 {
			size = 4096
		}
		for len(all) >= size {
			oldest, at := "", time.Time{}
			for k, x := range all {
				if at.IsZero() || x.last.Before(at) {
					oldest, at = k, x.last
				}
			}
			delete(all, oldest)
		}
		b = &bucket{tokens: float64(l.Burst), last: now}
		all[key] = b
	}
	if since := now.Sub(b.last); since > 0 {
		b.tokens = min(float64(l.Burst), b.tokens+since.Seconds()*float64(l.QPS))
		b.last = now
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
