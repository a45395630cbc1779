package balancer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

// server reads "a-1" into a server of cell a with ID 1, open, 4 slots, 1 GiB.
func server(id int, name string, change ...func(*Server)) Server {
	s := Server{ID: ident.ServerID(id), Name: ident.ServerName(name), Cell: ident.CellName(name[:1]), Open: true, Slots: 4, MemoryBytes: ident.GiB}
	for _, f := range change {
		f(&s)
	}
	return s
}

func closed(s *Server)            { s.Open = false }
func slotsOf(n int) func(*Server) { return func(s *Server) { s.Slots = n } }
func used(v int, b ident.Bytes) func(*Server) {
	return func(s *Server) { s.UsedVCPUs, s.UsedBytes = v, b }
}
func show(parts []Part, servers []Server) string {
	var out []string
	for _, p := range parts {
		i := slices.IndexFunc(servers, func(s Server) bool { return s.ID == p.Server })
		out = append(out, fmt.Sprintf("%s:%v", servers[i].Name, p.VCPUs))
	}
	return strings.Join(out, " ")
}

func six() []Server {
	return []Server{server(1, "a-1"), server(2, "a-2"), server(3, "b-1"), server(4, "b-2"), server(5, "c-1"), server(6, "c-2")}
}

func TestPlace(t *testing.T) {
	for _, tt := range []struct {
		name    string
		servers []Server
		req     Request
		want    string
		err     error
		text    string // that the error's text contains
	}{
		{name: "one server, ties by name", servers: six(), req: Request{VCPUs: 4, MemoryBytes: ident.GiB}, want: "a-1:[0 1 2 3]"},
		{name: "the least loaded", servers: []Server{server(1, "a-1", used(4, 0)), server(2, "b-1", used(2, 0))},
			req: Request{VCPUs: 1, MemoryBytes: ident.MiB}, want: "b-1:[0]"},
		{name: "load counts for each slot", servers: []Server{server(1, "a-1", slotsOf(8), used(4, 0)), server(2, "b-1", slotsOf(4), used(3, 0))},
			req: Request{VCPUs: 1, MemoryBytes: ident.MiB}, want: "a-1:[0]"},
		{name: "not split over cells without need", servers: six(), req: Request{VCPUs: 6, MemoryBytes: ident.GiB}, want: "a-1:[0 1 2] a-2:[3 4 5]"},
		{name: "over cells if one is too small", servers: six(), req: Request{VCPUs: 12, MemoryBytes: ident.GiB},
			want: "a-1:[0 1 2 3] a-2:[4 5 6 7] b-1:[8 9 10 11]"},
		{name: "memory alone splits too", servers: six(), req: Request{VCPUs: 2, MemoryBytes: 3 * ident.GiB / 2}, want: "a-1:[0] a-2:[1]"},
		{name: "cordoned, dead and witness servers are left out", servers: []Server{server(1, "a-1", closed), server(2, "b-1")},
			req: Request{VCPUs: 1, MemoryBytes: ident.MiB}, want: "b-1:[0]"},
		{name: "a span is spread evenly", servers: six(), req: Request{VCPUs: 4, MemoryBytes: ident.GiB, Span: []ident.CellName{"b", "a"}},
			want: "b-1:[0 1] a-1:[2 3]"},
		{name: "home is in the first cell named", servers: six(), req: Request{VCPUs: 3, MemoryBytes: ident.GiB, Span: []ident.CellName{"c", "b", "a"}},
			want: "c-1:[0] b-1:[1] a-1:[2]"},
		{name: "more cells than vCPUs", servers: six(), req: Request{VCPUs: 1, MemoryBytes: ident.MiB, Span: []ident.CellName{"c", "a"}}, want: "c-1:[0]"},
		{name: "several servers of each cell if one is not enough", servers: six(),
			req:  Request{VCPUs: 12, MemoryBytes: ident.GiB, Span: []ident.CellName{"a", "b"}},
			want: "a-1:[0 1 2] a-2:[3 4 5] b-1:[6 7 8] b-2:[9 10 11]"},
		{name: "a small cell gets less", servers: []Server{server(1, "a-1", slotsOf(1)), server(2, "b-1", slotsOf(5))},
			req: Request{VCPUs: 5, MemoryBytes: ident.MiB, Span: []ident.CellName{"a", "b"}}, want: "a-1:[0] b-1:[1 2 3 4]"},
		{name: "more vCPUs than the span has slots", servers: six(), req: Request{VCPUs: 17, MemoryBytes: ident.GiB, Span: []ident.CellName{"a", "b"}},
			err: ErrTooLarge, text: "17 vCPUs asked for, but the span a,b has 16 slots (cell a has 8, cell b has 8)"},
		{name: "more vCPUs than the cluster has slots", servers: six(), req: Request{VCPUs: 25, MemoryBytes: ident.GiB},
			err: ErrTooLarge, text: "25 vCPUs asked for, but the cluster has 24 slots on 6 open servers"},
		{name: "more memory than servers have", servers: six(), req: Request{VCPUs: 1, MemoryBytes: 7 * ident.GiB},
			err: ErrTooLarge, text: "7GiB of memory asked for, but the cluster has 6GiB in all on 6 open servers"},
		{name: "memory is in use", servers: []Server{server(1, "a-1", used(1, 900*ident.MiB))}, req: Request{VCPUs: 1, MemoryBytes: 512 * ident.MiB},
			err: ErrNoCapacity, text: "124MiB of 1GiB memory free"},
		{name: "one vCPU is on one server", servers: six(), req: Request{VCPUs: 1, MemoryBytes: 2 * ident.GiB},
			err: ErrNoCapacity, text: "at most 1GiB on one of them"},
		{name: "a cell that is down", servers: []Server{server(1, "a-1"), server(2, "b-1", closed)},
			req: Request{VCPUs: 2, MemoryBytes: ident.MiB, Span: []ident.CellName{"a", "b"}}, err: ErrNoCapacity, text: "cell b of the span takes no VM parts: of 1 servers 1 not live or not open"},
		{name: "a cordoned cell", servers: []Server{server(1, "a-1"), server(2, "b-1", closed, func(s *Server) { s.Closed = "cordoned" }), server(3, "b-2", slotsOf(0))},
			req: Request{VCPUs: 2, MemoryBytes: ident.MiB, Span: []ident.CellName{"a", "b"}}, err: ErrNoCapacity, text: "cell b of the span takes no VM parts: of 2 servers 1 cordoned, 1 without slots"},
		{name: "no server at all", req: Request{VCPUs: 1, MemoryBytes: ident.MiB}, err: ErrNoCapacity, text: "no server takes VM parts"},
		{name: "no vCPU", servers: six(), req: Request{MemoryBytes: ident.MiB}, err: ErrInvalid, text: "at least one vCPU"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			parts, err := Place(tt.servers, tt.req)
			if got := show(parts, tt.servers); got != tt.want || !errors.Is(err, tt.err) {
				t.Fatalf("placed %q, error %v; want %q, %v", got, err, tt.want, tt.err)
			}
			if err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %q does not say %q", err, tt.text)
			}
		})
	}
}

