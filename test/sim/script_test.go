package sim

import (
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"proa.dev/kind"
	"proa.dev/view"
)

// users let something happen every second or two until the end.
func (w *world) users(end time.Time) {
	w.At(time.Duration(w.Rand().ExpFloat64()*float64(700*time.Millisecond)), "user", func() {
		if w.Now().After(end) {
			return
		}
		if s := w.server; s != nil && w.Actor("server").IsUp() {
			what, err := s.whim()
			w.Logf("user", "%s%s", what, errorText(err))
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsForbidden(err) && !apierrors.IsTooManyRequests(err) {
				w.fail("user: %s: %v", what, err)
			}
		}
		w.users(end)
	})
}

// accidents happen to machines and their containers.
func (w *world) accidents(end time.Time) {
	w.At(time.Duration(w.Rand().ExpFloat64()*float64(6*time.Second)), "accident", func() {
		if w.Now().After(end) || !w.stormy {
			return
		}
		m := w.nodes[w.Rand().IntN(len(w.nodes))]
		switch w.Rand().IntN(6) {
		case 0: // the power
			w.Crash(m.name)
			m.agent = nil
			m.powerOff()
			down := w.between(time.Second, 20*time.Second)
			if w.Rand().IntN(3) == 0 {
				down = w.between(time.Minute, 2*time.Minute) // long enough to be missed
			}
			w.At(down, "power is back on "+m.name, func() { w.Restart(m.name) })
		case 1: // the server, in the middle of everything
			w.Crash("server")
			w.server = nil
			w.At(w.between(0, 5*time.Second), "end of crash", func() { w.Restart("server") })
		default:
			if list := m.running(); len(list) > 0 {
				m.exit(list[w.Rand().IntN(len(list))].id, 1)
			}
		}
		w.accidents(end)
	})
}

var (
	spaces   = []string{"shop", "bank"}
	apps     = []string{"web", "api", "db"}
	tries    = 3
	policies = []metav1.DeletionPropagation{metav1.DeletePropagationBackground, metav1.DeletePropagationForeground, metav1.DeletePropagationOrphan}
)

func podSpec(image string, r interface{ IntN(int) int }) corev1.PodSpec {
	zero := int64(r.IntN(4))
	spec := corev1.PodSpec{TerminationGracePeriodSeconds: &zero, Containers: []corev1.Container{{Name: "app", Image: image,
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("200m"), "memory": resource.MustParse("100Mi")}}}}}
	if r.IntN(4) == 0 {
		spec.PriorityClassName = "high"
	}
	if r.IntN(2) == 0 {
		spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(80)}}, PeriodSeconds: 1}
	}
	if r.IntN(5) == 0 {
		spec.InitContainers = []corev1.Container{{Name: "init", Image: "task:init"}}
	}
	if r.IntN(5) == 0 {
		always := corev1.ContainerRestartPolicyAlways
		spec.InitContainers = append(spec.InitContainers, corev1.Container{Name: "side", Image: "side:1", RestartPolicy: &always})
	}
	return spec
}

func template(app, image string, r interface{ IntN(int) int }) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}}, Spec: podSpec(image, r)}
}

