package server

import (
	"context"

	certificatesv1 "k8s.io/api/certificates/v1"

	"proa.dev/apiserver/auth"
)

// mayRequest asks the authorizers for the approver of nodes' certificates: may who
// made a request create certificatesigningrequests/SUB?
func (s *Server) mayRequest(r *certificatesv1.CertificateSigningRequestSpec, sub string) bool {
	u := auth.User{Name: r.Username, UID: r.UID, Groups: r.Groups, Extra: auth.Extra[[]string](r.Extra)}
	d, _, err := s.Authz.Authorize(context.Background(), auth.Attributes{User: u, Verb: "create", Group: certificatesv1.GroupName, Version: "*", Resource: "certificatesigningrequests", Subresource: sub})
	return d == auth.Allow && err == nil
}
