package validate

import (
	"fmt"
	"slices"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Bounds of a scaling rule, in seconds.
const (
	maxPeriodSeconds        = 1800
	maxStabilizationSeconds = 3600
)

// Scale checks a scale subresource.
func Scale(s *autoscalingv1.Scale) field.ErrorList {
	errs := ObjectMeta(&s.ObjectMeta, true, NameDNSSubdomain, meta())
	return append(errs, nonNegative(int64(s.Spec.Replicas), spec().Child("replicas"))...)
}

// HorizontalPodAutoscalerV1 checks a new autoscaler of the v1 API.
func HorizontalPodAutoscalerV1(h *autoscalingv1.HorizontalPodAutoscaler) field.ErrorList {
	return HorizontalPodAutoscaler(autoscalerV2(h))
}

// HorizontalPodAutoscalerV1Update checks an update of an autoscaler of the v1 API.
func HorizontalPodAutoscalerV1Update(new, old *autoscalingv1.HorizontalPodAutoscaler) field.ErrorList {
	return HorizontalPodAutoscalerUpdate(autoscalerV2(new), autoscalerV2(old))
}

func autoscalerV2(h *autoscalingv1.HorizontalPodAutoscaler) *autoscalingv2.HorizontalPodAutoscaler {
	out := &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: h.ObjectMeta}
	out.Spec.ScaleTargetRef = autoscalingv2.CrossVersionObjectReference(h.Spec.ScaleTargetRef)
	out.Spec.MinReplicas, out.Spec.MaxReplicas = h.Spec.MinReplicas, h.Spec.MaxReplicas
	if p := h.Spec.TargetCPUUtilizationPercentage; p != nil {
		out.Spec.Metrics = []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
			Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: p}}}}
	}
	return out
}

// HorizontalPodAutoscaler checks a new autoscaler.
func HorizontalPodAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
	errs := ObjectMeta(&h.ObjectMeta, true, NameDNSSubdomain, meta())
	return append(errs, autoscalerSpec(&h.Spec, spec())...)
}

// HorizontalPodAutoscalerUpdate checks an update of an autoscaler.
func HorizontalPodAutoscalerUpdate(new, old *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, autoscalerSpec(&new.Spec, spec())...)
}

// HorizontalPodAutoscalerStatusUpdate checks an update of an autoscaler's status.
func HorizontalPodAutoscalerStatusUpdate(new, old *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, nonNegative(int64(new.Status.CurrentReplicas), status().Child("currentReplicas"))...)
	return append(errs, nonNegative(int64(new.Status.DesiredReplicas), status().Child("desiredReplicas"))...)
}

// autoscalerSpec checks all of it. What is scaled by a metric that does not come from
// the pods themselves may go down to none (HPAScaleToZero is on since 1.37).
func autoscalerSpec(s *autoscalingv2.HorizontalPodAutoscalerSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if m := s.MinReplicas; m != nil {
		errs = append(errs, nonNegative(int64(*m), path.Child("minReplicas"))...)
	}
	if s.MaxReplicas == 0 {
		errs = append(errs, field.Required(path.Child("maxReplicas"), ""))
	} else if s.MaxReplicas < 1 {
		errs = append(errs, field.Invalid(path.Child("maxReplicas"), s.MaxReplicas, "must be greater than or equal to 1"))
	}
	if m := s.MinReplicas; m != nil && s.MaxReplicas < *m {
		errs = append(errs, field.Invalid(path.Child("maxReplicas"), s.MaxReplicas, "must be greater than or equal to `minReplicas`"))
	}
	errs = append(errs, kindAndName(s.ScaleTargetRef.Kind, s.ScaleTargetRef.Name, path.Child("scaleTargetRef"))...)
	for i := range s.Metrics {
		errs = append(errs, metric(&s.Metrics[i], path.Child("metrics").Index(i))...)
	}
	if m := s.MinReplicas; m != nil && *m == 0 && !slices.ContainsFunc(s.Metrics, func(m autoscalingv2.MetricSpec) bool {
		return m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType
	}) {
		errs = append(errs, field.Forbidden(path.Child("metrics"), "must specify at least one Object or External metric to support scaling to zero replicas"))
	}
	if b := s.Behavior; b != nil {
		errs = append(errs, scalingRules(b.ScaleUp, path.Child("behavior", "scaleUp"))...)
		errs = append(errs, scalingRules(b.ScaleDown, path.Child("behavior", "scaleDown"))...)
	}
	return errs
}