// change reads, edits and writes an object, again on a conflict.
func change[T kind.Object](s *server, k *kind.Kind, ns, name string, edit func(T)) error {
	for try := 0; ; try++ {
		o, err := s.admin.Get(bg, k, ns, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		o = o.DeepCopyObject().(kind.Object)
		edit(o.(T))
		if _, err = s.admin.Update(bg, k, o, "", metav1.UpdateOptions{}); !apierrors.IsConflict(err) || try > tries {
			return err
		}
	}
}

func (s *server) create(k *kind.Kind, o kind.Object) error {
	_, err := s.admin.Create(bg, k, o, metav1.CreateOptions{})
	return err
}

// whim is what a user does now.
func (s *server) whim() (what string, err error) {
	r := s.w.Rand()
	ns, app := spaces[r.IntN(len(spaces))], apps[r.IntN(len(apps))]
	meta := metav1.ObjectMeta{Namespace: ns, Name: app, Labels: map[string]string{"app": app}}
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
	some := func() *corev1.Pod {
		var list []*corev1.Pod
		for p := range view.List[*corev1.Pod](s.view.Snapshot(), kind.Pod, ns) {
			list = append(list, p)
		}
		if len(list) == 0 {
			return nil
		}
		return list[r.IntN(len(list))]
	}
	switch r.IntN(24) {
	case 0, 1, 2:
		n := int32(1 + r.IntN(5))
		d := &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Replicas: &n, Selector: selector, Template: template(app, "app:1", r)}}
		if r.IntN(4) == 0 {
			d.Spec.Strategy.Type = appsv1.RecreateDeploymentStrategyType
		}
		return fmt.Sprintf("create deployment %s/%s replicas=%d", ns, app, n), s.create(kind.Deployment, d)
	case 3, 4, 5:
		n := int32(r.IntN(7))
		return fmt.Sprintf("scale %s/%s to %d", ns, app, n), change(s, kind.Deployment, ns, app, func(d *appsv1.Deployment) { d.Spec.Replicas = &n })
	case 6, 7, 8, 9:
		image := fmt.Sprintf("app:%d", 1+r.IntN(4))
		return fmt.Sprintf("roll out %s in %s/%s", image, ns, app), change(s, kind.Deployment, ns, app, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = image })
	case 10:
		return fmt.Sprintf("pause or resume %s/%s", ns, app), change(s, kind.Deployment, ns, app, func(d *appsv1.Deployment) { d.Spec.Paused = !d.Spec.Paused })
	case 11:
		p := policies[r.IntN(len(policies))]
		return fmt.Sprintf("delete deployment %s/%s %s", ns, app, p), s.admin.Delete(bg, kind.Deployment, ns, app, metav1.DeleteOptions{PropagationPolicy: &p})
	case 12, 13:
		p := some()
		if p == nil {
			return "no pod to delete", nil
		}
		var grace *int64
		if r.IntN(4) == 0 {
			zero := int64(0)
			grace = &zero
		}
		return "delete pod " + id(p), s.admin.Delete(bg, kind.Pod, ns, p.Name, metav1.DeleteOptions{GracePeriodSeconds: grace})
	case 14:
		m := s.w.nodes[r.IntN(machines)].name
		return "cordon or uncordon " + m, change(s, kind.Node, "", m, func(n *corev1.Node) { n.Spec.Unschedulable = !n.Spec.Unschedulable })
	case 15:
		m := s.w.nodes[r.IntN(machines)].name
		if err := change(s, kind.Node, "", m, func(n *corev1.Node) { n.Spec.Unschedulable = true }); err != nil {
			return "drain " + m, err
		}
		for p := range s.view.Snapshot().PodsOn(m) {
			if ref := metav1.GetControllerOfNoCopy(p); ref != nil && ref.Kind == "DaemonSet" {
				continue
			}
			_, err := s.admin.Post(bg, kind.Pod, p.Namespace, p.Name, "eviction", &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}})
			if err != nil && !apierrors.IsTooManyRequests(err) && !apierrors.IsNotFound(err) {
				return "drain " + m, err
			}
		}
		return "drain " + m, nil
	case 16:
		if r.IntN(3) > 0 {
			return "thinks about deleting a namespace", nil
		}
		return "delete namespace " + ns, s.admin.Delete(bg, kind.Namespace, "", ns, metav1.DeleteOptions{})
	case 17:
		svc := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{Selector: selector.MatchLabels, Ports: []corev1.ServicePort{{Port: 80}}}}
		return fmt.Sprintf("create service %s/%s", ns, app), s.create(kind.Service, svc)
	case 18:
		return fmt.Sprintf("delete service %s/%s", ns, app), s.admin.Delete(bg, kind.Service, ns, app, metav1.DeleteOptions{})
	case 19:
		meta.Name = fmt.Sprintf("job-%d", r.IntN(5))
		n := int32(1 + r.IntN(3))
		t := template("job", "task:1", r)
		t.Spec.InitContainers = nil
		t.Spec.Containers[0].ReadinessProbe = nil
		t.Spec.RestartPolicy = []corev1.RestartPolicy{corev1.RestartPolicyNever, corev1.RestartPolicyOnFailure}[r.IntN(2)]
		limit := int32(50)
		return fmt.Sprintf("create job %s/%s of %d", ns, meta.Name, n), s.create(kind.Job, &batchv1.Job{ObjectMeta: meta, Spec: batchv1.JobSpec{Parallelism: &n, Completions: &n, BackoffLimit: &limit, Template: t}})
	case 20:
		meta.Name = "everywhere"
		d := &appsv1.DaemonSet{ObjectMeta: meta, Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "everywhere"}}, Template: template("everywhere", "app:1", r)}}
		if r.IntN(3) == 0 {
			return "delete daemonset " + ns, s.admin.Delete(bg, kind.DaemonSet, ns, meta.Name, metav1.DeleteOptions{})
		}
		return "create daemonset " + ns, s.create(kind.DaemonSet, d)
	case 21:
		one := intstr.FromInt32(1)
		return fmt.Sprintf("create budget %s/%s", ns, app), s.create(kind.PodDisruptionBudget, &policyv1.PodDisruptionBudget{ObjectMeta: meta, Spec: policyv1.PodDisruptionBudgetSpec{Selector: selector, MaxUnavailable: &one}})
	case 22:
		var list []*appsv1.ReplicaSet
		for rs := range view.List[*appsv1.ReplicaSet](s.view.Snapshot(), kind.ReplicaSet, ns) {
			list = append(list, rs)
		}
		if len(list) == 0 {
			return "no replicaset to delete", nil
		}
		rs, p := list[r.IntN(len(list))], policies[r.IntN(len(policies))]
		return fmt.Sprintf("delete replicaset %s %s", id(rs), p), s.admin.Delete(bg, kind.ReplicaSet, ns, rs.Name, metav1.DeleteOptions{PropagationPolicy: &p})
	default: // both, where they are missing
		for _, name := range spaces {
			err := s.create(kind.Namespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
			if err != nil && !apierrors.IsAlreadyExists(err) {
				return "create namespaces", err
			}
		}
		return "create namespaces", nil
	}
}

// tidy ends what users may have left that keeps the cluster from settling.
func (w *world) tidy() {
	s := w.server
	for _, m := range w.nodes {
		if err := change(s, kind.Node, "", m.name, func(n *corev1.Node) { n.Spec.Unschedulable = false }); err != nil && !apierrors.IsNotFound(err) {
			w.fail("uncordon %s: %v", m.name, err)
		}
	}
	for d := range view.List[*appsv1.Deployment](s.view.Snapshot(), kind.Deployment, "") {
		if d.Spec.Paused {
			if err := change(s, kind.Deployment, d.Namespace, d.Name, func(d *appsv1.Deployment) { d.Spec.Paused = false }); err != nil && !apierrors.IsNotFound(err) {
				w.fail("resume %s: %v", id(d), err)
			}
		}
	}
}
