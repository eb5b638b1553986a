// Command web is what the machine tests run in containers: a small HTTP server
// that says who it is, and the load generator for use inside a pod.
//
//	web [-listen :8080] [-grace 10s]    serve; the version is $VERSION
//	web get URL                         print an answer
//	web load -url U -requests N ...     send requests, print the counts as JSON
//
// The server ends as every ordinary server does: on SIGTERM it stops accepting,
// finishes the requests it has and exits 0. There is no waiting for load balancers:
// that a cluster sends nothing more by then is what the tests measure.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"proa.dev/test/machine/load"
)

func main() {
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == "load":
		err = send(os.Args[2:])
	case len(os.Args) > 2 && os.Args[1] == "get":
		err = get(os.Args[2])
	default:
		err = serve(os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, filepath.Base(os.Args[0])+":", err)
		os.Exit(1)
	}
}

func send(args []string) error {
	f := flag.NewFlagSet("load", flag.ExitOnError)
	var c load.Config
	f.StringVar(&c.URL, "url", "", "where to")
	f.IntVar(&c.Requests, "requests", 1000, "in total")
	f.IntVar(&c.Workers, "workers", 8, "connections at a time")
	f.IntVar(&c.Rate, "rate", 0, "requests per second")
	f.BoolVar(&c.Keep, "keep", false, "reuse connections")
	most := f.Duration("for", 5*time.Minute, "longest time")
	f.Parse(args)
	ctx, cancel := context.WithTimeout(context.Background(), *most)
	defer cancel()
	return json.NewEncoder(os.Stdout).Encode(load.Run(ctx, c))
}

func get(url string) error {
	res, err := (&http.Client{Timeout: 5 * time.Second}).Get(url)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(os.Stdout, res.Body)
	return err
}

func serve(args []string) error {
	f := flag.NewFlagSet("web", flag.ExitOnError)
	listen := f.String("listen", ":8080", "address")
	grace := f.Duration("grace", 10*time.Second, "time for open requests at the end")
	f.Parse(args)
	host, _ := os.Hostname()
	version := os.Getenv("VERSION")
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(load.Answer{Version: version, Pod: host, Client: client})
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(2 * time.Second):
			json.NewEncoder(w).Encode(load.Answer{Version: version, Pod: host})
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	server := &http.Server{Addr: *listen, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.Background(), *grace)
		defer cancel()
		done <- server.Shutdown(end)
	}()
	fmt.Println("serving", version, "on", *listen)
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	err := <-done
	fmt.Println("served to the end")
	return err
}
