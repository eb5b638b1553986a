// Command hasher answers POST / with the SHA-256 of the body, in hexadecimal. The
// body may be 1 MiB at most.
//
//	LISTEN  address to serve at (:8080)
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"

	"proa.dev/examples/dockercoins/serve"
)

// version is set by the linker.
var version = "dev"

const maxBytes = 1 << 20

func main() {
	serve.Main(func(ctx context.Context) error {
		host, _ := os.Hostname()
		log.Printf("hasher %s on %s", version, host)
		return serve.HTTP(ctx, serve.Env("LISTEN", ":8080"), handler(host))
	})
}

func handler(host string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "hasher %s on %s\n", version, host)
	})
	mux.HandleFunc("POST /{$}", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, http.MaxBytesReader(w, r.Body, maxBytes))
		var long *http.MaxBytesError
		switch {
		case errors.As(err, &long):
			http.Error(w, fmt.Sprintf("the body is longer than %d bytes", maxBytes), http.StatusRequestEntityTooLarge)
			return
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("X-Served-By", host)
		fmt.Fprint(w, hex.EncodeToString(h.Sum(nil)))
		log.Printf("hashed %d bytes for %s", n, r.RemoteAddr)
	})
	return mux
}
