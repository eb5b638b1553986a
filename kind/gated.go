package kind

import (
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// Fields of pods that came with gates which are off in this release are dropped
// from what a client writes, unless the object has used such a field before: what
// nothing acts on is not kept as if it worked. They are those that the previous
// release's types did not have, and schedulingGroup.

// podSpecOf is the specification of a pod or of a template, nil for other kinds.
func podSpecOf(obj Object) *corev1.PodSpec {
	switch o := obj.(type) {
	case *corev1.Pod:
		return &o.Spec
	case *corev1.PodTemplate:
		return &o.Template.Spec
	case *corev1.ReplicationController:
		if o.Spec.Template == nil {
			return &corev1.PodSpec{}
		}
		return &o.Spec.Template.Spec
	case *appsv1.Deployment:
		return &o.Spec.Template.Spec
	case *appsv1.ReplicaSet:
		return &o.Spec.Template.Spec
	case *appsv1.StatefulSet:
		return &o.Spec.Template.Spec
	case *appsv1.DaemonSet:
		return &o.Spec.Template.Spec
	case *batchv1.Job:
		return &o.Spec.Template.Spec
	case *batchv1.CronJob:
		return &o.Spec.JobTemplate.Spec.Template.Spec
	}
	return nil
}

// dropGated makes preparations that drop first.
func dropGated(k *Kind) {
	if podSpecOf(k.New()) == nil {
		return
	}
	create, update := k.PrepareCreate, k.PrepareUpdate
	k.PrepareCreate = func(obj Object) {
		dropGatedSpec(podSpecOf(obj), nil)
		if create != nil {
			create(obj)
		}
	}
	k.PrepareUpdate = func(new, old Object) {
		dropGatedSpec(podSpecOf(new), podSpecOf(old))
		update(new, old)
	}
}

func dropGatedSpec(new, old *corev1.PodSpec) {
	for _, fields := range podGates {
		used := false
		if old != nil {
			fields(old, func(func()) { used = true })
		}
		if !used {
			fields(new, func(clear func()) { clear() })
		}
	}
}

// podGates has a function for each gate: it finds the gate's fields that are set
// and hands over how each is cleared.
var podGates = []func(s *corev1.PodSpec, found func(clear func())){
	// GenericWorkload
	func(s *corev1.PodSpec, found func(func())) { set(&s.SchedulingGroup, found) },
	// EvictionRequestAPI
	func(s *corev1.PodSpec, found func(func())) { setList(&s.EvictionResponders, found) },
	// EmptyDirVolumeMode
	func(s *corev1.PodSpec, found func(func())) {
		for i := range s.Volumes {
			if e := s.Volumes[i].EmptyDir; e != nil {
				set(&e.Mode, found)
			}
		}
	},
	// AtomicWriteVolumeUserFields
	volumeUsers,
	// VolumeBindMountOptions
	func(s *corev1.PodSpec, found func(func())) {
		eachContainer(s, func(c *corev1.EphemeralContainerCommon) {
			for i := range c.VolumeMounts {
				setList(&c.VolumeMounts[i].BindMountOptions, found)
			}
		})
	},
	// H2CContainerProbe
	func(s *corev1.PodSpec, found func(func())) {
		eachContainer(s, func(c *corev1.EphemeralContainerCommon) {
			for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
				if p != nil && p.HTTPGet != nil {
					set(&p.HTTPGet.Protocol, found)
				}
			}
			if c.Lifecycle == nil {
				return
			}
			for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
				if h != nil && h.HTTPGet != nil {
					set(&h.HTTPGet.Protocol, found)
				}
			}
		})
	},
	// GRPCContainerProbeTLS
	func(s *corev1.PodSpec, found func(func())) {
		eachContainer(s, func(c *corev1.EphemeralContainerCommon) {
			for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
				if p != nil && p.GRPC != nil {
					set(&p.GRPC.Mode, found)
				}
			}
		})
	},
}

func set[T any](p **T, found func(func())) {
	if *p != nil {
		found(func() { *p = nil })
	}
}

func setList[T any](p *[]T, found func(func())) {
	if len(*p) > 0 {
		found(func() { *p = nil })
	}
}

func eachContainer(s *corev1.PodSpec, visit func(c *corev1.EphemeralContainerCommon)) {
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			visit((*corev1.EphemeralContainerCommon)(&list[i]))
		}
	}
	for i := range s.EphemeralContainers {
		visit(&s.EphemeralContainers[i].EphemeralContainerCommon)
	}
}

func volumeUsers(s *corev1.PodSpec, found func(func())) {
	paths := func(items []corev1.KeyToPath) {
		for i := range items {
			set(&items[i].User, found)
		}
	}
	files := func(items []corev1.DownwardAPIVolumeFile) {
		for i := range items {
			set(&items[i].User, found)
		}
	}
	for i := range s.Volumes {
		v := &s.Volumes[i]
		if v.Secret != nil {
			set(&v.Secret.DefaultUser, found)
			paths(v.Secret.Items)
		}
		if v.ConfigMap != nil {
			set(&v.ConfigMap.DefaultUser, found)
			paths(v.ConfigMap.Items)
		}
		if v.DownwardAPI != nil {
			set(&v.DownwardAPI.DefaultUser, found)
			files(v.DownwardAPI.Items)
		}
		if v.Projected == nil {
			continue
		}
		set(&v.Projected.DefaultUser, found)
		for j := range v.Projected.Sources {
			p := &v.Projected.Sources[j]
			if p.Secret != nil {
				paths(p.Secret.Items)
			}
			if p.ConfigMap != nil {
				paths(p.ConfigMap.Items)
			}
			if p.DownwardAPI != nil {
				files(p.DownwardAPI.Items)
			}
			if p.ServiceAccountToken != nil {
				set(&p.ServiceAccountToken.User, found)
			}
			if p.ClusterTrustBundle != nil {
				set(&p.ClusterTrustBundle.User, found)
			}
			if p.PodCertificate != nil {
				set(&p.PodCertificate.User, found)
			}
		}
	}
}
