package kind

import (
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"proa.dev/kind/validate"
)

// FlowSchema says to which priority level a request belongs.
var FlowSchema = define[flowcontrolv1.FlowSchemaList](Row[*flowcontrolv1.FlowSchema]{
	Names: Names{
		Group: "flowcontrol.apiserver.k8s.io", Version: "v1", Kind: "FlowSchema", Plural: "flowschemas",
		Scope:  Cluster,
		Prefix: "flowschemas",
	},
	Validate:            validate.FlowSchema,
	ValidateUpdate:      validate.FlowSchemaUpdate,
	UnconditionalUpdate: true,
	Default: func(f *flowcontrolv1.FlowSchema) {
		fill(&f.Spec.MatchingPrecedence, 1000)
	},
	PrepareCreate: func(f *flowcontrolv1.FlowSchema) {
		f.Generation, f.Status = 1, flowcontrolv1.FlowSchemaStatus{}
	},
	PrepareUpdate: func(new, old *flowcontrolv1.FlowSchema) {
		new.Status = old.Status
		raiseIf(!same(new.Spec, old.Spec), new)
	},
	Status: &DoorOf[*flowcontrolv1.FlowSchema]{
		ValidateUpdate: validate.FlowSchemaStatusUpdate,
		PrepareUpdate:  func(new, old *flowcontrolv1.FlowSchema) { new.Spec = old.Spec },
	},
	Columns: columnsExactly("Name, PriorityLevel, MatchingPrecedence, DistinguisherMethod, Age, MissingPL"),
	Cells: func(f *flowcontrolv1.FlowSchema, now time.Time) []any {
		method, missing := none, "?"
		if f.Spec.DistinguisherMethod != nil {
			method = string(f.Spec.DistinguisherMethod.Type)
		}
		for _, c := range f.Status.Conditions {
			if c.Type == flowcontrolv1.FlowSchemaConditionDangling {
				missing = string(c.Status)
			}
		}
		return []any{f.Name, f.Spec.PriorityLevelConfiguration.Name, int64(f.Spec.MatchingPrecedence), method, age(f, now), missing}
	},
})

// PriorityLevelConfiguration bounds how many requests of a level run at once.
var PriorityLevelConfiguration = define[flowcontrolv1.PriorityLevelConfigurationList](Row[*flowcontrolv1.PriorityLevelConfiguration]{
	Names: Names{
		Group: "flowcontrol.apiserver.k8s.io", Version: "v1", Kind: "PriorityLevelConfiguration", Plural: "prioritylevelconfigurations",
		Scope:  Cluster,
		Prefix: "prioritylevelconfigurations",
	},
	Validate:            validate.PriorityLevelConfiguration,
	ValidateUpdate:      validate.PriorityLevelConfigurationUpdate,
	UnconditionalUpdate: true,
	Default:             defaultPriorityLevel,
	PrepareCreate: func(c *flowcontrolv1.PriorityLevelConfiguration) {
		c.Generation, c.Status = 1, flowcontrolv1.PriorityLevelConfigurationStatus{}
	},
	PrepareUpdate: func(new, old *flowcontrolv1.PriorityLevelConfiguration) {
		new.Status = old.Status
		raiseIf(!same(new.Spec, old.Spec), new)
	},
	Status: &DoorOf[*flowcontrolv1.PriorityLevelConfiguration]{
		ValidateUpdate: validate.PriorityLevelConfigurationStatusUpdate,
		PrepareUpdate:  func(new, old *flowcontrolv1.PriorityLevelConfiguration) { new.Spec = old.Spec },
	},
	Columns: columns("Type, NominalConcurrencyShares, Queues, HandSize, QueueLengthLimit"),
	Cells: func(c *flowcontrolv1.PriorityLevelConfiguration, now time.Time) []any {
		shares, queues, hand, length := any(none), any(none), any(none), any(none)
		if l := c.Spec.Limited; l != nil {
			if l.NominalConcurrencyShares != nil {
				shares = int64(*l.NominalConcurrencyShares)
			}
			if q := l.LimitResponse.Queuing; q != nil {
				queues, hand, length = int64(q.Queues), int64(q.HandSize), int64(q.QueueLengthLimit)
			}
		}
		return []any{c.Name, string(c.Spec.Type), shares, queues, hand, length, age(c, now)}
	},
})

func defaultPriorityLevel(c *flowcontrolv1.PriorityLevelConfiguration) {
	if e := c.Spec.Exempt; e != nil {
		fillPtr(&e.NominalConcurrencyShares, 0)
		fillPtr(&e.LendablePercent, 0)
	} else if c.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt {
		zero, none := int32(0), int32(0)
		c.Spec.Exempt = &flowcontrolv1.ExemptPriorityLevelConfiguration{NominalConcurrencyShares: &zero, LendablePercent: &none}
	}
	l := c.Spec.Limited
	if l == nil {
		return
	}
	fillPtr(&l.NominalConcurrencyShares, 30)
	fillPtr(&l.LendablePercent, 0)
	if q := l.LimitResponse.Queuing; q != nil {
		fill(&q.Queues, 64)
		fill(&q.HandSize, 8)
		fill(&q.QueueLengthLimit, 50)
	}
}
