package recover

import (
	"fmt"

	"github.com/cellvisor/cellvisor/cells"
)

// checkAll holds after every event.
func (w *world) checkAll() error {
	for i, x := range w.Workers {
		if !x.acts() {
			continue
		}
		if e, out := w.Excluded(cells.Member{Server: x.Server.ID, Incarnation: x.Incarnation}); out {
			return fmt.Errorf("vm %d part %d runs on server %d as incarnation %d, which epoch %d excluded", x.VM, x.Part, x.Server.ID, x.Incarnation, e)
		}
		for _, y := range w.Workers[:i] {
			if y.VM == x.VM && y.epoch == x.epoch && y.home && x.home && y.acts() {
				return fmt.Errorf("vm %d has two homes in epoch %d: part %d and part %d", x.VM, x.epoch, y.Part, x.Part)
			}
		}
	}
	return nil
}

// release lets the first n records of a home's log be seen.
func (w *world) release(x *worker, n int) {
	if n <= x.released {
		return
	}
	x.promise(x.log[x.released:n])
	x.released = n
	seen := w.seen[x.VM]
	for i := range min(n, len(seen)) {
		if x.log[i] != seen[i] {
			w.Fail(fmt.Errorf("vm %d part %d: the outside saw record %d as made in epoch %d, now it is one of epoch %d", x.VM, x.Part, i, seen[i].epoch, x.log[i].epoch))
			return
		}
	}
	if n > len(seen) {
		w.seen[x.VM] = append(seen, x.log[len(seen):n]...)
	}
}

// unsettled says what keeps running VMs from being as safe as they are to be.
func (w *world) unsettled() error {
	st := w.Servers[0].Core.Peek()
	for i := range st.VMs {
		vm := &st.VMs[i]
		if !vm.State.Active() {
			continue
		}
		if vm.Spec.Protect == cells.ProtectReplica && vm.Protection() != "safe" || vm.State != cells.VMRunning {
			return fmt.Errorf("vm %d is %s, protection %s", vm.ID, vm.State, vm.Protection())
		}
		if m := vm.Mirroring(); m == "syncing" || m == "missing" {
			return fmt.Errorf("vm %d: its mirrors are %s", vm.ID, m)
		}
		for _, p := range vm.Parts {
			x, ok := w.Find(w.Server(p.Server), vm.ID)
			switch {
			case !ok || x.Part != p.Part:
				return fmt.Errorf("vm %d part %d has no worker", vm.ID, p.Part)
			case !p.Standby && (x.epoch != vm.Epoch || !x.acts()):
				return fmt.Errorf("the worker of vm %d part %d does not run in epoch %d", vm.ID, p.Part, vm.Epoch)
			case x.home != (p.Part == vm.Home):
				return fmt.Errorf("the worker of vm %d part %d takes itself for home: %v", vm.ID, p.Part, x.home)
			case x.home && (len(w.seen[vm.ID]) == 0 || x.released < len(w.seen[vm.ID]) || w.seen[vm.ID][x.released-1].epoch != vm.Epoch):
				return fmt.Errorf("vm %d has emitted nothing since its recovery", vm.ID)
			}
		}
	}
	return nil
}

// justified checks why VMs ended.
func (w *world) justified() error {
	st := w.Servers[0].Core.Peek()
	for i := range st.VMs {
		vm := &st.VMs[i]
		switch {
		case vm.State.Active():
		case w.disks && !w.gentle && w.diskJustified(vm):
		case w.gentle:
			return fmt.Errorf("vm %d is %s (%s), though one cell at a time was struck", vm.ID, vm.State, vm.Reason)
		case vm.State != cells.VMLost || vm.Reason == "":
			return fmt.Errorf("vm %d is %s, for %q", vm.ID, vm.State, vm.Reason)
		}
	}
	return nil
}
