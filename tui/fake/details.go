package fake

import (
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// smallDetails adds operations, turns of gangs, a map of pages and the load to the small cluster.
func (st *State) smallDetails() {
	st.Operations = []*api.Operation{
		{Id: 31, Kind: api.OperationKind_OPERATION_KIND_MIGRATE, Subject: "vm sums", State: api.OperationState_OPERATION_STATE_DONE, By: "kim",
			StartedAt: before(10 * time.Minute), EndedAt: before(9 * time.Minute), Note: "done",
			Steps: []*api.OperationStep{{Kind: "move", State: "done", Vm: "sums", From: "a-2", To: "b-1", Bytes: 64 * mib, DownMicros: 31_500}}},
		{Id: 40, Kind: api.OperationKind_OPERATION_KIND_DRAIN, Subject: "cell b", State: api.OperationState_OPERATION_STATE_RUNNING, By: "kim",
			Reason: "new power supply", StartedAt: before(8 * time.Second), DeadlineAt: before(-time.Hour), MaxParallel: 4,
			Steps: []*api.OperationStep{
				{Kind: "move", State: "done", Vm: "web", From: "b-1", To: "c-1", Bytes: 128 * mib, DownMicros: 24_100},
				{Kind: "move", State: "copying", Vm: "lock", From: "b-1", To: "c-1", Bytes: 256 * mib, Tries: 1},
				{Kind: "standby", State: "waiting", Vm: "tick", From: "b-2", Bytes: 64 * mib},
			}},
	}
	st.Workers = []*api.WorkerInfo{
		{VmId: 23, Server: "a-1", AtMicros: 1, Counters: &api.WorkerCounters{CheckpointLagMicros: 21_300, CheckpointEveryMicros: 20_000, HeldBytes: 512, ResidentBytes: 12 * mib}},
		{VmId: 23, Server: "b-1", AtMicros: 1, Counters: &api.WorkerCounters{ResidentBytes: 11 * mib}},
	}
	st.Slices = map[string]*api.SlicesResponse{"a-1": turns()}
	st.Maps = map[string]*api.PageMapResponse{"lock": pages()}
}

// turns are those of two gangs of two vCPUs and one of a single one, on two slots: 20 ms each.
func turns() *api.SlicesResponse {
	r := &api.SlicesResponse{Server: "a-1", NowMicros: 5_000_000, Slots: 2, Conducted: true}
	for i := range uint64(100) {
		begin := 3_000_000 + i*20_000
		end := begin + 20_000
		if i == 99 {
			end = 0
		}
		switch i % 3 {
		case 0:
			r.Slices = append(r.Slices, &api.Slice{Vm: "lock", VmId: 23, Number: i, BeginMicros: begin, EndMicros: end, Slots: []uint32{0, 1}, With: []string{"b-1"}})
		case 1:
			r.Slices = append(r.Slices, &api.Slice{Vm: "batch", VmId: 27, Number: i, BeginMicros: begin, EndMicros: end, Slots: []uint32{0, 1}})
		case 2:
			r.Slices = append(r.Slices, &api.Slice{Vm: "tick", VmId: 25, Number: i, BeginMicros: begin, EndMicros: end, Slots: []uint32{1}})
		}
	}
	return r
}

// pages are those of a VM of 512 MiB over two parts, with a replica.
func pages() *api.PageMapResponse {
	const regions = 2048
	r := &api.PageMapResponse{VmId: 23, PagesPerRegion: 64, Pages: 64 * regions, Holders: []*api.PageHolder{
		{Part: 0, Server: "a-1", Cell: "a"}, {Part: 1, Server: "b-1", Cell: "b"}, {Part: 2, Server: "c-1", Cell: "c", Standby: true},
	}}
	for _, h := range r.Holders {
		h.Shared, h.Modified = make([]uint32, regions), make([]uint32, regions)
	}
	a, b, c := r.Holders[0], r.Holders[1], r.Holders[2]
	for i := range 1200 {
		switch {
		case i < 40: // the payload's text: both read it
			a.Shared[i], b.Shared[i] = 60, 60
		case i < 500:
			a.Modified[i] = 64
		case i < 560:
			b.Shared[i], a.Shared[i] = 5, 50
		case i < 1000:
			b.Modified[i] = uint32(i % 65)
		case i < 1100:
			a.Modified[i], b.Modified[i] = uint32(i*7%40), uint32(i*5%24)
		default:
			b.Shared[i] = 64
		}
		c.Modified[i] = 64
	}
	return r
}
