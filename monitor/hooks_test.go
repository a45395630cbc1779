package monitor

import (
	"testing"

	"github.com/cellvisor/cellvisor/cells"
)

// A part is lost with who lends it memory.
func TestContainLender(t *testing.T) {
	vm := &cells.VM{ID: 1, State: cells.VMRunning, Parts: []cells.VMPart{{Part: 0, Server: 1, Incarnation: 1, Cell: "a"}},
		Borrows: []cells.Borrow{{Part: 0, Server: 2, Incarnation: 5, Cell: "b"}}}
	loss := cells.Loss{Epoch: 7, Servers: []cells.LostServer{{Server: 2, Name: "b-1", Cell: "b", Incarnation: 5, WholeCell: true}}}
	if o := (container{}).Contain(loss, vm); o.Kind != cells.OutcomeLost || o.Reason != "cell b lost in epoch 7" || len(o.Gone) != 1 || o.Gone[0] != 0 {
		t.Errorf("%+v", o)
	}
	vm.Borrows[0].Incarnation = 9
	if o := (container{}).Contain(loss, vm); o.Kind != cells.OutcomeUntouched {
		t.Errorf("a former incarnation: %+v", o)
	}
}
