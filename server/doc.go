// Package server is the serve process of one server: the shell around monitor.Core. It is floor 5.
//
//	      peers (link)   control API   gossip (serf)   workers (supervisor)   processes of this host (proof)
//	           \             |              |                  |                     /
//	            +------------+------ inbox: monitor.Event -----+--------------------+
//	                                        |
//	                                   the loop, which alone owns the core
//	                                        |
//	           disk first, then messages, then actions and responses; at last a new snapshot on the board
//	                                        |
//	     +----------------+-----------------+---------------------+-----------------------+
//	   disk            peers             supervisor: one        board: what API calls    attend: addresses of peers, watched
//	(raft.db)      (messages out)        goroutine set a worker   read, never blocking    processes, payloads no longer needed
//
// # Stopping
//
// A serve process that ends in good order (SIGTERM) leaves its workers running, so that its successor, perhaps a newer program, adopts
// them: it has as long as the lease lasts. Who wants the workers gone too ends them after serve, or calls StopServer. A serve process
// that fails (its disk does not take a write) kills its workers first: the others then have proof, and need not wait for a lease.
//
// # Invariants
//
//   - Only the loop's goroutine touches the core, and nothing it calls blocks on the network, on a worker or on a reader.
//   - Nothing is sent that rests on a promise which is not on disk.
//   - A worker is signalled through a pidfd whose process was checked after it was opened, never through a bare PID.
//   - ProcessGone is reported only after the serve process and then every worker of the server was seen to have ended, threads and all.
//   - The clock is CLOCK_BOOTTIME everywhere: the time of a suspended machine counts against its lease.
//
// Lock order: supervisor.mu before worker.mu; all other locks are leaves.
package server
