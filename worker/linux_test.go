package worker

import (
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

func TestLinuxNeedsOnePart(t *testing.T) {
	w := &Worker{spec: wire.WorkerSpec{VCPUs: 2, LocalVCPUs: []ident.VCPU{0}, Linux: &wire.WorkerLinux{}}}
	if !w.isLinux() {
		t.Fatal("a VM with a kernel is no Linux machine")
	}
	if err := w.setUpLinux(nil, nil); err == nil {
		t.Error("no error for a Linux guest over several servers")
	}
}
