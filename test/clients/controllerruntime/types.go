package controllerruntime

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/conversion"
)

var (
	v1      = schema.GroupVersion{Group: "sea.example.com", Version: "v1"}
	v1beta1 = schema.GroupVersion{Group: "sea.example.com", Version: "v1beta1"}
)

// Boat is the hub, sea.example.com/v1, and how boats are stored.
type Boat struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   BoatSpec   `json:"spec"`
	Status BoatStatus `json:"status,omitempty"`
}

// BoatSpec is what a boat shall be.
type BoatSpec struct {
	Sails   int32  `json:"sails"`
	Harbour string `json:"harbour,omitempty"` // a Secret
	Image   string `json:"image,omitempty"`
}

// BoatStatus is what a boat is.
type BoatStatus struct {
	ObservedGeneration int64              `json:"observedGeneration,omitempty"`
	Password           string             `json:"password,omitempty"` // the harbour Secret's version
	Conditions         []metav1.Condition `json:"conditions,omitempty"`
}

// BoatList is a list of boats.
type BoatList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Boat `json:"items"`
}

// OldBoat is sea.example.com/v1beta1.
type OldBoat struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   OldBoatSpec `json:"spec"`
	Status BoatStatus  `json:"status,omitempty"`
}

// OldBoatSpec says the sails in words.
type OldBoatSpec struct {
	Rig     string `json:"rig,omitempty"` // "3 sails"
	Harbour string `json:"harbour,omitempty"`
}

// OldBoatList is a list of boats.
type OldBoatList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []OldBoat `json:"items"`
}

// imageOf keeps in v1beta1 what it has no field for.
const imageOf = "sea.example.com/image"

// Hub marks the version all others convert to.
func (*Boat) Hub() {}

// ConvertTo makes a v1 of a v1beta1.
func (o *OldBoat) ConvertTo(hub conversion.Hub) error {
	b := hub.(*Boat)
	o.ObjectMeta.DeepCopyInto(&b.ObjectMeta)
	o.Status.deepCopyInto(&b.Status)
	b.Spec = BoatSpec{Harbour: o.Spec.Harbour, Image: b.Annotations[imageOf]}
	delete(b.Annotations, imageOf)
	if o.Spec.Rig == "" {
		return nil
	}
	if _, err := fmt.Sscanf(o.Spec.Rig, "%d sails", &b.Spec.Sails); err != nil {
		return fmt.Errorf("read rig %q: %w", o.Spec.Rig, err)
	}
	return nil
}

// ConvertFrom makes a v1beta1 of a v1.
func (o *OldBoat) ConvertFrom(hub conversion.Hub) error {
	b := hub.(*Boat)
	b.ObjectMeta.DeepCopyInto(&o.ObjectMeta)
	b.Status.deepCopyInto(&o.Status)
	o.Spec = OldBoatSpec{Rig: fmt.Sprintf("%d sails", b.Spec.Sails), Harbour: b.Spec.Harbour}
	if b.Spec.Image != "" {
		metav1.SetMetaDataAnnotation(&o.ObjectMeta, imageOf, b.Spec.Image)
	}
	return nil
}

func (s *BoatStatus) deepCopyInto(out *BoatStatus) {
	*out = *s
	out.Conditions = nil
	for _, c := range s.Conditions {
		out.Conditions = append(out.Conditions, *c.DeepCopy())
	}
}

func (b *Boat) deepCopyInto(out *Boat) {
	*out = *b
	b.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	b.Status.deepCopyInto(&out.Status)
}

func (o *OldBoat) deepCopyInto(out *OldBoat) {
	*out = *o
	o.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	o.Status.deepCopyInto(&out.Status)
}

func (b *Boat) DeepCopyObject() runtime.Object { out := new(Boat); b.deepCopyInto(out); return out }
func (o *OldBoat) DeepCopyObject() runtime.Object {
	out := new(OldBoat)
	o.deepCopyInto(out)
	return out
}

func (l *BoatList) DeepCopyObject() runtime.Object {
	out := &BoatList{TypeMeta: l.TypeMeta, Items: make([]Boat, len(l.Items))}
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	for i := range l.Items {
		l.Items[i].deepCopyInto(&out.Items[i])
	}
	return out
}

func (l *OldBoatList) DeepCopyObject() runtime.Object {
	out := &OldBoatList{TypeMeta: l.TypeMeta, Items: make([]OldBoat, len(l.Items))}
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	for i := range l.Items {
		l.Items[i].deepCopyInto(&out.Items[i])
	}
	return out
}

func addToScheme(s *runtime.Scheme) {
	s.AddKnownTypes(v1, &Boat{}, &BoatList{})
	s.AddKnownTypeWithName(v1beta1.WithKind("Boat"), &OldBoat{})
	s.AddKnownTypeWithName(v1beta1.WithKind("BoatList"), &OldBoatList{})
	metav1.AddToGroupVersion(s, v1)
	metav1.AddToGroupVersion(s, v1beta1)
}
