package validate

import (
	"fmt"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubelabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	noMatch        = "`selector` does not match template `labels`"
	aboveReplicas  = "cannot be greater than status.replicas"
	aboveReady     = "cannot be greater than readyReplicas"
	notDecremented = "cannot be decremented"
)

// ReplicationController checks a new replication controller.
func ReplicationController(rc *corev1.ReplicationController) field.ErrorList {
	errs := ObjectMeta(&rc.ObjectMeta, true, NameDNSSubdomain, meta())
	return append(errs, replicationControllerSpec(&rc.Spec, spec())...)
}

// ReplicationControllerUpdate checks an update of a replication controller.
func ReplicationControllerUpdate(new, old *corev1.ReplicationController) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, replicationControllerSpec(&new.Spec, spec())...)
}

func replicationControllerSpec(s *corev1.ReplicationControllerSpec, path *field.Path) field.ErrorList {
	errs := nonNegative(int64(s.MinReadySeconds), path.Child("minReadySeconds"))
	if len(s.Selector) == 0 {
		errs = append(errs, field.Required(path.Child("selector"), ""))
	}
	if s.Replicas == nil {
		errs = append(errs, field.Required(path.Child("replicas"), ""))
	} else {
		errs = append(errs, nonNegative(int64(*s.Replicas), path.Child("replicas"))...)
	}
	return append(errs, workloadTemplate(s.Template, kubelabels.SelectorFromSet(s.Selector), "ReplicationController", path.Child("template"))...)
}

// ReplicationControllerStatusUpdate checks an update of the status.
func ReplicationControllerStatusUpdate(new, old *corev1.ReplicationController) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	s := new.Status
	return append(errs, replicaCounts(s.Replicas, s.FullyLabeledReplicas, s.ReadyReplicas, s.AvailableReplicas, s.ObservedGeneration)...)
}

func replicaCounts(replicas, labeled, ready, available int32, generation int64) field.ErrorList {
	path := status()
	errs := nonNegative(int64(replicas), path.Child("replicas"))
	errs = append(errs, nonNegative(int64(labeled), path.Child("fullyLabeledReplicas"))...)
	errs = append(errs, nonNegative(int64(ready), path.Child("readyReplicas"))...)
	errs = append(errs, nonNegative(int64(available), path.Child("availableReplicas"))...)
	errs = append(errs, nonNegative(generation, path.Child("observedGeneration"))...)
	if labeled > replicas {
		errs = append(errs, field.Invalid(path.Child("fullyLabeledReplicas"), labeled, aboveReplicas))
	}
	return append(errs, readyCounts(replicas, ready, available, aboveReady)...)
}

func readyCounts(replicas, ready, available int32, above string) field.ErrorList {
	var errs field.ErrorList
	if ready > replicas {
		errs = append(errs, field.Invalid(status().Child("readyReplicas"), ready, aboveReplicas))
	}
	if available > replicas {
		errs = append(errs, field.Invalid(status().Child("availableReplicas"), available, aboveReplicas))
	}
	if available > ready {
		errs = append(errs, field.Invalid(status().Child("availableReplicas"), available, above))
	}
	return errs
}

