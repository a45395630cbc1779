package cells

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

// moveHooks place VMs and standbys on the first server that is open, live and does not have a part of the VM.
type moveHooks struct{ testHooks }

func (moveHooks) first(st *State, vm *VM, to Destination) ident.ServerID {
	for i := range st.Servers {
		s := &st.Servers[i]
		taken := slices.ContainsFunc(vm.Parts, func(p VMPart) bool { return p.Server == s.ID && !p.Standby })
		if s.State == ServerLive && s.Role == RoleServer && !s.Cordoned && !taken && (to.Server == 0 || to.Server == s.ID) && (to.Cell == "" || to.Cell == s.Cell) {
			return s.ID
		}
	}
	return 0
}

func (h moveHooks) Target(st *State, vm *VM, _ []ident.Part, to Destination) (ident.ServerID, *Fault) {
	if id := h.first(st, vm, to); id != 0 {
		return id, nil
	}
	return 0, faultf(CodeNoCapacity, "vm %s fits nowhere", vm.Spec.Name)
}

func (h moveHooks) Standbys(st *State, vm *VM) []ident.ServerID {
	if slices.ContainsFunc(vm.Parts, func(p VMPart) bool { return p.Standby }) {
		return nil
	}
	if id := h.first(st, vm, Destination{}); id != 0 {
		return []ident.ServerID{id}
	}
	return nil
}

// Contain lets a VM go on from a standby that holds it.
func (h moveHooks) Contain(loss Loss, vm *VM) Outcome {
	o := h.testHooks.Contain(loss, vm)
	members := slices.ContainsFunc(vm.Parts, func(p VMPart) bool { return !p.Standby && slices.Contains(o.Gone, p.Part) })
	image, held := vm.image(o.Gone)
	switch {
	case len(o.Gone) == 0:
	case !members:
		o.Kind = OutcomeUnprotected
	case held:
		o.Kind, o.Image = OutcomeRestore, image
	}
	return o
}

// moveWorld is one state machine with servers a-1, b-1, b-2 (1, 2, 3) and what their monitors say.
type moveWorld struct {
	t     *testing.T
	f     *FSM
	index uint64
}

func newMoveWorld(t *testing.T) *moveWorld {
	initial := []InitialServer{{ID: 1, Name: "a-1", Cell: "a", Role: RoleServer}, {ID: 2, Name: "b-1", Cell: "b", Role: RoleServer}, {ID: 3, Name: "b-2", Cell: "b", Role: RoleServer}}
	h := moveHooks{}
	w := &moveWorld{t: t, f: NewFSM("test", initial, Hooks{Placer: h, Mover: h, Container: h})}
	for i := range initial {
		w.do(Command{Admit: &Admit{Server: initial[i].ID, Info: testInfo(&w.f.state.Servers[i], "boot")}})
	}
	return w
}

func (w *moveWorld) try(c Command) *Fault {
	w.index++
	c.Version, c.UnixMs, c.Request = CommandVersion, int64(w.index), RequestID(fmt.Sprint("r", w.index))
	b, err := EncodeCommand(&c)
	if err != nil {
		w.t.Fatal(err)
	}
	out := w.f.Apply(w.index, 1, b)
	w.f.Check()
	return out.Fault
}

func (w *moveWorld) do(c Command) {
	w.t.Helper()
	if fault := w.try(c); fault != nil {
		w.t.Fatal(fault)
	}
}

func (w *moveWorld) run(name string, protect Protect) *VM {
	w.do(Command{CreateVM: &CreateVM{Spec: VMSpec{Name: name, Builtin: "count", VCPUs: 1, MemoryBytes: ident.MiB, Protect: protect}, Secret: strings.Repeat("0", 64)}})
	return w.settle(name)
}

