package kind

import (
	"time"

	storagemigrationv1 "k8s.io/api/storagemigration/v1"

	"proa.dev/kind/validate"
)

// StorageVersionMigration asks for all objects of a resource to be written again
// in the form in which they are stored now.
var StorageVersionMigration = define[storagemigrationv1.StorageVersionMigrationList](Row[*storagemigrationv1.StorageVersionMigration]{
	Names: Names{
		Group: "storagemigration.k8s.io", Version: "v1", Kind: "StorageVersionMigration", Plural: "storageversionmigrations",
		Scope:  Cluster,
		Prefix: "storageversionmigrations",
	},
	Validate:       validate.StorageVersionMigration,
	ValidateUpdate: validate.StorageVersionMigrationUpdate,
	PrepareCreate: func(m *storagemigrationv1.StorageVersionMigration) {
		m.Generation, m.Status = 1, storagemigrationv1.StorageVersionMigrationStatus{}
	},
	PrepareUpdate: func(new, old *storagemigrationv1.StorageVersionMigration) {
		new.Status = old.Status
		raiseIf(!same(new.Spec, old.Spec), new)
	},
	Status: &DoorOf[*storagemigrationv1.StorageVersionMigration]{
		ValidateUpdate: validate.StorageVersionMigrationStatusUpdate,
		PrepareUpdate:  func(new, old *storagemigrationv1.StorageVersionMigration) { new.Spec = old.Spec },
	},
	Columns: columnsExactly("Name, Resource"),
	Cells: func(m *storagemigrationv1.StorageVersionMigration, _ time.Time) []any {
		r := m.Spec.Resource
		return []any{m.Name, r.String()}
	},
})
