package validate

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/node/util/sysctl"
)

const (
	sysctlNameFmt    = `([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?`
	sysctlNameMaxLen = 253
)

var sysctlName = regexp.MustCompile("^" + sysctlNameFmt + "$")

func podSecurityContext(sc *corev1.PodSecurityContext, ps, old *corev1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if ps.HostPID && ps.ShareProcessNamespace != nil && *ps.ShareProcessNamespace {
		errs = append(errs, field.Invalid(path.Child("shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled"))
	}
	if sc == nil {
		return errs
	}
	if sc.FSGroup != nil {
		errs = append(errs, invalid(path.Child("fsGroup"), *sc.FSGroup, validation.IsValidGroupID(*sc.FSGroup))...)
	}
	errs = append(errs, userAndGroup(sc.RunAsUser, sc.RunAsGroup, path)...)
	for i, gid := range sc.SupplementalGroups {
		errs = append(errs, invalid(path.Child("supplementalGroups").Index(i), gid, validation.IsValidGroupID(gid))...)
	}
	errs = append(errs, sysctls(sc.Sysctls, ps, old, path.Child("sysctls"))...)
	if sc.FSGroupChangePolicy != nil {
		errs = append(errs, supported(*sc.FSGroupChangePolicy, path.Child("fsGroupChangePolicy"), corev1.FSGroupChangeAlways, corev1.FSGroupChangeOnRootMismatch)...)
	}
	errs = append(errs, seccompProfile(sc.SeccompProfile, path.Child("seccompProfile"))...)
	errs = append(errs, windowsOptions(sc.WindowsOptions, path.Child("windowsOptions"))...)
	errs = append(errs, appArmorProfile(sc.AppArmorProfile, path.Child("appArmorProfile"))...)
	if sc.SupplementalGroupsPolicy != nil {
		errs = append(errs, supported(*sc.SupplementalGroupsPolicy, path.Child("supplementalGroupsPolicy"), corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)...)
	}
	if sc.SELinuxChangePolicy != nil {
		errs = append(errs, supported(*sc.SELinuxChangePolicy, path.Child("seLinuxChangePolicy"), corev1.SELinuxChangePolicyMountOption, corev1.SELinuxChangePolicyRecursive)...)
	}
	return errs
}

func userAndGroup(user, group *int64, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if user != nil {
		errs = append(errs, invalid(path.Child("runAsUser"), *user, validation.IsValidUserID(*user))...)
	}
	if group != nil {
		errs = append(errs, invalid(path.Child("runAsGroup"), *group, validation.IsValidGroupID(*group))...)
	}
	return errs
}

func sysctls(list []corev1.Sysctl, ps, old *corev1.PodSpec, path *field.Path) field.ErrorList {
	ofHost := func(name string, ps *corev1.PodSpec) string {
		switch ns, _, _ := sysctl.GetNamespace(name); {
		case ns == sysctl.NetNamespace && ps.HostNetwork:
			return "may not be specified when 'hostNetwork' is true"
		case ns == sysctl.IPCNamespace && ps.HostIPC:
			return "may not be specified when 'hostIPC' is true"
		}
		return ""
	}
	kept := old != nil && old.SecurityContext != nil && slices.ContainsFunc(old.SecurityContext.Sysctls, func(s corev1.Sysctl) bool {
		return ofHost(s.Name, old) != ""
	})
	var errs field.ErrorList
	names := sets.New[string]()
	for i, s := range list {
		p := path.Index(i).Child("name")
		switch {
		case s.Name == "":
			errs = append(errs, field.Required(p, ""))
		case len(s.Name) > sysctlNameMaxLen || !sysctlName.MatchString(s.Name):
			errs = append(errs, field.Invalid(p, s.Name, fmt.Sprintf("must have at most %d characters and match regex %s", sysctlNameMaxLen, sysctlName)))
		case names.Has(s.Name):
			errs = append(errs, field.Duplicate(p, s.Name))
		}
		if msg := ofHost(s.Name, ps); msg != "" && !kept {
			errs = append(errs, field.Invalid(p, s.Name, msg))
		}
		names.Insert(s.Name)
	}
	return errs
}

func seccompProfile(p *corev1.SeccompProfile, path *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	var errs field.ErrorList
	if p.Type == corev1.SeccompProfileTypeLocalhost {
		if p.LocalhostProfile == nil {
			errs = append(errs, field.Required(path.Child("localhostProfile"), "must be set when seccomp type is Localhost"))
		} else {
			errs = append(errs, descendingPath(*p.LocalhostProfile, path.Child("localhostProfile"))...)
		}
	} else if p.LocalhostProfile != nil {
		errs = append(errs, field.Invalid(path.Child("localhostProfile"), p, "can only be set when seccomp type is Localhost"))
	}
	if p.Type == "" {
		return append(errs, field.Required(path.Child("type"), "type is required when seccompProfile is set"))
	}
	return append(errs, supported(p.Type, path.Child("type"), corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)...)
}

func appArmorProfile(p *corev1.AppArmorProfile, path *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	var errs field.ErrorList
	local := path.Child("localhostProfile")
	if p.Type == corev1.AppArmorProfileTypeLocalhost {
		if p.LocalhostProfile == nil {
			errs = append(errs, field.Required(local, "must be set when AppArmor type is Localhost"))
		} else {
			trimmed := strings.TrimSpace(*p.LocalhostProfile)
			if trimmed != *p.LocalhostProfile {
				errs = append(errs, field.Invalid(local, *p.LocalhostProfile, "must not be padded with whitespace"))
			} else if trimmed == "" {
				errs = append(errs, field.Required(local, "must be set when AppArmor type is Localhost"))
			}
			if limit := 4095; len(*p.LocalhostProfile) > limit {
				errs = append(errs, field.TooLong(local, "", limit))
			}
		}
	} else if p.LocalhostProfile != nil {
		errs = append(errs, field.Invalid(local, *p.LocalhostProfile, "can only be set when AppArmor type is Localhost"))
	}
	if p.Type == "" {
		return append(errs, field.Required(path.Child("type"), "type is required when appArmorProfile is set"))
	}
	return append(errs, supported(p.Type, path.Child("type"), corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined)...)
}

var (
	windowsControl = regexp.MustCompile(`[[:cntrl:]]+`)
	windowsDomain  = regexp.MustCompile(`^[^\.\\]([^\\]*[^\.\\])?$`)
	windowsUser    = regexp.MustCompile(`^[^"/\\\[\]:;|=,+*?<>@]+$`)
	onlyDotsSpaces = regexp.MustCompile(`^[\. ]+$`)
)

func windowsOptions(o *corev1.WindowsSecurityContextOptions, path *field.Path) field.ErrorList {
	if o == nil {
		return nil
	}
	var errs field.ErrorList
	if n := o.GMSACredentialSpecName; n != nil {
		errs = append(errs, dnsSubdomain(*n, path.Child("gmsaCredentialSpecName"))...)
	}
	if s := o.GMSACredentialSpec; s != nil {
		p := path.Child("gmsaCredentialSpec")
		if *s == "" {
			errs = append(errs, field.Invalid(p, *s, "gmsaCredentialSpec cannot be an empty string"))
		} else if limit := 64 * 1024; len(*s) > limit {
			errs = append(errs, field.Invalid(p, *s, fmt.Sprintf("gmsaCredentialSpec size must be under %d KiB", limit/1024)))
		}
	}
	if u := o.RunAsUserName; u != nil {
		errs = append(errs, windowsUserName(*u, path.Child("runAsUserName"))...)
	}
	return errs
}

func windowsUserName(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Invalid(path, name, "runAsUserName cannot be an empty string")}
	}
	if windowsControl.MatchString(name) {
		return field.ErrorList{field.Invalid(path, name, "runAsUserName cannot contain control characters")}
	}
	var errs field.ErrorList
	parts := strings.SplitN(name, `\`, 3)
	if len(parts) > 2 {
		return field.ErrorList{field.Invalid(path, name, `runAsUserName cannot contain more than one backslash`)}
	}
	user, domain, hasDomain := parts[len(parts)-1], parts[0], len(parts) == 2
	if hasDomain {
		if domain == "" {
			errs = append(errs, field.Invalid(path, name, "runAsUserName's Domain cannot be an empty string"))
		}
		if len(domain) >= 256 {
			errs = append(errs, field.Invalid(path, name, fmt.Sprintf("runAsUserName's Domain length must be under %d characters", 256)))
		}
		if domain != "" && !windowsDomain.MatchString(domain) {
			errs = append(errs, field.Invalid(path, name, "runAsUserName's Domain doesn't match the NetBios nor the DNS format"))
		}
	}
	if user == "" {
		errs = append(errs, field.Invalid(path, name, "runAsUserName's User cannot be an empty string"))
	} else if len(user) > 104 {
		errs = append(errs, field.Invalid(path, name, fmt.Sprintf("runAsUserName's User length must not be longer than %d characters", 104)))
	}
	if onlyDotsSpaces.MatchString(user) {
		errs = append(errs, field.Invalid(path, name, `runAsUserName's User cannot contain only periods or spaces`))
	}
	if user != "" && !windowsUser.MatchString(user) {
		errs = append(errs, field.Invalid(path, name, `runAsUserName's User cannot contain the following characters: "/\:;|=,+*?<>@[]`))
	}
	return errs
}

