package aggregate

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/transport"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"proa.dev/apiserver/extend/hook"
	"proa.dev/kind"
	"proa.dev/view"
)

// answer is what one look at a server gave.
type answer struct {
	condition apiregistrationv1.APIServiceCondition
	resources []metav1.APIResource // nil: not heard
}

// Judge says what the view alone says about an APIService: nil when its server has
// to be asked.
func Judge(s view.Snapshot, svc *apiregistrationv1.APIService) *apiregistrationv1.APIServiceCondition {
	no := func(reason, format string, args ...any) *apiregistrationv1.APIServiceCondition {
		return &apiregistrationv1.APIServiceCondition{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionFalse, Reason: reason,
			Message: fmt.Sprintf(format, args...)}
	}
	ref := svc.Spec.Service
	service := view.Get[*corev1.Service](s, kind.Service, ref.Namespace, ref.Name)
	if service == nil {
		return no("ServiceNotFound", "service/%s in %q is not present", ref.Name, ref.Namespace)
	}
	if service.Spec.Type != corev1.ServiceTypeClusterIP {
		return nil
	}
	want := int32(443)
	if ref.Port != nil {
		want = *ref.Port
	}
	i := slices.IndexFunc(service.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == want })
	if i < 0 {
		return no("ServicePortError", "service/%s in %q is not listening on port %d", ref.Name, ref.Namespace, want)
	}
	port := service.Spec.Ports[i].Name
	any, active := false, false
	for es := range view.List[*discoveryv1.EndpointSlice](s, kind.EndpointSlice, ref.Namespace) {
		if es.Labels[discoveryv1.LabelServiceName] != ref.Name {
			continue
		}
		any = true
		ready := slices.ContainsFunc(es.Endpoints, func(e discoveryv1.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready })
		active = active || ready && slices.ContainsFunc(es.Ports, func(p discoveryv1.EndpointPort) bool {
			return p.Port != nil && (p.Name != nil && *p.Name == port || p.Name == nil && port == "")
		})
	}
	switch {
	case !any:
		return no("EndpointsNotFound", "cannot find endpointslices for service/%s in %q", ref.Name, ref.Namespace)
	case !active:
		return no("MissingEndpoints", "endpointslices for service/%s in %q have no addresses with port name %q", ref.Name, ref.Namespace, port)
	}
	return nil
}

// look asks the server of an APIService for its resources. Up to five of its
// endpoints are asked; one that answers is enough.
func (a *Aggregator) look(ctx context.Context, svc *apiregistrationv1.APIService) answer {
	s := a.cfg.View.Snapshot()
	if c := Judge(s, svc); c != nil {
		return answer{condition: *c}
	}
	failed := func(err error) answer {
		return answer{condition: apiregistrationv1.APIServiceCondition{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionFalse,
			Reason: "FailedDiscoveryCheck", Message: err.Error()}}
	}
	w, err := a.Way(svc)
	if err != nil {
		return failed(err)
	}
	hosts, err := hook.Endpoints(s, w.service)
	if err != nil {
		return failed(err)
	}
	if len(hosts) > 5 {
		first := int(a.cfg.Rand.Uint64() % uint64(len(hosts)))
		hosts = append(slices.Clone(hosts[first:]), hosts[:first]...)[:5]
	}
	ctx, cancel := context.WithTimeout(ctx, CheckTimeout)
	defer cancel()
	type result struct {
		resources []metav1.APIResource
		err       error
	}
	results := make(chan result, len(hosts))
	for _, host := range hosts {
		go func() {
			r, err := w.ask(ctx, host, "/apis/"+svc.Spec.Group+"/"+svc.Spec.Version)
			results <- result{r, err}
		}()
	}
	// All are waited for: the deadline ends them.
	var good *result
	for range hosts {
		r := <-results
		switch {
		case r.err != nil:
			err = r.err
		case good == nil:
			good = &r
			cancel()
		}
	}
	if good == nil {
		return failed(err)
	}
	return answer{resources: good.resources, condition: apiregistrationv1.APIServiceCondition{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue,
		Reason: "Passed", Message: "all checks passed"}}
}

// ask one endpoint for its resources; nil ones if it answers with something else.
func (w *Way) ask(ctx context.Context, host, path string) ([]metav1.APIResource, error) {
	resp, u, err := w.get(ctx, host, path, "application/json", "")
	if err != nil {
		w.close()
		return nil, fmt.Errorf("failing or missing response from %v: %w", u, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, fmt.Errorf("failing or missing response from %v: bad status from %v: %d", u, u, resp.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, MaxDocument))
	if err != nil {
		return nil, fmt.Errorf("failing or missing response from %v: %w", u, err)
	}
	var list metav1.APIResourceList
	if json.Unmarshal(data, &list) != nil {
		return nil, nil
	}
	if list.APIResources == nil {
		list.APIResources = []metav1.APIResource{}
	}
	return list.APIResources, nil
}

// get asks an endpoint ("": any) as this server. Redirects are not followed.
func (w *Way) get(ctx context.Context, host, path, accept, etag string) (*http.Response, *url.URL, error) {
	u := &url.URL{Scheme: "https", Host: w.Host()}
	if host != "" {
		u.Host = host
	}
	u.Path, u.RawQuery, _ = cutQuery(path)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, u, err
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("User-Agent", "kube-aggregator")
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	transport.SetAuthProxyHeaders(req, Identity.Name, "", Identity.Groups, nil)
	resp, err := (&http.Client{Transport: &through{w, w.many, host}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	return resp, u, err
}

func cutQuery(s string) (path, query string, found bool) {
	u, err := url.Parse(s)
	if err != nil {
		return s, "", false
	}
	return u.Path, u.RawQuery, u.RawQuery != ""
}

// withCondition is the status that svc should have; nil when it has it.
func withCondition(svc *apiregistrationv1.APIService, c apiregistrationv1.APIServiceCondition, now time.Time) *apiregistrationv1.APIService {
	c.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
	have := condition(svc)
	if have != nil {
		if have.Status == c.Status && have.Reason == c.Reason && have.Message == c.Message {
			return nil
		}
		if have.Status == c.Status {
			c.LastTransitionTime = have.LastTransitionTime
		}
	}
	next := svc.DeepCopy()
	if have := condition(next); have != nil {
		*have = c
	} else {
		next.Status.Conditions = append(next.Status.Conditions, c)
	}
	return next
}
