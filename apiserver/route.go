package apiserver

import (
	"net/http"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"proa.dev/apiserver/auth"
	"proa.dev/kind"
)

// route is what a URL path and method ask for.
type route struct {
	resource             bool // below a group version
	group, version       string
	plural, sub          string
	namespace, name      string
	rest                 string // what follows the subresource: proxy paths, with its slash
	verb                 string
	watchPrefix          bool // the old /watch/ form
	hasNamespaceSegments bool
	kind                 *kind.Kind // nil: not served
}

// parseRoute reads /api/v1/…, /apis/GROUP/VERSION/…; everything else, discovery
// included, is no resource.
func (s *Server) parseRoute(method, path string) route {
	var r route
	p, ok := strings.CutPrefix(path, "/api/")
	if ok {
		r.version, p, _ = strings.Cut(p, "/")
	} else if p, ok = strings.CutPrefix(path, "/apis/"); ok {
		r.group, p, _ = strings.Cut(p, "/")
		r.version, p, _ = strings.Cut(p, "/")
	}
	if !ok || p == "" || r.version == "" {
		r.verb = strings.ToLower(method)
		return r
	}
	r.resource = true
	if rest, ok := strings.CutPrefix(p, "watch/"); ok {
		r.watchPrefix, p = true, rest
	}
	seg, rest, _ := strings.Cut(p, "/")
	if seg == "namespaces" && rest != "" {
		// namespaces/NAME, namespaces/NAME/status|finalize or a resource within.
		name, tail, deeper := strings.Cut(rest, "/")
		next, _, _ := strings.Cut(tail, "/")
		if !deeper || tail == "" || next == "status" || next == "finalize" {
			r.plural, r.name, r.sub, r.namespace = "namespaces", name, next, name
		} else {
			r.namespace, r.hasNamespaceSegments = name, true
			r.plural, rest, _ = strings.Cut(tail, "/")
			r.splitName(rest)
		}
	} else {
		r.plural = seg
		r.splitName(rest)
	}
	r.kind = s.kinds().ByResource(schema.GroupVersionResource{Group: r.group, Version: r.version, Resource: r.plural})
	switch method {
	case http.MethodGet, http.MethodHead:
		r.verb = "get"
	case http.MethodPost:
		r.verb = "create"
	case http.MethodPut:
		r.verb = "update"
	case http.MethodPatch:
		r.verb = "patch"
	case http.MethodDelete:
		r.verb = "delete"
	}
	if r.name == "" {
		switch r.verb {
		case "get":
			r.verb = "list"
		case "delete":
			r.verb = "deletecollection"
		}
	}
	if r.watchPrefix {
		r.verb = "watch"
	}
	return r
}

func (r *route) splitName(rest string) {
	r.name, rest, _ = strings.Cut(rest, "/")
	sub, tail, more := strings.Cut(rest, "/")
	r.sub = sub
	if more {
		r.rest = "/" + tail
	}
}

// serves says whether the row has this route at all (404) and, if so, the verb
// on it (405).
func (r *route) serves() (found, allowed bool) {
	k := r.kind
	if k == nil {
		return false, false
	}
	if r.sub == "" && r.rest != "" {
		return false, false
	}
	if r.sub == "" {
		if k.Scope == kind.Cluster && r.hasNamespaceSegments || k.Scope == kind.Namespaced && !r.hasNamespaceSegments && r.name != "" {
			return false, false
		}
		if k.Scope == kind.Namespaced && !r.hasNamespaceSegments {
			// Across namespaces: reading only. localsubjectaccessreviews and bindings
			// need their namespace.
			if r.verb != "list" && r.verb != "watch" && r.verb != "get" {
				return true, false
			}
		}
		if r.name == "" && isOneOf(r.verb, "update", "patch") || r.name != "" && r.verb == "create" {
			return true, false
		}
		return true, hasVerb(k.Verbs, r.verb)
	}
	if k.Scope == kind.Namespaced && !r.hasNamespaceSegments || k.Scope == kind.Cluster && r.hasNamespaceSegments || r.name == "" {
		return false, false
	}
	switch r.sub {
	case "status":
		if k.Status != nil {
			return true, r.rest == "" && isOneOf(r.verb, "get", "update", "patch")
		}
	case "scale":
		if k.Scale != nil {
			return true, r.rest == "" && isOneOf(r.verb, "get", "update", "patch")
		}
	}
	for i := range k.Subresources {
		if sub := &k.Subresources[i]; sub.Name == r.sub {
			if r.rest != "" && r.sub != "proxy" {
				return false, false
			}
			return true, r.sub == "proxy" || hasVerb(sub.Verbs, r.verb)
		}
	}
	return false, false
}

func hasVerb(verbs []string, verb string) bool {
	return len(verbs) == 0 || isOneOf(verb, verbs...)
}

func isOneOf(s string, list ...string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// attributes are what authorizers see of the request.
func (r *route) attributes(u auth.User, path, fieldSelector string) auth.Attributes {
	if !r.resource {
		return auth.Attributes{User: u, Verb: r.verb, Path: path}
	}
	return auth.Attributes{User: u, Verb: r.verb, Group: r.group, Version: r.version, Resource: r.plural, Subresource: r.sub,
		Namespace: r.namespace, Name: r.name, FieldSelector: fieldSelector}
}
