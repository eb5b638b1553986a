package validate

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func env(vars []corev1.EnvVar, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range vars {
		v, p := &vars[i], path.Index(i)
		if v.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
		} else {
			errs = append(errs, invalid(p.Child("name"), v.Name, validation.IsRelaxedEnvVarName(v.Name))...)
		}
		if v.ValueFrom != nil {
			errs = append(errs, envSource(v, p.Child("valueFrom"))...)
		}
	}
	return errs
}

var envFieldPaths = []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
	"status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}

var volumeFieldPaths = []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"}

func envSource(v *corev1.EnvVar, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	from, count := v.ValueFrom, 0
	if from.FieldRef != nil {
		count++
		errs = append(errs, fieldRef(from.FieldRef, envFieldPaths, path.Child("fieldRef"))...)
	}
	if from.ResourceFieldRef != nil {
		count++
		errs = append(errs, resourceFieldRef(from.ResourceFieldRef, false, path.Child("resourceFieldRef"))...)
	}
	if r := from.ConfigMapKeyRef; r != nil {
		count++
		errs = append(errs, keyRef(r.Name, r.Key, path.Child("configMapKeyRef"))...)
	}
	if r := from.SecretKeyRef; r != nil {
		count++
		errs = append(errs, keyRef(r.Name, r.Key, path.Child("secretKeyRef"))...)
	}
	if r := from.FileKeyRef; r != nil {
		count++
		p := path.Child("fileKeyRef")
		errs = append(errs, required(r.Key, p.Child("key"))...)
		if r.Key != "" {
			errs = append(errs, invalid(p.Child("key"), r.Key, validation.IsRelaxedEnvVarName(r.Key))...)
		}
		errs = append(errs, required(r.VolumeName, p.Child("volumeName"))...)
		if r.VolumeName != "" {
			errs = append(errs, dnsLabel(r.VolumeName, p.Child("volumeName"))...)
		}
		if r.Path == "" {
			errs = append(errs, field.Required(p.Child("path"), ""))
		} else {
			errs = append(errs, noBacksteps(r.Path, p.Child("path"))...)
		}
	}
	if count == 0 {
		errs = append(errs, field.Invalid(path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"))
		return errs
	}
	if v.Value != "" {
		errs = append(errs, field.Invalid(path, "", "may not be specified when `value` is not empty"))
	} else if count > 1 {
		errs = append(errs, field.Invalid(path, "", onlyOneField))
	}
	return errs
}

func keyRef(name, key string, path *field.Path) field.ErrorList {
	errs := invalid(path.Child("name"), name, NameDNSSubdomain(name, false))
	if key == "" {
		return append(errs, field.Required(path.Child("key"), ""))
	}
	return append(errs, invalid(path.Child("key"), key, validation.IsConfigMapKey(key))...)
}

// podFieldLabel turns a downward API label into its canonical form.
func podFieldLabel(version, label string) (string, error) {
	if version != "v1" {
		return "", fmt.Errorf("unsupported pod version: %s", version)
	}
	if base, _, ok := subscript(label); ok && (base == "metadata.annotations" || base == "metadata.labels") {
		return label, nil
	}
	switch label {
	case "metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid",
		"spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "spec.schedulerName",
		"status.phase", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs":
		return label, nil
	case "spec.host":
		return "spec.nodeName", nil
	}
	return "", fmt.Errorf("field label not supported: %s", label)
}

// subscript splits metadata.labels['key'] into its path and key.
func subscript(path string) (base, key string, ok bool) {
	rest, found := strings.CutSuffix(path, "']")
	if !found {
		return path, "", false
	}
	base, key, ok = strings.Cut(rest, "['")
	if !ok || base == "" {
		return path, "", false
	}
	return base, key, true
}

func fieldRef(ref *corev1.ObjectFieldSelector, allowed []string, path *field.Path) field.ErrorList {
	if ref.APIVersion == "" {
		return field.ErrorList{field.Required(path.Child("apiVersion"), "")}
	}
	if ref.FieldPath == "" {
		return field.ErrorList{field.Required(path.Child("fieldPath"), "")}
	}
	label, err := podFieldLabel(ref.APIVersion, ref.FieldPath)
	if err != nil {
		return field.ErrorList{field.Invalid(path.Child("fieldPath"), ref.FieldPath, fmt.Sprintf("error converting fieldPath: %v", err))}
	}
	if base, key, ok := subscript(label); ok {
		switch base {
		case "metadata.annotations":
			return invalid(path, key, validation.IsQualifiedName(strings.ToLower(key)))
		case "metadata.labels":
			return invalid(path, key, validation.IsQualifiedName(key))
		}
		return field.ErrorList{field.Invalid(path, base, "does not support subscript")}
	}
	return supported(label, path.Child("fieldPath"), allowed...)
}

var resourceFieldPaths = []string{"limits.cpu", "limits.ephemeral-storage", "limits.memory",
	"requests.cpu", "requests.ephemeral-storage", "requests.memory"}

func resourceFieldRef(ref *corev1.ResourceFieldSelector, volume bool, path *field.Path) field.ErrorList {
	if volume && ref.ContainerName == "" {
		return field.ErrorList{field.Required(path.Child("containerName"), "")}
	}
	if ref.Resource == "" {
		return field.ErrorList{field.Required(path.Child("resource"), "")}
	}
	var errs field.ErrorList
	hugepages := strings.HasPrefix(ref.Resource, "limits.hugepages-") || strings.HasPrefix(ref.Resource, "requests.hugepages-")
	if !hugepages {
		errs = append(errs, supported(ref.Resource, path.Child("resource"), resourceFieldPaths...)...)
	}
	return append(errs, divisor(ref, path)...)
}

var (
	cpuDivisors   = sets.New("1m", "1")
	bytesDivisors = sets.New("1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei")
)

func divisor(ref *corev1.ResourceFieldSelector, path *field.Path) field.ErrorList {
	if ref.Divisor.Cmp(resource.Quantity{}) == 0 {
		return nil
	}
	allowed, kinds := bytesDivisors, "values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the "
	_, name, _ := strings.Cut(ref.Resource, ".")
	switch {
	case name == "cpu":
		allowed, kinds = cpuDivisors, "values 1m and 1 are supported with the cpu"
	case name == "memory":
		kinds += "memory"
	case name == "ephemeral-storage":
		kinds += "local ephemeral storage"
	default:
		kinds += "hugepages"
	}
	if !allowed.Has(ref.Divisor.String()) {
		return field.ErrorList{field.Invalid(path.Child("divisor"), ref.Resource, "only divisor's "+kinds+" resource")}
	}
	return nil
}

func envFrom(sources []corev1.EnvFromSource, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, s := range sources {
		p := path.Index(i)
		if s.Prefix != "" {
			errs = append(errs, invalid(p.Child("prefix"), s.Prefix, validation.IsRelaxedEnvVarName(s.Prefix))...)
		}
		count := 0
		if s.ConfigMapRef != nil {
			count++
			errs = append(errs, invalid(p.Child("configMapRef", "name"), s.ConfigMapRef.Name, NameDNSSubdomain(s.ConfigMapRef.Name, true))...)
		}
		if s.SecretRef != nil {
			count++
			errs = append(errs, invalid(p.Child("secretRef", "name"), s.SecretRef.Name, NameDNSSubdomain(s.SecretRef.Name, true))...)
		}
		if count == 0 {
			errs = append(errs, field.Invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"))
		} else if count > 1 {
			errs = append(errs, field.Invalid(path, "", onlyOneField))
		}
	}
	return errs
}
