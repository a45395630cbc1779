// Package disk is a server's durable storage: the Raft log with its hard state and snapshot in one bbolt file, and the payloads of
// virtual machines in a store of files named by their SHA-256. It is floor 4: a shell, called by the loop in package server.
//
// A data directory belongs to one server of one cluster for ever:
//
//	<dir>/lock        flock of the process that uses the directory; holds its process number for people
//	<dir>/raft.db     bbolt: meta (format, cluster, server), hard state, snapshot, entries by index
//	<dir>/blobs/      payload files, named by their SHA-256 in hex; temporary files begin with "tmp-"
//	<dir>/workers/    one directory a worker process (see package server)
//	<dir>/disks/      copies of guest disks, one directory each: see Image
//
// State of a Store:
//
//	        Open                Save ok
//	(none) ------> open <-------------------+
//	                |   \___________________/
//	                | Save fails (full disk, I/O error)
//	                v
//	             poisoned: every later Save returns the first error
//
// Invariants:
//   - What Save reported as done survives a crash of the process and of the host.
//   - One Save is one transaction: after a crash all of it is there or nothing.
//   - A failed write is never retried: after a failed fsync the kernel may have dropped the pages and a second one would lie.
//   - Load returns exactly what was saved: each record carries a CRC-32C, and a summary tells where the log begins and ends.
//     Everything else is ErrCorrupt, and never a shorter log: a voter that forgets what it promised can split the cluster.
//
// Locks: Store.mu protects the poison mark and the held-back commit index; the bbolt transaction runs under it.
package disk
