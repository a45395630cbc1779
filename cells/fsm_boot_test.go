package cells

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

// crash lets home report a crash of the VM's present boot and returns the VM.
func crash(t *testing.T, f *FSM, index uint64, id ident.VMID, up ident.Micros) *VM {
	t.Helper()
	vm := f.State().VM(id)
	p := vm.Parts[0]
	c := Command{EndVM: &EndVM{VM: id, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation, State: VMFailed, Reason: "triple fault",
		Registers: "rip 0", Crash: true, Booted: vm.BootEpoch(), UpMicros: up}}
	if a := applyTo(t, f, index, c); a.Fault != nil {
		t.Fatal(a.Fault)
	}
	f.Check()
	return f.State().VM(id)
}

func applyTo(t *testing.T, f *FSM, index uint64, c Command) Applied {
	t.Helper()
	c.Version, c.Request, c.UnixMs = CommandVersion, RequestID(fmt.Sprintf("boot-%d", index)), int64(index)
	b, err := EncodeCommand(&c)
	if err != nil {
		t.Fatal(err)
	}
	return f.Apply(index, 1, b)
}

func runningVM(t *testing.T, spec VMSpec) (*FSM, ident.VMID) {
	t.Helper()
	f := newTestFSM()
	index := uint64(0)
	apply := func(c Command) Applied {
		index++
		a := applyTo(t, f, index, c)
		if a.Fault != nil {
			t.Fatal(a.Fault)
		}
		return a
	}
	for _, s := range []struct {
		id   ident.ServerID
		name ident.ServerName
		cell ident.CellName
	}{{1, "a-1", "a"}, {2, "b-1", "b"}} {
		apply(Command{Admit: &Admit{Server: s.id, Info: ServerInfo{Name: s.name, Cell: s.cell, Role: RoleServer, Process: Process{PID: 1, Boot: "x"}, Slots: 2, MemoryBytes: ident.GiB}}})
	}
	spec.Name, spec.Builtin, spec.VCPUs, spec.MemoryBytes = "g", "count", 1, 16*ident.MiB
	apply(Command{CreateVM: &CreateVM{Spec: spec, Secret: strings.Repeat("ab", 32)}})
	vm := &f.State().VMs[0]
	for _, p := range vm.Parts {
		apply(Command{PartReady: &PartReady{VM: vm.ID, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation, PID: 7}})
	}
	if vm.State != VMRunning {
		t.Fatalf("the vm is %s", vm.State)
	}
	return f, vm.ID
}

func TestCrashesInARowEndTheVM(t *testing.T) {
	f, id := runningVM(t, VMSpec{RebootOnCrash: true, CrashLimit: 3})
	epoch := f.State().VM(id).Epoch
	for n := range uint64(10) { // each lived long enough
		vm := crash(t, f, 100+n, id, CrashWindow)
		if vm.State != VMRunning || vm.Restarts != n+1 || vm.Epoch != epoch+ident.Epoch(n)+1 || vm.BootEpoch() != vm.Epoch {
			t.Fatalf("after crash %d: %+v", n, vm)
		}
	}
	vm := crash(t, f, 200, id, CrashWindow-1)
	if vm.State != VMRunning {
		t.Fatalf("after a second crash in a row the vm is %s", vm.State)
	}
	vm = crash(t, f, 201, id, 5)
	if vm.State != VMFailed || !strings.HasPrefix(vm.Reason, "triple fault; it crashed 3 times in a row") || vm.Registers != "rip 0" || vm.Restarts != 11 {
		t.Fatalf("after three crashes in a row: %+v", vm)
	}
}

func TestCrashWithoutRebootFails(t *testing.T) {
	f, id := runningVM(t, VMSpec{CrashLimit: 3})
	if vm := crash(t, f, 100, id, 5); vm.State != VMFailed || vm.Reason != "triple fault" || vm.Restarts != 0 {
		t.Fatalf("%+v", vm)
	}
}

func TestCrashLimitZeroNeverFails(t *testing.T) {
	f, id := runningVM(t, VMSpec{RebootOnCrash: true})
	for n := range uint64(100) {
		if vm := crash(t, f, 100+n, id, 5); vm.State != VMRunning {
			t.Fatalf("crash %d: %+v", n, vm)
		}
	}
}

// A crash is of one boot: reported again, or late, it changes nothing.
func TestCrashOfAFormerBootIsRefused(t *testing.T) {
	f, id := runningVM(t, VMSpec{RebootOnCrash: true, CrashLimit: 3})
	vm := f.State().VM(id)
	p, booted := vm.Parts[0], vm.BootEpoch()
	if a := applyTo(t, f, 100, Command{ResetVM: &ResetVM{VM: id, Reason: "test"}}); a.Fault != nil || len(a.Events) != 1 || a.Events[0].Kind != EventVMRestarted {
		t.Fatalf("%+v", a)
	}
	a := applyTo(t, f, 101, Command{EndVM: &EndVM{VM: id, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation, State: VMFailed, Crash: true, Booted: booted}})
	if a.Fault == nil || a.Fault.Code != CodeConflict {
		t.Fatalf("a crash of the former boot: %+v", a)
	}
	if vm := f.State().VM(id); vm.Restarts != 1 || vm.State != VMRunning {
		t.Fatalf("%+v", vm)
	}
}
