// Package table turns objects into meta.k8s.io Tables and metadata-only forms,
// from a row's Columns and Cells. Pure functions.
package table

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"

	"proa.dev/client/wire"
	"proa.dev/kind"
)

// defaultColumns are those of a row that names none.
var defaultColumns = []kind.Column{
	{Name: "Name", Type: "string", Format: "name"},
	{Name: "Age", Type: "string"},
}

func defaultCells(obj kind.Object, now time.Time) []any {
	age := "<unknown>"
	if t := obj.GetCreationTimestamp(); !t.IsZero() {
		age = duration.HumanDuration(now.Sub(t.Time))
	}
	return []any{obj.GetName(), age}
}

// Of makes the table of items of kind k. Rows carry their object as include
// says; metadata has the given meta.k8s.io version.
func Of(k *kind.Kind, items []kind.Object, meta metav1.ListMeta, include metav1.IncludeObjectPolicy, version string, now time.Time) (*metav1.Table, error) {
	t := &metav1.Table{ListMeta: meta, Rows: make([]metav1.TableRow, 0, len(items))}
	columns, cells := k.Columns, k.Cells
	if cells == nil || len(columns) == 0 {
		columns, cells = defaultColumns, defaultCells
	}
	for _, c := range columns {
		t.ColumnDefinitions = append(t.ColumnDefinitions, metav1.TableColumnDefinition{Name: c.Name, Type: c.Type, Format: c.Format, Description: k.Describe(c), Priority: c.Priority})
	}
	for _, obj := range items {
		row := metav1.TableRow{Cells: cells(obj, now)}
		if len(row.Cells) != len(columns) {
			return nil, fmt.Errorf("print %s %q: %d cells for %d columns", k, obj.GetName(), len(row.Cells), len(columns))
		}
		row.Conditions = ended(obj)
		switch include {
		case metav1.IncludeNone:
		case metav1.IncludeObject:
			row.Object = runtime.RawExtension{Object: wire.Typed(obj, k.GVK())}
		default:
			row.Object = runtime.RawExtension{Object: Partial(obj, version)}
		}
		if row.Object.Object != nil {
			raw, err := wire.MarshalJSON(row.Object.Object)
			if err != nil {
				return nil, fmt.Errorf("encode %s %q: %w", k, obj.GetName(), err)
			}
			row.Object = runtime.RawExtension{Raw: raw}
		}
		t.Rows = append(t.Rows, row)
	}
	return t, nil
}

// ended marks rows of pods that have run to their end; clients may fold them away.
func ended(obj kind.Object) []metav1.TableRowCondition {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return nil
	}
	message := ""
	switch pod.Status.Phase {
	case corev1.PodSucceeded:
		message = "The pod has completed successfully."
	case corev1.PodFailed:
		message = "The pod failed."
	default:
		return nil
	}
	return []metav1.TableRowCondition{{Type: metav1.RowCompleted, Status: metav1.ConditionTrue, Reason: string(pod.Status.Phase), Message: message}}
}

// metadata reads the whole ObjectMeta of an object.
func metadata(obj kind.Object) metav1.ObjectMeta {
	if a, ok := obj.(metav1.ObjectMetaAccessor); ok {
		if m, ok := a.GetObjectMeta().(*metav1.ObjectMeta); ok {
			return *m
		}
	}
	return metav1.ObjectMeta{Name: obj.GetName(), GenerateName: obj.GetGenerateName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(),
		ResourceVersion: obj.GetResourceVersion(), Generation: obj.GetGeneration(), CreationTimestamp: obj.GetCreationTimestamp(),
		DeletionTimestamp: obj.GetDeletionTimestamp(), DeletionGracePeriodSeconds: obj.GetDeletionGracePeriodSeconds(),
		Labels: obj.GetLabels(), Annotations: obj.GetAnnotations(), OwnerReferences: obj.GetOwnerReferences(),
		Finalizers: obj.GetFinalizers(), ManagedFields: obj.GetManagedFields()}
}

// Partial is the metadata of an object.
func Partial(obj kind.Object, version string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: metav1.GroupName + "/" + version},
		ObjectMeta: metadata(obj),
	}
}

// PartialList is the metadata of a list.
func PartialList(items []kind.Object, meta metav1.ListMeta, version string) *metav1.PartialObjectMetadataList {
	l := &metav1.PartialObjectMetadataList{ListMeta: meta, Items: make([]metav1.PartialObjectMetadata, 0, len(items)),
		TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadataList", APIVersion: metav1.GroupName + "/" + version}}
	for _, obj := range items {
		l.Items = append(l.Items, *Partial(obj, version))
	}
	return l
}
