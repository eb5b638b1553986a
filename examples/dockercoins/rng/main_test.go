package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestRng(t *testing.T) {
	h := handler("here", 0)
	for _, tt := range []struct {
		path       string
		code, size int
	}{{"/32", 200, 32}, {"/1048576", 200, 1 << 20}, {"/1048577", 400, -1}, {"/0", 400, -1}, {"/x", 400, -1}, {"/1/2", 404, -1}, {"/", 200, len("rng dev on here\n")}} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, tt.path, nil))
		if w.Code != tt.code || tt.size >= 0 && w.Body.Len() != tt.size {
			t.Errorf("%s: %d with %d bytes, want %d with %d", tt.path, w.Code, w.Body.Len(), tt.code, tt.size)
		}
	}
	a, b := httptest.NewRecorder(), httptest.NewRecorder()
	h.ServeHTTP(a, httptest.NewRequest(http.MethodGet, "/32", nil))
	h.ServeHTTP(b, httptest.NewRequest(http.MethodGet, "/32", nil))
	if a.Body.String() == b.Body.String() {
		t.Error("the same bytes twice")
	}
}
