package kind

import (
	"slices"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind/validate"
)

// CustomResourceDefinition brings a kind at run time (apiserver/extend/crd makes
// its rows, control/customresource its conditions). It is stored as JSON, as
// upstream's is.
var CustomResourceDefinition = definitionRow()

func definitionRow() *Kind {
	type crd = apiextensionsv1.CustomResourceDefinition
	k := define[apiextensionsv1.CustomResourceDefinitionList](Row[*crd]{
		Names: Names{
			Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition", Plural: "customresourcedefinitions",
			ShortNames: []string{"crd", "crds"}, Categories: []string{"api-extensions"},
			Scope:  Cluster,
			Prefix: "apiextensions.k8s.io/customresourcedefinitions",
		},
		Default: apiextensionsv1.SetObjectDefaults_CustomResourceDefinition,
		PrepareCreate: func(d *crd) {
			d.Status = apiextensionsv1.CustomResourceDefinitionStatus{}
			d.Generation = 1
			storesIn(d)
		},
		PrepareUpdate: func(n, o *crd) {
			n.Status = *o.Status.DeepCopy()
			raiseIf(!same(n.Spec, o.Spec), n)
			storesIn(n)
		},
		Validate:       validate.CustomResourceDefinition,
		ValidateUpdate: validate.CustomResourceDefinitionUpdate,
		Warnings:       validate.CustomResourceDefinitionWarnings,
		Status: &DoorOf[*crd]{
			// Metadata passes: the finalizer is taken away together with the last condition.
			PrepareUpdate:  func(n, o *crd) { n.Spec = o.Spec },
			ValidateUpdate: validate.CustomResourceDefinitionStatusUpdate,
		},
		Columns: columnsExactly("Name, Created At:date"),
		Cells: func(d *crd, _ time.Time) []any {
			return []any{d.Name, d.CreationTimestamp.UTC().Format(time.RFC3339)}
		},
	})
	k.StoredJSON = true
	k.PrepareDelete = func(obj Object, now metav1.Time) {
		d := obj.(*crd)
		if !slices.Contains(d.Finalizers, apiextensionsv1.CustomResourceCleanupFinalizer) {
			d.Finalizers = append(slices.Clone(d.Finalizers), apiextensionsv1.CustomResourceCleanupFinalizer)
		}
		c := apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionTrue,
			Reason: "InstanceDeletionPending", Message: "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon", LastTransitionTime: now}
		for i := range d.Status.Conditions {
			if d.Status.Conditions[i].Type == c.Type {
				d.Status.Conditions[i] = c
				return
			}
		}
		d.Status.Conditions = append(d.Status.Conditions, c)
	}
	return k
}

// storesIn notes the storage version among those that objects may be stored in.
func storesIn(d *apiextensionsv1.CustomResourceDefinition) {
	for i := range d.Spec.Versions {
		if v := &d.Spec.Versions[i]; v.Storage {
			if !slices.Contains(d.Status.StoredVersions, v.Name) {
				d.Status.StoredVersions = append(slices.Clone(d.Status.StoredVersions), v.Name)
			}
			return
		}
	}
}
