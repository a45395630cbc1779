// Package link moves messages between processes: page traffic between the workers of one VM (Pages), and agreement between the servers
// of a cluster (Peers). It is floor 4, a shell: it owns sockets, threads and deadlines, and decides nothing. What it reports about
// peers (PeerDown) is a hint.
//
// # The page plane
//
// One connection joins each pair of a VM's parts. The lower part dials. Its life, as the handler sees it:
//
//	         SetMembers            handshake
//	stranger ─────────▶ connecting ─────────▶ up ──────────────▶ up, silent
//	    ▲                   ▲                 │   PeerUp    PeerDown(false) │ PeerUp when heard again
//	    │                   └── PeerDown(true)┴────────────────────────────┘
//	    └──────────────────── SetMembers without it, from anywhere; nothing is reported
//
// A remote page fault waits for two messages, so a message must cost little more than the kernel's part of it:
//
//   - Sockets are outside Go's network poller, and each has a reader blocked in read(2) on a thread of its own at nice -20. A vCPU that
//     spins on every core then does not delay the thread that brings its page.
//   - A frame is decoded where it was read, and handled to completion on that very thread, which also sends what the handler
//     answers. No goroutine is woken in between, and nothing is allocated.
//   - A sender writes to the socket itself, without blocking. Only what a full socket does not take goes to a queue, which a writer
//     thread drains. The queue is bounded; a peer that lets it fill is disconnected, and the protocol sees lost messages.
//   - Threads that wait for each other's work wait on futexes (Request, package futex), since the scheduler takes several wake-ups to
//     wake a goroutine that is locked to its thread.
//
// A reader that returns from its system call needs a P of the Go scheduler. In a process with vCPU threads, whose calls last long, set
// GOMAXPROCS to the number of cores plus the number of such threads plus 8, so that one is always free: otherwise the reader may wait
// until the scheduler's monitor takes one back, which is usually 20 us but up to 10 ms when the process was idle before.
//
// Invariants: a handler's calls for one peer never overlap; what one sender flushes to one peer arrives in order or the connection breaks;
// a frame of another VM, or of another epoch than this side's, never reaches the handler; no call but Request and Close waits for
// anything but a lock, and Request never longer than its deadline.
//
// # The monitor plane
//
// Each server dials each other; a connection carries envelopes from the side that dialed it. See Peers.
//
// # Strangers
//
// Every connection starts with a handshake in which both sides prove that they know a secret (see wire.Handshake). Until then the other
// side can make this one allocate a few hundred bytes, for the handshake's time limit, in a limited number of connections. After it, malformed
// bytes still cost the connection, and are counted.
package link
