package cells

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// Disks in the registry: which servers have copies, and which of them count.
//
//	            home has it, or a standby holds a checkpoint, or is a mirror in step
//	copying -------------------------------------------------> current
//	   ^                                                          |
//	   +-- a VM has the disk again, or still, with a part here -- stale <-- no part of the VM is here any more, or the disk was used without it
//
// A current copy has everything that was ever said to be written. When the VM ends, what is current stays so. The next VM that asks for the disk
// gets its home where a current copy is; all others are brought into step from there before they count again. A copy carries the number of its
// last use, which it must have had when it is used next: one from a backup, or of a server that was set up anew, is found out.

// CopyState is where a copy of a disk is. The strings are shown to users.
type CopyState string

// States of a copy.
const (
	CopyCopying CopyState = "copying"
	CopyCurrent CopyState = "current"
	CopyStale   CopyState = "stale"
)

// DiskCopy is a copy of a disk on one server.
type DiskCopy struct {
	Server     ident.ServerID   `json:"server"`
	ServerName ident.ServerName `json:"server_name"`
	Cell       ident.CellName   `json:"cell"`
	State      CopyState        `json:"state"`
	Use        uint64           `json:"use"`       // number that the server writes into it when it opens it now
	Confirmed  uint64           `json:"confirmed"` // number that it is known to have written
	Part       ident.Part       `json:"part"`      // of the VM, while it has one there
	Used       bool             `json:"used"`      // Part is there
}

// Disk is a disk.
type Disk struct {
	ID     uint64      `json:"id"` // log index of its creation; names the directories of its copies
	Name   string      `json:"name"`
	Source string      `json:"source,omitempty"`
	Bytes  ident.Bytes `json:"bytes,omitempty"`
	VM     ident.VMID  `json:"vm,omitempty"` // that has it; 0: none that has not ended
	Uses   uint64      `json:"uses"`         // rises with each use of a copy

	// LastHome is the server whose copy the guest wrote last: it may have what was never flushed, and so is preferred while it lives.
	LastHome ident.ServerID `json:"last_home,omitempty"`

	Copies []DiskCopy `json:"copies"` // by rising server ID
}

// RemoveDisk forgets a disk that no VM has, and its copies.
type RemoveDisk struct {
	Name string `json:"name"`
}

// DisksOpened is home's word that it has opened its copies of a VM's disks.
type DisksOpened struct {
	VM          ident.VMID        `json:"vm"`
	Part        ident.Part        `json:"part"`
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
}

// Kinds of events about disks.
const (
	EventDiskAdded    EventKind = "disk-added"
	EventDiskRemoved  EventKind = "disk-removed"
	EventDiskCurrent  EventKind = "disk-current"  // a copy is in step
	EventDiskStale    EventKind = "disk-stale"    // a copy does not count any more
	EventDiskDamaged  EventKind = "disk-damaged"  // blocks of a copy did not match their checksums
	EventDiskRepaired EventKind = "disk-repaired" // and were put right
)

// MaxDisksInAll bounds the registry.
const MaxDisksInAll = 1024

// Disk returns the disk of this name, or nil.
func (s *State) Disk(name string) *Disk {
	for i := range s.Disks {
		if s.Disks[i].Name == name {
			return &s.Disks[i]
		}
	}
	return nil
}

// CopyOn returns the disk's copy on a server, or nil.
func (d *Disk) CopyOn(s ident.ServerID) *DiskCopy {
	for i := range d.Copies {
		if d.Copies[i].Server == s {
			return &d.Copies[i]
		}
	}
	return nil
}

