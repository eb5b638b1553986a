package conformance

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func init() {
	environment()
	commands()
	identities()
	for words, r := range map[string]ran{
		"[sig-node] Kubelet when scheduling a busybox command in a pod should print the output to logs [NodeConformance]": {pod: sh("echo 'Hello World'; sleep 1", ""), log: "Hello World"},
		"[sig-node] Kubelet when scheduling a busybox command that always fails in a pod should have an terminated reason [NodeConformance]": {pod: "containers: [{command: ['false']}]\n", fails: true,
			then: func(t *testing.T, _ *cluster, p *corev1.Pod) {
				if s := p.Status.ContainerStatuses[0].State.Terminated; s == nil || s.Reason != "Error" || s.ExitCode != 1 {
					t.Errorf("the state is %+v", p.Status.ContainerStatuses[0].State)
				}
			}},
		"[sig-node] Kubelet when scheduling a read only busybox container should not write to root filesystem [LinuxOnly] [NodeConformance]": {
			pod: sh("echo test > /file; ls /file", "securityContext: {readOnlyRootFilesystem: true}"), fails: true, log: "(?i).*read-only file system.*"},
		"[sig-node] Kubelet when scheduling an agnhost Pod with hostAliases should write entries to /etc/hosts [NodeConformance]": {
			pod: "hostAliases: [{ip: 123.45.67.89, hostnames: [foo, bar]}]\n" + sh("cat /etc/hosts", ""), log: `.*123\.45\.67\.89\sfoo\sbar.*`},
		"[sig-node] Sysctls [LinuxOnly] [NodeConformance] should support sysctls [Environment:NotInUserNS]": {
			pod: "securityContext: {sysctls: [{name: kernel.shm_rmid_forced, value: '1'}]}\n" + sh("cat /proc/sys/kernel/shm_rmid_forced", ""), log: "1"},
		"[sig-auth] ServiceAccounts should mount projected service account token": {
			pod: sh("cut -d. -f2 /v/token | tr -- -_ +/ | base64 -d 2>/dev/null; true", mounted) + "volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: token, audience: conformance.test, expirationSeconds: 3600}}]}}]\n",
			log: `.*"conformance\.test".*system:serviceaccount:[^:]*:default.*`},
	} {
		live(words, r.do)
	}
	live("[sig-node] Kubelet when scheduling a busybox command that always fails in a pod should be possible to delete [NodeConformance]", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		p := spec(t, "restartPolicy: Always\ncontainers: [{command: ['false']}]\n")
		c.pod(t, ns, p)
		c.until(t, ns, "p", "the container has failed", func(p *corev1.Pod) bool {
			return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount > 0
		})
		ok(t, c.CoreV1().Pods(ns).Delete(t.Context(), "p", metav1.DeleteOptions{}))
		gone(t, "the pod", func() error { _, err := c.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{}); return err })
	})
	live("[sig-auth] ServiceAccounts should mount an API token into pods", func(t *testing.T, c *cluster) {
		const at = "/var/run/secrets/kubernetes.io/serviceaccount/"
		ran{pod: sh("cat "+at+"namespace; echo; grep -c BEGIN "+at+"ca.crt; cut -d. -f2 "+at+"token | tr -- -_ +/ | base64 -d 2>/dev/null; true", ""),
			then: func(t *testing.T, c *cluster, p *corev1.Pod) {
				log, err := c.log(t.Context(), p.Namespace, p.Name, "c0")
				ok(t, err)
				if !regexp.MustCompile(`^(?s:` + p.Namespace + `\n1\n.*"sub":"system:serviceaccount:` + p.Namespace + `:default".*)$`).MatchString(log) {
					t.Errorf("the pod sees %q", log)
				}
			}}.do(t, c)
	})
	live("[sig-node] KubeletManagedEtcHosts should test kubelet managed /etc/hosts file [NodeConformance]", func(t *testing.T, c *cluster) {
		const managed = "# Kubernetes-managed hosts file.*"
		ran{pod: sh("cat /etc/hosts", ""), log: managed}.do(t, c)
		ran{objects: configObject, pod: sh("cat /etc/hosts", "volumeMounts: [{name: v, mountPath: /etc/hosts, subPath: data-1}]") + "volumes: [{name: v, configMap: {name: data}}]\n", log: "value-1"}.do(t, c)
		ran{pod: "hostNetwork: true\n" + sh("grep -c '# Kubernetes-managed hosts file.$' /etc/hosts; true", ""), log: "0"}.do(t, c)
	})
	initContainers()
	messages()
}

