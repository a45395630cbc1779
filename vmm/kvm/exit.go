package kvm

import "fmt"

// Reason tells why Run returned.
type Reason uint8

// The reasons, with the fields of Exit that go with each.
const (
	// Interrupted: kicked, or any signal at all, or the guest can be interrupted now (see WantInterruptible). Its state is consistent; ask why and
	// run on.
	Interrupted Reason = iota
	// IO: port input or output. Write, Port, Size, Count; Data holds the (first) value written. Answer input by SetIO before the next Run.
	IO
	// MMIO: access to guest-physical memory that has no slot. Write, Addr, Size, Data. Answer a read by SetMMIO before the next Run.
	MMIO
	// Halt: HLT without an interrupt controller in the kernel.
	Halt
	// MSR: access to a model-specific register that KVM does not know; see EnableMSRExits. Write, Index, Data. Answer by SetMSR before the next Run.
	MSR
	// Shutdown: a triple fault. The guest is over.
	Shutdown
	// InternalError: KVM cannot go on. Code is KVM's suberror (1 = emulation failed). The guest is over.
	InternalError
	// FailEntry: the processor refused the guest's state. Detail is its reason. The guest is over.
	FailEntry
	// Unknown: an exit that was not asked for. Code is KVM's number of it. The guest is over.
	Unknown
)

var reasonNames = [...]string{"interrupted", "port I/O", "MMIO", "halt", "model-specific register", "shutdown (triple fault)", "KVM internal error", "failed entry", "unknown exit"}

// String names the reason.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// Exit is what stopped the guest: a small value, so that Run allocates nothing.
type Exit struct {
	Addr   uint64 // MMIO: guest-physical address
	Data   uint64 // IO, MMIO, MSR: the value written
	Detail uint64 // FailEntry: the hardware's reason; InternalError: its first datum
	Code   uint32 // InternalError: suberror; Unknown: KVM's exit number
	Index  uint32 // MSR
	Count  uint32 // IO: how many items of Size bytes (more than 1 for REP OUTS and REP INS, see IOData)
	Port   uint16 // IO
	Reason Reason
	Size   uint8 // IO, MMIO: bytes
	Write  bool  // IO, MMIO, MSR: the guest writes
}

// String describes the exit for people.
func (e Exit) String() string {
	dir := "read"
	if e.Write {
		dir = "write"
	}
	switch e.Reason {
	case IO:
		return fmt.Sprintf("port I/O: %s of %d bytes, port 0x%x, value 0x%x", dir, uint32(e.Size)*e.Count, e.Port, e.Data)
	case MMIO:
		return fmt.Sprintf("memory access outside RAM: %s of %d bytes at guest-physical 0x%x", dir, e.Size, e.Addr)
	case MSR:
		return fmt.Sprintf("%s of model-specific register 0x%x, value 0x%x", dir, e.Index, e.Data)
	case InternalError:
		return fmt.Sprintf("KVM internal error, suberror %d, data 0x%x", e.Code, e.Detail)
	case FailEntry:
		return fmt.Sprintf("failed entry, hardware reason 0x%x", e.Detail)
	case Unknown:
		return fmt.Sprintf("unknown exit %d", e.Code)
	}
	return e.Reason.String()
}

// Fatal tells whether the guest cannot go on after the exit.
func (e Exit) Fatal() bool { return e.Reason >= Shutdown }