// settle has every part that is not ready report that it is, and home that its standbys are safe.
func (w *moveWorld) settle(name string) *VM {
	w.t.Helper()
	vm := w.f.state.VMNamed(name)
	for _, p := range slices.Clone(vm.Parts) {
		if !p.Ready {
			w.do(Command{PartReady: &PartReady{VM: vm.ID, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation, PID: 1}})
			vm = w.f.state.VMNamed(name)
		}
	}
	home := w.home(vm)
	if slices.ContainsFunc(vm.Parts, func(p VMPart) bool { return p.Standby }) && !vm.Safe() {
		w.do(Command{VMProtected: &VMProtected{VM: vm.ID, Part: home.Part, Server: home.Server, Incarnation: home.Incarnation, Seq: vm.ProtectSeq}})
	}
	return w.f.state.VMNamed(name)
}

func (w *moveWorld) home(vm *VM) VMPart {
	return vm.Parts[slices.IndexFunc(vm.Parts, func(p VMPart) bool { return p.Part == vm.Home })]
}

// switchOver has home report that the VM stands still, and the target that it runs.
func (w *moveWorld) switchOver(name string) *VM {
	w.t.Helper()
	vm := w.f.state.VMNamed(name)
	home := w.home(vm)
	w.do(Command{SwitchVM: &SwitchVM{VM: vm.ID, Part: home.Part, Server: home.Server, Incarnation: home.Incarnation, Seq: vm.Move.Switching, CutMicros: 3000}})
	vm = w.f.state.VMNamed(name)
	w.do(Command{VMMoved: &VMMoved{VM: vm.ID, Epoch: vm.Epoch, ResumeMicros: 2000}})
	return w.f.state.VMNamed(name)
}

func (w *moveWorld) lose(id ident.ServerID) {
	w.t.Helper()
	s := w.f.state.Server(id)
	w.do(Command{Exclude: &Exclude{Term: 1, Targets: []Excluded{{Server: id, Incarnation: s.Incarnation, Boot: s.Process.Boot}}}})
}

func (w *moveWorld) op() *Operation { return &w.f.state.Operations[len(w.f.state.Operations)-1] }

func (w *moveWorld) wantOp(state OpState, step StepState) {
	w.t.Helper()
	if op := w.op(); op.State != state || len(op.Steps) == 0 || op.Steps[0].State != step {
		w.t.Fatalf("operation %+v, want it %s and its first step %s", op, state, step)
	}
}

func TestMove(t *testing.T) {
	w := newMoveWorld(t)
	vm := w.run("web", ProtectNone)
	epoch := vm.Epoch
	w.do(Command{StartOperation: &StartOperation{Kind: OpMigrate, VM: "web", ToServer: "b-1"}})
	w.wantOp(OpRunning, StepCopying)
	if vm = w.settle("web"); vm.Move.Switching != vm.ProtectSeq || vm.Protection() != "none" {
		t.Fatalf("move %+v under protection %d, %s", vm.Move, vm.ProtectSeq, vm.Protection())
	}
	w.wantOp(OpRunning, StepSwitching)
	if fault := w.try(Command{SwitchVM: &SwitchVM{VM: vm.ID, Part: vm.Home, Server: 1, Incarnation: vm.Parts[0].Incarnation, Seq: vm.ProtectSeq + 1}}); fault == nil {
		t.Fatal("a switchover under another protection was taken")
	}
	vm = w.switchOver("web")
	w.wantOp(OpDone, StepDone)
	if len(vm.Parts) != 1 || vm.Parts[0].Server != 2 || vm.Parts[0].Standby || !slices.Equal(vm.Parts[0].VCPUs, []ident.VCPU{0}) || vm.Recoveries != 0 || vm.Epoch <= epoch {
		t.Fatalf("vm %+v", vm)
	}
	if down := w.op().Steps[0].Down; down != 5000 {
		t.Errorf("it stood still for %d us, want 5000", down)
	}
}

// A server whose serve has just come back may report the end of a move as that of a recovery: the move is over all the same.
func TestMoveReportedAsRecovery(t *testing.T) {
	w := newMoveWorld(t)
	w.run("web", ProtectNone)
	w.do(Command{StartOperation: &StartOperation{Kind: OpMigrate, VM: "web", ToServer: "b-1"}})
	vm := w.settle("web")
	home := w.home(vm)
	w.do(Command{SwitchVM: &SwitchVM{VM: vm.ID, Part: home.Part, Server: home.Server, Incarnation: home.Incarnation, Seq: vm.Move.Switching, CutMicros: 3000}})
	w.wantOp(OpRunning, StepResuming)
	w.do(Command{VMResumed: &VMResumed{VM: vm.ID, Epoch: w.f.state.VMNamed("web").Epoch, Text: "vm web runs again"}})
	w.wantOp(OpDone, StepDone)
	if down := w.op().Steps[0].Down; down != 3000 {
		t.Errorf("it stood still for %d us, want 3000", down)
	}
}

