package cells

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cellvisor/cellvisor/ident"
)

// Borrow is a server that holds memory for a part of a VM: the VM depends on it as on those that it runs on.
type Borrow struct {
	Part        ident.Part        `json:"part"` // that borrows
	Server      ident.ServerID    `json:"server"`
	ServerName  ident.ServerName  `json:"server_name"`
	Cell        ident.CellName    `json:"cell"`
	Incarnation ident.Incarnation `json:"incarnation"`
}

// VMBorrows is a server's word that its part of a VM is going to hold memory on these servers, and on no others any more. Only once it is applied may the
// part put anything there.
type VMBorrows struct {
	VM          ident.VMID        `json:"vm"`
	Part        ident.Part        `json:"part"`
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
	Lenders     []ident.ServerID  `json:"lenders"`
}

// MaxLenders bounds the servers that a part holds memory on.
const MaxLenders = 8

// Loans lists what the VM's living parts have borrowed.
func (v *VM) Loans() []Borrow {
	var out []Borrow
	for _, b := range v.Borrows {
		if slices.ContainsFunc(v.Parts, func(p VMPart) bool { return p.Part == b.Part && !p.Gone && !p.Standby }) {
			out = append(out, b)
		}
	}
	return out
}

// ServerLoans names the servers that a server's parts borrow from, and those whose parts borrow from it, sorted.
type ServerLoans struct{ From, To []string }

// LoansByServer lists who borrows from whom.
func (s *State) LoansByServer() map[ident.ServerID]ServerLoans {
	out := map[ident.ServerID]ServerLoans{}
	for i := range s.VMs {
		vm := &s.VMs[i]
		if !vm.State.Active() {
			continue
		}
		for _, b := range vm.Loans() {
			p := vm.Parts[slices.IndexFunc(vm.Parts, func(p VMPart) bool { return p.Part == b.Part })]
			from, to := out[p.Server], out[b.Server]
			from.From, to.To = withName(from.From, b.ServerName), withName(to.To, p.ServerName)
			out[p.Server], out[b.Server] = from, to
		}
	}
	return out
}

func withName(names []string, name ident.ServerName) []string {
	if i, found := slices.BinarySearch(names, string(name)); !found {
		return slices.Insert(names, i, string(name))
	}
	return names
}

// OwnCells lists the cells that the VM depends on without what it has borrowed, sorted.
func (v *VM) OwnCells() []ident.CellName {
	var out []ident.CellName
	for _, p := range v.Parts {
		if !p.Standby && !slices.Contains(out, p.Cell) {
			out = append(out, p.Cell)
		}
	}
	slices.Sort(out)
	return out
}

// Lends tells whether a server lends memory.
func (s *Server) Lends() bool {
	return s.State == ServerLive && s.Role == RoleServer && s.PhysicalBytes > 0
}

// Physical is the memory that a server has, as against what it promises, as far as it is known.
func (s *Server) Physical() ident.Bytes {
	if s.PhysicalBytes > 0 {
		return s.PhysicalBytes
	}
	return s.MemoryBytes
}

// CellsMemory is how much memory the live servers of cells have.
func (s *State) CellsMemory(cells []ident.CellName) (sum ident.Bytes) {
	for i := range s.Servers {
		if sv := &s.Servers[i]; sv.State == ServerLive && slices.Contains(cells, sv.Cell) {
			sum += sv.Physical()
		}
	}
	return sum
}

// vmBorrows notes on whom a part depends. A VM that fits the cells that it depends on does not come to depend on another, whoever asks.
func (f *FSM) vmBorrows(c *VMBorrows) *Fault {
	vm := f.state.VM(c.VM)
	if vm == nil || !vm.State.Active() {
		return faultf(CodeConflict, "vm %d does not run", c.VM)
	}
	if p := vm.PartOn(c.Server, c.Incarnation); p == nil || p.Part != c.Part || p.Standby {
		return faultf(CodeConflict, "vm %s has no part %s on server %d", vm.Spec.Name, c.Part, c.Server)
	}
	if len(c.Lenders) > MaxLenders {
		return faultf(CodeInvalid, "vm %s: %d lenders, %d are the most", vm.Spec.Name, len(c.Lenders), MaxLenders)
	}
	own := vm.OwnCells()
	fits := vm.Spec.MemoryBytes <= f.state.CellsMemory(own)
	var loans []Borrow
	for _, id := range c.Lenders {
		s := f.state.Server(id)
		already := slices.ContainsFunc(vm.Borrows, func(b Borrow) bool { return b.Part == c.Part && b.Server == id })
		switch {
		case s == nil || s.State != ServerLive || !already && !s.Lends() || id == c.Server:
			return faultf(CodeConflict, "server %d cannot lend memory to vm %s", id, vm.Spec.Name)
		case !already && vm.StandbyIn(s.Cell):
			return faultf(CodeConflict, "vm %s has its replica in cell %s: it borrows nothing there, or the loss of that cell would be its end", vm.Spec.Name, s.Cell)
		case !already && fits && !slices.Contains(own, s.Cell):
			return faultf(CodeInvalid, "vm %s of %s fits %s: it borrows nothing in cell %s", vm.Spec.Name, vm.Spec.MemoryBytes, cellNames(own), s.Cell)
		}
		loans = append(loans, Borrow{Part: c.Part, Server: id, ServerName: s.Name, Cell: s.Cell, Incarnation: s.Incarnation})
	}
	before := partNamesOf(vm.Loans(), c.Part)
	vm.Borrows = append(slices.DeleteFunc(vm.Loans(), func(b Borrow) bool { return b.Part == c.Part }), loans...)
	after := partNamesOf(vm.Borrows, c.Part)
	if before == after {
		return nil
	}
	text := fmt.Sprintf("vm %s has memory of its own only on %s again", vm.Spec.Name, f.state.Server(c.Server).Name)
	if after != "" {
		text = fmt.Sprintf("vm %s borrows memory for %s from %s, and depends on it", vm.Spec.Name, f.state.Server(c.Server).Name, after)
	}
	f.emit(Event{Kind: EventVMBorrows, Subject: "vm " + vm.Spec.Name, Text: text, Fields: map[string]string{"lenders": after}})
	return nil
}

func cellNames(cells []ident.CellName) string {
	out := make([]string, len(cells))
	for i, c := range cells {
		out[i] = string(c)
	}
	return strings.Join(out, ",")
}

func partNamesOf(loans []Borrow, part ident.Part) string {
	var out []string
	for _, b := range loans {
		if b.Part == part {
			out = append(out, string(b.ServerName))
		}
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

// StandbyIn tells whether a cell has a replica of the VM, which then borrows nothing there.
func (v *VM) StandbyIn(c ident.CellName) bool {
	return slices.ContainsFunc(v.Parts, func(p VMPart) bool { return p.Standby && !p.Gone && p.Cell == c })
}

// awaitsLoans tells whether VMs still have memory on servers that are drained.
func (f *FSM) awaitsLoans(op *Operation) bool {
	for i := range f.state.VMs {
		vm := &f.state.VMs[i]
		for _, b := range vm.Loans() {
			if vm.State.Active() && slices.Contains(op.Servers, b.Server) {
				op.Note = fmt.Sprintf("vm %s: it is just giving back the memory that it has borrowed on %s", vm.Spec.Name, b.ServerName)
				return true
			}
		}
	}
	return false
}
