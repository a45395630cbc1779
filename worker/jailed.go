package worker

import (
	"fmt"

	"github.com/cellvisor/cellvisor/jail"
	"github.com/cellvisor/cellvisor/vmm/uffd"
)

// spareFaultFDs is how many userfaultfds a jailed worker keeps for what it may have to watch: its memory, once the VM has other parts, and before
// and after that the pages it keeps as a cache of disks.
const spareFaultFDs = 8

// enterJail gives up what a worker does not need once it is set up; see package jail.
func (w *Worker) enterJail() error {
	j := w.spec.Jail
	if j == nil {
		return nil
	}
	for range spareFaultFDs {
		if w.plane == nil {
			break
		}
		spare, err := uffd.Reserve()
		if err != nil {
			return err
		}
		w.plane.spares = append(w.plane.spares, spare)
	}
	go w.usher.serve()
	if err := jail.Enter(&jail.Owner{UID: j.UID, GID: j.GID}, w.usesSwitch()); err != nil {
		return fmt.Errorf("%w; `jail = \"off\"` in the block security of the server's configuration does without", err)
	}
	return nil
}
