package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"proa.dev/apiserver/admit"
	"proa.dev/kind"
	"proa.dev/view"
)

func invalidScale(name string, replicas int32) error {
	return apierrors.NewInvalid(scaleGVK.GroupKind(), name, field.ErrorList{
		field.Invalid(field.NewPath("spec", "replicas"), replicas, "must be greater than or equal to 0")})
}

func (s *Server) patchScale(ctx context.Context, c *call, t types.PatchType, data []byte, o metav1.PatchOptions) (scaleObject, error) {
	if t == types.ApplyYAMLPatchType {
		return s.applyScale(ctx, c, data, o)
	}
	through := *c
	through.manager = o.FieldManager
	return s.setScale(ctx, &through, func(now *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
		out := new(autoscalingv1.Scale)
		_, err := s.applyPatch(c, t, data, now, out, scaleGVK, o.FieldValidation)
		return out, err
	}, o.DryRun)
}

type scaleObject = *autoscalingv1.Scale

// specialDoor is the way of subresources that exchange their parent's kind.
func (s *Server) specialDoor(k *kind.Kind, sub string) *kind.Door {
	switch {
	case k == kind.Namespace && sub == "finalize":
		return &kind.Door{PrepareUpdate: func(new, old kind.Object) {
			n, o := new.(*corev1.Namespace), old.(*corev1.Namespace)
			kept := o.DeepCopy()
			kept.Spec.Finalizers = n.Spec.Finalizers
			*n = *kept
		}}
	case k == kind.CertificateSigningRequest && sub == "approval":
		return &kind.Door{ValidateUpdate: ownDoor(k, sub).ValidateUpdate, PrepareUpdate: func(new, old kind.Object) {
			n, o := new.(*certificatesv1.CertificateSigningRequest), old.(*certificatesv1.CertificateSigningRequest)
			kept := o.DeepCopy()
			kept.Status.Conditions = n.Status.Conditions
			now := s.now()
			for i := range kept.Status.Conditions {
				c := &kept.Status.Conditions[i]
				if c.LastUpdateTime.IsZero() {
					c.LastUpdateTime = now
				}
				if c.LastTransitionTime.IsZero() {
					c.LastTransitionTime = now
				}
			}
			kept.ResourceVersion = n.ResourceVersion
			*n = *kept
		}}
	}
	return ownDoor(k, sub)
}

// ownDoor is what the row says about a subresource, nil if it says nothing.
func ownDoor(k *kind.Kind, sub string) *kind.Door {
	for i := range k.Subresources {
		if k.Subresources[i].Name == sub {
			return k.Subresources[i].Door
		}
	}
	return nil
}

// bind writes a pod's node name.
func (s *Server) bind(ctx context.Context, c *call, b *corev1.Binding, dryRun []string) (runtime.Object, error) {
	if b.Name != "" && b.Name != c.name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Binding object")
	}
	if b.Namespace != "" && b.Namespace != c.namespace {
		return nil, apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	var errs field.ErrorList
	if b.Target.Kind != "" && b.Target.Kind != "Node" {
		errs = append(errs, field.NotSupported(field.NewPath("target", "kind"), b.Target.Kind, []string{"Node", "<empty>"}))
	}
	if b.Target.Name == "" {
		errs = append(errs, field.Required(field.NewPath("target", "name"), ""))
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Kind: "Binding"}, c.name, errs)
	}
	refuse := func(why string) error {
		return apierrors.NewConflict(schema.GroupResource{Resource: "pods/binding"}, c.name, errors.New(why))
	}
	through := *c
	through.kind, through.sub = kind.Pod, "binding"
	if err := s.connectAdmission(ctx, &through, b, admit.Create, dryRun); err != nil {
		return nil, err
	}
	_, _, err := s.modify(admit.Inner(ctx), &through, change{dryRun: isDryRun(dryRun), make: func(old kind.Object) (kind.Object, error) {
		pod := old.(*corev1.Pod)
		if b.UID != "" && b.UID != pod.UID {
			return nil, refuse(fmt.Sprintf("Precondition failed: UID in precondition: %v, UID in object meta: %v", b.UID, pod.UID))
		}
		if b.ResourceVersion != "" && b.ResourceVersion != pod.ResourceVersion {
			return nil, refuse(fmt.Sprintf("Precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", b.ResourceVersion, pod.ResourceVersion))
		}
		if pod.DeletionTimestamp != nil {
			return nil, refuse(fmt.Sprintf("pod %s is being deleted, cannot be assigned to a host", pod.Name))
		}
		if pod.Spec.NodeName != "" {
			return nil, refuse(fmt.Sprintf("pod %v is already assigned to node %q", pod.Name, pod.Spec.NodeName))
		}
		if len(pod.Spec.SchedulingGates) != 0 {
			return nil, refuse(fmt.Sprintf("pod %v has non-empty .spec.schedulingGates", pod.Name))
		}
		pod.ResourceVersion = ""
		pod.Spec.NodeName = b.Target.Name
		if len(b.Annotations) > 0 && pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		for k, v := range b.Annotations {
			pod.Annotations[k] = v
		}
		setPodScheduled(pod, s.now())
		return pod, nil
	}})
	if err != nil {
		return nil, err
	}
	return success(201), nil
}

