package fake

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cellvisor/cellvisor/api"
)

// Epoch is the time at which the small cluster is looked at.
var Epoch = time.Date(2026, 3, 14, 9, 26, 53, 0, time.UTC)

func before(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(Epoch.Add(-d)) }

const (
	mib = 1 << 20
	gib = 1 << 30
)

// Small is a cluster of three cells with two servers each, just after server c-2 died, with a VM in each state.
func Small() State {
	s := State{
		Status: &api.StatusResponse{
			ClusterId: "5d0e8c2a", ClusterName: "demo", Epoch: 7, Quorum: true, Leader: "a-1", ServersLive: 5, ServersTotal: 6,
			Server: "a-1", Version: "0.1.0", CellsLive: 3, CellsTotal: 3, VmsRunning: 2, VmsTotal: 6,
			ServerState: api.ServerState_SERVER_STATE_LIVE, LastEventSeq: 6,
		},
		Counters: map[string]uint64{"link.refused_epoch": 3, "raft.proposals": 118, "worker.pages_in": 40912},
		Consoles: map[string][]byte{"lock": []byte("4 vCPUs, 10000 rounds\nround 1000\nround 2000\n"), "boom": []byte("about to jump\n")},
		Outputs:  map[string][]uint32{"lock": {1000, 2000, 3000}},
	}
	for i, cell := range []string{"a", "b", "c"} {
		c := &api.Cell{Name: cell, State: api.CellState_CELL_STATE_LIVE, ServersLive: 2, Slots: 4, MemoryBytes: 4 * gib, Vms: 1}
		for n := 1; n <= 2; n++ {
			port := 7000 + 10*i + n
			server := &api.Server{
				Id: uint64(2*i + n), Name: fmt.Sprintf("%s-%d", cell, n), Cell: cell, Role: api.ServerRole_SERVER_ROLE_SERVER,
				State: api.ServerState_SERVER_STATE_LIVE, Pid: uint32(41000 + port), Addr: fmt.Sprintf("127.0.0.1:%d", port),
				ApiAddr: fmt.Sprintf("unix:///run/cellvisor/%s-%d/api.sock", cell, n), Incarnation: uint64(n), Voter: n == 1,
				Slots: 2, MemoryBytes: 2 * gib, Version: "0.1.0",
			}
			s.Servers = append(s.Servers, server)
			c.Servers = append(c.Servers, server.Name)
		}
		s.Cells = append(s.Cells, c)
	}
	s.Servers[0].Leader = true
	s.Servers[0].SlotsUsed, s.Servers[0].MemoryUsedBytes = 2, 512*mib
	s.Servers[2].SlotsUsed, s.Servers[2].MemoryUsedBytes = 2, 512*mib
	s.Servers[3].UnfitReason = "no /dev/kvm: open /dev/kvm: permission denied"
	s.Servers[4].SlotsUsed, s.Servers[4].MemoryUsedBytes = 1, 64*mib
	s.Servers[4].Cordoned = true
	s.Servers[5].State = api.ServerState_SERVER_STATE_DEAD
	s.Cells[0].SlotsUsed, s.Cells[0].MemoryUsedBytes = 2, 512*mib
	s.Cells[1].SlotsUsed, s.Cells[1].MemoryUsedBytes = 2, 512*mib
	s.Cells[2].State, s.Cells[2].ServersLive, s.Cells[2].SlotsUsed = api.CellState_CELL_STATE_DEGRADED, 1, 1
	s.VMs = smallVMs()
	s.smallEvents()
	s.smallDetails()
	return s
}

