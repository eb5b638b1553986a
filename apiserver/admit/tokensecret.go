package admit

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"proa.dev/kind"
	"proa.dev/view"
)

// ServiceAccountTokenSecret fills in Secrets of type
// kubernetes.io/service-account-token when they are written: the account's UID, a
// token for it, the authority and the namespace (docs, "Managing Service Accounts",
// manual Secret management). Upstream's controller does so a moment later;
// control/token does the rest of its work. ca is in PEM.
func ServiceAccountTokenSecret(issue func(sa *corev1.ServiceAccount, secret string) (string, error), ca []byte) Plugin {
	return Plugin{Name: "ServiceAccountTokenSecret", Mutate: func(_ context.Context, r *Request) error {
		s, _ := r.Object.(*corev1.Secret)
		if s == nil || issue == nil || r.Sub != "" || r.Operation != Create && r.Operation != Update || s.Type != corev1.SecretTypeServiceAccountToken || s.DeletionTimestamp != nil {
			return nil
		}
		sa := view.Get[*corev1.ServiceAccount](r.Snapshot, kind.ServiceAccount, r.Namespace, s.Annotations[corev1.ServiceAccountNameKey])
		if sa == nil {
			return nil // the controller says what becomes of it
		}
		if uid := s.Annotations[corev1.ServiceAccountUIDKey]; uid != "" && uid != string(sa.UID) {
			return nil // made for another account of the name
		}
		// The token names the Secret, so it must have its name.
		if s.Name == "" {
			return nil
		}
		s.Annotations[corev1.ServiceAccountUIDKey] = string(sa.UID)
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		if len(s.Data[corev1.ServiceAccountTokenKey]) == 0 {
			token, err := issue(sa, s.Name)
			if err != nil {
				return err
			}
			s.Data[corev1.ServiceAccountTokenKey] = []byte(token)
		}
		if len(ca) > 0 {
			s.Data[corev1.ServiceAccountRootCAKey] = ca
		}
		s.Data[corev1.ServiceAccountNamespaceKey] = []byte(r.Namespace)
		return nil
	}}
}