// workloadTemplate checks the template of a controller whose pods run for ever.
func workloadTemplate(t *corev1.PodTemplateSpec, sel kubelabels.Selector, kind string, path *field.Path) field.ErrorList {
	if t == nil {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	if sel != nil && !sel.Empty() && !sel.Matches(kubelabels.Set(t.Labels)) {
		errs = append(errs, field.Invalid(path.Child("metadata", "labels"), t.Labels, noMatch))
	}
	errs = append(errs, PodTemplateSpec(t, path)...)
	return append(errs, runsForever(&t.Spec, kind, path)...)
}

func runsForever(ps *corev1.PodSpec, kind string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if ps.RestartPolicy != corev1.RestartPolicyAlways {
		errs = append(errs, field.NotSupported(path.Child("spec", "restartPolicy"), ps.RestartPolicy, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	if ps.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(path.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in "+kind+" is not Supported"))
	}
	return errs
}

// workloadSelector checks a selector and turns it into one that matches.
func workloadSelector(sel *metav1.LabelSelector, kind string, path *field.Path) (kubelabels.Selector, field.ErrorList) {
	if sel == nil {
		return nil, field.ErrorList{field.Required(path, "")}
	}
	errs := labelSelector(sel, path)
	if len(sel.MatchLabels)+len(sel.MatchExpressions) == 0 {
		errs = append(errs, field.Invalid(path, sel, "empty selector is invalid for "+kind))
	}
	s, err := metav1.LabelSelectorAsSelector(sel)
	if err != nil {
		return nil, append(errs, field.Invalid(path, sel, "invalid label selector"))
	}
	return s, errs
}

// ReplicaSet checks a new replica set.
func ReplicaSet(rs *appsv1.ReplicaSet) field.ErrorList {
	errs := ObjectMeta(&rs.ObjectMeta, true, NameDNSSubdomain, meta())
	return append(errs, replicaSetSpec(&rs.Spec, spec())...)
}

// ReplicaSetUpdate checks an update of a replica set.
func ReplicaSetUpdate(new, old *appsv1.ReplicaSet) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, replicaSetSpec(&new.Spec, spec())...)
	return append(errs, unchanged(new.Spec.Selector, old.Spec.Selector, spec().Child("selector"))...)
}

func replicaSetSpec(s *appsv1.ReplicaSetSpec, path *field.Path) field.ErrorList {
	errs := nonNegative(int64(deref(s.Replicas)), path.Child("replicas"))
	errs = append(errs, nonNegative(int64(s.MinReadySeconds), path.Child("minReadySeconds"))...)
	sel, more := workloadSelector(s.Selector, "deployment", path.Child("selector"))
	errs = append(errs, more...)
	return append(errs, workloadTemplate(&s.Template, sel, "ReplicaSet", path.Child("template"))...)
}

// ReplicaSetStatusUpdate checks an update of the status.
func ReplicaSetStatusUpdate(new, old *appsv1.ReplicaSet) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	s := new.Status
	errs = append(errs, replicaCounts(s.Replicas, s.FullyLabeledReplicas, s.ReadyReplicas, s.AvailableReplicas, s.ObservedGeneration)...)
	return append(errs, nonNegative(int64(deref(s.TerminatingReplicas)), status().Child("terminatingReplicas"))...)
}

// Deployment checks a new deployment.
func Deployment(d *appsv1.Deployment) field.ErrorList {
	errs := ObjectMeta(&d.ObjectMeta, true, NameDNSSubdomain, meta())
	return append(errs, deploymentSpec(&d.Spec, spec())...)
}

// DeploymentUpdate checks an update of a deployment.
func DeploymentUpdate(new, old *appsv1.Deployment) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, deploymentSpec(&new.Spec, spec())...)
	return append(errs, unchanged(new.Spec.Selector, old.Spec.Selector, spec().Child("selector"))...)
}

func deploymentSpec(s *appsv1.DeploymentSpec, path *field.Path) field.ErrorList {
	errs := nonNegative(int64(deref(s.Replicas)), path.Child("replicas"))
	sel, more := workloadSelector(s.Selector, "deployment", path.Child("selector"))
	errs = append(errs, more...)
	errs = append(errs, workloadTemplate(&s.Template, sel, "ReplicaSet", path.Child("template"))...)
	errs = append(errs, deploymentStrategy(&s.Strategy, path.Child("strategy"))...)
	errs = append(errs, nonNegative(int64(s.MinReadySeconds), path.Child("minReadySeconds"))...)
	if s.RevisionHistoryLimit != nil {
		errs = append(errs, nonNegative(int64(*s.RevisionHistoryLimit), path.Child("revisionHistoryLimit"))...)
	}
	if p := s.ProgressDeadlineSeconds; p != nil {
		errs = append(errs, nonNegative(int64(*p), path.Child("progressDeadlineSeconds"))...)
		if *p <= s.MinReadySeconds {
			errs = append(errs, field.Invalid(path.Child("progressDeadlineSeconds"), *p, "must be greater than minReadySeconds"))
		}
	}
	return errs
}

