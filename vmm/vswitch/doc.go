// Package vswitch is the built-in switch: it joins the network cards of a cluster's VMs into Ethernet segments, wherever they run, without any
// right on the hosts.
//
// There is no switch process. Each VM's worker has a Port for each segment that a card of it is plugged into, and a connection to every other
// port of the segment, so a segment is a full mesh of ports:
//
//	guest A ── Port A ═══ TCP, sealed ═══ Port B ── guest B
//	               ╚══════════ Port C ═════╝
//
// A frame from the guest goes to the port that its destination was last heard from, or to all. A frame from another port goes to the guest and
// never on, so there are no loops.
//
// The port with the lower VM number dials. Both ends know a key for the pair, from the replicated state; each connection derives its own two
// keys from that and from a number of each end, and every frame is sealed with AES-GCM under a counter. Who does not know the key cannot make
// the first frame, and what was recorded cannot be played back.
//
// A queue that is full drops frames, as a wire would; nothing that a guest or a peer sends makes a port wait.
//
// Lock order: Port.mu before link.mu; both are leaves otherwise, and neither is held over I/O.
package vswitch
