// Package machine puts a Linux machine together: memory, vCPUs, the platform's fixed hardware, a PCI bus with virtio devices.
//
// It has two halves, since the two may live on different servers:
//
//	Board    the devices: what answers port and memory-mapped accesses, and raises interrupts. One per VM, at its home part.
//	Machine  the processors: KVM, memory slots, vCPU threads, stand-ins for vCPUs that run elsewhere. One per VM part.
//
//	vCPU thread ──exit──► Machine ──Access──► Board ──► serial, I/O APIC, platform, PCI functions
//	                         ▲        (here, or asked of the home part)         │
//	                         └── SignalMSI: local APICs, stand-ins ◄── message ─┘
//
// A machine's life:
//
//	new ──Load──► loaded ──Start──► running ◄──Pause/Resume──► paused
//	                                   │ ▲
//	                           reset   │ │ memory cleared, kernel loaded again, vCPUs as new
//	                                   ├─┘
//	                                   ▼ power off, triple fault, KVM error, Stop
//	                                 ended: Wait returns the Outcome
//
// Lock order: Machine.mu is a leaf; it is never held over a call into a device or into KVM.
package machine
