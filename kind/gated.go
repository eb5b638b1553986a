package kind

import (
	"reflect"
	"sync"

	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
)

// Fields of gates that are off in this release are dropped from what a client
// writes, on every row and through every door, unless the object has used the gate
// before: what nothing acts on is not kept as if it worked. This table is the only
// place that names them; where they occur in a kind is derived from its type.
// Fields that the API declares forbidden while their gate is off are not here: they
// are refused (package validate).
//
// Source: the release's feature gates reference, +featureGate markers of k8s.io/api.
var gates = []gate{
	{"AtomicWriteVolumeUserFields", []gatedField{
		of[corev1.SecretVolumeSource]("DefaultUser"), of[corev1.ConfigMapVolumeSource]("DefaultUser"), of[corev1.DownwardAPIVolumeSource]("DefaultUser"),
		of[corev1.ProjectedVolumeSource]("DefaultUser"), of[corev1.KeyToPath]("User"), of[corev1.DownwardAPIVolumeFile]("User"),
		of[corev1.ServiceAccountTokenProjection]("User"), of[corev1.ClusterTrustBundleProjection]("User"), of[corev1.PodCertificateProjection]("User"),
	}},
	{"ContainerStopSignals", []gatedField{of[corev1.Lifecycle]("StopSignal"), of[corev1.ContainerStatus]("StopSignal")}},
	{"CoordinatedLeaderElection", []gatedField{of[coordinationv1.LeaseSpec]("Strategy"), of[coordinationv1.LeaseSpec]("PreferredHolder")}},
	{"CrossNamespaceVolumeDataSource", []gatedField{{reflect.TypeFor[corev1.PersistentVolumeClaimSpec](), "DataSourceRef", elsewhere}}},
	{"CSIVolumeHealth", []gatedField{of[corev1.PersistentVolumeClaimStatus]("HealthStatus"), of[corev1.PodStatus]("VolumeHealth")}},
	{"DRADerivedAttributes", []gatedField{of[resourcev1.ExactDeviceRequest]("DerivedAttributes"), of[resourcev1.DeviceSubRequest]("DerivedAttributes")}},
	{"DRADeviceCompatibilityGroups", []gatedField{of[resourcev1.DeviceCounterConsumption]("CompatibilityGroups")}},
	{"DRAListTypeAttributes", []gatedField{of[resourcev1.DeviceAttribute]("IntValues"), of[resourcev1.DeviceAttribute]("BoolValues"),
		of[resourcev1.DeviceAttribute]("StringValues"), of[resourcev1.DeviceAttribute]("VersionValues")}},
	{"DRANodeAllocatableResources", []gatedField{of[resourcev1.Device]("NodeAllocatableResources"), of[corev1.PodStatus]("NodeAllocatableResourceClaimStatuses")}},
	{"DRAOptionalNodeOperations", []gatedField{of[resourcev1.ResourceSliceSpec]("SkipNodeOperations"), of[resourcev1.DeviceRequestAllocationResult]("SkipNodeOperations")}},
	{"DRAPartitionableDevicesType", []gatedField{of[resourcev1.ResourceSliceSpec]("PartitionTypeAttribute")}},
	{"EmptyDirVolumeMode", []gatedField{of[corev1.EmptyDirVolumeSource]("Mode")}},
	{"EvictionRequestAPI", []gatedField{of[corev1.PodSpec]("EvictionResponders")}},
	{"GenericWorkload", []gatedField{of[corev1.PodSpec]("SchedulingGroup")}},
	{"GRPCContainerProbeTLS", []gatedField{of[corev1.GRPCAction]("Mode")}},
	{"H2CContainerProbe", []gatedField{of[corev1.HTTPGetAction]("Protocol")}},
	{"ImageVolumeWithDigest", []gatedField{of[corev1.VolumeStatus]("Image")}},
	{"VolumeBindMountOptions", []gatedField{of[corev1.VolumeMount]("BindMountOptions")}},
}

// refusedGates have fields that validation refuses while the gate is off, or that
// only appear in types which hold no object of a row.
var refusedGates = map[string]gatedField{
	"WorkloadWithJob": of[batchv1.JobSpec]("Scheduling"),
	"InPlacePodVerticalScalingSchedulerPreemption": of[corev1.NodeSpec]("PodPreemptionPolicy"),
	"PodLogsQuerySplitStreams":                     of[corev1.PodLogOptions]("Stream"),
}