func smallVMs() []*api.VM {
	vm := func(id uint64, name string, state api.VMState, cells ...string) *api.VM {
		home := ""
		if len(cells) > 0 {
			home = cells[0] + "-1"
		}
		return &api.VM{Id: id, Name: name, State: state, Vcpus: 1, MemoryBytes: 64 * mib, Cells: cells, Home: home, Protect: "none",
			OnLoss: api.OnLoss_ON_LOSS_STOP, Epoch: 5, Payload: "count", CreatedAt: before(185 * time.Second),
			StartedAt: before(184 * time.Second)}
	}
	boom := vm(21, "boom", api.VMState_VM_STATE_FAILED, "a")
	boom.Reason = "triple fault of vCPU 0 at 0x400123"
	boom.Registers = "rip 0000000000400123  rsp 00000000007fffe0  rflags 0000000000003002\nrax 0000000000000000  rbx 0000000000000001\n" +
		"rcx 0000000000200000  rdx 0000000004000000\ncr2 00000000deadbeef  cr3 0000000000001000"
	boom.EndedAt = before(20 * time.Second)
	boom.ConsoleBytes = 14
	gone := vm(22, "gone", api.VMState_VM_STATE_LOST, "c")
	gone.Reason = "server c-2 of cell c lost in epoch 7"
	gone.EndedAt = before(3 * time.Second)
	lock := vm(23, "lock", api.VMState_VM_STATE_RUNNING, "a", "b")
	lock.Vcpus, lock.MemoryBytes, lock.Payload, lock.Args, lock.Span = 4, 512*mib, "lock", "rounds=10000", []string{"a", "b"}
	lock.ConsoleBytes, lock.OutputRecords = 44, 3
	lock.Protect, lock.Protection = "replica", "safe"
	lock.Workers = []*api.Worker{
		{Part: 0, Server: "a-1", Cell: "a", Pid: 48101, Vcpus: []uint32{0, 1}, Addr: "127.0.0.1:9001", Ready: true, PidStartTicks: 1,
			Counters: &api.WorkerCounters{RemoteReads: 81234, RemoteWrites: 50321, LocalFaults: 912, PagesIn: 131555, PagesOut: 131002,
				ResidentBytes: 12 * mib, VcpuExits: 4711, RunMicros: 88_000_000}},
		{Part: 1, Server: "b-1", Cell: "b", Pid: 48102, Vcpus: []uint32{2, 3}, Addr: "127.0.0.1:9002", Ready: true, PidStartTicks: 1,
			Counters: &api.WorkerCounters{RemoteReads: 79001, RemoteWrites: 51002, LocalFaults: 877, PagesIn: 130003, PagesOut: 131321,
				ResidentBytes: 11 * mib, VcpuExits: 3902, RunMicros: 86_000_000}},
		{Part: 2, Server: "c-1", Cell: "c", Pid: 48103, Addr: "127.0.0.1:9004", Ready: true, Standby: true, PidStartTicks: 1,
			Counters: &api.WorkerCounters{ResidentBytes: 23 * mib}},
	}
	next := vm(26, "next", api.VMState_VM_STATE_STARTING, "c")
	next.StartedAt = nil
	next.CreatedAt = before(300 * time.Millisecond)
	sums := vm(24, "sums", api.VMState_VM_STATE_EXITED, "b")
	sums.EndedAt = before(60 * time.Second)
	tick := vm(25, "tick", api.VMState_VM_STATE_RUNNING, "c")
	tick.Workers = []*api.Worker{{Part: 0, Server: "c-1", Cell: "c", Pid: 48200, Vcpus: []uint32{0}, Addr: "127.0.0.1:9003", Ready: true}}
	return []*api.VM{boom, gone, lock, next, sums, tick}
}

func (st *State) smallEvents() {
	st.Event("view.changed", "", "", "", "epoch 6: six servers live")
	st.Event("vm.running", "", "a-1", "lock", "VM lock runs on a-1 and b-1")
	st.Event("vm.failed", "", "a-1", "boom", "VM boom failed: triple fault of vCPU 0")
	st.Event("server.dead", "c", "c-2", "", "server c-2 is dead: its process is gone")
	st.Event("view.changed", "", "", "", "epoch 7: c-2 excluded")
	st.Event("vm.lost", "c", "c-2", "gone", "VM gone lost: server c-2 of cell c lost in epoch 7")
	for i, e := range st.Events {
		e.Time = before(time.Duration(60-10*i) * time.Second)
		e.Epoch = 6
	}
	for i := 3; i < 6; i++ {
		st.Events[i].Time, st.Events[i].Epoch, st.Events[i].LogIndex = before(3*time.Second), 7, uint64(40+i)
	}
	st.stages("a-1", map[string]string{"epoch": "7", "detect_us": "55796", "fence_us": "19825", "agree_us": "10727"})
	st.stages("c-1", map[string]string{"epoch": "7", "unwedge_us": "4516"})
}

// stages appends the event by which a server tells of its part in a recovery.
func (st *State) stages(server string, fields map[string]string) {
	st.Event("recovery.stages", "", server, "", "recovery of epoch 7 on server "+server)
	e := st.Events[len(st.Events)-1]
	e.Time, e.Fields = before(2900*time.Millisecond), fields
}

// Large is a cluster with as many VMs, for measuring.
func Large(vms int) State {
	s := Small()
	s.VMs = nil
	for i := range vms {
		vm := smallVMs()[2]
		vm.Id, vm.Name = uint64(100+i), fmt.Sprintf("vm-%04d", i)
		vm.State = api.VMState(1 + i%6)
		for _, w := range vm.Workers {
			w.Counters = nil
		}
		s.VMs = append(s.VMs, vm)
	}
	return s
}
