package kind

import (
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

var HorizontalPodAutoscaler = define[autoscalingv2.HorizontalPodAutoscalerList](Row[*autoscalingv2.HorizontalPodAutoscaler]{
	Names: Names{
		Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler", Plural: "horizontalpodautoscalers",
		ShortNames: []string{"hpa"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "horizontalpodautoscalers",
	},
	UnconditionalUpdate: true,
	Status:              &DoorOf[*autoscalingv2.HorizontalPodAutoscaler]{},
})

var HorizontalPodAutoscalerV1 = define[autoscalingv1.HorizontalPodAutoscalerList](Row[*autoscalingv1.HorizontalPodAutoscaler]{
	Names: Names{
		Group: "autoscaling", Version: "v1", Kind: "HorizontalPodAutoscaler", Plural: "horizontalpodautoscalers",
		ShortNames: []string{"hpa"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "horizontalpodautoscalers",
	},
	Stored:              HorizontalPodAutoscaler,
	UnconditionalUpdate: true,
	Status:              &DoorOf[*autoscalingv1.HorizontalPodAutoscaler]{},
})
