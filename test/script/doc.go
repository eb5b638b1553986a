// Package script holds sessions of the command line as txtar files: what a person
// types, and what the answer must hold. testdata/*.txtar run side by side against
// one cluster named script, that has no pods of its own; each session works in a
// namespace of its own, $NS.
//
// It uses ../../bin/proa (PROA names another one) and needs root.
package script
