package kind

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

func TestGatedFieldsAreDropped(t *testing.T) {
	const with = `
spec:
  schedulingGroup: {podGroupName: g}
  evictionResponders: [{name: a.example.com/b}]
  volumes:
  - {name: e, emptyDir: {mode: 448}}
  - {name: p, projected: {defaultUser: 7, sources: [{serviceAccountToken: {path: t, user: 7}}]}}
  containers:
  - name: c
    volumeMounts: [{name: e, mountPath: /e, bindMountOptions: [noexec]}]
    livenessProbe: {httpGet: {port: 80, protocol: HTTP2}}
    readinessProbe: {grpc: {port: 80, mode: TLS}}
    lifecycle: {stopSignal: SIGUSR1}`
	const without = `
spec:
  volumes:
  - {name: e, emptyDir: {}}
  - {name: p, projected: {sources: [{serviceAccountToken: {path: t}}]}}
  containers:
  - name: c
    volumeMounts: [{name: e, mountPath: /e}]
    livenessProbe: {httpGet: {port: 80}}
    readinessProbe: {grpc: {port: 80}}
    lifecycle: {}`
	made, want := parse[corev1.Pod](t, with), parse[corev1.Pod](t, without)
	Pod.PrepareCreate(made)
	if !equality.Semantic.DeepEqual(made.Spec, want.Spec) {
		t.Errorf("create keeps %+v", made.Spec)
	}
	next := parse[corev1.Pod](t, with)
	Pod.PrepareUpdate(next, want.DeepCopy())
	if !equality.Semantic.DeepEqual(next.Spec, want.Spec) {
		t.Errorf("update keeps %+v", next.Spec)
	}
	used, again := parse[corev1.Pod](t, with), parse[corev1.Pod](t, with)
	Pod.PrepareUpdate(again, used)
	if !equality.Semantic.DeepEqual(again.Spec, used.Spec) {
		t.Errorf("an update drops what was used: %+v", again.Spec)
	}
}

// use fills the field of one gate wherever w finds it in v, and says whether it did.
func use(v reflect.Value, w *way, gate int) (used bool) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		return use(v.Elem(), w.each, gate)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		return use(v.Index(0), w.each, gate)
	case reflect.Map:
		x := reflect.New(v.Type().Elem()).Elem()
		used = use(x, w.each, gate)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.New(v.Type().Key()).Elem(), x)
		return used
	}
	for _, f := range w.fields {
		x := v.Field(f.index)
		if f.gate < 0 {
			used = use(x, f.way, gate) || used
			continue
		}
		if f.gate != gate {
			continue
		}
		used = true
		switch x.Kind() {
		case reflect.Pointer:
			x.Set(reflect.New(x.Type().Elem()))
			if ref, ok := x.Interface().(*corev1.TypedObjectReference); ok {
				ref.Namespace = new(string)
				*ref.Namespace = "other"
			}
		case reflect.Slice:
			x.Set(reflect.MakeSlice(x.Type(), 1, 1))
		case reflect.Map:
			x.Set(reflect.MakeMap(x.Type()))
			x.SetMapIndex(reflect.New(x.Type().Key()).Elem(), reflect.New(x.Type().Elem()).Elem())
		default:
			x.SetString("x")
		}
	}
	return used
}

// TestGatesOfRows holds for every gate and every kind that has a field of it: the
// field is dropped on create and on update, and stays where it was used before.
func TestGatesOfRows(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range All.Rows() {
		v := reflect.ValueOf(k.New())
		w := wayOf(v.Type())
		if w == nil {
			continue
		}
		count := func(obj Object, gate int) (n int) {
			w.visit(reflect.ValueOf(obj), func(g int) {
				if g == gate {
					n++
				}
			}, nil)
			return n
		}
		for i, g := range gates {
			with := func() Object {
				obj := k.New()
				seen[g.name] = use(reflect.ValueOf(obj), w, i) || seen[g.name]
				return obj
			}
			all := count(with(), i)
			if all == 0 {
				continue
			}
			dropped, kept := with(), with()
			k.PrepareCreate(dropped)
			k.PrepareUpdate(kept, with())
			if a, b := count(dropped, i), count(kept, i); a != 0 || b != all {
				t.Errorf("%s, %s: %d fields, %d are left on create, %d on an update of an object that uses them", k, g.name, all, a, b)
			}
		}
	}
	for _, g := range gates {
		if !seen[g.name] {
			t.Errorf("no kind has a field of %s", g.name)
		}
	}
}

// onGates are the gates of fields that are on in this release.
var onGates = strings.Fields(`
	ClusterTrustBundleProjection ContainerRestartRules CSIServiceAccountTokenSecrets CSIStorageCapacity DRAAdminAccess
	DRAConsumableCapacity DRADeviceBindingConditions DRADeviceTaints DRAExtendedResource DRAPartitionableDevices
	DRAPrioritizedList DRAResourceClaimDeviceStatus DynamicResourceAllocation EnvFiles HostnameOverride
	HPAConfigurableTolerance InPlacePodLevelResourcesVerticalScaling InPlacePodVerticalScaling KubeletInUserNamespace
	MaxUnavailableStatefulSet MutableCSINodeAllocatableCount NodeDeclaredFeatures PodCertificateProjection
	PodLevelResources ResourceHealthStatus ResourceHealthStatusMessage SELinuxChangePolicy SELinuxMountReadWriteOncePod
	SupplementalGroupsPolicy VolumeAttributesClass VolumeLimitScaling`)

// TestGatesOfRelease: each gate that the types of this release name is known to be on,
// or off. A new release's gates are sorted here first.
func TestGatesOfRelease(t *testing.T) {
	known := slices.Clone(onGates)
	for _, g := range gates {
		known = append(known, g.name)
		for _, f := range g.fields {
			if _, ok := f.in.FieldByName(f.name); !ok {
				t.Errorf("%s has no field %s", f.in, f.name)
			}
		}
	}
	for name := range refusedGates {
		known = append(known, name)
	}
	// They gate a value of a field, not the field.
	known = append(known, "StatefulSetRecreateStrategy", "TaintTolerationComparisonOperators")
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/api").Output()
	if err != nil {
		t.Fatalf("find k8s.io/api: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "*", "v[0-9]", "types.go"))
	if err != nil || len(files) < 15 {
		t.Fatalf("types of the release: %d files, %v", len(files), err)
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			_, names, ok := strings.Cut(lines.Text(), "+featureGate=")
			if !ok {
				continue
			}
			for name := range strings.SplitSeq(strings.TrimSpace(names), ",") {
				if !slices.Contains(known, name) {
					t.Errorf("%s names the gate %s: is it on in this release? Name it in gates, refusedGates or onGates", filepath.Base(filepath.Dir(file)), name)
				}
			}
		}
		f.Close()
	}
}
