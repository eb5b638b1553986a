package kind

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"proa.dev/kind/validate"
)

// APIService says who serves a group version: this server, or one behind a Service.
var APIService = define[apiregistrationv1.APIServiceList](Row[*apiregistrationv1.APIService]{
	Names: Names{
		Group: "apiregistration.k8s.io", Version: "v1", Kind: "APIService", Plural: "apiservices",
		Categories: []string{"api-extensions"},
		Scope:      Cluster,
		Prefix:     "apiregistration.k8s.io/apiservices",
	},
	Validate:       validate.APIService,
	ValidateUpdate: validate.APIServiceUpdate,
	Default: func(a *apiregistrationv1.APIService) {
		if a.Spec.Service != nil {
			fillPtr(&a.Spec.Service.Port, 443)
		}
	},
	PrepareCreate: func(a *apiregistrationv1.APIService) {
		a.Status = apiregistrationv1.APIServiceStatus{}
		if a.Spec.Service == nil {
			a.Status.Conditions = []apiregistrationv1.APIServiceCondition{{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue,
				Reason: "Local", Message: "Local APIServices are always available"}}
		}
	},
	PrepareUpdate: func(new, old *apiregistrationv1.APIService) { new.Status = old.Status },
	Stamp: func(a *apiregistrationv1.APIService, now time.Time) {
		for i := range a.Status.Conditions {
			if c := &a.Status.Conditions[i]; c.LastTransitionTime.IsZero() {
				c.LastTransitionTime = metav1.NewTime(now)
			}
		}
	},
	Status: &DoorOf[*apiregistrationv1.APIService]{
		ValidateUpdate: validate.APIServiceStatusUpdate,
		PrepareUpdate: func(new, old *apiregistrationv1.APIService) {
			new.Spec = old.Spec
			new.Labels, new.Annotations = old.Labels, old.Annotations
			new.Finalizers, new.OwnerReferences = old.Finalizers, old.OwnerReferences
		},
	},
	Columns: columns("Service, Available"),
	Cells: func(a *apiregistrationv1.APIService, now time.Time) []any {
		service, available := "Local", "Unknown"
		if s := a.Spec.Service; s != nil {
			service = s.Namespace + "/" + s.Name
		}
		for _, c := range a.Status.Conditions {
			if c.Type != apiregistrationv1.Available {
				continue
			}
			if available = string(c.Status); c.Status != apiregistrationv1.ConditionTrue && c.Reason != "" {
				available = fmt.Sprintf("%s (%s)", c.Status, c.Reason)
			}
		}
		return []any{a.Name, service, available, age(a, now)}
	},
})
