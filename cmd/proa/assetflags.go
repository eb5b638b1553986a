package main

import (
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// A flag table has a line for each flag: name, type, default, what becomes of it,
// and the text of --help. What becomes of it: done (carried out), idle (accepted,
// nothing follows from it; a warning says so), no (refused with the text as the
// reason). Types: string, list, bool, int, duration.
type flagTable struct {
	set  *pflag.FlagSet
	idle map[string]string // name → text
	no   map[string]string
}

func newFlagTable(program, table string) *flagTable {
	t := &flagTable{set: pflag.NewFlagSet(program, pflag.ContinueOnError), idle: map[string]string{}, no: map[string]string{}}
	t.set.SortFlags = true
	// --a_b is --a-b, as in upstream's components.
	t.set.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.ReplaceAll(name, "_", "-"))
	})
	for line := range strings.Lines(table) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "|", 5)
		if len(f) != 5 {
			continue
		}
		name, kind, value, state, text := f[0], f[1], f[2], f[3], f[4]
		switch state {
		case "idle":
			t.idle[name] = text
			text = "(no effect) " + text
		case "no":
			t.no[name] = text
			text = "(refused) " + text
		}
		switch kind {
		case "list":
			var list []string
			if value != "" {
				list = strings.Split(value, ",")
			}
			t.set.StringSlice(name, list, text)
		case "bool":
			t.set.Bool(name, value == "true", text)
		case "int":
			n, _ := strconv.Atoi(value)
			t.set.Int(name, n, text)
		default:
			t.set.String(name, value, text)
		}
	}
	return t
}

// parse reads arguments; done is true when there is nothing more to do (--help).
func (t *flagTable) parse(args []string) error {
	if err := t.set.Parse(args); err != nil {
		return err
	}
	if rest := t.set.Args(); len(rest) > 0 {
		return fmt.Errorf("%q is not a flag; `%s --help` lists them", rest[0], t.set.Name())
	}
	var refused error
	t.set.Visit(func(f *pflag.Flag) {
		if why := t.no[f.Name]; why != "" && refused == nil && f.Value.String() != f.DefValue {
			refused = fmt.Errorf("flag --%s: %s", f.Name, why)
		}
	})
	return refused
}

// warn says which of the given flags have no effect.
func (t *flagTable) warn(log *slog.Logger) {
	t.set.Visit(func(f *pflag.Flag) {
		if why := t.idle[f.Name]; why != "" && f.Value.String() != f.DefValue {
			log.Warn("flag has no effect", "flag", "--"+f.Name, "why", why)
		}
	})
}

func (t *flagTable) str(name string) string {
	return t.set.Lookup(name).Value.String()
}

func (t *flagTable) list(name string) []string {
	l, err := t.set.GetStringSlice(name)
	if err != nil {
		panic("flag table: " + err.Error())
	}
	return l
}

func (t *flagTable) is(name string) bool {
	b, err := t.set.GetBool(name)
	if err != nil {
		panic("flag table: " + err.Error())
	}
	return b
}

func (t *flagTable) int(name string) int {
	n, err := t.set.GetInt(name)
	if err != nil {
		panic("flag table: " + err.Error())
	}
	return n
}

func (t *flagTable) given(name string) bool { return t.set.Changed(name) }

// etcdFlags are those of etcd that test environments and their users pass.
const etcdFlags = `name|string|default|idle|names do not matter to a single member
data-dir|string|default.etcd|done|where the state is kept; an API server that is pointed here keeps it in there
wal-dir|string||idle|the log is in the data directory
listen-client-urls|list|http://localhost:2379|done|where /health is answered and API servers of proa ask for the data; http, on this machine
advertise-client-urls|list|http://localhost:2379|done|the same as listen-client-urls
listen-peer-urls|list|http://localhost:2380|idle|there are no peers: this is a single member
initial-advertise-peer-urls|list|http://localhost:2380|idle|there are no peers
initial-cluster|string||idle|there are no peers
initial-cluster-state|string|new|idle|there are no peers
initial-cluster-token|string|etcd-cluster|idle|there are no peers
listen-metrics-urls|list||idle|metrics are the API server's
unsafe-no-fsync|bool|false|done|do not wait for the disk: a crash of the machine may lose the state
logger|string|zap|idle|there is one log format
log-level|string|info|done|debug, info, warn, error
log-outputs|list|default|idle|the log goes to standard error
log-format|string|json|idle|there is one log format
snapshot-count|int|10000|idle|the store decides by itself
heartbeat-interval|int|100|idle|there are no peers
election-timeout|int|1000|idle|there are no peers
quota-backend-bytes|int|0|idle|the disk is the limit
max-request-bytes|int|1572864|idle|the API server has a limit of its own
max-txn-ops|int|128|idle|the API server is the only client
auto-compaction-retention|string|0|idle|the store compacts by itself
auto-compaction-mode|string|periodic|idle|the store compacts by itself
enable-pprof|bool|false|idle|profiles are the API server's
version|bool|false|done|print the version and end
`

