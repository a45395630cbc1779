package worker

import (
	"fmt"
	"path/filepath"

	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/jail"
	"github.com/cellvisor/cellvisor/link/priority"
	"github.com/cellvisor/cellvisor/vmm/uffd"
	"github.com/cellvisor/cellvisor/wire"
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
	w.jailed.Store(true)
	return beJailed(j, w.usesSwitch())
}

// beJailed jails the process.
func beJailed(j *wire.WorkerJail, connect bool) error {
	permitted, err := jail.Enter(&jail.Owner{UID: j.UID, GID: j.GID}, connect)
	if err != nil {
		return fmt.Errorf("%w; `jail = \"off\"` in the block security of the server's configuration does without", err)
	}
	if permitted {
		priority.Permit()
	}
	return nil
}

// openImage opens the copy of a disk here, or makes it: with files that serve hands over, once the worker is jailed.
func (w *Worker) openImage(spec wire.WorkerDisk, c disk.ImageConfig) (*disk.Image, error) {
	if w.jailed.Load() {
		files, err := w.usher.openDisk(w.ctx, wire.WorkerOpenDisk{Disk: spec.Name, Bytes: ident.Bytes(c.Bytes), Link: c.Source != ""})
		if err != nil {
			return nil, err
		}
		c.Files = files
	}
	return disk.OpenImage(filepath.Join(w.spec.DiskDir, spec.Dir), c)
}
