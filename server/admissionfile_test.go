package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
)

const admissionYAML = `apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults: {enforce: baseline, enforce-version: latest}
    exemptions: {usernames: [], namespaces: [trusted], runtimeClasses: []}
- name: EventRateLimit
  path: events.yaml
- name: PodNodeSelector
  configuration:
    podNodeSelectorPluginConfig:
      clusterDefaultNodeSelector: env=prod
      default: env=prod,disk=ssd
`

// The file's configurations reach the plugins, beside the default ones.
func TestAdmissionFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("events.yaml", "apiVersion: eventratelimit.admission.k8s.io/v1alpha1\nkind: Configuration\nlimits:\n- {type: Namespace, qps: 1, burst: 2}\n")
	file := write("admission.yaml", admissionYAML)
	s, _, end := run(t, func(c *Config) {
		c.AdmissionFile, c.EnableAdmission, c.DisableAdmission, c.Controllers = file, []string{"EventRateLimit", "PodNodeSelector"}, []string{"ServiceAccount"}, []string{}
	})
	defer end()
	c, ctx := s.Admin(), t.Context()
	if _, err := c.Create(ctx, kind.Namespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "trusted"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := func(namespace, name string, host bool, selector map[string]string) (*corev1.Pod, error) {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
		p.Spec.Containers = []corev1.Container{{Name: "a", Image: "a:1"}}
		p.Spec.HostNetwork, p.Spec.NodeSelector = host, selector
		o, err := c.Create(ctx, kind.Pod, p, metav1.CreateOptions{})
		if err != nil {
			return nil, err
		}
		return o.(*corev1.Pod), nil
	}
	if _, err := pod("default", "host", true, nil); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)`) {
		t.Errorf("the default level: %v", err)
	}
	if _, err := pod("trusted", "host", true, nil); err != nil {
		t.Errorf("an exempted namespace: %v", err)
	}
	if p, err := pod("default", "plain", false, map[string]string{"disk": "ssd"}); err != nil || p.Spec.NodeSelector["env"] != "prod" || p.Spec.NodeSelector["disk"] != "ssd" {
		t.Errorf("the default selector: %+v, %v", p, err)
	}
	if _, err := pod("default", "test", false, map[string]string{"env": "test"}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "pod node label selector conflicts with its namespace node label selector") {
		t.Errorf("another selector: %v", err)
	}
	if _, err := pod("default", "hdd", false, map[string]string{"disk": "hdd"}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "pod node label selector labels conflict with its namespace whitelist") {
		t.Errorf("a selector that is not listed: %v", err)
	}
	refused := 0
	for range 50 { // more than the machine can make slow enough to pass
		e := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "trusted", GenerateName: "e-"}, InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "trusted", Name: "host"}}
		switch _, err := c.Create(ctx, kind.Event, e, metav1.CreateOptions{}); {
		case apierrors.IsTooManyRequests(err) && strings.Contains(err.Error(), "limit reached on type Namespace for key trusted"):
			refused++
		case err != nil:
			t.Fatal(err)
		}
	}
	if refused == 0 {
		t.Error("fifty events in a row pass where two may at once")
	}
	if _, err := c.Create(ctx, kind.Event, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e"}, InvolvedObject: corev1.ObjectReference{Namespace: "default"}}, metav1.CreateOptions{}); err != nil {
		t.Errorf("another namespace has a limit of its own: %v", err)
	}

	for _, c := range []struct{ text, want string }{
		{strings.Replace(admissionYAML, "baseline", "strict", 1), `plugin "PodSecurity": defaults.enforce: `},
		{strings.Replace(admissionYAML, "name: PodSecurity", "name: PodSecure", 1), "there is no plugin of that name"},
		{strings.Replace(admissionYAML, "name: PodNodeSelector", "name: ImagePolicyWebhook", 1), "it takes no configuration here"},
		{strings.Replace(admissionYAML, "exemptions", "exceptions", 1), "unknown field"},
		{strings.Replace(admissionYAML, "name: EventRateLimit", "name: PodSecurity", 1), "is there twice"},
		{strings.Replace(admissionYAML, "events.yaml", "absent.yaml", 1), "no such file"},
		{strings.Replace(admissionYAML, "config.k8s.io/v1\n", "config.k8s.io/v2\n", 1), "AdmissionConfiguration of apiserver.config.k8s.io/v1 is needed"},
	} {
		if _, err := ReadAdmission(write("bad.yaml", c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("the error is %v, want %q", err, c.want)
		}
	}
}
