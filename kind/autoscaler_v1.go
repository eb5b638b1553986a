package kind

import (
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"
)

// The annotations of an autoscaling/v1 autoscaler hold metrics in v1's own
// words. These functions translate them; what is missing becomes zero.

func metricsToV1(in []autoscalingv2.MetricSpec) []autoscalingv1.MetricSpec {
	out := make([]autoscalingv1.MetricSpec, len(in))
	for i, m := range in {
		o := &out[i]
		o.Type = autoscalingv1.MetricSourceType(m.Type)
		if s := m.Resource; s != nil {
			o.Resource = &autoscalingv1.ResourceMetricSource{Name: s.Name,
				TargetAverageUtilization: s.Target.AverageUtilization, TargetAverageValue: s.Target.AverageValue}
		}
		if s := m.ContainerResource; s != nil {
			o.ContainerResource = &autoscalingv1.ContainerResourceMetricSource{Name: s.Name, Container: s.Container,
				TargetAverageUtilization: s.Target.AverageUtilization, TargetAverageValue: s.Target.AverageValue}
		}
		if s := m.Pods; s != nil {
			o.Pods = &autoscalingv1.PodsMetricSource{MetricName: s.Metric.Name, Selector: s.Metric.Selector,
				TargetAverageValue: quantity(s.Target.AverageValue)}
		}
		if s := m.Object; s != nil {
			o.Object = &autoscalingv1.ObjectMetricSource{MetricName: s.Metric.Name, Selector: s.Metric.Selector,
				Target:      autoscalingv1.CrossVersionObjectReference(s.DescribedObject),
				TargetValue: quantity(s.Target.Value), AverageValue: s.Target.AverageValue}
		}
		if s := m.External; s != nil {
			o.External = &autoscalingv1.ExternalMetricSource{MetricName: s.Metric.Name, MetricSelector: s.Metric.Selector,
				TargetValue: s.Target.Value, TargetAverageValue: s.Target.AverageValue}
		}
	}
	return out
}

func metricsToV2(in []autoscalingv1.MetricSpec) []autoscalingv2.MetricSpec {
	out := make([]autoscalingv2.MetricSpec, len(in))
	for i, m := range in {
		o := &out[i]
		o.Type = autoscalingv2.MetricSourceType(m.Type)
		if s := m.Resource; s != nil {
			o.Resource = &autoscalingv2.ResourceMetricSource{Name: s.Name, Target: target(nil, s.TargetAverageValue, s.TargetAverageUtilization)}
		}
		if s := m.ContainerResource; s != nil {
			o.ContainerResource = &autoscalingv2.ContainerResourceMetricSource{Name: s.Name, Container: s.Container,
				Target: target(nil, s.TargetAverageValue, s.TargetAverageUtilization)}
		}
		if s := m.Pods; s != nil {
			o.Pods = &autoscalingv2.PodsMetricSource{Metric: autoscalingv2.MetricIdentifier{Name: s.MetricName, Selector: s.Selector},
				Target: target(nil, &s.TargetAverageValue, nil)}
		}
		if s := m.Object; s != nil {
			o.Object = &autoscalingv2.ObjectMetricSource{Metric: autoscalingv2.MetricIdentifier{Name: s.MetricName, Selector: s.Selector},
				DescribedObject: autoscalingv2.CrossVersionObjectReference(s.Target)}
			if s.AverageValue != nil {
				o.Object.Target = target(nil, s.AverageValue, nil)
			} else {
				o.Object.Target = target(&s.TargetValue, nil, nil)
			}
		}
		if s := m.External; s != nil {
			o.External = &autoscalingv2.ExternalMetricSource{Metric: autoscalingv2.MetricIdentifier{Name: s.MetricName, Selector: s.MetricSelector},
				Target: target(s.TargetValue, s.TargetAverageValue, nil)}
		}
	}
	return out
}

// target chooses the type by what is set.
func target(value, average *resource.Quantity, percent *int32) autoscalingv2.MetricTarget {
	t := autoscalingv2.MetricTarget{Value: value, AverageValue: average, AverageUtilization: percent}
	switch {
	case percent != nil:
		t.Type = autoscalingv2.UtilizationMetricType
	case value != nil:
		t.Type = autoscalingv2.ValueMetricType
	default:
		t.Type = autoscalingv2.AverageValueMetricType
	}
	return t
}

