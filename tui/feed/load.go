package feed

import (
	"github.com/cellvisor/cellvisor/api"
)

// Load is what VMs and servers did between two readings of their workers' counters, about a second apart.
type Load struct {
	// VMs by ID, servers by name.
	VMs     map[uint64]*VMLoad
	Servers map[string]*ServerLoad
}

// VMLoad is the load of one VM.
type VMLoad struct {
	// CPUPermille of one CPU: 2000 is two vCPUs that never stop.
	CPUPermille uint64
	// RemotePerSecond counts pages and write accesses fetched from other servers.
	RemotePerSecond uint64
	// Of a protected VM: see api.WorkerCounters.
	LagMicros, PauseMicros, EveryMicros, HeldBytes uint64
	SyncPermille                                   uint32
}

// ServerLoad is the load of one server.
type ServerLoad struct {
	CPUPermille, RemotePerSecond, ResidentBytes uint64
}

// LoadOf takes rates from two readings.
func LoadOf(before, now []*api.WorkerInfo) *Load {
	type key struct {
		vm     uint64
		server string
	}
	earlier := make(map[key]*api.WorkerInfo, len(before))
	for _, w := range before {
		earlier[key{w.GetVmId(), w.GetServer()}] = w
	}
	l := &Load{VMs: make(map[uint64]*VMLoad, len(now)), Servers: map[string]*ServerLoad{}}
	for _, w := range now {
		vm, server := l.VMs[w.GetVmId()], l.Servers[w.GetServer()]
		if vm == nil {
			vm = &VMLoad{}
			l.VMs[w.GetVmId()] = vm
		}
		if server == nil {
			server = &ServerLoad{}
			l.Servers[w.GetServer()] = server
		}
		c := w.GetCounters()
		vm.LagMicros, vm.HeldBytes = max(vm.LagMicros, c.GetCheckpointLagMicros()), vm.HeldBytes+c.GetHeldBytes()
		vm.PauseMicros, vm.EveryMicros = max(vm.PauseMicros, c.GetCheckpointPauseMicros()), max(vm.EveryMicros, c.GetCheckpointEveryMicros())
		vm.SyncPermille = max(vm.SyncPermille, c.GetSyncPermille())
		server.ResidentBytes += c.GetResidentBytes()
		cpu, remote := rates(earlier[key{w.GetVmId(), w.GetServer()}], w)
		vm.CPUPermille, vm.RemotePerSecond = vm.CPUPermille+cpu, vm.RemotePerSecond+remote
		server.CPUPermille, server.RemotePerSecond = server.CPUPermille+cpu, server.RemotePerSecond+remote
	}
	return l
}

// rates compares two readings of one worker; without two of the same process it is idle.
func rates(before, now *api.WorkerInfo) (cpuPermille, remotePerSecond uint64) {
	elapsed := now.GetAtMicros() - before.GetAtMicros()
	b, n := before.GetCounters(), now.GetCounters()
	remote := n.GetRemoteReads() + n.GetRemoteWrites() - b.GetRemoteReads() - b.GetRemoteWrites()
	if before == nil || elapsed == 0 || int64(elapsed) < 0 || n.GetRunMicros() < b.GetRunMicros() || int64(remote) < 0 {
		return 0, 0
	}
	return (n.GetRunMicros() - b.GetRunMicros()) * 1000 / elapsed, remote * 1_000_000 / elapsed
}
