package kvm_test

import (
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/payload/bad"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
)

// place is one VM with one vCPU that may hold the guest.
type place struct {
	mem *ram.RAM
	vm  *kvm.VM
	cpu *kvm.VCPU
}

func newPlace(t *testing.T, s *kvm.System, size ident.Bytes) *place {
	t.Helper()
	mem, err := ram.New(size)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := s.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.SetMemory(0, 0, size, mem.GuestAddr()); err != nil {
		t.Fatal(err)
	}
	cpu, err := vm.CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	p := &place{mem, vm, cpu}
	t.Cleanup(p.close)
	return p
}

func (p *place) close() {
	p.cpu.Close()
	p.vm.Close()
	p.mem.Close()
}

// moveTo carries memory and vCPU state over, the latter through its encoding.
func (p *place) moveTo(t *testing.T, q *place) {
	t.Helper()
	state, err := p.cpu.State()
	if err != nil {
		t.Fatal(err)
	}
	if state.Regs.RFLAGS>>12&3 != 3 {
		t.Fatalf("RFLAGS 0x%x have lost the I/O privilege level", state.Regs.RFLAGS)
	}
	data, err := state.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var arrived kvm.VCPUState
	if err := arrived.UnmarshalBinary(data); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, ident.PageSize)
	for page := ident.PageNo(0); uint64(page) < p.mem.Pages(); page++ {
		if err := p.mem.ReadPage(page, buf); err != nil {
			t.Fatal(err)
		}
		if err := q.mem.WritePage(page, buf); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.cpu.SetState(&arrived); err != nil {
		t.Fatal(err)
	}
}

// TestMoveRunningVCPU moves a guest to a fresh VM after each exit of any kind, in the middle of port input too, and wants it to go on as if
// nothing had happened.
func TestMoveRunningVCPU(t *testing.T) {
	s := vmmtest.RequireKVM(t)
	image, err := bad.Open("registers")
	if err != nil {
		t.Fatal(err)
	}
	const records, memory = 60, 6 * ident.MiB
	layout, err := boot.Load(image, boot.Config{Memory: memory, VCPUs: 1, Args: "60"})
	if err != nil {
		t.Fatal(err)
	}
	here := newPlace(t, s, layout.Physical)
	if err := layout.Write(here.mem); err != nil {
		t.Fatal(err)
	}
	if err := here.cpu.Start(kvm.Start(layout.Starts[0])); err != nil {
		t.Fatal(err)
	}
	var clock, emitted uint32
	for moves := 0; ; moves++ {
		if moves > 100*records {
			t.Fatalf("guest does not get on: %d records after %d moves", emitted, moves)
		}
		exit, err := here.cpu.Run()
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case exit.Reason == kvm.Interrupted:
		case exit.Reason != kvm.IO:
			t.Fatalf("after %d moves: %s\n%s", moves, exit, here.cpu.Dump())
		case exit.Port == 0xe8:
			if uint32(exit.Data) != emitted {
				t.Fatalf("after %d moves: record %d, want %d", moves, exit.Data, emitted)
			}
			emitted++
		case exit.Port == 0xec:
			clock++
			here.cpu.SetIO(clock)
		case exit.Port == 0xe0:
			if exit.Data != 0 || emitted != records {
				t.Fatalf("guest ended with status %d after %d records and %d moves", exit.Data, emitted, moves)
			}
			return
		default:
			t.Fatalf("unexpected %s", exit)
		}
		if moves%2 == 0 {
			here.cpu.Kick() // the next stop is an interruption, before any instruction: State must complete the exit all the same
		}
		there := newPlace(t, s, layout.Physical)
		here.moveTo(t, there)
		here.close()
		here = there
	}
}
