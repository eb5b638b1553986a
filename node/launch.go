package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/node/pod"
	"proa.dev/node/probe"
)

// launch creates and starts one attempt of a container.
func (w *worker) launch(ctx context.Context, f pod.Launch) pod.Event {
	p := w.facts()
	answer := func(id, reason string, err error) pod.Event {
		return pod.Launched{Container: f.Container, ID: id, Reason: reason, Message: message(err)}
	}
	release, err := w.a.start(ctx)
	if err != nil {
		return answer("", "CreateContainerError", err)
	}
	defer release()
	s := w.state.Load()
	sandbox, sandboxAttempt := s.Sandbox.ID, s.Sandbox.Attempt
	cfg, err := w.a.containerConfig(ctx, p, f)
	if err != nil {
		return answer("", "CreateContainerConfigError", err)
	}
	if err := joinTarget(cfg, p, s.Containers); err != nil {
		return answer("", "CreateContainerConfigError", err)
	}
	boxCfg, _, err := w.a.sandboxConfig(p, sandboxAttempt)
	if err != nil {
		return answer("", "CreateContainerConfigError", err)
	}
	created, err := w.a.cfg.Engine.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: sandbox, Config: cfg, SandboxConfig: boxCfg})
	if err != nil {
		return answer("", "CreateContainerError", err)
	}
	if _, err := w.a.cfg.Engine.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return answer(created.ContainerId, "RunContainerError", err)
	}
	started := w.a.clock.Now()
	w.a.linkLog(p, f.Container, created.ContainerId, filepath.Join(boxCfg.LogDirectory, cfg.LogPath))
	return pod.Launched{Container: f.Container, ID: created.ContainerId, Image: pod.Spec(p, f.Container).Image, StartedAt: started}
}

// containerConfig translates a container into the engine's terms. Its errors
// are CreateContainerConfigErrors.
func (a *Agent) containerConfig(ctx context.Context, p *corev1.Pod, f pod.Launch) (*runtimeapi.ContainerConfig, error) {
	spec := pod.Spec(p, f.Container)
	env, err := a.environment(ctx, p, spec)
	if err != nil {
		return nil, err
	}
	expand := func(s string) (string, error) { return expandStrict(s, env.values) }
	mounts, err := a.volumes.Mounts(ctx, p, spec, expand)
	if err != nil {
		return nil, err
	}
	if len(spec.VolumeDevices) > 0 {
		return nil, fmt.Errorf("volumeDevices of container %q: block volumes are not supported by this node", spec.Name)
	}
	image, err := a.cfg.Engine.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: spec.Image}})
	if err != nil {
		return nil, err
	}
	if err := checkNonRoot(p, spec, image.GetImage()); err != nil {
		return nil, err
	}
	if m := a.hostsMount(p, spec); m != nil {
		mounts = append(mounts, m)
	}
	attempt := strconv.Itoa(int(f.Restarts))
	if spec.TerminationMessagePath != "" {
		file := a.messageFile(p, spec.Name, f.Restarts)
		if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
			return nil, err
		}
		if err := os.WriteFile(file, nil, 0o666); err != nil {
			return nil, err
		}
		if err := os.Chmod(file, 0o666); err != nil { // any user may write it
			return nil, err
		}
		mounts = append(mounts, &runtimeapi.Mount{HostPath: file, ContainerPath: spec.TerminationMessagePath})
	}
	if err := os.MkdirAll(filepath.Join(a.podLogDir(p), spec.Name), 0o755); err != nil {
		return nil, err
	}
	cfg := &runtimeapi.ContainerConfig{
		Metadata:   &runtimeapi.ContainerMetadata{Name: spec.Name, Attempt: uint32(f.Restarts)},
		Image:      &runtimeapi.ImageSpec{Image: spec.Image, UserSpecifiedImage: spec.Image},
		WorkingDir: spec.WorkingDir,
		Envs:       env.list,
		Mounts:     mounts,
		Labels: map[string]string{labelPodName: p.Name, labelPodNamespace: p.Namespace, labelPodUID: string(p.UID),
			labelContainerName: spec.Name},
		Annotations: map[string]string{annotationRestarts: attempt, annotationMessagePath: spec.TerminationMessagePath,
			annotationPolicy: string(spec.TerminationMessagePolicy)},
		LogPath:   filepath.Join(spec.Name, attempt+".log"),
		Stdin:     spec.Stdin,
		StdinOnce: spec.StdinOnce,
		Tty:       spec.TTY,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       a.resources(p, spec),
			SecurityContext: securityContext(p, spec, image.GetImage()),
		},
	}
	if p.Spec.TerminationGracePeriodSeconds != nil {
		cfg.Annotations[annotationGrace] = strconv.FormatInt(*p.Spec.TerminationGracePeriodSeconds, 10)
	}
	for _, c := range spec.Command {
		cfg.Command = append(cfg.Command, expand0(c, env.values))
	}
	for _, c := range spec.Args {
		cfg.Args = append(cfg.Args, expand0(c, env.values))
	}
	if spec.Lifecycle != nil && spec.Lifecycle.StopSignal != nil {
		if n, ok := runtimeapi.Signal_value[string(*spec.Lifecycle.StopSignal)]; ok {
			cfg.StopSignal = runtimeapi.Signal(n)
		}
	}
	return cfg, nil
}

