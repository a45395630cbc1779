package lapic

import (
	"slices"
	"testing"
)

// x2 returns an APIC in x2APIC mode that software has switched on.
func x2(t *testing.T, id uint32) *APIC {
	t.Helper()
	a := New(id, id == 0)
	if !a.SetBase(a.Base | baseX2APIC) {
		t.Fatal("the mode did not change the name")
	}
	a.msr(t, regSVR, 0x1ff)
	return a
}

func (a *APIC) msr(t *testing.T, reg uint32, v uint64) Effect {
	t.Helper()
	e, ok := a.WriteMSR(MSRBase+reg, v, 0)
	if !ok {
		t.Fatalf("writing 0x%x to register 0x%x faults", v, reg)
	}
	return e
}

func (a *APIC) get(t *testing.T, reg uint32, now Nanos) uint64 {
	t.Helper()
	v, ok := a.ReadMSR(MSRBase+reg, now)
	if !ok {
		t.Fatalf("reading register 0x%x faults", reg)
	}
	return v
}

func (a *APIC) wantPending(t *testing.T, want byte) {
	t.Helper()
	got, ok := a.Pending()
	if ok != (want != 0) || got != want {
		t.Fatalf("pending: 0x%x, %t, want 0x%x", got, ok, want)
	}
}

// "Task and Processor Priorities": an interrupt is delivered if its class is higher than the processor priority's.
func TestPriorities(t *testing.T) {
	a := x2(t, 0)
	a.Accept(NewMessage(Fixed, 0x31))
	a.Accept(NewMessage(Fixed, 0x35))
	a.wantPending(t, 0x35)
	a.Ack()
	a.wantPending(t, 0) // of the class that is in service
	a.Accept(NewMessage(Fixed, 0x41))
	a.wantPending(t, 0x41)
	a.Ack()
	if ppr := a.get(t, regPPR, 0); ppr != 0x40 {
		t.Errorf("PPR 0x%x with 0x41 in service", ppr)
	}
	a.msr(t, regEOI, 0)
	a.wantPending(t, 0)
	a.msr(t, regEOI, 0)
	a.wantPending(t, 0x31)
	a.msr(t, regTPR, 0x2f)
	a.wantPending(t, 0x31)
	a.msr(t, regTPR, 0x30)
	a.wantPending(t, 0)
	if ppr := a.get(t, regPPR, 0); ppr != 0x30 {
		t.Errorf("PPR 0x%x with TPR 0x30 and nothing in service", ppr)
	}
	a.msr(t, regTPR, 0)
	a.msr(t, regSVR, 0xff) // off by software: what is pending stays, nothing is delivered or accepted
	a.wantPending(t, 0)
	if a.Accept(NewMessage(Fixed, 0x77)) {
		t.Error("an APIC that is off accepted an interrupt")
	}
	a.msr(t, regSVR, 0x1ff)
	a.wantPending(t, 0x31)
}

func TestIllegalVectorsAreErrors(t *testing.T) {
	a := x2(t, 0)
	a.msr(t, regLVT+lvtError, 0x50)
	if e := a.msr(t, regICR, 1<<32|0x0f); e.Send {
		t.Error("vector 15 was sent")
	}
	a.Accept(NewMessage(Fixed, 3))
	a.wantPending(t, 0x50)
	if v := a.get(t, regESR, 0); v != 0 {
		t.Errorf("ESR 0x%x before it was latched", v)
	}
	a.msr(t, regESR, 0)
	if v := a.get(t, regESR, 0); v != errorSendVector|errorReceiveVector {
		t.Errorf("ESR 0x%x", v)
	}
	a.msr(t, regESR, 0)
	if v := a.get(t, regESR, 0); v != 0 {
		t.Errorf("ESR 0x%x with nothing new", v)
	}
}