func securityContext(sc *corev1.SecurityContext, hostUsers *bool, path *field.Path) field.ErrorList {
	if sc == nil {
		return nil
	}
	errs := userAndGroup(sc.RunAsUser, sc.RunAsGroup, path)
	if sc.ProcMount != nil {
		errs = append(errs, supported(*sc.ProcMount, path.Child("procMount"), corev1.DefaultProcMount, corev1.UnmaskedProcMount)...)
		if *sc.ProcMount == corev1.UnmaskedProcMount && (hostUsers == nil || *hostUsers) {
			errs = append(errs, field.Invalid(path.Child("procMount"), sc.ProcMount, "`hostUsers` must be false to use `Unmasked`"))
		}
	}
	errs = append(errs, seccompProfile(sc.SeccompProfile, path.Child("seccompProfile"))...)
	if sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation {
		if sc.Privileged != nil && *sc.Privileged {
			errs = append(errs, field.Invalid(path, sc, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
		}
		if sc.Capabilities != nil {
			for _, capability := range sc.Capabilities.Add {
				if capability == "CAP_SYS_ADMIN" {
					errs = append(errs, field.Invalid(path, sc, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"))
				}
			}
		}
	}
	errs = append(errs, windowsOptions(sc.WindowsOptions, path.Child("windowsOptions"))...)
	return append(errs, appArmorProfile(sc.AppArmorProfile, path.Child("appArmorProfile"))...)
}

// podOS checks what a pod may not ask of its operating system.
func podOS(ps *corev1.PodSpec, path *field.Path) field.ErrorList {
	if ps.OS == nil {
		return nil
	}
	p := path.Child("os", "name")
	if ps.OS.Name == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	errs := supported(ps.OS.Name, p, corev1.Linux, corev1.Windows)
	switch ps.OS.Name {
	case corev1.Linux:
		errs = append(errs, linuxOnly(ps, path)...)
	case corev1.Windows:
		errs = append(errs, windowsOnly(ps, path)...)
	}
	return errs
}

func linuxOnly(ps *corev1.PodSpec, path *field.Path) field.ErrorList {
	const msg = "windows options cannot be set for a linux pod"
	var errs field.ErrorList
	if ps.SecurityContext != nil && ps.SecurityContext.WindowsOptions != nil {
		errs = append(errs, field.Forbidden(path.Child("securityContext", "windowsOptions"), msg))
	}
	eachSecurityContext(ps, path, func(sc *corev1.SecurityContext, p *field.Path) {
		if sc.WindowsOptions != nil {
			errs = append(errs, field.Forbidden(p.Child("windowsOptions"), msg))
		}
	})
	return errs
}

func windowsOnly(ps *corev1.PodSpec, path *field.Path) field.ErrorList {
	const msg = "cannot be set for a windows pod"
	var errs field.ErrorList
	forbid := func(set bool, p *field.Path) {
		if set {
			errs = append(errs, field.Forbidden(p, msg))
		}
	}
	sp := path.Child("securityContext")
	if sc := ps.SecurityContext; sc != nil {
		forbid(sc.AppArmorProfile != nil, sp.Child("appArmorProfile"))
		forbid(sc.SELinuxOptions != nil, sp.Child("seLinuxOptions"))
		forbid(sc.SeccompProfile != nil, sp.Child("seccompProfile"))
		forbid(sc.FSGroup != nil, sp.Child("fsGroup"))
		forbid(sc.FSGroupChangePolicy != nil, sp.Child("fsGroupChangePolicy"))
		forbid(len(sc.Sysctls) > 0, sp.Child("sysctls"))
		forbid(sc.RunAsUser != nil, sp.Child("runAsUser"))
		forbid(sc.RunAsGroup != nil, sp.Child("runAsGroup"))
		forbid(sc.SupplementalGroups != nil, sp.Child("supplementalGroups"))
		forbid(sc.SupplementalGroupsPolicy != nil, sp.Child("supplementalGroupsPolicy"))
		forbid(sc.SELinuxChangePolicy != nil, sp.Child("seLinuxChangePolicy"))
	}
	forbid(ps.HostUsers != nil, path.Child("hostUsers"))
	forbid(ps.HostPID, path.Child("hostPID"))
	forbid(ps.HostIPC, path.Child("hostIPC"))
	forbid(ps.ShareProcessNamespace != nil, path.Child("shareProcessNamespace"))
	eachSecurityContext(ps, path, func(sc *corev1.SecurityContext, p *field.Path) {
		forbid(sc.AppArmorProfile != nil, p.Child("appArmorProfile"))
		forbid(sc.SELinuxOptions != nil, p.Child("seLinuxOptions"))
		forbid(sc.SeccompProfile != nil, p.Child("seccompProfile"))
		forbid(sc.Capabilities != nil, p.Child("capabilities"))
		forbid(sc.ReadOnlyRootFilesystem != nil, p.Child("readOnlyRootFilesystem"))
		forbid(sc.Privileged != nil, p.Child("privileged"))
		forbid(sc.AllowPrivilegeEscalation != nil, p.Child("allowPrivilegeEscalation"))
		forbid(sc.ProcMount != nil, p.Child("procMount"))
		forbid(sc.RunAsUser != nil, p.Child("runAsUser"))
		forbid(sc.RunAsGroup != nil, p.Child("runAsGroup"))
	})
	return errs
}

// eachSecurityContext visits the security contexts of all containers.
func eachSecurityContext(ps *corev1.PodSpec, path *field.Path, visit func(*corev1.SecurityContext, *field.Path)) {
	for i := range ps.InitContainers {
		if sc := ps.InitContainers[i].SecurityContext; sc != nil {
			visit(sc, path.Child("initContainers").Index(i).Child("securityContext"))
		}
	}
	for i := range ps.Containers {
		if sc := ps.Containers[i].SecurityContext; sc != nil {
			visit(sc, path.Child("containers").Index(i).Child("securityContext"))
		}
	}
	for i := range ps.EphemeralContainers {
		if sc := ps.EphemeralContainers[i].SecurityContext; sc != nil {
			visit(sc, path.Child("ephemeralContainers").Index(i).Child("securityContext"))
		}
	}
}

// hostProcess checks Windows HostProcess containers: all or none, with the host's network.
func hostProcess(ps *corev1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	podLevel := (*bool)(nil)
	if ps.SecurityContext != nil && ps.SecurityContext.WindowsOptions != nil {
		podLevel = ps.SecurityContext.WindowsOptions.HostProcess
	}
	with, without := 0, 0
	check := func(sc *corev1.SecurityContext, p *field.Path) {
		var own *bool
		if sc != nil && sc.WindowsOptions != nil {
			own = sc.WindowsOptions.HostProcess
		}
		if podLevel != nil && own != nil && *podLevel != *own {
			errs = append(errs, field.Invalid(p.Child("securityContext", "windowsOptions", "hostProcess"), *own, fmt.Sprintf("pod hostProcess value must be identical if both are specified, was %v", *podLevel)))
		}
		if (own != nil && *own) || (own == nil && podLevel != nil && *podLevel) {
			with++
		} else {
			without++
		}
	}
	for i := range ps.InitContainers {
		check(ps.InitContainers[i].SecurityContext, path.Child("initContainers").Index(i))
	}
	for i := range ps.Containers {
		check(ps.Containers[i].SecurityContext, path.Child("containers").Index(i))
	}
	if with == 0 {
		return errs
	}
	if without > 0 {
		errs = append(errs, field.Invalid(path, "", "If pod contains any hostProcess containers then all containers must be HostProcess containers"))
	}
	if !ps.HostNetwork {
		errs = append(errs, field.Invalid(path.Child("hostNetwork"), false, "hostNetwork must be true if pod contains any hostProcess containers"))
	}
	return errs
}
