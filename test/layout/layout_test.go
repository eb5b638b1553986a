// Package layout compares what the store holds with what upstream's API server has in
// its etcd: keys and values.
package layout

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"

	"proa.dev/kind"
)

// specialPrefixes are upstream's exceptions from "the resource's name without its
// group" (kube-apiserver's special default resource prefixes), and the resources
// that its other two servers store, which have their group.
var specialPrefixes = map[string]string{
	"replicationcontrollers": "controllers", "endpoints": "services/endpoints", "services": "services/specs", "nodes": "minions",
	"ingresses.networking.k8s.io":                      "ingress",
	"events.events.k8s.io":                             "events",
	"customresourcedefinitions.apiextensions.k8s.io":   "apiextensions.k8s.io/customresourcedefinitions",
	"apiservices.apiregistration.k8s.io":               "apiregistration.k8s.io/apiservices",
	"storageversionmigrations.storagemigration.k8s.io": "storageversionmigrations",
	"storageversions.internal.apiserver.k8s.io":        "storageversions",
}

// Keys are where upstream's API server has them.
func TestKeysAreUpstreams(t *testing.T) {
	n := 0
	for _, k := range kind.All.Rows() {
		if k.Virtual {
			continue
		}
		n++
		want, ok := specialPrefixes[k.GroupResource().String()]
		if !ok {
			want = k.Plural
		}
		want = "/registry/" + want + "/ns/name"
		namespace := "ns"
		if k.Scope == kind.Cluster {
			want, namespace = want[:len(want)-len("/ns/name")]+"/name", ""
		}
		if got := k.StoreKey(namespace, "name"); got != want {
			t.Errorf("%s is at %s, upstream has it at %s", k, got, want)
		}
	}
	if n < 60 {
		t.Errorf("only %d kinds are stored", n)
	}
}

// Values are upstream's: what its storage codec writes is read, and what is
// written here is read by it, without a difference.
func TestValuesAreUpstreams(t *testing.T) {
	codecs := serializer.NewCodecFactory(scheme.Scheme)
	proto := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	n := 0
	for _, k := range kind.All.Rows() {
		if k.Virtual || k.Root() != k || !scheme.Scheme.Recognizes(k.GVK()) {
			continue
		}
		group := k.Group
		if group == "" {
			group = "core"
		}
		data, err := os.ReadFile(filepath.Join("..", "..", "kind", "testdata", group+"."+k.Version+"."+k.Kind+".json"))
		if err != nil {
			t.Errorf("%s: %v", k, err)
			continue
		}
		obj := k.New()
		if err := json.Unmarshal(data, obj); err != nil {
			t.Errorf("%s: %v", k, err)
			continue
		}
		n++
		obj.SetResourceVersion("")
		obj.GetObjectKind().SetGroupVersionKind(k.GVK())

		var theirs bytes.Buffer
		if err := codecs.EncoderForVersion(proto, k.GVK().GroupVersion()).Encode(obj.DeepCopyObject(), &theirs); err != nil {
			t.Errorf("%s: upstream's codec: %v", k, err)
			continue
		}
		read, err := kind.DecodeStored(k, theirs.Bytes())
		if err != nil {
			t.Errorf("%s: read what upstream wrote: %v", k, err)
			continue
		}
		if same(t, k, read, obj); !bytes.HasPrefix(theirs.Bytes(), []byte("k8s\x00")) {
			t.Errorf("%s: upstream's value begins with %q", k, theirs.Bytes()[:4])
		}

		ours, err := kind.EncodeStored(k, obj.DeepCopyObject().(kind.Object))
		if err != nil {
			t.Errorf("%s: %v", k, err)
			continue
		}
		decoded, gvk, err := codecs.UniversalDeserializer().Decode(ours, nil, nil)
		if err != nil || *gvk != k.GVK() {
			t.Errorf("%s: upstream reads %v, %v", k, gvk, err)
			continue
		}
		if set, ok := decoded.(*appsv1.StatefulSet); ok {
			// Protobuf has no place for the claims' kind: upstream fills it in when it
			// converts, as proa does when it decodes.
			for i := range set.Spec.VolumeClaimTemplates {
				set.Spec.VolumeClaimTemplates[i].APIVersion, set.Spec.VolumeClaimTemplates[i].Kind = "v1", "PersistentVolumeClaim"
			}
		}
		same(t, k, decoded, obj)
	}
	if n < 55 {
		t.Errorf("only %d kinds were compared", n)
	}
}

func same(t *testing.T, k *kind.Kind, got, want runtime.Object) {
	t.Helper()
	got.GetObjectKind().SetGroupVersionKind(k.GVK())
	if !apiequality.Semantic.DeepEqual(got, want) {
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(want)
		t.Errorf("%s: got\n%s\nwant\n%s", k, a, b)
	}
}
