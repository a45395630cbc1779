// Package pci is a PCI bus as a guest sees it: configuration space by ports 0xcf8 and 0xcfc, one bus, functions with memory BARs and MSI-X.
// There are no interrupt pins: every interrupt is a message that names its target, so that it reaches a vCPU on any server in one way.
//
//	guest port I/O ─► Root.In/Out ─► Function's configuration space ─► BAR addresses, MSI-X enable
//	guest MMIO     ─► Root.Read/Write ─► the function whose BAR holds the address ─► its Device, or its MSI-X table
//
// BARs are assigned when a function is added, as firmware would, and move where the guest puts them.
//
// Lock order: Root.mu, then Function.mu; both are released before a Device is called.
package pci

import (
	"encoding/binary"
	"fmt"
	"sync"
)

// The configuration mechanism's ports.
const (
	AddressPort = 0xcf8
	DataPort    = 0xcfc

	// Slots is the number of devices on the bus, of which the first is the host bridge.
	Slots = 32
)

const enableBit = 1 << 31

// Root is the host bridge and its bus. Its methods may be called from any thread.
type Root struct {
	mu      sync.Mutex // protects everything below
	address uint32
	slots   [Slots]*Function
	next    uint64 // where the next BAR is assigned
	end     uint64
}

// NewRoot makes a bus whose memory window is [first, end).
func NewRoot(first, end uint64) *Root {
	r := &Root{next: first, end: end}
	const hostBridge = 0x060000
	// The bridge's IDs are those of QEMU's: guests know them and have no quirk for them.
	r.slots[0] = NewFunction(ID{Vendor: 0x1b36, Device: 0x0008, Class: hostBridge}, nil)
	return r
}

// Add puts a function into the next free slot and assigns its BARs.
func (r *Root) Add(f *Function) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, s := range r.slots {
		if s != nil {
			continue
		}
		next, err := f.assign(r.next, r.end)
		if err != nil {
			return err
		}
		r.next, r.slots[i] = next, f
		return nil
	}
	return fmt.Errorf("PCI bus is full: at most %d devices", Slots-1)
}

// Functions lists the functions on the bus in the order of their slots, the host bridge excluded.
func (r *Root) Functions() []*Function {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*Function
	for _, f := range r.slots[1:] {
		if f != nil {
			out = append(out, f)
		}
	}
	return out
}

// Reset puts all functions into their power-on state.
func (r *Root) Reset() {
	r.mu.Lock()
	r.address = 0
	r.mu.Unlock()
	for _, f := range r.Functions() {
		f.Reset()
	}
}

// Owns tells whether a port is the bus's.
func Owns(port uint16) bool { return port >= AddressPort && port < DataPort+4 }

// selected returns the function that the address register names, and the offset of the port's byte in its configuration space.
func (r *Root) selected(port uint16) (*Function, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.address
	bus, slot, function := a>>16&0xff, a>>11&0x1f, a>>8&7
	if a&enableBit == 0 || bus != 0 || function != 0 || r.slots[slot] == nil {
		return nil, 0
	}
	return r.slots[slot], int(a&0xfc) + int(port&3)
}

// In reads size bytes at a port that the bus owns.
func (r *Root) In(port uint16, size int) uint32 {
	if port < DataPort {
		r.mu.Lock()
		defer r.mu.Unlock()
		if port == AddressPort && size == 4 {
			return r.address
		}
		return 0xffffffff
	}
	f, offset := r.selected(port)
	if f == nil || offset+size > configBytes {
		return 0xffffffff
	}
	return f.readConfig(offset, size)
}

// Out writes size bytes at a port that the bus owns.
func (r *Root) Out(port uint16, size int, v uint32) {
	if port < DataPort {
		if port == AddressPort && size == 4 {
			r.mu.Lock()
			r.address = v
			r.mu.Unlock()
		}
		return
	}
	f, offset := r.selected(port)
	if f == nil || offset+size > configBytes {
		return
	}
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], v)
	f.writeConfig(offset, b[:size])
}

// find returns the function that decodes an address, and the offset in its BAR.
func (r *Root) find(addr uint64, size int) (*Function, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.slots[1:] {
		if f == nil {
			continue
		}
		if offset, ok := f.decodes(addr, size); ok {
			return f, offset
		}
	}
	return nil, 0
}

// Read reads size bytes of the memory window; it is all ones where nothing is. The result says whether a function decoded the address.
func (r *Root) Read(addr uint64, size int) (uint64, bool) {
	f, offset := r.find(addr, size)
	if f == nil {
		return ^uint64(0), false
	}
	return f.read(offset, size), true
}

// Write writes size bytes of the memory window. The result says whether a function decoded the address.
func (r *Root) Write(addr uint64, size int, v uint64) bool {
	f, offset := r.find(addr, size)
	if f == nil {
		return false
	}
	f.write(offset, size, v)
	return true
}

// State is the bus's own register, which names the function that is looked at.
func (r *Root) State() uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.address
}

// SetState sets it.
func (r *Root) SetState(address uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.address = address
}
