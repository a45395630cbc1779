package server

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// What the registry holds, in the words of the API.

var serverStates = map[cells.ServerState]api.ServerState{
	cells.ServerJoining: api.ServerState_SERVER_STATE_JOINING,
	cells.ServerLive:    api.ServerState_SERVER_STATE_LIVE,
	cells.ServerDead:    api.ServerState_SERVER_STATE_DEAD,
}

var serverRoles = map[cells.Role]api.ServerRole{
	cells.RoleServer:  api.ServerRole_SERVER_ROLE_SERVER,
	cells.RoleWitness: api.ServerRole_SERVER_ROLE_WITNESS,
}

var vmStates = map[cells.VMState]api.VMState{
	cells.VMStarting: api.VMState_VM_STATE_STARTING,
	cells.VMRunning:  api.VMState_VM_STATE_RUNNING,
	cells.VMStopped:  api.VMState_VM_STATE_STOPPED,
	cells.VMExited:   api.VMState_VM_STATE_EXITED,
	cells.VMLost:     api.VMState_VM_STATE_LOST,
	cells.VMFailed:   api.VMState_VM_STATE_FAILED,
}

var onLosses = map[cells.OnLoss]api.OnLoss{
	cells.OnLossStop:  api.OnLoss_ON_LOSS_STOP,
	cells.OnLossTouch: api.OnLoss_ON_LOSS_TOUCH,
}

// load is what the VMs that have not ended use of one server.
type load struct {
	slots  int
	memory ident.Bytes
	vms    int
}

// loads adds up the load of each server, as placement does: each part of a VM takes an equal share of its memory.
func loads(state *cells.State) map[ident.ServerID]load {
	out := map[ident.ServerID]load{}
	for i := range state.VMs {
		vm := &state.VMs[i]
		if !vm.State.Active() {
			continue
		}
		live := 0
		for i := range vm.Parts {
			if !vm.Parts[i].Gone {
				live++
			}
		}
		for i := range vm.Parts {
			p := &vm.Parts[i]
			if p.Gone {
				continue
			}
			l := out[p.Server]
			l.slots += len(p.VCPUs)
			l.memory += vm.Spec.MemoryBytes / ident.Bytes(live)
			l.vms++
			out[p.Server] = l
		}
	}
	return out
}

func serverMessage(snap *snapshot, sv *cells.Server, l load) *api.Server {
	out := &api.Server{
		Id: uint64(sv.ID), Name: string(sv.Name), Cell: string(sv.Cell), Role: serverRoles[sv.Role], State: serverStates[sv.State],
		Pid: uint32(sv.Process.PID), PidStartTicks: sv.Process.StartTime, Addr: sv.Addrs.Peer, ApiAddr: sv.Addrs.API,
		Incarnation: uint64(sv.Incarnation), Leader: snap.status.Leader == sv.ID,
		Slots: uint32(sv.Slots), SlotsUsed: uint32(l.slots), MemoryBytes: uint64(sv.MemoryBytes), MemoryUsedBytes: uint64(l.memory),
		Cordoned: sv.Cordoned, UnfitReason: sv.LastError,
	}
	for _, id := range snap.status.Voters {
		out.Voter = out.Voter || id == sv.ID
	}
	if sv.ID == snap.status.Server {
		out.Version = Version
	}
	return out
}

