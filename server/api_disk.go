package server

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

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

// ListDisks implements api.CellvisorServer.
func (v *service) ListDisks(ctx context.Context, _ *api.ListDisksRequest) (*api.ListDisksResponse, error) {
	v.catchUp(ctx)
	st := v.s.board.now().state
	out := &api.ListDisksResponse{}
	for i := range st.Disks {
		d := &st.Disks[i]
		m := &api.DiskInfo{Name: d.Name, Source: d.Source, SizeBytes: uint64(d.Bytes)}
		vm := st.VM(d.VM)
		if vm != nil {
			m.Vm = vm.Spec.Name
		}
		for _, c := range d.Copies {
			sv := st.Server(c.Server)
			m.Copies = append(m.Copies, &api.DiskCopy{Server: string(c.ServerName), Cell: string(c.Cell), State: string(c.State),
				Home: vm != nil && c.Used && c.Part == vm.Home, Live: sv != nil && sv.State == cells.ServerLive})
		}
		out.Disks = append(out.Disks, m)
	}
	slices.SortFunc(out.Disks, func(a, b *api.DiskInfo) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// RemoveDisk implements api.CellvisorServer.
func (v *service) RemoveDisk(ctx context.Context, req *api.RemoveDiskRequest) (*api.RemoveDiskResponse, error) {
	if err := v.s.propose(ctx, cells.Command{RemoveDisk: &cells.RemoveDisk{Name: req.GetName()}}, nil); err != nil {
		return nil, err
	}
	return &api.RemoveDiskResponse{}, nil
}

// keepDisks deletes the copies of disks that the registry does not know any more. None of them is open: a disk that a VM has cannot be removed.
func (s *supervisor) keepDisks(state *cells.State) {
	entries, err := os.ReadDir(s.diskDir())
	if err != nil {
		return // there are none yet
	}
	known := map[string]bool{}
	for i := range state.Disks {
		known[fmt.Sprintf("%s-%d", state.Disks[i].Name, state.Disks[i].ID)] = true
	}
	for _, e := range entries {
		if !known[e.Name()] && madeBy(e.Name()) <= state.Applied {
			if err := os.RemoveAll(filepath.Join(s.diskDir(), e.Name())); err != nil {
				s.log.Warn().Err(err).Msg("cannot remove a copy of a removed disk")
			}
		}
	}
}

// madeBy is the log index at which the disk was made whose copies have that directory: a registry that is not there yet cannot know of it. A name that
// is none belongs to nobody's disk, and is left alone.
func madeBy(dir string) uint64 {
	_, id, _ := cutLast(dir, "-")
	n, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		return math.MaxUint64
	}
	return n >> 4
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
