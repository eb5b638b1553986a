package kind

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"
)

// fill gives *p a value if it has the zero one.
func fill[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

// fillPtr points *p to a value if it points nowhere.
func fillPtr[T any](p **T, value T) {
	if *p == nil {
		*p = &value
	}
}

// defaultPodSpec completes what Pods and pod templates have in common.
func defaultPodSpec(s *corev1.PodSpec) {
	fill(&s.DNSPolicy, corev1.DNSClusterFirst)
	fill(&s.RestartPolicy, corev1.RestartPolicyAlways)
	fill(&s.SchedulerName, corev1.DefaultSchedulerName)
	fillPtr(&s.TerminationGracePeriodSeconds, int64(corev1.DefaultTerminationGracePeriodSeconds))
	if s.SecurityContext == nil {
		s.SecurityContext = &corev1.PodSecurityContext{}
	}
	for i := range s.Volumes {
		defaultVolume(&s.Volumes[i])
	}
	for i := range s.InitContainers {
		defaultContainer(&s.InitContainers[i])
	}
	for i := range s.Containers {
		defaultContainer(&s.Containers[i])
	}
	for i := range s.EphemeralContainers {
		defaultContainer((*corev1.Container)(&s.EphemeralContainers[i].EphemeralContainerCommon))
	}
	roundQuantities(s.Overhead)
	if s.Resources != nil {
		roundQuantities(s.Resources.Limits)
		roundQuantities(s.Resources.Requests)
	}
}

func defaultContainer(c *corev1.Container) {
	fill(&c.ImagePullPolicy, pullPolicy(c.Image))
	fill(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	fill(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	for i := range c.Ports {
		fill(&c.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil {
			if from.FieldRef != nil {
				fill(&from.FieldRef.APIVersion, "v1")
			}
			if from.FileKeyRef != nil {
				fillPtr(&from.FileKeyRef.Optional, false)
			}
		}
	}
	defaultProbe(c.LivenessProbe)
	defaultProbe(c.ReadinessProbe)
	defaultProbe(c.StartupProbe)
	if c.Lifecycle != nil {
		for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if h != nil {
				defaultHTTPGet(h.HTTPGet)
			}
		}
	}
	roundQuantities(c.Resources.Limits)
	roundQuantities(c.Resources.Requests)
}

func defaultProbe(p *corev1.Probe) {
	if p == nil {
		return
	}
	fill(&p.TimeoutSeconds, 1)
	fill(&p.PeriodSeconds, 10)
	fill(&p.SuccessThreshold, 1)
	fill(&p.FailureThreshold, 3)
	defaultHTTPGet(p.HTTPGet)
	if p.GRPC != nil {
		fillPtr(&p.GRPC.Service, "")
	}
}

func defaultHTTPGet(h *corev1.HTTPGetAction) {
	if h != nil {
		fill(&h.Path, "/")
		fill(&h.Scheme, corev1.URISchemeHTTP)
	}
}

// pullPolicy follows the tag: "latest", written or implied, is pulled always; a
// digest without a tag is not.
func pullPolicy(image string) corev1.PullPolicy {
	name, _, digested := strings.Cut(image, "@")
	tag := ""
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		tag = name[colon+1:]
	}
	if tag == "latest" || tag == "" && !digested {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

// roundQuantities rounds up to thousandths, the finest step that is kept.
func roundQuantities(list corev1.ResourceList) {
	for name, q := range list {
		before := q
		if q.RoundUp(resource.Milli); q.Cmp(before) != 0 {
			list[name] = q
		}
	}
}

// volumeSourceMissing says that no source is named at all.
func volumeSourceMissing(s *corev1.VolumeSource) bool { return *s == corev1.VolumeSource{} }

func defaultVolume(v *corev1.Volume) {
	if volumeSourceMissing(&v.VolumeSource) {
		v.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	switch {
	case v.Secret != nil:
		fillPtr(&v.Secret.DefaultMode, corev1.SecretVolumeSourceDefaultMode)
	case v.ConfigMap != nil:
		fillPtr(&v.ConfigMap.DefaultMode, corev1.ConfigMapVolumeSourceDefaultMode)
	case v.DownwardAPI != nil:
		fillPtr(&v.DownwardAPI.DefaultMode, corev1.DownwardAPIVolumeSourceDefaultMode)
		defaultDownward(v.DownwardAPI.Items)
	case v.Projected != nil:
		defaultProjected(v.Projected)
	case v.HostPath != nil:
		fillPtr(&v.HostPath.Type, corev1.HostPathUnset)
	case v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil:
		defaultClaimSpec(&v.Ephemeral.VolumeClaimTemplate.Spec)
	case v.Image != nil:
		fill(&v.Image.PullPolicy, pullPolicy(v.Image.Reference))
	case v.ISCSI != nil:
		fill(&v.ISCSI.ISCSIInterface, "default")
	case v.RBD != nil:
		fill(&v.RBD.RBDPool, "rbd")
		fill(&v.RBD.RadosUser, "admin")
		fill(&v.RBD.Keyring, "/etc/ceph/keyring")
	case v.AzureDisk != nil:
		defaultAzureDisk(v.AzureDisk)
	case v.ScaleIO != nil:
		fill(&v.ScaleIO.StorageMode, "ThinProvisioned")
		fill(&v.ScaleIO.FSType, "xfs")
	}
}

func defaultAzureDisk(d *corev1.AzureDiskVolumeSource) {
	fillPtr(&d.CachingMode, corev1.AzureDataDiskCachingReadWrite)
	fillPtr(&d.Kind, corev1.AzureSharedBlobDisk)
	fillPtr(&d.FSType, "ext4")
	fillPtr(&d.ReadOnly, false)
}

func defaultDownward(items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		if ref := items[i].FieldRef; ref != nil {
			fill(&ref.APIVersion, "v1")
		}
	}
}

func defaultProjected(p *corev1.ProjectedVolumeSource) {
	fillPtr(&p.DefaultMode, corev1.ProjectedVolumeSourceDefaultMode)
	for i := range p.Sources {
		source := &p.Sources[i]
		if source.DownwardAPI != nil {
			defaultDownward(source.DownwardAPI.Items)
		}
		if source.ServiceAccountToken != nil {
			fillPtr(&source.ServiceAccountToken.ExpirationSeconds, int64(3600))
		}
		if source.PodCertificate != nil {
			fillPtr(&source.PodCertificate.MaxExpirationSeconds, int32(86400))
		}
	}
}

func defaultClaimSpec(s *corev1.PersistentVolumeClaimSpec) {
	fillPtr(&s.VolumeMode, corev1.PersistentVolumeFilesystem)
	roundQuantities(s.Resources.Limits)
	roundQuantities(s.Resources.Requests)
}

// defaultPod completes what only real pods get: requests from limits, service
// links, and host ports of pods on the host's network.
func defaultPod(p *corev1.Pod) {
	s := &p.Spec
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			requestsFromLimits(&list[i].Resources)
			if s.HostNetwork {
				for j := range list[i].Ports {
					fill(&list[i].Ports[j].HostPort, list[i].Ports[j].ContainerPort)
				}
			}
		}
	}
	defaultPodLevelRequests(s)
	fillPtr(&s.EnableServiceLinks, true)
	defaultPodSpec(s)
}

func requestsFromLimits(r *corev1.ResourceRequirements) {
	if len(r.Limits) == 0 {
		return
	}
	for name, limit := range r.Limits {
		if _, ok := r.Requests[name]; !ok {
			if r.Requests == nil {
				r.Requests = corev1.ResourceList{}
			}
			r.Requests[name] = limit.DeepCopy()
		}
	}
}

// defaultPodLevelRequests completes the requests of spec.resources: the sum of
// the containers' requests where they make any for a resource, else the pod's limit.
func defaultPodLevelRequests(s *corev1.PodSpec) {
	if s.Resources == nil || len(s.Resources.Limits) == 0 {
		return
	}
	for name, limit := range s.Resources.Limits {
		if _, ok := s.Resources.Requests[name]; ok {
			continue
		}
		request, asked := containerRequests(s, name)
		if !asked || strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) {
			request = limit.DeepCopy()
		}
		if s.Resources.Requests == nil {
			s.Resources.Requests = corev1.ResourceList{}
		}
		s.Resources.Requests[name] = request
	}
}

// containerRequests is what the containers need of one resource at most at the
// same time, and whether any of them asks for it.
func containerRequests(s *corev1.PodSpec, name corev1.ResourceName) (sum resource.Quantity, asked bool) {
	for i := range s.Containers {
		if q, ok := s.Containers[i].Resources.Requests[name]; ok {
			sum.Add(q)
			asked = true
		}
	}
	var sidecars, peak resource.Quantity
	for i := range s.InitContainers {
		q, ok := s.InitContainers[i].Resources.Requests[name]
		if !ok {
			continue
		}
		asked = true
		if restartable(&s.InitContainers[i]) {
			sidecars.Add(q)
			q = sidecars
		} else {
			q = q.DeepCopy()
			q.Add(sidecars)
		}
		if q.Cmp(peak) > 0 {
			peak = q.DeepCopy()
		}
	}
	sum.Add(sidecars)
	if peak.Cmp(sum) > 0 {
		sum = peak
	}
	return sum, asked
}

// restartable says that an init container is a sidecar.
func restartable(c *corev1.Container) bool {
	return ptr.Deref(c.RestartPolicy, "") == corev1.ContainerRestartPolicyAlways
}

// defaultTemplate completes a pod template.
func defaultTemplate(t *corev1.PodTemplateSpec) { defaultPodSpec(&t.Spec) }