// environment of containers. What a shell does not hand on is printed by env alone.
func environment() {
	env := "containers: [{command: [env], %s}]\n"
	has := func(lines ...string) func(t *testing.T, c *cluster, p *corev1.Pod) {
		return func(t *testing.T, c *cluster, p *corev1.Pod) {
			log, err := c.log(t.Context(), p.Namespace, p.Name, "c0")
			ok(t, err)
			n, err := c.CoreV1().Nodes().Get(t.Context(), p.Spec.NodeName, metav1.GetOptions{})
			ok(t, err)
			cpu, memory := n.Status.Allocatable[corev1.ResourceCPU], n.Status.Allocatable[corev1.ResourceMemory]
			for _, l := range lines {
				l = strings.NewReplacer("NAMESPACE", p.Namespace, "UID", string(p.UID), "PODIP", p.Status.PodIP, "HOSTIP", p.Status.HostIP,
					"CPU", fmt.Sprint(cpu.Value()), "MEMORY", fmt.Sprint(memory.Value())).Replace(l)
				if !strings.Contains("\n"+log, "\n"+l+"\n") {
					t.Errorf("%q is not in the environment:\n%s", l, log)
				}
			}
		}
	}
	for _, s := range []struct{ kind, object, ref, from string }{
		{"ConfigMap", configObject, "configMapKeyRef", "configMapRef"}, {"Secrets", secretObject, "secretKeyRef", "secretRef"},
	} {
		one, various := "should be consumable via environment variable [NodeConformance]", "should be consumable as environment variable names with various prefixes"
		if s.kind == "Secrets" {
			one, various = "should be consumable from pods in env vars [NodeConformance]", "should be consumable as environment variable names variable names with various prefixes"
		}
		live("[sig-node] "+s.kind+" "+one, ran{objects: s.object, pod: fmt.Sprintf(env, "env: [{name: CONFIG_DATA_1, valueFrom: {"+s.ref+": {name: data, key: data-1}}}]"), then: has("CONFIG_DATA_1=value-1")}.do)
		live("[sig-node] "+s.kind+" should be consumable via the environment [NodeConformance]", ran{objects: s.object, pod: fmt.Sprintf(env, "envFrom: [{"+s.from+": {name: data}}, {prefix: p_, "+s.from+": {name: data}}]"),
			then: has("data-1=value-1", "data-3=value-3", "p_data-1=value-1")}.do)
		live("[sig-node] "+s.kind+" "+various, ran{objects: s.object, pod: fmt.Sprintf(env, "envFrom: [{prefix: p-, "+s.from+": {name: data}}, {prefix: '#.', "+s.from+": {name: data}}, {prefix: '1 ', "+s.from+": {name: data}}]"),
			then: has("p-data-1=value-1", "#.data-2=value-2", "1 data-3=value-3")}.do)
	}
	field := func(name, path string) string {
		return "{name: " + name + ", valueFrom: {fieldRef: {fieldPath: " + path + "}}}"
	}
	resource := func(name, of string) string {
		return "{name: " + name + ", valueFrom: {resourceFieldRef: {resource: " + of + "}}}"
	}
	all := resource("CL", "limits.cpu") + ", " + resource("ML", "limits.memory")
	const down = "[sig-node] Downward API should provide "
	live(down+"container's limits.cpu/memory and requests.cpu/memory as env vars [NodeConformance]", ran{pod: fmt.Sprintf(env, "resources: {requests: {cpu: 250m, memory: 32Mi}, limits: {cpu: 1250m, memory: 64Mi}}, env: ["+all+", "+resource("CR", "requests.cpu")+", "+resource("MR", "requests.memory")+"]"),
		then: has("CL=2", "ML=67108864", "CR=1", "MR=33554432")}.do)
	live(down+"default limits.cpu/memory from node allocatable [NodeConformance]", ran{pod: fmt.Sprintf(env, "env: ["+all+"]"), then: has("CL=CPU", "ML=MEMORY")}.do)
	live(down+"host IP as an env var [NodeConformance]", ran{pod: fmt.Sprintf(env, "env: ["+field("H", "status.hostIP")+"]"), then: has("H=HOSTIP")}.do)
	live(down+"hostIPs as an env var [NodeConformance]", ran{pod: fmt.Sprintf(env, "env: ["+field("H", "status.hostIPs")+"]"), then: has("H=HOSTIP")}.do)
	live(down+"pod UID as env vars [NodeConformance]", ran{pod: fmt.Sprintf(env, "env: ["+field("U", "metadata.uid")+"]"), then: has("U=UID")}.do)
	live(down+"pod name, namespace and IP address as env vars [NodeConformance]", ran{pod: fmt.Sprintf(env, "env: ["+field("NAME", "metadata.name")+", "+field("SPACE", "metadata.namespace")+", "+field("IP", "status.podIP")+"]"), then: has("NAME=p", "SPACE=NAMESPACE", "IP=PODIP")}.do)
	live("[sig-node] Variable Expansion should allow composing env vars into new env vars [NodeConformance]", ran{
		pod: fmt.Sprintf(env, "env: [{name: FOO, value: foo}, {name: BAR, value: bar}, {name: FOOBAR, value: '$(FOO);;$(BAR);$$(FOO)'}]"), then: has("FOOBAR=foo;;bar;$(FOO)")}.do)
}

