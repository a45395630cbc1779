package server

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/jail"
	"github.com/cellvisor/cellvisor/wire"
)

// What a worker may take of its host beyond the guest's memory. The bounds are wide: they are there for a worker that no longer does what this
// program says, not for one that works hard.
const (
	groupMemoryTimes = 3         // the guest's memory, that of the boot before it, and what a checkpoint copies
	groupMemoryExtra = ident.GiB // the program itself, and output that is held back
	groupThreads     = 1024      // the runtime's and those that serve peers, besides
	threadsPerVCPU   = 4         // the vCPUs'
)

// planGroups finds out whether workers can have control groups. Without them they are confined all the same; only what they take is not bounded.
func (s *Server) planGroups() error {
	if s.cfg.Cgroup == config.CgroupOff {
		return nil
	}
	g, err := jail.OpenGroups(s.cfg.Cgroup, string(s.cfg.Name))
	switch {
	case err == nil:
		s.log.Info().Str("dir", g.Dir()).Msg("workers' memory and threads are bounded by control groups")
		s.workers.groups = g
	case s.cfg.Cgroup != "" || !errors.Is(err, jail.ErrNoGroups): // somebody counts on them
		return fmt.Errorf("cgroup in the block security: %w", err)
	default:
		s.log.Info().Msg(err.Error())
	}
	return nil
}

func groupLimits(spec *wire.WorkerSpec) jail.Limits {
	return jail.Limits{
		MemoryBytes: uint64(groupMemoryTimes*spec.MemoryBytes + groupMemoryExtra),
		Threads:     groupThreads + threadsPerVCPU*spec.VCPUs,
	}
}

// lenderLimits are those of the process that lends the server's memory: no more than that can be lent.
func lenderLimits(memory ident.Bytes) jail.Limits {
	return jail.Limits{MemoryBytes: uint64(memory + groupMemoryExtra), Threads: groupThreads}
}

// leaveGroup removes the group of an ended process, and tells whether the kernel ended it for its limit.
func (s *supervisor) leaveGroup(dir string) (outOfMemory bool) {
	if s.groups == nil {
		return false
	}
	name := filepath.Base(dir)
	outOfMemory = s.groups.OutOfMemory(name)
	s.groups.Remove(name)
	return outOfMemory
}
