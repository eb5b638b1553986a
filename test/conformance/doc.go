// Package conformance holds proa to Kubernetes' conformance behaviours.
//
// testdata/behaviours.tsv names all of them for v1.37: the file that upstream
// groups them in, the release they came with, their name (source: cncf/k8s-conformance,
// docs/KubeConformance-1.37). Each behaviour that a server decides has one subtest
// of TestConformance under that name, written from what the behaviour promises,
// with client-go as its only means.
//
// Without flags the suite runs against a server in the test's own process: store
// in memory, the API with its whole authentication, authorization and admission,
// all controllers, the scheduler, and two hollow nodes that say of every pod what
// a kubelet would, without running anything. With -kubeconfig it runs against any
// cluster; then -image is what the pods run.
//
// docs/CONFORMANCE.md says for each behaviour whether it passes; -update writes it.
package conformance