// commands, and what is put into them.
func commands() {
	live("[sig-node] Containers should be able to override the image's default command (container entrypoint) [NodeConformance]", ran{pod: "containers: [{command: [echo, override]}]\n", log: "override"}.do)
	live("[sig-node] Containers should be able to override the image's default command and arguments [NodeConformance]", ran{pod: "containers: [{command: [echo], args: [override, arguments]}]\n", log: "override arguments"}.do)
	const v = "[sig-node] Variable Expansion should "
	live(v+"allow substituting values in a container's command [NodeConformance]", ran{pod: "containers: [{command: [sh, -c, 'echo \"$(X)\"'], env: [{name: X, value: test-value}]}]\n", log: "test-value"}.do)
	live(v+"allow substituting values in a container's args [NodeConformance]", ran{pod: "containers: [{command: [echo], args: ['$(X) $$(X) $(Y)'], env: [{name: X, value: test-value}]}]\n", log: regexp.QuoteMeta("test-value $(X) $(Y)")}.do)
	expr := func(value, script string) string {
		return sh(script, "env: [{name: P, value: '"+value+"'}], volumeMounts: [{name: v, mountPath: /sub, subPathExpr: $(P)}, {name: v, mountPath: /all}]") + "volumes: [{name: v, emptyDir: {}}]\n"
	}
	live(v+"allow substituting values in a volume subpath", ran{pod: expr("foo", "touch /sub/f && ls /all/foo"), log: "f"}.do)
	live(v+"succeed in writing subpaths in container", ran{pod: expr("foo/bar", "echo in > /sub/f && cat /all/foo/bar/f"), log: "in"}.do)
	for words, value := range map[string]string{"backticks": "..", "absolute path": "/tmp"} {
		live(v+"fail substituting values in a volume subpath with "+words, func(t *testing.T, c *cluster) {
			ns := c.namespace(t)
			c.pod(t, ns, spec(t, expr(value, "true")))
			c.until(t, ns, "p", "the container cannot be made", func(p *corev1.Pod) bool {
				if ended(p) {
					t.Fatalf("the pod is %s", p.Status.Phase)
				}
				return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == "CreateContainerConfigError"
			})
		})
	}
	live(v+"verify that a failing subpath expansion can be modified during the lifecycle of a container [Slow]", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		p := spec(t, sh("echo runs; sleep 600", "env: [{name: P, valueFrom: {fieldRef: {fieldPath: \"metadata.annotations['path']\"}}}], volumeMounts: [{name: v, mountPath: /sub, subPathExpr: $(P)}]")+"volumes: [{name: v, emptyDir: {}}]\n")
		p.Annotations = map[string]string{"path": "/absolute"}
		c.pod(t, ns, p)
		c.until(t, ns, "p", "the container cannot be made", func(p *corev1.Pod) bool {
			return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == "CreateContainerConfigError"
		})
		c.changePod(t, ns, "p", func(p *corev1.Pod) { p.Annotations["path"] = "relative" })
		c.until(t, ns, "p", "the container runs", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	})
}

