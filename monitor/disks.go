package monitor

import (
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/wire"
)

// workerDisks is what a worker is told about its VM's disks.
func workerDisks(vm *cells.VM) []wire.WorkerDisk {
	var out []wire.WorkerDisk
	for _, d := range vm.Spec.Disks {
		out = append(out, wire.WorkerDisk{Name: d.Name, Source: d.Source, Bytes: d.Bytes, Cache: string(d.Cache), ReadOnly: d.ReadOnly})
	}
	return out
}
