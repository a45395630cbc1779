package cells

import (
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

// A Linux guest may lie on several servers; it does not leave them, nor go into a file.
func TestLinuxOverSeveralServersStays(t *testing.T) {
	w := newMoveWorld(t)
	spec := VMSpec{Name: "wide", VCPUs: 2, MemoryBytes: 2 * ident.MiB, Span: []ident.CellName{"a", "b"}, Protect: ProtectNone,
		PayloadSHA256: strings.Repeat("0", 64), PayloadBytes: 1, PayloadServer: 1, Linux: &LinuxSpec{CPU: "host"}}
	w.do(Command{CreateVM: &CreateVM{Spec: spec, Secret: strings.Repeat("0", 64)}})
	if vm := w.settle("wide"); len(vm.Members()) != 2 {
		t.Fatalf("it lies on %+v", vm.Parts)
	}
	for _, op := range []StartOperation{{Kind: OpMigrate, VM: "wide", ToServer: "b-2", Servers: []ident.ServerName{"a-1"}}, {Kind: OpDrain, Servers: []ident.ServerName{"a-1"}}} {
		if fault := w.try(Command{StartOperation: &op}); fault == nil || !strings.Contains(fault.Text, "does not move yet") {
			t.Errorf("%s: %v", op.Kind, fault)
		}
	}
	save := SaveVM{VM: w.f.state.VMNamed("wide").ID, Token: "t", Boot: "boot"}
	if fault := w.try(Command{SaveVM: &save}); fault == nil || !strings.Contains(fault.Text, "cannot be saved yet") {
		t.Errorf("save: %v", fault)
	}
}
