// Package cells is the agreement of a cluster: which servers exist, in which cells, who of them is alive, and which virtual machines run
// where. It is floor 2 and pure: no clock, no goroutine, no I/O.
//
// Three things live here.
//
//   - [State] and [FSM]: the replicated state (servers, view, registry of VMs, events) and the one deterministic function that changes
//     it, Apply, driven by [Command] values from the log.
//   - [Replica]: one member of the Raft group that keeps the log, a pure wrapper around go.etcd.io/raft/v3's RawNode. It hands its
//     duties out as [Ready] values.
//   - [Lease] and [Contacts]: what lets a server act, and what lets the leader exclude one that may no longer act.
//
// # A server's life
//
//	          AddServer              Admit                     Exclude (lease lapsed, or proof)
//	(nothing) ---------->  joining  ------>  live  (view) --------------------------------------> dead
//	                                          | ^  \__ Resume: same incarnation, new process        |
//	                                          |_|                                                   |
//	                                             <------------ Admit: a new incarnation ------------+
//
// # Invariants
//
//   - The epoch only grows, and grows by one with every change of the view.
//   - A server's incarnation is the epoch of the view that admitted it. Two incarnations of one server never both act: the later
//     one is admitted only by a process that has killed the workers of the former (the Admit command compares incarnation and boot with
//     what is recorded, so that a late one changes nothing).
//   - A server holds a lease only if a quorum confirmed, after the lease was asked for, that no view had excluded it; and a view excludes
//     a server only once every such lease must have run out on the server's own clock, or on proof that its processes are gone.
package cells
