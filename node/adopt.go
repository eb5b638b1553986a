package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/kind"
	"proa.dev/node/pod"
	"proa.dev/node/volume"
	"proa.dev/view"
)

// adopt compares the engine with the pods of this node: what belongs to one is
// handed to its worker, the rest is removed.
func (a *Agent) adopt(ctx context.Context) error {
	boxes, err := a.cfg.Engine.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list sandboxes to adopt: %w", err)
	}
	containers, err := a.cfg.Engine.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return fmt.Errorf("list containers to adopt: %w", err)
	}
	s := a.cfg.View.Snapshot()
	mine := map[types.UID]*corev1.Pod{}
	for p := range s.PodsOn(a.cfg.Name) {
		mine[p.UID] = p
	}
	found := map[types.UID]*pod.Adopted{}
	newest := map[types.UID]*runtimeapi.PodSandbox{}
	orphans := map[string]bool{}
	for _, b := range boxes.Items {
		uid := types.UID(b.Labels[labelPodUID])
		if uid == "" {
			continue // not ours
		}
		if mine[uid] == nil {
			orphans[string(uid)] = true
			continue
		}
		if n := newest[uid]; n == nil || b.Metadata.Attempt > n.Metadata.Attempt {
			newest[uid] = b
		}
	}
	for uid, b := range newest {
		f := &pod.Adopted{Seen: true, Attempt: b.Metadata.Attempt}
		if b.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			st, err := a.cfg.Engine.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: b.Id})
			if err == nil && st.Status.State == runtimeapi.PodSandboxState_SANDBOX_READY {
				f.SandboxID, f.IPs = b.Id, sandboxIPs(st.Status)
				if mine[uid].Spec.HostNetwork {
					f.IPs = a.cfg.HostIPs
				}
			}
		}
		found[uid] = f
	}
	a.adoptContainers(ctx, mine, found, containers.Containers)
	a.log.Info("adopting pods", "pods", len(mine), "found", len(found), "orphans", len(orphans))
	uids := make([]types.UID, 0, len(mine))
	for uid := range mine {
		uids = append(uids, uid)
	}
	sort.Slice(uids, func(i, j int) bool { return uids[i] < uids[j] })
	// Those that already run count for admission first.
	for _, uid := range uids {
		if found[uid] != nil {
			a.offer(mine[uid], found[uid])
		}
	}
	for _, uid := range uids {
		if found[uid] == nil {
			a.offer(mine[uid], nil)
		}
	}
	for _, uid := range a.volumes.Pods() {
		if mine[types.UID(uid)] == nil {
			orphans[uid] = true
		}
	}
	a.spawn(func() { a.followPods(ctx, s.Revision()) })
	if len(orphans) > 0 {
		a.spawn(func() {
			for uid := range orphans {
				a.clearOrphan(ctx, uid)
			}
		})
	}
	return nil
}

func (a *Agent) adoptContainers(ctx context.Context, mine map[types.UID]*corev1.Pod, found map[types.UID]*pod.Adopted, list []*runtimeapi.Container) {
	byPod := map[types.UID]map[string][]*runtimeapi.Container{}
	for _, c := range list {
		uid := types.UID(c.Labels[labelPodUID])
		if mine[uid] == nil || found[uid] == nil {
			continue
		}
		if byPod[uid] == nil {
			byPod[uid] = map[string][]*runtimeapi.Container{}
		}
		name := c.Labels[labelContainerName]
		byPod[uid][name] = append(byPod[uid][name], c)
	}
	for uid, names := range byPod {
		for name, cs := range names {
			sort.Slice(cs, func(i, j int) bool { return cs[i].Metadata.Attempt > cs[j].Metadata.Attempt })
			var newest *pod.Found
			for _, c := range cs {
				st, err := a.cfg.Engine.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
				if err != nil {
					continue
				}
				s := st.Status
				if s.State == runtimeapi.ContainerState_CONTAINER_CREATED {
					// Half made: it is made anew.
					if _, err := a.cfg.Engine.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.Id}); err != nil {
						a.log.Warn("half-made container is not removed", "container", c.Id, "err", err)
					}
					continue
				}
				var term *corev1.ContainerStateTerminated
				if s.State == runtimeapi.ContainerState_CONTAINER_EXITED {
					term = &corev1.ContainerStateTerminated{ExitCode: s.ExitCode, Reason: s.Reason,
						Message:   a.terminationMessage(mine[uid], name, s),
						StartedAt: apiTime(s.StartedAt), FinishedAt: apiTime(s.FinishedAt),
						ContainerID: pod.ContainerID(s.Id)}
					if term.Reason == "" {
						term.Reason = "Error"
					}
				}
				if newest == nil {
					restarts, _ := strconv.Atoi(s.Annotations[annotationRestarts])
					newest = &pod.Found{Name: name, ID: s.Id, Image: s.GetImage().GetImage(), ImageID: s.ImageRef, Restarts: int32(restarts),
						Running: term == nil, StartedAt: nanos(s.StartedAt), Terminated: term}
				} else if newest.Last == nil {
					newest.Last = term
				}
			}
			if newest != nil {
				found[uid].Containers = append(found[uid].Containers, *newest)
			}
		}
		sort.Slice(found[uid].Containers, func(i, j int) bool { return found[uid].Containers[i].Name < found[uid].Containers[j].Name })
	}
}

