package cells

import (
	"maps"
	"slices"
)

// Clone returns a deep copy.
func (s *State) Clone() State {
	out := *s
	out.View.Live = slices.Clone(s.View.Live)
	out.Servers = slices.Clone(s.Servers)
	out.VMs = make([]VM, len(s.VMs))
	for i := range s.VMs {
		out.VMs[i] = s.VMs[i].clone()
	}
	out.Disks = nil
	for _, d := range s.Disks {
		d.Copies = slices.Clone(d.Copies)
		out.Disks = append(out.Disks, d)
	}
	out.Operations = nil
	for i := range s.Operations {
		out.Operations = append(out.Operations, s.Operations[i].clone())
	}
	return out
}

func (v *VM) clone() VM {
	out := *v
	out.Spec.Span = slices.Clone(v.Spec.Span)
	out.Spec.Options = maps.Clone(v.Spec.Options)
	if v.Spec.Linux != nil {
		l := *v.Spec.Linux
		l.Nets = slices.Clone(l.Nets)
		out.Spec.Linux = &l
	}
	if v.Spec.Saved != nil {
		s := *v.Spec.Saved
		s.Disks = slices.Clone(s.Disks)
		out.Spec.Saved = &s
	}
	out.Spec.Disks = slices.Clone(v.Spec.Disks)
	out.Parts = slices.Clone(v.Parts)
	out.Borrows = slices.Clone(v.Borrows)
	if v.Move != nil {
		move := *v.Move
		move.Parts = slices.Clone(move.Parts)
		out.Move = &move
	}
	if v.Hand != nil {
		hand := *v.Hand
		out.Hand = &hand
	}
	for i := range out.Parts {
		out.Parts[i].VCPUs = slices.Clone(v.Parts[i].VCPUs)
	}
	return out
}