func TestX2APICFaults(t *testing.T) {
	a := x2(t, 3)
	for _, reg := range []uint32{0, 1, regAPR, regEOI, regDFR, regICRHigh, regSelf, 0x2f, 0x38 + 2, 0x40, 0xff} {
		if v, ok := a.ReadMSR(MSRBase+reg, 0); ok {
			t.Errorf("register 0x%x read 0x%x", reg, v)
		}
	}
	for _, w := range []struct {
		reg uint32
		v   uint64
	}{{regID, 0}, {regVersion, 0}, {regPPR, 0}, {regLDR, 0}, {regDFR, 0}, {regISR, 0}, {regIRR + 7, 0}, {regCurrent, 0}, {regICRHigh, 0},
		{regEOI, 1}, {regESR, 1}, {regTPR, 0x100}, {regSelf, 0x100}, {regSVR, 1 << 32}, {regInitial, 1 << 40}} {
		if _, ok := a.WriteMSR(MSRBase+w.reg, w.v, 0); ok {
			t.Errorf("register 0x%x took 0x%x", w.reg, w.v)
		}
	}
	if v := a.get(t, regLDR, 0); v != 1<<3 {
		t.Errorf("LDR of 3: 0x%x", v)
	}
	if v := x2(t, 0x25).get(t, regLDR, 0); v != 2<<16|1<<5 {
		t.Errorf("LDR of 0x25: 0x%x", v)
	}
	x := New(0, true)
	if _, ok := x.ReadMSR(MSRBase+regID, 0); ok {
		t.Error("an MSR answers in xAPIC mode")
	}
	if !x.Contains(0xfee000f0) || x.Contains(0xfee01000) || a.Contains(0xfee00000) {
		t.Error("registers are in memory in xAPIC mode only")
	}
}

func TestMemoryRegisters(t *testing.T) {
	a := New(5, false)
	at := func(reg uint64) uint64 { return a.ReadMemory(reg*16, 4, 0) }
	if at(regID) != 5<<24 || at(regVersion) != version || at(regSVR) != 0xff || at(regDFR) != 0xffffffff || at(regLVT) != lvtMasked {
		t.Errorf("after power-up: ID 0x%x, version 0x%x, SVR 0x%x, DFR 0x%x", at(regID), at(regVersion), at(regSVR), at(regDFR))
	}
	if v := a.ReadMemory(regVersion*16+2, 1, 0); v != version>>16 {
		t.Errorf("byte 2 of the version: 0x%x", v)
	}
	if v := a.ReadMemory(regVersion*16+2, 4, 0); v != 0 {
		t.Errorf("a read over a register's end: 0x%x", v)
	}
	a.WriteMemory(regLVT*16, 4, 0x30, 0)
	if at(regLVT) != lvtMasked|0x30 {
		t.Errorf("an APIC that is off has its timer unmasked: 0x%x", at(regLVT))
	}
	a.WriteMemory(regSVR*16, 4, 0x1ff, 0)
	a.WriteMemory(regSVR*16, 2, 0, 0)
	if at(regSVR) != 0x1ff {
		t.Error("a write of two bytes changed a register")
	}
	if e := a.WriteMemory(regLDR*16, 4, 0x21000000, 0); !e.Renamed || a.Name().LDR != 0x21000000 {
		t.Errorf("LDR: %+v, %+v", e, a.Name())
	}
	a.WriteMemory(regICRHigh*16, 4, 0x03000000, 0)
	e := a.WriteMemory(regICR*16, 4, icrLogical|icrAssert|0x44, 0)
	if want := (IPI{Dest: 3, Logical: true, Vector: 0x44, Assert: true}); !e.Send || e.IPI != want {
		t.Errorf("sent %+v", e)
	}
	a.WriteMemory(regID*16, 4, 0x07000000, 0)
	if at(regID) != 5<<24 {
		t.Error("the ID changed")
	}
	a.WriteMemory(0x3f0, 4, 0, 0) // there is no self IPI register here
	a.WriteMemory(regESR*16, 4, 0, 0)
	if at(regESR) != errorRegister {
		t.Errorf("ESR 0x%x after a write to no register", at(regESR))
	}
}

