package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/kind"
	"proa.dev/node/volume"
	"proa.dev/view"
)

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }

// environ is a container's environment; later settings of a name win and keep
// the first one's place.
type environ struct {
	list   []*runtimeapi.KeyValue
	values map[string]string
	place  map[string]int
}

func (e *environ) set(name, value string) {
	if i, ok := e.place[name]; ok {
		e.list[i].Value = []byte(value)
	} else {
		e.place[name] = len(e.list)
		e.list = append(e.list, &runtimeapi.KeyValue{Key: name, Value: []byte(value)})
	}
	e.values[name] = value
}

// environment of a container: service variables, then envFrom, then env.
func (a *Agent) environment(ctx context.Context, p *corev1.Pod, c *corev1.Container) (*environ, error) {
	e := &environ{values: map[string]string{}, place: map[string]int{}}
	links := p.Spec.EnableServiceLinks == nil || *p.Spec.EnableServiceLinks
	services := a.serviceVariables(p.Namespace, links)
	for _, from := range c.EnvFrom {
		data, err := a.envFrom(ctx, p, from)
		if err != nil {
			return nil, err
		}
		keys := make([]string, 0, len(data))
		for k := range data {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		for _, k := range keys {
			name := from.Prefix + k
			if len(validation.IsRelaxedEnvVarName(name)) == 0 {
				e.set(name, data[k])
			}
		}
	}
	lookup := func(name string) (string, bool) {
		if v, ok := e.values[name]; ok {
			return v, true
		}
		v, ok := services[name]
		return v, ok
	}
	for i := range c.Env {
		v := &c.Env[i]
		value := v.Value
		if value != "" {
			value = expandWith(value, lookup)
		} else if v.ValueFrom != nil {
			var ok bool
			var err error
			if value, ok, err = a.envValue(ctx, p, c, v.ValueFrom); err != nil {
				return nil, err
			} else if !ok {
				continue
			}
		}
		e.set(v.Name, value)
	}
	names := make([]string, 0, len(services))
	for n := range services {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names { // services fill in what the pod does not set itself
		if _, has := e.values[n]; !has {
			e.set(n, services[n])
		}
	}
	return e, nil
}

func (a *Agent) envFrom(ctx context.Context, p *corev1.Pod, from corev1.EnvFromSource) (map[string]string, error) {
	out := map[string]string{}
	switch {
	case from.ConfigMapRef != nil:
		optional := from.ConfigMapRef.Optional != nil && *from.ConfigMapRef.Optional
		o, err := a.object(ctx, kind.ConfigMap, p.Namespace, from.ConfigMapRef.Name)
		if apierrors.IsNotFound(err) {
			if optional {
				return nil, nil
			}
			return nil, fmt.Errorf("configmap %q not found", from.ConfigMapRef.Name)
		}
		if err != nil {
			return nil, err
		}
		return o.(*corev1.ConfigMap).Data, nil
	case from.SecretRef != nil:
		optional := from.SecretRef.Optional != nil && *from.SecretRef.Optional
		o, err := a.object(ctx, kind.Secret, p.Namespace, from.SecretRef.Name)
		if apierrors.IsNotFound(err) {
			if optional {
				return nil, nil
			}
			return nil, fmt.Errorf("secret %q not found", from.SecretRef.Name)
		}
		if err != nil {
			return nil, err
		}
		for k, v := range o.(*corev1.Secret).Data {
			out[k] = string(v)
		}
	}
	return out, nil
}

// envValue reads one valueFrom; ok is false when an optional source is missing.
func (a *Agent) envValue(ctx context.Context, p *corev1.Pod, c *corev1.Container, from *corev1.EnvVarSource) (value string, ok bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = volume.FieldValue(p, from.FieldRef.FieldPath)
		return value, err == nil, err
	case from.ResourceFieldRef != nil:
		of := c
		if n := from.ResourceFieldRef.ContainerName; n != "" {
			of = nil
			for _, list := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
				for i := range list {
					if list[i].Name == n {
						of = &list[i]
					}
				}
			}
			if of == nil {
				return "", false, fmt.Errorf("container %s not found", n)
			}
		}
		value, err = volume.ResourceValue(of, from.ResourceFieldRef, a.allocatable())
		return value, err == nil, err
	case from.ConfigMapKeyRef != nil:
		r := from.ConfigMapKeyRef
		optional := r.Optional != nil && *r.Optional
		o, err := a.object(ctx, kind.ConfigMap, p.Namespace, r.Name)
		if apierrors.IsNotFound(err) {
			if optional {
				return "", false, nil
			}
			return "", false, fmt.Errorf("configmap %q not found", r.Name)
		}
		if err != nil {
			return "", false, err
		}
		v, has := o.(*corev1.ConfigMap).Data[r.Key]
		if !has && !optional {
			return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", r.Key, p.Namespace, r.Name)
		}
		return v, has, nil
	case from.SecretKeyRef != nil:
		r := from.SecretKeyRef
		optional := r.Optional != nil && *r.Optional
		o, err := a.object(ctx, kind.Secret, p.Namespace, r.Name)
		if apierrors.IsNotFound(err) {
			if optional {
				return "", false, nil
			}
			return "", false, fmt.Errorf("secret %q not found", r.Name)
		}
		if err != nil {
			return "", false, err
		}
		v, has := o.(*corev1.Secret).Data[r.Key]
		if !has && !optional {
			return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", r.Key, p.Namespace, r.Name)
		}
		return string(v), has, nil
	}
	return "", false, errors.New("environment source is not supported by this node; use fieldRef, resourceFieldRef, configMapKeyRef or secretKeyRef")
}

