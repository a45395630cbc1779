package machine

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/linux"
	"github.com/cellvisor/cellvisor/vmm/ram"
)

func openKVM(t *testing.T) *kvm.System {
	t.Helper()
	system, err := kvm.Open()
	if errors.Is(err, kvm.ErrNotAvailable) && os.Getenv("REQUIRE_KVM") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { system.Close() })
	return system
}

type forwarded struct {
	to ident.VCPU
	m  Message
}

// newTestPart makes a part of which only vCPU local runs here, and which forwards into a channel.
func newTestPart(t *testing.T, local ident.VCPU) (*Part, *ram.RAM, chan forwarded) {
	t.Helper()
	const size = 4 * ident.MiB
	memory, err := ram.New(size)
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan forwarded, 64)
	p, err := NewPart(openKVM(t), PartConfig{
		Memory: size, RAMAddr: memory.GuestAddr(), VCPUs: 2, Local: []ident.VCPU{local}, Model: linux.ModelHost,
		Devices: NewBoard(BoardConfig{VCPUs: 2, Memory: size, Backing: memory, Signal: func(uint64, uint32) {}}),
		Forward: func(to ident.VCPU, m Message) error { sent <- forwarded{to, m}; return nil },
		End:     func(o Outcome) { t.Errorf("ended: %+v", o) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		memory.Close()
	})
	return p, memory, sent
}

func (f forwarded) want(t *testing.T, to ident.VCPU, m Message) {
	t.Helper()
	if f != (forwarded{to, m}) {
		t.Fatalf("forwarded 0x%x to vCPU %d, want 0x%x to vCPU %d", uint16(f.m), f.to, uint16(m), to)
	}
}

func next(t *testing.T, sent chan forwarded) forwarded {
	t.Helper()
	select {
	case f := <-sent:
		return f
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was forwarded")
		return forwarded{}
	}
}

// TestStandInForwardsInterrupts sends a device's interrupts to a boot vCPU that runs elsewhere.
func TestStandInForwardsInterrupts(t *testing.T) {
	p, _, sent := newTestPart(t, 1)
	// The vCPU that is here waits for its start for ever; the stand-in of the boot vCPU listens at once.
	p.Start()
	for _, vector := range []uint32{0x31, 0xfb, 0x31, 0x10} {
		p.Signal(0xfee00000, vector)
		next(t, sent).want(t, 0, Message(vector))
	}
	p.Signal(0xfee00000, uint32(deliverNMI))
	next(t, sent).want(t, 0, deliverNMI)
	p.Signal(0xfee00000, 0x40)
	next(t, sent).want(t, 0, 0x40)
}

// TestStandInForwardsStart starts a vCPU that runs elsewhere, as a boot vCPU would, and then interrupts it.
func TestStandInForwardsStart(t *testing.T) {
	p, memory, sent := newTestPart(t, 0)
	// The boot vCPU halts with interrupts off.
	if _, err := memory.WriteAt([]byte{0xfa, 0xf4}, 0x10000); err != nil {
		t.Fatal(err)
	}
	if err := Enter(p.VCPU(0), linux.Entry{Mode: linux.Protected32, RIP: 0x10000}); err != nil {
		t.Fatal(err)
	}
	p.Start()
	const toVCPU1 = 0xfee01000
	p.Signal(toVCPU1, uint32(deliverINIT))
	p.Signal(toVCPU1, uint32(deliverSIPI)|0x9a)
	next(t, sent).want(t, 1, deliverINIT)
	next(t, sent).want(t, 1, deliverSIPI|0x9a)
	p.Signal(toVCPU1, 0x55)
	next(t, sent).want(t, 1, 0x55)
}

func TestStandInAreaIsWhereItSays(t *testing.T) {
	b := standInArea()
	le := binary.LittleEndian
	at := func(addr uint64) []byte { return b[addr-linux.StandInAddr:] }
	// Walk the tables for each page of the area.
	for page := uint64(0); page < StandInBytes; page += ident.PageSize {
		addr := linux.StandInAddr + page
		table := standInPage(0)
		for _, shift := range []int{39, 30, 21, 12} {
			entry := le.Uint64(at(table)[8*(addr>>shift&511):])
			if entry&1 == 0 {
				t.Fatalf("0x%x is not mapped at level %d", addr, shift)
			}
			table = entry &^ 0xfff
		}
		if table != addr {
			t.Fatalf("0x%x is mapped to 0x%x", addr, table)
		}
	}
	for v := range vectors {
		low, high := le.Uint64(at(standInPage(standInIDT))[16*v:]), le.Uint64(at(standInPage(standInIDT))[16*v+8:])
		entry := low&0xffff | low>>48<<16 | high<<32
		code := at(entry)[:entryBytes]
		if code[1] != 0xb8 || le.Uint32(code[2:]) != uint32(v) {
			t.Fatalf("vector %d leads to code of vector %d", v, le.Uint32(code[2:]))
		}
		target := entry + 11 + uint64(int64(int32(le.Uint32(code[7:]))))
		want := standInPage(standInHandlers) + handlerEOI
		if v == vectorNMI {
			want = standInPage(standInHandlers) + handlerNMI
		}
		if target != want {
			t.Fatalf("vector %d jumps to 0x%x, want 0x%x", v, target, want)
		}
	}
}

func TestParseAccess(t *testing.T) {
	for _, a := range []Access{{Addr: 0x3f8, Data: 'x', Size: 1, Port: true, Write: true}, {Addr: 0xfec00010, Size: 4}, {Addr: 0xc0000000, Data: 1 << 40, Size: 8, Write: true}} {
		got, err := ParseAccess(a.Append(nil))
		if err != nil || got != a {
			t.Errorf("%+v came back as %+v, %v", a, got, err)
		}
	}
	for _, a := range []Access{{Addr: 0x10000, Size: 1, Port: true}, {Size: 3}, {Size: 8, Port: true}, {}} {
		if _, err := ParseAccess(a.Append(nil)); err == nil {
			t.Errorf("%+v: no error", a)
		}
	}
	if _, err := ParseAccess(nil); err == nil {
		t.Error("no error for nothing")
	}
}
