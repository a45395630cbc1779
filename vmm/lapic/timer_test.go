package lapic

import "testing"

func timed(t *testing.T, entry, divide, initial uint64) *APIC {
	t.Helper()
	a := x2(t, 0)
	a.msr(t, regLVT+lvtTimer, entry)
	a.msr(t, regDivide, divide)
	if e := a.msr(t, regInitial, initial); !e.Timer {
		t.Fatal("setting the count does not concern the timer")
	}
	return a
}

// "Divide Configuration Register".
func TestDividers(t *testing.T) {
	for code, want := range map[uint32]Nanos{0: 2, 1: 4, 2: 8, 3: 16, 8: 32, 9: 64, 10: 128, 11: 1} {
		if got := (&Timer{Divide: code}).divider(); got != want {
			t.Errorf("code %d divides by %d, want %d", code, got, want)
		}
	}
}

func TestOneShot(t *testing.T) {
	a := timed(t, 0x40, 3, 1000)
	if due, ok := a.Due(); !ok || due != 16000 {
		t.Fatalf("due at %d, %t", due, ok)
	}
	if v := a.get(t, regCurrent, 8000); v != 500 {
		t.Errorf("half way the count is %d", v)
	}
	if a.Tick(15999) {
		t.Error("it fired early")
	}
	if !a.Tick(16000) || a.get(t, regCurrent, 16000) != 0 {
		t.Error("it did not fire")
	}
	a.wantPending(t, 0x40)
	if _, ok := a.Due(); ok || a.Tick(1<<40) {
		t.Error("it fires again")
	}
	if v := a.get(t, regInitial, 0); v != 1000 {
		t.Errorf("the initial count reads %d", v)
	}
}

func TestPeriodic(t *testing.T) {
	a := timed(t, 0x40|lvtPeriodic, 0xb, 1_000_000)
	for i := range 3 {
		due, ok := a.Due()
		if !ok || due != Nanos(i+1)*1_000_000 || !a.Tick(due) {
			t.Fatalf("period %d is due at %d, %t", i, due, ok)
		}
	}
	if !a.Tick(9_500_000) { // late by more than one period: once
		t.Fatal("it did not fire late")
	}
	if due, _ := a.Due(); due != 10_000_000 {
		t.Errorf("then due at %d", due)
	}
	if v := a.get(t, regCurrent, 9_600_000); v != 400_000 {
		t.Errorf("the count is %d", v)
	}
	short := timed(t, 0x40|lvtPeriodic, 0xb, 1)
	short.Tick(10)
	if due, _ := short.Due(); due < minPeriod {
		t.Errorf("a guest's timer fires again after %d ns", due-10)
	}
}

func TestTimerChangesOnTheWay(t *testing.T) {
	a := timed(t, 0x40, 0xb, 1000)
	if _, ok := a.WriteMSR(MSRBase+regDivide, 0, 400); !ok {
		t.Fatal("fault")
	}
	if due, _ := a.Due(); due != 400+2*600 {
		t.Errorf("at half the speed for the rest it is due at %d", due)
	}
	a.msr(t, regLVT+lvtTimer, 0x40|lvtMasked)
	if a.Tick(5000) {
		t.Error("a masked timer fired")
	}
	a.msr(t, regInitial, 100)
	a.msr(t, regInitial, 0)
	if _, ok := a.Due(); ok {
		t.Error("a timer with count 0 runs")
	}
}
