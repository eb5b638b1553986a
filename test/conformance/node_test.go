package conformance

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"proa.dev/internal/await"
)

// ran is a behaviour of nodes: a pod that ends, and what it has printed. Such ones
// are tried on clusters with -kubeconfig only.
type ran struct {
	// objects are ConfigMaps and Secrets, as YAML documents.
	objects string
	// pod is a spec in YAML; images, and restartPolicy: Never, are filled in, and so
	// is NODE.
	pod    string
	labels map[string]string
	fails  bool // the pod ends in failure
	// log of the first container has to match, as a whole.
	log string
	// then looks at the pod, when it has ended.
	then func(t *testing.T, c *cluster, p *corev1.Pod)
}

// live registers a behaviour that needs containers that run.
func live(words string, do func(t *testing.T, c *cluster)) *behaviour {
	b := it(words, do)
	b.live = true
	return b
}

// patience with a node that pulls, starts and ends.
const patience = 3 * time.Minute

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
}

// objects makes ConfigMaps and Secrets.
func (c *cluster) objects(t *testing.T, ns, text string) {
	t.Helper()
	for _, doc := range strings.Split(text, "\n---\n") {
		var err error
		switch {
		case strings.TrimSpace(doc) == "":
		case strings.Contains(doc, "kind: Secret"):
			var s corev1.Secret
			decode(t, doc, &s)
			_, err = c.CoreV1().Secrets(ns).Create(t.Context(), &s, metav1.CreateOptions{})
		default:
			var m corev1.ConfigMap
			decode(t, doc, &m)
			_, err = c.CoreV1().ConfigMaps(ns).Create(t.Context(), &m, metav1.CreateOptions{})
		}
		ok(t, err)
	}
}

// spec of a pod, with what all of them share.
func spec(t *testing.T, text string) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
	decode(t, text, &p.Spec)
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if list[i].Image == "" {
				list[i].Image = *image
			}
			if list[i].Name == "" {
				list[i].Name = fmt.Sprint("c", i)
			}
		}
	}
	if p.Spec.RestartPolicy == "" {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
	}
	p.Spec.TerminationGracePeriodSeconds = new(int64(1))
	return p
}

