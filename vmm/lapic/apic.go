package lapic

// Mode is what IA32_APIC_BASE says.
type Mode uint8

// The modes.
const (
	Off    Mode = iota
	XAPIC       // registers in memory
	X2APIC      // registers are MSRs
)

// Bits of IA32_APIC_BASE.
const (
	baseBoot    = 1 << 8
	baseX2APIC  = 1 << 10
	baseEnabled = 1 << 11
	baseAddr    = 0x0000_000f_ffff_f000

	// DefaultAddr is where the registers lie in memory after a reset.
	DefaultAddr = 0xfee00000
)

// The local vector table's entries, in the order of their registers.
const (
	lvtTimer = iota
	lvtThermal
	lvtPerformance
	lvtLINT0
	lvtLINT1
	lvtError
	lvtCount
)

const (
	lvtMasked   = 1 << 16
	lvtPeriodic = 1 << 17

	svrEnabled = 1 << 8
	svrBits    = 0x3ff

	// Bits of the error status register.
	errorSendVector    = 1 << 5
	errorReceiveVector = 1 << 6
	errorRegister      = 1 << 7

	firstVector = 16 // lower ones are exceptions
)

// lvtBits are the bits of each entry that can be written.
var lvtBits = [lvtCount]uint32{
	lvtTimer: 0x300ff, lvtThermal: 0x107ff, lvtPerformance: 0x107ff, lvtLINT0: 0x1a7ff, lvtLINT1: 0x1a7ff, lvtError: 0x100ff,
}

// State is all that a local APIC is. It can be copied.
type State struct {
	ID      uint32
	Base    uint64 // IA32_APIC_BASE
	TPR     uint32
	LDR     uint32 // of the xAPIC mode
	DFR     uint32
	SVR     uint32
	ESR     uint32 // as last latched
	Errors  uint32 // since then
	ICR     uint64
	LVT     [lvtCount]uint32
	ISR     Vectors
	IRR     Vectors
	TMR     Vectors
	Timer   Timer
	NMI     bool // one waits
	INIT    bool // one waits
	Waiting bool // for SIPI
	SIPI    bool // one waits
	Start   byte // its vector
}

// APIC is one local APIC. Its methods are not for concurrent use.
type APIC struct{ State }

// New makes the local APIC with an ID, as it is after power-up. Every vCPU but the boot vCPU waits to be started.
func New(id uint32, boot bool) *APIC {
	a := &APIC{}
	a.Reset(id, boot)
	return a
}

// Reset is a power-up.
func (a *APIC) Reset(id uint32, boot bool) {
	a.State = State{ID: id, Base: DefaultAddr | baseEnabled, Waiting: !boot}
	if boot {
		a.Base |= baseBoot
	}
	a.initRegisters()
}

// initRegisters makes the registers what they are after power-up and after INIT alike (SDM "Local APIC State After Power-Up or Reset").
func (a *APIC) initRegisters() {
	s := State{ID: a.ID, Base: a.Base, DFR: 0xffffffff, SVR: 0xff, NMI: a.NMI, INIT: a.INIT, Waiting: a.Waiting, SIPI: a.SIPI, Start: a.Start}
	for i := range s.LVT {
		s.LVT[i] = lvtMasked
	}
	a.State = s
}

// Mode tells which mode the APIC is in.
func (a *APIC) Mode() Mode {
	switch {
	case a.Base&baseEnabled == 0:
		return Off
	case a.Base&baseX2APIC == 0:
		return XAPIC
	}
	return X2APIC
}

// IsBoot tells whether it is the boot vCPU's.
func (a *APIC) IsBoot() bool { return a.Base&baseBoot != 0 }

// SetBase takes over a value of IA32_APIC_BASE, which the caller has found valid. It reports whether the APIC's name changed.
func (a *APIC) SetBase(v uint64) bool {
	if v == a.Base {
		return false
	}
	before := a.Mode()
	a.Base = v
	switch mode := a.Mode(); {
	case mode == before:
		return false
	case mode == Off: // all state is lost
		a.initRegisters()
	case mode == X2APIC && before == XAPIC:
		a.ICR &= 0xffffffff // the destination has another format (SDM "x2APIC State Transitions")
	}
	return true
}

// Contains tells whether a guest-physical address is one of the registers in memory, in the present mode.
func (a *APIC) Contains(addr uint64) bool {
	return a.Mode() == XAPIC && addr&^0xfff == a.Base&baseAddr
}

// enabled tells whether software has switched the APIC on.
func (a *APIC) enabled() bool { return a.Mode() != Off && a.SVR&svrEnabled != 0 }

// Vectors is a set of vectors.
type Vectors [8]uint32

func (s *Vectors) add(v byte)    { s[v/32] |= 1 << (v % 32) }
func (s *Vectors) remove(v byte) { s[v/32] &^= 1 << (v % 32) }
