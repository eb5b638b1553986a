package server

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"proa.dev/apiserver/admit"
)

// PluginConfig is what an AdmissionConfiguration says about plugins.
type PluginConfig struct {
	PodSecurity     admit.PodSecurityConfig
	EventRateLimit  []admit.EventLimit
	PodNodeSelector map[string]string
}

// maxAdmissionFile bounds the file and those that it names.
const maxAdmissionFile = 1 << 20

// admissionFile is an AdmissionConfiguration (Kubernetes docs, "kube-apiserver
// Admission Configuration", apiserver.config.k8s.io/v1).
type admissionFile struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Plugins    []struct {
		Name          string                `json:"name"`
		Path          string                `json:"path,omitempty"`
		Configuration *runtime.RawExtension `json:"configuration,omitempty"`
	} `json:"plugins"`
}

// ReadAdmission reads an AdmissionConfiguration. Paths in it are beside it. A
// plugin that cannot be configured here is an error, not passed over.
func ReadAdmission(path string) (c PluginConfig, err error) {
	if path == "" {
		return c, nil
	}
	data, err := readBounded(path)
	if err != nil {
		return c, fmt.Errorf("read admission configuration: %w", err)
	}
	fail := func(format string, args ...any) (PluginConfig, error) {
		return c, fmt.Errorf("read admission configuration %q: "+format, append([]any{path}, args...)...)
	}
	var f admissionFile
	if err := yaml.UnmarshalStrict(data, &f); err != nil {
		return fail("%w", err)
	}
	if f.Kind != "AdmissionConfiguration" || f.APIVersion != "apiserver.config.k8s.io/v1" {
		return fail("it is %s %s; AdmissionConfiguration of apiserver.config.k8s.io/v1 is needed", f.APIVersion, f.Kind)
	}
	seen := map[string]bool{}
	for _, p := range f.Plugins {
		if seen[p.Name] {
			return fail("plugin %q is there twice", p.Name)
		}
		seen[p.Name] = true
		var raw []byte
		switch {
		case p.Path != "" && p.Configuration != nil:
			return fail("plugin %q has both a path and a configuration", p.Name)
		case p.Configuration != nil:
			raw = p.Configuration.Raw
		case p.Path != "":
			at := p.Path
			if !filepath.IsAbs(at) {
				at = filepath.Join(filepath.Dir(path), at)
			}
			if raw, err = readBounded(at); err != nil {
				return fail("plugin %q: %w", p.Name, err)
			}
		default:
			continue
		}
		if err := c.plugin(p.Name, raw); err != nil {
			return fail("plugin %q: %w", p.Name, err)
		}
	}
	return c, nil
}

func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxAdmissionFile {
		return nil, fmt.Errorf("%q: %d bytes are more than %d", path, info.Size(), maxAdmissionFile)
	}
	return os.ReadFile(path)
}

// typeOf is in every configuration with a version.
type typeOf struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

func (t typeOf) check(kind string, versions ...string) error {
	if t.Kind != kind || !slices.Contains(versions, t.APIVersion) {
		return fmt.Errorf("the configuration is %s %s; %s of %s is needed", t.APIVersion, t.Kind, kind, strings.Join(versions, " or "))
	}
	return nil
}

func (c *PluginConfig) plugin(name string, raw []byte) error {
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil
	}
	switch name {
	case "PodSecurity":
		var x struct {
			typeOf `json:",inline"`
			admit.PodSecurityConfig
		}
		if err := yaml.UnmarshalStrict(raw, &x); err != nil {
			return err
		}
		if err := x.check("PodSecurityConfiguration", "pod-security.admission.config.k8s.io/v1", "pod-security.admission.config.k8s.io/v1beta1", "pod-security.admission.config.k8s.io/v1alpha1"); err != nil {
			return err
		}
		if err := x.Check(); err != nil {
			return err
		}
		c.PodSecurity = x.PodSecurityConfig
	case "EventRateLimit":
		var x struct {
			typeOf `json:",inline"`
			Limits []admit.EventLimit `json:"limits"`
		}
		if err := yaml.UnmarshalStrict(raw, &x); err != nil {
			return err
		}
		if err := x.check("Configuration", "eventratelimit.admission.k8s.io/v1alpha1"); err != nil {
			return err
		}
		if len(x.Limits) == 0 {
			return fmt.Errorf("limits: there is none")
		}
		for i, l := range x.Limits {
			if err := l.Check(); err != nil {
				return fmt.Errorf("limits[%d]: %w", i, err)
			}
		}
		c.EventRateLimit = x.Limits
	case "PodNodeSelector":
		var x struct {
			Selectors map[string]string `json:"podNodeSelectorPluginConfig"`
		}
		if err := yaml.UnmarshalStrict(raw, &x); err != nil {
			return err
		}
		for ns, s := range x.Selectors {
			if _, err := labels.ConvertSelectorToLabelsMap(s); err != nil {
				return fmt.Errorf("podNodeSelectorPluginConfig[%s]: %w", ns, err)
			}
		}
		c.PodNodeSelector = x.Selectors
	default:
		if !slices.Contains(upstreamPlugins, name) {
			return fmt.Errorf("there is no plugin of that name; the names are %s", strings.Join(upstreamPlugins, ", "))
		}
		return fmt.Errorf("it takes no configuration here; PodSecurity, EventRateLimit and PodNodeSelector do")
	}
	return nil
}
