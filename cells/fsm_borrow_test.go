package cells

import (
	"slices"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

// newLendingWorld is a moveWorld whose servers lend memory and have less than they promise.
func newLendingWorld(t *testing.T) *moveWorld {
	w := newMoveWorld(t)
	for i := range w.f.state.Servers {
		w.f.state.Servers[i].PhysicalBytes = 16 * ident.MiB
	}
	return w
}

func (w *moveWorld) borrow(vm *VM, lenders ...ident.ServerID) *Fault {
	home := w.home(vm)
	return w.try(Command{VMBorrows: &VMBorrows{VM: vm.ID, Part: home.Part, Server: home.Server, Incarnation: home.Incarnation, Lenders: lenders}})
}

// A VM depends on whom it borrows from, and only one that does not fit its cells comes to depend on another.
func TestBorrow(t *testing.T) {
	w := newLendingWorld(t)
	small := w.run("small", ProtectNone)
	if fault := w.borrow(small, 2); fault == nil || !strings.Contains(fault.Error(), "fits a: it borrows nothing in cell b") {
		t.Errorf("a VM that fits: %v", fault)
	}
	w.do(Command{CreateVM: &CreateVM{Spec: VMSpec{Name: "large", Builtin: "count", VCPUs: 1, MemoryBytes: 20 * ident.MiB}, Secret: strings.Repeat("0", 64)}})
	large := w.settle("large")
	if fault := w.borrow(large, large.Parts[0].Server); fault == nil {
		t.Error("a server lends to itself")
	}
	w.f.state.Servers[2].PhysicalBytes = 0
	if fault := w.borrow(large, 3); fault == nil {
		t.Error("a server that does not lend, lends")
	}
	if fault := w.borrow(large, 2); fault != nil {
		t.Fatal(fault)
	}
	large = w.f.state.VMNamed("large")
	if cells := large.Cells(); !slices.Equal(cells, []ident.CellName{"a", "b"}) || !slices.Equal(large.OwnCells(), []ident.CellName{"a"}) {
		t.Errorf("it depends on %v", cells)
	}
	if loans := w.f.state.LoansByServer(); !slices.Equal(loans[1].From, []string{"b-1"}) || !slices.Equal(loans[2].To, []string{"a-1"}) || len(loans) != 2 {
		t.Errorf("loans %v", loans)
	}
	events := w.f.state.NextSeq
	if fault := w.borrow(large, 2); fault != nil || w.f.state.NextSeq != events {
		t.Errorf("said again: %v", fault)
	}
	if fault := w.borrow(large); fault != nil || len(w.f.state.VMNamed("large").Cells()) != 1 {
		t.Errorf("given back: %v", fault)
	}
}

// Nothing is borrowed where the replica is, and a replica that takes over has borrowed nothing.
func TestBorrowBesideReplica(t *testing.T) {
	w := newLendingWorld(t)
	w.do(Command{CreateVM: &CreateVM{Spec: VMSpec{Name: "safe", Builtin: "count", VCPUs: 1, MemoryBytes: 20 * ident.MiB, Protect: ProtectReplica}, Secret: strings.Repeat("0", 64)}})
	vm := w.settle("safe")
	if fault := w.borrow(vm, 3); fault == nil || !strings.Contains(fault.Error(), "has its replica in cell b") {
		t.Errorf("borrowed beside the replica: %v", fault)
	}
	w.f.state.Servers[2].Cell = "c"
	if fault := w.borrow(vm, 3); fault != nil {
		t.Fatal(fault)
	}
	w.lose(1)
	if vm = w.f.state.VMNamed("safe"); vm.Recoveries != 1 || len(vm.Borrows) != 0 {
		t.Errorf("after the failover: %+v", vm)
	}
}
