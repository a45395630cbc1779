// Package drill rehearses failure: it runs small programs, drills, that start VMs on a real cluster, break servers and cells under them, and
// state what must then hold. The language is Starlark; docs/drills.md is its reference.
//
//	            declare                act                      heal, check
//	file ----> [ about, cells, ] ---> [ drill() on one thread, ] ---> [ everything injected ] ---> report
//	           [ max_cells, …  ]      [ invariants in between  ]      [ is undone            ]
//
// A run has three phases. *Declare* executes the top level of the file; nothing of the cluster can be reached there, so listing and checking
// a drill never touches anything. *Act* calls the function drill. *Heal* undoes whatever was injected, in every case: at the end, on a failed
// expectation, on Ctrl-C; and since a runner may itself be killed, each injection is written to a journal in the cluster's directory first, from
// which [HealAt] undoes it later.
//
// # How things are seen
//
// One goroutine observes the cluster and publishes snapshots; one for each VM follows its output. Conditions look at the newest snapshot only:
// they never wait, and all parts of a condition see the same moment. What asks after an injection waits for a snapshot that was begun
// after it, so that the past is not taken for the answer. Starlark code runs on one goroutine: invariants are evaluated by whatever blocks.
//
// # Invariants
//
//   - Nothing is injected before the journal that names it is on disk.
//   - A process is signalled only by an identity (PID and start time) that was checked after its pidfd was opened.
//   - At no time are more cells broken than the drill's max_cells.
//   - A journal is removed only when its healing was checked.
package drill
