// Package monitor is the deciding part of one server. It composes the pure cores of floor 2, and is itself pure: its shell tells it the
// time and what happened through [Core.Step], and carries out what [Core.Ready] hands back.
//
// # The shell's loop
//
//	for {
//		select an event: a peer's message, a proposal, a worker's message, or the passing of NextDeadline
//		core.Step(now, event)
//		for core.HasReady() {
//			rd := core.Ready()
//			write rd.Persist to disk, atomically, flushed if MustSync     // first
//			send rd.Messages                                              // only then
//			carry out rd.Actions, answer rd.Responses, publish rd.Events  // in any order
//			core.Advance(now)
//		}
//	}
//
// The time is that of CLOCK_BOOTTIME in microseconds: it goes on while the machine sleeps, so that a lease lapses then too. It must be read
// after the event was received, right before Step: leases and exclusions count from it, and a server may be stopped at any instruction.
// Messages may be lost, repeated and reordered. A message for a server without a connection may be dropped, never queued for long.
//
// # Where a server stands
//
//	        quorum reached, own record read
//	start -------------------------------> catching up
//	                                        |      |
//	     record live, its workers adopted   |      |  record joining or dead, or workers of a live one are all gone
//	                              (Resume)  v      v
//	                                  acting <--- fencing: every worker killed, then Admit
//	                                        |      ^
//	                                        +------+  excluded from the view
//
// Acting needs a lease; without one the server starts nothing, and its workers stop by themselves.
//
// # Invariants
//
//   - No lease is granted from a request that was sent before this process's own record was in the view.
//   - Every action on workers names the incarnation it was decided under; KillWorkers comes before any Admit.
//   - The reconciler is driven by levels, not edges: what it wants follows from the registry and the known workers alone, so a repeated
//     or lost action does no harm.
package monitor
