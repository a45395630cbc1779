package contain

import (
	"fmt"
	"strings"

	"github.com/cellvisor/cellvisor/cells"
)

func (w *world) checkAll() error { return w.check() }

// check holds after every event.
func (w *world) check() error {
	for i, x := range w.Workers {
		if l := x.Server.Lease; x.Server.Running() && l.Incarnation > x.Incarnation && x.Server.Clock() < l.Until {
			return fmt.Errorf("server %d acts as incarnation %d while a worker of incarnation %d (vm %d part %d) is alive",
				x.Server.ID, l.Incarnation, x.Incarnation, x.VM, x.Part)
		}
		if !x.runs() {
			continue
		}
		if e, out := w.Excluded(cells.Member{Server: x.Server.ID, Incarnation: x.Incarnation}); out {
			return fmt.Errorf("vm %d part %d runs on server %d as incarnation %d, which epoch %d excluded", x.VM, x.Part, x.Server.ID, x.Incarnation, e)
		}
		for _, y := range w.Workers[:i] {
			if y.VM == x.VM && y.Part == x.Part && y.runs() {
				return fmt.Errorf("vm %d part %d runs twice: on server %d (pid %d) and on server %d (pid %d)",
					x.VM, x.Part, y.Server.ID, y.PID, x.Server.ID, x.PID)
			}
		}
	}
	return nil
}

// unsettled says what workers and registry do not agree on.
func (w *world) unsettled() error {
	st := w.Servers[0].Core.Peek()
	for _, x := range w.Workers {
		vm := st.VM(x.VM)
		if vm == nil || !vm.State.Active() || vm.PartOn(x.Server.ID, x.Incarnation) == nil {
			return fmt.Errorf("the worker of vm %d part %d on server %d is left over", x.VM, x.Part, x.Server.ID)
		}
	}
	for i := range st.VMs {
		vm := &st.VMs[i]
		if !vm.State.Active() {
			continue
		}
		if vm.State != cells.VMRunning {
			return fmt.Errorf("vm %d is %s", vm.ID, vm.State)
		}
		for _, p := range vm.Parts {
			if p.Gone {
				continue
			}
			x, ok := w.Find(w.Server(p.Server), vm.ID)
			switch {
			case !ok:
				return fmt.Errorf("vm %d part %d has no worker", vm.ID, p.Part)
			case x.epoch != vm.Epoch:
				return fmt.Errorf("the worker of vm %d part %d has members of epoch %d, the vm is in %d", vm.ID, p.Part, x.epoch, vm.Epoch)
			case !x.runs():
				return fmt.Errorf("the worker of vm %d part %d does not run", vm.ID, p.Part)
			}
		}
	}
	return nil
}

// onlyDependants checks why VMs ended.
func (w *world) onlyDependants() error {
	st := w.Servers[0].Core.Peek()
	for i := range st.VMs {
		vm := &st.VMs[i]
		var lost []cells.VMPart
		for _, p := range vm.Parts {
			if _, out := w.Excluded(cells.Member{Server: p.Server, Incarnation: p.Incarnation}); out {
				lost = append(lost, p)
			}
		}
		why := w.ended[vm.ID]
		switch {
		case vm.State == cells.VMLost && len(lost) == 0:
			return fmt.Errorf("vm %d is lost (%s) though none of its servers was excluded", vm.ID, vm.Reason)
		case vm.State == cells.VMLost:
			if !namesLoss(vm, lost) {
				return fmt.Errorf("vm %d is lost for %q, which names none of the cells that it lost", vm.ID, vm.Reason)
			}
		case vm.State == cells.VMFailed && why == "":
			// A worker that dies with its serve is noticed when serve is back, if no view excluded its server.
			if !strings.Contains(vm.Reason, "is gone") {
				return fmt.Errorf("vm %d failed for %q though nothing happened to it", vm.ID, vm.Reason)
			}
		case vm.State != cells.VMRunning && why == "":
			return fmt.Errorf("vm %d is %s (%s) though nothing happened to it", vm.ID, vm.State, vm.Reason)
		case vm.State == cells.VMRunning && len(lost) > 0 && vm.Spec.OnLoss != cells.OnLossTouch:
			return fmt.Errorf("vm %d runs though its server %d was excluded", vm.ID, lost[0].Server)
		}
	}
	return nil
}

func namesLoss(vm *cells.VM, lost []cells.VMPart) bool {
	for _, p := range lost {
		if strings.Contains(vm.Reason, "cell "+string(p.Cell)) && strings.Contains(vm.Reason, "lost in epoch ") {
			return true
		}
	}
	return false
}
