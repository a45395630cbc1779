package cells

import (
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

// mirrorVM is diskVM without a standby, but a disk that is to have a mirror, and what is placed by next.
func mirrorVM(t *testing.T, next *[]ident.ServerID) *FSM {
	f := diskVM(t)
	for i := range f.state.Servers {
		f.state.Servers[i].Cell = ident.CellName('a' + rune(i))
	}
	f.hooks.Placer = &fixedPlacer{next}
	vm := &f.state.VMs[0]
	vm.Spec.Disks[0].Mirrors = 1
	vm.Parts = vm.Parts[:1]
	vm.Parts[0].Cell = "a"
	f.tendDisks()
	return f
}

// fixedPlacer places standbys as it is told.
type fixedPlacer struct{ next *[]ident.ServerID }

func (p *fixedPlacer) Place(*State, *VMSpec) ([]PlacedPart, *Fault) {
	return nil, faultf(CodeNoCapacity, "nowhere")
}
func (p *fixedPlacer) Standbys(_ *State, vm *VM) []ident.ServerID {
	if vm.mirrors(func(*VMPart) bool { return true }) >= vm.Spec.Mirrors() {
		return nil
	}
	return *p.next
}

func TestMirrorsInTheRegistry(t *testing.T) {
	next := []ident.ServerID{2}
	f := mirrorVM(t, &next)
	vm := &f.state.VMs[0]
	step := func(what, mirroring, want string, change func()) {
		t.Helper()
		change()
		f.tendStandbys(vm)
		f.tendDisks()
		if got := copies(f); got != want || vm.Mirroring() != mirroring {
			t.Fatalf("%s: mirrors are %s, copies %q; want %s, %q", what, vm.Mirroring(), got, mirroring, want)
		}
	}
	step("placed", "syncing", "1:current 2:copying", func() {})
	if !vm.Parts[1].Mirror || vm.Protection() != "none" || vm.Held() {
		t.Fatalf("%+v: protection %s, held %v", vm.Parts[1], vm.Protection(), vm.Held())
	}
	step("in step", "in-step", "1:current 2:current", func() { vm.Parts[1].Ready, vm.Parts[1].Holds = true, true })
	if _, ok := vm.image([]ident.Part{0}); ok || vm.CanGoBackTo(&vm.Parts[1]) {
		t.Fatal("the VM goes on from a mirror, which has no memory of it")
	}
	step("lost, no other place", "missing", "1:current 2:stale", func() {
		next = nil
		f.dropStandbys(vm, func(p *VMPart) bool { return p.Server == 2 })
	})
	step("back", "syncing", "1:current 2:copying", func() { next = []ident.ServerID{2} })
	step("in step again", "in-step", "1:current 2:current", func() { vm.Parts[1].Holds = true })
	step("home is lost, and the VM with it", "none", "1:current 2:current", func() {
		f.lose(vm, VMLost, "cell a lost", 0)
		f.state.Servers[0].State = ServerDead
	})
	if homes, fault := f.state.DiskHomes(&vm.Spec); fault != nil || len(homes) != 1 || homes[0] != 2 {
		t.Fatalf("the next home is on %v: %v", homes, fault)
	}
	f.state.Servers[0].State = ServerLive
	if homes, _ := f.state.DiskHomes(&vm.Spec); len(homes) != 2 || homes[0] != 1 {
		t.Errorf("homes %v: the server of the last one lives, and may have what was never flushed", homes)
	}
	f.state.Disks[0].LastHome = 2
	if homes, _ := f.state.DiskHomes(&vm.Spec); len(homes) != 2 || homes[0] != 2 {
		t.Errorf("homes %v, want server 2 first", homes)
	}
}

// A mirror that was not in step when home was lost is no copy to go on from.
func TestAMirrorThatWasNotInStep(t *testing.T) {
	f := mirrorVM(t, &[]ident.ServerID{2})
	vm := &f.state.VMs[0]
	f.tendStandbys(vm)
	f.tendDisks()
	f.lose(vm, VMLost, "cell a lost", 0)
	f.tendDisks()
	f.state.Servers[0].State = ServerDead
	if homes, fault := f.state.DiskHomes(&vm.Spec); fault == nil || !strings.Contains(fault.Text, "stale on s-2") {
		t.Errorf("homes %v: %v", homes, fault)
	}
}

// When a VM goes on elsewhere its mirrors begin anew, and its replicas' copies are its mirrors if it gets some.
func TestMirrorsAndReplicas(t *testing.T) {
	f := mirrorVM(t, &[]ident.ServerID{2})
	vm := &f.state.VMs[0]
	f.tendStandbys(vm)
	vm.Parts[1].Ready, vm.Parts[1].Holds = true, true
	vm.Parts = append(vm.Parts, VMPart{Part: 9, Server: 3, ServerName: "s-3", Cell: "c", Standby: true, Ready: true, Holds: true})
	f.takeOver(vm, 9, []ident.Part{0}, true)
	if len(vm.Parts) != 1 || vm.Parts[0].Part != 9 {
		t.Fatalf("after a move: %+v", vm.Parts)
	}
	f.tendStandbys(vm)
	if fault := f.protectVM(&ProtectVM{Name: "web", Protect: ProtectReplica, Replicas: 1}); fault != nil {
		t.Fatal(fault)
	}
	for _, p := range vm.Parts {
		if p.Mirror {
			t.Errorf("a protected VM has a mirror: %+v", p)
		}
	}
	spec := VMSpec{Name: "x", Protect: ProtectReplica, Replicas: 1, Disks: []DiskSpec{{Name: "d", Bytes: 4096, Mirrors: 2}}}
	if fault := checkDisks(&spec); fault == nil || !strings.Contains(fault.Text, "replica:2") {
		t.Errorf("more mirrors than replicas: %v", fault)
	}
	if spec.Protect = ProtectNone; checkDisks(&spec) != nil || spec.Mirrors() != 2 {
		t.Errorf("mirrors without replicas are refused")
	}
}
