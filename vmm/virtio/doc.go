// Package virtio is the devices of a Linux machine: virtio 1.x over PCI with MSI-X. Block, network, console, entropy, balloon.
//
//	vCPU thread: BAR accesses ─► Device (registers) ─ notify ─► queue's goroutine ─► Backend.Handle ─► Queue.Pop … Push ─► MSI-X
//
// A driver is hostile until proven otherwise. Every index, address and length that comes from the guest is checked; whatever is wrong breaks
// the device: it says "needs reset" in its status, answers no queue any more, and goes on after the guest has reset it. Nothing else happens.
//
//	reset ─► set up by the driver ─DRIVER_OK─► live ──bad ring──► broken
//	  ▲                                          │                  │
//	  └────────────────── status = 0 ◄───────────┴──────────────────┘
//
// Guest memory is reached through Memory alone, one access at a time, so that a VM that spans servers can bring each page here and hold it
// for the access.
//
// Lock order: Device.mu, then a queue's mu. A Backend is called with the queue's mu held and must not call back into registers.
package virtio