// until waits for a state of a pod.
func (c *cluster) until(t *testing.T, ns, name, what string, is func(p *corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	var p *corev1.Pod
	await.Nil(t, patience, what, func() error {
		var err error
		if p, err = c.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{}); err != nil || is(p) {
			return err
		}
		return fmt.Errorf("pod %s is %s: %+v", name, p.Status.Phase, p.Status.ContainerStatuses)
	})
	return p
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func (c *cluster) log(ctx context.Context, ns, pod, container string) (string, error) {
	b, err := c.CoreV1().Pods(ns).GetLogs(pod, &corev1.PodLogOptions{Container: container}).DoRaw(ctx)
	return string(b), err
}

func (r ran) do(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.objects(t, ns, r.objects)
	p := spec(t, r.pod)
	p.Labels = r.labels
	c.pod(t, ns, p)
	p = c.until(t, ns, "p", "the pod ends", ended)
	log, err := c.log(t.Context(), ns, "p", p.Spec.Containers[0].Name)
	if err != nil && r.log != "" {
		t.Error(err)
	}
	if (p.Status.Phase == corev1.PodFailed) != r.fails {
		t.Errorf("the pod is %s (%s); its log is %q", p.Status.Phase, p.Status.Message, log)
	}
	if r.log != "" && !matches(r.log, strings.TrimSpace(log)) {
		t.Errorf("the log is %q, want %q", log, r.log)
	}
	if r.then != nil {
		r.then(t, c, p)
	}
}

// matches says whether a text is as wanted, from end to end.
func matches(want, text string) bool {
	return regexp.MustCompile(`^(?s:` + want + `)$`).MatchString(text)
}

// sh is a container that runs a script, with more fields in YAML.
func sh(script, fields string) string {
	return fmt.Sprintf("containers: [{command: [sh, -c, %q]%s}]\n", script, prefixed(fields))
}

func prefixed(fields string) string {
	if fields == "" {
		return ""
	}
	return ", " + fields
}

const (
	configObject = "kind: ConfigMap\nmetadata: {name: data}\ndata: {data-1: value-1, data-2: value-2, data-3: value-3}\n"
	secretObject = "kind: Secret\nmetadata: {name: data}\nstringData: {data-1: value-1, data-2: value-2, data-3: value-3}\n"
)

// source of files.
type source struct {
	prefix, object string
	volume         func(items, mode string) string // mode of all files, or ""
}

// sources, each as a volume of its own and projected.
var sources = []source{
	{"[sig-storage] ConfigMap ", configObject, func(items, mode string) string {
		return "configMap: {name: data" + prefixed(items) + prefixed(mode) + "}"
	}},
	{"[sig-storage] Projected configMap ", configObject, func(items, mode string) string {
		return "projected: {sources: [{configMap: {name: data" + prefixed(items) + "}}]" + prefixed(mode) + "}"
	}},
	{"[sig-storage] Secrets ", secretObject, func(items, mode string) string {
		return "secret: {secretName: data" + prefixed(items) + prefixed(mode) + "}"
	}},
	{"[sig-storage] Projected secret ", secretObject, func(items, mode string) string {
		return "projected: {sources: [{secret: {name: data" + prefixed(items) + "}}]" + prefixed(mode) + "}"
	}},
}

const (
	mounted = "volumeMounts: [{name: v, mountPath: /v}]"
	mapped  = "items: [{key: data-2, path: path/to/data-2}]"
	moded   = "items: [{key: data-2, path: path/to/data-2, mode: 0400}]"
	nonRoot = "securityContext: {runAsUser: 1000}\n"
)

func init() {
	for _, s := range sources {
		try := func(words, script, volumes, more, log string) {
			live(s.prefix+words, ran{objects: s.object, pod: sh(script, mounted) + "volumes: [{name: v, " + volumes + "}]\n" + more, log: log}.do)
		}
		isSecret := strings.Contains(s.object, "Secret")
		plain, linux, both := " [NodeConformance]", " [LinuxOnly] [NodeConformance]", "should be consumable in multiple volumes in the same pod"
		item := "should be consumable from pods in volume with mappings and Item mode set"
		if isSecret {
			item, both = "should be consumable from pods in volume with mappings and Item Mode set", "should be consumable in multiple volumes in a pod"
		}
		try("should be consumable from pods in volume"+plain, "cat /v/data-1; stat -Lc ' %a' /v/data-1", s.volume("", ""), "", `value-1 644`)
		try("should be consumable from pods in volume with defaultMode set"+linux, "cat /v/data-1; stat -Lc ' %a' /v/data-1", s.volume("", "defaultMode: 0400"), "", `value-1 400`)
		try("should be consumable from pods in volume with mappings"+plain, "cat /v/path/to/data-2; ls /v", s.volume(mapped, ""), "", `value-2path`)
		try(item+linux, "cat /v/path/to/data-2; stat -Lc ' %a' /v/path/to/data-2", s.volume(moded, ""), "", `value-2 400`)
		live(s.prefix+both+plain, ran{objects: s.object, pod: sh("cat /v/data-1 /w/data-1", "volumeMounts: [{name: v, mountPath: /v}, {name: w, mountPath: /w, readOnly: true}]") +
			"volumes: [{name: v, " + s.volume("", "") + "}, {name: w, " + s.volume("", "") + "}]\n", log: "value-1value-1"}.do)
		if isSecret {
			try("should be consumable from pods in volume as non-root with defaultMode and fsGroup set"+linux, "cat /v/data-1; stat -Lc ' %a %g' /v/data-1; id -u", s.volume("", "defaultMode: 0440"),
				"securityContext: {runAsUser: 1000, fsGroup: 1001}\n", `value-1 440 1001\s1000`)
		} else {
			try("should be consumable from pods in volume as non-root"+plain, "cat /v/data-1; id -u", s.volume("", ""), nonRoot, `value-11000`)
			try("should be consumable from pods in volume with mappings as non-root"+plain, "cat /v/path/to/data-2; id -u", s.volume(mapped, ""), nonRoot, `value-21000`)
			live(s.prefix+"updates should be reflected in volume"+plain, s.updated(false))
		}
		live(s.prefix+"optional updates should be reflected in volume"+plain, s.updated(true))
	}
	live("[sig-storage] ConfigMap binary data should be reflected in volume [NodeConformance]", ran{
		objects: "metadata: {name: data}\nbinaryData: {dump: 3sr+uv8=}\ndata: {data-1: value-1}\n",
		pod:     sh("cat /v/data-1; od -An -tx1 /v/dump", mounted) + "volumes: [{name: v, configMap: {name: data}}]\n", log: `value-1 de ca fe ba ff`}.do)
	live("[sig-storage] Secrets should be able to mount in a volume regardless of a different secret existing with same name in different namespace [NodeConformance]", func(t *testing.T, c *cluster) {
		other := c.namespace(t)
		c.objects(t, other, "kind: Secret\nmetadata: {name: data}\nstringData: {data-1: other}\n")
		ran{objects: secretObject, pod: sh("cat /v/data-1", mounted) + "volumes: [{name: v, secret: {secretName: data}}]\n", log: "value-1"}.do(t, c)
	})
	live("[sig-storage] Projected combined should project all components that make up the projection API [Projection] [NodeConformance]", ran{
		objects: configObject + "\n---\n" + strings.ReplaceAll(secretObject, "value", "hidden"),
		pod: sh("cat /v/c/data-1 /v/s/data-1 /v/podname", mounted) + "volumes: [{name: v, projected: {sources: [{configMap: {name: data, items: [{key: data-1, path: c/data-1}]}}, {secret: {name: data, items: [{key: data-1, path: s/data-1}]}},\n" +
			"  {downwardAPI: {items: [{path: podname, fieldRef: {fieldPath: metadata.name}}]}}]}}]\n", log: "value-1hidden-1p"}.do)
	downwardVolumes()
	emptyDirs()
	subpaths()
}

// updated: what has changed, appeared and gone shows in a pod that runs.
func (s *source) updated(optional bool) func(t *testing.T, c *cluster) {
	return func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		volume := func(name string) string {
			v := strings.Replace(s.volume("optional: true", ""), "name: data", "name: "+name, 1)
			return strings.Replace(v, "secretName: data", "secretName: "+name, 1)
		}
		object := func(name, value string) string {
			return strings.NewReplacer("{name: data}", "{name: "+name+"}", "value-1", value).Replace(s.object)
		}
		isSecret := strings.Contains(s.object, "Secret")
		c.objects(t, ns, object("changes", "value-1"))
		script := "until [ \"$(cat /changes/data-1)\" = value-changed ]; do sleep 1; done; echo changed"
		mounts, volumes := "{name: changes, mountPath: /changes}", "{name: changes, "+volume("changes")+"}"
		if optional {
			c.objects(t, ns, object("goes", "value-1"))
			script += "; until [ -e /comes/data-1 ]; do sleep 1; done; echo came; while [ -e /goes/data-1 ]; do sleep 1; done; echo went"
			for _, name := range []string{"comes", "goes"} {
				mounts += ", {name: " + name + ", mountPath: /" + name + "}"
				volumes += ", {name: " + name + ", " + volume(name) + "}"
			}
		}
		c.pod(t, ns, spec(t, sh(script, "volumeMounts: ["+mounts+"]")+"volumes: ["+volumes+"]\n"))
		c.until(t, ns, "p", "the pod runs", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
		if isSecret {
			api := c.CoreV1().Secrets(ns)
			o, err := api.Get(t.Context(), "changes", metav1.GetOptions{})
			ok(t, err)
			o.Data["data-1"] = []byte("value-changed")
			_, err = api.Update(t.Context(), o, metav1.UpdateOptions{})
			ok(t, err)
			if optional {
				ok(t, api.Delete(t.Context(), "goes", metav1.DeleteOptions{}))
			}
		} else {
			api := c.CoreV1().ConfigMaps(ns)
			o, err := api.Get(t.Context(), "changes", metav1.GetOptions{})
			ok(t, err)
			o.Data["data-1"] = "value-changed"
			_, err = api.Update(t.Context(), o, metav1.UpdateOptions{})
			ok(t, err)
			if optional {
				ok(t, api.Delete(t.Context(), "goes", metav1.DeleteOptions{}))
			}
		}
		if optional {
			c.objects(t, ns, object("comes", "value-1"))
		}
		p := c.until(t, ns, "p", "the pod has seen what changed", ended)
		same(t, "phase", p.Status.Phase, corev1.PodSucceeded)
	}
}

// downwardVolumes are files about the pod itself.
func downwardVolumes() {
	for _, d := range []struct {
		prefix string
		volume func(items, mode string) string
	}{
		{"[sig-storage] Downward API volume ", func(items, mode string) string {
			return "downwardAPI: {items: [" + items + "]" + prefixed(mode) + "}"
		}},
		{"[sig-storage] Projected downwardAPI ", func(items, mode string) string {
			return "projected: {sources: [{downwardAPI: {items: [" + items + "]}}]" + prefixed(mode) + "}"
		}},
	} {
		try := func(words, items, mode, fields, script, log string) {
			live(d.prefix+words, ran{pod: sh(script, mounted+prefixed(fields)) + "volumes: [{name: v, " + d.volume(items, mode) + "}]\n", log: log}.do)
		}
		of := func(resource, divisor string) string {
			return "{path: f, resourceFieldRef: {containerName: c0, resource: " + resource + ", divisor: " + divisor + "}}"
		}
		set := "resources: {requests: {cpu: 25m, memory: 16Mi}, limits: {cpu: 125m, memory: 32Mi}}"
		try("should provide container's cpu limit [NodeConformance]", of("limits.cpu", "1m"), "", set, "cat /v/f", "125")
		try("should provide container's cpu request [NodeConformance]", of("requests.cpu", "1m"), "", set, "cat /v/f", "25")
		try("should provide container's memory limit [NodeConformance]", of("limits.memory", "1Mi"), "", set, "cat /v/f", "32")
		try("should provide container's memory request [NodeConformance]", of("requests.memory", "1Mi"), "", set, "cat /v/f", "16")
		name := "{path: f, fieldRef: {fieldPath: metadata.name}}"
		try("should provide podname only [NodeConformance]", name, "", "", "cat /v/f", "p")
		try("should set DefaultMode on files [LinuxOnly] [NodeConformance]", name, "defaultMode: 0400", "", "stat -Lc %a /v/f", "400")
		try("should set mode on item file [LinuxOnly] [NodeConformance]", "{path: f, mode: 0400, fieldRef: {fieldPath: metadata.name}}", "", "", "stat -Lc %a /v/f", "400")
		for _, resource := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			live(fmt.Sprintf("%sshould provide node allocatable (%s) as default %s limit if the limit is not set [NodeConformance]", d.prefix, resource, resource), ran{
				pod:  sh("cat /v/f", mounted) + "volumes: [{name: v, " + d.volume(of("limits."+string(resource), `"1"`), "") + "}]\n",
				log:  `\d+`,
				then: func(t *testing.T, c *cluster, p *corev1.Pod) { allocatable(t, c, p, resource) }}.do)
		}
		for _, field := range []string{"labels", "annotations"} {
			live(d.prefix+"should update "+field+" on modification [NodeConformance]", func(t *testing.T, c *cluster) {
				ns := c.namespace(t)
				p := spec(t, sh("until grep -q 'time=\"later\"' /v/f; do sleep 1; done; cat /v/f", mounted)+"volumes: [{name: v, "+d.volume("{path: f, fieldRef: {fieldPath: metadata."+field+"}}", "")+"}]\n")
				p.Labels, p.Annotations = map[string]string{"time": "now"}, map[string]string{"time": "now"}
				c.pod(t, ns, p)
				c.until(t, ns, "p", "the pod runs", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
				c.changePod(t, ns, "p", func(p *corev1.Pod) { p.Labels["time"], p.Annotations["time"] = "later", "later" })
				p = c.until(t, ns, "p", "the pod has seen what changed", ended)
				same(t, "phase", p.Status.Phase, corev1.PodSucceeded)
			})
		}
	}
}

// allocatable: what the pod has printed is what its node has to give.
func allocatable(t *testing.T, c *cluster, p *corev1.Pod, resource corev1.ResourceName) {
	t.Helper()
	n, err := c.CoreV1().Nodes().Get(t.Context(), p.Spec.NodeName, metav1.GetOptions{})
	ok(t, err)
	log, err := c.log(t.Context(), p.Namespace, p.Name, "c0")
	ok(t, err)
	q := n.Status.Allocatable[resource]
	same(t, string(resource), strings.TrimSpace(log), fmt.Sprint(q.Value()))
}

func emptyDirs() {
	const prefix = "[sig-storage] EmptyDir "
	on := map[string]string{"default": "{}", "tmpfs": "{medium: Memory}"}
	// The file system of the mount, when it is to be one in memory.
	fs := map[string]string{"default": "echo any", "tmpfs": "awk '$2 == \"/v\" {print $3}' /proc/mounts"}
	want := map[string]string{"default": "any", "tmpfs": "tmpfs"}
	for medium, volume := range on {
		for user, uid := range map[string]string{"root": "0", "non-root": "1001"} {
			for _, mode := range []string{"0644", "0666", "0777"} {
				live(fmt.Sprintf("%svolumes should support (%s,%s,%s) [LinuxOnly] [NodeConformance]", prefix, user, mode, medium), ran{
					pod: sh("umask 0; echo content > /v/f && chmod "+mode+" /v/f && cat /v/f && stat -c '%a %u' /v/f; "+fs[medium], mounted) + "volumes: [{name: v, emptyDir: " + volume + "}]\nsecurityContext: {runAsUser: " + uid + "}\n",
					log: `content\s` + mode[1:] + ` ` + uid + `\s` + want[medium]}.do)
			}
		}
		where := "default medium"
		if medium == "tmpfs" {
			where = "tmpfs"
		}
		live(prefix+"volumes volume on "+where+" should have the correct mode [LinuxOnly] [NodeConformance]", ran{
			pod: sh("stat -c %a /v; "+fs[medium], mounted) + "volumes: [{name: v, emptyDir: " + volume + "}]\n", log: `777\s` + want[medium]}.do)
	}
	live(prefix+"volumes pod should support shared volumes between containers", ran{
		pod: "containers:\n- {command: [sh, -c, 'until [ -e /v/f ]; do sleep 1; done; cat /v/f'], " + mounted + "}\n- {command: [sh, -c, 'echo shared > /v/g && mv /v/g /v/f'], " + mounted + "}\n" +
			"volumes: [{name: v, emptyDir: {}}]\n", log: "shared"}.do)
	live(prefix+"wrapper volumes should not conflict", ran{objects: configObject + "\n---\n" + secretObject,
		pod: sh("cat /v/data-1 /w/data-2", "volumeMounts: [{name: v, mountPath: /v}, {name: w, mountPath: /w}]") + "volumes: [{name: v, configMap: {name: data}}, {name: w, secret: {secretName: data}}]\n", log: "value-1value-2"}.do)
	live(prefix+"wrapper volumes should not cause race condition when used for configmaps [Serial]", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		var mounts, volumes []string
		for i := range 50 {
			c.objects(t, ns, fmt.Sprintf("metadata: {name: racey-%d}\ndata: {f: x}\n", i))
			mounts = append(mounts, fmt.Sprintf("{name: v%d, mountPath: /v%d}", i, i))
			volumes = append(volumes, fmt.Sprintf("{name: v%d, configMap: {name: racey-%d}}", i, i))
		}
		for i := range 5 {
			p := spec(t, sh("cat /v*/f", "volumeMounts: ["+strings.Join(mounts, ", ")+"]")+"volumes: ["+strings.Join(volumes, ", ")+"]\n")
			p.Name = fmt.Sprint("p", i)
			c.pod(t, ns, p)
		}
		for i := range 5 {
			name := fmt.Sprint("p", i)
			p := c.until(t, ns, name, "the pod ends", ended)
			log, err := c.log(t.Context(), ns, name, "c0")
			ok(t, err)
			if p.Status.Phase != corev1.PodSucceeded || log != strings.Repeat("x", 50) {
				t.Errorf("%s is %s and says %q", name, p.Status.Phase, log)
			}
		}
	}).alone()
}