func TestTargets(t *testing.T) {
	var names []Name
	for id := range uint32(20) {
		n := Name{ID: id, Mode: X2APIC}
		if id >= 16 { // of these, xAPICs: two flat, two clustered
			n.Mode, n.DFR, n.LDR = XAPIC, 0xffffffff, 1<<(24+id-16)
		}
		if id >= 18 {
			n.DFR, n.LDR = 0x0fffffff, 0x30000000|1<<(24+id-18)
		}
		names = append(names, n)
	}
	names[10].Mode = Off
	all := func(without ...int) (out []int) {
		for i := range names {
			if i != 10 && !slices.Contains(without, i) {
				out = append(out, i)
			}
		}
		return out
	}
	for _, c := range []struct {
		name string
		ipi  IPI
		want []int
	}{
		{"physical", IPI{Dest: 7, Wide: true}, []int{7}},
		{"physical, off", IPI{Dest: 10, Wide: true}, nil},
		{"nobody", IPI{Dest: 1000, Wide: true}, nil},
		{"broadcast", IPI{Dest: 0xffffffff, Wide: true}, all()},
		{"narrow broadcast", IPI{Dest: 0xff}, all()},
		{"not a broadcast", IPI{Dest: 0xff, Wide: true}, nil},
		{"cluster", IPI{Dest: 0<<16 | 1<<2 | 1<<5, Wide: true, Logical: true}, []int{2, 5}},
		{"flat", IPI{Dest: 0x03, Logical: true}, []int{0, 1, 16, 17}},
		{"clustered", IPI{Dest: 0x33, Logical: true}, []int{0, 1, 4, 5, 16, 17, 18, 19}},
		{"lowest priority", IPI{Dest: 1<<2 | 1<<5 | 1<<8, Wide: true, Logical: true, Delivery: LowestPriority, Vector: 0x31}, []int{5}},
		{"self", IPI{Short: Self}, []int{4}},
		{"others", IPI{Short: AllExcludingSelf}, append(all(4), 10)},
	} {
		got := c.ipi.Targets(names, 4, nil)
		slices.Sort(c.want)
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestMSI(t *testing.T) {
	i := MSI(0xfee0500c, 0x8141)
	if want := (IPI{Dest: 5, Logical: true, Delivery: LowestPriority, Vector: 0x41, Level: true, Assert: true}); i != want {
		t.Errorf("%+v", i)
	}
	if m, ok := MSI(0xfee01000, 0x4041).Message(); !ok || m != NewMessage(Fixed, 0x41) {
		t.Errorf("message 0x%x", m)
	}
	if _, ok := (IPI{Delivery: INIT, Level: true}).Message(); ok {
		t.Error("the level that ends an INIT is sent")
	}
}

func TestShorthandsOfTheCommandRegister(t *testing.T) {
	a := x2(t, 2)
	for short, bits := range map[Shorthand]uint64{NoShorthand: 0, Self: 1 << 18, AllIncludingSelf: 2 << 18, AllExcludingSelf: 3 << 18} {
		if e := a.msr(t, regICR, 9<<32|bits|0x4500); !e.Send || e.IPI.Short != short || e.IPI.Delivery != INIT || e.IPI.Dest != 9 || !e.IPI.Assert {
			t.Errorf("shorthand %d: %+v", short, e)
		}
	}
	if e := a.msr(t, regSelf, 0x99); !e.Send || e.IPI.Short != Self || e.IPI.Vector != 0x99 {
		t.Errorf("self IPI: %+v", e)
	}
}

func TestStart(t *testing.T) {
	a := New(1, false)
	if a.Accept(NewMessage(NMI, 0)); a.TakeNMI() {
		t.Fatal("a vCPU that waits for its start took an NMI")
	}
	if _, ok := a.TakeStart(); ok {
		t.Fatal("it starts by itself")
	}
	a.SetBase(a.Base | baseX2APIC)
	a.msr(t, regSVR, 0x1ff)
	a.Accept(NewMessage(INIT, 0))
	a.Accept(NewMessage(SIPI, 0x9a))
	a.Accept(NewMessage(SIPI, 0x9a)) // kernels send two
	if !a.TakeINIT() || a.SVR != 0xff || a.Mode() != X2APIC || a.ID != 1 {
		t.Fatalf("after INIT: %+v", a.State)
	}
	if v, ok := a.TakeStart(); !ok || v != 0x9a {
		t.Fatalf("started at 0x%x, %t", v, ok)
	}
	if a.Accept(NewMessage(SIPI, 0x9b)); a.SIPI {
		t.Error("a running vCPU heeds a start-up interrupt")
	}
	if a.TakeNMI() {
		t.Error("an NMI outlived INIT")
	}
	a.Accept(NewMessage(NMI, 0))
	if !a.Wakes(false) || !a.TakeNMI() || a.TakeNMI() {
		t.Error("an NMI wakes, and is taken once")
	}
	boot := x2(t, 0)
	if boot.Accept(NewMessage(INIT, 0)); !boot.TakeINIT() || boot.Waiting {
		t.Error("a boot vCPU waits for a start after INIT")
	}
}
