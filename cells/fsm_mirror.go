package cells

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// Mirrors of the disks of a VM that has no replicas. A mirror is a standby that holds the VM's disks and nothing else of it:
//
//	(none) --placed, its worker ready--> syncing --home says that it has all writes--> in step
//	   ^                                    |                                             |
//	   +-- lost, or the VM goes elsewhere --+---------------------------------------------+
//
// While it is in step home says to the guest that a flush is done when the mirror has it too, so its copy counts (see fsm_disk.go). The VM cannot go on
// from a mirror: when home is lost the VM is. Its disks are not: the next VM that has them, or this one when it is started again, gets its home
// at a mirror. When the VM goes on elsewhere, after a move, its mirrors begin anew: their copies are compared and brought into step.

// Mirrors is how many mirrors of its disks a VM is to have besides replicas, whose copies are mirrors, too.
func (s *VMSpec) Mirrors() int {
	n := 0
	for _, d := range s.Disks {
		n = max(n, d.Mirrors)
	}
	if s.Protect == ProtectReplica {
		return 0
	}
	return n
}

// wantsStandbys tells whether the VM is to have replicas or mirrors.
func (v *VM) wantsStandbys() bool {
	return v.Spec.Protect == ProtectReplica || v.Spec.Mirrors() > 0
}

// mirrors is in how many cells besides home's the VM has mirrors that count.
func (v *VM) mirrors(counts func(*VMPart) bool) int {
	var in []ident.CellName
	if home := slices.IndexFunc(v.Parts, func(p VMPart) bool { return p.Part == v.Home && !p.Standby }); home >= 0 {
		in = append(in, v.Parts[home].Cell)
	}
	n := 0
	for i := range v.Parts {
		if p := &v.Parts[i]; p.Standby && p.Mirror && counts(p) && !slices.Contains(in, p.Cell) {
			in = append(in, p.Cell)
			n++
		}
	}
	return n
}

// Mirroring tells operators how the VM's mirrors are: "none" if it is to have none besides its replicas; "in-step"; "syncing" if one is brought into step;
// "partial" if there are fewer than asked for; "missing" if there is none.
func (v *VM) Mirroring() string {
	switch {
	case v.Spec.Mirrors() == 0 || !v.State.Active():
		return "none"
	case slices.ContainsFunc(v.Parts, func(p VMPart) bool { return p.Standby && p.Mirror && !p.Holds }):
		return "syncing"
	}
	switch n := v.mirrors(func(p *VMPart) bool { return p.Holds }); {
	case n == 0:
		return "missing"
	case n < v.Spec.Mirrors():
		return "partial"
	}
	return "in-step"
}
