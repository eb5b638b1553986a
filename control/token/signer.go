package token

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

// ClusterInfo in kube-public holds a kubeconfig without credentials, by which a
// machine that has a bootstrap token finds the cluster and checks that it is the
// one that the token's maker meant.
const (
	ClusterInfo   = "cluster-info"
	kubeConfigKey = "kubeconfig"
	signature     = "jws-kubeconfig-" // + token ID
)

var clusterInfo = view.Ref{Kind: kind.ConfigMap, Namespace: metav1.NamespacePublic, Name: ClusterInfo}

// SignerPart registers the signer of kube-public/cluster-info: for each bootstrap
// token that is for signing there is a detached JWS of the kubeconfig (Kubernetes
// docs, "Authenticating with Bootstrap Tokens", ConfigMap Signing).
func SignerPart() control.Part {
	return control.Part{Name: "bootstrap-signer-controller", Kind: kind.ConfigMap, Plan: Sign,
		When: func(old, new kind.Object) bool {
			return new != nil && new.GetNamespace() == clusterInfo.Namespace && new.GetName() == ClusterInfo
		},
		Wakes: []control.Wake{{Kind: kind.Secret, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
			if s := o.(*corev1.Secret); s.Namespace != metav1.NamespaceSystem || s.Type != bootstrap {
				return nil
			}
			return []view.Ref{clusterInfo}
		}}},
		Writes: []control.Write{{Kind: kind.ConfigMap, Verbs: []string{"update"}}}}
}

// Sign brings the signatures up to date: one for each token, none of others.
func Sign(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	have := view.Get[*corev1.ConfigMap](s, kind.ConfigMap, ref.Namespace, ref.Name)
	if ref != clusterInfo || have == nil || have.DeletionTimestamp != nil {
		return nil, time.Time{}
	}
	content, ok := have.Data[kubeConfigKey]
	if !ok {
		return nil, time.Time{}
	}
	want := map[string]string{}
	for k, v := range have.Data {
		if !strings.HasPrefix(k, signature) {
			want[k] = v
		}
	}
	var wake time.Time
	for secret := range view.List[*corev1.Secret](s, kind.Secret, metav1.NamespaceSystem) {
		id, key, until, ok := signs(secret, now)
		if !ok {
			continue
		}
		want[signature+id] = Detached(content, id, key)
		if !until.IsZero() && (wake.IsZero() || until.Before(wake)) {
			wake = until
		}
	}
	if maps.Equal(want, have.Data) {
		return nil, wake
	}
	o := have.DeepCopy()
	o.Data = want
	return act.List{act.Update{Kind: kind.ConfigMap, Object: o, Note: "signatures", Reason: "bootstrap tokens"}}, wake
}

// signs says whether a Secret is a token that signs now, and until when (zero:
// always).
func signs(s *corev1.Secret, now time.Time) (id, key string, until time.Time, ok bool) {
	id, key = string(s.Data["token-id"]), string(s.Data["token-secret"])
	if s.Type != bootstrap || s.DeletionTimestamp != nil || id == "" || key == "" || s.Name != "bootstrap-token-"+id || string(s.Data["usage-bootstrap-signing"]) != "true" {
		return "", "", time.Time{}, false
	}
	if text := string(s.Data["expiration"]); text != "" {
		var err error
		if until, err = time.Parse(time.RFC3339, text); err != nil || !now.Before(until) {
			return "", "", time.Time{}, false
		}
	}
	return id, key, until, true
}

// Detached is the JWS of content with HMAC-SHA256 in its compact form without the
// content (RFC 7515, appendix F).
func Detached(content, tokenID, tokenSecret string) string {
	head, err := json.Marshal(struct {
		Alg string `json:"alg"`
		Kid string `json:"kid"`
	}{"HS256", tokenID})
	if err != nil {
		panic(fmt.Sprintf("token: encode header: %v", err))
	}
	b64 := base64.RawURLEncoding.EncodeToString
	mac := hmac.New(sha256.New, []byte(tokenSecret))
	mac.Write([]byte(b64(head) + "." + b64([]byte(content))))
	return b64(head) + ".." + b64(mac.Sum(nil))
}
