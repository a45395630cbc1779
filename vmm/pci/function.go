package pci

import (
	"encoding/binary"
	"fmt"
	"sync"
)

// Offsets in a type 0 configuration header.
const (
	regVendor     = 0x00
	regDevice     = 0x02
	regCommand    = 0x04
	regStatus     = 0x06
	regClass      = 0x09 // three bytes: programming interface, subclass, class
	regBAR0       = 0x10
	regSubVendor  = 0x2c
	regSubDevice  = 0x2e
	regCapability = 0x34
	firstCap      = 0x40
	configBytes   = 256

	commandMemory    = 1 << 1
	commandWritable  = 1<<1 | 1<<2 | 1<<10 // memory space, bus master, interrupt disable
	statusCapability = 1 << 4
)

// ID is what a function is.
type ID struct {
	Vendor, Device       uint16
	SubVendor, SubDevice uint16
	Class                uint32 // class, subclass, programming interface
	Revision             byte
}

// Device is what lies behind a function's BAR 0. Offsets are those in the BAR; accesses to the MSI-X table never reach it.
type Device interface {
	ReadBAR(offset uint64, size int) uint64
	WriteBAR(offset uint64, size int, v uint64)
	// ResetFunction puts the device into its power-on state.
	ResetFunction()
}

// Function is a PCI function with at most one memory BAR, number 0, of 32 bits. Its methods may be called from any thread.
type Function struct {
	device Device
	msix   *MSIX // nil if it has no interrupts

	mu       sync.Mutex // protects config
	config   [configBytes]byte
	writable [configBytes]byte // mask of the bits that the guest may write
	barSize  uint32
	barFirst uint32 // as assigned
	nextCap  int
	lastCap  int // where the link to the next capability goes
}

// NewFunction makes a function; device may be nil for one without a BAR.
func NewFunction(id ID, device Device) *Function {
	f := &Function{device: device, nextCap: firstCap, lastCap: regCapability}
	le := binary.LittleEndian
	le.PutUint16(f.config[regVendor:], id.Vendor)
	le.PutUint16(f.config[regDevice:], id.Device)
	le.PutUint16(f.config[regSubVendor:], id.SubVendor)
	le.PutUint16(f.config[regSubDevice:], id.SubDevice)
	f.config[regClass-1] = id.Revision
	f.config[regClass], f.config[regClass+1], f.config[regClass+2] = byte(id.Class), byte(id.Class>>8), byte(id.Class>>16)
	le.PutUint16(f.writable[regCommand:], commandWritable)
	f.writable[0x3c] = 0xff // interrupt line: scratch
	return f
}

// SetBAR gives the function memory of size bytes, a power of two of at least 4096.
func (f *Function) SetBAR(size uint32) {
	f.barSize = size
	binary.LittleEndian.PutUint32(f.writable[regBAR0:], ^(size - 1))
}

// AddCapability appends a capability, body without its first two bytes (ID and link), and returns its offset. writable masks the bits of the
// body that the guest may write, and may be nil.
func (f *Function) AddCapability(id byte, body, writable []byte) int {
	at := f.nextCap
	if at+2+len(body) > configBytes {
		panic(fmt.Sprintf("pci: capability 0x%x of %d bytes does not fit at 0x%x", id, len(body), at))
	}
	f.config[at] = id
	copy(f.config[at+2:], body)
	copy(f.writable[at+2:], writable)
	f.config[f.lastCap] = byte(at)
	f.lastCap = at + 1
	f.nextCap = (at + 2 + len(body) + 3) &^ 3
	f.config[regStatus] |= statusCapability
	return at
}

func (f *Function) assign(next, end uint64) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.barSize == 0 {
		return next, nil
	}
	size := uint64(f.barSize)
	at := (next + size - 1) &^ (size - 1)
	if at+size > end {
		return 0, fmt.Errorf("PCI memory window is full")
	}
	f.barFirst = uint32(at)
	binary.LittleEndian.PutUint32(f.config[regBAR0:], f.barFirst)
	return at + size, nil
}

// Reset puts the function and its device into their power-on state.
func (f *Function) Reset() {
	f.mu.Lock()
	f.config[regCommand], f.config[regCommand+1] = 0, 0
	binary.LittleEndian.PutUint32(f.config[regBAR0:], f.barFirst)
	if f.msix != nil {
		f.config[f.msix.cap+3] &^= msixEnable>>8 | msixMaskAll>>8
	}
	f.mu.Unlock()
	if f.msix != nil {
		f.msix.reset()
	}
	if f.device != nil {
		f.device.ResetFunction()
	}
}

func (f *Function) readConfig(offset, size int) uint32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b [4]byte
	copy(b[:size], f.config[offset:])
	return binary.LittleEndian.Uint32(b[:])
}

func (f *Function) writeConfig(offset int, b []byte) {
	f.mu.Lock()
	for i, v := range b {
		mask := f.writable[offset+i]
		f.config[offset+i] = f.config[offset+i]&^mask | v&mask
	}
	msix := f.msix
	var control uint16
	if msix != nil {
		control = binary.LittleEndian.Uint16(f.config[msix.cap+2:])
	}
	f.mu.Unlock()
	if msix != nil {
		msix.setControl(control)
	}
}

// decodes tells whether the function answers an access of size bytes at addr, and at which offset of its BAR.
func (f *Function) decodes(addr uint64, size int) (uint64, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.barSize == 0 || f.config[regCommand]&commandMemory == 0 {
		return 0, false
	}
	base := uint64(binary.LittleEndian.Uint32(f.config[regBAR0:]) &^ (f.barSize - 1))
	if addr < base || addr-base+uint64(size) > uint64(f.barSize) {
		return 0, false
	}
	return addr - base, true
}

func (f *Function) read(offset uint64, size int) uint64 {
	if f.msix != nil && f.msix.owns(offset) {
		return f.msix.read(offset, size)
	}
	return f.device.ReadBAR(offset, size)
}

func (f *Function) write(offset uint64, size int, v uint64) {
	if f.msix != nil && f.msix.owns(offset) {
		f.msix.write(offset, size, v)
		return
	}
	f.device.WriteBAR(offset, size, v)
}

// State is what a function carries when its VM moves, its device's own state apart.
type State struct {
	Config []byte
	Table  []byte // MSI-X
	Due    []bool
}

// State captures the function.
func (f *Function) State() State {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := State{Config: append([]byte(nil), f.config[:]...)}
	if f.msix != nil {
		s.Table, s.Due = f.msix.state()
	}
	return s
}

// SetState makes the function what the captured one, of the same kind, was.
func (f *Function) SetState(s State) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(s.Config) != configBytes {
		return fmt.Errorf("PCI function state has %d bytes of configuration space, want %d", len(s.Config), configBytes)
	}
	for i := range f.config {
		f.config[i] = f.config[i]&^f.writable[i] | s.Config[i]&f.writable[i]
	}
	if f.msix == nil {
		return nil
	}
	return f.msix.setState(s, binary.LittleEndian.Uint16(f.config[f.msix.cap+2:]))
}
