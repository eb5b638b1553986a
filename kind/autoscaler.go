package kind

import (
	"encoding/json"
	"fmt"
	"maps"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"proa.dev/kind/validate"
)

// HorizontalPodAutoscaler changes a workload's replicas with its load. It is
// stored as autoscaling/v2.
var HorizontalPodAutoscaler = define[autoscalingv2.HorizontalPodAutoscalerList](Row[*autoscalingv2.HorizontalPodAutoscaler]{
	Names: Names{
		Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler", Plural: "horizontalpodautoscalers",
		ShortNames: []string{"hpa"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "horizontalpodautoscalers",
	},
	Validate:            validate.HorizontalPodAutoscaler,
	ValidateUpdate:      validate.HorizontalPodAutoscalerUpdate,
	UnconditionalUpdate: true,
	Default:             defaultAutoscaler,
	PrepareCreate: func(h *autoscalingv2.HorizontalPodAutoscaler) {
		h.Status = autoscalingv2.HorizontalPodAutoscalerStatus{}
	},
	PrepareUpdate: func(new, old *autoscalingv2.HorizontalPodAutoscaler) { new.Status = old.Status },
	Status: &DoorOf[*autoscalingv2.HorizontalPodAutoscaler]{
		ValidateUpdate: validate.HorizontalPodAutoscalerStatusUpdate,
		PrepareUpdate:  func(new, old *autoscalingv2.HorizontalPodAutoscaler) { new.Spec = old.Spec },
	},
	Columns: autoscalerColumns,
	Cells:   autoscalerCells,
})

// HorizontalPodAutoscalerV1 knows one metric only; the others, the behaviour and
// the conditions travel in annotations.
var HorizontalPodAutoscalerV1 = define[autoscalingv1.HorizontalPodAutoscalerList](Row[*autoscalingv1.HorizontalPodAutoscaler]{
	Names: Names{
		Group: "autoscaling", Version: "v1", Kind: "HorizontalPodAutoscaler", Plural: "horizontalpodautoscalers",
		ShortNames: []string{"hpa"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "horizontalpodautoscalers",
	},
	Validate:            validate.HorizontalPodAutoscalerV1,
	ValidateUpdate:      validate.HorizontalPodAutoscalerV1Update,
	UnconditionalUpdate: true,
	Default:             func(h *autoscalingv1.HorizontalPodAutoscaler) { fillPtr(&h.Spec.MinReplicas, 1) },
	PrepareCreate: func(h *autoscalingv1.HorizontalPodAutoscaler) {
		h.Status = autoscalingv1.HorizontalPodAutoscalerStatus{}
		h.Annotations = without(h.Annotations, annotationConditions, annotationCurrent)
	},
	PrepareUpdate: func(new, old *autoscalingv1.HorizontalPodAutoscaler) {
		new.Status = old.Status
		keepAnnotations(new, old, annotationConditions, annotationCurrent)
	},
	Status: &DoorOf[*autoscalingv1.HorizontalPodAutoscaler]{
		ValidateUpdate: func(new, old *autoscalingv1.HorizontalPodAutoscaler) field.ErrorList {
			newV2, err := autoscalerToV2(new)
			if err != nil {
				return field.ErrorList{field.Invalid(field.NewPath("metadata", "annotations"), field.OmitValueType{}, err.Error())}
			}
			oldV2, err := autoscalerToV2(old)
			if err != nil {
				return field.ErrorList{field.InternalError(field.NewPath("metadata", "annotations"), err)}
			}
			return validate.HorizontalPodAutoscalerStatusUpdate(
				newV2.(*autoscalingv2.HorizontalPodAutoscaler), oldV2.(*autoscalingv2.HorizontalPodAutoscaler))
		},
		PrepareUpdate: func(new, old *autoscalingv1.HorizontalPodAutoscaler) {
			new.Spec = old.Spec
			keepAnnotations(new, old, annotationMetrics, annotationBehavior)
		},
	},
	Stored:     HorizontalPodAutoscaler,
	ToStored:   autoscalerToV2,
	FromStored: autoscalerToV1,
	Columns:    autoscalerColumns,
	Cells: func(h *autoscalingv1.HorizontalPodAutoscaler, now time.Time) []any {
		v2, err := autoscalerToV2(h)
		if err != nil {
			return []any{h.Name, unknown, unknown, "", int64(h.Spec.MaxReplicas), int64(h.Status.CurrentReplicas), age(h, now)}
		}
		return autoscalerCells(v2.(*autoscalingv2.HorizontalPodAutoscaler), now)
	},
})

// Where v1 keeps what it has no fields for.
const (
	annotationMetrics    = "autoscaling.alpha.kubernetes.io/metrics"
	annotationBehavior   = "autoscaling.alpha.kubernetes.io/behavior"
	annotationConditions = "autoscaling.alpha.kubernetes.io/conditions"
	annotationCurrent    = "autoscaling.alpha.kubernetes.io/current-metrics"
)

func defaultAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) {
	s := &h.Spec
	fillPtr(&s.MinReplicas, 1)
	if len(s.Metrics) == 0 {
		s.Metrics = []autoscalingv2.MetricSpec{cpuMetric(80)}
	}
	if s.Behavior == nil {
		return
	}
	up, down := &s.Behavior.ScaleUp, &s.Behavior.ScaleDown
	if *up == nil {
		*up = &autoscalingv2.HPAScalingRules{}
	}
	fillPtr(&(*up).StabilizationWindowSeconds, 0)
	fillPtr(&(*up).SelectPolicy, autoscalingv2.MaxChangePolicySelect)
	if (*up).Policies == nil {
		(*up).Policies = []autoscalingv2.HPAScalingPolicy{
			{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15},
			{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15},
		}
	}
	if *down == nil {
		*down = &autoscalingv2.HPAScalingRules{}
	}
	fillPtr(&(*down).SelectPolicy, autoscalingv2.MaxChangePolicySelect)
	if (*down).Policies == nil {
		(*down).Policies = []autoscalingv2.HPAScalingPolicy{{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15}}
	}
}

func cpuMetric(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name:   corev1.ResourceCPU,
		Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
	}}
}

