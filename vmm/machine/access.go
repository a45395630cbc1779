package machine

import (
	"encoding/binary"
	"fmt"

	"github.com/cellvisor/cellvisor/vmm/kvm"
)

// Access is one access of a vCPU to a device: by port or by guest-physical address.
type Access struct {
	Addr  uint64 // port number or guest-physical address
	Data  uint64 // written
	Size  uint8  // bytes: 1, 2, 4, and 8 for memory
	Port  bool
	Write bool
}

// AccessBytes is the length of an encoded Access.
const AccessBytes = 18

// Append appends the encoding of the access.
func (a Access) Append(b []byte) []byte {
	var flags byte
	if a.Port {
		flags |= 1
	}
	if a.Write {
		flags |= 2
	}
	b = append(b, flags, a.Size)
	b = binary.LittleEndian.AppendUint64(b, a.Addr)
	return binary.LittleEndian.AppendUint64(b, a.Data)
}

// ParseAccess decodes an Access, which another part sent.
func ParseAccess(b []byte) (Access, error) {
	if len(b) != AccessBytes {
		return Access{}, fmt.Errorf("device access of %d bytes, want %d", len(b), AccessBytes)
	}
	a := Access{Port: b[0]&1 != 0, Write: b[0]&2 != 0, Size: b[1], Addr: binary.LittleEndian.Uint64(b[2:]), Data: binary.LittleEndian.Uint64(b[10:])}
	if b[0]&^3 != 0 || !a.valid() {
		return Access{}, fmt.Errorf("device access %+v is none that a processor makes", a)
	}
	return a, nil
}

func (a Access) valid() bool {
	switch a.Size {
	case 1, 2, 4:
		return !a.Port || a.Addr <= 0xffff
	case 8:
		return !a.Port
	}
	return false
}

// mask cuts a value to the access's size.
func (a Access) mask(v uint64) uint64 {
	if a.Size >= 8 {
		return v
	}
	return v & (1<<(8*a.Size) - 1)
}

// Accessor carries out accesses: a Board, or the way to one.
type Accessor interface {
	// Do carries out the access and returns what was read. An error ends the VM part.
	Do(a Access) (uint64, error)
}

// Dispatch carries out the accesses of an IO or MMIO exit and answers the vCPU. It reports false for an exit of another kind.
func Dispatch(cpu *kvm.VCPU, exit kvm.Exit, to Accessor) (bool, error) {
	switch exit.Reason {
	case kvm.IO:
		return true, dispatchPort(cpu, exit, to)
	case kvm.MMIO:
		v, err := to.Do(Access{Addr: exit.Addr, Data: exit.Data, Size: exit.Size, Write: exit.Write})
		if err == nil && !exit.Write {
			cpu.SetMMIO(v)
		}
		return true, err
	}
	return false, nil
}

// dispatchPort handles string instructions as the many accesses that they are.
func dispatchPort(cpu *kvm.VCPU, exit kvm.Exit, to Accessor) error {
	data, size := cpu.IOData(), int(exit.Size)
	a := Access{Addr: uint64(exit.Port), Size: exit.Size, Port: true, Write: exit.Write}
	for i := 0; i+size <= len(data); i += size {
		var b [8]byte
		if exit.Write {
			copy(b[:], data[i:i+size])
			a.Data = binary.LittleEndian.Uint64(b[:])
		}
		v, err := to.Do(a)
		if err != nil {
			return err
		}
		if !exit.Write {
			binary.LittleEndian.PutUint64(b[:], v)
			copy(data[i:i+size], b[:size])
		}
	}
	return nil
}
