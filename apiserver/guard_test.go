package apiserver

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestGuard: a client that does not read ends the write, over HTTP/1.1 and
// HTTP/2; other requests of the same connection go on.
func TestGuard(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		failed := make(chan error, 1)
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/ok" {
				return
			}
			g := newGuard(w, 50*time.Millisecond)
			defer g.end()
			piece := make([]byte, 1<<20)
			for range 200 {
				if err := g.do(50*time.Millisecond, func() error { _, err := w.Write(piece); return err }); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}))
		s.EnableHTTP2 = h2
		s.StartTLS()
		c := s.Client()
		res, err := c.Get(s.URL + "/slow")
		if err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-failed:
			if err == nil {
				t.Errorf("HTTP/2 %v: 200 MB were written to a client that does not read", h2)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("HTTP/2 %v: the write hangs", h2)
		}
		if ok, err := c.Get(s.URL + "/ok"); err != nil {
			t.Errorf("HTTP/2 %v: the next request: %v", h2, err)
		} else {
			ok.Body.Close()
		}
		res.Body.Close()
		s.Close()
	}
}