// isCPU says that a metric is the one that v1 has a field for.
func isCPU(m *autoscalingv2.MetricSpec) bool {
	return m.Type == autoscalingv2.ResourceMetricSourceType && m.Resource != nil && m.Resource.Name == corev1.ResourceCPU &&
		m.Resource.Target.AverageUtilization != nil
}

// autoscalerToV1 puts what v1 has no fields for into annotations, as v2 values.
func autoscalerToV1(obj Object) (*autoscalingv1.HorizontalPodAutoscaler, error) {
	in, ok := obj.(*autoscalingv2.HorizontalPodAutoscaler)
	if !ok {
		return nil, fmt.Errorf("convert %T to an autoscaling/v1 autoscaler: only autoscaling/v2 can be", obj)
	}
	out := &autoscalingv1.HorizontalPodAutoscaler{
		ObjectMeta: in.ObjectMeta,
		Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv1.CrossVersionObjectReference(in.Spec.ScaleTargetRef),
			MinReplicas:    in.Spec.MinReplicas, MaxReplicas: in.Spec.MaxReplicas,
		},
		Status: autoscalingv1.HorizontalPodAutoscalerStatus{
			ObservedGeneration: in.Status.ObservedGeneration, LastScaleTime: in.Status.LastScaleTime,
			CurrentReplicas: in.Status.CurrentReplicas, DesiredReplicas: in.Status.DesiredReplicas,
		},
	}
	out.SetGroupVersionKind(autoscalingv1.SchemeGroupVersion.WithKind("HorizontalPodAutoscaler"))
	annotations := without(in.Annotations, annotationMetrics, annotationBehavior, annotationConditions, annotationCurrent)
	put := func(key string, empty bool, value any) error {
		if empty {
			return nil
		}
		text, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("encode annotation %q: %w", key, err)
		}
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[key] = string(text)
		return nil
	}
	var others []autoscalingv2.MetricSpec
	for i := range in.Spec.Metrics {
		if m := &in.Spec.Metrics[i]; isCPU(m) && out.Spec.TargetCPUUtilizationPercentage == nil {
			out.Spec.TargetCPUUtilizationPercentage = m.Resource.Target.AverageUtilization
		} else {
			others = append(others, *m)
		}
	}
	for i := range in.Status.CurrentMetrics {
		if r := in.Status.CurrentMetrics[i].Resource; r != nil && r.Name == corev1.ResourceCPU && r.Current.AverageUtilization != nil {
			out.Status.CurrentCPUUtilizationPercentage = r.Current.AverageUtilization
		}
	}
	for _, err := range []error{
		put(annotationMetrics, len(others) == 0, metricsToV1(others)),
		put(annotationCurrent, len(in.Status.CurrentMetrics) == 0, statusesToV1(in.Status.CurrentMetrics)),
		put(annotationBehavior, in.Spec.Behavior == nil, in.Spec.Behavior),
		put(annotationConditions, len(in.Status.Conditions) == 0, in.Status.Conditions),
	} {
		if err != nil {
			return nil, err
		}
	}
	out.Annotations = annotations
	return out, nil
}