// DiskHomes returns the servers one of which must be the home of a VM with these disks, or nil if none of its disks is there yet. The fault tells why
// none can be.
func (s *State) DiskHomes(spec *VMSpec) ([]ident.ServerID, *Fault) {
	var out []ident.ServerID
	found := false
	for _, want := range spec.Disks {
		d := s.Disk(want.Name)
		if d == nil {
			continue
		}
		var homes []ident.ServerID
		text := ""
		for _, c := range d.Copies {
			sv := s.Server(c.Server)
			live := sv != nil && sv.State == ServerLive
			text += fmt.Sprintf(", %s on %s (%s)", c.State, c.ServerName, map[bool]string{true: "live", false: "not live"}[live])
			if c.State == CopyCurrent && live && (!found || slices.Contains(out, c.Server)) {
				homes = append(homes, c.Server)
			}
		}
		if len(homes) == 0 {
			return nil, faultf(CodeConflict, "vm %s: no live server can use disk %s: its copies are%s; start a server that has a current one", spec.Name, d.Name, clip(text, 256))
		}
		if i := slices.Index(homes, d.LastHome); i > 0 {
			homes = slices.Insert(slices.Delete(homes, i, i+1), 0, d.LastHome)
		}
		out, found = homes, true
	}
	return out, nil
}

// checkAttach tells why a new VM cannot have the disks that it asks for.
func (f *FSM) checkAttach(spec *VMSpec) *Fault {
	for _, want := range spec.Disks {
		d := f.state.Disk(want.Name)
		if d == nil {
			if want.Source == "" && want.Bytes == 0 {
				return faultf(CodeInvalid, "vm %s: there is no disk %s yet: give it a size (size=BYTES) to make it, or name an image file by a path with a slash", spec.Name, want.Name)
			}
			if len(f.state.Disks) >= MaxDisksInAll {
				return faultf(CodeNoCapacity, "the registry holds %d disks, which is the most it can hold", MaxDisksInAll)
			}
			continue
		}
		if vm := f.state.VM(d.VM); vm != nil && vm.State.Active() {
			return faultf(CodeConflict, "vm %s: disk %s is in use by vm %s", spec.Name, d.Name, vm.Spec.Name)
		}
		if want.Source != "" && want.Source != d.Source {
			return faultf(CodeExists, "vm %s: there is a disk %s of another origin (%s): give the image file another name, or remove that disk", spec.Name, d.Name, clip(d.Source, 128))
		}
	}
	return nil
}

// attachDisks gives a new VM its disks, and enters those that are new.
func (f *FSM) attachDisks(vm *VM, index uint64) {
	for i := range vm.Spec.Disks {
		want := &vm.Spec.Disks[i]
		d := f.state.Disk(want.Name)
		if d == nil {
			f.state.Disks = append(f.state.Disks, Disk{ID: index<<4 | uint64(i), Name: want.Name, Source: want.Source, Bytes: want.Bytes})
			d = &f.state.Disks[len(f.state.Disks)-1]
			f.emit(Event{Kind: EventDiskAdded, Subject: "disk " + d.Name, Text: fmt.Sprintf("disk %s was made for vm %s", d.Name, vm.Spec.Name)})
		}
		d.VM = vm.ID
	}
}

// tendDisks follows the VMs in what copies of disks are.
func (f *FSM) tendDisks() {
	for i := range f.state.Disks {
		f.tendDisk(&f.state.Disks[i])
	}
}

func (f *FSM) tendDisk(d *Disk) {
	if d.VM == 0 {
		return
	}
	vm := f.state.VM(d.VM)
	if vm == nil || !vm.State.Active() {
		for i := range d.Copies {
			c := &d.Copies[i]
			c.Used = false
			if c.State == CopyCopying {
				c.State = CopyStale
			}
		}
		d.VM = 0
		return
	}
	for _, p := range vm.Parts {
		if !p.Gone && (p.Standby || p.Part == vm.Home) {
			f.useCopy(d, &p)
		}
	}
	for i := range d.Copies {
		c := &d.Copies[i]
		p := slices.IndexFunc(vm.Parts, func(p VMPart) bool { return p.Server == c.Server && p.Part == c.Part && !p.Gone && c.Used })
		switch {
		case p >= 0 && vm.Parts[p].Part == vm.Home:
			d.LastHome = c.Server
			f.setCopy(d, c, CopyCurrent)
		case p >= 0 && vm.Parts[p].Standby && vm.Parts[p].Holds:
			c.Confirmed = c.Use
			f.setCopy(d, c, CopyCurrent)
		case p >= 0 && vm.Parts[p].Standby:
			f.setCopy(d, c, CopyCopying)
		default:
			c.Used = false
			f.setCopy(d, c, CopyStale)
		}
	}
}

