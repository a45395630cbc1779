// Package machine puts a Linux machine together: memory, vCPUs, the platform's fixed hardware, a PCI bus with virtio devices.
//
// It has two halves, since the two may live on different servers:
//
//	Board    the devices: what answers port and memory-mapped accesses, and raises interrupts. One per VM, at its home part.
//	Machine  the processors: KVM, memory slots, vCPU threads.
//
//	vCPU thread ──exit──► Machine ──Access──► Board ──► serial, I/O APIC, platform, PCI functions
//	                         ▲                                   │
//	                         └── SignalMSI: local APICs ◄────────┘
//
// A machine over several parts has a Seat for each vCPU, and in each part Interrupts, instead: its local APICs are outside KVM (package lapic).
//
//	vCPU thread ──exit──► Seat ──Access (asked of the home part)──► Board
//	                       │ ▲                                        │
//	  Forward, Deliver ◄─► Interrupts: local APICs ◄──── Signal ──────┘
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
// Lock order: Machine.mu and Interrupts.mu are leaves; they are never held over a call into a device or into KVM.
package machine
