package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cellvisor/cellvisor/vmm/machine"
	"github.com/cellvisor/cellvisor/vmm/virtio"
	"github.com/cellvisor/cellvisor/wire"
)

// disks are a VM's disks at its home.
type disks struct {
	all []guestDisk
}

type guestDisk struct {
	virtio.Disk
	spec wire.WorkerDisk
}

// openDisks opens the disks of a VM in the server's directory of disks, and makes those that are new.
func openDisks(dir string, specs []wire.WorkerDisk) (*disks, error) {
	d := &disks{}
	for _, spec := range specs {
		disk, err := openDisk(filepath.Join(dir, spec.Name), spec)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("disk %s: %w", spec.Name, err), d.close())
		}
		d.all = append(d.all, guestDisk{disk, spec})
	}
	return d, nil
}

func openDisk(dir string, spec wire.WorkerDisk) (virtio.Disk, error) {
	path := filepath.Join(dir, "image")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := createDisk(dir, path, spec); err != nil {
			return nil, err
		}
	}
	return virtio.OpenDisk(path, spec.ReadOnly)
}

func createDisk(dir, path string, spec wire.WorkerDisk) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if spec.Source != "" {
		if _, err := os.Stat(spec.Source); err == nil {
			return os.Symlink(spec.Source, path)
		}
	}
	if spec.Bytes == 0 {
		return fmt.Errorf("there is no file %s on this server, and no size to make a new disk of: add size=BYTES", spec.Source)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(int64(spec.Bytes)), f.Close())
}

// addTo adds the disks to a board, which closes them.
func (d *disks) addTo(board *machine.Board, front func(int, virtio.Disk) virtio.Disk) error {
	for i := range d.all {
		if err := board.AddDisk(front(i, d.all[i].Disk), d.all[i].spec.Name, d.all[i].spec.ReadOnly); err != nil {
			return err
		}
	}
	return nil
}

func (d *disks) close() error {
	var errs []error
	for i := range d.all {
		errs = append(errs, d.all[i].Close())
	}
	return errors.Join(errs...)
}
