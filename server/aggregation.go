package server

import (
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/cluster/pki"
	"proa.dev/control/apiservice"
	"proa.dev/control/garbage"
	"proa.dev/control/namespace"
	"proa.dev/view"
)

// elsewhere has a namespace emptied on servers behind APIServices.
func (s *Server) elsewhere(snap view.Snapshot, name string) namespace.Elsewhere {
	e, ok := s.others.Empty(snap, name)
	return namespace.Elsewhere{IsKnown: ok, Groups: e.Groups, Problems: e.Problems, Remaining: e.Remaining, Finalizers: e.Finalizers}
}

// owner looks an owner up on the server behind an APIService that has its kind.
func (s *Server) owner(snap view.Snapshot, r metav1.OwnerReference, namespace string) (garbage.Owner, bool) {
	o, ok := s.others.Owner(snap, r, namespace)
	switch {
	case !ok, o.Unreachable && !o.IsKnown:
		return garbage.Unknown, ok
	case !o.IsKnown:
		return garbage.Asking, true
	case o.IsAbsent:
		return garbage.Absent, true
	case o.IsWaiting:
		return garbage.Waiting, true
	}
	return garbage.Present, true
}

// trust is what servers behind APIServices are told: who may speak for users, and
// whose certificates are users'.
func (s *Server) trust() apiservice.Trust {
	c := &s.cfg
	t := apiservice.Trust{ClientCA: c.First.CA, RequestHeader: c.FrontProxyCA}
	if len(c.FrontProxyCA) > 0 {
		t.Names = []string{pki.FrontProxyName}
	}
	if file := c.Access.ClientCAFile; file != "" {
		// It was read a moment ago by what authenticates.
		if data, err := os.ReadFile(file); err == nil {
			t.ClientCA = data
		}
	}
	if h := c.Access.RequestHeader; h.CAFile != "" {
		if data, err := os.ReadFile(h.CAFile); err == nil {
			t.RequestHeader = append(append([]byte(nil), t.RequestHeader...), data...)
			// No names in the flag means every name.
			if t.Names = append(t.Names, h.AllowedNames...); len(h.AllowedNames) == 0 {
				t.Names = nil
			}
		}
	}
	return t
}
