// Package pod is the life cycle of one pod on its node as a pure step machine:
//
//	Step(state, event, now) → (state, effects)
//
// Effects are carried out elsewhere (package node) and come back as events.
// Nothing here reads a clock, a file, a socket or a random number. Stages only
// move forward, except that a lost sandbox brings Running back to Starting as a
// new attempt with a new number. Effects are at most once on their way: a deed
// that was asked is not asked again before its answer, and a failed one is
// repeated after a growing pause that Wake announces.
//
// The table says, for every stage and event, to which stages it may lead; "-" is
// "stays, and at most takes note". A test holds this text against the code.
//
//	event            Waiting                     Starting                    Running                     Draining           Stopping  Cleaning                Finished       Removing
//	update           -                           Draining,Stopping,Cleaning  Draining,Stopping,Cleaning  Stopping           -         -                       Removing       -
//	removed          Cleaning                    Stopping,Cleaning           Stopping,Cleaning           -                  -         -                       Removing,Gone  Gone
//	admitted         Starting,Cleaning           Stopping,Cleaning           Stopping,Cleaning           Stopping           -         -                       -              -
//	rejected         Cleaning,Finished           Stopping,Cleaning           Stopping,Cleaning           Stopping           -         -                       -              -
//	adopted          Starting,Stopping,Cleaning  Stopping,Cleaning           Stopping,Cleaning           Stopping           -         -                       -              -
//	mounted          -                           Running,Stopping,Cleaning   -                           -                  -         -                       -              -
//	unmounted        -                           -                           -                           -                  -         Finished,Removing,Gone  -              -
//	sandbox-up       -                           Running,Cleaning            -                           -                  -         -                       -              -
//	sandbox-lost     -                           Cleaning                    Starting,Stopping,Cleaning  Cleaning           Cleaning  -                       -              -
//	pulled           -                           Stopping,Cleaning           Stopping,Cleaning           Stopping           -         -                       -              -
//	launched         -                           Stopping,Cleaning           Stopping,Cleaning           Stopping           Cleaning  -                       -              -
//	exited           -                           Stopping,Cleaning           Stopping,Cleaning           Stopping,Cleaning  Cleaning  -                       -              -
//	hook-done        -                           Cleaning                    Cleaning                    Stopping           -         -                       -              -
//	probed           -                           Stopping,Cleaning           Stopping,Cleaning           -                  -         -                       -              -
//	drained          -                           Stopping,Cleaning           Stopping,Cleaning           Stopping           -         -                       -              -
//	stop-failed      -                           Stopping,Cleaning           Stopping,Cleaning           -                  -         -                       -              -
//	sandbox-stopped  -                           -                           -                           -                  -         -                       -              -
//	sandbox-removed  -                           -                           -                           -                  -         -                       -              Gone
//	deleted          -                           -                           -                           -                  -         -                       -              -
//	evict            -                           Draining,Stopping,Cleaning  Draining,Stopping,Cleaning  -                  -         -                       -              -
//	tick             -                           Stopping,Cleaning           Stopping,Cleaning           Stopping           -         -                       -              -
//	nudge            -                           Stopping,Cleaning           Stopping,Cleaning           Stopping           -         -                       -              -
//
// Sources: Kubernetes docs "Pod Lifecycle", "Init Containers", "Sidecar
// Containers"; KEPs 753, 2000, 5307. Wording of reasons and messages is upstream's.
package pod
