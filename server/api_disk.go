package server

import (
	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
)

// disksFrom translates the disks that an operator asked for.
func disksFrom(in []*api.Disk) []cells.DiskSpec {
	var out []cells.DiskSpec
	for _, d := range in {
		out = append(out, cells.DiskSpec{
			Name: d.GetName(), Source: d.GetSource(), Bytes: ident.Bytes(d.GetSizeBytes()), Mirrors: int(d.GetMirrors()),
			Cache: cells.DiskCache(d.GetCache()), ReadOnly: d.GetReadOnly(),
		})
	}
	return out
}
