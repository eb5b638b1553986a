package validate

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// podContext is what the checks of a container need to know of its pod.
type podContext struct {
	volumes       map[string]corev1.VolumeSource
	claims        sets.Set[string]
	graceSeconds  *int64
	hostUsers     *bool
	os            *corev1.PodOS
	old           *corev1.PodSpec
	podResources  bool
	restartPolicy corev1.RestartPolicy
}

func containers(list []corev1.Container, pc *podContext, path *field.Path) field.ErrorList {
	if len(list) == 0 {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	names := sets.New[string]()
	for i := range list {
		c, p := &list[i], path.Index(i)
		errs = append(errs, containerCommon(c, pc, p)...)
		if names.Has(c.Name) {
			errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
		}
		names.Insert(c.Name)
		errs = append(errs, lifecycle(c.Lifecycle, pc, p.Child("lifecycle"))...)
		errs = append(errs, livenessProbe(c.LivenessProbe, p.Child("livenessProbe"))...)
		errs = append(errs, readinessProbe(c.ReadinessProbe, p.Child("readinessProbe"))...)
		errs = append(errs, livenessProbe(c.StartupProbe, p.Child("startupProbe"))...)
		errs = append(errs, containerRestartPolicy(c, p)...)
	}
	return append(errs, hostPortConflicts(list, path)...)
}

func initContainers(list, regular []corev1.Container, pc *podContext, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	names := sets.New[string]()
	for _, c := range regular {
		names.Insert(c.Name)
	}
	for i := range list {
		c, p := &list[i], path.Index(i)
		errs = append(errs, containerCommon(c, pc, p)...)
		errs = append(errs, containerRestartPolicy(c, p)...)
		if names.Has(c.Name) {
			errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
		} else if c.Name != "" {
			names.Insert(c.Name)
		}
		// Init containers run one by one, so only the ports within one can conflict.
		errs = append(errs, hostPortConflicts([]corev1.Container{*c}, path)...)
		if sidecar(c) {
			errs = append(errs, lifecycle(c.Lifecycle, pc, p.Child("lifecycle"))...)
			errs = append(errs, livenessProbe(c.LivenessProbe, p.Child("livenessProbe"))...)
			errs = append(errs, readinessProbe(c.ReadinessProbe, p.Child("readinessProbe"))...)
			errs = append(errs, livenessProbe(c.StartupProbe, p.Child("startupProbe"))...)
			continue
		}
		const msg = "may not be set for init containers without restartPolicy=Always"
		if c.Lifecycle != nil {
			errs = append(errs, field.Forbidden(p.Child("lifecycle"), msg))
		}
		if c.LivenessProbe != nil {
			errs = append(errs, field.Forbidden(p.Child("livenessProbe"), msg))
		}
		if c.ReadinessProbe != nil {
			errs = append(errs, field.Forbidden(p.Child("readinessProbe"), msg))
		}
		if c.StartupProbe != nil {
			errs = append(errs, field.Forbidden(p.Child("startupProbe"), msg))
		}
		if pc.old != nil && restartsOnResize(pc.old.InitContainers) {
			continue
		}
		for j, policy := range c.ResizePolicy {
			if policy.RestartPolicy == corev1.RestartContainer {
				errs = append(errs, field.Invalid(p.Child("resizePolicy").Index(j).Child("restartPolicy"), policy.RestartPolicy, "must not be set to 'RestartContainer' for non-sidecar initContainers"))
			}
		}
	}
	return errs
}

// restartsOnResize says whether a container that runs before the regular ones, and
// ends, asks for a restart when its resources change, as was allowed once.
func restartsOnResize(inits []corev1.Container) bool {
	return slices.ContainsFunc(inits, func(c corev1.Container) bool {
		return !sidecar(&c) && slices.ContainsFunc(c.ResizePolicy, func(p corev1.ContainerResizePolicy) bool {
			return p.RestartPolicy == corev1.RestartContainer
		})
	})
}

func sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// ephemeralFields are the only fields that a debugging container may set.
var ephemeralFields = sets.New("Name", "Image", "Command", "Args", "WorkingDir", "EnvFrom", "Env",
	"VolumeMounts", "VolumeDevices", "TerminationMessagePath", "TerminationMessagePolicy",
	"ImagePullPolicy", "SecurityContext", "Stdin", "StdinOnce", "TTY")

func ephemeralContainers(list []corev1.EphemeralContainer, regular, inits []corev1.Container, pc *podContext, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	targets, names := sets.New[string](), sets.New[string]()
	for _, c := range regular {
		targets.Insert(c.Name)
	}
	for _, c := range inits {
		targets.Insert(c.Name)
	}
	names = names.Union(targets)
	const msg = "cannot be set for an Ephemeral Container"
	for i := range list {
		ec, p := &list[i], path.Index(i)
		c := corev1.Container(ec.EphemeralContainerCommon)
		errs = append(errs, containerCommon(&c, pc, p)...)
		errs = append(errs, imageSpaces(&c, p)...)
		if names.Has(ec.Name) {
			errs = append(errs, field.Duplicate(p.Child("name"), ec.Name))
		}
		names.Insert(ec.Name)
		if ec.TargetContainerName != "" && !targets.Has(ec.TargetContainerName) {
			errs = append(errs, field.NotFound(p.Child("targetContainerName"), ec.TargetContainerName))
		}
		value := reflect.ValueOf(ec.EphemeralContainerCommon)
		for f := range value.NumField() {
			name := value.Type().Field(f).Name
			if !ephemeralFields.Has(name) && !value.Field(f).IsZero() {
				errs = append(errs, field.Forbidden(p.Child(strings.ToLower(name[:1])+name[1:]), msg))
			}
		}
		for m, mount := range ec.VolumeMounts {
			if mount.SubPath != "" {
				errs = append(errs, field.Forbidden(p.Child("volumeMounts").Index(m).Child("subPath"), msg))
			}
			if mount.SubPathExpr != "" {
				errs = append(errs, field.Forbidden(p.Child("volumeMounts").Index(m).Child("subPathExpr"), msg))
			}
		}
	}
	return errs
}

func containerCommon(c *corev1.Container, pc *podContext, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if c.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	} else {
		errs = append(errs, dnsLabel(c.Name, path.Child("name"))...)
	}
	errs = append(errs, required(c.Image, path.Child("image"))...)
	errs = append(errs, requiredSupported(c.TerminationMessagePolicy, path.Child("terminationMessagePolicy"),
		corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)...)

	mounts, devices := sets.New[string](), sets.New[string]()
	mountPaths, devicePaths := sets.New[string](), sets.New[string]()
	for _, m := range c.VolumeMounts {
		mounts.Insert(m.Name)
		mountPaths.Insert(m.MountPath)
	}
	for _, d := range c.VolumeDevices {
		devices.Insert(d.Name)
		devicePaths.Insert(d.DevicePath)
	}
	errs = append(errs, containerPorts(c.Ports, path.Child("ports"))...)
	errs = append(errs, env(c.Env, path.Child("env"))...)
	errs = append(errs, envFrom(c.EnvFrom, path.Child("envFrom"))...)
	errs = append(errs, volumeMounts(c, pc, devices, devicePaths, path.Child("volumeMounts"))...)
	errs = append(errs, volumeDevices(c.VolumeDevices, mounts, mountPaths, pc, path.Child("volumeDevices"))...)
	errs = append(errs, requiredSupported(c.ImagePullPolicy, path.Child("imagePullPolicy"),
		corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
	errs = append(errs, containerResources(&c.Resources, pc.claims, path.Child("resources"))...)
	errs = append(errs, resizePolicy(c.ResizePolicy, pc.restartPolicy, path.Child("resizePolicy"))...)
	return append(errs, securityContext(c.SecurityContext, pc.hostUsers, path.Child("securityContext"))...)
}

func resizePolicy(policies []corev1.ContainerResizePolicy, restart corev1.RestartPolicy, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := sets.New[corev1.ResourceName]()
	for i, p := range policies {
		if seen.Has(p.ResourceName) {
			errs = append(errs, field.Duplicate(path.Index(i), p.ResourceName))
		}
		seen.Insert(p.ResourceName)
		errs = append(errs, requiredSupported(p.ResourceName, path, corev1.ResourceCPU, corev1.ResourceMemory)...)
		errs = append(errs, requiredSupported(p.RestartPolicy, path, corev1.NotRequired, corev1.RestartContainer)...)
		if restart == corev1.RestartPolicyNever && p.RestartPolicy != corev1.NotRequired {
			errs = append(errs, field.Invalid(path, p.RestartPolicy, "must be 'NotRequired' when pod `restartPolicy` is 'Never'"))
		}
	}
	return errs
}

func containerRestartPolicy(c *corev1.Container, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	rules := path.Child("restartPolicyRules")
	if c.RestartPolicy == nil {
		if len(c.RestartPolicyRules) > 0 {
			errs = append(errs, field.Required(path.Child("restartPolicy"), "must specify restartPolicy when restart rules are used"))
		}
	} else {
		errs = append(errs, supported(*c.RestartPolicy, path.Child("restartPolicy"),
			corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure)...)
	}
	if len(c.RestartPolicyRules) > 20 {
		errs = append(errs, field.TooMany(rules, len(c.RestartPolicyRules), 20))
	}
	for i, r := range c.RestartPolicyRules {
		p := rules.Index(i)
		errs = append(errs, supported(r.Action, p.Child("action"), corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleActionRestartAllContainers)...)
		if r.ExitCodes == nil {
			errs = append(errs, field.Required(p.Child("exitCodes"), "must be specified"))
			continue
		}
		errs = append(errs, supported(r.ExitCodes.Operator, p.Child("exitCodes", "operator"),
			corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn)...)
		if len(r.ExitCodes.Values) > 255 {
			errs = append(errs, field.TooMany(p.Child("exitCodes", "values"), len(r.ExitCodes.Values), 255))
		}
	}
	return errs
}

func containerPorts(ports []corev1.ContainerPort, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	names := sets.New[string]()
	for i, port := range ports {
		p := path.Index(i)
		if port.Name != "" {
			if msgs := validation.IsValidPortName(port.Name); len(msgs) != 0 {
				errs = append(errs, invalid(p.Child("name"), port.Name, msgs)...)
			} else if names.Has(port.Name) {
				errs = append(errs, field.Duplicate(p.Child("name"), port.Name))
			} else {
				names.Insert(port.Name)
			}
		}
		if port.ContainerPort == 0 {
			errs = append(errs, field.Required(p.Child("containerPort"), ""))
		} else {
			errs = append(errs, portNumber(port.ContainerPort, p.Child("containerPort"))...)
		}
		if port.HostPort != 0 {
			errs = append(errs, portNumber(port.HostPort, p.Child("hostPort"))...)
		}
		errs = append(errs, requiredSupported(port.Protocol, p.Child("protocol"), corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)...)
	}
	return errs
}

func hostPortConflicts(list []corev1.Container, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := sets.New[string]()
	for c := range list {
		for i, port := range list[c].Ports {
			if port.HostPort == 0 {
				continue
			}
			key := fmt.Sprintf("%s/%s/%d", port.Protocol, port.HostIP, port.HostPort)
			if seen.Has(key) {
				errs = append(errs, field.Duplicate(path.Index(c).Child("ports").Index(i).Child("hostPort"), key))
			}
			seen.Insert(key)
		}
	}
	return errs
}

func portNumberOrName(port intstr.IntOrString, path *field.Path) field.ErrorList {
	if port.Type == intstr.Int {
		return invalid(path, port.IntValue(), validation.IsValidPortNum(port.IntValue()))
	}
	return invalid(path, port.StrVal, validation.IsValidPortName(port.StrVal))
}

func livenessProbe(probe *corev1.Probe, path *field.Path) field.ErrorList {
	if probe == nil {
		return nil
	}
	errs := commonProbe(probe, path)
	if probe.SuccessThreshold != 1 {
		errs = append(errs, field.Invalid(path.Child("successThreshold"), probe.SuccessThreshold, "must be 1"))
	}
	return errs
}

func readinessProbe(probe *corev1.Probe, path *field.Path) field.ErrorList {
	if probe == nil {
		return nil
	}
	errs := commonProbe(probe, path)
	if probe.TerminationGracePeriodSeconds != nil {
		errs = append(errs, field.Invalid(path.Child("terminationGracePeriodSeconds"), probe.TerminationGracePeriodSeconds, "must not be set for readinessProbes"))
	}
	return errs
}

func commonProbe(probe *corev1.Probe, path *field.Path) field.ErrorList {
	errs := handler(anyHandler{exec: probe.Exec, http: probe.HTTPGet, tcp: probe.TCPSocket, grpc: probe.GRPC}, nil, path)
	errs = append(errs, nonNegative(int64(probe.InitialDelaySeconds), path.Child("initialDelaySeconds"))...)
	errs = append(errs, nonNegative(int64(probe.TimeoutSeconds), path.Child("timeoutSeconds"))...)
	errs = append(errs, nonNegative(int64(probe.PeriodSeconds), path.Child("periodSeconds"))...)
	errs = append(errs, nonNegative(int64(probe.SuccessThreshold), path.Child("successThreshold"))...)
	errs = append(errs, nonNegative(int64(probe.FailureThreshold), path.Child("failureThreshold"))...)
	if s := probe.TerminationGracePeriodSeconds; s != nil && *s <= 0 {
		errs = append(errs, field.Invalid(path.Child("terminationGracePeriodSeconds"), *s, "must be greater than 0"))
	}
	return errs
}

var stopSignals = map[corev1.OSName][]string{
	corev1.Windows: {"SIGKILL", "SIGTERM"},
	corev1.Linux: {"SIGABRT", "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCLD", "SIGCONT", "SIGFPE", "SIGHUP", "SIGILL", "SIGINT",
		"SIGIO", "SIGIOT", "SIGKILL", "SIGPIPE", "SIGPOLL", "SIGPROF", "SIGPWR", "SIGQUIT", "SIGRTMAX", "SIGRTMAX-1",
		"SIGRTMAX-10", "SIGRTMAX-11", "SIGRTMAX-12", "SIGRTMAX-13", "SIGRTMAX-14", "SIGRTMAX-2", "SIGRTMAX-3", "SIGRTMAX-4",
		"SIGRTMAX-5", "SIGRTMAX-6", "SIGRTMAX-7", "SIGRTMAX-8", "SIGRTMAX-9", "SIGRTMIN", "SIGRTMIN+1", "SIGRTMIN+10",
		"SIGRTMIN+11", "SIGRTMIN+12", "SIGRTMIN+13", "SIGRTMIN+14", "SIGRTMIN+15", "SIGRTMIN+2", "SIGRTMIN+3", "SIGRTMIN+4",
		"SIGRTMIN+5", "SIGRTMIN+6", "SIGRTMIN+7", "SIGRTMIN+8", "SIGRTMIN+9", "SIGSEGV", "SIGSTKFLT", "SIGSTOP", "SIGSYS",
		"SIGTERM", "SIGTRAP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGWINCH", "SIGXCPU", "SIGXFSZ"},
}

func lifecycle(l *corev1.Lifecycle, pc *podContext, path *field.Path) field.ErrorList {
	if l == nil {
		return nil
	}
	var errs field.ErrorList
	if h := l.PostStart; h != nil {
		errs = append(errs, handler(anyHandler{exec: h.Exec, http: h.HTTPGet, tcp: h.TCPSocket, sleep: h.Sleep}, pc.graceSeconds, path.Child("postStart"))...)
	}
	if h := l.PreStop; h != nil {
		errs = append(errs, handler(anyHandler{exec: h.Exec, http: h.HTTPGet, tcp: h.TCPSocket, sleep: h.Sleep}, pc.graceSeconds, path.Child("preStop"))...)
	}
	if l.StopSignal != nil {
		p := path.Child("stopSignal")
		if pc.os == nil {
			errs = append(errs, field.Forbidden(p, "may not be set for containers with empty `spec.os.name`"))
		} else {
			errs = append(errs, supported(string(*l.StopSignal), p, stopSignals[pc.os.Name]...)...)
		}
	}
	return errs
}

// anyHandler is the union of the ways to act on a container.
type anyHandler struct {
	exec  *corev1.ExecAction
	http  *corev1.HTTPGetAction
	tcp   *corev1.TCPSocketAction
	grpc  *corev1.GRPCAction
	sleep *corev1.SleepAction
}

func handler(h anyHandler, graceSeconds *int64, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	count := 0
	only := func(name string) bool {
		count++
		if count > 1 {
			errs = append(errs, field.Forbidden(path.Child(name), "may not specify more than 1 handler type"))
		}
		return count == 1
	}
	if h.exec != nil && only("exec") && len(h.exec.Command) == 0 {
		errs = append(errs, field.Required(path.Child("exec", "command"), ""))
	}
	if h.http != nil && only("httpGet") {
		p := path.Child("httpGet")
		errs = append(errs, required(h.http.Path, p.Child("path"))...)
		errs = append(errs, portNumberOrName(h.http.Port, p.Child("port"))...)
		errs = append(errs, supported(h.http.Scheme, p.Child("scheme"), corev1.URISchemeHTTP, corev1.URISchemeHTTPS)...)
		for _, header := range h.http.HTTPHeaders {
			errs = append(errs, invalid(p.Child("httpHeaders"), header.Name, validation.IsHTTPHeaderName(header.Name))...)
		}
	}
	if h.tcp != nil && only("tcpSocket") {
		errs = append(errs, portNumberOrName(h.tcp.Port, path.Child("tcpSocket", "port"))...)
	}
	if h.grpc != nil && only("grpc") {
		errs = append(errs, portNumberOrName(intstr.FromInt32(h.grpc.Port), path.Child("grpc", "port"))...)
	}
	if h.sleep != nil && only("sleep") && graceSeconds != nil && (h.sleep.Seconds < 0 || h.sleep.Seconds > *graceSeconds) {
		errs = append(errs, field.Invalid(path.Child("sleep"), h.sleep.Seconds,
			fmt.Sprintf("must be non-negative and less than terminationGracePeriodSeconds (%d)", *graceSeconds)))
	}
	if count == 0 {
		errs = append(errs, field.Required(path, "must specify a handler type"))
	}
	return errs
}

// volumeMounts checks where the volumes appear. The paths of what stands within a
// mount's own options lack its number, as upstream's do.
func volumeMounts(c *corev1.Container, pc *podContext, devices, devicePaths sets.Set[string], path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := sets.New[string]()
	for i := range c.VolumeMounts {
		m, p := &c.VolumeMounts[i], path.Index(i)
		errs = append(errs, required(m.Name, p.Child("name"))...)
		if _, ok := pc.volumes[m.Name]; !ok {
			errs = append(errs, field.NotFound(p.Child("name"), m.Name))
		}
		errs = append(errs, required(m.MountPath, p.Child("mountPath"))...)
		if seen.Has(m.MountPath) {
			errs = append(errs, field.Invalid(p.Child("mountPath"), m.MountPath, "must be unique"))
		}
		seen.Insert(m.MountPath)
		if devicePaths.Has(m.MountPath) {
			errs = append(errs, field.Invalid(p.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices"))
		}
		if devices.Has(m.Name) {
			errs = append(errs, field.Invalid(p.Child("name"), m.Name, "must not already exist in volumeDevices"))
		}
		if m.SubPath != "" {
			errs = append(errs, descendingPath(m.SubPath, path.Child("subPath"))...)
		}
		if m.SubPathExpr != "" {
			if m.SubPath != "" {
				errs = append(errs, field.Invalid(path.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive"))
			}
			errs = append(errs, descendingPath(m.SubPathExpr, path.Child("subPathExpr"))...)
		}
		if m.MountPropagation != nil {
			pp := path.Child("mountPropagation")
			errs = append(errs, supported(*m.MountPropagation, pp, corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer, corev1.MountPropagationNone)...)
			privileged := c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
			if *m.MountPropagation == corev1.MountPropagationBidirectional && !privileged {
				errs = append(errs, field.Forbidden(pp, "Bidirectional mount propagation is available only to privileged containers"))
			}
		}
		errs = append(errs, recursiveReadOnly(m, path.Child("recursiveReadOnly"))...)
	}
	return errs
}

func recursiveReadOnly(m *corev1.VolumeMount, path *field.Path) field.ErrorList {
	if m.RecursiveReadOnly == nil || *m.RecursiveReadOnly == corev1.RecursiveReadOnlyDisabled {
		return nil
	}
	errs := supported(*m.RecursiveReadOnly, path, corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible)
	if len(errs) > 0 {
		return errs
	}
	if !m.ReadOnly {
		errs = append(errs, field.Forbidden(path, "may only be specified when readOnly is true"))
	}
	if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
		errs = append(errs, field.Forbidden(path, "may only be specified when mountPropagation is None or not specified"))
	}
	return errs
}

func volumeDevices(devices []corev1.VolumeDevice, mounts, mountPaths sets.Set[string], pc *podContext, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seenPaths, seenNames := sets.New[string](), sets.New[string]()
	for i, d := range devices {
		p := path.Index(i)
		source, ok := pc.volumes[d.Name]
		errs = append(errs, required(d.Name, p.Child("name"))...)
		if seenNames.Has(d.Name) {
			errs = append(errs, field.Invalid(p.Child("name"), d.Name, "must be unique"))
		}
		if ok && source.PersistentVolumeClaim == nil && source.Ephemeral == nil {
			errs = append(errs, field.Invalid(p.Child("name"), d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"))
		}
		if !ok {
			errs = append(errs, field.NotFound(p.Child("name"), d.Name))
		}
		errs = append(errs, required(d.DevicePath, p.Child("devicePath"))...)
		if seenPaths.Has(d.DevicePath) {
			errs = append(errs, field.Invalid(p.Child("devicePath"), d.DevicePath, "must be unique"))
		}
		if d.DevicePath != "" && len(noBacksteps(d.DevicePath, p)) > 0 {
			errs = append(errs, field.Invalid(p.Child("devicePath"), d.DevicePath, "can not contain backsteps ('..')"))
		} else {
			seenPaths.Insert(d.DevicePath)
		}
		if mountPaths.Has(d.DevicePath) {
			errs = append(errs, field.Invalid(p.Child("devicePath"), d.DevicePath, "must not already exist as a path in volumeMounts"))
		}
		if mounts.Has(d.Name) {
			errs = append(errs, field.Invalid(p.Child("name"), d.Name, "must not already exist in volumeMounts"))
		}
		if d.Name != "" {
			seenNames.Insert(d.Name)
		}
	}
	return errs
}

func descendingPath(value string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if strings.HasPrefix(value, "/") {
		errs = append(errs, field.Invalid(path, value, "must be a relative path"))
	}
	return append(errs, noBacksteps(value, path)...)
}

func noBacksteps(value string, path *field.Path) field.ErrorList {
	for part := range strings.SplitSeq(value, "/") {
		if part == ".." {
			return field.ErrorList{field.Invalid(path, value, "must not contain '..'")}
		}
	}
	return nil
}