// autoscalerToV2 takes the annotations back into fields.
func autoscalerToV2(in *autoscalingv1.HorizontalPodAutoscaler) (Object, error) {
	out := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: in.ObjectMeta,
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference(in.Spec.ScaleTargetRef),
			MinReplicas:    in.Spec.MinReplicas, MaxReplicas: in.Spec.MaxReplicas,
		},
		Status: autoscalingv2.HorizontalPodAutoscalerStatus{
			ObservedGeneration: in.Status.ObservedGeneration, LastScaleTime: in.Status.LastScaleTime,
			CurrentReplicas: in.Status.CurrentReplicas, DesiredReplicas: in.Status.DesiredReplicas,
		},
	}
	out.SetGroupVersionKind(autoscalingv2.SchemeGroupVersion.WithKind("HorizontalPodAutoscaler"))
	var metrics []autoscalingv1.MetricSpec
	var current []autoscalingv1.MetricStatus
	for key, to := range map[string]any{
		annotationMetrics: &metrics, annotationCurrent: &current,
		annotationBehavior: &out.Spec.Behavior, annotationConditions: &out.Status.Conditions,
	} {
		if text := in.Annotations[key]; text != "" {
			if err := json.Unmarshal([]byte(text), to); err != nil {
				return nil, fmt.Errorf("read annotation %q: %w", key, err)
			}
		}
	}
	if len(metrics) > 0 {
		out.Spec.Metrics = metricsToV2(metrics)
	}
	if len(current) > 0 {
		out.Status.CurrentMetrics = statusesToV2(current)
	}
	if percent := in.Spec.TargetCPUUtilizationPercentage; percent != nil {
		out.Spec.Metrics = append([]autoscalingv2.MetricSpec{cpuMetric(*percent)}, out.Spec.Metrics...)
	}
	if percent := in.Status.CurrentCPUUtilizationPercentage; percent != nil && len(out.Status.CurrentMetrics) == 0 {
		out.Status.CurrentMetrics = []autoscalingv2.MetricStatus{{Type: autoscalingv2.ResourceMetricSourceType,
			Resource: &autoscalingv2.ResourceMetricStatus{Name: corev1.ResourceCPU, Current: autoscalingv2.MetricValueStatus{AverageUtilization: percent}}}}
	}
	out.Annotations = without(in.Annotations, annotationMetrics, annotationBehavior, annotationConditions, annotationCurrent)
	return out, nil
}

