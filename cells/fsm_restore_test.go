package cells

import (
	"slices"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

func (w *moveWorld) start(c StartOperation) {
	w.t.Helper()
	w.do(Command{StartOperation: &c})
}

func (w *moveWorld) wantHome(name string, server, origin ident.ServerID) {
	w.t.Helper()
	if p := w.home(w.f.state.VMNamed(name)); p.Server != server || p.Origin != origin {
		w.t.Fatalf("vm %s is on server %d from %d, want it on %d from %d", name, p.Server, p.Origin, server, origin)
	}
}

// What a drain takes away comes back from wherever later drains took it, once, and not if somebody else has moved it since.
func TestRestoreOriginal(t *testing.T) {
	w := newMoveWorld(t)
	w.run("web", ProtectNone)
	w.start(StartOperation{Kind: OpDrain, Cells: []ident.CellName{"a"}})
	w.settle("web")
	w.switchOver("web")
	w.wantHome("web", 2, 1)
	w.start(StartOperation{Kind: OpDrain, Servers: []ident.ServerName{"b-1"}})
	w.settle("web")
	w.switchOver("web")
	w.wantHome("web", 3, 1)
	w.start(StartOperation{Kind: OpRestore, Servers: []ident.ServerName{"b-1"}, Return: ReturnOriginal})
	if op := w.op(); op.State != OpDone || len(op.Steps) != 0 {
		t.Fatalf("b-1 gets back what was never its: %+v", op)
	}
	w.start(StartOperation{Kind: OpRestore, Cells: []ident.CellName{"a"}, Return: ReturnOriginal})
	w.settle("web")
	w.switchOver("web")
	w.wantOp(OpDone, StepDone)
	w.wantHome("web", 1, 0)

	w.start(StartOperation{Kind: OpDrain, Cells: []ident.CellName{"a"}})
	w.settle("web")
	w.switchOver("web")
	w.start(StartOperation{Kind: OpMigrate, VM: "web", ToServer: "b-2"})
	w.settle("web")
	w.switchOver("web")
	w.wantHome("web", 3, 0)
	w.start(StartOperation{Kind: OpRestore, Cells: []ident.CellName{"a"}, Return: ReturnOriginal})
	if op := w.op(); op.State != OpDone || len(op.Steps) != 0 {
		t.Fatalf("what was moved on purpose is moved back: %+v", op)
	}
}

// A part that cannot go back stays, and the operation says why.
func TestRestoreSaysWhatStays(t *testing.T) {
	w := newMoveWorld(t)
	w.run("web", ProtectNone)
	w.start(StartOperation{Kind: OpDrain, Cells: []ident.CellName{"a"}})
	w.settle("web")
	w.switchOver("web")
	w.lose(1)
	w.start(StartOperation{Kind: OpRestore, Cells: []ident.CellName{"a"}, Return: ReturnOriginal})
	w.wantOp(OpDone, StepSkipped)
	if w.op().Steps[0].Note == "" {
		t.Error("no reason is given")
	}
}

// A replica moves without a moment in which the VM cannot go back to one, and a restore brings it back.
func TestStandbyMovesWithoutGap(t *testing.T) {
	w := newMoveWorld(t)
	vm := w.run("web", ProtectReplica)
	where := func() (on []ident.ServerID) {
		for _, p := range w.f.state.VMNamed("web").Parts {
			if p.Standby {
				on = append(on, p.Server)
			}
		}
		return on
	}
	held := func(when string) {
		if vm = w.f.state.VMNamed("web"); !vm.Held() {
			t.Fatalf("%s: no replica holds a checkpoint: %+v", when, vm.Parts)
		}
	}
	move := func(to ident.ServerID, c StartOperation) {
		t.Helper()
		w.start(c)
		w.wantOp(OpRunning, StepCopying)
		held("its successor is made")
		w.settle("web")
		held("the old one goes")
		w.wantOp(OpRunning, StepCopying)
		w.settle("web")
		w.wantOp(OpDone, StepDone)
		if !slices.Equal(where(), []ident.ServerID{to}) || vm.Protection() == "unprotected" {
			t.Fatalf("replicas on %v, want %d; %s", where(), to, vm.Protection())
		}
	}
	if !slices.Equal(where(), []ident.ServerID{2}) {
		t.Fatalf("replicas on %v", where())
	}
	move(3, StartOperation{Kind: OpDrain, Servers: []ident.ServerName{"b-1"}})
	move(2, StartOperation{Kind: OpRestore, Servers: []ident.ServerName{"b-1"}, Return: ReturnOriginal})

	w.start(StartOperation{Kind: OpDrain, Servers: []ident.ServerName{"b-1"}})
	w.lose(3)
	held("the successor is lost")
	if s := w.op().Steps[0]; s.State != StepWaiting || s.Tries != 1 {
		t.Errorf("step %+v", s)
	}
}

// crampedHooks have room for standbys only while no VM is called hog.
type crampedHooks struct{ moveHooks }

func (h crampedHooks) Standbys(st *State, vm *VM) []ident.ServerID {
	if slices.ContainsFunc(st.VMs, func(v VM) bool { return v.Spec.Name == "hog" && v.State.Active() }) {
		return nil
	}
	return h.moveHooks.Standbys(st, vm)
}

// A VM that had no server for its replica gets one as soon as there is one: servers are opened, other VMs end.
func TestRoomIsUsed(t *testing.T) {
	w := newMoveWorld(t)
	w.f.hooks.Placer = crampedHooks{}
	protection := func(want string) {
		t.Helper()
		if got := w.f.state.VMNamed("web").Protection(); got != want {
			t.Fatalf("protection %s, want %s", got, want)
		}
	}
	w.do(Command{Cordon: &Cordon{Cell: "b", On: true}})
	w.run("web", ProtectReplica)
	protection("unprotected")
	w.do(Command{Cordon: &Cordon{Server: "b-2"}})
	protection("syncing")
	w.lose(3)
	protection("unprotected")
	w.run("hog", ProtectNone)
	w.do(Command{Cordon: &Cordon{Cell: "b"}})
	protection("unprotected")
	w.do(Command{StopVM: &StopVM{Name: "hog"}})
	protection("syncing")
}
