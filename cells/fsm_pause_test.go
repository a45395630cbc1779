package cells

import "testing"

// TestSaveHoldsAndEnds checks who may let a VM that is being saved go on.
func TestSaveHoldsAndEnds(t *testing.T) {
	f, id := runningVM(t, VMSpec{})
	apply := func(n uint64, c Command, ok bool) {
		t.Helper()
		if a := applyTo(t, f, n, c); (a.Fault == nil) != ok {
			t.Fatalf("command %d: %v", n, a.Fault)
		}
	}
	vm := func() *VM { return f.state.VM(id) }
	still := func() {
		t.Helper()
		for _, p := range vm().Parts {
			n := uint64(1000) + vm().PauseSeq*10 + uint64(p.Part)
			apply(n, Command{PartPaused: &PartPaused{VM: id, Part: p.Part, Server: p.Server, Incarnation: p.Incarnation, Seq: vm().PauseSeq}}, true)
		}
	}
	apply(100, Command{PauseVM: &PauseVM{VM: id, On: true}}, true)
	if vm().Still() {
		t.Fatal("paused before its parts said so")
	}
	still()
	if !vm().Still() {
		t.Fatal("not paused")
	}
	apply(101, Command{SaveVM: &SaveVM{VM: id, Token: "t", Boot: "b"}}, true)
	apply(102, Command{SaveVM: &SaveVM{VM: id, Token: "u", Boot: "b"}}, false)
	apply(103, Command{PauseVM: &PauseVM{VM: id}}, false)
	apply(104, Command{EndSave: &EndSave{VM: id, Token: "u", Stop: true}}, false)
	f.endSaves(vm().Saving.Server, "another")
	if vm().Saving.Token != "" || !vm().Paused {
		t.Fatal("the end of who saves it must leave the operator's pause")
	}
	apply(105, Command{EndSave: &EndSave{VM: id, Token: "t", Stop: true}}, false)
	apply(106, Command{SaveVM: &SaveVM{VM: id, Token: "v", Boot: "b"}}, true)
	apply(107, Command{EndSave: &EndSave{VM: id, Token: "v", Stop: true}}, true)
	if vm().State != VMStopped {
		t.Fatalf("after a save it is %s", vm().State)
	}
}
