package server

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/internal/await"
	"proa.dev/kind"
)

// TestSecretTokensAndProtection goes through a whole server: a Secret for an
// account's token is filled in and the token is good; it goes with the account. A
// claim gets its finalizer and loses it when it is deleted and unused.
func TestSecretTokensAndProtection(t *testing.T) {
	s, _, end := run(t, func(*Config) {})
	defer end()
	c, ctx := s.Admin(), t.Context()
	if _, err := c.Create(ctx, kind.ServiceAccount, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "robot"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	o, err := c.Create(ctx, kind.Secret, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "robot", Annotations: map[string]string{corev1.ServiceAccountNameKey: "robot"}},
		Type: corev1.SecretTypeServiceAccountToken}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secret := o.(*corev1.Secret)
	token := string(secret.Data["token"])
	if u, _, ok, err := s.Tokens.AuthenticateToken(ctx, token, nil); !ok || err != nil || u.Name != "system:serviceaccount:default:robot" || string(secret.Data["namespace"]) != "default" || len(secret.Data["ca.crt"]) == 0 {
		t.Fatalf("%+v %v, secret %v", u, err, secret.Annotations)
	}
	gone := func(k *kind.Kind, name string) {
		t.Helper()
		await.Nil(t, 10*time.Second, fmt.Sprintf("%s %s is gone", k, name), func() error {
			if o := s.View.Snapshot().Get(k, "default", name); o != nil {
				return fmt.Errorf("it is there with finalizers %q, deleted at %v", o.GetFinalizers(), o.GetDeletionTimestamp())
			}
			return nil
		})
	}
	if err := c.Delete(ctx, kind.ServiceAccount, "default", "robot", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	gone(kind.Secret, "robot")
	if _, _, ok, _ := s.Tokens.AuthenticateToken(ctx, token, nil); ok {
		t.Error("the token outlives its account")
	}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data"}}
	claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	claim.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	if o, err = c.Create(ctx, kind.PersistentVolumeClaim, claim, metav1.CreateOptions{}); err != nil || len(o.GetFinalizers()) != 1 || o.GetFinalizers()[0] != "kubernetes.io/pvc-protection" {
		t.Fatalf("%v %v", o, err)
	}
	if err := c.Delete(ctx, kind.PersistentVolumeClaim, "default", "data", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	gone(kind.PersistentVolumeClaim, "data")
}
