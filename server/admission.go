package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/auth"
	"proa.dev/apiserver/extend/hook"
	"proa.dev/apiserver/extend/match"
	"proa.dev/apiserver/extend/policy"
	"proa.dev/apiserver/extend/webhook"
	"proa.dev/apiserver/fields"
	"proa.dev/env"
	"proa.dev/view"
)

// Node ports, as upstream's default.
const (
	PortFirst = 30000
	PortEnd   = 32768
)

// Admission is what the chain of admission plugins needs. It is the only list of
// them.
type Admission struct {
	View  *view.View
	Rand  env.Rand
	Authz auth.Authorizer
	Rules auth.RuleResolver
	// Tokens hold what one server decides alone; nil: no other server writes the store.
	Tokens admit.Tokens
	// IssueSecret makes the token of an account for a Secret; CA (PEM) goes beside it.
	IssueSecret func(sa *corev1.ServiceAccount, secret string) (string, error)
	CA          []byte
	// Services is the network of cluster IPs (IPv4); node ports are [PortFirst, PortEnd).
	Services           netip.Prefix
	PortFirst, PortEnd int32 // 0: upstream's

	// Dial opens the connections to webhooks, into the pod network too; nil: the
	// machine's own network.
	Dial  func(ctx context.Context, network, address string) (net.Conn, error)
	Meter match.Meter // what webhooks and policies do; nil: not counted
	Log   *slog.Logger

	// Enable and Disable name plugins (Kubernetes docs, "Admission Control in
	// Kubernetes"); "" and names that upstream has and proa does not are passed over
	// (Unserved lists those).
	Enable, Disable []string
	// Config is what the admission configuration says (ReadAdmission).
	Config PluginConfig
}

// plugin is one step with its place; off ones wait to be enabled.
type plugin struct {
	admit.Plugin
	off bool
	// always: not upstream's plugin but a part of its registry, which cannot be
	// switched off.
	always bool
}

// plugins in upstream's order.
func (a *Admission) plugins() []plugin {
	addresses := &admit.Addresses{Range: a.Services, PortFirst: a.PortFirst, PortEnd: a.PortEnd, View: a.View, Rand: a.Rand, Tokens: a.Tokens}
	quota := &admit.Quota{View: a.View, Tokens: a.Tokens}
	policies := policy.New(policy.Config{Authz: a.Authz, TypeConverter: fields.Of, Meter: a.Meter, Log: a.Log})
	hooks := webhook.New(webhook.Config{Client: hook.New(hook.Config{View: a.View, Rand: a.Rand, Dial: a.Dial}), Authz: a.Authz, Rand: a.Rand, Meter: a.Meter, Log: a.Log})
	return []plugin{
		{Plugin: admit.NamespaceLifecycle(), always: true},
		{Plugin: admit.AlwaysPullImages(), off: true},
		{Plugin: admit.LimitRanger()},
		{Plugin: admit.ServiceAccount(a.View, a.Rand)},
		{Plugin: admit.NodeRestriction()},
		{Plugin: admit.TaintNodesByCondition()},
		{Plugin: admit.PodSecurity(a.Config.PodSecurity)},
		{Plugin: admit.Priority()},
		{Plugin: admit.DefaultTolerationSeconds()},
		{Plugin: admit.PodNodeSelector(a.Config.PodNodeSelector), off: true},
		{Plugin: admit.EventRateLimit(a.Config.EventRateLimit), off: true},
		{Plugin: admit.ExtendedResourceToleration(), off: true},
		{Plugin: admit.DefaultStorageClass()},
		{Plugin: admit.StorageObjectInUseProtection()},
		{Plugin: admit.RuntimeClass()},
		{Plugin: admit.CertificateApproval(a.Authz)},
		{Plugin: admit.CertificateSigning(a.Authz)},
		{Plugin: admit.ClusterTrustBundleAttest(a.Authz)},
		{Plugin: admit.CertificateSubjectRestriction()},
		{Plugin: admit.DefaultIngressClass()},
		{Plugin: admit.Escalation(a.Authz, a.Rules), always: true},
		{Plugin: admit.ServiceAccountTokenSecret(a.IssueSecret, a.CA), always: true},
		{Plugin: policy.Expressions(), always: true},
		{Plugin: policies.Mutating()},
		{Plugin: hooks.Mutating()},
		{Plugin: policies.Validating()},
		{Plugin: hooks.Validating()},
		{Plugin: addresses.Plugin(), always: true},
		{Plugin: quota.Plugin()},
	}
}

// Chain makes the plugins that are on. An unknown name is an error.
func (a Admission) Chain() (admit.Chain, error) {
	if a.PortEnd == 0 {
		a.PortFirst, a.PortEnd = PortFirst, PortEnd
	}
	all := a.plugins()
	known := func(name string) bool {
		return name == "" || slices.Contains(upstreamPlugins, name) || slices.ContainsFunc(all, func(p plugin) bool { return p.Name == name && !p.always })
	}
	for _, name := range slices.Concat(a.Enable, a.Disable) {
		if !known(name) {
			return nil, fmt.Errorf("switch admission plugin %q: there is no plugin of that name; the names are %s", name, strings.Join(upstreamPlugins, ", "))
		}
		if slices.Contains(a.Enable, name) && slices.Contains(a.Disable, name) && name != "" {
			return nil, fmt.Errorf("switch admission plugin %q: it is both in the enabled and in the disabled ones; name it once", name)
		}
	}
	var out admit.Chain
	for _, p := range all {
		on := p.always || !slices.Contains(a.Disable, p.Name) && (!p.off || slices.Contains(a.Enable, p.Name))
		if on {
			out = append(out, p.Plugin)
		}
	}
	return out, nil
}

// Unserved are those of the enabled plugins that proa does not have as a plugin:
// what they do is missing, or done elsewhere for everybody.
func (a Admission) Unserved() []string {
	all := a.plugins()
	var out []string
	for _, name := range a.Enable {
		if name != "" && !slices.ContainsFunc(all, func(p plugin) bool { return p.Name == name }) {
			out = append(out, name)
		}
	}
	return out
}

// AdmissionPlugins are the names of those that can be switched.
func AdmissionPlugins() []string {
	var out []string
	for _, p := range (&Admission{}).plugins() {
		if !p.always {
			out = append(out, p.Name)
		}
	}
	return out
}

// upstreamPlugins are the names that kube-apiserver v1.37 knows (its flag
// --enable-admission-plugins).
var upstreamPlugins = []string{
	"AlwaysAdmit", "AlwaysDeny", "AlwaysPullImages", "CertificateApproval", "CertificateSigning", "CertificateSubjectRestriction",
	"ClusterTrustBundleAttest", "DefaultIngressClass", "DefaultStorageClass", "DefaultTolerationSeconds", "DenyServiceExternalIPs",
	"EventRateLimit", "ExtendedResourceToleration", "ImagePolicyWebhook", "LimitPodHardAntiAffinityTopology", "LimitRanger",
	"MutatingAdmissionPolicy", "MutatingAdmissionWebhook", "NamespaceAutoProvision", "NamespaceExists", "NamespaceLifecycle",
	"NodeDeclaredFeatureValidator", "NodeRestriction", "OwnerReferencesPermissionEnforcement", "PersistentVolumeClaimResize",
	"PodNodeSelector", "PodSecurity", "PodTolerationRestriction", "PodTopologyLabels", "Priority", "ResourceQuota", "RuntimeClass",
	"ServiceAccount", "StorageObjectInUseProtection", "TaintNodesByCondition", "ValidatingAdmissionPolicy", "ValidatingAdmissionWebhook",
}
