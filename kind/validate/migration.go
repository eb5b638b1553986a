package validate

import (
	"fmt"
	"strconv"

	migrationv1 "k8s.io/api/storagemigration/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// StorageVersionMigration checks a new migration.
func StorageVersionMigration(m *migrationv1.StorageVersionMigration) field.ErrorList {
	errs := ObjectMeta(&m.ObjectMeta, false, NameDNSSubdomain, meta())
	if m.Spec.Resource.Resource == "" {
		errs = append(errs, field.Required(spec().Child("resource", "resource"), "resource is required"))
	}
	return errs
}

// StorageVersionMigrationUpdate checks an update of a migration: its resource stays.
func StorageVersionMigrationUpdate(new, old *migrationv1.StorageVersionMigration) field.ErrorList {
	errs := StorageVersionMigration(new)
	errs = append(errs, ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
	if new.Spec.Resource.Group != old.Spec.Resource.Group {
		errs = append(errs, field.Invalid(field.NewPath("group"), new.Spec.Resource.Group, immutable))
	}
	if new.Spec.Resource.Resource != old.Spec.Resource.Resource {
		errs = append(errs, field.Invalid(field.NewPath("resource"), new.Spec.Resource.Resource, immutable))
	}
	return errs
}

// StorageVersionMigrationStatusUpdate checks an update of a migration's status:
// the revision stays once set, and a migration ends once and in one way.
func StorageVersionMigrationStatusUpdate(new, old *migrationv1.StorageVersionMigration) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	path, s := status().Child("resourceVersion"), &new.Status
	if rv := s.ResourceVersion; rv != "" {
		n, err := strconv.ParseInt(rv, 10, 64)
		if err != nil {
			errs = append(errs, field.Invalid(path, rv, fmt.Sprintf("failed to parse resource version %q: %v", rv, err)))
		}
		errs = append(errs, nonNegative(n, path)...)
	}
	conditions := status().Child("conditions")
	errs = append(errs, metavalidation.ValidateConditions(s.Conditions, conditions)...)
	if was := old.Status.ResourceVersion; was != "" && was != s.ResourceVersion {
		errs = append(errs, field.Invalid(path, s.ResourceVersion, "cannot be updated"))
	}
	is := func(m *migrationv1.StorageVersionMigration, t migrationv1.MigrationConditionType) bool {
		return apimeta.IsStatusConditionTrue(m.Status.Conditions, string(t))
	}
	succeeded, failed, running := is(new, migrationv1.MigrationSucceeded), is(new, migrationv1.MigrationFailed), is(new, migrationv1.MigrationRunning)
	for _, rule := range []struct {
		broken bool
		msg    string
	}{
		{succeeded && failed, "Both success and failed conditions cannot be true at the same time"},
		{succeeded && running, "Running condition cannot be true when success condition is true"},
		{failed && running, "Running condition cannot be true when failed condition is true"},
		{is(old, migrationv1.MigrationSucceeded) && !succeeded, "Success condition cannot be set to false once it is true"},
		{is(old, migrationv1.MigrationFailed) && !failed, "Failed condition cannot be set to false once it is true"},
	} {
		if rule.broken {
			errs = append(errs, field.Invalid(conditions, s.Conditions, rule.msg))
		}
	}
	return errs
}
