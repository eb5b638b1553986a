package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/internal/await"
)

// Init containers one after the other, a sidecar before and beside the rest, and
// a Job's end that does not wait for the sidecar.
func TestInitAndSidecars(t *testing.T) {
	t.Parallel()
	b := cluster(t)
	ns := b.namespace(t)
	b.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 2
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - {name: one, image: "proa/busybox:1", command: [sh, -c, "echo one >> /v/order"], volumeMounts: [{name: v, mountPath: /v}]}
  - name: side
    image: proa/busybox:1
    restartPolicy: Always
    command: [sh, -c, "echo side >> /v/order; trap 'echo side ends; exit 0' TERM; while true; do sleep 0.1; done"]
    startupProbe: {exec: {command: [grep, -q, side, /v/order]}, periodSeconds: 1, timeoutSeconds: 30}
    volumeMounts: [{name: v, mountPath: /v}]
  - {name: two, image: "proa/busybox:1", command: [sh, -c, "echo two >> /v/order"], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: main, image: "proa/busybox:1", command: [sh, -c, "echo main >> /v/order; cat /v/order"], volumeMounts: [{name: v, mountPath: /v}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stuck}
spec:
  restartPolicy: Never
  initContainers: [{name: bad, image: "proa/busybox:1", command: [sh, -c, "exit 4"]}]
  containers: [{name: main, image: "proa/busybox:1", command: [echo, never]}]
`)
	p := b.waitPhase(t, ns, "p", corev1.PodSucceeded)
	if out := b.kubectl(t, ns, "logs", "p", "-c", "main"); out != "one\nside\ntwo\nmain\n" {
		t.Errorf("order: %q", out)
	}
	if len(p.Status.InitContainerStatuses) != 3 {
		t.Errorf("init containers: %v", states(p))
	}
	p = b.waitPhase(t, ns, "stuck", corev1.PodFailed)
	if s := p.Status.InitContainerStatuses[0]; s.State.Terminated == nil || s.State.Terminated.ExitCode != 4 {
		t.Errorf("init container: %v", states(p))
	}
	mustHold(t, b.kubectl(t, ns, "get", "pod", "stuck"), "Init:Error")
}

// What comes after an end: by policy, with growing pauses.
func TestRestarts(t *testing.T) {
	t.Parallel()
	b := cluster(t)
	ns := b.namespace(t)
	for _, p := range []struct{ name, policy, cmd string }{
		{"never-ok", "Never", "exit 0"}, {"never-bad", "Never", "echo last words > /dev/termination-log; exit 3"},
		{"onfailure-ok", "OnFailure", "exit 0"}, {"onfailure-bad", "OnFailure", "exit 3"}, {"always", "Always", "exit 0"}, {"gone", "Never", "kill -KILL 1; sleep 100"},
	} {
		b.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  restartPolicy: %s
  containers: [{name: c, image: "proa/busybox:1", command: [sh, -c, %q]}]`, p.name, p.policy, p.cmd))
	}
	b.waitPhase(t, ns, "never-ok", corev1.PodSucceeded)
	b.waitPhase(t, ns, "onfailure-ok", corev1.PodSucceeded)
	bad := b.waitPhase(t, ns, "never-bad", corev1.PodFailed)
	end := bad.Status.ContainerStatuses[0].State.Terminated
	if end == nil || end.ExitCode != 3 || end.Reason != "Error" || end.Message != "last words\n" || end.StartedAt.IsZero() || end.FinishedAt.IsZero() {
		t.Errorf("end: %+v", end)
	}
	for _, name := range []string{"onfailure-bad", "always"} {
		p := b.waitPod(t, ns, name, "CrashLoopBackOff", func(p *corev1.Pod) bool {
			s := p.Status.ContainerStatuses
			return len(s) == 1 && s[0].RestartCount >= 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CrashLoopBackOff"
		})
		s := p.Status.ContainerStatuses[0]
		if s.LastTerminationState.Terminated == nil || !strings.Contains(s.State.Waiting.Message, "back-off 10s restarting failed container=c pod="+name+"_"+ns) {
			t.Errorf("%s: %+v", name, s)
		}
		if p.Status.Phase != corev1.PodRunning {
			t.Errorf("%s is %s", name, p.Status.Phase)
		}
	}
	mustHold(t, b.kubectl(t, ns, "get", "events"), "BackOff", "Back-off restarting failed container c in pod")
}

