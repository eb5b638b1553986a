package apiserver

import (
	"context"
	"net/http"
	"net/http/httputil"
	"net/url"
)

// carry hands the request to target and brings its answer back as it comes; the
// client's credentials stay here. request, when not nil, changes the header that
// goes out, response the answer. It returns why target did not answer.
func (q *request) carry(ctx context.Context, transport http.RoundTripper, target *url.URL, request func(http.Header), response func(*http.Response)) error {
	var failed error
	proxy := &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL = target
			r.Out.Host = target.Host
			r.Out.Header.Del("Authorization")
			r.SetXForwarded()
			if request != nil {
				request(r.Out.Header)
			}
		},
		ModifyResponse: func(resp *http.Response) error {
			response(resp)
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err },
	}
	proxy.ServeHTTP(q.w, q.r.WithContext(ctx))
	return failed
}