// checkNonRoot holds runAsNonRoot against what the container would run as.
func checkNonRoot(p *corev1.Pod, c *corev1.Container, image *runtimeapi.Image) error {
	nonRoot, user := false, (*int64)(nil)
	if sc := p.Spec.SecurityContext; sc != nil {
		nonRoot, user = sc.RunAsNonRoot != nil && *sc.RunAsNonRoot, sc.RunAsUser
	}
	if sc := c.SecurityContext; sc != nil {
		if sc.RunAsNonRoot != nil {
			nonRoot = *sc.RunAsNonRoot
		}
		if sc.RunAsUser != nil {
			user = sc.RunAsUser
		}
	}
	if !nonRoot {
		return nil
	}
	switch {
	case user != nil && *user == 0:
		return fmt.Errorf("container's runAsUser breaks non-root policy (pod: %q, container: %s)", pod.FullName(p), c.Name)
	case user != nil:
		return nil
	case image.GetUid() != nil && image.Uid.Value == 0, image.GetUid() == nil && image.GetUsername() == "":
		return fmt.Errorf("container has runAsNonRoot and image will run as root (pod: %q, container: %s)", pod.FullName(p), c.Name)
	case image.GetUid() == nil:
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root (pod: %q, container: %s)",
			image.GetUsername(), pod.FullName(p), c.Name)
	}
	return nil
}

