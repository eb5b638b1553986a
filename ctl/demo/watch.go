package demo

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"proa.dev/client"
	"proa.dev/kind"
)

// watcher shows Deployments until they are available.
type watcher struct {
	client      client.Client
	out         io.Writer
	times       times
	deployments []*appsv1.Deployment
	shown       map[string]string // by Deployment: the last line about it
}

func (w *watcher) wait(ctx context.Context) error {
	changed, told := time.Now(), ""
	waiting := w.deployments
	for {
		latest, news, err := w.look(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil {
			if len(latest) == 0 {
				return nil
			}
			waiting = latest
		}
		now := time.Now()
		if news {
			changed = now
		}
		silent := now.Sub(changed)
		if silent >= w.times.silence {
			why := w.diagnose(ctx, waiting)
			if silent >= w.times.patience {
				return fmt.Errorf("deploy %s: nothing has changed for %s:\n%s", strings.Join(names(waiting), ", "), silent.Round(time.Second), why)
			}
			if why != told {
				fmt.Fprintln(w.out, why)
				told = why
			}
		}
		if err := pause(ctx, w.times.poll); err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			return fmt.Errorf("deploy %s: %w:\n%s", strings.Join(names(waiting), ", "), err, w.diagnose(clean, waiting))
		}
	}
}

func names(list []*appsv1.Deployment) []string {
	var n []string
	for _, d := range list {
		n = append(n, d.Name)
	}
	return n
}

// look prints what is new and returns the Deployments that are not yet available.
func (w *watcher) look(ctx context.Context) (waiting []*appsv1.Deployment, news bool, err error) {
	width := 0
	for _, d := range w.deployments {
		width = max(width, len(d.Name))
	}
	for _, want := range w.deployments {
		obj, err := w.client.Get(ctx, kind.Deployment, want.Namespace, want.Name, metav1.GetOptions{})
		if err != nil {
			return nil, false, fmt.Errorf("look for deployment %q: %w", want.Name, err)
		}
		d := obj.(*appsv1.Deployment)
		done, line := progress(d)
		if !done {
			waiting = append(waiting, d)
		}
		key := d.Namespace + "/" + d.Name
		if before, seen := w.shown[key]; before != line {
			w.shown[key], news = line, true
			if seen || !strings.HasPrefix(line, "0/") { // where it starts is no news
				fmt.Fprintf(w.out, "  %-*s  %s\n", width, d.Name, line)
			}
		}
	}
	return waiting, news, nil
}

// progress is done when the newest template's pods, and no others, are available.
func progress(d *appsv1.Deployment) (done bool, line string) {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := &d.Status
	if s.ObservedGeneration < d.Generation {
		return false, fmt.Sprintf("0/%d ready", want)
	}
	ready := min(s.UpdatedReplicas, s.AvailableReplicas, want)
	if old := s.Replicas - s.UpdatedReplicas; old > 0 {
		return false, fmt.Sprintf("%d/%d ready, %d old to go", ready, want, old)
	}
	return ready == want && s.Replicas == want, fmt.Sprintf("%d/%d ready", ready, want)
}

// diagnose says in one line per Deployment what its pods wait for.
func (w *watcher) diagnose(ctx context.Context, waiting []*appsv1.Deployment) string {
	var lines []string
	for _, d := range waiting {
		lines = append(lines, fmt.Sprintf("  %s waits: %s", d.Name, w.reason(ctx, d)))
	}
	return strings.Join(lines, "\n")
}

func (w *watcher) reason(ctx context.Context, d *appsv1.Deployment) string {
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
			return fmt.Sprintf("%s: %s", c.Reason, c.Message)
		}
	}
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		selector = labels.Nothing()
	}
	pods, err := w.client.List(ctx, kind.Pod, d.Namespace, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		return fmt.Sprintf("its pods cannot be read: %v", err)
	}
	if len(pods.Items) == 0 {
		return "it has no pods; are the controllers running? see `proa status`" + w.lastEvent(ctx, d)
	}
	// The pods that wait longest say most.
	slices.SortStableFunc(pods.Items, func(a, b kind.Object) int {
		return a.GetCreationTimestamp().Time.Compare(b.GetCreationTimestamp().Time)
	})
	for _, obj := range pods.Items {
		p := obj.(*corev1.Pod)
		if p.DeletionTimestamp != nil {
			continue
		}
		if why := podReason(p); why != "" {
			return fmt.Sprintf("pod %s: %s%s", p.Name, why, w.lastEvent(ctx, p))
		}
	}
	return "all its pods are ready; the deployment has not noticed yet"
}

