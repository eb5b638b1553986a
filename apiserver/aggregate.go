package apiserver

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"

	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"proa.dev/apiserver/extend/aggregate"
)

// remote is the APIService that sends the request to another server; nil: it is
// for this one.
func (q *request) remote() *apiregistrationv1.APIService {
	r := &q.route
	if q.s.cfg.Aggregate == nil || r.group == "" || r.version == "" || r.kind != nil && !r.kind.Custom {
		return nil
	}
	return aggregate.Find(q.s.view.Snapshot(), r.group, r.version)
}

// serveRemote hands an authorized request over to the server of an APIService. The
// answers about its being out of reach are plain text, as upstream's.
func (q *request) serveRemote(ctx context.Context, svc *apiregistrationv1.APIService) error {
	if !aggregate.IsAvailable(svc) {
		return q.refuseRemote("service unavailable", http.StatusServiceUnavailable)
	}
	way, err := q.s.cfg.Aggregate.Way(svc)
	if err != nil {
		return q.refuseRemote(err.Error(), http.StatusInternalServerError)
	}
	if !q.long {
		// The bound of this server's own requests is not for waiting for others: they
		// have one for each of them.
		if !way.Enter() {
			q.s.metrics.dropped(q)
			return q.tooMany(1)
		}
		defer way.Leave()
	}
	q.leave()
	target := &url.URL{Scheme: "https", Host: way.Host(), Path: q.r.URL.Path, RawPath: q.r.URL.RawPath, RawQuery: q.r.URL.RawQuery}
	upgrade := q.r.Header.Get("Upgrade") != ""
	transport := way.For(q.user, upgrade)
	if upgrade {
		if err := q.tunnel(ctx, transport, target); err != nil {
			return q.unreached(ctx, errors.Unwrap(err), err)
		}
		return nil
	}
	failed := q.carry(ctx, transport, target, func(out http.Header) {
		for key := range out {
			if strings.HasPrefix(key, "Impersonate-") {
				out.Del(key)
			}
		}
		out.Set(auditIDHeader, q.auditID[0])
	}, func(resp *http.Response) {
		resp.Header.Del(auditIDHeader) // ours is there already
	})
	if failed != nil {
		return q.unreached(ctx, failed, failed)
	}
	return nil
}

// unreached answers that the server of an APIService did not answer.
func (q *request) unreached(ctx context.Context, cause, err error) error {
	if q.code != 0 {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var nowhere *aggregate.Unresolved
	if errors.As(cause, &nowhere) {
		q.s.log.Debug("an APIService leads nowhere", "path", q.r.URL.Path, "error", err)
		return q.refuseRemote("service unavailable", http.StatusServiceUnavailable)
	}
	q.s.log.Debug("the server of an APIService did not answer", "path", q.r.URL.Path, "error", err)
	return q.refuseRemote(err.Error(), http.StatusServiceUnavailable)
}

func (q *request) refuseRemote(text string, code int) error {
	http.Error(q.w, text, code)
	return nil
}
