package lapic

// Registers, by number: the low byte of their MSR, and a sixteenth of their offset in memory.
const (
	regID        = 0x02
	regVersion   = 0x03
	regTPR       = 0x08
	regAPR       = 0x09
	regPPR       = 0x0a
	regEOI       = 0x0b
	regLDR       = 0x0d
	regDFR       = 0x0e
	regSVR       = 0x0f
	regISR       = 0x10
	regTMR       = 0x18
	regIRR       = 0x20
	regESR       = 0x28
	regICR       = 0x30
	regICRHigh   = 0x31
	regLVT       = 0x32
	regInitial   = 0x38
	regCurrent   = 0x39
	regDivide    = 0x3e
	regSelf      = 0x3f
	regVectorEnd = regIRR + 8
	regLVTEnd    = regLVT + lvtCount

	version = 0x14 | (lvtCount-1)<<16

	// MSRBase is the MSR of register 0, MSREnd the one after the last.
	MSRBase = 0x800
	MSREnd  = 0x900
	// Bytes is the size of the registers in memory.
	Bytes = 0x1000
)

// Effect is what a write to a register asks of the outside.
type Effect struct {
	IPI     IPI
	Send    bool // the IPI is to be sent
	Renamed bool // the APIC's name changed
	Timer   bool // Due may have changed
}

// ReadMSR reads a register in x2APIC mode; false is a general protection fault.
func (a *APIC) ReadMSR(index uint32, now Nanos) (uint64, bool) {
	if a.Mode() != X2APIC || index < MSRBase || index >= MSREnd {
		return 0, false
	}
	switch reg := index - MSRBase; reg {
	case regICR:
		return a.ICR, true
	case regICRHigh, regDFR, regAPR:
		return 0, false
	default:
		v, ok := a.read(reg, now)
		return uint64(v), ok
	}
}

// WriteMSR writes a register in x2APIC mode; false is a general protection fault.
func (a *APIC) WriteMSR(index uint32, v uint64, now Nanos) (Effect, bool) {
	if a.Mode() != X2APIC || index < MSRBase || index >= MSREnd {
		return Effect{}, false
	}
	switch reg := index - MSRBase; {
	case reg == regICR:
		a.ICR = v &^ icrReadOnly
		return a.send(), true
	case v>>32 != 0:
		return Effect{}, false
	case reg == regSelf:
		if v > 0xff {
			return Effect{}, false
		}
		return a.checked(IPI{Short: Self, Vector: byte(v), Assert: true}), true
	case (reg == regEOI || reg == regESR) && v != 0, reg == regTPR && v > 0xff:
		return Effect{}, false
	case reg == regID || reg == regLDR || reg == regDFR || reg == regICRHigh:
		return Effect{}, false
	default:
		return a.write(reg, uint32(v), now)
	}
}

// ReadMemory reads size bytes at an offset of the registers in memory.
func (a *APIC) ReadMemory(offset uint64, size int, now Nanos) uint64 {
	if offset%16+uint64(size) > 4 {
		return 0 // not within one register
	}
	var v uint32
	switch reg := uint32(offset / 16); reg {
	case regID:
		v = a.ID << 24
	case regLDR:
		v = a.LDR
	case regDFR:
		v = a.DFR
	case regICR:
		v = uint32(a.ICR)
	case regICRHigh:
		v = uint32(a.ICR >> 32)
	case regAPR, regEOI:
	default:
		var ok bool
		if v, ok = a.read(reg, now); !ok {
			a.raiseError(errorRegister)
		}
	}
	return uint64(v) >> (8 * (offset % 16)) & (1<<(8*size) - 1)
}

// WriteMemory writes to the registers in memory. Writes other than of 32 aligned bits are undefined (SDM), and ignored here.
func (a *APIC) WriteMemory(offset uint64, size int, data uint64, now Nanos) Effect {
	if size != 4 || offset%16 != 0 {
		return Effect{}
	}
	v := uint32(data)
	switch reg := uint32(offset / 16); reg {
	case regLDR:
		a.LDR = v & 0xff000000
		return Effect{Renamed: true}
	case regDFR:
		a.DFR = v | 0x0fffffff
		return Effect{Renamed: true}
	case regICR:
		a.ICR = a.ICR&^0xffffffff | uint64(v)&^icrReadOnly
		return a.send()
	case regICRHigh:
		a.ICR = a.ICR&0xffffffff | uint64(v&0xff000000)<<32
		return Effect{}
	case regID, regAPR:
		return Effect{} // fixed
	default:
		e, ok := a.write(reg, v, now)
		if !ok {
			a.raiseError(errorRegister)
		}
		return e
	}
}

// read reads a register that is the same in both modes.
func (a *APIC) read(reg uint32, now Nanos) (uint32, bool) {
	switch {
	case reg == regID:
		return a.ID, true
	case reg == regVersion:
		return version, true
	case reg == regTPR:
		return a.TPR, true
	case reg == regPPR:
		return a.PPR(), true
	case reg == regLDR:
		return x2LDR(a.ID), true
	case reg == regSVR:
		return a.SVR, true
	case reg >= regISR && reg < regTMR:
		return a.ISR[reg-regISR], true
	case reg >= regTMR && reg < regIRR:
		return a.TMR[reg-regTMR], true
	case reg >= regIRR && reg < regVectorEnd:
		return a.IRR[reg-regIRR], true
	case reg == regESR:
		return a.ESR, true
	case reg >= regLVT && reg < regLVTEnd:
		return a.LVT[reg-regLVT], true
	case reg == regInitial:
		return a.Timer.Initial, true
	case reg == regCurrent:
		return a.current(now), true
	case reg == regDivide:
		return a.Timer.Divide, true
	}
	return 0, false
}

// write writes a register that is the same in both modes.
func (a *APIC) write(reg, v uint32, now Nanos) (Effect, bool) {
	switch {
	case reg == regTPR:
		a.TPR = v & 0xff
	case reg == regEOI:
		a.end()
	case reg == regSVR:
		a.SVR = v & svrBits
		for i := range a.LVT {
			if v&svrEnabled == 0 {
				a.LVT[i] |= lvtMasked
			}
		}
	case reg == regESR:
		a.ESR, a.Errors = a.Errors, 0
	case reg >= regLVT && reg < regLVTEnd:
		a.writeLVT(int(reg-regLVT), v, now)
		return Effect{Timer: true}, true
	case reg == regInitial:
		a.setInitial(v, now)
		return Effect{Timer: true}, true
	case reg == regDivide:
		a.setDivide(v, now)
		return Effect{Timer: true}, true
	default:
		return Effect{}, false
	}
	return Effect{}, true
}

func (a *APIC) writeLVT(i int, v uint32, now Nanos) {
	if a.SVR&svrEnabled == 0 {
		v |= lvtMasked
	}
	if i == lvtTimer && (v^a.LVT[i])&lvtPeriodic != 0 { // the count goes on in the new mode
		count := a.current(now)
		a.Timer.Count, a.Timer.Since, a.Timer.Running = count, now, count != 0
	}
	a.LVT[i] = v & lvtBits[i]
}