// expandWith replaces $(NAME); $$ is a dollar sign; an unknown name stays as
// written. Behaviour: Kubernetes docs, "Dependent environment variables".
func expandWith(s string, lookup func(string) (string, bool)) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i:], ')')
			if end < 0 {
				b.WriteString(s[i:])
				return b.String()
			}
			name := s[i+2 : i+end]
			if v, ok := lookup(name); ok {
				b.WriteString(v)
			} else {
				b.WriteString(s[i : i+end+1])
			}
			i += end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

func expand0(s string, values map[string]string) string {
	return expandWith(s, func(n string) (string, bool) { v, ok := values[n]; return v, ok })
}

// expandStrict is for subPathExpr, where an unknown name is an error.
func expandStrict(s string, values map[string]string) (string, error) {
	var missing []string
	out := expandWith(s, func(n string) (string, bool) {
		v, ok := values[n]
		if !ok {
			missing = append(missing, n)
		}
		return v, ok
	})
	if len(missing) > 0 {
		return "", fmt.Errorf("missing value for %q", strings.Join(missing, ", "))
	}
	return out, nil
}

// serviceVariables are those of the API's own service and, with links, of all
// services of the namespace that have an address.
func (a *Agent) serviceVariables(namespace string, links bool) map[string]string {
	out := map[string]string{}
	s := a.cfg.View.Snapshot()
	if svc := view.Get[*corev1.Service](s, kind.Service, metav1NamespaceDefault, "kubernetes"); svc != nil {
		addService(out, svc)
	}
	if links {
		for svc := range view.List[*corev1.Service](s, kind.Service, namespace) {
			addService(out, svc)
		}
	}
	return out
}

const metav1NamespaceDefault = "default"

func addService(out map[string]string, svc *corev1.Service) {
	ip := svc.Spec.ClusterIP
	if ip == "" || ip == corev1.ClusterIPNone || len(svc.Spec.Ports) == 0 {
		return
	}
	name := strings.ToUpper(strings.ReplaceAll(svc.Name, "-", "_"))
	out[name+"_SERVICE_HOST"] = ip
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		port := strconv.Itoa(int(p.Port))
		protocol := string(p.Protocol)
		if protocol == "" {
			protocol = "TCP"
		}
		uri := strings.ToLower(protocol) + "://" + net.JoinHostPort(ip, port)
		if i == 0 {
			out[name+"_SERVICE_PORT"] = port
			out[name+"_PORT"] = uri
		}
		if p.Name != "" {
			out[name+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_"))] = port
		}
		prefix := name + "_PORT_" + port + "_" + strings.ToUpper(protocol)
		out[prefix] = uri
		out[prefix+"_PROTO"] = strings.ToLower(protocol)
		out[prefix+"_PORT"] = port
		out[prefix+"_ADDR"] = ip
	}
}