func scalingRules(r *autoscalingv2.HPAScalingRules, path *field.Path) field.ErrorList {
	if r == nil {
		return nil
	}
	var errs field.ErrorList
	if w := r.StabilizationWindowSeconds; w != nil && *w < 0 {
		errs = append(errs, field.Invalid(path.Child("stabilizationWindowSeconds"), w, "must be greater than or equal to zero"))
	} else if w != nil && *w > maxStabilizationSeconds {
		errs = append(errs, field.Invalid(path.Child("stabilizationWindowSeconds"), w, fmt.Sprintf("must be less than or equal to %v", maxStabilizationSeconds)))
	}
	if r.SelectPolicy != nil {
		errs = append(errs, supported(*r.SelectPolicy, path.Child("selectPolicy"), autoscalingv2.DisabledPolicySelect, autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect)...)
	}
	if len(r.Policies) == 0 && r.Tolerance == nil {
		errs = append(errs, field.Required(path.Child("policies"), "must specify at least one Policy"))
	}
	for i, p := range r.Policies {
		pp := path.Child("policies").Index(i)
		errs = append(errs, supported(p.Type, pp.Child("type"), autoscalingv2.PercentScalingPolicy, autoscalingv2.PodsScalingPolicy)...)
		errs = append(errs, positive(int64(p.Value), pp.Child("value"))...)
		errs = append(errs, positive(int64(p.PeriodSeconds), pp.Child("periodSeconds"))...)
		if p.PeriodSeconds > maxPeriodSeconds {
			errs = append(errs, field.Invalid(pp.Child("periodSeconds"), p.PeriodSeconds, fmt.Sprintf("must be less than or equal to %v", maxPeriodSeconds)))
		}
	}
	if r.Tolerance != nil {
		errs = append(errs, nonNegativeQuantity(*r.Tolerance, path.Child("tolerance"))...)
	}
	return errs
}

// metric checks one metric: of several sources the first one that is set is looked at.
func metric(m *autoscalingv2.MetricSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	sources := []struct {
		kind  autoscalingv2.MetricSourceType
		name  string
		set   bool
		check func(p *field.Path) field.ErrorList
	}{
		{autoscalingv2.ObjectMetricSourceType, "object", m.Object != nil, func(p *field.Path) field.ErrorList { return objectMetric(m.Object, p) }},
		{autoscalingv2.ExternalMetricSourceType, "external", m.External != nil, func(p *field.Path) field.ErrorList { return externalMetric(m.External, p) }},
		{autoscalingv2.PodsMetricSourceType, "pods", m.Pods != nil, func(p *field.Path) field.ErrorList { return podsMetric(m.Pods, p) }},
		{autoscalingv2.ResourceMetricSourceType, "resource", m.Resource != nil, func(p *field.Path) field.ErrorList {
			return resourceMetric(string(m.Resource.Name), &m.Resource.Target, p)
		}},
		{autoscalingv2.ContainerResourceMetricSourceType, "containerResource", m.ContainerResource != nil, func(p *field.Path) field.ErrorList {
			return containerMetric(m.ContainerResource, p)
		}},
	}
	if m.Type == "" {
		errs = append(errs, field.Required(path.Child("type"), "must specify a metric source type"))
	}
	count, known := 0, false
	for _, s := range sources {
		known = known || s.kind == m.Type
		if !s.set {
			if s.kind == m.Type {
				errs = append(errs, field.Required(path.Child(s.name), "must populate information for the given metric source"))
			}
			continue
		}
		if count++; count == 1 {
			errs = append(errs, s.check(path.Child(s.name))...)
		}
	}
	if !known {
		errs = append(errs, field.NotSupported(path.Child("type"), m.Type, metricSources))
	}
	for _, s := range sources {
		if s.set && s.kind != m.Type && count != 1 {
			errs = append(errs, field.Forbidden(path.Child(s.name), "must populate the given metric source only"))
		}
	}
	return errs
}

var metricSources = []autoscalingv2.MetricSourceType{autoscalingv2.ContainerResourceMetricSourceType, autoscalingv2.ExternalMetricSourceType,
	autoscalingv2.ObjectMetricSourceType, autoscalingv2.PodsMetricSourceType, autoscalingv2.ResourceMetricSourceType}