func TestProbes(t *testing.T) {
	t.Parallel()
	b := cluster(t)
	ns := b.namespace(t)
	b.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: exec}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: proa/busybox:1
    command: [sh, -c, "touch /alive; sleep 1000"]
    readinessProbe: {exec: {command: [test, -e, /ready]}, periodSeconds: 1, timeoutSeconds: 30}
    livenessProbe: {exec: {command: [test, -e, /alive]}, periodSeconds: 1, timeoutSeconds: 30, failureThreshold: 1, initialDelaySeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: http, labels: {app: http}}
spec:
  containers:
  - name: c
    image: proa/web:v1
    ports: [{name: web, containerPort: 8080}]
    startupProbe: {httpGet: {path: /healthz, port: web}, periodSeconds: 1}
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: web}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: nothttp}
spec:
  containers:
  - name: c
    image: proa/web:v1
    readinessProbe: {httpGet: {path: /nowhere-that-listens, port: 9}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: "proa/busybox:1", command: [sleep, "1000"], startupProbe: {exec: {command: ["false"]}, periodSeconds: 1, timeoutSeconds: 30, failureThreshold: 2}}
`)
	b.waitReady(t, ns, "http")
	p := b.waitPod(t, ns, "exec", "started", started)
	if ready(p) {
		t.Error("exec is ready without its file")
	}
	b.exec(t, ns, "exec", "touch", "/ready")
	b.waitReady(t, ns, "exec")
	b.exec(t, ns, "exec", "rm", "/ready")
	b.waitPod(t, ns, "exec", "not Ready", func(p *corev1.Pod) bool { return !ready(p) })
	b.exec(t, ns, "exec", "rm", "/alive")
	b.waitPod(t, ns, "exec", "a restart", func(p *corev1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount > 0 })
	b.waitPod(t, ns, "slow", "a restart", func(p *corev1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount > 0 })
	if p := b.pod(t, ns, "nothttp"); ready(p) {
		t.Error("nothttp is ready")
	}
	await.Nil(t, 20*time.Second, "events of probes", func() error {
		out := b.kubectl(t, ns, "get", "events")
		for _, want := range []string{"Liveness probe failed", "Readiness probe failed", "Startup probe failed", "connection refused", "will be restarted"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("%q is missing in:\n%s", want, out)
			}
		}
		return nil
	})
}

// Hooks, and an end that has time.
func TestEnd(t *testing.T) {
	t.Parallel()
	b := cluster(t)
	ns := b.namespace(t)
	dir := t.TempDir()
	b.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 20
  volumes: [{name: h, hostPath: {path: %s, type: Directory}}]
  containers:
  - name: c
    image: proa/busybox:1
    command: [sh, -c, "trap 'echo term >> /h/log; sleep 1; echo done >> /h/log; exit 0' TERM; while true; do sleep 0.1; done"]
    lifecycle:
      postStart: {exec: {command: [sh, -c, "echo poststart >> /h/log"]}}
      preStop: {exec: {command: [sh, -c, "echo prestop >> /h/log"]}}
    volumeMounts: [{name: h, mountPath: /h}]
---
apiVersion: v1
kind: Pod
metadata: {name: deaf}
spec:
  terminationGracePeriodSeconds: 2
  containers: [{name: c, image: "proa/busybox:1", command: [sleep, "1000"]}]
`, dir))
	b.waitReady(t, ns, "p")
	b.waitReady(t, ns, "deaf")
	r := b.tryKubectl(ns, "delete", "pod", "p")
	if r.code != 0 {
		t.Error(r)
	}
	if data, _ := os.ReadFile(dir + "/log"); string(data) != "poststart\nprestop\nterm\ndone\n" {
		t.Errorf("the container wrote %q", data)
	}
	if r.took > 15*time.Second {
		t.Errorf("deleting took %s", r.took)
	}
	r = b.tryKubectl(ns, "delete", "pod", "deaf")
	if r.code != 0 || r.took < 1500*time.Millisecond || r.took > 8*time.Second {
		t.Errorf("2 s of grace: %s", r)
	}
}

