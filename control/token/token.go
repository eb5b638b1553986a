// Package token takes Secrets away whose tokens are over: bootstrap tokens past
// their expiration, and tokens of service accounts that are gone (Kubernetes docs,
// "Authenticating with Bootstrap Tokens", "Managing Service Accounts").
package token

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

const bootstrap corev1.SecretType = "bootstrap.kubernetes.io/token"

func of(t corev1.SecretType) func(old, new kind.Object) bool {
	return func(_, new kind.Object) bool {
		s, ok := new.(*corev1.Secret)
		return ok && s.Type == t
	}
}

// CleanerPart registers the cleaner of bootstrap tokens; it plans per Secret.
func CleanerPart() control.Part {
	return control.Part{Name: "token-cleaner-controller", Kind: kind.Secret, When: of(bootstrap), Plan: Clean,
		Writes: []control.Write{{Kind: kind.Secret, Verbs: []string{"delete"}}}}
}

// Clean deletes a bootstrap token whose time is over. One with a time that cannot
// be read is over, as it is for who authenticates.
func Clean(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	secret := view.Get[*corev1.Secret](s, kind.Secret, ref.Namespace, ref.Name)
	if secret == nil || secret.Namespace != metav1.NamespaceSystem || secret.Type != bootstrap || secret.DeletionTimestamp != nil || len(secret.Data["expiration"]) == 0 {
		return nil, time.Time{}
	}
	at, err := time.Parse(time.RFC3339, string(secret.Data["expiration"]))
	if err == nil && now.Before(at) {
		return nil, at
	}
	return act.List{act.Delete{Target: ref, UID: secret.UID, Reason: "the token is over"}}, time.Time{}
}

// AccountPart registers the controller of service accounts' tokens in Secrets; it
// plans per Secret. The tokens themselves are filled in by the API server when the
// Secret is written (admission plugin ServiceAccountTokenSecret).
func AccountPart() control.Part {
	return control.Part{Name: "serviceaccount-token-controller", Kind: kind.Secret, When: of(corev1.SecretTypeServiceAccountToken), Plan: Account,
		Wakes: []control.Wake{{Kind: kind.ServiceAccount, To: func(s view.Snapshot, o kind.Object) []view.Ref {
			var refs []view.Ref
			for secret := range view.List[*corev1.Secret](s, kind.Secret, o.GetNamespace()) {
				if secret.Type == corev1.SecretTypeServiceAccountToken && secret.Annotations[corev1.ServiceAccountNameKey] == o.GetName() {
					refs = append(refs, view.RefOf(kind.Secret, secret))
				}
			}
			return refs
		}, When: func(old, new kind.Object) bool { return old == nil || new == nil || old.GetUID() != new.GetUID() }}},
		Writes: []control.Write{{Kind: kind.Secret, Verbs: []string{"update", "delete"}}}}
}

// Account deletes the token of an account that is gone, or was made again, and
// writes one that waits for its account so that it is filled in.
func Account(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
	secret := view.Get[*corev1.Secret](s, kind.Secret, ref.Namespace, ref.Name)
	if secret == nil || secret.Type != corev1.SecretTypeServiceAccountToken || secret.DeletionTimestamp != nil {
		return nil, time.Time{}
	}
	name, uid := secret.Annotations[corev1.ServiceAccountNameKey], secret.Annotations[corev1.ServiceAccountUIDKey]
	sa := view.Get[*corev1.ServiceAccount](s, kind.ServiceAccount, ref.Namespace, name)
	switch {
	case sa == nil || uid != "" && uid != string(sa.UID):
		return act.List{act.Delete{Target: ref, UID: secret.UID, Reason: "its service account is gone"}}, time.Time{}
	case len(secret.Data[corev1.ServiceAccountTokenKey]) == 0 || uid == "":
		want := secret.DeepCopy()
		want.Annotations[corev1.ServiceAccountUIDKey] = string(sa.UID) // it has the name's annotation, or sa were nil
		return act.List{act.Update{Kind: kind.Secret, Object: want, Reason: "its token is to be filled in"}}, time.Time{}
	}
	return nil, time.Time{}
}