// Whatever is lost during a move, the VM ends up where something is left of it, and the operation says so.
func TestMoveAndLoss(t *testing.T) {
	for _, x := range []struct {
		name      string
		lose      ident.ServerID
		safe      bool // the copy is complete when that happens
		vm        VMState
		home      ident.ServerID
		op        OpState
		step      StepState
		recovered uint64
	}{
		{"target before the copy is complete", 2, false, VMRunning, 1, OpRunning, StepCopying, 0}, // to b-2 instead
		{"target before the switchover", 2, true, VMRunning, 1, OpRunning, StepCopying, 0},
		{"source before the copy is complete", 1, false, VMLost, 1, OpFailed, StepFailed, 0},
		{"source before the switchover", 1, true, VMRunning, 2, OpDone, StepDone, 1}, // an ordinary recovery
	} {
		t.Run(x.name, func(t *testing.T) {
			w := newMoveWorld(t)
			w.run("web", ProtectNone)
			w.do(Command{StartOperation: &StartOperation{Kind: OpMigrate, VM: "web", ToCell: "b"}})
			if x.safe {
				w.settle("web")
			}
			w.lose(x.lose)
			vm := w.f.state.VMNamed("web")
			if vm.State != x.vm || w.home(vm).Server != x.home || vm.Recoveries != x.recovered {
				t.Errorf("vm is %s on %v after %d recoveries: %s", vm.State, vm.Parts, vm.Recoveries, vm.Reason)
			}
			w.wantOp(x.op, x.step)
		})
	}
}

func TestAbandonedMove(t *testing.T) {
	w := newMoveWorld(t)
	w.run("web", ProtectNone)
	w.do(Command{StartOperation: &StartOperation{Kind: OpMigrate, VM: "web", ToServer: "b-1"}})
	vm := w.settle("web")
	stale := AbandonMove{VM: vm.ID, Image: vm.Move.Image, Switching: vm.Move.Switching + 1}
	if w.try(Command{AbandonMove: &stale}) == nil {
		t.Error("a move was given up for what another one did")
	}
	for i := range maxTries {
		seq := vm.ProtectSeq
		w.do(Command{AbandonMove: &AbandonMove{VM: vm.ID, Image: vm.Move.Image, Switching: vm.Move.Switching, Reason: "it took too long"}})
		vm = w.f.state.VMNamed("web")
		if vm.ProtectSeq <= seq {
			t.Fatal("home does not hear that it goes on")
		}
		if i < maxTries-1 {
			w.wantOp(OpRunning, StepCopying) // once more
			vm = w.settle("web")
		}
	}
	w.wantOp(OpFailed, StepFailed)
	if vm.Move != nil || len(vm.Parts) != 1 || vm.State != VMRunning {
		t.Errorf("vm %+v", vm)
	}
}

func TestDrain(t *testing.T) {
	w := newMoveWorld(t)
	w.run("plain", ProtectNone)
	w.run("prot", ProtectReplica) // on a-1, its standby on b-1
	w.do(Command{StartOperation: &StartOperation{Kind: OpDrain, Cells: []ident.CellName{"a"}, MaxParallel: 1}})
	if s := w.op().Steps; len(s) != 2 || s[0].State != StepCopying || s[1].State != StepWaiting {
		t.Fatalf("one move at a time was asked for: %+v", s)
	}
	if w.try(Command{StartOperation: &StartOperation{Kind: OpDrain, Servers: []ident.ServerName{"a-1"}}}) == nil {
		t.Error("a second drain of the same server was taken")
	}
	w.settle("plain")
	w.switchOver("plain")
	w.settle("prot")
	w.switchOver("prot")
	if op := w.op(); op.State != OpRunning || !strings.Contains(op.Note, "replica") {
		t.Fatalf("it must wait for the new replica: %+v", op)
	}
	vm := w.settle("prot")
	w.wantOp(OpDone, StepDone)
	for _, p := range append(slices.Clone(vm.Parts), w.f.state.VMNamed("plain").Parts...) {
		if p.Cell == "a" {
			t.Errorf("part %+v is still there", p)
		}
	}
	w.do(Command{StartOperation: &StartOperation{Kind: OpRestore, Cells: []ident.CellName{"a"}, Return: ReturnOriginal}})
	w.settle("plain")
	w.switchOver("plain")
	w.settle("prot")
	w.switchOver("prot")
	w.settle("prot")
	w.wantOp(OpDone, StepDone)
	if p := w.home(w.f.state.VMNamed("plain")); p.Server != 1 {
		t.Errorf("plain is on %s", p.ServerName)
	}
}