// Paths of /proc and /sys that are hidden from, or read-only in, a container
// unless procMount is Unmasked. Source: Kubernetes' and the OCI defaults.
var (
	maskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

func securityContext(p *corev1.Pod, c *corev1.Container, image *runtimeapi.Image) *runtimeapi.LinuxContainerSecurityContext {
	out := &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: namespaces(p), MaskedPaths: maskedPaths, ReadonlyPaths: readonlyPaths}
	psc, sc := p.Spec.SecurityContext, c.SecurityContext
	if psc == nil {
		psc = &corev1.PodSecurityContext{}
	}
	if sc == nil {
		sc = &corev1.SecurityContext{}
	}
	user, group := psc.RunAsUser, psc.RunAsGroup
	if sc.RunAsUser != nil {
		user = sc.RunAsUser
	}
	if sc.RunAsGroup != nil {
		group = sc.RunAsGroup
	}
	if user != nil {
		out.RunAsUser = &runtimeapi.Int64Value{Value: *user}
	}
	if group != nil {
		out.RunAsGroup = &runtimeapi.Int64Value{Value: *group}
		if user == nil { // CRI wants a user with a group: the image's
			if image.GetUid() == nil && image.GetUsername() != "" {
				out.RunAsUsername = image.Username
			} else {
				out.RunAsUser = &runtimeapi.Int64Value{Value: image.GetUid().GetValue()}
			}
		}
	}
	out.SupplementalGroups = append(out.SupplementalGroups, psc.SupplementalGroups...)
	if psc.FSGroup != nil {
		out.SupplementalGroups = append(out.SupplementalGroups, *psc.FSGroup)
	}
	if psc.SupplementalGroupsPolicy != nil && *psc.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict {
		out.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
	}
	out.Privileged = sc.Privileged != nil && *sc.Privileged
	out.ReadonlyRootfs = sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem
	out.NoNewPrivs = sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation
	if sc.Capabilities != nil {
		out.Capabilities = &runtimeapi.Capability{}
		for _, x := range sc.Capabilities.Add {
			out.Capabilities.AddCapabilities = append(out.Capabilities.AddCapabilities, string(x))
		}
		for _, x := range sc.Capabilities.Drop {
			out.Capabilities.DropCapabilities = append(out.Capabilities.DropCapabilities, string(x))
		}
	}
	if sc.ProcMount != nil && *sc.ProcMount == corev1.UnmaskedProcMount || out.Privileged {
		out.MaskedPaths, out.ReadonlyPaths = nil, nil
	}
	profile := psc.SeccompProfile
	if sc.SeccompProfile != nil {
		profile = sc.SeccompProfile
	}
	out.Seccomp = seccomp(profile, out.Privileged)
	return out
}

// seccomp: without a word in the pod, the runtime's default profile holds (as
// upstream with seccompDefault).
func seccomp(profile *corev1.SeccompProfile, privileged bool) *runtimeapi.SecurityProfile {
	switch {
	case privileged:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	case profile == nil || profile.Type == corev1.SeccompProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	case profile.Type == corev1.SeccompProfileTypeLocalhost && profile.LocalhostProfile != nil:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: *profile.LocalhostProfile}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
}

// joinTarget puts an ephemeral container that names a target among the target's
// processes, unless the pod's containers share theirs anyway.
func joinTarget(cfg *runtimeapi.ContainerConfig, p *corev1.Pod, containers []pod.Container) error {
	target := pod.Target(p, cfg.Metadata.Name)
	ns := cfg.Linux.SecurityContext.NamespaceOptions
	if target == "" || ns.Pid != runtimeapi.NamespaceMode_CONTAINER {
		return nil
	}
	for i := range containers {
		if containers[i].Name == target && containers[i].ID != "" {
			ns.Pid, ns.TargetId = runtimeapi.NamespaceMode_TARGET, containers[i].ID
			return nil
		}
	}
	return fmt.Errorf("unable to find target container %s", target)
}

func namespaces(p *corev1.Pod) *runtimeapi.NamespaceOption {
	o := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	if p.Spec.HostNetwork {
		o.Network = runtimeapi.NamespaceMode_NODE
	}
	if p.Spec.HostIPC {
		o.Ipc = runtimeapi.NamespaceMode_NODE
	}
	switch {
	case p.Spec.HostPID:
		o.Pid = runtimeapi.NamespaceMode_NODE
	case p.Spec.ShareProcessNamespace != nil && *p.Spec.ShareProcessNamespace:
		o.Pid = runtimeapi.NamespaceMode_POD
	}
	return o
}

const (
	minShares   = 2
	quotaPeriod = 100_000 // microseconds
	minQuota    = 1_000
)

func shares(milli int64) int64 { return max(milli*1024/1000, minShares) }

// resources of one container in the kernel's terms.
func (a *Agent) resources(p *corev1.Pod, c *corev1.Container) *runtimeapi.LinuxContainerResources {
	r := &runtimeapi.LinuxContainerResources{CpuPeriod: quotaPeriod, OomScoreAdj: a.oomScore(p, c)}
	request, ok := c.Resources.Requests[corev1.ResourceCPU]
	limit, limited := c.Resources.Limits[corev1.ResourceCPU]
	if !ok && limited {
		request = limit
	}
	r.CpuShares = shares(request.MilliValue())
	if limited && limit.Sign() > 0 {
		r.CpuQuota = max(limit.MilliValue()*quotaPeriod/1000, minQuota)
	}
	if m, ok := c.Resources.Limits[corev1.ResourceMemory]; ok {
		r.MemoryLimitInBytes = m.Value()
	}
	return r
}