// All of environment and files from the API, and what changes afterwards.
func TestEnvironmentAndVolumes(t *testing.T) {
	t.Parallel()
	b := cluster(t)
	ns := b.namespace(t)
	host := t.TempDir()
	os.WriteFile(host+"/f", []byte("host\n"), 0o644)
	b.apply(t, ns, `
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data: {KEY: value, file: "one\n"}
binaryData: {bin: AAEC}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {PASSWORD: hush, file: "secret\n"}
---
apiVersion: v1
kind: Service
metadata: {name: early}
spec: {ports: [{port: 81, name: web}], selector: {a: b}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {color: blue}, annotations: {note: "a \"b\""}}
spec:
  terminationGracePeriodSeconds: 1
  volumes:
  - {name: disk, emptyDir: {}}
  - {name: mem, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: host, hostPath: {path: `+host+`}}
  - {name: config, configMap: {name: c, defaultMode: 0400}}
  - {name: picked, configMap: {name: c, items: [{key: file, path: deep/er, mode: 0644}]}}
  - {name: secret, secret: {secretName: s}}
  - {name: gone, configMap: {name: not-there, optional: true}}
  - name: down
    downwardAPI:
      items:
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: annotations, fieldRef: {fieldPath: metadata.annotations}}
      - {path: cpu, resourceFieldRef: {containerName: c, resource: limits.cpu, divisor: 1m}}
  - name: all
    projected:
      sources:
      - configMap: {name: c, items: [{key: KEY, path: key}]}
      - secret: {name: s, items: [{key: PASSWORD, path: password}]}
      - downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}
      - serviceAccountToken: {path: token, audience: vault, expirationSeconds: 600}
  containers:
  - name: c
    image: proa/busybox:1
    command: [sleep, "1000"]
    resources: {limits: {cpu: 250m, memory: 64Mi}}
    envFrom: [{configMapRef: {name: c}}, {prefix: S_, secretRef: {name: s}}]
    env:
    - {name: PLAIN, value: "x"}
    - {name: BOTH, value: "$(PLAIN)-$(KEY)-$$(PLAIN)-$(NOPE)"}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: COLOR, valueFrom: {fieldRef: {fieldPath: "metadata.labels['color']"}}}
    - {name: MEM, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: ONE, valueFrom: {configMapKeyRef: {name: c, key: KEY}}}
    - {name: NONE, valueFrom: {secretKeyRef: {name: s, key: nothing, optional: true}}}
    volumeMounts:
    - {name: disk, mountPath: /disk}
    - {name: mem, mountPath: /mem}
    - {name: host, mountPath: /host, readOnly: true}
    - {name: config, mountPath: /config}
    - {name: picked, mountPath: /picked}
    - {name: secret, mountPath: /secret}
    - {name: gone, mountPath: /gone}
    - {name: down, mountPath: /down}
    - {name: all, mountPath: /all}
    - {name: config, mountPath: /etc/one-file, subPath: file}
    - {name: disk, mountPath: /sub, subPathExpr: "of-$(POD)"}
`)
	p := b.waitReady(t, ns, "p")
	sh := func(script string) string { t.Helper(); return b.exec(t, ns, "p", "sh", "-c", script) }
	env := sh("env")
	mustHold(t, env, "KEY=value", "S_PASSWORD=hush", "BOTH=x-value-$(PLAIN)-$(NOPE)", "POD=p\n", "IP="+p.Status.PodIP+"\n", "NODE="+p.Spec.NodeName, "COLOR=blue", "MEM=64\n", "ONE=value",
		"HOSTNAME=p\n", "FROM_IMAGE=yes", "EARLY_SERVICE_PORT=81", "EARLY_SERVICE_PORT_WEB=81", "KUBERNETES_SERVICE_HOST=")
	if strings.Contains(env, "NONE=") {
		t.Errorf("an optional key that is not there is set:\n%s", env)
	}
	for script, want := range map[string]string{
		"cat /config/file /picked/deep/er /secret/file":           "one\none\nsecret\n",
		"stat -L -c %a /config/file /picked/deep/er /secret/file": "400\n644\n644\n",
		"od -An -tx1 /config/bin":                                 " 00 01 02\n",
		"cat /host/f; touch /host/g 2>&1 | grep -o Read-only":     "host\nRead-only\n",
		"ls /gone":                                                                  "",
		"cat /down/labels /down/cpu":                                                "color=\"blue\"250",
		"grep ^note /down/annotations":                                              `note="a \"b\""` + "\n",
		"cat /all/key /all/password /all/name":                                      "valuehushp",
		"cat /etc/one-file; ls /disk":                                               "one\nof-p\n",
		"touch /config/new 2>&1 | grep -o Read-only":                                "Read-only\n",
		"grep ' /mem ' /proc/mounts | cut -d' ' -f1":                                "tmpfs\n",
		"grep ' /secret ' /proc/mounts | cut -d' ' -f1":                             "tmpfs\n",
		"dd if=/dev/zero of=/mem/x bs=1M count=3 2>&1 | grep -o 'No space'":         "No space\n",
		"cat /etc/hostname; grep -c \"$IP\" /etc/hosts":                             "p\n1\n",
		"ls /var/run/secrets/kubernetes.io/serviceaccount":                          "ca.crt\nnamespace\ntoken\n",
		"cut -d. -f2 /all/token | base64 -d 2>/dev/null | grep -o '\"vault\"'":      "\"vault\"\n",
		"cat /var/run/secrets/kubernetes.io/serviceaccount/namespace":               ns,
		"head -c 27 /var/run/secrets/kubernetes.io/serviceaccount/ca.crt | head -1": "-----BEGIN CERTIFICATE-----",
	} {
		if got := sh(script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	// Live update of what was mounted whole; a sub path keeps what it had.
	b.kubectl(t, ns, "patch", "configmap", "c", "-p", `{"data":{"file":"two\n"}}`)
	b.kubectl(t, ns, "label", "pod", "p", "color=red", "--overwrite")
	await.Nil(t, 90*time.Second, "new content in volumes", func() error {
		if got := sh("cat /config/file /picked/deep/er /etc/one-file; cat /down/labels"); got != "two\ntwo\none\ncolor=\"red\"" {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	// A required ConfigMap holds the pod, and lets it go when it comes.
	b.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: waits}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, configMap: {name: later}}]
  containers: [{name: c, image: "proa/busybox:1", command: [sleep, "1000"], volumeMounts: [{name: v, mountPath: /v}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: nokey}
spec:
  containers: [{name: c, image: "proa/busybox:1", env: [{name: A, valueFrom: {configMapKeyRef: {name: c, key: nothing}}}]}]
`)
	await.Nil(t, 20*time.Second, "word of the missing ConfigMap", func() error {
		out := b.kubectl(t, ns, "get", "events", "--field-selector=involvedObject.name=waits")
		if !strings.Contains(out, "FailedMount") || !strings.Contains(out, `configmap "later" not found`) {
			return fmt.Errorf("events:\n%s", out)
		}
		return nil
	})
	b.waitPod(t, ns, "nokey", "CreateContainerConfigError", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses
		return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CreateContainerConfigError" && strings.Contains(s[0].State.Waiting.Message, "couldn't find key nothing in ConfigMap "+ns+"/c")
	})
	b.kubectl(t, ns, "create", "configmap", "later", "--from-literal=a=b")
	b.waitReady(t, ns, "waits")
}

// What a container may and may not.
func TestSecurity(t *testing.T) {
	t.Parallel()
	b := cluster(t)
	ns := b.namespace(t)
	pod := func(name, podLevel, level string) string {
		return fmt.Sprintf(`
---
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  %s
  volumes: [{name: v, emptyDir: {}}]
  containers: [{name: c, image: "proa/busybox:1", command: [sleep, "1000"], securityContext: {%s}, volumeMounts: [{name: v, mountPath: /v}]}]`, name, podLevel, level)
	}
	b.apply(t, ns, pod("plain", "", "")+
		pod("user", "securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, supplementalGroups: [4000]}", "")+
		pod("readonly", "", "readOnlyRootFilesystem: true")+
		pod("caps", "", "capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}")+
		pod("seccomp", "securityContext: {seccompProfile: {type: RuntimeDefault}}", "")+
		pod("unconfined", "securityContext: {seccompProfile: {type: Unconfined}}", "")+
		pod("nonew", "", "allowPrivilegeEscalation: false")+
		pod("privileged", "", "privileged: true")+
		pod("nonroot", "", "runAsNonRoot: true")+
		pod("sysctl", "securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: '7'}]}", ""))
	for _, name := range []string{"plain", "user", "readonly", "caps", "seccomp", "unconfined", "nonew", "privileged", "sysctl"} {
		b.waitReady(t, ns, name)
	}
	for _, c := range []struct{ pod, script, want string }{
		{"plain", "id -u; touch /x && echo wrote", "0\nwrote\n"},
		{"plain", "grep CapEff /proc/self/status | cut -f2", "00000000a80425fb\n"},
		{"plain", "cat /proc/kcore 2>/dev/null | head -c 4; cat /proc/keys 2>/dev/null | wc -l; echo x > /proc/sysrq-trigger 2>&1 || echo denied", "0\ndenied\n"},
		{"user", "id -u; id -g; id -G | tr ' ' '\\n' | sort | tr '\\n' ' '; stat -c '%g %a' /v | cut -d' ' -f1; touch /v/f && stat -c %u:%g /v/f", "1000\n3000\n2000 3000 4000 2000\n1000:2000\n"},
		{"readonly", "touch /x 2>&1 | grep -o Read-only; touch /v/x && echo wrote", "Read-only\nwrote\n"},
		{"caps", "grep CapEff /proc/self/status | cut -f2; chown 1 /tmp 2>&1 | grep -o 'not permitted'", "0000000000000400\nnot permitted\n"},
		{"seccomp", "grep Seccomp: /proc/self/status | cut -f2; unshare -U true 2>&1 | grep -o 'not permitted'", "2\nnot permitted\n"},
		{"unconfined", "grep Seccomp: /proc/self/status | cut -f2; unshare -U echo allowed", "0\nallowed\n"},
		{"nonew", "grep NoNewPrivs /proc/self/status | cut -f2", "1\n"},
		{"privileged", "test -e /dev/kmsg && echo devices; grep -c ' /sys .*rw' /proc/mounts", "devices\n1\n"},
		{"sysctl", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "7\n"},
	} {
		if got := b.exec(t, ns, c.pod, "sh", "-c", c.script); got != c.want {
			t.Errorf("%s: %s: %q, want %q", c.pod, c.script, got, c.want)
		}
	}
	b.waitPod(t, ns, "nonroot", "refused", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses
		return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CreateContainerConfigError" && strings.Contains(s[0].State.Waiting.Message, "container has runAsNonRoot and image will run as root")
	})
}

// Limits arrive in the kernel; who takes more memory is killed and it is said.
func TestResources(t *testing.T) {
	t.Parallel()
	b := cluster(t)
	ns := b.namespace(t)
	b.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: limited}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "proa/busybox:1", command: [sleep, "1000"], resources: {requests: {cpu: 250m}, limits: {cpu: 500m, memory: 32Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers: [{name: c, image: "proa/busybox:1", command: [sh, -c, "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}"], resources: {limits: {memory: 20Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: huge}
spec:
  containers: [{name: c, image: "proa/busybox:1", resources: {requests: {cpu: "1000"}}}]
`)
	p := b.waitReady(t, ns, "limited")
	if p.Status.QOSClass != corev1.PodQOSBurstable {
		t.Errorf("QoS class %s", p.Status.QOSClass)
	}
	pid := ""
	for n, cmd := range pids(b) {
		if cg, _ := os.ReadFile("/proc/" + n + "/cgroup"); cmd == "sleep 1000" && strings.Contains(string(cg), string(p.UID)) {
			pid = n
		}
	}
	if pid == "" {
		t.Fatal("the container's process is not found by its control group")
	}
	cg := groups(t, pid)
	for _, c := range []struct{ v1, v1file, v2file, v1want, v2want string }{
		{"memory", "memory.limit_in_bytes", "memory.max", "33554432", "33554432"},
		{"cpu", "cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000"},
		{"cpu", "cpu.shares", "cpu.weight", "256", "10"},
	} {
		path, want := cg[c.v1], c.v1want
		file := c.v1file
		if path == "" {
			path, file, want = cg[""], c.v2file, c.v2want
		}
		data, err := os.ReadFile(path + "/" + file)
		if got := strings.TrimSpace(string(data)); got != want {
			t.Errorf("%s/%s: %q, want %q (%v)", path, file, got, want, err)
		}
	}
	p = b.waitPhase(t, ns, "greedy", corev1.PodFailed)
	if end := p.Status.ContainerStatuses[0].State.Terminated; end == nil || end.Reason != "OOMKilled" || end.ExitCode != 137 {
		t.Errorf("greedy: %v", states(p))
	}
	await.Nil(t, 10*time.Second, "word of the scheduler", func() error {
		out := b.kubectl(t, ns, "describe", "pod", "huge")
		if !strings.Contains(out, "FailedScheduling") || !strings.Contains(out, "0/1 nodes are available: 1 Insufficient cpu") {
			return fmt.Errorf("%s", out[strings.LastIndex(out, "Events:"):])
		}
		return nil
	})
}

// groups maps controllers ("" for v2) to the directories of a process's groups.
func groups(t testing.TB, pid string) map[string]string {
	data, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for c := range strings.SplitSeq(f[1], ",") {
			for _, dir := range []string{"/sys/fs/cgroup/" + f[1], "/sys/fs/cgroup/" + c, "/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
				if _, err := os.Stat(dir + f[2]); err == nil {
					out[c] = dir + f[2]
					break
				}
			}
		}
	}
	return out
}

// Namespaces that are shared when asked for, and a container that comes later.
func TestSharing(t *testing.T) {
	t.Parallel()
	b := cluster(t)
	ns := b.namespace(t)
	b.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: host}
spec: {terminationGracePeriodSeconds: 1, hostNetwork: true, containers: [{name: c, image: "proa/busybox:1", command: [sleep, "1000"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: pids}
spec:
  terminationGracePeriodSeconds: 1
  shareProcessNamespace: true
  containers:
  - {name: a, image: "proa/busybox:1", command: [sleep, "1111"]}
  - {name: b, image: "proa/busybox:1", command: [sleep, "2222"]}
---
apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  terminationGracePeriodSeconds: 1
  hostAliases: [{ip: 192.0.2.7, hostnames: [seven]}]
  hostname: renamed
  subdomain: sub
  containers:
  - {name: a, image: "proa/busybox:1", command: [sleep, "1003"]}
  - {name: b, image: "proa/busybox:1", command: [sleep, "1000"]}
`)
	h := b.waitReady(t, ns, "host")
	if h.Status.PodIP != h.Status.HostIP {
		t.Errorf("hostNetwork pod has address %s, host %s", h.Status.PodIP, h.Status.HostIP)
	}
	name, _ := os.Hostname()
	if out := b.exec(t, ns, "host", "hostname"); strings.TrimSpace(out) != name {
		t.Errorf("hostname in the host's network: %q, want %q", out, name)
	}
	b.waitReady(t, ns, "pids")
	mustHold(t, b.kubectl(t, ns, "exec", "pids", "-c", "a", "--", "ps"), "sleep 1111", "sleep 2222")
	b.waitReady(t, ns, "own")
	if out := b.kubectl(t, ns, "exec", "own", "-c", "a", "--", "ps"); strings.Contains(out, "1111") {
		t.Errorf("processes of others: %s", out)
	}
	mustHold(t, b.kubectl(t, ns, "exec", "own", "-c", "b", "--", "sh", "-c", "hostname; hostname -f; cat /etc/hosts"), "renamed\nrenamed.sub."+ns+".svc.cluster.local\n", "192.0.2.7\tseven")

	r := b.tryKubectl(ns, "debug", "own", "--image=proa/busybox:1", "--target=a", "--profile=general", "-c", "look", "--", "sh", "-c", "ps; echo looked; sleep 1000")
	if r.code != 0 {
		t.Fatal(r)
	}
	await.Nil(t, 20*time.Second, "the ephemeral container", func() error {
		p := b.pod(t, ns, "own")
		if s := p.Status.EphemeralContainerStatuses; len(s) != 1 || s[0].State.Running == nil {
			return fmt.Errorf("%+v", s)
		}
		if out := b.tryKubectl(ns, "logs", "own", "-c", "look"); !strings.Contains(out.out, "sleep 1003") || !strings.Contains(out.out, "looked") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}

// Nodes: cordon, taint, drain; DaemonSets stay, budgets are asked.
func TestNodeDoors(t *testing.T) {
	b := newBox(t, "doors")
	b.up(t)
	b.load(t, "busybox.tar")
	node := strings.TrimSpace(b.kubectl(t, "", "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"))
	b.apply(t, "", `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: ds}
spec:
  selector: {matchLabels: {app: ds}}
  template:
    metadata: {labels: {app: ds}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: "proa/busybox:1", command: [sleep, "1000"]}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  replicas: 2
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: "proa/busybox:1", command: [sleep, "1000"]}]}
`)
	b.kubectl(t, "", "rollout", "status", "deployment/d", "--timeout=30s")
	b.kubectl(t, "", "rollout", "status", "daemonset/ds", "--timeout=30s")
	mustHold(t, b.kubectl(t, "", "cordon", node), "cordoned")
	mustHold(t, b.kubectl(t, "", "get", "nodes"), "SchedulingDisabled")
	b.kubectl(t, "", "scale", "deployment/d", "--replicas=3")
	await.Nil(t, 20*time.Second, "a pod that finds no node", func() error {
		if out := b.kubectl(t, "", "get", "events"); !strings.Contains(out, "1 node(s) were unschedulable") {
			return fmt.Errorf("events:\n%s", out)
		}
		return nil
	})
	if r := b.tryKubectl("", "drain", node, "--timeout=20s"); r.code == 0 || !strings.Contains(r.err, "DaemonSet-managed Pods") {
		t.Errorf("drain with a DaemonSet: %s", r)
	}
	r := b.tryKubectl("", "drain", node, "--ignore-daemonsets", "--timeout=60s")
	if r.code != 0 || !strings.Contains(r.out, "drained") {
		t.Errorf("drain: %s", r)
	}
	await.Nil(t, 20*time.Second, "only the DaemonSet's pod on the node", func() error {
		list, err := b.api(t).CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
		if err != nil {
			return err
		}
		if len(list.Items) != 1 || list.Items[0].Labels["app"] != "ds" {
			return fmt.Errorf("%d pods", len(list.Items))
		}
		return nil
	})
	b.kubectl(t, "", "uncordon", node)
	b.kubectl(t, "", "rollout", "status", "deployment/d", "--timeout=30s")
	b.kubectl(t, "", "taint", "nodes", node, "key=value:NoExecute")
	await.Nil(t, 20*time.Second, "eviction by the taint", func() error {
		if n := b.kubectl(t, "", "get", "pods", "-l", "app=d", "-o", "jsonpath={.items[*].spec.nodeName}"); strings.TrimSpace(n) != "" {
			return fmt.Errorf("on nodes: %q", n)
		}
		return nil
	})
	b.kubectl(t, "", "taint", "nodes", node, "key-")
	b.kubectl(t, "", "rollout", "status", "deployment/d", "--timeout=30s")

	// "If you kill one it makes one; if a fourth appears by accident it removes one."
	await.Nil(t, 20*time.Second, "three pods", func() error { return b.count(t, "app=d", 3) })
	rs := strings.TrimSpace(b.kubectl(t, "", "get", "rs", "-l", "app=d", "-o", "jsonpath={.items[0].spec.template.metadata.labels}"))
	var labels map[string]string
	json.Unmarshal([]byte(rs), &labels)
	victim := strings.Fields(b.kubectl(t, "", "get", "pods", "-l", "app=d", "-o", "name"))[0]
	b.kubectl(t, "", "delete", victim)
	await.Nil(t, 20*time.Second, "a new third pod", func() error { return b.count(t, "app=d", 3) })
	b.kubectl(t, "", "run", "fourth", "--image=proa/busybox:1", "--labels=app=d,pod-template-hash="+labels["pod-template-hash"], "--", "sleep", "1000")
	await.Nil(t, 20*time.Second, "three pods again", func() error { return b.count(t, "app=d", 3) })
}

// count asks for a number of pods that are not on their way out.
func (b *box) count(t testing.TB, selector string, want int) error {
	list, err := b.api(t).CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return err
	}
	n := 0
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil && ready(&p) {
			n++
		}
	}
	if n != want || len(list.Items) != want {
		return fmt.Errorf("%s of %d pods ready, want %d", strconv.Itoa(n), len(list.Items), want)
	}
	return nil
}