func TestDrainIsRefused(t *testing.T) {
	for _, x := range []struct {
		name, want string
		start      StartOperation
	}{
		{"last cell", "none that is live and not cordoned", StartOperation{Kind: OpDrain, Cells: []ident.CellName{"a", "b"}}},
		{"unknown cell", "no cell is called", StartOperation{Kind: OpDrain, Cells: []ident.CellName{"x"}}},
		{"nothing named", "at least one", StartOperation{Kind: OpDrain}},
		{"too many at a time", "1 to 64", StartOperation{Kind: OpDrain, Cells: []ident.CellName{"a"}, MaxParallel: 65}},
		{"unknown kind", "is not known", StartOperation{Kind: "explode"}},
		{"unknown vm", "no vm is called", StartOperation{Kind: OpMigrate, VM: "x"}},
		{"there already", "runs there already", StartOperation{Kind: OpMigrate, VM: "web", ToServer: "a-1"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			w := newMoveWorld(t)
			w.run("web", ProtectNone)
			if fault := w.try(Command{StartOperation: &x.start}); fault == nil || !strings.Contains(fault.Text, x.want) {
				t.Errorf("got %v, want it refused with %q", fault, x.want)
			}
			if len(w.f.state.Operations) > 0 {
				t.Error("it was started all the same")
			}
		})
	}
}

func TestDeadlines(t *testing.T) {
	for _, x := range []struct {
		on   OnDeadline
		op   OpState
		vm   VMState
		step StepState
	}{
		{DeadlineFail, OpFailed, VMRunning, StepWaiting},
		{DeadlineStop, OpDone, VMStopped, StepDone},
	} {
		t.Run(string(x.on), func(t *testing.T) {
			w := newMoveWorld(t)
			w.run("web", ProtectNone)
			w.do(Command{StartOperation: &StartOperation{Kind: OpDrain, Cells: []ident.CellName{"a"}, DeadlineMs: 1, OnDeadline: x.on}})
			w.do(Command{EndOperation: &EndOperation{ID: w.op().ID, Expired: true}})
			w.wantOp(x.op, x.step)
			vm := w.f.state.VMNamed("web")
			if vm.State != x.vm || vm.Move != nil || len(vm.Parts) != 1 {
				t.Errorf("vm %+v", vm)
			}
		})
	}
}

// A VM that has nowhere to go, as things turned out, keeps the drain waiting, and it goes on when there is room again.
func TestDrainWaitsForRoom(t *testing.T) {
	w := newMoveWorld(t)
	w.run("web", ProtectNone)
	w.do(Command{StartOperation: &StartOperation{Kind: OpDrain, Cells: []ident.CellName{"a"}}})
	w.do(Command{Cordon: &Cordon{Cell: "b", On: true}})
	w.lose(2)
	w.wantOp(OpRunning, StepWaiting)
	if note := w.op().Note; !strings.Contains(note, "fits nowhere") {
		t.Errorf("it waits for %q", note)
	}
	w.do(Command{Cordon: &Cordon{Cell: "b"}})
	w.wantOp(OpRunning, StepCopying)
	w.settle("web")
	if vm := w.switchOver("web"); vm.Parts[0].Server != 3 {
		t.Errorf("it is on %s", vm.Parts[0].ServerName)
	}
	w.wantOp(OpDone, StepDone)
}
