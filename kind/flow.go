package kind

import (
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"proa.dev/kind/validate"
)

var FlowSchema = define[flowcontrolv1.FlowSchemaList](Row[*flowcontrolv1.FlowSchema]{
	Names: Names{
		Group: "flowcontrol.apiserver.k8s.io", Version: "v1", Kind: "FlowSchema", Plural: "flowschemas",
		Scope:  Cluster,
		Prefix: "flowschemas",
	},
	Validate:       validate.FlowSchema,
	ValidateUpdate: validate.FlowSchemaUpdate,
	Status:         &DoorOf[*flowcontrolv1.FlowSchema]{},
})

var PriorityLevelConfiguration = define[flowcontrolv1.PriorityLevelConfigurationList](Row[*flowcontrolv1.PriorityLevelConfiguration]{
	Names: Names{
		Group: "flowcontrol.apiserver.k8s.io", Version: "v1", Kind: "PriorityLevelConfiguration", Plural: "prioritylevelconfigurations",
		Scope:  Cluster,
		Prefix: "prioritylevelconfigurations",
	},
	Validate:       validate.PriorityLevelConfiguration,
	ValidateUpdate: validate.PriorityLevelConfigurationUpdate,
	Status:         &DoorOf[*flowcontrolv1.PriorityLevelConfiguration]{},
})