// apiserverFlags are those of kube-apiserver v1.37.
const apiserverFlags = `admission-control|list||no|it was removed; use --enable-admission-plugins and --disable-admission-plugins
admission-control-config-file|string||done|AdmissionConfiguration: PodSecurity, EventRateLimit, PodNodeSelector
advertise-address|string||done|address of the endpoints of the Service default/kubernetes; without one, this machine's
aggregator-reject-forwarding-redirect|bool|true|idle|redirects of aggregated servers are never followed
allow-metric-labels|list||idle|metrics have the labels they have
allow-metric-labels-manifest|string||idle|metrics have the labels they have
allow-privileged|bool|false|idle|privileged pods are a matter of Pod Security; they are never refused for this flag
anonymous-auth|bool|true|done|let requests without credentials in as system:anonymous
api-audiences|list||done|audiences of tokens; the default is the issuer
apiserver-count|int|1|idle|servers find each other by their leases
audit-log-format|string|json|done|json or legacy
audit-log-maxage|int|0|done|days that old audit logs are kept
audit-log-maxbackup|int|0|done|old audit logs that are kept
audit-log-maxsize|int|0|done|megabytes of an audit log before a new one is begun
audit-log-path|string||done|file of the audit log; - is standard output
audit-log-mode|string|blocking|idle|the audit log is written before the answer
audit-log-compress|bool|false|idle|old audit logs are not compressed
audit-log-batch-buffer-size|int|10000|idle|the audit log is not batched
audit-log-batch-max-size|int|1|idle|the audit log is not batched
audit-log-batch-max-wait|duration|0s|idle|the audit log is not batched
audit-log-batch-throttle-burst|int|0|idle|the audit log is not batched
audit-log-batch-throttle-enable|bool|false|idle|the audit log is not batched
audit-log-batch-throttle-qps|string|0|idle|the audit log is not batched
audit-log-truncate-enabled|bool|false|idle|audit events are not cut
audit-log-truncate-max-batch-size|int|10485760|idle|audit events are not cut
audit-log-truncate-max-event-size|int|102400|idle|audit events are not cut
audit-log-version|string|audit.k8s.io/v1|idle|the version is audit.k8s.io/v1
audit-policy-file|string||done|audit policy (audit.k8s.io/v1)
audit-webhook-batch-buffer-size|int|10000|idle|the buffer has a fixed size
audit-webhook-batch-max-size|int|400|idle|batches have a fixed size
audit-webhook-batch-max-wait|duration|30s|done|how long an event waits for others
audit-webhook-batch-throttle-burst|int|15|idle|batches are not throttled
audit-webhook-batch-throttle-enable|bool|true|idle|batches are not throttled
audit-webhook-batch-throttle-qps|string|10|idle|batches are not throttled
audit-webhook-config-file|string||done|kubeconfig of the service that gets audit events
audit-webhook-initial-backoff|duration|10s|idle|the back-off is fixed
audit-webhook-mode|string|batch|idle|the mode is batch
audit-webhook-truncate-enabled|bool|false|idle|audit events are not cut
audit-webhook-truncate-max-batch-size|int|10485760|idle|audit events are not cut
audit-webhook-truncate-max-event-size|int|102400|idle|audit events are not cut
audit-webhook-version|string|audit.k8s.io/v1|idle|the version is audit.k8s.io/v1
authentication-config|string||done|file with an AuthenticationConfiguration
authentication-token-webhook-cache-ttl|duration|2m0s|done|how long answers about tokens are remembered
authentication-token-webhook-config-file|string||done|kubeconfig of the service that knows tokens
authentication-token-webhook-version|string|v1beta1|done|version of TokenReview
authorization-config|string||done|file with an AuthorizationConfiguration
authorization-mode|list||done|AlwaysAllow, AlwaysDeny, Node, RBAC, Webhook; without this flag or a file, AlwaysAllow
authorization-policy-file|string||no|the mode ABAC is not there; use RBAC
authorization-webhook-cache-authorized-ttl|duration|5m0s|done|how long an allowance is remembered
authorization-webhook-cache-unauthorized-ttl|duration|30s|done|how long a refusal is remembered
authorization-webhook-config-file|string||done|kubeconfig of the service that decides
authorization-webhook-version|string|v1beta1|done|version of SubjectAccessReview
bind-address|string|0.0.0.0|done|address to listen on
cert-dir|string|/var/run/kubernetes|done|where apiserver.crt and apiserver.key are, or are made
client-ca-file|string||done|certificates that sign those of clients
contention-profiling|bool|false|idle|contention is not profiled
controllers|list||done|of proa: controllers that run in this process, as kube-controller-manager's flag: garbagecollector, namespace, serviceaccount, …, * for all; none by default
coordinated-leadership-lease-duration|duration|15s|idle|leases are the clients' matter
coordinated-leadership-renew-deadline|duration|10s|idle|leases are the clients' matter
coordinated-leadership-retry-period|duration|2s|idle|leases are the clients' matter
cors-allowed-origins|list||idle|CORS stays off
debug-socket-path|string||idle|there is no debugging socket
default-not-ready-toleration-seconds|int|300|idle|the toleration is 300 seconds
default-unreachable-toleration-seconds|int|300|idle|the toleration is 300 seconds
default-watch-cache-size|int|100|idle|all reads come from memory
delete-collection-workers|int|1|idle|collections are deleted in order
disable-admission-plugins|list||done|admission plugins that are off
disable-http2-serving|bool|false|idle|HTTP/2 is always served
disabled-metrics|list||idle|metrics are not switched one by one
egress-selector-config-file|string||idle|connections go directly
emulated-version|list||idle|there is one version
emulation-forward-compatible|bool|false|idle|there is one version
enable-admission-plugins|list||done|admission plugins that are on besides the default ones
enable-aggregator-routing|bool|false|idle|aggregated servers are reached by their endpoints
enable-bootstrap-token-auth|bool|false|idle|bootstrap tokens are always taken
enable-garbage-collector|bool|true|idle|who owns what is always kept
enable-logs-handler|bool|false|idle|/logs is not there
enable-priority-and-fairness|bool|true|done|Priority and Fairness
encryption-provider-config|string||done|file with an EncryptionConfiguration
encryption-provider-config-automatic-reload|bool|false|idle|the file is always followed
endpoint-reconciler-type|string|lease|idle|servers find each other by their leases
etcd-cafile|string||done|certificates that sign etcd's
etcd-certfile|string||done|client certificate for etcd
etcd-compaction-interval|duration|5m0s|idle|every five minutes
etcd-count-metric-poll-period|duration|1m0s|idle|counts are always there
etcd-db-metric-poll-interval|duration|30s|idle|sizes are always there
etcd-healthcheck-timeout|duration|2s|idle|the time is fixed
etcd-keyfile|string||done|key of the client certificate for etcd
etcd-prefix|string|/registry|done|of all keys in a real etcd
etcd-readycheck-timeout|duration|2s|idle|the time is fixed
etcd-servers|list||done|where the state is: an etcd of proa, a real etcd, or the word memory for none that outlives this process
etcd-servers-overrides|list||no|all kinds are in one store
event-ttl|duration|1h0m0s|idle|events have an hour
external-hostname|string||idle|addresses are found by themselves
feature-gates|list||idle|gates do not switch anything here: what is stable is on
flagz|bool|false|idle|/flagz is not there
goaway-chance|string|0|idle|clients are not asked to connect anew
help|bool|false|done|print this and end
http2-max-streams-per-connection|int|0|idle|1000
kubelet-certificate-authority|string||idle|there are no nodes behind this server
kubelet-client-certificate|string||idle|there are no nodes behind this server
kubelet-client-key|string||idle|there are no nodes behind this server
kubelet-port|int|10250|idle|there are no nodes behind this server
kubelet-preferred-address-types|list|Hostname,InternalDNS,InternalIP,ExternalDNS,ExternalIP|idle|there are no nodes behind this server
kubelet-read-only-port|int|10255|idle|there are no nodes behind this server
kubelet-timeout|duration|5s|idle|there are no nodes behind this server
kubernetes-service-node-port|int|0|idle|the Service kubernetes has a cluster IP only
lease-reuse-duration-seconds|int|60|idle|the store decides by itself
livez-grace-period|duration|0s|idle|there is none
log-flush-frequency|duration|5s|idle|the log is written at once
log-json-info-buffer-size|string|0|idle|the log is text
log-json-split-stream|bool|false|idle|the log is text
log-text-info-buffer-size|string|0|idle|the log is text
log-text-split-stream|bool|false|idle|the log is text
logging-format|string|text|idle|the log is text
max-connection-bytes-per-sec|int|0|idle|connections are not throttled
max-mutating-requests-inflight|int|200|done|writes in work at once
max-requests-inflight|int|400|done|reads in work at once
min-compatibility-version|list||idle|there is one version
min-request-timeout|int|1800|idle|watches without a timeout end when they end
oidc-ca-file|string||done|certificates that sign the issuer's
oidc-client-id|string||done|audience that tokens of the issuer must have
oidc-groups-claim|string||done|claim that has the groups
oidc-groups-prefix|string||done|before each group
oidc-issuer-url|string||done|issuer of tokens (OpenID Connect)
oidc-required-claim|list||done|key=value that tokens must have
oidc-signing-algs|list|RS256|done|algorithms of signatures
oidc-username-claim|string|sub|done|claim that has the name
oidc-username-prefix|string||done|before each name; - for none
peer-advertise-ip|string||idle|servers do not pass requests on
peer-advertise-port|string||idle|servers do not pass requests on
peer-ca-file|string||idle|servers do not pass requests on
permit-address-sharing|bool|false|idle|the port is this process's alone
permit-port-sharing|bool|false|idle|the port is this process's alone
profiling|bool|true|done|/debug/pprof, for those who may
proxy-client-cert-file|string||done|certificate that servers behind APIServices are shown (default: one of the server's own)
proxy-client-key-file|string||done|its key
request-timeout|duration|1m0s|done|of everything but watches and streams
requestheader-allowed-names|list||done|names of the front proxy's certificate
requestheader-client-ca-file|string||done|certificates that sign the front proxy's
requestheader-extra-headers-prefix|list||done|headers with extras
requestheader-group-headers|list||done|headers with groups
requestheader-uid-headers|list||done|headers with the UID
requestheader-username-headers|list||done|headers with the name
runtime-config|list||idle|what is stable is served; alpha and beta versions are not there
runtime-config-emulation-forward-compatible|bool|false|idle|there is one version
secure-port|int|6443|done|HTTPS port
service-account-extend-token-expiration|bool|true|idle|tokens of pods are good for a year where upstream's are
service-account-issuer|list||done|issuer of tokens; further ones are accepted
service-account-jwks-uri|string||done|where the keys are, in the discovery document
service-account-key-file|list||done|keys (or certificates) that check tokens
service-account-lookup|bool|true|idle|tokens are always checked against their objects
service-account-max-token-expiration|duration|0s|done|longest life of a token
service-account-signing-endpoint|string||no|signing by another process is not there; use --service-account-signing-key-file
service-account-signing-key-file|string||done|key that signs tokens; without one, a new one at each start
service-cluster-ip-range|list|10.0.0.0/24|done|network of cluster IPs; of two families the IPv4 one
service-node-port-range|string|30000-32767|done|ports for Services
show-hidden-metrics-for-version|string||idle|no metrics are hidden
shutdown-delay-duration|duration|0s|idle|the end is at once
shutdown-send-retry-after|bool|false|idle|the end is at once
shutdown-watch-termination-grace-period|duration|0s|idle|watches are ended first
storage-backend|string|etcd3|idle|the store follows from --etcd-servers
storage-initialization-timeout|duration|1m0s|done|how long to wait for etcd
storage-media-type|string|application/vnd.kubernetes.protobuf|idle|Protobuf, and JSON for custom resources
strict-transport-security-directives|list||idle|the header is not sent
tls-cert-file|string||done|certificate of the server, with its chain
tls-cipher-suites|list||idle|Go's choice
tls-curve-preferences|list||idle|Go's choice
tls-min-version|string||idle|TLS 1.2
tls-private-key-file|string||done|key of the certificate
tls-sni-cert-key|list||idle|there is one certificate
token-auth-file|string||done|file with tokens: token,user,uid,groups
tracing-config-file|string||idle|requests are not traced
version|string|false|done|print the version and end
vmodule|string||idle|the whole log has one level
watch-cache|bool|true|idle|all reads come from memory
watch-cache-sizes|list||idle|all reads come from memory
`
