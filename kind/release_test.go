package kind

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/diff"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// outside are kinds whose types are not in k8s.io/api, and so have no published object.
var outside = map[string]bool{"apiextensions.k8s.io": true, "apiregistration.k8s.io": true}

// published finds the objects that k8s.io/api publishes in its testdata: one of each
// kind with every field filled, as JSON, YAML and Protobuf, of this release (HEAD)
// and of earlier ones.
func published(t *testing.T) (dir string, releases []string) {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/api").Output()
	if err != nil {
		t.Fatalf("find k8s.io/api: %v", err)
	}
	dir = filepath.Join(strings.TrimSpace(string(out)), "testdata")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			releases = append(releases, e.Name())
		}
	}
	if len(releases) < 2 {
		t.Fatalf("%s holds the releases %v", dir, releases)
	}
	return dir, releases
}

// TestPublishedObjects holds that each published object of each kind decodes from
// each of its three forms to the same object, encodes to the same text and bytes
// again, and survives the store without loss.
func TestPublishedObjects(t *testing.T) {
	dir, releases := published(t)
	proto := protobuf.NewSerializer(Scheme(), Scheme())
	for _, k := range whole() {
		if outside[k.Group] {
			continue
		}
		group := k.Group
		if group == "" {
			group = "core"
		}
		name := fmt.Sprintf("%s.%s.%s", group, k.Version, k.Kind)
		for _, release := range releases {
			base := filepath.Join(dir, release, name)
			asJSON, err := os.ReadFile(base + ".json")
			if os.IsNotExist(err) && release != "HEAD" {
				continue // it came later
			}
			if err != nil {
				t.Errorf("%s: %v", k, err)
				continue
			}
			t.Run(release+"/"+name, func(t *testing.T) { publishedObject(t, k, proto, base, asJSON, release == "HEAD") })
		}
	}
}

func publishedObject(t *testing.T, k *Kind, proto *protobuf.Serializer, base string, asJSON []byte, now bool) {
	obj := readPublished(t, k, asJSON, now)
	text, err := json.MarshalIndent(obj, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	// An object of an earlier release has no fields that came since; only this
	// release's must be the same text again.
	if text = append(text, '\n'); now && !bytes.Equal(bytes.TrimSpace(text), bytes.TrimSpace(asJSON)) {
		t.Errorf("json differs:\n%s", diff.Diff(string(asJSON), string(text)))
	}
	asYAML, err := os.ReadFile(base + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	if other := readPublished(t, k, asYAML, now); !equality.Semantic.DeepEqual(obj, other) {
		t.Errorf("yaml gives another object:\n%s", diff.Diff(obj, other))
	}
	if again, err := yaml.Marshal(obj); err != nil {
		t.Error(err)
	} else if other := readStrict(t, k, again); !equality.Semantic.DeepEqual(obj, other) {
		t.Errorf("yaml loses something:\n%s", diff.Diff(obj, other))
	}
	asProto, err := os.ReadFile(base + ".pb")
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := proto.Decode(asProto, nil, k.New())
	if err != nil {
		t.Fatalf("protobuf: %v", err)
	}
	if !equality.Semantic.DeepEqual(obj, other) {
		t.Errorf("protobuf gives another object:\n%s", diff.Diff(obj, other))
	}
	var b bytes.Buffer
	if err := proto.Encode(obj.DeepCopyObject(), &b); err != nil {
		t.Fatal(err)
	}
	if now && !bytes.Equal(b.Bytes(), asProto) {
		t.Errorf("protobuf differs: %d bytes, published are %d", b.Len(), len(asProto))
	}
	if k.Virtual {
		return
	}
	stored, err := EncodeStored(k, obj)
	if err != nil {
		t.Fatal(err)
	}
	if k.Stored == nil && !k.StoredJSON && now && !bytes.Equal(stored, asProto) {
		t.Errorf("the store's bytes differ from the published ones: %d and %d bytes", len(stored), len(asProto))
	}
	back, err := DecodeStored(k, stored)
	if err != nil {
		t.Fatal(err)
	}
	want := obj
	if k.Stored != nil {
		if back, err = k.FromStored(back); err != nil {
			t.Fatal(err)
		}
	}
	if k.Default != nil {
		want = obj.DeepCopyObject().(Object)
		k.Default(want)
	}
	if k.Stored != nil {
		back = withoutTwin(back)
	}
	if !equality.Semantic.DeepEqual(want, back) {
		t.Errorf("the store loses something:\n%s", diff.Diff(want, back))
	}
}

// withoutTwin takes away what the stored twin of a version adds: autoscaling/v1
// keeps what it has no fields for in annotations, also when it need not.
func withoutTwin(o Object) Object {
	o = o.DeepCopyObject().(Object)
	a := o.GetAnnotations()
	delete(a, "autoscaling.alpha.kubernetes.io/current-metrics")
	o.SetAnnotations(a)
	return o
}

// removed are fields of gates that were off, which later releases took away.
var removed = []string{"workloadRef", "nodeAllocatableResourceMappings", "nodeAllocatableResourceClaimStatuses[0].resources"}

// readPublished is readStrict, but for removed fields of earlier releases.
func readPublished(t *testing.T, k *Kind, text []byte, now bool) Object {
	t.Helper()
	if now {
		return readStrict(t, k, text)
	}
	data, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		t.Fatal(err)
	}
	obj := k.New()
	strict, err := kjson.UnmarshalStrict(data, obj)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range strict {
		if !slices.ContainsFunc(removed, func(name string) bool { return strings.Contains(err.Error(), name) }) {
			t.Errorf("strict: %v", err)
		}
	}
	return obj
}
