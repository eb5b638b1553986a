// Package apiservice decides about what the aggregation layer keeps (Kubernetes
// docs, "Kubernetes API Aggregation Layer", "Configure the Aggregation Layer"):
//
//   - an APIService for every group version that the server has itself, built in or
//     by a CustomResourceDefinition. Those that carry the label
//     kube-aggregator.kubernetes.io/automanaged are repaired when somebody changes
//     them and removed when their group version is gone. One without the label is
//     the user's: it is left alone, also where it points elsewhere.
//   - the ConfigMap kube-system/extension-apiserver-authentication, from which
//     servers behind APIServices learn whom to believe. Certificates that are in it
//     stay until they expire, so that authorities can be changed while servers run.
//
// Every server runs these parts, also one that runs no controllers.
package apiservice

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

// Managed is the label of APIServices that the server keeps, with its values.
const (
	Managed = "kube-aggregator.kubernetes.io/automanaged"
	onStart = "onstart"
	always  = "true"
)

// Trust is what servers behind APIServices have to know.
type Trust struct {
	ClientCA      []byte // PEM; authenticates clients
	RequestHeader []byte // PEM; authenticates this server as front proxy
	// Names are the common names of this server's certificate as front proxy.
	Names []string
}

// Names of the ConfigMap.
const (
	TrustNamespace = "kube-system"
	TrustName      = "extension-apiserver-authentication"
)

// Priority says in which order group versions are shown.
type Priority func(group, version string) (groupMinimum, versionPriority int32)

// Parts of every server.
func Parts(priority Priority, trust Trust) []control.Part {
	return []control.Part{{
		Name: "apiservice-registration", Kind: kind.APIService,
		Wakes: []control.Wake{{Kind: kind.CustomResourceDefinition, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
			d := o.(*apiextensionsv1.CustomResourceDefinition)
			var refs []view.Ref
			for i := range d.Spec.Versions {
				refs = append(refs, view.Ref{Kind: kind.APIService, Name: d.Spec.Versions[i].Name + "." + d.Spec.Group})
			}
			return refs
		}}, {
			// At the start, and once the namespaces of a new cluster are there.
			Kind: kind.Namespace, When: func(old, _ kind.Object) bool { return old == nil },
			To: func(s view.Snapshot, o kind.Object) []view.Ref {
				if o.GetName() != TrustNamespace {
					return nil
				}
				var refs []view.Ref
				seen := map[string]bool{}
				for _, k := range s.Table().BuiltIn() {
					if name := k.Version + "." + k.Group; !seen[name] {
						seen[name] = true
						refs = append(refs, view.Ref{Kind: kind.APIService, Name: name})
					}
				}
				return refs
			}}},
		Plan: func(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
			return Register(s, ref, priority), time.Time{}
		},
		Writes: []control.Write{{Kind: kind.APIService, Verbs: []string{"create", "update", "delete"}}},
	}, {
		Name: "extension-apiserver-authentication", Kind: kind.Namespace,
		When: func(old, new kind.Object) bool { return old == nil && new.GetName() == TrustNamespace },
		Wakes: []control.Wake{{Kind: kind.ConfigMap, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
			if o.GetNamespace() != TrustNamespace || o.GetName() != TrustName {
				return nil
			}
			return []view.Ref{{Kind: kind.Namespace, Name: TrustNamespace}}
		}}},
		Plan: func(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
			if ref.Name != TrustNamespace {
				return nil, time.Time{}
			}
			return Publish(s, trust, now), time.Time{}
		},
		Writes: []control.Write{{Kind: kind.ConfigMap, Verbs: []string{"create", "update"}}},
	}}
}