func objectMetric(o *autoscalingv2.ObjectMetricSource, p *field.Path) field.ErrorList {
	errs := kindAndName(o.DescribedObject.Kind, o.DescribedObject.Name, p.Child("describedObject"))
	errs = append(errs, metricIdentifier(&o.Metric, p.Child("metric"))...)
	errs = append(errs, metricTarget(&o.Target, p.Child("target"))...)
	if o.Target.Value == nil && o.Target.AverageValue == nil {
		errs = append(errs, field.Required(p.Child("target", "averageValue"), "must set either a target value or averageValue"))
	}
	return errs
}

func externalMetric(e *autoscalingv2.ExternalMetricSource, p *field.Path) field.ErrorList {
	errs := metricIdentifier(&e.Metric, p.Child("metric"))
	errs = append(errs, metricTarget(&e.Target, p.Child("target"))...)
	if e.Target.Value == nil && e.Target.AverageValue == nil {
		errs = append(errs, field.Required(p.Child("target", "averageValue"), "must set either a target value for metric or a per-pod target"))
	}
	if e.Target.Value != nil && e.Target.AverageValue != nil {
		errs = append(errs, field.Forbidden(p.Child("target", "value"), "may not set both a target value for metric and a per-pod target"))
	}
	return errs
}

func podsMetric(m *autoscalingv2.PodsMetricSource, p *field.Path) field.ErrorList {
	errs := metricIdentifier(&m.Metric, p.Child("metric"))
	errs = append(errs, metricTarget(&m.Target, p.Child("target"))...)
	if m.Target.AverageValue == nil {
		errs = append(errs, field.Required(p.Child("target", "averageValue"), "must specify a positive target averageValue"))
	}
	return errs
}

func containerMetric(c *autoscalingv2.ContainerResourceMetricSource, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if c.Name != "" {
		errs = append(errs, containerResourceName(string(c.Name), p.Child("name"))...)
	}
	if c.Container == "" {
		errs = append(errs, field.Required(p.Child("container"), "must specify a container"))
	} else {
		errs = append(errs, dnsLabel(c.Container, p.Child("container"))...)
	}
	return append(errs, resourceMetric(string(c.Name), &c.Target, p)...)
}

func resourceMetric(name string, t *autoscalingv2.MetricTarget, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if name == "" {
		errs = append(errs, field.Required(path.Child("name"), "must specify a resource name"))
	}
	errs = append(errs, metricTarget(t, path.Child("target"))...)
	if t.AverageUtilization == nil && t.AverageValue == nil {
		errs = append(errs, field.Required(path.Child("target", "averageUtilization"), "must set either a target raw value or a target utilization"))
	}
	if t.AverageUtilization != nil && t.AverageValue != nil {
		errs = append(errs, field.Forbidden(path.Child("target", "averageValue"), "may not set both a target raw value and a target utilization"))
	}
	return errs
}

func metricIdentifier(m *autoscalingv2.MetricIdentifier, path *field.Path) field.ErrorList {
	if m.Name == "" {
		return field.ErrorList{field.Required(path.Child("name"), "must specify a metric name")}
	}
	return invalid(path.Child("name"), m.Name, NamePathSegment(m.Name, false))
}

func metricTarget(t *autoscalingv2.MetricTarget, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if t.Type == "" {
		errs = append(errs, field.Required(path.Child("type"), "must specify a metric target type"))
	}
	if t.Type != autoscalingv2.UtilizationMetricType && t.Type != autoscalingv2.ValueMetricType && t.Type != autoscalingv2.AverageValueMetricType {
		errs = append(errs, field.Invalid(path.Child("type"), t.Type, "must be either Utilization, Value, or AverageValue"))
	}
	if t.Value != nil && t.Value.Sign() != 1 {
		errs = append(errs, field.Invalid(path.Child("value"), t.Value, "must be positive"))
	}
	if t.AverageValue != nil && t.AverageValue.Sign() != 1 {
		errs = append(errs, field.Invalid(path.Child("averageValue"), t.AverageValue, "must be positive"))
	}
	if t.AverageUtilization != nil && *t.AverageUtilization < 1 {
		errs = append(errs, field.Invalid(path.Child("averageUtilization"), t.AverageUtilization, "must be greater than 0"))
	}
	return errs
}
