// Package migration carries out StorageVersionMigrations: every object of a
// resource is written again as it is, so that it rests in the form in which it
// would be stored today (Kubernetes docs, "Migrate Kubernetes Objects Using Storage
// Version Migration").
//
//	new         condition Running, and the revision at which it began
//	running     each object that was last written at or before that revision is
//	            touched; then condition Succeeded, and Running is false
//	unknown     a resource that is not served 10 seconds after the migration was
//	            made, or that cannot be written: condition Failed
//
// An object that was written after the migration began is in the new form already.
// A touch that is refused (an admission webhook) is tried again, with the others.
package migration

import (
	"fmt"
	"strconv"
	"time"

	migrationv1 "k8s.io/api/storagemigration/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

const name = "storage-version-migrator-controller"

// patience is how long a resource may take to appear: a definition that was made
// together with the migration.
const patience = 10 * time.Second

// Part registers the controller.
func Part() control.Part {
	return control.Part{
		Name: name, Kind: kind.StorageVersionMigration, Plan: Plan,
		Writes: []control.Write{
			{Kind: kind.StorageVersionMigration, Sub: "status", Verbs: []string{"update"}},
			{Verbs: []string{"touch"}},
		},
	}
}

// Plan takes one migration a step further.
func Plan(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	m := view.Get[*migrationv1.StorageVersionMigration](s, kind.StorageVersionMigration, "", ref.Name)
	if m == nil || is(m, migrationv1.MigrationSucceeded) || is(m, migrationv1.MigrationFailed) {
		return nil, time.Time{}
	}
	row, why := served(s.Table(), m.Spec.Resource)
	if row == nil {
		if due := m.CreationTimestamp.Add(patience); now.Before(due) {
			return nil, due
		}
		return act.List{end(m, migrationv1.MigrationFailed, "StorageVersionMigrationFailed", why, now)}, time.Time{}
	}
	if !is(m, migrationv1.MigrationRunning) {
		next := m.DeepCopy()
		next.Status.ResourceVersion = strconv.FormatInt(s.Revision(), 10)
		set(next, migrationv1.MigrationRunning, metav1.ConditionTrue, "StorageVersionMigrationInProgress", "", now)
		return act.List{update(next, "migration begins", "running at "+next.Status.ResourceVersion)}, time.Time{}
	}
	began, _ := strconv.ParseInt(m.Status.ResourceVersion, 10, 64)
	var list act.List
	for o := range s.All(row.Root(), "") {
		if rev, err := strconv.ParseInt(o.GetResourceVersion(), 10, 64); err == nil && rev > began {
			continue
		}
		list = append(list, act.Touch{Target: view.Ref{Kind: row, Namespace: o.GetNamespace(), Name: o.GetName()}, UID: o.GetUID(), Reason: "migration " + m.Name})
	}
	return append(list, end(m, migrationv1.MigrationSucceeded, "StorageVersionMigrationSucceeded", "", now)), time.Time{}
}

// served finds a row through which objects of the resource can be written, or says
// why there is none.
func served(t *kind.Table, r metav1.GroupResource) (*kind.Kind, string) {
	for _, k := range t.Rows() {
		if k.Group != r.Group || k.Plural != r.Resource {
			continue
		}
		if k.Virtual {
			return nil, fmt.Sprintf("resource %s is not stored", r.String())
		}
		return k, ""
	}
	return nil, fmt.Sprintf("resource %s is not served", r.String())
}

func is(m *migrationv1.StorageVersionMigration, t migrationv1.MigrationConditionType) bool {
	return apimeta.IsStatusConditionTrue(m.Status.Conditions, string(t))
}

func set(m *migrationv1.StorageVersionMigration, t migrationv1.MigrationConditionType, status metav1.ConditionStatus, reason, message string, now time.Time) {
	apimeta.SetStatusCondition(&m.Status.Conditions, metav1.Condition{Type: string(t), Status: status, Reason: reason, Message: message,
		LastTransitionTime: metav1.NewTime(now)})
}

// end is the last write: how it ended, and that it runs no more.
func end(m *migrationv1.StorageVersionMigration, t migrationv1.MigrationConditionType, reason, message string, now time.Time) act.Action {
	next := m.DeepCopy()
	if apimeta.FindStatusCondition(next.Status.Conditions, string(migrationv1.MigrationRunning)) != nil {
		set(next, migrationv1.MigrationRunning, metav1.ConditionFalse, reason, message, now)
	}
	set(next, t, metav1.ConditionTrue, reason, message, now)
	return update(next, "migration ends", string(t))
}

func update(m *migrationv1.StorageVersionMigration, reason, note string) act.Action {
	return act.Update{Kind: kind.StorageVersionMigration, Object: m, Sub: "status", Reason: reason, Note: note}
}
