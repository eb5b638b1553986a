package apiserver

import (
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"proa.dev/apiserver/auth"
)

// impersonate takes the Impersonate-* headers (Kubernetes docs, "User
// impersonation"): each of them needs the verb impersonate on what it names.
func (q *request) impersonate() error {
	h := q.r.Header
	name := h.Get("Impersonate-User")
	groups := h.Values("Impersonate-Group")
	uid := h.Get("Impersonate-Uid")
	extras := map[string][]string{}
	for key, values := range h {
		if rest, ok := strings.CutPrefix(key, "Impersonate-Extra-"); ok {
			k, err := url.PathUnescape(strings.ToLower(rest))
			if err != nil {
				k = strings.ToLower(rest)
			}
			extras[k] = append(extras[k], values...)
		}
	}
	if name == "" {
		if len(groups) > 0 || uid != "" || len(extras) > 0 {
			return apierrors.NewBadRequest("requested impersonation of groups, uid or extra without impersonating a user")
		}
		return nil
	}
	ctx := q.r.Context()
	ask := func(a auth.Attributes) error {
		a.User, a.Verb, a.Version = q.user, "impersonate", "v1"
		return q.s.authorizeAttributes(ctx, a)
	}
	u := auth.User{Name: name, UID: uid, Groups: append([]string(nil), groups...)}
	if rest, ok := strings.CutPrefix(name, auth.ServiceAccountUser); ok && strings.Count(rest, ":") == 1 {
		ns, sa, _ := strings.Cut(rest, ":")
		if err := ask(auth.Attributes{Resource: "serviceaccounts", Namespace: ns, Name: sa}); err != nil {
			return err
		}
		if len(groups) == 0 {
			u.Groups = []string{auth.ServiceAccounts, auth.ServiceAccounts + ":" + ns}
		}
	} else if err := ask(auth.Attributes{Resource: "users", Name: name}); err != nil {
		return err
	}
	for _, g := range groups {
		if err := ask(auth.Attributes{Resource: "groups", Name: g}); err != nil {
			return err
		}
	}
	if uid != "" {
		if err := ask(auth.Attributes{Group: "authentication.k8s.io", Resource: "uids", Name: uid}); err != nil {
			return err
		}
	}
	for key, values := range extras {
		for _, v := range values {
			if err := ask(auth.Attributes{Group: "authentication.k8s.io", Resource: "userextras", Subresource: key, Name: v}); err != nil {
				return err
			}
		}
		if u.Extra == nil {
			u.Extra = map[string][]string{}
		}
		u.Extra[key] = values
	}
	if name == auth.Anonymous {
		if !u.In(auth.AllUnauthenticated) {
			u.Groups = append(u.Groups, auth.AllUnauthenticated)
		}
	} else if !u.In(auth.AllAuthenticated) && !u.In(auth.AllUnauthenticated) {
		u.Groups = append(u.Groups, auth.AllAuthenticated)
	}
	q.user = u
	q.entry.Impersonated(u)
	for key := range h {
		if strings.HasPrefix(key, "Impersonate-") {
			h.Del(key)
		}
	}
	return nil
}