func deploymentStrategy(s *appsv1.DeploymentStrategy, path *field.Path) field.ErrorList {
	switch s.Type {
	case appsv1.RecreateDeploymentStrategyType:
		if s.RollingUpdate != nil {
			return field.ErrorList{field.Forbidden(path.Child("rollingUpdate"), "may not be specified when strategy `type` is '"+string(s.Type)+"'")}
		}
		return nil
	case appsv1.RollingUpdateDeploymentStrategyType:
		p := path.Child("rollingUpdate")
		if s.RollingUpdate == nil {
			return field.ErrorList{field.Required(p, "this should be defaulted and never be nil")}
		}
		unavailable, surge := deref(s.RollingUpdate.MaxUnavailable), deref(s.RollingUpdate.MaxSurge)
		errs := positiveIntOrPercent(unavailable, p.Child("maxUnavailable"))
		errs = append(errs, positiveIntOrPercent(surge, p.Child("maxSurge"))...)
		if intOrPercent(unavailable) == 0 && intOrPercent(surge) == 0 {
			errs = append(errs, field.Invalid(p.Child("maxUnavailable"), unavailable, "may not be 0 when `maxSurge` is 0"))
		}
		return append(errs, atMost100Percent(unavailable, p.Child("maxUnavailable"))...)
	}
	return field.ErrorList{field.NotSupported(path, s, []appsv1.DeploymentStrategyType{appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType})}
}

func positiveIntOrPercent(v intstr.IntOrString, path *field.Path) field.ErrorList {
	if v.Type == intstr.String {
		return invalid(path, v, validation.IsValidPercent(v.StrVal))
	}
	return nonNegative(int64(v.IntValue()), path)
}

func percent(v intstr.IntOrString) (int, bool) {
	if v.Type != intstr.String || len(validation.IsValidPercent(v.StrVal)) != 0 {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSuffix(v.StrVal, "%"))
	return n, err == nil
}

func intOrPercent(v intstr.IntOrString) int {
	if n, ok := percent(v); ok {
		return n
	}
	return v.IntValue()
}

func atMost100Percent(v intstr.IntOrString, path *field.Path) field.ErrorList {
	if n, ok := percent(v); ok && n > 100 {
		return field.ErrorList{field.Invalid(path, v, "must not be greater than 100%")}
	}
	return nil
}

// DeploymentStatusUpdate checks an update of the status.
func DeploymentStatusUpdate(new, old *appsv1.Deployment) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	s, path := &new.Status, status()
	errs = append(errs, nonNegative(s.ObservedGeneration, path.Child("observedGeneration"))...)
	errs = append(errs, nonNegative(int64(s.Replicas), path.Child("replicas"))...)
	errs = append(errs, nonNegative(int64(s.UpdatedReplicas), path.Child("updatedReplicas"))...)
	errs = append(errs, nonNegative(int64(s.ReadyReplicas), path.Child("readyReplicas"))...)
	errs = append(errs, nonNegative(int64(s.AvailableReplicas), path.Child("availableReplicas"))...)
	errs = append(errs, nonNegative(int64(s.UnavailableReplicas), path.Child("unavailableReplicas"))...)
	errs = append(errs, nonNegative(int64(deref(s.TerminatingReplicas)), path.Child("terminatingReplicas"))...)
	errs = append(errs, nonNegative(int64(deref(s.CollisionCount)), path.Child("collisionCount"))...)
	if s.UpdatedReplicas > s.Replicas {
		errs = append(errs, field.Invalid(path.Child("updatedReplicas"), s.UpdatedReplicas, aboveReplicas))
	}
	errs = append(errs, readyCounts(s.Replicas, s.ReadyReplicas, s.AvailableReplicas, aboveReady)...)
	return append(errs, collisions(s.CollisionCount, old.Status.CollisionCount)...)
}

func collisions(new, old *int32) field.ErrorList {
	if old != nil && (new == nil || *new < *old) {
		return field.ErrorList{field.Invalid(status().Child("collisionCount"), deref(new), notDecremented)}
	}
	return nil
}