// oomScore orders whom the kernel kills first. Behaviour: Kubernetes docs,
// "Node-pressure Eviction", oom_score_adj.
func (a *Agent) oomScore(p *corev1.Pod, c *corev1.Container) int64 {
	if isCritical(p) {
		return -997
	}
	switch pod.QOS(p) {
	case corev1.PodQOSGuaranteed:
		return -997
	case corev1.PodQOSBestEffort:
		return 1000
	}
	request := c.Resources.Requests[corev1.ResourceMemory]
	score := 1000 - 1000*request.Value()/max(a.machine.memoryBytes, 1)
	return min(max(score, 3), 999)
}

// podResources is the sum for the pod's own control group.
func podResources(p *corev1.Pod) *runtimeapi.LinuxContainerResources {
	r := &runtimeapi.LinuxContainerResources{CpuPeriod: quotaPeriod}
	var cpu, cpuLimit, memory int64
	cpuLimited, memoryLimited := true, true
	add := func(c *corev1.Container) {
		q, ok := c.Resources.Requests[corev1.ResourceCPU]
		l, limited := c.Resources.Limits[corev1.ResourceCPU]
		if !ok {
			q = l
		}
		cpu += q.MilliValue()
		cpuLimit += l.MilliValue()
		m, has := c.Resources.Limits[corev1.ResourceMemory]
		memory += m.Value()
		cpuLimited, memoryLimited = cpuLimited && limited, memoryLimited && has
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if pod.IsSidecar(c) {
			add(c)
			continue
		}
		if m := c.Resources.Limits[corev1.ResourceMemory]; m.Value() > memory {
			memory = m.Value()
		} else if _, ok := c.Resources.Limits[corev1.ResourceMemory]; !ok {
			memoryLimited = false
		}
		if l := c.Resources.Limits[corev1.ResourceCPU]; l.MilliValue() > cpuLimit {
			cpuLimit = l.MilliValue()
		} else if _, ok := c.Resources.Limits[corev1.ResourceCPU]; !ok {
			cpuLimited = false
		}
	}
	r.CpuShares = shares(cpu)
	if cpuLimited && cpuLimit > 0 {
		r.CpuQuota = max(cpuLimit*quotaPeriod/1000, minQuota)
	}
	if memoryLimited && memory > 0 {
		r.MemoryLimitInBytes = memory
	}
	return r
}

// Groups of the lower quality-of-service classes.
const (
	groupBestEffort = "besteffort"
	groupBurstable  = "burstable"
)

// cgroupParent of a pod, below the engine's own.
func cgroupParent(p *corev1.Pod) string {
	dir := "pod" + string(p.UID)
	switch pod.QOS(p) {
	case corev1.PodQOSBestEffort:
		return groupBestEffort + "/" + dir
	case corev1.PodQOSBurstable:
		return groupBurstable + "/" + dir
	}
	return dir
}

