package kind

import (
	certificatesv1 "k8s.io/api/certificates/v1"
)

var CertificateSigningRequest = define[certificatesv1.CertificateSigningRequestList](Row[*certificatesv1.CertificateSigningRequest]{
	Names: Names{
		Group: "certificates.k8s.io", Version: "v1", Kind: "CertificateSigningRequest", Plural: "certificatesigningrequests",
		ShortNames: []string{"csr"},
		Scope:      Cluster,
		Prefix:     "certificatesigningrequests",
	},
	UnconditionalUpdate: true,
	Subresources: []Subresource{
		{Name: "approval", Kind: "CertificateSigningRequest", Verbs: []string{"get", "patch", "update"}},
	},
	Status: &DoorOf[*certificatesv1.CertificateSigningRequest]{},
})

var ClusterTrustBundle = define[certificatesv1.ClusterTrustBundleList](Row[*certificatesv1.ClusterTrustBundle]{
	Names: Names{
		Group: "certificates.k8s.io", Version: "v1", Kind: "ClusterTrustBundle", Plural: "clustertrustbundles",
		Scope:  Cluster,
		Prefix: "clustertrustbundles",
	},
})

var PodCertificateRequest = define[certificatesv1.PodCertificateRequestList](Row[*certificatesv1.PodCertificateRequest]{
	Names: Names{
		Group: "certificates.k8s.io", Version: "v1", Kind: "PodCertificateRequest", Plural: "podcertificaterequests",
		Scope:  Namespaced,
		Prefix: "podcertificaterequests",
	},
	Status: &DoorOf[*certificatesv1.PodCertificateRequest]{},
})