// without is a map lacking keys; the given map stays as it is.
func without(m map[string]string, keys ...string) map[string]string {
	out := maps.Clone(m)
	for _, key := range keys {
		delete(out, key)
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// keepAnnotations takes the annotations named by keys from old.
func keepAnnotations(new, old *autoscalingv1.HorizontalPodAutoscaler, keys ...string) {
	new.Annotations = without(new.Annotations, keys...)
	for _, key := range keys {
		if value, ok := old.Annotations[key]; ok {
			if new.Annotations == nil {
				new.Annotations = map[string]string{}
			}
			new.Annotations[key] = value
		}
	}
}

var autoscalerColumns = columns("Reference, Targets, MinPods, MaxPods, Replicas")

func autoscalerCells(h *autoscalingv2.HorizontalPodAutoscaler, now time.Time) []any {
	least := unset
	if h.Spec.MinReplicas != nil {
		least = fmt.Sprint(*h.Spec.MinReplicas)
	}
	return []any{h.Name, h.Spec.ScaleTargetRef.Kind + "/" + h.Spec.ScaleTargetRef.Name, metricsCell(h.Spec.Metrics, h.Status.CurrentMetrics),
		least, int64(h.Spec.MaxReplicas), int64(h.Status.CurrentReplicas), age(h, now)}
}

// metricsCell prints "name: current/target" of the first two metrics.
func metricsCell(specs []autoscalingv2.MetricSpec, statuses []autoscalingv2.MetricStatus) string {
	var words []string
	for i := range specs {
		var current *autoscalingv2.MetricValueStatus
		if i < len(statuses) {
			current = currentValue(&statuses[i])
		}
		words = append(words, metricCell(&specs[i], current))
	}
	return firstFew(words, 2, ", ")
}

func currentValue(s *autoscalingv2.MetricStatus) *autoscalingv2.MetricValueStatus {
	switch {
	case s.Resource != nil:
		return &s.Resource.Current
	case s.ContainerResource != nil:
		return &s.ContainerResource.Current
	case s.Pods != nil:
		return &s.Pods.Current
	case s.Object != nil:
		return &s.Object.Current
	case s.External != nil:
		return &s.External.Current
	}
	return nil
}

func metricCell(m *autoscalingv2.MetricSpec, current *autoscalingv2.MetricValueStatus) string {
	if current == nil {
		current = &autoscalingv2.MetricValueStatus{}
	}
	amount := func(target *autoscalingv2.MetricTarget) string {
		switch {
		case target.AverageUtilization != nil:
			now := unknown
			if current.AverageUtilization != nil {
				now = fmt.Sprintf("%d%%", *current.AverageUtilization)
			}
			return fmt.Sprintf("%s/%d%%", now, *target.AverageUtilization)
		case target.AverageValue != nil:
			now := unknown
			if current.AverageValue != nil {
				now = current.AverageValue.String()
			}
			return now + "/" + target.AverageValue.String()
		case target.Value != nil:
			now := unknown
			if current.Value != nil {
				now = current.Value.String()
			}
			return now + "/" + target.Value.String()
		}
		return unknown + "/<auto>"
	}
	switch {
	case m.Resource != nil:
		return string(m.Resource.Name) + ": " + amount(&m.Resource.Target)
	case m.ContainerResource != nil:
		return string(m.ContainerResource.Name) + ": " + amount(&m.ContainerResource.Target)
	case m.Pods != nil:
		return amount(&m.Pods.Target)
	case m.Object != nil:
		text := amount(&m.Object.Target)
		if m.Object.Target.AverageValue != nil {
			text += " (avg)"
		}
		return text
	case m.External != nil:
		text := amount(&m.External.Target)
		if m.External.Target.AverageValue != nil {
			text += " (avg)"
		}
		return text
	}
	return "<unknown type>"
}
