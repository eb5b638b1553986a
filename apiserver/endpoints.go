package apiserver

import (
	"net"
	"strconv"

	discoveryv1 "k8s.io/api/discovery/v1"

	"proa.dev/kind"
	"proa.dev/view"
)

// serviceEndpoints are the ready addresses of a service port as host:port.
func serviceEndpoints(snap view.Snapshot, namespace, name, port string) []string {
	var out []string
	for s := range view.List[*discoveryv1.EndpointSlice](snap, kind.EndpointSlice, namespace) {
		if s.Labels[discoveryv1.LabelServiceName] != name {
			continue
		}
		for _, p := range s.Ports {
			if p.Port == nil || (p.Name != nil && *p.Name != port) || (p.Name == nil && port != "") {
				continue
			}
			for _, e := range s.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready || len(e.Addresses) == 0 {
					continue
				}
				out = append(out, net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port))))
			}
		}
	}
	return out
}
