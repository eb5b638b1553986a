package kind

import (
	storagemigrationv1 "k8s.io/api/storagemigration/v1"

	"proa.dev/kind/validate"
)

var StorageVersionMigration = define[storagemigrationv1.StorageVersionMigrationList](Row[*storagemigrationv1.StorageVersionMigration]{
	Names: Names{
		Group: "storagemigration.k8s.io", Version: "v1", Kind: "StorageVersionMigration", Plural: "storageversionmigrations",
		Scope:  Cluster,
		Prefix: "storageversionmigrations",
	},
	Validate:       validate.StorageVersionMigration,
	ValidateUpdate: validate.StorageVersionMigrationUpdate,
	Status:         &DoorOf[*storagemigrationv1.StorageVersionMigration]{},
})
