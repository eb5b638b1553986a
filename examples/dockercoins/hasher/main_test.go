package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHasher(t *testing.T) {
	for _, tt := range []struct {
		method, body string
		code         int
		want         string
	}{
		{http.MethodPost, "", 200, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		{http.MethodPost, "abc", 200, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
		{http.MethodPost, strings.Repeat("x", maxBytes+1), 413, "the body is longer than 1048576 bytes\n"},
		{http.MethodGet, "", 200, "hasher dev on here\n"},
		{http.MethodPut, "", 405, "Method Not Allowed\n"},
	} {
		w := httptest.NewRecorder()
		handler("here").ServeHTTP(w, httptest.NewRequest(tt.method, "/", strings.NewReader(tt.body)))
		if w.Code != tt.code || w.Body.String() != tt.want {
			t.Errorf("%s %.10s: %d %q", tt.method, tt.body, w.Code, w.Body)
		}
	}
}
