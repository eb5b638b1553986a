// Package parts lists the controllers of a cluster.
package parts

import (
	"proa.dev/control"
	"proa.dev/control/certificate"
	"proa.dev/control/clusterrole"
	"proa.dev/control/cronjob"
	"proa.dev/control/daemonset"
	"proa.dev/control/deployment"
	"proa.dev/control/disruption"
	"proa.dev/control/endpointslice"
	"proa.dev/control/garbage"
	"proa.dev/control/job"
	"proa.dev/control/loadbalancer"
	"proa.dev/control/migration"
	"proa.dev/control/namespace"
	"proa.dev/control/node"
	"proa.dev/control/podgc"
	"proa.dev/control/protection"
	"proa.dev/control/quota"
	"proa.dev/control/replicaset"
	"proa.dev/control/rootca"
	"proa.dev/control/serviceaccount"
	"proa.dev/control/serviceaddress"
	"proa.dev/control/statefulset"
	"proa.dev/control/token"
	"proa.dev/kind"
)

// All controllers for the kinds of table; ca is the cluster's certificate
// authority in PEM.
func All(table *kind.Table, ca string) []control.Part {
	return []control.Part{
		serviceaccount.Part(),
		rootca.Part(ca),
		clusterrole.Part(),
		namespace.Part(table),
		garbage.Part(table),
		replicaset.Part(),
		replicaset.ControllerPart(),
		deployment.Part(),
		endpointslice.Part(),
		endpointslice.EndpointsPart(),
		endpointslice.MirrorPart(),
		daemonset.Part(),
		statefulset.Part(),
		job.Part(),
		job.TTLPart(),
		cronjob.Part(),
		job.OrphanPart(),
		node.Part(),
		node.EvictPart(),
		podgc.Part(),
		loadbalancer.Part(),
		serviceaddress.RangePart(),
		quota.Part(table),
		disruption.Part(table),
		migration.Part(),
		certificate.CleanerPart(),
		certificate.PodCleanerPart(),
		certificate.PublisherPart(ca),
		token.CleanerPart(),
		token.SignerPart(),
		token.AccountPart(),
		protection.ClaimPart(),
		protection.VolumePart(),
		protection.ClassPart(),
	}
}