// Register decides about one APIService.
func Register(s view.Snapshot, ref view.Ref, priority Priority) act.List {
	have := view.Get[*apiregistrationv1.APIService](s, kind.APIService, "", ref.Name)
	if have != nil && (have.DeletionTimestamp != nil || have.Labels[Managed] == "") {
		return nil
	}
	version, group, _ := strings.Cut(ref.Name, ".")
	served, custom := lookup(s, group, version)
	if !served {
		if have != nil {
			return act.List{act.Delete{Target: view.RefOf(kind.APIService, have), UID: have.UID, Reason: "not-served"}}
		}
		return nil
	}
	label := onStart
	if custom {
		label = always
	}
	want := &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: ref.Name, Labels: map[string]string{Managed: label}},
		Spec: apiregistrationv1.APIServiceSpec{Group: group, Version: version}}
	want.Spec.GroupPriorityMinimum, want.Spec.VersionPriority = priority(group, version)
	if have == nil {
		return act.List{act.Create{Kind: kind.APIService, Object: want, Reason: "served"}}
	}
	if apiequality.Semantic.DeepEqual(have.Spec, want.Spec) && have.Labels[Managed] == label {
		return nil
	}
	next := have.DeepCopy()
	next.Spec = want.Spec
	next.Labels[Managed] = label
	return act.List{act.Update{Kind: kind.APIService, Object: next, Reason: "repaired"}}
}

// lookup says whether the server has a group version itself. That of APIServices
// belongs to the layer that reads them and is not registered, as upstream's.
func lookup(s view.Snapshot, group, version string) (served, custom bool) {
	if group == apiregistrationv1.GroupName {
		return false, false
	}
	for _, k := range s.Table().GroupVersion(group, version) {
		if !k.Custom {
			return true, false
		}
		served, custom = true, true
	}
	return served, custom
}

// Publish decides about the ConfigMap of trust.
func Publish(s view.Snapshot, trust Trust, now time.Time) act.List {
	if view.Get[*corev1.Namespace](s, kind.Namespace, "", TrustNamespace) == nil {
		return nil
	}
	want := map[string]string{}
	have := view.Get[*corev1.ConfigMap](s, kind.ConfigMap, TrustNamespace, TrustName)
	old := map[string]string{}
	if have != nil {
		old = have.Data
	}
	if pem := union(trust.ClientCA, []byte(old["client-ca-file"]), now); pem != "" {
		want["client-ca-file"] = pem
	}
	if pem := union(trust.RequestHeader, []byte(old["requestheader-client-ca-file"]), now); pem != "" {
		want["requestheader-client-ca-file"] = pem
		want["requestheader-allowed-names"] = merged(old["requestheader-allowed-names"], trust.Names...)
		want["requestheader-username-headers"] = merged(old["requestheader-username-headers"], "X-Remote-User")
		want["requestheader-uid-headers"] = merged(old["requestheader-uid-headers"], "X-Remote-Uid")
		want["requestheader-group-headers"] = merged(old["requestheader-group-headers"], "X-Remote-Group")
		want["requestheader-extra-headers-prefix"] = merged(old["requestheader-extra-headers-prefix"], "X-Remote-Extra-")
	}
	if have == nil {
		return act.List{act.Create{Kind: kind.ConfigMap, Reason: "trust",
			Object: &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: TrustNamespace, Name: TrustName}, Data: want}}}
	}
	next := have.DeepCopy()
	changed := false
	for k, v := range want {
		if next.Data[k] != v {
			if next.Data == nil {
				next.Data = map[string]string{}
			}
			next.Data[k], changed = v, true
		}
	}
	if !changed {
		return nil
	}
	return act.List{act.Update{Kind: kind.ConfigMap, Object: next, Reason: "trust"}}
}

// union of two bundles, ours first, without what has expired or cannot be read.
func union(ours, theirs []byte, now time.Time) string {
	var out bytes.Buffer
	seen := map[string]bool{}
	for _, bundle := range [][]byte{ours, theirs} {
		for {
			var block *pem.Block
			if block, bundle = pem.Decode(bundle); block == nil {
				break
			}
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil || now.After(c.NotAfter) || seen[string(c.Raw)] {
				continue
			}
			seen[string(c.Raw)] = true
			pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		}
	}
	return out.String()
}

// merged is a JSON list with the words that have to be in it, ours first.
func merged(old string, words ...string) string {
	var have []string
	json.Unmarshal([]byte(old), &have) // what is no list is replaced
	seen := map[string]bool{}
	out := []string{}
	for _, w := range append(append([]string{}, words...), have...) {
		if !seen[w] {
			seen[w] = true
			out = append(out, w)
		}
	}
	data, _ := json.Marshal(out)
	return string(data)
}