func setPodScheduled(pod *corev1.Pod, now metav1.Time) {
	for i := range pod.Status.Conditions {
		c := &pod.Status.Conditions[i]
		if c.Type == corev1.PodScheduled {
			if c.Status != corev1.ConditionTrue {
				c.LastTransitionTime = now
			}
			c.Status, c.Reason, c.Message = corev1.ConditionTrue, "", ""
			c.ObservedGeneration = pod.Generation
			return
		}
	}
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue,
		LastTransitionTime: now, ObservedGeneration: pod.Generation})
}

func success(code int32) *metav1.Status {
	return &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess, Code: code}
}

// connectAdmission runs admission for requests below an object that are not
// updates of it.
func (s *Server) connectAdmission(ctx context.Context, c *call, body runtime.Object, op admit.Operation, dryRun []string) error {
	if len(s.cfg.Admit) == 0 {
		return nil
	}
	snap := s.view.Snapshot()
	r := &admit.Request{Kind: c.kind, Sub: c.sub, Operation: op, User: c.user, Namespace: c.namespace, Name: c.name,
		Old: snap.Get(c.kind, c.namespace, c.name), Body: body, DryRun: isDryRun(dryRun), Now: s.clock.Now(), Snapshot: snap, Warn: c.warn}
	if err := s.mutate(ctx, r); err != nil {
		return err
	}
	_, err := s.check(ctx, r)
	return err
}

// post creates below an object.
func (s *Server) post(ctx context.Context, c *call, body runtime.Object, dryRun []string) (runtime.Object, error) {
	switch b := body.(type) {
	case *corev1.Binding:
		if c.kind.Root() == kind.Pod && c.sub == "binding" {
			return s.bind(ctx, c, b, dryRun)
		}
	case *policyv1.Eviction:
		if c.kind.Root() == kind.Pod && c.sub == "eviction" {
			return s.evict(ctx, c, b, dryRun)
		}
	case *authenticationv1.TokenRequest:
		if c.kind.Root() == kind.ServiceAccount && c.sub == "token" {
			return s.issueToken(ctx, c, b, dryRun)
		}
	}
	return nil, apierrors.NewBadRequest(fmt.Sprintf("%T cannot be sent to %s/%s", body, c.kind, c.sub))
}

