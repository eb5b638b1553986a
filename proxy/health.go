package proxy

import (
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// healthServers answer load balancers on the health check ports of services
// (spec.healthCheckNodePort): 200 while this node has endpoints, else 503.
// set and reset are called from one goroutine.
type healthServers struct {
	listen func(uint16) (net.Listener, error)
	log    *slog.Logger
	wg     sync.WaitGroup
	ports  map[types.NamespacedName]*healthServer
}

type healthServer struct {
	port   uint16
	name   types.NamespacedName
	server *http.Server
	mu     sync.Mutex
	local  int
}

func newHealthServers(listen func(uint16) (net.Listener, error), log *slog.Logger) *healthServers {
	return &healthServers{listen: listen, log: log, ports: map[types.NamespacedName]*healthServer{}}
}

// reset closes the servers of services that are gone; those that remain are set
// again right after.
func (h *healthServers) reset() {
	for name := range h.ports {
		h.set(name, 0, 0)
	}
}

// set opens, updates or (port 0) closes the server of a service.
func (h *healthServers) set(name types.NamespacedName, port uint16, local int) {
	s := h.ports[name]
	if s != nil && s.port == port {
		s.mu.Lock()
		s.local = local
		s.mu.Unlock()
		return
	}
	if s != nil {
		s.server.Close()
		delete(h.ports, name)
	}
	if port == 0 {
		return
	}
	l, err := h.listen(port)
	if err != nil {
		h.log.Warn("health check port cannot be opened; load balancers will pass this node by", "service", name, "port", port, "err", err)
		return
	}
	s = &healthServer{port: port, name: name, local: local}
	s.server = &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second}
	h.ports[name] = s
	h.wg.Go(func() { s.server.Serve(l) })
}

func (h *healthServers) close() {
	h.reset()
	h.wg.Wait()
}

// ServeHTTP answers as kube-proxy does.
func (s *healthServer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	local := s.local
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", jsonText(local))
	if local == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	json.NewEncoder(w).Encode(map[string]any{
		"service":             map[string]string{"namespace": s.name.Namespace, "name": s.name.Name},
		"localEndpoints":      local,
		"serviceProxyHealthy": true,
	})
}

func jsonText(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}
