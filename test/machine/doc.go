// Package machine tests proa as a person meets it: the built binary, the real
// kubectl inside it, real containers, packets and files, as root on one machine.
//
// It uses ../../bin/proa (PROA names another one) and builds its own images,
// proa/busybox:1 and proa/web:v1 and v2, from this machine's busybox and the
// program in ./web; nothing comes from a registry but the one that a test runs on
// loopback itself. Every cluster is named machine-*, keeps its data in the test's
// temporary directory and is deleted at the end; one shared cluster serves the
// tests that need only a namespace.
//
// Tests wait for conditions with a bound and never for time. Traffic stays on
// loopback, on the pod networks of these clusters and in namespaces made here.
package machine
