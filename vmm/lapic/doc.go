// Package lapic is a model of the local APIC: registers in both modes, priorities, the timer, and who a message is for. It is what a VM has
// whose vCPUs run on several servers. KVM's own local APICs know only the vCPUs of their host, drop what is for another, and let the host's kernel
// fetch guest pages behind the back of whoever watches them; this one is plain state under whoever calls it, so that an interrupt can come
// from anywhere and the state can go anywhere.
//
// The package is pure: no clock, no lock. Time is given, in nanoseconds; what a register write asks of the outside comes back as an Effect.
//
//	a message ──Accept──► IRR ──Pending──► the vCPU can be interrupted ──Ack──► ISR ──EOI──► done
//	                 └──► NMI, INIT, SIPI: held until the vCPU's thread takes them
//
//	             INIT                      SIPI
//	running ────────────► waiting ────────────────► starting ──TakeStart──► running
//	                      (TakeINIT)
//
// Sources: Intel's Software Developer's Manual, volume 3, chapter "Advanced Programmable Interrupt Controller", abbreviated SDM.
//
// What differs from hardware: no interrupt comes by LINT0 and LINT1; there is no TSC-deadline mode (CPUID does not announce it); the end of a
// level-triggered interrupt is told to nobody, since the machine's I/O APIC has edges only; the lowest-priority target is chosen by the vector.
package lapic