func quantity(q *resource.Quantity) resource.Quantity { return ptr.Deref(q, resource.Quantity{}) }

func statusesToV1(in []autoscalingv2.MetricStatus) []autoscalingv1.MetricStatus {
	out := make([]autoscalingv1.MetricStatus, len(in))
	for i, m := range in {
		o := &out[i]
		o.Type = autoscalingv1.MetricSourceType(m.Type)
		if s := m.Resource; s != nil {
			o.Resource = &autoscalingv1.ResourceMetricStatus{Name: s.Name,
				CurrentAverageUtilization: s.Current.AverageUtilization, CurrentAverageValue: quantity(s.Current.AverageValue)}
		}
		if s := m.ContainerResource; s != nil {
			o.ContainerResource = &autoscalingv1.ContainerResourceMetricStatus{Name: s.Name, Container: s.Container,
				CurrentAverageUtilization: s.Current.AverageUtilization, CurrentAverageValue: quantity(s.Current.AverageValue)}
		}
		if s := m.Pods; s != nil {
			o.Pods = &autoscalingv1.PodsMetricStatus{MetricName: s.Metric.Name, Selector: s.Metric.Selector,
				CurrentAverageValue: quantity(s.Current.AverageValue)}
		}
		if s := m.Object; s != nil {
			o.Object = &autoscalingv1.ObjectMetricStatus{MetricName: s.Metric.Name, Selector: s.Metric.Selector,
				Target:       autoscalingv1.CrossVersionObjectReference(s.DescribedObject),
				CurrentValue: quantity(s.Current.Value), AverageValue: s.Current.AverageValue}
		}
		if s := m.External; s != nil {
			o.External = &autoscalingv1.ExternalMetricStatus{MetricName: s.Metric.Name, MetricSelector: s.Metric.Selector,
				CurrentValue: quantity(s.Current.Value), CurrentAverageValue: s.Current.AverageValue}
		}
	}
	return out
}

func statusesToV2(in []autoscalingv1.MetricStatus) []autoscalingv2.MetricStatus {
	out := make([]autoscalingv2.MetricStatus, len(in))
	for i, m := range in {
		o := &out[i]
		o.Type = autoscalingv2.MetricSourceType(m.Type)
		if s := m.Resource; s != nil {
			o.Resource = &autoscalingv2.ResourceMetricStatus{Name: s.Name,
				Current: autoscalingv2.MetricValueStatus{AverageValue: &s.CurrentAverageValue, AverageUtilization: s.CurrentAverageUtilization}}
		}
		if s := m.ContainerResource; s != nil {
			o.ContainerResource = &autoscalingv2.ContainerResourceMetricStatus{Name: s.Name, Container: s.Container,
				Current: autoscalingv2.MetricValueStatus{AverageValue: &s.CurrentAverageValue, AverageUtilization: s.CurrentAverageUtilization}}
		}
		if s := m.Pods; s != nil {
			o.Pods = &autoscalingv2.PodsMetricStatus{Metric: autoscalingv2.MetricIdentifier{Name: s.MetricName, Selector: s.Selector},
				Current: autoscalingv2.MetricValueStatus{AverageValue: &s.CurrentAverageValue}}
		}
		if s := m.Object; s != nil {
			o.Object = &autoscalingv2.ObjectMetricStatus{Metric: autoscalingv2.MetricIdentifier{Name: s.MetricName, Selector: s.Selector},
				DescribedObject: autoscalingv2.CrossVersionObjectReference(s.Target),
				Current:         autoscalingv2.MetricValueStatus{Value: &s.CurrentValue, AverageValue: s.AverageValue}}
		}
		if s := m.External; s != nil {
			o.External = &autoscalingv2.ExternalMetricStatus{Metric: autoscalingv2.MetricIdentifier{Name: s.MetricName, Selector: s.MetricSelector},
				Current: autoscalingv2.MetricValueStatus{Value: &s.CurrentValue, AverageValue: s.CurrentAverageValue}}
		}
	}
	return out
}