// DaemonSet checks a new daemon set.
func DaemonSet(ds *appsv1.DaemonSet) field.ErrorList {
	errs := ObjectMeta(&ds.ObjectMeta, true, NameDNSSubdomain, meta())
	return append(errs, daemonSetSpec(&ds.Spec, spec())...)
}

// DaemonSetUpdate checks an update of a daemon set.
func DaemonSetUpdate(new, old *appsv1.DaemonSet) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, daemonSetSpec(&new.Spec, spec())...)
	return append(errs, unchanged(new.Spec.Selector, old.Spec.Selector, spec().Child("selector"))...)
}

func daemonSetSpec(s *appsv1.DaemonSetSpec, path *field.Path) field.ErrorList {
	errs := labelSelector(s.Selector, path.Child("selector"))
	if sel, err := metav1.LabelSelectorAsSelector(s.Selector); err == nil && !sel.Matches(kubelabels.Set(s.Template.Labels)) {
		errs = append(errs, field.Invalid(path.Child("template", "metadata", "labels"), s.Template.Labels, noMatch))
	}
	if s.Selector != nil && len(s.Selector.MatchLabels)+len(s.Selector.MatchExpressions) == 0 {
		errs = append(errs, field.Invalid(path.Child("selector"), s.Selector, "empty selector is invalid for daemonset"))
	}
	errs = append(errs, PodTemplateSpec(&s.Template, path.Child("template"))...)
	errs = append(errs, runsForever(&s.Template.Spec, "DaemonSet", path.Child("template"))...)
	errs = append(errs, nonNegative(int64(s.MinReadySeconds), path.Child("minReadySeconds"))...)
	errs = append(errs, daemonSetStrategy(&s.UpdateStrategy, path.Child("updateStrategy"))...)
	if s.RevisionHistoryLimit != nil {
		errs = append(errs, nonNegative(int64(*s.RevisionHistoryLimit), path.Child("revisionHistoryLimit"))...)
	}
	return errs
}

func daemonSetStrategy(s *appsv1.DaemonSetUpdateStrategy, path *field.Path) field.ErrorList {
	switch s.Type {
	case appsv1.OnDeleteDaemonSetStrategyType:
		return nil
	case appsv1.RollingUpdateDaemonSetStrategyType:
		p := path.Child("rollingUpdate")
		if s.RollingUpdate == nil {
			return field.ErrorList{field.Required(p, "")}
		}
		unavailable, surge := deref(s.RollingUpdate.MaxUnavailable), deref(s.RollingUpdate.MaxSurge)
		errs := positiveIntOrPercent(unavailable, p.Child("maxUnavailable"))
		errs = append(errs, positiveIntOrPercent(surge, p.Child("maxSurge"))...)
		hasUnavailable, hasSurge := intOrPercent(unavailable) != 0, intOrPercent(surge) != 0
		switch {
		case hasUnavailable && hasSurge:
			errs = append(errs, field.Invalid(p.Child("maxSurge"), s.RollingUpdate.MaxSurge, "may not be set when maxUnavailable is non-zero"))
		case !hasUnavailable && !hasSurge:
			errs = append(errs, field.Required(p.Child("maxUnavailable"), "cannot be 0 when maxSurge is 0"))
		}
		errs = append(errs, atMost100Percent(unavailable, p.Child("maxUnavailable"))...)
		return append(errs, atMost100Percent(surge, p.Child("maxSurge"))...)
	}
	return field.ErrorList{field.NotSupported(path, s, []appsv1.DaemonSetUpdateStrategyType{appsv1.RollingUpdateDaemonSetStrategyType, appsv1.OnDeleteDaemonSetStrategyType})}
}