// serverMessages lists the servers by name.
func serverMessages(snap *snapshot) []*api.Server {
	byServer := loads(snap.state)
	loans := snap.state.LoansByServer()
	var out []*api.Server
	for i := range snap.state.Servers {
		sv := &snap.state.Servers[i]
		m := serverMessage(snap, sv, byServer[sv.ID])
		m.BorrowsFrom, m.LendsTo = loans[sv.ID].From, loans[sv.ID].To
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *api.Server) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// vmMessages lists the VMs by name.
func vmMessages(st *cells.State) []*api.VM {
	var out []*api.VM
	for i := range st.VMs {
		out = append(out, vmMessage(st, &st.VMs[i]))
	}
	slices.SortFunc(out, func(a, b *api.VM) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// workerCounters puts what a worker says about itself into the words of the API.
func workerCounters(s *wire.WorkerStats) *api.WorkerCounters {
	return &api.WorkerCounters{
		RemoteReads: s.RemoteReads, RemoteWrites: s.RemoteWrites, LocalFaults: s.LocalFaults, PagesIn: s.PagesIn, PagesOut: s.PagesOut,
		ResidentBytes: uint64(s.ResidentBytes), VcpuExits: s.VCPUExits, RunMicros: uint64(s.RunMicros), SlotMicros: uint64(s.SlotMicros), CpuMicros: uint64(s.CPUMicros),
		Checkpoints: s.Checkpoints, CheckpointPauseMicros: uint64(s.CutMicros), CheckpointEveryMicros: uint64(s.EveryMicros),
		CheckpointLagMicros: uint64(s.LagMicros), HeldBytes: s.HeldBytes, DirtyPages: s.DirtyPages, SyncPermille: uint32(s.SyncPermille),
		Shares: checkpointMessage(s), Paging: pagingMessage(s.Paging), Scrub: scrubMessage(s.Scrub),
	}
}

func scrubMessage(s *wire.WorkerScrub) *api.ScrubCounters {
	if s == nil {
		return nil
	}
	return &api.ScrubCounters{Passes: s.Passes, Checking: s.Checking, Permille: uint32(s.Permille), Damaged: s.Damaged, Repaired: s.Repaired, Unreadable: s.Unreadable}
}

func pagingMessage(p *wire.WorkerPaging) *api.PagingCounters {
	if p == nil {
		return nil
	}
	out := &api.PagingCounters{LimitBytes: uint64(p.LimitBytes), FileBytes: uint64(p.FileBytes), In: p.In, Out: p.Out, Dropped: p.Dropped, Zero: p.Zero,
		Again: p.Again, InMicros: uint64(p.InMicros), InMicrosSum: p.InMicrosSum, Error: p.Error, Lent: p.Lent, Returned: p.Returned}
	for _, o := range p.Loans {
		out.Loans = append(out.Loans, &api.Loan{Server: string(o.Name), Cell: string(o.Cell), LimitBytes: uint64(o.LimitBytes), HeldBytes: uint64(o.HeldBytes)})
	}
	return out
}

func cellMessages(state *cells.State) []*api.Cell {
	byServer := loads(state)
	var out []*api.Cell
	for _, name := range state.Cells() {
		if name == "" {
			continue // witnesses belong to none
		}
		c := &api.Cell{Name: string(name), Cordoned: true}
		for i := range state.Servers {
			sv := &state.Servers[i]
			if sv.Cell != name {
				continue
			}
			l := byServer[sv.ID]
			c.Servers = append(c.Servers, string(sv.Name))
			c.Cordoned = c.Cordoned && sv.Cordoned
			if sv.State == cells.ServerLive {
				c.ServersLive++
				c.Slots += uint32(sv.Slots)
				c.MemoryBytes += uint64(sv.MemoryBytes)
			}
			c.SlotsUsed += uint32(l.slots)
			c.MemoryUsedBytes += uint64(l.memory)
		}
		switch int(c.ServersLive) {
		case len(c.Servers):
			c.State = api.CellState_CELL_STATE_LIVE
		case 0:
			c.State = api.CellState_CELL_STATE_DEAD
		default:
			c.State = api.CellState_CELL_STATE_DEGRADED
		}
		for i := range state.VMs {
			if vm := &state.VMs[i]; vm.State.Active() && hasCell(vm, name) {
				c.Vms++
			}
		}
		out = append(out, c)
	}
	return out
}

func hasCell(vm *cells.VM, name ident.CellName) bool {
	for _, c := range vm.Cells() {
		if c == name {
			return true
		}
	}
	return false
}

func vmState(vm *cells.VM) api.VMState {
	if vm.Still() {
		return api.VMState_VM_STATE_PAUSED
	}
	return vmStates[vm.State]
}

func vmMessage(state *cells.State, vm *cells.VM) *api.VM {
	out := &api.VM{
		Id: uint64(vm.ID), Name: vm.Spec.Name, State: vmState(vm), Reason: vm.Reason, ExitStatus: vm.ExitStatus,
		Vcpus: uint32(vm.Spec.VCPUs), MemoryBytes: uint64(vm.Spec.MemoryBytes), Protect: protectText(&vm.Spec),
		Protection: vm.Protection(), Mirroring: vm.Mirroring(), Recoveries: vm.Recoveries, CheckpointMs: uint32(vm.Spec.CheckpointMillis),
		OnLoss: onLosses[vm.Spec.OnLoss], Epoch: uint64(vm.Epoch), Payload: vm.Spec.Builtin, Args: vm.Spec.Args, Registers: vm.Registers,
		Restarts: vm.Restarts, RebootOnCrash: vm.Spec.RebootOnCrash, CrashLimit: uint32(vm.Spec.CrashLimit),
		Restart: cmp.Or(vm.Spec.Restart, cells.RestartNo), StartWanted: vm.Start.Wanted,
		CreatedAt: stamp(vm.CreatedMs), StartedAt: stamp(vm.StartedMs), EndedAt: stamp(vm.EndedMs), Weight: uint32(cmp.Or(vm.Spec.Weight, cells.DefaultWeight)),
		PauseSeq: vm.PauseSeq,
	}
	if vm.Spec.PayloadSHA256 != "" {
		out.Payload = "sha256:" + vm.Spec.PayloadSHA256
	}
	if out.Linux = linuxMessage(&vm.Spec); out.Linux != nil {
		out.Payload, out.Nets = "linux:"+vm.Spec.PayloadSHA256, netMessages(vm)
	}
	for _, c := range vm.Cells() {
		out.Cells = append(out.Cells, string(c))
	}
	for _, c := range vm.Spec.Span {
		out.Span = append(out.Span, string(c))
	}
	for i := range vm.Parts {
		p := &vm.Parts[i]
		w := &api.Worker{
			Part: uint32(p.Part), Server: string(p.ServerName), Cell: string(p.Cell), Pid: uint32(p.PID), PidStartTicks: p.StartTime,
			Addr: p.Addr, Ready: p.Ready, Lost: p.Gone || !state.View.Has(p.Server, p.Incarnation), Standby: p.Standby, Mirror: p.Mirror,
		}
		for _, c := range p.VCPUs {
			w.Vcpus = append(w.Vcpus, uint32(c))
		}
		if p.Part == vm.Home {
			out.Home = string(p.ServerName)
		}
		out.Workers = append(out.Workers, w)
	}
	return out
}

// protectText puts the protection that was asked for into the words of the API.
func protectText(spec *cells.VMSpec) string {
	if spec.Protect != cells.ProtectReplica || spec.Replicas == 1 {
		return string(spec.Protect)
	}
	return fmt.Sprintf("%s:%d", spec.Protect, spec.Replicas)
}

func stamp(unixMs int64) *timestamppb.Timestamp {
	if unixMs == 0 {
		return nil
	}
	return &timestamppb.Timestamp{Seconds: unixMs / 1000, Nanos: int32(unixMs%1000) * 1e6}
}

// eventMessage puts a replicated event into the API's words: "vm-lost" about "vm web" becomes "vm.lost" with vm = "web". All servers have
// the same events under the same numbers, so the number serves as the position in the log, too.
func eventMessage(e *cells.Event, by ident.ServerName) *api.Event {
	out := &api.Event{
		Seq: e.Seq, LogIndex: e.Seq, Time: stamp(e.UnixMs), Type: strings.Replace(string(e.Kind), "-", ".", 1), Epoch: uint64(e.Epoch),
		Message: e.Text, RecordedBy: string(by), CauseSeq: e.Cause, Fields: e.Fields,
	}
	switch kind, name, _ := strings.Cut(e.Subject, " "); kind {
	case "server":
		out.Server, out.Cell = name, e.Fields["cell"]
	case "cell":
		out.Cell = name
	case "vm":
		out.Vm = name
	}
	return out
}
