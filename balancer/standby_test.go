package balancer

import (
	"slices"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

func TestPlaceStandbys(t *testing.T) {
	server := func(id ident.ServerID, cell ident.CellName, used int) Server {
		return Server{ID: id, Name: ident.ServerName(cell) + "-" + ident.ServerName('0'+rune(id)), Cell: cell, Open: true, Slots: 4, MemoryBytes: ident.GiB, UsedVCPUs: used}
	}
	three := []Server{server(1, "a", 0), server(2, "b", 0), server(3, "c", 1)}
	six := append(slices.Clone(three), server(4, "a", 0), server(5, "b", 0), server(6, "c", 0))
	closed := slices.Clone(three)
	closed[2].Open = false
	for _, tt := range []struct {
		name    string
		servers []Server
		req     StandbyRequest
		want    []ident.ServerID
	}{
		{"a cell that does not run it", three, StandbyRequest{Replicas: 1, Members: []ident.ServerID{1, 2}}, []ident.ServerID{3}},
		{"the less loaded of two", three, StandbyRequest{Replicas: 1, Members: []ident.ServerID{1}}, []ident.ServerID{2}},
		{"two replicas in two cells", three, StandbyRequest{Replicas: 2, Members: []ident.ServerID{1}}, []ident.ServerID{2, 3}},
		{"it has all it wants", three, StandbyRequest{Replicas: 1, Members: []ident.ServerID{1}, Standbys: []ident.ServerID{3}}, nil},
		{"only its own cells are left: one more, elsewhere", six, StandbyRequest{Replicas: 1, Members: []ident.ServerID{1, 2, 3}}, []ident.ServerID{4, 5}},
		{"nothing is open", closed, StandbyRequest{Replicas: 1, Members: []ident.ServerID{1, 2}}, nil},
		{"a standby has to run what it takes over", three, StandbyRequest{Replicas: 1, VCPUs: 5, Members: []ident.ServerID{1, 2}}, nil},
		{"a replica is whole", three, StandbyRequest{Replicas: 1, MemoryBytes: 2 * ident.GiB, Members: []ident.ServerID{1, 2}}, nil},
	} {
		if got := PlaceStandbys(tt.servers, tt.req); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