// DaemonSetStatusUpdate checks an update of the status.
func DaemonSetStatusUpdate(new, old *appsv1.DaemonSet) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	s, path := &new.Status, status()
	errs = append(errs, nonNegative(int64(s.CurrentNumberScheduled), path.Child("currentNumberScheduled"))...)
	errs = append(errs, nonNegative(int64(s.NumberMisscheduled), path.Child("numberMisscheduled"))...)
	errs = append(errs, nonNegative(int64(s.DesiredNumberScheduled), path.Child("desiredNumberScheduled"))...)
	errs = append(errs, nonNegative(int64(s.NumberReady), path.Child("numberReady"))...)
	errs = append(errs, nonNegative(s.ObservedGeneration, path.Child("observedGeneration"))...)
	errs = append(errs, nonNegative(int64(s.UpdatedNumberScheduled), path.Child("updatedNumberScheduled"))...)
	errs = append(errs, nonNegative(int64(s.NumberAvailable), path.Child("numberAvailable"))...)
	errs = append(errs, nonNegative(int64(s.NumberUnavailable), path.Child("numberUnavailable"))...)
	errs = append(errs, nonNegative(int64(deref(s.CollisionCount)), path.Child("collisionCount"))...)
	return append(errs, collisions(s.CollisionCount, old.Status.CollisionCount)...)
}

// StatefulSet checks a new stateful set.
func StatefulSet(ss *appsv1.StatefulSet) field.ErrorList {
	errs := ObjectMeta(&ss.ObjectMeta, true, NameDNSLabel, meta())
	if ss.Spec.ServiceName != "" {
		errs = append(errs, dnsSubdomain(ss.Spec.ServiceName, spec().Child("serviceName"))...)
	}
	return append(errs, statefulSetSpec(&ss.Spec, spec())...)
}

func statefulSetSpec(s *appsv1.StatefulSetSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch s.PodManagementPolicy {
	case "":
		errs = append(errs, field.Required(path.Child("podManagementPolicy"), ""))
	case appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement:
	default:
		errs = append(errs, field.Invalid(path.Child("podManagementPolicy"), s.PodManagementPolicy, fmt.Sprintf("must be '%s' or '%s'", appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement)))
	}
	up := path.Child("updateStrategy")
	rolling := s.UpdateStrategy.RollingUpdate
	switch s.UpdateStrategy.Type {
	case "":
		errs = append(errs, field.Required(up, ""))
	case appsv1.OnDeleteStatefulSetStrategyType:
		if rolling != nil {
			errs = append(errs, field.Invalid(up.Child("rollingUpdate"), rolling, fmt.Sprintf("only allowed for updateStrategy '%s'", appsv1.RollingUpdateStatefulSetStrategyType)))
		}
	case appsv1.RollingUpdateStatefulSetStrategyType:
		if rolling != nil {
			rp := up.Child("rollingUpdate")
			errs = append(errs, nonNegative(int64(deref(rolling.Partition)), rp.Child("partition"))...)
			if m := rolling.MaxUnavailable; m != nil {
				errs = append(errs, positiveIntOrPercent(*m, rp.Child("maxUnavailable"))...)
				if intOrPercent(*m) == 0 {
					errs = append(errs, field.Invalid(rp.Child("maxUnavailable"), *m, "cannot be 0"))
				}
				errs = append(errs, atMost100Percent(*m, rp.Child("maxUnavailable"))...)
			}
		}
	default:
		errs = append(errs, field.Invalid(up, s.UpdateStrategy, fmt.Sprintf("must be '%s' or '%s'", appsv1.RollingUpdateStatefulSetStrategyType, appsv1.OnDeleteStatefulSetStrategyType)))
	}
	if r := s.PersistentVolumeClaimRetentionPolicy; r != nil {
		rp := path.Child("persistentVolumeClaimRetentionPolicy")
		for _, f := range []struct {
			name  string
			value appsv1.PersistentVolumeClaimRetentionPolicyType
		}{{"whenDeleted", r.WhenDeleted}, {"whenScaled", r.WhenScaled}} {
			errs = append(errs, supported(f.value, rp.Child(f.name), appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType)...)
		}
	}
	errs = append(errs, nonNegative(int64(deref(s.Replicas)), path.Child("replicas"))...)
	errs = append(errs, nonNegative(int64(s.MinReadySeconds), path.Child("minReadySeconds"))...)
	if s.Ordinals != nil {
		errs = append(errs, nonNegative(int64(s.Ordinals.Start), path.Child("ordinals.start"))...)
	}
	if s.RevisionHistoryLimit != nil {
		errs = append(errs, nonNegative(int64(*s.RevisionHistoryLimit), path.Child("revisionHistoryLimit"))...)
	}
	sel, more := workloadSelector(s.Selector, "statefulset", path.Child("selector"))
	errs = append(errs, more...)
	// The pod itself is checked when it is made: its volumes are not known here.
	tp := path.Child("template")
	if sel != nil && !sel.Empty() {
		if !sel.Matches(kubelabels.Set(s.Template.Labels)) {
			errs = append(errs, field.Invalid(tp.Child("metadata", "labels"), s.Template.Labels, noMatch))
		}
		errs = append(errs, labels(s.Template.Labels, tp.Child("labels"))...)
		errs = append(errs, annotations(s.Template.Annotations, tp.Child("annotations"))...)
		errs = append(errs, podAnnotations(s.Template.Annotations, &s.Template.Spec, tp.Child("annotations"))...)
	}
	return append(errs, runsForever(&s.Template.Spec, "StatefulSet", tp)...)
}