// subpaths of volumes whose files are replaced as a whole.
func subpaths() {
	const prefix = "[sig-storage] Subpath Atomic writer volumes should support subpaths with "
	for what, volume := range map[string]string{
		"configmap pod": "configMap: {name: data, items: [{key: data-1, path: sub/f}]}",
		"secret pod":    "secret: {secretName: data, items: [{key: data-1, path: sub/f}]}",
		"downward pod":  "downwardAPI: {items: [{path: sub/f, fieldRef: {fieldPath: \"metadata.labels['l']\"}}]}",
		"projected pod": "projected: {sources: [{configMap: {name: data, items: [{key: data-1, path: sub/f}]}}]}",
	} {
		live(prefix+what, ran{objects: configObject + "\n---\n" + secretObject, labels: map[string]string{"l": "value-1"},
			pod: sh("for i in 1 2 3; do cat /at/f; sleep 1; done", "volumeMounts: [{name: v, mountPath: /at, subPath: sub}]") + "volumes: [{name: v, " + volume + "}]\n", log: "value-1value-1value-1"}.do)
	}
	live(prefix+"configmap pod with mountPath of existing file", ran{objects: configObject,
		pod: sh("cat /etc/passwd", "volumeMounts: [{name: v, mountPath: /etc/passwd, subPath: data-1}]") + "volumes: [{name: v, configMap: {name: data}}]\n", log: "value-1"}.do)
}