// identities that containers run under.
func identities() {
	const s = "[sig-node] Security Context "
	id := "id -u; id -g"
	for words, r := range map[string]ran{
		"When creating a container with runAsUser should run the container with uid 65534 [LinuxOnly] [NodeConformance]":                                    {pod: sh("id -u", "securityContext: {runAsUser: 65534}"), log: "65534"},
		"When creating a pod with privileged should run the container as unprivileged when false [LinuxOnly] [NodeConformance]":                             {pod: sh("ip link add dummy0 type dummy 2>&1 || mount -t tmpfs x /tmp 2>&1; true", "securityContext: {privileged: false}"), log: "(?i).*(not permitted|permission denied).*"},
		"When creating a pod with readOnlyRootFilesystem should run the container with writable rootfs when readOnlyRootFilesystem=false [NodeConformance]": {pod: sh("touch /checkfile && echo written", "securityContext: {readOnlyRootFilesystem: false}"), log: "written"},
		"when creating containers with AllowPrivilegeEscalation should not allow privilege escalation when false [LinuxOnly] [NodeConformance]":             {pod: sh("grep NoNewPrivs /proc/self/status; id -u", "securityContext: {allowPrivilegeEscalation: false, runAsUser: 1000}"), log: `NoNewPrivs:\s1\s1000`},
		"should support container.SecurityContext.RunAsUser And container.SecurityContext.RunAsGroup [LinuxOnly]":                                           {pod: "securityContext: {runAsUser: 1}\n" + sh(id, "securityContext: {runAsUser: 1001, runAsGroup: 2002}"), log: `1001\s2002`},
		"should support pod.Spec.SecurityContext.RunAsUser And pod.Spec.SecurityContext.RunAsGroup [LinuxOnly]":                                             {pod: "securityContext: {runAsUser: 1001, runAsGroup: 2002}\n" + sh(id, ""), log: `1001\s2002`},
	} {
		live(s+words, r.do)
	}
}

func initContainers() {
	const words = "[sig-node] InitContainer [NodeConformance] should "
	pod := func(restart, first string) string {
		return "restartPolicy: " + restart + "\ninitContainers: [{name: i1, command: ['" + first + "']}, {name: i2, command: ['true']}]\ncontainers: [{command: [sh, -c, 'sleep 2']}]\n"
	}
	initialized := func(p *corev1.Pod) bool {
		for _, x := range p.Status.Conditions {
			if x.Type == corev1.PodInitialized {
				return x.Status == corev1.ConditionTrue
			}
		}
		return false
	}
	done := func(t *testing.T, p *corev1.Pod) {
		t.Helper()
		for _, s := range p.Status.InitContainerStatuses {
			if s.State.Terminated == nil || s.State.Terminated.ExitCode != 0 {
				t.Errorf("init container %s is %+v", s.Name, s.State)
			}
		}
		if len(p.Status.InitContainerStatuses) != 2 || !initialized(p) {
			t.Errorf("the init containers are %+v, initialized %v", p.Status.InitContainerStatuses, initialized(p))
		}
	}
	live(words+"invoke init containers on a RestartNever pod", ran{pod: pod("Never", "true"), then: func(t *testing.T, _ *cluster, p *corev1.Pod) { done(t, p) }}.do)
	live(words+"invoke init containers on a RestartAlways pod", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.pod(t, ns, spec(t, pod("Always", "true")))
		done(t, c.until(t, ns, "p", "the pod runs", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning }))
	})
	live(words+"not start app containers and fail the pod if init containers fail on a RestartNever pod", ran{pod: pod("Never", "false"), fails: true, then: func(t *testing.T, _ *cluster, p *corev1.Pod) {
		if s := p.Status.ContainerStatuses[0].State; s.Waiting == nil || p.Status.InitContainerStatuses[0].State.Terminated == nil || p.Status.InitContainerStatuses[1].State.Waiting == nil {
			t.Errorf("the states are %+v and %+v", p.Status.InitContainerStatuses, s)
		}
	}}.do)
	live(words+"not start app containers if init containers fail on a RestartAlways pod", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.pod(t, ns, spec(t, pod("Always", "false")))
		p := c.until(t, ns, "p", "the first init container fails again", func(p *corev1.Pod) bool {
			return len(p.Status.InitContainerStatuses) == 2 && p.Status.InitContainerStatuses[0].RestartCount >= 3
		})
		if s := p.Status.ContainerStatuses[0].State; s.Waiting == nil || p.Status.Phase != corev1.PodPending || initialized(p) {
			t.Errorf("the pod is %s, its container %+v", p.Status.Phase, s)
		}
	})
}

