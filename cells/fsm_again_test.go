package cells

import (
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

func (w *againWorld) do(c Command) Applied {
	w.t.Helper()
	w.index++
	a := applyTo(w.t, w.f, w.index, c)
	if a.Fault != nil {
		w.t.Fatal(a.Fault)
	}
	w.f.Check()
	return a
}

// againWorld is a cluster with one VM that is started again.
type againWorld struct {
	t     *testing.T
	f     *FSM
	index uint64
	id    ident.VMID
}

func (w *againWorld) vm() *VM { return w.f.State().VM(w.id) }

func (w *againWorld) exclude(name ident.ServerName) {
	w.t.Helper()
	s := w.f.State().ServerNamed(name)
	w.do(Command{Exclude: &Exclude{Term: 1, Targets: []Excluded{{Server: s.ID, Incarnation: s.Incarnation, Boot: s.Process.Boot, Cause: "test"}}}})
}

func (w *againWorld) admit(name ident.ServerName, boot string) {
	w.t.Helper()
	s := w.f.State().ServerNamed(name)
	w.do(Command{Admit: &Admit{Server: s.ID, BaseIncarnation: s.Incarnation, BaseBoot: s.Process.Boot, Info: testInfo(s, boot)}})
}

func (w *againWorld) ready() {
	w.t.Helper()
	vm := w.vm()
	for _, p := range vm.Members() {
		w.do(Command{PartReady: &PartReady{VM: vm.ID, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation, PID: 7}})
	}
}

func newAgainWorld(t *testing.T) *againWorld {
	f, id := runningVM(t, VMSpec{Restart: RestartAlways, Span: []ident.CellName{"b"}})
	return &againWorld{t: t, f: f, index: 1000, id: id}
}

func TestLostVMStartsAgainWhenThereIsRoom(t *testing.T) {
	w := newAgainWorld(t)
	before := *w.vm()
	w.exclude("b-1")
	if vm := w.vm(); vm.State != VMLost || !vm.Start.Wanted {
		t.Fatalf("after the loss: %+v", vm)
	}
	w.admit("b-1", "again")
	vm := w.vm()
	if vm.State != VMStarting || vm.Start.Wanted || vm.Start.Count != 1 || vm.Epoch <= before.Epoch || vm.Created != vm.Epoch || vm.EndedMs != 0 {
		t.Fatalf("with room: %+v", vm)
	}
	if vm.Home == before.Home || vm.Parts[0].Part != vm.Home {
		t.Fatalf("a new part has the index of the lost one: %+v", vm.Parts)
	}
	w.ready()
	if vm := w.vm(); vm.State != VMRunning {
		t.Fatalf("%+v", vm)
	}
}

// Its worker fails again and again while no server is lost: that is not for ever.
func TestStartsInOneViewAreBounded(t *testing.T) {
	w := newAgainWorld(t)
	for n := 0; w.vm().State != VMFailed; n++ {
		if n > 2*maxStarts {
			t.Fatalf("started for ever: %+v", w.vm())
		}
		w.ready2()
		p := w.vm().Parts[0]
		w.do(Command{PartGone: &PartGone{VM: w.id, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation, Reason: "killed"}})
	}
	if vm := w.vm(); vm.Start.Count != maxStarts || !strings.Contains(vm.Reason, "not started again") {
		t.Fatalf("%+v", vm)
	}
}

// ready2 is ready for a VM that may run already.
func (w *againWorld) ready2() {
	if w.vm().State == VMStarting {
		w.ready()
	}
}

func TestStopTakesTheWishBack(t *testing.T) {
	w := newAgainWorld(t)
	w.exclude("b-1")
	w.do(Command{StopVM: &StopVM{VM: w.id}})
	w.admit("b-1", "again")
	if vm := w.vm(); vm.State != VMStopped || vm.Start.Count != 0 {
		t.Fatalf("%+v", vm)
	}
}

// Only a loss starts a VM again: not its own end, nor a stop.
func TestEndsAreNotStartedAgain(t *testing.T) {
	w := newAgainWorld(t)
	p := w.vm().Parts[0]
	w.do(Command{EndVM: &EndVM{VM: w.id, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation, State: VMExited}})
	if vm := w.vm(); vm.State != VMExited || vm.Start != (Start{}) {
		t.Fatalf("%+v", vm)
	}
}