type gate struct {
	name   string
	fields []gatedField
}

// gatedField is a field of a struct; used says whether a value of it uses the gate.
type gatedField struct {
	in   reflect.Type
	name string
	used func(v reflect.Value) bool
}

func of[T any](name string) gatedField {
	return gatedField{reflect.TypeFor[T](), name, func(v reflect.Value) bool {
		if k := v.Kind(); k == reflect.Slice || k == reflect.Map {
			return v.Len() > 0
		}
		return !v.IsZero()
	}}
}

// elsewhere: the reference leads into another namespace. It is dropped whole, since
// without the namespace it would lead to something else.
func elsewhere(v reflect.Value) bool {
	r, _ := v.Interface().(*corev1.TypedObjectReference)
	return r != nil && r.Namespace != nil && *r.Namespace != ""
}

// way leads from a type to the gated fields in it.
type way struct {
	fields []wayField // of a struct
	each   *way       // of a pointer, list or map
}

type wayField struct {
	index int
	gate  int // in gates; -1: follow the way
	used  func(v reflect.Value) bool
	way   *way
}

// ways has the way of each type that was asked for, nil when nothing in it is gated.
var ways sync.Map // reflect.Type → *way

func wayOf(t reflect.Type) *way {
	if w, ok := ways.Load(t); ok {
		return w.(*way)
	}
	w := (&mapper{known: map[reflect.Type]*way{}}).walk(t)
	ways.Store(t, w)
	return w
}

type mapper struct{ known map[reflect.Type]*way }

func (m *mapper) walk(t reflect.Type) *way {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		if w := m.walk(t.Elem()); w != nil {
			return &way{each: w}
		}
		return nil
	case reflect.Struct:
	default:
		return nil
	}
	if w, ok := m.known[t]; ok {
		return w // a type within itself has no gated fields
	}
	m.known[t] = nil
	w := &way{}
	for i := range t.NumField() {
		if !t.Field(i).IsExported() {
			continue
		}
		if n, used := gateOf(t, t.Field(i).Name); n >= 0 {
			w.fields = append(w.fields, wayField{index: i, gate: n, used: used})
		} else if sub := m.walk(t.Field(i).Type); sub != nil {
			w.fields = append(w.fields, wayField{index: i, gate: -1, way: sub})
		}
	}
	if len(w.fields) == 0 {
		return nil
	}
	m.known[t] = w
	return w
}

func gateOf(t reflect.Type, name string) (int, func(reflect.Value) bool) {
	for i, g := range gates {
		for _, f := range g.fields {
			if f.in == t && f.name == name {
				return i, f.used
			}
		}
	}
	return -1, nil
}

// visit finds the gated fields of v that are used. With clear set, those of the
// gates that clear names are emptied.
func (w *way) visit(v reflect.Value, found func(gate int), clear []bool) {
	if w == nil {
		return
	}
	if w.each == nil {
		for _, f := range w.fields {
			x := v.Field(f.index)
			switch {
			case f.gate < 0:
				f.way.visit(x, found, clear)
			case !f.used(x):
			case clear == nil:
				found(f.gate)
			case clear[f.gate]:
				x.SetZero()
			}
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			w.each.visit(v.Elem(), found, clear)
		}
	case reflect.Slice:
		for i := range v.Len() {
			w.each.visit(v.Index(i), found, clear)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			if clear == nil {
				w.each.visit(it.Value(), found, nil)
				continue
			}
			x := reflect.New(v.Type().Elem()).Elem()
			x.Set(it.Value())
			w.each.visit(x, found, clear)
			v.SetMapIndex(it.Key(), x)
		}
	}
}

// dropGated empties the fields of new whose gates are off and that old, nil on
// create, does not use.
func dropGated[P Object](new P, old *P) {
	w := wayOf(reflect.TypeFor[P]())
	if w == nil {
		return
	}
	var clear []bool
	w.visit(reflect.ValueOf(new), func(gate int) {
		if clear == nil {
			clear = make([]bool, len(gates))
		}
		clear[gate] = true
	}, nil)
	if clear == nil {
		return
	}
	if old != nil {
		w.visit(reflect.ValueOf(*old), func(gate int) { clear[gate] = false }, nil)
	}
	w.visit(reflect.ValueOf(new), nil, clear)
}
