package web

import (
	"bytes"
	"context"
	"fmt"
	"image/png"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestLook(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/more" {
			fmt.Fprint(w, "fetched")
			return
		}
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, `<body style="background:#123456;margin:0"><p id=p>plain</p><script>
			setTimeout(async () => { p.textContent = "scripted and " + await (await fetch("/more")).text() }, 2000)</script>`)
	}))
	defer s.Close()
	dom, picture, err := Look(context.Background(), s.URL)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(dom, "scripted and fetched") {
		t.Errorf("the script did not run: %s", dom)
	}
	img, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		t.Fatal(err)
	}
	if r, g, b, _ := img.At(600, 500).RGBA(); r>>8 != 0x12 || g>>8 != 0x34 || b>>8 != 0x56 {
		t.Errorf("the picture is not of the page: %x %x %x", r>>8, g>>8, b>>8)
	}
}

func TestNobodyThere(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	if dom, _, err := Look(context.Background(), s.URL); err == nil {
		t.Errorf("no error for a refused connection; the page is %.300q", dom)
	}
}