// messages and states of containers that have ended.
func messages() {
	const words = "[sig-node] Container Runtime blackbox test on terminated container should report termination message "
	message := func(want string) func(t *testing.T, _ *cluster, p *corev1.Pod) {
		return func(t *testing.T, _ *cluster, p *corev1.Pod) {
			s := p.Status.ContainerStatuses[0].State.Terminated
			if s == nil || strings.TrimSpace(s.Message) != want {
				t.Errorf("the state is %+v, want the message %q", s, want)
			}
		}
	}
	const fallback = "terminationMessagePolicy: FallbackToLogsOnError"
	live(words+"as empty when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set [NodeConformance]", ran{pod: sh("echo DONE; exit 0", fallback), then: message("")}.do)
	live(words+"from file when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set [NodeConformance]", ran{pod: sh("echo -n OK > /dev/termination-log; echo DONE", fallback), then: message("OK")}.do)
	live(words+"from log output if TerminationMessagePolicy FallbackToLogsOnError is set [NodeConformance]", ran{pod: sh("echo -n DONE; exit 1", fallback), fails: true, then: message("DONE")}.do)
	live(words+"if TerminationMessagePath is set as non-root user and at a non-default path [NodeConformance]", ran{
		pod: sh("echo -n DONE > /dev/custom", "terminationMessagePath: /dev/custom, securityContext: {runAsUser: 1000}"), then: message("DONE")}.do)
	live("[sig-node] Container Runtime blackbox test when starting a container that exits should run with the expected status [NodeConformance]", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		// Each fails at first and then goes on for ever or succeeds, as its number of starts says.
		for _, x := range []struct {
			restart  string
			phase    corev1.PodPhase
			restarts int32
			ready    bool
		}{{"Always", corev1.PodRunning, 2, true}, {"OnFailure", corev1.PodSucceeded, 1, false}, {"Never", corev1.PodFailed, 0, false}} {
			name := strings.ToLower(x.restart)
			last := "exit 0"
			if x.restart == "Always" {
				last = "sleep 600"
			}
			p := spec(t, "restartPolicy: "+x.restart+"\n"+sh(fmt.Sprintf("echo x >> /v/n; [ $(wc -l < /v/n) -gt %d ] || exit 1; %s", max(x.restarts, 1), last), mounted)+"volumes: [{name: v, emptyDir: {}}]\n")
			p.Name = name
			c.pod(t, ns, p)
			p = c.until(t, ns, name, "the pod is "+string(x.phase), func(p *corev1.Pod) bool {
				return p.Status.Phase == x.phase && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount == x.restarts && p.Status.ContainerStatuses[0].Ready == x.ready
			})
			if s := p.Status.ContainerStatuses[0].State; x.ready != (s.Running != nil) || x.ready == (s.Terminated != nil) {
				t.Errorf("%s: the state is %+v", name, s)
			}
		}
	})
}
