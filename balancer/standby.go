package balancer

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// StandbyRequest is what a protected VM has and wants.
type StandbyRequest struct {
	Replicas    int              // cells whose loss, all together, it is to survive
	VCPUs       int              // the most that one of its servers runs: a standby takes over as many, or more
	MemoryBytes ident.Bytes      // a replica is whole
	Members     []ident.ServerID // that run the VM
	Standbys    []ident.ServerID // that hold replicas already
}

// PlaceStandbys returns the servers for the replicas that the VM lacks, least loaded first, or fewer if there are not enough.
//
// After the loss of any Replicas cells one of which runs the VM, a replica must be left. Replicas in cells that do not run the VM are enough as
// many as that: at least one of the lost cells is none of theirs. If there are too few such cells, one more replica is needed, all of
// them in different cells; those among the VM's own cells are on servers that do not run it.
func PlaceStandbys(servers []Server, req StandbyRequest) []ident.ServerID {
	runs := func(c ident.CellName) bool {
		return slices.ContainsFunc(servers, func(s Server) bool { return s.Cell == c && slices.Contains(req.Members, s.ID) })
	}
	var taken []ident.CellName // of the standbys
	inside := false            // a standby is in a cell that runs the VM
	for _, s := range servers {
		if slices.Contains(req.Standbys, s.ID) {
			taken = append(taken, s.Cell)
			inside = inside || runs(s.Cell)
		}
	}
	var out []ident.ServerID
	pick := func(own bool) bool {
		for _, s := range usable(servers) {
			if runs(s.Cell) == own && !slices.Contains(taken, s.Cell) && !slices.Contains(req.Members, s.ID) && fits(&s, req.VCPUs, req.MemoryBytes) {
				taken, out, inside = append(taken, s.Cell), append(out, s.ID), inside || own
				return true
			}
		}
		return false
	}
	want := func() int {
		if inside {
			return req.Replicas + 1
		}
		return req.Replicas
	}
	for len(taken) < want() {
		if !pick(false) && !pick(true) {
			return out
		}
	}
	return out
}