func (s *Server) issueToken(ctx context.Context, c *call, tr *authenticationv1.TokenRequest, dryRun []string) (runtime.Object, error) {
	if s.cfg.IssueToken == nil {
		e := apierrors.NewGenericServerResponse(501, "create", c.kind.GroupResource(), c.name, "this server has no token issuer", 0, false)
		return nil, e
	}
	if tr.Name == "" {
		tr.Name = c.name
	} else if tr.Name != c.name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in TokenRequest object")
	}
	if tr.Namespace == "" {
		tr.Namespace = c.namespace
	} else if tr.Namespace != c.namespace {
		return nil, apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	snap := s.view.Snapshot()
	sa := snap.Get(kind.ServiceAccount, c.namespace, c.name)
	if sa == nil {
		return nil, notFound(c, c.name)
	}
	const hour = 3600
	if tr.Spec.ExpirationSeconds == nil {
		n := int64(hour)
		tr.Spec.ExpirationSeconds = &n
	}
	spec := field.NewPath("spec")
	var errs field.ErrorList
	if *tr.Spec.ExpirationSeconds < 10*60 {
		errs = append(errs, field.Invalid(spec.Child("expirationSeconds"), *tr.Spec.ExpirationSeconds, "may not specify a duration less than 10 minutes"))
	}
	if *tr.Spec.ExpirationSeconds > 1<<32 {
		errs = append(errs, field.Invalid(spec.Child("expirationSeconds"), *tr.Spec.ExpirationSeconds, "may not specify a duration larger than 2^32 seconds"))
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: "authentication.k8s.io", Kind: "TokenRequest"}, c.name, errs)
	}
	r := &admit.Request{Kind: kind.ServiceAccount, Sub: "token", Operation: admit.Create, User: c.user, Namespace: c.namespace, Name: c.name,
		Old: sa, Body: tr, DryRun: isDryRun(dryRun), Now: s.clock.Now(), Snapshot: snap, Warn: c.warn}
	if err := s.mutate(ctx, r); err != nil {
		return nil, err
	}
	if _, err := s.check(ctx, r); err != nil {
		return nil, err
	}
	tr.CreationTimestamp = s.now()
	if err := s.cfg.IssueToken(ctx, r, tr); err != nil {
		return nil, err
	}
	return tr, nil
}

// evict deletes a pod if its disruption budgets allow it (Kubernetes docs,
// "API-initiated Eviction").
func (s *Server) evict(ctx context.Context, c *call, e *policyv1.Eviction, dryRun []string) (runtime.Object, error) {
	if e.Name != "" && e.Name != c.name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	if e.DeleteOptions == nil {
		e.DeleteOptions = &metav1.DeleteOptions{}
	}
	opts := *e.DeleteOptions.DeepCopy()
	if len(dryRun) > 0 {
		opts.DryRun = dryRun
	}
	through := *c
	through.sub = "eviction"
	if err := s.connectAdmission(ctx, &through, e, admit.Create, opts.DryRun); err != nil {
		return nil, err
	}
	pods := *c
	pods.kind, pods.sub = kind.Pod, ""
	for try := 0; ; try++ {
		if err := s.fresh(ctx); err != nil {
			return nil, err
		}
		snap := s.view.Snapshot()
		pod := view.Get[*corev1.Pod](snap, kind.Pod, c.namespace, c.name)
		if pod == nil {
			return nil, notFound(&pods, c.name)
		}
		if err := checkPreconditions(&pods, pod, opts.Preconditions); err != nil {
			return nil, err
		}
		budget, err := budgetOf(snap, pod)
		if err != nil {
			return nil, err
		}
		if budget != nil && !ignoresBudget(pod, budget) {
			if err := s.spend(ctx, c, budget, pod, opts.DryRun); err != nil {
				if apierrors.IsConflict(err) && try < maxTries {
					continue
				}
				return nil, err
			}
		}
		if opts.Preconditions == nil {
			opts.Preconditions = &metav1.Preconditions{UID: &pod.UID}
		}
		if !isDryRun(opts.DryRun) && pod.DeletionTimestamp == nil {
			told, err := s.tellDisruption(admit.Inner(ctx), &pods, pod.UID)
			if err != nil {
				return nil, err
			}
			if opts.Preconditions.ResourceVersion != nil { // it was met; the condition has made a new one
				opts.Preconditions.ResourceVersion = new(told.GetResourceVersion())
			}
		}
		if _, _, err := s.delete(admit.Inner(ctx), &pods, opts); err != nil {
			return nil, err
		}
		return success(201), nil
	}
}

