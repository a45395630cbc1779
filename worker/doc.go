// Package worker is the process that holds one VM's part on one server: the KVM file descriptors, the vCPU threads, this part's guest
// memory, and, on the home part, the devices. It is started by serve, outlives it, and is adopted by the next one.
//
//	            ctl.sock                    page plane (TCP)
//	serve <---------------> control    <--------------------> other parts' workers
//	                           |                 |
//	                           v                 v
//	                         guard <--- plane: mem.Core under one lock
//	                           |           ^            |
//	                           v           | faults     v map, protect, revoke
//	                     vCPU threads ---> userfaultfd, memfd
//	                           |
//	                           v device operations
//	                         home (here, or asked over the page plane)
//
// # A part's life
//
//	started -> ready (waits for members) -> loading (home writes the image) -> running -> ended -> stopped by serve
//
// # Threads
//
// Whoever has an event for the page protocol carries it through to its effects on its own thread, under plane.mu: the fault reader, each
// peer's reader (package link), the timer, a device. No queue and no hand-over lies between a page fault and the request on the wire, nor
// between the reply and the vCPU that waits for it. Those threads run at nice -20, vCPU threads at 0: a vCPU that spins while it
// waits for a page must not keep the thread that brings it from running.
//
// # Lock order
//
// From the outside in; a lock may be held when one to its right is taken, never the other way round:
//
//	handovers.cutting  replicas.tracking  cutter.mu  pauses.mu  home.accessMu  home.settling  home.mu  plane.mu, the pager's  guestDisk.mu
//	holder.mu  guard.mu  vcpuMu
//	holder.mu  plane.mu
//
// All others are leaves; so control.send, which takes one and never waits, may be called with any lock held. standby.mu is of a part that is not home yet.
// No lock is held over a call that waits for another part, but handovers.cutting: nothing that comes from outside wants that one.
//
// # Invariants
//
//   - No guest instruction runs, no peer is answered and no output leaves while the server's lease has lapsed.
//   - Go code never touches the guest mapping (see vmm/ram, which does where the kernel alone serves faults).
//   - Contents of a page are read for sending only after the effect that took the guest's write access away.
//
// # Jail
//
// Once set up the process enters a jail (see package jail), for good: from then on it can open no file and make no socket. What it may need later is
// opened at set-up (files.go), and connections to other parts are made by serve and handed over (usher.go).
package worker
