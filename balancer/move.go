package balancer

import (
	"slices"
	"strings"

	"github.com/cellvisor/cellvisor/ident"
)

// MoveRequest is what is to go to another server, and what the VM has meanwhile.
type MoveRequest struct {
	VCPUs       int              // that go there
	MemoryBytes ident.Bytes      // the target holds the whole VM for a moment
	Members     []ident.ServerID // that run the VM: none of them can be the target
	Standbys    []ident.ServerID // that hold a replica already
	Mirrors     []ident.ServerID // that have mirrors of its disks
	Server      ident.ServerID   // the only target allowed, 0: any
	Cell        ident.CellName   // that the target is to be in, "": any
}

const partAlready = " runs a part of it already"

// PlaceMove returns the server that takes parts of a running VM over: one in a cell that the VM depends on anyway before others; then the least
// loaded. Cells with its replicas or mirrors come last, so that these go on protecting it; among them the server that holds one comes first, since nothing has
// to be copied there.
func PlaceMove(servers []Server, req MoveRequest) (ident.ServerID, error) {
	in := func(s *Server, of []ident.ServerID) bool {
		return slices.ContainsFunc(servers, func(o Server) bool { return o.Cell == s.Cell && slices.Contains(of, o.ID) })
	}
	var best *Server
	rank := 0
	open := usable(servers)
	var whyNot []string
	for i := range open {
		s := &open[i]
		if req.Server != 0 && s.ID != req.Server || req.Cell != "" && s.Cell != req.Cell {
			continue
		}
		holds := slices.Contains(req.Standbys, s.ID)
		switch {
		case slices.Contains(req.Members, s.ID):
			whyNot = append(whyNot, string(s.Name)+partAlready)
		case req.VCPUs > s.Slots:
			whyNot = append(whyNot, refuse(nil, "%s has %d slots for %d vCPUs", s.Name, s.Slots, req.VCPUs).Error())
		case !holds && req.MemoryBytes > s.free():
			whyNot = append(whyNot, refuse(nil, "%s has %s of %s free", s.Name, s.free(), s.MemoryBytes).Error())
		default:
			r := 3
			switch {
			case holds:
				r = 2
			case in(s, req.Standbys), in(s, req.Mirrors):
				r = 1
			case in(s, req.Members):
				r = 4
			}
			if r > rank {
				best, rank = s, r
			}
		}
	}
	if best != nil {
		return best.ID, nil
	}
	if len(whyNot) == 0 {
		return 0, refuse(ErrNoCapacity, "no server that may take it is live and not cordoned")
	}
	hint := ""
	if !slices.ContainsFunc(whyNot, func(w string) bool { return !strings.HasSuffix(w, partAlready) }) {
		hint = "; parts of one vm are not merged: add a server, or stop the vm"
	}
	return 0, refuse(ErrNoCapacity, "no server can take its %d vCPUs and %s: %s%s", req.VCPUs, req.MemoryBytes, strings.Join(whyNot, ", "), hint)
}