// tellDisruption writes into the pod's status why it will end, for the policies of
// Jobs (Kubernetes docs, "Pod disruption conditions").
func (s *Server) tellDisruption(ctx context.Context, pods *call, uid types.UID) (kind.Object, error) {
	status := *pods
	status.sub = "status"
	told, _, err := s.modify(ctx, &status, change{door: kind.Pod.Status, make: func(old kind.Object) (kind.Object, error) {
		p := old.(*corev1.Pod)
		if p.UID != uid {
			return nil, modified(pods, pods.name)
		}
		c := corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI",
			Message: "Eviction API: evicting", ObservedGeneration: p.Generation, LastTransitionTime: s.now()}
		i := slices.IndexFunc(p.Status.Conditions, func(have corev1.PodCondition) bool { return have.Type == c.Type })
		if i < 0 {
			p.Status.Conditions = append(p.Status.Conditions, c)
		} else if p.Status.Conditions[i].Status != c.Status {
			p.Status.Conditions[i] = c
		}
		return p, nil
	}})
	return told, err
}

func budgetOf(snap view.Snapshot, pod *corev1.Pod) (*policyv1.PodDisruptionBudget, error) {
	var found *policyv1.PodDisruptionBudget
	for b := range view.List[*policyv1.PodDisruptionBudget](snap, kind.PodDisruptionBudget, pod.Namespace) {
		if b.Spec.Selector == nil {
			continue
		}
		sel, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil || !sel.Matches(labels.Set(pod.Labels)) {
			continue
		}
		if found != nil {
			return nil, apierrors.NewInternalError(errors.New("This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."))
		}
		found = b
	}
	return found, nil
}

// ignoresBudget: pods that do not serve do not count against a budget.
func ignoresBudget(pod *corev1.Pod, b *policyv1.PodDisruptionBudget) bool {
	switch {
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodPending,
		pod.DeletionTimestamp != nil:
		return true
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return false
		}
	}
	if p := b.Spec.UnhealthyPodEvictionPolicy; p != nil && *p == policyv1.AlwaysAllow {
		return true
	}
	return b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0
}

// maxDisrupted bounds the pods that a budget remembers as being evicted.
const maxDisrupted = 2000

// spend takes one disruption off a budget.
func (s *Server) spend(ctx context.Context, c *call, b *policyv1.PodDisruptionBudget, pod *corev1.Pod, dryRun []string) error {
	refuse := func(retry int, detail string) error {
		err := apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", retry)
		err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: detail})
		return err
	}
	through := *c
	through.kind, through.sub, through.name = kind.PodDisruptionBudget, "status", b.Name
	_, _, err := s.modify(ctx, &through, change{dryRun: isDryRun(dryRun), make: func(old kind.Object) (kind.Object, error) {
		b := old.(*policyv1.PodDisruptionBudget)
		if b.Status.ObservedGeneration < b.Generation {
			return nil, refuse(10, fmt.Sprintf("The disruption budget %s is still being processed by the server.", b.Name))
		}
		if b.Status.DisruptionsAllowed < 0 {
			return nil, apierrors.NewForbidden(schema.GroupResource{Group: "policy", Resource: "poddisruptionbudgets"}, b.Name, errors.New("pdb disruptions allowed is negative"))
		}
		if len(b.Status.DisruptedPods) > maxDisrupted {
			return nil, apierrors.NewForbidden(schema.GroupResource{Group: "policy", Resource: "poddisruptionbudgets"}, b.Name,
				errors.New("DisruptedPods map too big - too many evictions not confirmed by PDB controller"))
		}
		if b.Status.DisruptionsAllowed == 0 {
			return nil, refuse(0, fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", b.Name, b.Status.DesiredHealthy, b.Status.CurrentHealthy))
		}
		b.Status.DisruptionsAllowed--
		if b.Status.DisruptedPods == nil {
			b.Status.DisruptedPods = map[string]metav1.Time{}
		}
		b.Status.DisruptedPods[pod.Name] = s.now()
		return b, nil
	}})
	return err
}

// resize takes over what the resize subresource may change: the resources and
// resize policies of containers that exist.
func hasContainer(pod *corev1.Pod, name string) bool {
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return true
		}
	}
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return true
		}
	}
	return false
}
