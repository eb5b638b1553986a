// Command rng serves random bytes: GET /32 answers 32 of them, at most 1 MiB.
//
//	LISTEN  address to serve at (:8080)
//	DELAY   how long each answer takes at least (0s)
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"time"

	"proa.dev/examples/dockercoins/serve"
)

// version is set by the linker.
var version = "dev"

const maxBytes = 1 << 20

func main() {
	serve.Main(func(ctx context.Context) error {
		delay, err := serve.Duration("DELAY", 0)
		if err != nil {
			return err
		}
		host, _ := os.Hostname()
		log.Printf("rng %s on %s", version, host)
		return serve.HTTP(ctx, serve.Env("LISTEN", ":8080"), handler(host, delay))
	})
}

func handler(host string, delay time.Duration) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "rng %s on %s\n", version, host)
	})
	mux.HandleFunc("GET /{bytes}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.PathValue("bytes"))
		if err != nil || n < 1 || n > maxBytes {
			http.Error(w, fmt.Sprintf("how many bytes is %q? want 1 to %d", r.PathValue("bytes"), maxBytes), http.StatusBadRequest)
			return
		}
		if !wait(r.Context(), delay) {
			return
		}
		b := make([]byte, n)
		rand.Read(b)
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("X-Served-By", host)
		w.Write(b)
		log.Printf("%d bytes to %s", n, r.RemoteAddr)
	})
	return mux
}

func wait(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