// apiTime is an engine's time in whole seconds, as the API carries it.
func apiTime(n int64) metav1.Time {
	if n <= 0 {
		return metav1.Time{}
	}
	return metav1.NewTime(time.Unix(0, n).Truncate(time.Second))
}

// clearOrphan ends and removes what is left of a pod that the API does not know.
func (a *Agent) clearOrphan(ctx context.Context, uid string) {
	a.log.Info("removing what is left of an unknown pod", "uid", uid)
	pause := time.Second
	for {
		err := errors.Join(a.removeSandboxes(ctx, uid), a.volumes.Teardown(uid))
		if err == nil {
			return
		}
		a.log.Warn("orphan is not removed; trying again", "uid", uid, "err", err)
		if !a.sleep(ctx, pause) {
			return
		}
		pause = min(2*pause, time.Minute)
	}
}

// removeSandboxes removes all sandboxes and containers of a pod.
func (a *Agent) removeSandboxes(ctx context.Context, uid string) error {
	list, err := a.cfg.Engine.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{
		Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{labelPodUID: uid}}})
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range list.Items {
		if s.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			if _, err := a.cfg.Engine.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id}); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		if _, err := a.cfg.Engine.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// forgetFiles removes the logs of a pod that is gone.
func (a *Agent) forgetFiles(p *corev1.Pod) {
	if p == nil {
		return
	}
	dir := a.podLogDir(p)
	if err := os.RemoveAll(dir); err != nil {
		a.log.Warn("logs are not removed", "dir", dir, "err", err)
	}
	if a.cfg.LogLinkDir != "" {
		links, _ := filepath.Glob(filepath.Join(a.cfg.LogLinkDir, p.Name+"_"+p.Namespace+"_*.log"))
		for _, l := range links {
			if target, err := os.Readlink(l); err == nil && filepath.Dir(filepath.Dir(target)) == dir {
				os.Remove(l)
			}
		}
	}
}

func (a *Agent) linkLog(p *corev1.Pod, container, id, file string) {
	if a.cfg.LogLinkDir == "" {
		return
	}
	link := filepath.Join(a.cfg.LogLinkDir, fmt.Sprintf("%s_%s_%s-%s.log", p.Name, p.Namespace, container, id))
	os.MkdirAll(a.cfg.LogLinkDir, 0o755)
	os.Remove(link)
	if err := os.Symlink(file, link); err != nil {
		a.log.Warn("log has no link for collectors", "link", link, "err", err)
	}
}

// removeLog removes the log of one attempt, with its rotated parts.
func (a *Agent) removeLog(p *corev1.Pod, c *runtimeapi.ContainerStatus) {
	name := c.Labels[labelContainerName]
	base := filepath.Join(a.podLogDir(p), name, fmt.Sprintf("%d.log", c.GetMetadata().GetAttempt()))
	files, _ := filepath.Glob(base + "*")
	for _, f := range files {
		os.Remove(f)
	}
	os.Remove(a.messageFile(p, name, int32(c.GetMetadata().GetAttempt())))
	if a.cfg.LogLinkDir != "" {
		os.Remove(filepath.Join(a.cfg.LogLinkDir, fmt.Sprintf("%s_%s_%s-%s.log", p.Name, p.Namespace, name, c.Id)))
	}
}

// token asks the API for a token bound to the pod.
func (a *Agent) token(ctx context.Context, p *corev1.Pod, audience string, expires int64) (volume.Token, error) {
	body := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &expires,
		BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID}}}
	body.APIVersion, body.Kind = "authentication.k8s.io/v1", "TokenRequest"
	if audience != "" {
		body.Spec.Audiences = []string{audience}
	}
	account := p.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	now := a.clock.Now()
	o, err := a.cfg.Client.Post(ctx, kind.ServiceAccount, p.Namespace, account, "token", body)
	if err != nil {
		return volume.Token{}, err
	}
	r, ok := o.(*authenticationv1.TokenRequest)
	if !ok {
		return volume.Token{}, fmt.Errorf("ask for token of service account %q: answer is a %T, not a TokenRequest", account, o)
	}
	return volume.Token{Value: r.Status.Token, IssuedAt: now, Expires: r.Status.ExpirationTimestamp.Time}, nil
}

