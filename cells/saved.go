package cells

import (
	"github.com/cellvisor/cellvisor/ident"
)

// SavedSpec is the saved VM that a VM goes on from, a file that the payload's server holds.
type SavedSpec struct {
	SHA256 string      `json:"sha256"`
	Bytes  ident.Bytes `json:"bytes"`
	Disks  []SavedDisk `json:"disks,omitempty"`
}

// SavedDisk is where a disk was when its VM was saved: it must be there still.
type SavedDisk struct {
	Name string `json:"name"`
	ID   uint64 `json:"id"`
	Uses uint64 `json:"uses"`
}

// SavedDisks tells where a VM's disks are.
func (s *State) SavedDisks(vm *VM) []SavedDisk {
	var out []SavedDisk
	for _, want := range vm.Spec.Disks {
		if d := s.Disk(want.Name); d != nil {
			out = append(out, SavedDisk{Name: d.Name, ID: d.ID, Uses: d.Uses})
		}
	}
	return out
}

// checkSaved tells why a VM cannot go on from a saved one.
func (f *FSM) checkSaved(spec *VMSpec) *Fault {
	saved := spec.Saved
	switch {
	case saved == nil:
		return nil
	case !hexOf(saved.SHA256, 64):
		return faultf(CodeInvalid, "vm %s: a saved vm needs its SHA-256 as 64 hex digits", spec.Name)
	case len(saved.Disks) != len(spec.Disks):
		return faultf(CodeInvalid, "vm %s: the saved vm has %d disks, its spec %d", spec.Name, len(saved.Disks), len(spec.Disks))
	}
	for i, was := range saved.Disks {
		d := f.state.Disk(was.Name)
		switch {
		case was.Name != spec.Disks[i].Name:
			return faultf(CodeInvalid, "vm %s: the saved vm has another disk %q", spec.Name, clip(was.Name, 32))
		case d == nil || d.ID != was.ID:
			return faultf(CodeConflict, "vm %s: the disk %s that it was saved with is not in this cluster: a saved vm goes on only with its disks as they were", spec.Name, was.Name)
		case d.Uses != was.Uses:
			return faultf(CodeConflict, "vm %s: disk %s was used by another vm since this one was saved, and is not what its guest knows: restore a later file", spec.Name, was.Name)
		}
	}
	return nil
}
