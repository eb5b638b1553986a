package kind

import (
	"sync"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Scheme knows the types of All, what subresources exchange, and the meta
// kinds. It is built once, on first use, and never changes. It converts nothing
// and defaults nothing: rows do.
var Scheme = sync.OnceValue(func() *runtime.Scheme {
	s := runtime.NewScheme()
	seen := map[schema.GroupVersion]bool{}
	version := func(gv schema.GroupVersion) {
		if !seen[gv] {
			seen[gv] = true
			metav1.AddToGroupVersion(s, gv)
		}
	}
	for _, k := range All.Rows() {
		gv := k.GVK().GroupVersion()
		version(gv)
		s.AddKnownTypeWithName(k.GVK(), k.New())
		if k.NewList != nil {
			s.AddKnownTypeWithName(gv.WithKind(k.Kind+"List"), k.NewList())
		}
	}
	for gv, objects := range map[schema.GroupVersion][]runtime.Object{
		corev1.SchemeGroupVersion: {&corev1.PodExecOptions{}, &corev1.PodAttachOptions{}, &corev1.PodPortForwardOptions{},
			&corev1.PodProxyOptions{}, &corev1.PodLogOptions{}, &corev1.NodeProxyOptions{}, &corev1.ServiceProxyOptions{},
			&corev1.List{}, &corev1.SerializedReference{}},
		policyv1.SchemeGroupVersion:         {&policyv1.Eviction{}},
		autoscalingv1.SchemeGroupVersion:    {&autoscalingv1.Scale{}},
		authenticationv1.SchemeGroupVersion: {&authenticationv1.TokenRequest{}},
	} {
		version(gv)
		s.AddKnownTypes(gv, objects...)
	}
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	return s
})