func (a *Agent) execProbe(ctx context.Context, id string, cmd []string, timeout time.Duration) ([]byte, int32, error) {
	r, err := a.cfg.Engine.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: int64(timeout.Seconds())})
	if err != nil {
		return nil, 0, err
	}
	return append(r.Stdout, r.Stderr...), r.ExitCode, nil
}

// admit says why the node cannot take a pod, with upstream's reasons and words;
// "" when it can. The scheduler has already chosen: this catches pods that were
// bound past it, and races.
func (a *Agent) admit(p *corev1.Pod) (reason, message string) {
	n := view.Get[*corev1.Node](a.cfg.View.Snapshot(), kind.Node, "", a.cfg.Name)
	if n != nil {
		if ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(n); err != nil || !ok {
			return "NodeAffinity", "Predicate NodeAffinity failed"
		}
	}
	if why := a.pressures().refuses(p); why != "" {
		return "Evicted", why
	}
	if os := p.Spec.OS; os != nil && os.Name != corev1.Linux {
		return "PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"
	}
	used := corev1.ResourceList{}
	pods := int64(0)
	a.mu.Lock()
	for _, w := range a.workers {
		if w.uid == p.UID {
			continue
		}
		latest := w.pod()
		if phase := latest.Status.Phase; w.state.Load().Stage >= pod.Cleaning || phase == corev1.PodSucceeded || phase == corev1.PodFailed {
			continue
		}
		pods++
		for name, q := range requests(latest) {
			sum := used[name]
			sum.Add(q)
			used[name] = sum
		}
	}
	a.mu.Unlock()
	free := a.allocatable()
	if max := free[corev1.ResourcePods]; pods+1 > max.Value() {
		return "OutOfpods", fmt.Sprintf("Node didn't have enough resource: pods, requested: 1, used: %d, capacity: %d", pods, max.Value())
	}
	want := requests(p)
	names := make([]string, 0, len(want))
	for name := range want {
		names = append(names, string(name))
	}
	sort.Strings(names)
	for _, name := range names {
		q, u, c := want[corev1.ResourceName(name)], used[corev1.ResourceName(name)], free[corev1.ResourceName(name)]
		if q.IsZero() {
			continue
		}
		if _, known := free[corev1.ResourceName(name)]; !known && strings.Contains(name, "/") {
			continue // somebody else's resource, which the scheduler has counted
		}
		sum := u.DeepCopy()
		sum.Add(q)
		if sum.Cmp(c) > 0 {
			value := q.Value
			usedValue, capacity := u.Value(), c.Value()
			if name == string(corev1.ResourceCPU) {
				value, usedValue, capacity = q.MilliValue, u.MilliValue(), c.MilliValue()
			}
			return "OutOf" + name, fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", name, value(), usedValue, capacity)
		}
	}
	return "", ""
}

// requests of a pod as the scheduler counts them: the greater of what runs
// together and of each init step with the sidecars before it, plus overhead.
func requests(p *corev1.Pod) corev1.ResourceList {
	sum := corev1.ResourceList{}
	add := func(to corev1.ResourceList, r corev1.ResourceList) {
		for name, q := range r {
			s := to[name]
			s.Add(q)
			to[name] = s
		}
	}
	for i := range p.Spec.Containers {
		add(sum, p.Spec.Containers[i].Resources.Requests)
	}
	sidecars, peak := corev1.ResourceList{}, corev1.ResourceList{}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if pod.IsSidecar(c) {
			add(sidecars, c.Resources.Requests)
			add(sum, c.Resources.Requests)
			continue
		}
		step := sidecars.DeepCopy()
		if step == nil {
			step = corev1.ResourceList{}
		}
		add(step, c.Resources.Requests)
		for name, q := range step {
			if m := peak[name]; q.Cmp(m) > 0 {
				peak[name] = q
			}
		}
	}
	for name, q := range peak {
		if s := sum[name]; q.Cmp(s) > 0 {
			sum[name] = q
		}
	}
	if p.Spec.Resources != nil {
		for name, q := range p.Spec.Resources.Requests {
			sum[name] = q
		}
	}
	add(sum, p.Spec.Overhead)
	return sum
}