// StatefulSetUpdate checks an update of a stateful set.
func StatefulSetUpdate(new, old *appsv1.StatefulSet) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, statefulSetSpec(&new.Spec, spec())...)
	same := new.Spec.DeepCopy()
	same.Replicas = old.Spec.Replicas
	same.Template = old.Spec.Template
	same.UpdateStrategy = old.Spec.UpdateStrategy
	same.MinReadySeconds = old.Spec.MinReadySeconds
	same.Ordinals = old.Spec.Ordinals
	same.RevisionHistoryLimit = old.Spec.RevisionHistoryLimit
	same.PersistentVolumeClaimRetentionPolicy = old.Spec.PersistentVolumeClaimRetentionPolicy
	if !equality.Semantic.DeepEqual(*same, old.Spec) {
		errs = append(errs, field.Forbidden(spec(), "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"))
	}
	return errs
}

// StatefulSetStatusUpdate checks an update of the status.
func StatefulSetStatusUpdate(new, old *appsv1.StatefulSet) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	s, path := &new.Status, status()
	errs = append(errs, nonNegative(int64(s.Replicas), path.Child("replicas"))...)
	errs = append(errs, nonNegative(int64(s.ReadyReplicas), path.Child("readyReplicas"))...)
	errs = append(errs, nonNegative(int64(s.CurrentReplicas), path.Child("currentReplicas"))...)
	errs = append(errs, nonNegative(int64(s.UpdatedReplicas), path.Child("updatedReplicas"))...)
	errs = append(errs, nonNegative(int64(s.AvailableReplicas), path.Child("availableReplicas"))...)
	errs = append(errs, nonNegative(s.ObservedGeneration, path.Child("observedGeneration"))...)
	errs = append(errs, nonNegative(int64(deref(s.CollisionCount)), path.Child("collisionCount"))...)
	if s.CurrentReplicas > s.Replicas {
		errs = append(errs, field.Invalid(path.Child("currentReplicas"), s.CurrentReplicas, aboveReplicas))
	}
	if s.UpdatedReplicas > s.Replicas {
		errs = append(errs, field.Invalid(path.Child("updatedReplicas"), s.UpdatedReplicas, aboveReplicas))
	}
	errs = append(errs, readyCounts(s.Replicas, s.ReadyReplicas, s.AvailableReplicas, "cannot be greater than status.readyReplicas")...)
	return append(errs, collisions(s.CollisionCount, old.Status.CollisionCount)...)
}

// ControllerRevision checks a new revision.
func ControllerRevision(r *appsv1.ControllerRevision) field.ErrorList {
	errs := ObjectMeta(&r.ObjectMeta, true, NameDNSSubdomain, meta())
	if r.Data.Raw == nil && r.Data.Object == nil {
		errs = append(errs, field.Required(field.NewPath("data"), "data is mandatory"))
	}
	return append(errs, nonNegative(r.Revision, field.NewPath("revision"))...)
}

// ControllerRevisionUpdate checks an update of a revision: its data never changes.
func ControllerRevisionUpdate(new, old *appsv1.ControllerRevision) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, nonNegative(new.Revision, field.NewPath("revision"))...)
	return append(errs, unchanged(new.Data, old.Data, field.NewPath("data"))...)
}