// podReason is empty for a ready pod.
func podReason(p *corev1.Pod) string {
	conditions := map[corev1.PodConditionType]corev1.PodCondition{}
	for _, c := range p.Status.Conditions {
		conditions[c.Type] = c
	}
	if conditions[corev1.PodReady].Status == corev1.ConditionTrue {
		return ""
	}
	if p.Status.Phase == corev1.PodFailed {
		return join("failed", p.Status.Reason, p.Status.Message)
	}
	if c := conditions[corev1.PodScheduled]; c.Status == corev1.ConditionFalse {
		return join("no node for it", c.Message)
	}
	if p.Spec.NodeName == "" {
		return "not placed on a node yet"
	}
	for _, s := range append(p.Status.InitContainerStatuses[:len(p.Status.InitContainerStatuses):len(p.Status.InitContainerStatuses)], p.Status.ContainerStatuses...) {
		switch {
		case s.State.Waiting != nil:
			why := join(s.State.Waiting.Reason, s.State.Waiting.Message)
			if t := s.LastTerminationState.Terminated; t != nil {
				why += "; last time it " + ended(t)
			}
			return fmt.Sprintf("container %s: %s", s.Name, why)
		case s.State.Terminated != nil && s.State.Terminated.ExitCode != 0:
			return fmt.Sprintf("container %s %s", s.Name, ended(s.State.Terminated))
		case s.State.Running != nil && !s.Ready && !slices.ContainsFunc(p.Status.InitContainerStatuses, func(i corev1.ContainerStatus) bool { return i.Name == s.Name }):
			return fmt.Sprintf("container %s runs but is not ready; see `kubectl -n %s logs %s`", s.Name, p.Namespace, p.Name)
		}
	}
	if len(p.Status.ContainerStatuses) == 0 {
		return fmt.Sprintf("node %s has not started it yet", p.Spec.NodeName)
	}
	return join("not ready", conditions[corev1.PodReady].Message)
}

func ended(t *corev1.ContainerStateTerminated) string {
	s := fmt.Sprintf("ended with code %d", t.ExitCode)
	if t.Reason != "" && t.Reason != "Error" {
		s += " (" + t.Reason + ")"
	}
	if m := strings.TrimSpace(t.Message); m != "" {
		s += ": " + m
	}
	return s
}

func join(words ...string) string {
	return strings.Join(slices.DeleteFunc(words, func(s string) bool { return s == "" }), ": ")
}

// lastEvent is the newest warning about an object.
func (w *watcher) lastEvent(ctx context.Context, about kind.Object) string {
	events, err := w.client.List(ctx, kind.Event, about.GetNamespace(), metav1.ListOptions{Limit: 500})
	if err != nil {
		return ""
	}
	var last *corev1.Event
	for _, obj := range events.Items {
		e := obj.(*corev1.Event)
		if e.InvolvedObject.UID == about.GetUID() && e.Type == corev1.EventTypeWarning && (last == nil || !at(e).Before(at(last))) {
			last = e
		}
	}
	if last == nil {
		return ""
	}
	return fmt.Sprintf(" (last event: %s: %s)", last.Reason, strings.TrimSpace(last.Message))
}

func at(e *corev1.Event) time.Time {
	t := e.CreationTimestamp.Time
	for _, other := range []time.Time{e.EventTime.Time, e.LastTimestamp.Time} {
		if other.After(t) {
			t = other
		}
	}
	if e.Series != nil && e.Series.LastObservedTime.After(t) {
		t = e.Series.LastObservedTime.Time
	}
	return t
}