// useCopy notes that a part of the VM uses the copy on its server.
func (f *FSM) useCopy(d *Disk, p *VMPart) {
	c := d.CopyOn(p.Server)
	if c == nil {
		d.Copies = append(d.Copies, DiskCopy{Server: p.Server, State: CopyStale})
		slices.SortFunc(d.Copies, func(a, b DiskCopy) int { return compareIDs(a.Server, b.Server) })
		c = d.CopyOn(p.Server)
	}
	if c.Used && c.Part == p.Part {
		return
	}
	d.Uses++
	c.ServerName, c.Cell, c.Part, c.Used, c.Use = p.ServerName, p.Cell, p.Part, true, d.Uses
}

func (f *FSM) setCopy(d *Disk, c *DiskCopy, state CopyState) {
	if c.State == state {
		return
	}
	before := c.State
	c.State = state
	switch {
	case state == CopyCurrent:
		f.emit(Event{Kind: EventDiskCurrent, Subject: "disk " + d.Name, Text: fmt.Sprintf("disk %s: the copy on %s is current", d.Name, c.ServerName)})
	case state == CopyStale && before == CopyCurrent:
		f.emit(Event{Kind: EventDiskStale, Subject: "disk " + d.Name, Text: fmt.Sprintf("disk %s: the copy on %s is stale: the disk goes on without it", d.Name, c.ServerName)})
	}
}

// confirmDisks notes that home has opened its copies: it has said that the guest ran.
func (f *FSM) confirmDisks(vm *VM) {
	for _, want := range vm.Spec.Disks {
		for i := range vm.Parts {
			if d := f.state.Disk(want.Name); d != nil && vm.Parts[i].Part == vm.Home {
				if c := d.CopyOn(vm.Parts[i].Server); c != nil && c.Used {
					c.Confirmed = c.Use
				}
			}
		}
	}
}

// Unconfirmed tells whether home has not said yet that it has opened its copies of the VM's disks.
func (s *State) Unconfirmed(vm *VM) bool {
	for _, want := range vm.Spec.Disks {
		for i := range vm.Parts {
			if d := s.Disk(want.Name); d != nil && vm.Parts[i].Part == vm.Home {
				if c := d.CopyOn(vm.Parts[i].Server); c != nil && c.Used && c.Confirmed < c.Use {
					return true
				}
			}
		}
	}
	return false
}

func (f *FSM) disksOpened(c *DisksOpened) *Fault {
	vm, p, fault := f.part(c.VM, c.Part, c.Server, c.Incarnation)
	if fault != nil {
		return fault
	}
	if p.Part != vm.Home || !f.state.Unconfirmed(vm) {
		return faultf(CodeConflict, "vm %s: nobody waits to hear that its disks are open", vm.Spec.Name)
	}
	f.confirmDisks(vm)
	return nil
}

func (f *FSM) removeDisk(c *RemoveDisk) *Fault {
	d := f.state.Disk(c.Name)
	if d == nil {
		return faultf(CodeNotFound, "no disk is called %q: `cellvisor disk ls` lists those there are", clip(c.Name, 64))
	}
	if vm := f.state.VM(d.VM); vm != nil && vm.State.Active() {
		return faultf(CodeConflict, "disk %s is in use by vm %s: stop that first", d.Name, vm.Spec.Name)
	}
	f.state.Disks = slices.DeleteFunc(f.state.Disks, func(o Disk) bool { return o.Name == c.Name })
	f.emit(Event{Kind: EventDiskRemoved, Subject: "disk " + c.Name, Text: fmt.Sprintf("disk %s was removed", c.Name)})
	return nil
}
