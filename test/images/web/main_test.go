package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestWeb(t *testing.T) {
	h := handler("pod", time.Millisecond)
	for _, tt := range []struct {
		method, path string
		code         int
		body         string
	}{
		{http.MethodGet, "/", 200, "dev pod\n"},
		{http.MethodPost, "/", 200, "dev pod\n"},
		{http.MethodGet, "/slow?for=1ms", 200, "dev pod\n"},
		{http.MethodGet, "/slow?for=1h", 400, ""},
		{http.MethodGet, "/readyz", 200, "ok\n"},
		{http.MethodPost, "/unready", 200, ""},
		{http.MethodGet, "/readyz", 503, ""},
		{http.MethodPost, "/ready", 200, ""},
		{http.MethodGet, "/readyz", 200, "ok\n"},
		{http.MethodGet, "/absent", 404, ""},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, nil))
		if w.Code != tt.code || tt.body != "" && w.Body.String() != tt.body {
			t.Errorf("%s %s: %d %q", tt.method, tt.path, w.Code, w.Body)
		}
	}
}
