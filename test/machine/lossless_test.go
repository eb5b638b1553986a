package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/internal/await"
	"proa.dev/test/machine/load"
)

const lossless = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 15
      containers:
      - name: web
        image: proa/web:v1
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`

const loader = `
apiVersion: v1
kind: Pod
metadata: {name: loader}
spec:
  restartPolicy: Never
  containers:
  - {name: load, image: "proa/web:v1", args: [load, -url, "http://web/", -requests, "%d", -workers, "4", -rate, "%d"]}
`

// Rolling updates, rollbacks, changes of scale, evictions by a drain and deletions
// under constant load lose no request: 100,000 and more, from the host and from a
// pod (which asks DNS each time), to the service's address and the node's port, on
// new connections and on kept ones. No container has a preStop hook.
func TestLossless(t *testing.T) {
	b := newBox(t, "lossless")
	b.up(t)
	b.load(t, "web-v1.tar", "web-v2.tar")
	const seconds = 60
	pod := load.Config{Requests: 300 * seconds, Rate: 300}
	b.apply(t, "", lossless)
	b.kubectl(t, "", "rollout", "status", "deployment/web", "--timeout=60s")
	b.apply(t, "", fmt.Sprintf(loader, pod.Requests, pod.Rate))
	svc, err := b.api(t).CoreV1().Services("default").Get(context.Background(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node := b.kubectl(t, "", "get", "nodes", "-o", `jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}`)
	name := b.kubectl(t, "", "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
	cluster, port := "http://"+svc.Spec.ClusterIP+"/", fmt.Sprintf("http://%s:%d/", node, svc.Spec.Ports[0].NodePort)
	b.waitPod(t, "default", "loader", "running", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })

	packets := sniff(t)
	ctx, stop := context.WithTimeout(context.Background(), 3*time.Minute)
	defer stop()
	var wg sync.WaitGroup
	results := map[string]load.Result{}
	var mu sync.Mutex
	for what, c := range map[string]load.Config{
		"host, service, new connections":   {URL: cluster, Requests: 700 * seconds, Rate: 700, Workers: 8},
		"host, node port, new connections": {URL: port, Requests: 400 * seconds, Rate: 400, Workers: 6},
		"host, service, kept connections":  {URL: cluster, Requests: 500 * seconds, Rate: 500, Workers: 6, Keep: true},
	} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := load.Run(ctx, c)
			mu.Lock()
			results[what] = r
			mu.Unlock()
		}()
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()

	var changes []string
	whole := 0
	rollout := func() string { return b.kubectl(t, "", "rollout", "status", "deployment/web", "--timeout=60s") }
	steps := []struct {
		name string
		do   func()
	}{
		{"update to v2", func() { b.kubectl(t, "", "set", "image", "deployment/web", "web=proa/web:v2"); rollout() }},
		{"rollback to v1", func() { b.kubectl(t, "", "rollout", "undo", "deployment/web"); rollout() }},
		{"scale 4 to 6", func() { b.kubectl(t, "", "scale", "deployment/web", "--replicas=6"); rollout() }},
		{"scale 6 to 2", func() { b.kubectl(t, "", "scale", "deployment/web", "--replicas=2"); b.waitCount(t, 2) }},
		{"scale 2 to 4", func() { b.kubectl(t, "", "scale", "deployment/web", "--replicas=4"); rollout() }},
		{"drain of two pods", func() {
			pods := strings.Fields(b.kubectl(t, "", "get", "pods", "-l", "app=web", "-o", "name"))
			b.kubectl(t, "", "label", pods[0], pods[1], "drain=me")
			b.kubectl(t, "", "drain", name, "--pod-selector=drain=me", "--timeout=60s")
			b.kubectl(t, "", "uncordon", name)
			rollout()
		}},
		{"deletion of one pod", func() {
			pods := strings.Fields(b.kubectl(t, "", "get", "pods", "-l", "app=web", "-o", "name"))
			b.kubectl(t, "", "delete", pods[0])
			rollout()
		}},
		{"restart", func() { b.kubectl(t, "", "rollout", "restart", "deployment/web"); rollout() }},
	}
	over := func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	for !over() {
		for i, s := range steps {
			began := time.Now()
			s.do()
			if over() {
				break
			}
			changes = append(changes, fmt.Sprintf("%s (%s)", s.name, time.Since(began).Round(10*time.Millisecond)))
			if i == len(steps)-1 {
				whole++
			}
		}
	}
	<-done
	p := b.waitPod(t, "default", "loader", "ended", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
	out := b.kubectl(t, "", "logs", "loader")
	var r load.Result
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("the loader in a pod (%s): %v: %s", p.Status.Phase, err, out)
	}
	results["pod, service by name, new connections"] = r

	total, failed := 0, 0
	var when []time.Time // of failures
	var names []string
	for what := range results {
		names = append(names, what)
	}
	sort.Strings(names)
	for _, what := range names {
		r := results[what]
		total, failed = total+r.Requests, failed+r.Failed
		when = append(when, r.FailedAt...)
		t.Logf("%-38s %6d requests, %d failed, %6d connections, %d pods, v1 %d, v2 %d, %.0f s, longest %.0f ms", what, r.Requests, r.Failed, r.Conns, len(r.Pods), r.Answers["v1"], r.Answers["v2"], r.Seconds, r.LongestMS)
		for _, f := range r.Failures {
			t.Logf("    %s", f)
		}
		if r.Answers["v2"] == 0 || r.Answers["v1"] == 0 || len(r.Pods) < 8 {
			t.Errorf("%s: answers by %v of %d pods: the changes did not happen under this load", what, r.Answers, len(r.Pods))
		}
	}
	t.Logf("%d requests in all, %d failed, during %d whole rounds: %s", total, failed, whole, strings.Join(changes, ", "))
	if failed > 0 {
		t.Errorf("%d of %d requests failed", failed, total)
		packets.report(t, b, when)
	}
	if total < 100_000 {
		t.Errorf("%d requests; the test wants 100,000 at least", total)
	}
	if whole < 1 {
		t.Errorf("no whole round of changes fitted into the load: %s", strings.Join(changes, ", "))
	}
}

func (b *box) waitCount(t testing.TB, n int) {
	t.Helper()
	await.Nil(t, 60*time.Second, fmt.Sprint(n, " pods"), func() error { return b.count(t, "app=web", n) })
}
