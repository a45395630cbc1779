package balancer

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cellvisor/cellvisor/ident"
)

// Server is a server as placement sees it.
type Server struct {
	ID          ident.ServerID
	Name        ident.ServerName
	Cell        ident.CellName
	Open        bool   // live, not cordoned, no witness
	Closed      string // why it is not open, for people: "dead", "cordoned"
	Slots       int
	MemoryBytes ident.Bytes
	UsedVCPUs   int         // of the VMs that are placed on it
	UsedBytes   ident.Bytes // their shares of memory
}

func (s *Server) free() ident.Bytes {
	if s.UsedBytes >= s.MemoryBytes {
		return 0
	}
	return s.MemoryBytes - s.UsedBytes
}

// Request is what a VM needs.
type Request struct {
	VCPUs       int
	MemoryBytes ident.Bytes
	Span        []ident.CellName // empty: placement chooses
}

// Part is one part of a placement.
type Part struct {
	Server ident.ServerID
	VCPUs  []ident.VCPU
}

// Reasons why a request cannot be placed. The errors that Place returns wrap one of them and give the numbers.
var (
	ErrInvalid    = errors.New("the request makes no sense")
	ErrTooLarge   = errors.New("the request exceeds what the servers have")
	ErrNoCapacity = errors.New("the servers are full")
)

// refusal is an error whose text is for operators.
type refusal struct {
	kind error
	text string
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.kind }

func refuse(kind error, format string, args ...any) error {
	return &refusal{kind: kind, text: fmt.Sprintf(format, args...)}
}

// Place decides where a VM's parts go; the first part is home. Without a span it takes the least loaded single server that fits, else
// as few servers as it can within one cell, else as few as it can over all: a VM is not split without need. With a span the vCPUs are
// spread evenly over its cells, and in each over its servers, least loaded first. Ties go by name.
func Place(servers []Server, req Request) ([]Part, error) {
	if req.VCPUs < 1 || req.MemoryBytes == 0 {
		return nil, refuse(ErrInvalid, "a vm needs at least one vCPU and some memory, not %d and %s", req.VCPUs, req.MemoryBytes)
	}
	open := usable(servers)
	if len(req.Span) > 0 {
		return placeSpan(servers, open, req)
	}
	if len(open) == 0 {
		return nil, refuse(ErrNoCapacity, "no server takes VM parts: %s", whyClosed(servers))
	}
	for i := range open {
		if fits(&open[i], req.VCPUs, req.MemoryBytes) {
			return []Part{{Server: open[i].ID, VCPUs: vcpus(0, req.VCPUs)}}, nil
		}
	}
	for _, cell := range cellsOf(open) {
		if parts := fewest(inCell(open, cell), req); parts != nil {
			return parts, nil
		}
	}
	if parts := fewest(open, req); parts != nil {
		return parts, nil
	}
	return nil, tooMuch(open, req, "the cluster")
}

// usable returns the open servers, least loaded first.
func usable(servers []Server) []Server {
	var open []Server
	for _, s := range servers {
		if s.Open && s.Slots > 0 {
			open = append(open, s)
		}
	}
	slices.SortFunc(open, compareLoad)
	return open
}

// whyClosed counts servers that take no parts, by what keeps them from it.
func whyClosed(servers []Server) string {
	if len(servers) == 0 {
		return "none is known"
	}
	var reasons []string
	counts := map[string]int{}
	for _, s := range servers {
		why := s.Closed
		switch {
		case s.Open && s.Slots > 0:
			continue
		case s.Open:
			why = "without slots"
		case why == "":
			why = "not live or not open"
		}
		if counts[why]++; counts[why] == 1 {
			reasons = append(reasons, why)
		}
	}
	slices.Sort(reasons)
	for i, why := range reasons {
		reasons[i] = fmt.Sprintf("%d %s", counts[why], why)
	}
	return fmt.Sprintf("of %d servers %s", len(servers), strings.Join(reasons, ", "))
}

// compareLoad orders by vCPUs for each slot (compared as fractions, without dividing), then by memory in use, then by name.
func compareLoad(a, b Server) int {
	if x, y := a.UsedVCPUs*b.Slots, b.UsedVCPUs*a.Slots; x != y {
		return x - y
	}
	if a.UsedBytes != b.UsedBytes {
		if a.UsedBytes < b.UsedBytes {
			return -1
		}
		return 1
	}
	return strings.Compare(string(a.Name), string(b.Name))
}