// The invariants of the package comment, for any cluster and request, and no dependence on the order of the servers.
func TestPlaceProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var servers []Server
		for i := range rapid.IntRange(1, 9).Draw(t, "servers") {
			servers = append(servers, Server{
				ID: ident.ServerID(i + 1), Name: ident.ServerName(fmt.Sprintf("s-%d", i)), Cell: ident.CellName(fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "cell"))),
				Open: rapid.IntRange(0, 4).Draw(t, "open") > 0, Slots: rapid.IntRange(0, 6).Draw(t, "slots"),
				MemoryBytes: ident.Bytes(rapid.IntRange(0, 64).Draw(t, "memory")) * ident.MiB, UsedVCPUs: rapid.IntRange(0, 9).Draw(t, "used"),
				UsedBytes: ident.Bytes(rapid.IntRange(0, 32).Draw(t, "used memory")) * ident.MiB,
			})
		}
		req := Request{VCPUs: rapid.IntRange(1, 20).Draw(t, "vcpus"), MemoryBytes: ident.Bytes(rapid.IntRange(1, 200).Draw(t, "MiB")) * ident.MiB}
		for c := range 4 {
			if rapid.IntRange(0, 3).Draw(t, "span") == 0 {
				req.Span = append(req.Span, ident.CellName(fmt.Sprint(c)))
			}
		}
		parts, err := Place(servers, req)
		reversed := slices.Clone(servers)
		slices.Reverse(reversed)
		again, err2 := Place(reversed, req)
		if show(parts, servers) != show(again, servers) || (err == nil) != (err2 == nil) {
			t.Fatalf("%s or, in another order, %s", show(parts, servers), show(again, servers))
		}
		if err != nil {
			return
		}
		checkPlacement(t, servers, req, parts)
	})
}

func checkPlacement(t *rapid.T, servers []Server, req Request, parts []Part) {
	next := 0
	seen := make(map[ident.ServerID]bool)
	cells := make(map[ident.CellName]bool)
	for _, p := range parts {
		s := servers[p.Server-1]
		if seen[p.Server] || !s.Open || len(p.VCPUs) == 0 || len(p.VCPUs) > s.Slots || s.free() < share(req.MemoryBytes, len(parts)) {
			t.Fatalf("part %+v on %+v of %d parts", p, s, len(parts))
		}
		if len(req.Span) > 0 && !slices.Contains(req.Span, s.Cell) {
			t.Fatalf("part in cell %s, outside the span %v", s.Cell, req.Span)
		}
		seen[p.Server], cells[s.Cell] = true, true
		for _, v := range p.VCPUs {
			if int(v) != next {
				t.Fatalf("vCPU %d after %d", v, next)
			}
			next++
		}
	}
	if next != req.VCPUs || len(req.Span) > 0 && len(cells) != min(len(req.Span), req.VCPUs) {
		t.Fatalf("%d of %d vCPUs in %d cells of span %v", next, req.VCPUs, len(cells), req.Span)
	}
}
