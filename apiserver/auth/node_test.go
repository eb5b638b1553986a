package auth

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func pod(ns, name, node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(ns + "/" + name)}, Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "sa"}}
}

func TestNodeAuthorizer(t *testing.T) {
	local := func(n string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: n} }
	mine := pod("n", "mine", "a")
	device := "claimed"
	mine.Spec.ImagePullSecrets = []corev1.LocalObjectReference{local("pull")}
	mine.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "x", ResourceClaimName: &device}}
	mine.Spec.Volumes = []corev1.Volume{
		{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "vol"}}},
		{Name: "c", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: local("cvol")}}},
		{Name: "p", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{Secret: &corev1.SecretProjection{LocalObjectReference: local("proj")}}, {ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: local("cproj")}}}}}},
		{Name: "i", VolumeSource: corev1.VolumeSource{ISCSI: &corev1.ISCSIVolumeSource{SecretRef: &corev1.LocalObjectReference{Name: "chap"}}}},
		{Name: "d", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "claim"}}},
		{Name: "e", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
	}
	mine.Spec.InitContainers = []corev1.Container{{EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: local("envfrom")}}}}}
	mine.Spec.Containers = []corev1.Container{{Env: []corev1.EnvVar{
		{ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: local("env")}}},
		{ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: local("cenv")}}}}}}
	mine.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local("ceph")}}}}}}
	mirror := pod("n", "mirror", "a")
	mirror.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	mirror.Spec.ImagePullSecrets = []corev1.LocalObjectReference{local("stolen")}
	mirror.Spec.ServiceAccountName = "stolen"
	other := pod("n", "other", "b")
	other.Spec.ImagePullSecrets = []corev1.LocalObjectReference{local("theirs")}
	other.Spec.ServiceAccountName = "theirs"
	volume := func(name, claim, secret string) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{Namespace: "n", Name: claim},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{NodeStageSecretRef: &corev1.SecretReference{Namespace: "n", Name: secret}}}}}
	}
	claim := func(name, volume string) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: name}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: volume}}
	}
	attach := func(name, node string) *storagev1.VolumeAttachment {
		return &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: storagev1.VolumeAttachmentSpec{NodeName: node}}
	}
	v := loaded(mine, mirror, other, volume("pv", "claim", "stage"), volume("pv2", "else", "stage2"), claim("claim", "pv"), claim("else", "pv2"), attach("va", "a"), attach("vb", "b"))
	z := Node{v.Snapshot}
	a := User{Name: "system:node:a", Groups: []string{NodesGroup}}
	for text, want := range map[string]bool{
		"get -n n /secrets:pull": true, "list -n n /secrets:pull": true, "watch -n n /secrets:pull": true,
		"get -n n /secrets:vol": true, "get -n n /secrets:proj": true, "get -n n /secrets:envfrom": true, "get -n n /secrets:env": true,
		"get -n n /secrets:chap": true, "get -n n /secrets:stage": true, "get -n n /secrets:stage2": false,
		"get -n n /secrets:theirs": false, "get -n n /secrets:stolen": false, "get -n m /secrets:pull": false, "get -n n /secrets:cvol": false,
		"list -n n /secrets": false, "list /secrets": false, "watch /secrets": false, "update -n n /secrets:pull": false, "delete -n n /secrets:pull": false, "create -n n /secrets": false,
		"get -n n /configmaps:cvol": true, "get -n n /configmaps:cproj": true, "get -n n /configmaps:cenv": true, "get -n n /configmaps:ceph": true, "get -n n /configmaps:vol": false,
		"get -n n /persistentvolumeclaims:claim": true, "get -n n /persistentvolumeclaims:mine-e": true, "get -n n /persistentvolumeclaims:else": false,
		"list -n n /persistentvolumeclaims": false, "update -n n /persistentvolumeclaims/status:claim": true, "update -n n /persistentvolumeclaims:claim": false,
		"get /persistentvolumes:pv": true, "get /persistentvolumes:pv2": false, "get /persistentvolumes:none": false,
		"create -n n /serviceaccounts/token:sa": true, "create -n n /serviceaccounts/token:theirs": false, "create -n n /serviceaccounts/token:stolen": false,
		"create -n m /serviceaccounts/token:sa": false, "get -n n /serviceaccounts:sa": true, "list -n n /serviceaccounts": false, "update -n n /serviceaccounts:sa": false,
		"get resource.k8s.io/resourceclaims:claimed": false, "get -n n resource.k8s.io/resourceclaims:claimed": true, "get -n n resource.k8s.io/resourceclaims:x": false,
		"list resource.k8s.io/resourceslices": false, "list resource.k8s.io/resourceslices spec.nodeName=a": true, "list resource.k8s.io/resourceslices spec.nodeName=b": false,
		"get storage.k8s.io/volumeattachments:va": true, "get storage.k8s.io/volumeattachments:vb": false, "list storage.k8s.io/volumeattachments": false,
		"get -n kube-node-lease coordination.k8s.io/leases:a": true, "create -n kube-node-lease coordination.k8s.io/leases": true, "update -n kube-node-lease coordination.k8s.io/leases:a": true,
		"update -n kube-node-lease coordination.k8s.io/leases:b": false, "get -n kube-system coordination.k8s.io/leases:a": false, "list -n kube-node-lease coordination.k8s.io/leases": false,
		"create storage.k8s.io/csinodes": true, "update storage.k8s.io/csinodes:a": true, "update storage.k8s.io/csinodes:b": false, "list storage.k8s.io/csinodes": false,
		"get /nodes:a": true, "watch /nodes:a": true, "get /nodes:b": false, "list /nodes": false, "create /nodes": true, "update /nodes:a": true, "patch /nodes/status:a": true,
		"update /nodes/status:b": false, "delete /nodes:a": false, "get /nodes/proxy:a": false, "create /nodes/proxy:b": false,
		"list /pods": false, "list /pods spec.nodeName=a": true, "watch /pods spec.nodeName=a,status.phase!=Failed": true, "list /pods spec.nodeName!=b": false, "list /pods spec.nodeName=b": false,
		"get -n n /pods:mine": true, "get -n n /pods:other": false, "create -n n /pods": true, "delete -n n /pods:mine": true, "update -n n /pods/status:mine": true,
		"update -n n /pods:mine": false, "create -n n /pods/exec:other": false, "create -n n /pods/binding:other": false, "deletecollection -n n /pods": false,
		"create -n n /events": true, "patch -n n /events:e": true, "list /services": true, "list discovery.k8s.io/endpointslices": true,
		"create authentication.k8s.io/tokenreviews": true, "create authorization.k8s.io/subjectaccessreviews": true, "create certificates.k8s.io/certificatesigningrequests": true,
		"update certificates.k8s.io/certificatesigningrequests/approval:x": false, "list rbac.authorization.k8s.io/clusterroles": false, "get /metrics": false,
	} {
		if got, why := allowed(t, z, a, text); got != want {
			t.Errorf("%s: %v (%s)", text, got, why)
		}
	}
	if _, why := allowed(t, z, a, "get -n n /secrets:theirs"); why != "no relationship found between node 'a' and this object" {
		t.Error(why)
	}
	// Neither the name nor the group alone makes a node.
	for _, u := range []User{{Name: "system:node:a"}, {Name: "a", Groups: []string{NodesGroup}}, {Name: "system:node:", Groups: []string{NodesGroup}}} {
		for _, text := range []string{"get -n n /secrets:pull", "list /services", "create /nodes", "get /nodes:"} {
			if got, _ := allowed(t, z, u, text); got {
				t.Errorf("%+v may %s", u, text)
			}
		}
	}
}
