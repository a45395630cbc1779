package cells

import (
	"slices"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

// handWorld has a VM of two vCPUs, one on server 1 of cell a, one on server 2 of cell b.
func handWorld(t *testing.T) (*moveWorld, *VM) {
	w := newMoveWorld(t)
	w.do(Command{CreateVM: &CreateVM{Spec: VMSpec{Name: "m", Builtin: "count", VCPUs: 2, MemoryBytes: ident.MiB}, Secret: strings.Repeat("0", 64)}})
	return w, w.settle("m")
}

func (w *moveWorld) migrateVCPU(id ident.VCPU, c StartOperation) *Fault {
	c.Kind, c.VM, c.VCPU = OpMigrate, "m", &id
	return w.try(Command{StartOperation: &c})
}

func (w *moveWorld) handed(seq uint64, moved bool) *Fault {
	vm := w.f.state.VMNamed("m")
	home := w.home(vm)
	return w.try(Command{VCPUHanded: &VCPUHanded{VM: vm.ID, Part: home.Part, Server: home.Server, Incarnation: home.Incarnation, Seq: seq, Moved: moved, Why: "no", DownMicros: 300}})
}

func placed(vm *VM) (out [][]ident.VCPU) {
	for _, p := range vm.Parts {
		out = append(out, p.VCPUs)
	}
	return out
}

func TestTheRegistryFollowsAHandOver(t *testing.T) {
	w, _ := handWorld(t)
	if fault := w.migrateVCPU(0, StartOperation{ToServer: "b-1"}); fault != nil {
		t.Fatal(fault)
	}
	vm := w.f.state.VMNamed("m")
	if vm.Hand == nil || vm.Hand.VCPU != 0 || vm.Hand.From != 0 || vm.Hand.To != 1 {
		t.Fatalf("hand-over %+v", vm.Hand)
	}
	if fault := w.migrateVCPU(1, StartOperation{ToCell: "a"}); fault == nil || fault.Code != CodeConflict {
		t.Errorf("a second one meanwhile: %v", fault)
	}
	if fault := w.handed(vm.Hand.Seq+1, true); fault == nil {
		t.Error("home's word on another hand-over was taken")
	}
	epoch := vm.Epoch
	if fault := w.handed(vm.Hand.Seq, true); fault != nil {
		t.Fatal(fault)
	}
	vm = w.f.state.VMNamed("m")
	op := w.f.state.Operations[0]
	if p := placed(vm); len(p[0]) != 0 || !slices.Equal(p[1], []ident.VCPU{0, 1}) || vm.Epoch != epoch || op.State != OpDone || op.Steps[0].Down != 300 {
		t.Errorf("parts %v, epoch %d after %d, operation %+v", p, vm.Epoch, epoch, op)
	}
	if fault := w.handed(vm.HandSeq, true); fault == nil {
		t.Error("said again, it was taken again")
	}
	if fault := w.migrateVCPU(1, StartOperation{ToCell: "a"}); fault != nil {
		t.Errorf("to a part without vCPUs: %v", fault)
	}
}

// Home may have a vCPU go to another part without an operation: if there is room, and nothing else is going on.
func TestHomePullsAVCPUToItsPages(t *testing.T) {
	w, vm := handWorld(t)
	home := w.home(vm)
	pull := func(id ident.VCPU, to ident.Part) *Fault {
		return w.try(Command{PullVCPU: &PullVCPU{VM: vm.ID, Part: home.Part, Server: home.Server, Incarnation: home.Incarnation, VCPU: id, To: to}})
	}
	for _, bad := range []struct {
		id ident.VCPU
		to ident.Part
	}{{0, 0}, {0, 7}, {9, 1}} {
		if fault := pull(bad.id, bad.to); fault == nil {
			t.Errorf("vCPU %d went to part %d", bad.id, bad.to)
		}
	}
	if fault := pull(0, 1); fault != nil {
		t.Fatal(fault)
	}
	if fault := pull(1, 0); fault == nil || fault.Code != CodeConflict {
		t.Errorf("a second one meanwhile: %v", fault)
	}
	if fault := w.handed(w.f.state.VMNamed("m").HandSeq, true); fault != nil {
		t.Fatal(fault)
	}
	now := w.f.state.VMNamed("m")
	if p := placed(now); len(p[0]) != 0 || !slices.Equal(p[1], []ident.VCPU{0, 1}) || now.Hand != nil || len(w.f.state.Operations) != 0 || now.MovedMs != vm.MovedMs {
		t.Errorf("parts %v, %+v", p, now)
	}
	w.f.state.Server(now.Parts[0].Server).Cordoned = true
	if fault := pull(1, 0); fault == nil {
		t.Error("a vCPU went to a cordoned server")
	}
}

func TestAHandOverThatComesToNothingChangesNothing(t *testing.T) {
	w, _ := handWorld(t)
	if fault := w.migrateVCPU(0, StartOperation{ToServer: "b-1"}); fault != nil {
		t.Fatal(fault)
	}
	if fault := w.handed(1, false); fault != nil {
		t.Fatal(fault)
	}
	vm, op := w.f.state.VMNamed("m"), w.f.state.Operations[0]
	if p := placed(vm); len(p[0]) != 1 || len(p[1]) != 1 || vm.Hand != nil || op.State != OpFailed || !strings.Contains(op.Note, "no") {
		t.Errorf("parts %v, operation %+v", p, op)
	}
}

// A new life of the guest begins with the registry's placement: what home says later of a hand-over of the former one is refused.
func TestANewLifeEndsAHandOver(t *testing.T) {
	w, _ := handWorld(t)
	if fault := w.migrateVCPU(0, StartOperation{ToServer: "b-1"}); fault != nil {
		t.Fatal(fault)
	}
	w.do(Command{ResetVM: &ResetVM{Name: "m"}})
	if fault := w.handed(1, true); fault == nil {
		t.Error("home's word on a hand-over of a former life was taken")
	}
	vm, op := w.f.state.VMNamed("m"), w.f.state.Operations[0]
	if p := placed(vm); len(p[0]) != 1 || vm.Hand != nil || op.State != OpFailed {
		t.Errorf("parts %v, operation %+v", p, op)
	}
}

func TestHandOversThatMakeNoSenseAreRefused(t *testing.T) {
	w, _ := handWorld(t)
	for _, c := range []struct {
		vcpu ident.VCPU
		op   StartOperation
		text string
	}{
		{2, StartOperation{ToServer: "b-1"}, "it has 2, numbered from 0"},
		{0, StartOperation{}, "name the server or the cell"},
		{0, StartOperation{ToServer: "a-1"}, "is on a-1 already"},
		{0, StartOperation{ToCell: "b", Servers: []ident.ServerName{"a-1"}}, "leave --from out"},
	} {
		if fault := w.migrateVCPU(c.vcpu, c.op); fault == nil || !strings.Contains(fault.Text, c.text) {
			t.Errorf("vCPU %d, %+v: %v", c.vcpu, c.op, fault)
		}
	}
	w.f.state.Server(2).Slots = 1
	if fault := w.migrateVCPU(0, StartOperation{ToServer: "b-1"}); fault == nil || fault.Code != CodeNoCapacity || !strings.Contains(fault.Text, "has 1 slots and runs 1") {
		t.Errorf("without a slot: %v", fault)
	}
	w.do(Command{Cordon: &Cordon{Server: "b-1", On: true}})
	if fault := w.migrateVCPU(0, StartOperation{ToServer: "b-1"}); fault == nil || !strings.Contains(fault.Text, "cordoned") {
		t.Errorf("to a cordoned server: %v", fault)
	}
}

// joinWorld has a VM of two vCPUs, both on server a-1, with an empty part on b-1.
func joinWorld(t *testing.T) (*moveWorld, *VM) {
	w, _ := handWorld(t)
	if fault := w.migrateVCPU(1, StartOperation{ToServer: "a-1"}); fault != nil {
		t.Fatal(fault)
	}
	if fault := w.handed(1, true); fault != nil {
		t.Fatal(fault)
	}
	return w, w.f.state.VMNamed("m")
}

// A vCPU that goes to a server without a part of its VM has one made there: a standby, which takes over with that vCPU alone.
func TestAVCPUGoesWhereNoPartIs(t *testing.T) {
	w, _ := joinWorld(t)
	if fault := w.migrateVCPU(1, StartOperation{ToServer: "b-2"}); fault != nil {
		t.Fatal(fault)
	}
	w.wantOp(OpRunning, StepCopying)
	vm := w.f.state.VMNamed("m")
	if vm.Move == nil || len(vm.Move.Parts) != 0 || *vm.Move.VCPU != 1 || len(vm.Parts) != 3 || !vm.Parts[2].Standby {
		t.Fatalf("move %+v, parts %+v", vm.Move, vm.Parts)
	}
	w.settle("m")
	w.wantOp(OpRunning, StepSwitching)
	vm = w.switchOver("m")
	w.wantOp(OpDone, StepDone)
	if p := placed(vm); !slices.Equal(p[0], []ident.VCPU{0}) || len(p[1]) != 0 || !slices.Equal(p[2], []ident.VCPU{1}) || vm.Parts[2].Standby || vm.Home != vm.Parts[2].Part {
		t.Errorf("parts %+v, home %d", vm.Parts, vm.Home)
	}
	if w.op().Steps[0].Down != 5000 || vm.Move != nil {
		t.Errorf("operation %+v", w.op())
	}
}

// Whatever is lost while a part is made, no vCPU is at two places or at none, and the operation says what became of it.
func TestAJoinAndLoss(t *testing.T) {
	for _, x := range []struct {
		name string
		lose ident.ServerID
		safe bool
		vm   VMState
		op   OpState
	}{
		{"the target before its copy is complete", 3, false, VMRunning, OpFailed},
		{"the target before the switchover", 3, true, VMRunning, OpFailed},
		{"the source before the copy is complete", 1, false, VMLost, OpFailed},
		{"the source before the switchover", 1, true, VMRunning, OpDone}, // the copy takes its place
		{"another member before the copy is complete", 2, false, VMLost, OpFailed},
	} {
		w, _ := joinWorld(t)
		if fault := w.migrateVCPU(1, StartOperation{ToServer: "b-2"}); fault != nil {
			t.Fatal(fault)
		}
		if x.safe {
			w.settle("m")
		}
		w.lose(x.lose)
		vm, op := w.f.state.VMNamed("m"), w.op()
		if vm.State != x.vm || op.State != x.op || vm.Move != nil {
			t.Errorf("%s: the vm is %s: %s; operation %+v", x.name, vm.State, vm.Reason, op)
		}
		if vm.State != VMRunning {
			continue
		}
		var all []ident.VCPU
		for _, p := range vm.Parts {
			all = append(all, p.VCPUs...)
		}
		if slices.Sort(all); !slices.Equal(all, []ident.VCPU{0, 1}) {
			t.Errorf("%s: vCPUs %v", x.name, all)
		}
	}
}

// A vCPU that is the only one of its part takes it along; and a protected VM gets no part where its only replica is.
func TestJoinsThatAreNone(t *testing.T) {
	w, _ := handWorld(t)
	if fault := w.migrateVCPU(1, StartOperation{ToServer: "b-2"}); fault != nil || w.op().Steps[0].Kind != StepMove {
		t.Errorf("the only vCPU of a part: %v, %+v", fault, w.op())
	}
	w, _ = joinWorld(t)
	w.do(Command{ProtectVM: &ProtectVM{Name: "m", Protect: ProtectReplica, Replicas: 1}})
	w.settle("m")
	if fault := w.migrateVCPU(1, StartOperation{ToServer: "b-2"}); fault == nil || !strings.Contains(fault.Text, "its replica is on b-2") {
		t.Errorf("to where its replica is: %v", fault)
	}
}
