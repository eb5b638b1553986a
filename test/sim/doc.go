// Package sim is the simulation of a whole cluster: every decider, the real verbs
// in process over a store that crashes, agents with the real life cycle of pods
// over a small engine, a network and clocks that misbehave, and users who do not
// wait; all from one seed in one goroutine. docs/simulation.md lists what is
// checked.
//
//	go test ./test/sim -run TestSeeds -args -n=100 -seed=8812
//
// It has tests only.
package sim