func fits(s *Server, vcpus int, memory ident.Bytes) bool {
	return vcpus <= s.Slots && memory <= s.free()
}

// cellsOf lists the cells, the one with the least loaded server first.
func cellsOf(open []Server) []ident.CellName {
	var out []ident.CellName
	for _, s := range open {
		if !slices.Contains(out, s.Cell) {
			out = append(out, s.Cell)
		}
	}
	return out
}

func inCell(open []Server, cell ident.CellName) []Server {
	var out []Server
	for _, s := range open {
		if s.Cell == cell {
			out = append(out, s)
		}
	}
	return out
}

// fewest spreads the VM over as few of the servers as possible, or returns nil if all of them are not enough.
func fewest(servers []Server, req Request) []Part {
	most := min(len(servers), req.VCPUs, ident.MaxParts)
	for n := 2; n <= most; n++ {
		if chosen := pick(servers, n, req.VCPUs, share(req.MemoryBytes, n)); chosen != nil {
			return number(chosen, spread(chosen, req.VCPUs))
		}
	}
	return nil
}

// share is one of n parts' share of the memory, in whole pages.
func share(memory ident.Bytes, n int) ident.Bytes {
	pages := (memory.Pages() + uint64(n) - 1) / uint64(n)
	return ident.Bytes(pages << ident.PageShift)
}

// pick takes n servers with memory free for one share each and slots for all vCPUs together: the least loaded ones if those have slots
// enough, else those with most slots.
func pick(servers []Server, n, vcpus int, memory ident.Bytes) []Server {
	var able []Server
	for _, s := range servers {
		if s.free() >= memory {
			able = append(able, s)
		}
	}
	if len(able) < n {
		return nil
	}
	if slots(able[:n]) >= vcpus {
		return able[:n]
	}
	slices.SortStableFunc(able, func(a, b Server) int { return b.Slots - a.Slots })
	if slots(able[:n]) >= vcpus {
		return able[:n]
	}
	return nil
}

func slots(servers []Server) int {
	n := 0
	for i := range servers {
		n += servers[i].Slots
	}
	return n
}

// spread deals vCPUs out one by one, always to the server with the fewest so far that has a slot left. There must be slots enough.
func spread(servers []Server, vcpus int) []int {
	counts := make([]int, len(servers))
	for ; vcpus > 0; vcpus-- {
		best := -1
		for i := range servers {
			if counts[i] < servers[i].Slots && (best < 0 || counts[i] < counts[best]) {
				best = i
			}
		}
		counts[best]++
	}
	return counts
}

// number gives the parts their vCPUs, in rising order; servers without one are left out.
func number(servers []Server, counts []int) []Part {
	var parts []Part
	next := 0
	for i, n := range counts {
		if n > 0 {
			parts = append(parts, Part{Server: servers[i].ID, VCPUs: vcpus(next, n)})
			next += n
		}
	}
	return parts
}

func vcpus(first, n int) []ident.VCPU {
	out := make([]ident.VCPU, n)
	for i := range out {
		out[i] = ident.VCPU(first + i)
	}
	return out
}

// tooMuch explains why a request does not fit, with the numbers.
func tooMuch(open []Server, req Request, where string) error {
	if have := slots(open); req.VCPUs > have {
		return refuse(ErrTooLarge, "%d vCPUs asked for, but %s has %d slots on %d open servers", req.VCPUs, where, have, len(open))
	}
	var total, free, mostFree ident.Bytes
	for i := range open {
		total += open[i].MemoryBytes
		free += open[i].free()
		mostFree = max(mostFree, open[i].free())
	}
	if req.MemoryBytes > total {
		return refuse(ErrTooLarge, "%s of memory asked for, but %s has %s in all on %d open servers", req.MemoryBytes, where, total, len(open))
	}
	return refuse(ErrNoCapacity, "%d vCPUs with %s of memory do not fit: %s has %d slots on %d open servers, and %s of %s memory free (at most %s on one of them; "+
		"each part of a vm takes an equal share)", req.VCPUs, req.MemoryBytes, where, slots(open), len(open), free, total, mostFree)
}
