// Package term has the one type that streams to a terminal need, so that real
// and simulated engines share it.
package term

// Size is a terminal's, in characters.
type Size struct{ Width, Height uint16 }
