package ioapic

import "testing"

type sent struct {
	addr uint64
	data uint32
}

func program(a *IOAPIC, pin int, low, high uint32) {
	a.Write(regSelect, uint32(indexTable+2*pin+1))
	a.Write(regWindow, high)
	a.Write(regSelect, uint32(indexTable+2*pin))
	a.Write(regWindow, low)
}

func TestLineBecomesMessage(t *testing.T) {
	var got []sent
	a := New(func(addr uint64, data uint32) { got = append(got, sent{addr, data}) })
	a.SetLine(4, true)
	if len(got) != 0 {
		t.Fatal("a masked line sent something")
	}
	program(a, 4, 0x31, 2<<24) // unmasked while high: the edge that nobody saw
	a.SetLine(4, false)
	a.SetLine(4, true)
	a.SetLine(4, true)
	want := sent{0xfee02000, 0x31}
	if len(got) != 2 || got[0] != want || got[1] != want {
		t.Fatalf("sent %+v, want twice %+v", got, want)
	}
	a.SetLine(-1, true)
	a.SetLine(Pins, true)
}

func TestRegisters(t *testing.T) {
	a := New(func(uint64, uint32) {})
	a.Write(regSelect, indexVersion)
	if v := a.Read(regWindow); v != version {
		t.Errorf("version 0x%x", v)
	}
	program(a, 23, maskBit|0x55|1<<14, 0xff<<24)
	a.Write(regSelect, indexTable+46)
	if v := a.Read(regWindow); v != maskBit|0x55 {
		t.Errorf("entry 0x%x: read-only bits were written", v)
	}
	a.Write(regSelect, 0xff)
	a.Write(regWindow, 1)
	if v := a.Read(regWindow); v != 0 {
		t.Errorf("a register that is none reads 0x%x", v)
	}
	b := New(func(uint64, uint32) {})
	b.SetState(a.State())
	if b.table[23] != a.table[23] {
		t.Error("state did not come along")
	}
}
