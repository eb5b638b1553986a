// Package sample tests the sample application on a real cluster: `proa demo` brings
// it up, the real kubectl scales, changes and breaks it, and headless Chromium looks
// at its page. Needs root, ../../bin/proa and ../../bin/images (`make build images`).
//
// The cluster is named sample-test, keeps its data in the test's directory and is
// deleted at the end. The page's Service is moved to a port of its own, so that the
// test does not meet a sample that runs beside it.
package sample