// sandboxConfig translates a pod into the engine's terms.
func (a *Agent) sandboxConfig(p *corev1.Pod, attempt uint32) (*runtimeapi.PodSandboxConfig, string, error) {
	dns, err := a.dnsConfig(p)
	if err != nil {
		return nil, "", err
	}
	hostname, _, err := a.hostname(p)
	if err != nil {
		return nil, "", err
	}
	logs := a.podLogDir(p)
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nil, "", err
	}
	labels := map[string]string{labelPodName: p.Name, labelPodNamespace: p.Namespace, labelPodUID: string(p.UID)}
	for k, v := range p.Labels {
		if _, own := labels[k]; !own {
			labels[k] = v
		}
	}
	sec := &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces(p), Seccomp: seccomp(nil, false)}
	linux := &runtimeapi.LinuxPodSandboxConfig{CgroupParent: cgroupParent(p), SecurityContext: sec, Resources: podResources(p), Sysctls: map[string]string{}}
	if psc := p.Spec.SecurityContext; psc != nil {
		sec.Seccomp = seccomp(psc.SeccompProfile, false)
		for _, s := range psc.Sysctls {
			linux.Sysctls[s.Name] = s.Value
		}
		sec.SupplementalGroups = psc.SupplementalGroups
	}
	cfg := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: p.Name, Uid: string(p.UID), Namespace: p.Namespace, Attempt: attempt},
		LogDirectory: logs, DnsConfig: dns, Labels: labels, Annotations: maps.Clone(p.Annotations), Linux: linux,
	}
	if !p.Spec.HostNetwork {
		cfg.Hostname = hostname
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if sc := list[i].SecurityContext; sc != nil && sc.Privileged != nil && *sc.Privileged {
				sec.Privileged = true
			}
			for _, port := range list[i].Ports {
				if port.HostPort == 0 || p.Spec.HostNetwork {
					continue
				}
				m := &runtimeapi.PortMapping{ContainerPort: port.ContainerPort, HostPort: port.HostPort, HostIp: port.HostIP}
				switch port.Protocol {
				case corev1.ProtocolUDP:
					m.Protocol = runtimeapi.Protocol_UDP
				case corev1.ProtocolSCTP:
					m.Protocol = runtimeapi.Protocol_SCTP
				}
				cfg.PortMappings = append(cfg.PortMappings, m)
			}
		}
	}
	handler := ""
	if p.Spec.RuntimeClassName != nil {
		handler = *p.Spec.RuntimeClassName
	}
	return cfg, handler, nil
}

// hook carries a lifecycle handler out.
func (w *worker) hook(ctx context.Context, f pod.RunHook) pod.Event {
	done := func(err error) pod.Event {
		return pod.HookDone{Container: f.Container, ID: f.ID, Hook: f.Hook, Err: text(err)}
	}
	p := w.facts()
	spec := pod.Spec(p, f.Container)
	h := spec.Lifecycle.PostStart
	if f.Hook == pod.PreStop {
		h = spec.Lifecycle.PreStop
	}
	if f.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.Timeout)
		defer cancel()
	}
	err := w.runHook(ctx, h, p, spec, f)
	if ctx.Err() != nil && f.Timeout > 0 && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("%s did not end within %s", f.Hook, f.Timeout)
	}
	if err != nil {
		w.a.log.Warn("lifecycle hook did not work", "pod", w.namespace+"/"+w.name, "container", f.Container, "hook", string(f.Hook), "err", err)
	}
	if f.Timeout > 0 && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		w.post(done(err)) // async looks at the outer context only
		return nil
	}
	return done(err)
}

func (w *worker) runHook(ctx context.Context, h *corev1.LifecycleHandler, p *corev1.Pod, spec *corev1.Container, f pod.RunHook) error {
	switch {
	case h.Exec != nil:
		r, err := w.a.cfg.Engine.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: f.ID, Cmd: h.Exec.Command,
			Timeout: int64(f.Timeout.Seconds())})
		if err != nil {
			return err
		}
		if r.ExitCode != 0 {
			out := strings.TrimSpace(string(r.Stdout) + string(r.Stderr))
			return fmt.Errorf("exec hook %q exited with %d: %s", strings.Join(h.Exec.Command, " "), r.ExitCode, out)
		}
		return nil
	case h.HTTPGet != nil:
		return probe.Tell(ctx, h.HTTPGet, probe.Target{IP: p.Status.PodIP, Spec: spec})
	case h.Sleep != nil:
		w.a.sleep(ctx, seconds(h.Sleep.Seconds))
		return nil
	}
	return errors.New("invalid handler: none of exec, httpGet and sleep is set")
}
