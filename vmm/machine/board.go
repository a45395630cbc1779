package machine

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/ioapic"
	"github.com/cellvisor/cellvisor/vmm/linux"
	"github.com/cellvisor/cellvisor/vmm/pci"
	"github.com/cellvisor/cellvisor/vmm/platform"
	"github.com/cellvisor/cellvisor/vmm/serial"
	"github.com/cellvisor/cellvisor/vmm/virtio"
)

// BoardConfig is what a board is made of.
type BoardConfig struct {
	VCPUs   int
	Memory  ident.Bytes
	Backing Backing   // the guest's RAM, as devices reach it
	Console io.Writer // gets what the guest writes to its serial port
	// Signal delivers a message-signalled interrupt. It must not block and may be called from any thread.
	Signal func(addr uint64, data uint32)
	// Event is told when the guest switches the machine off or resets it, on the thread of the vCPU that did.
	Event func(platform.Event)
}

// Board is a machine's devices. Its methods may be called from any thread.
type Board struct {
	Serial *serial.UART
	PCI    *pci.Root

	memory   *memory
	ioapic   *ioapic.IOAPIC
	platform *platform.Platform
	event    func(platform.Event)
	signal   func(addr uint64, data uint32)

	switchedOn atomic.Int64 // Unix time, nanoseconds; earlier than the board for one that has moved
	unknown    atomic.Uint64
	msis       atomic.Uint64
	vcpus      int
	virtio     []*virtio.Device // in the order of their slots
}

// NewBoard makes a board without PCI devices.
func NewBoard(c BoardConfig) *Board {
	b := &Board{vcpus: c.VCPUs, memory: newMemory(c.Backing, c.Memory), event: c.Event}
	b.signal = func(addr uint64, data uint32) {
		b.msis.Add(1)
		c.Signal(addr, data)
	}
	b.ioapic = ioapic.New(b.signal)
	b.Serial = serial.New(c.Console, func(high bool) { b.ioapic.SetLine(linux.SerialIRQ, high) })
	b.switchedOn.Store(time.Now().UnixNano())
	began, at := time.Now(), b.switchedOn.Load()
	b.platform = &platform.Platform{Now: time.Now, Elapsed: func() time.Duration {
		return time.Since(began) + time.Duration(at-b.switchedOn.Load()) // the span is of the monotonic clock
	}}
	b.PCI = pci.NewRoot(linux.LowEnd, linux.PCIEnd)
	return b
}

// Do implements Accessor. Where no device is, reads are all ones and writes are lost, as on a bus.
func (b *Board) Do(a Access) (uint64, error) {
	if a.Port {
		return b.port(a), nil
	}
	return b.mmio(a), nil
}

func (b *Board) port(a Access) uint64 {
	port, size := uint16(a.Addr), int(a.Size)
	switch {
	case port >= linux.SerialPort && port < linux.SerialPort+serial.Ports && size == 1:
		if a.Write {
			b.Serial.Out(port-linux.SerialPort, byte(a.Data))
			return 0
		}
		return uint64(b.Serial.In(port - linux.SerialPort))
	case pci.Owns(port) && !(port == 0xcf9 && size == 1):
		if a.Write {
			b.PCI.Out(port, size, uint32(a.Data))
			return 0
		}
		return a.mask(uint64(b.PCI.In(port, size)))
	case a.Write:
		event, ok := b.platform.Out(port, size, uint32(a.Data))
		if event != platform.None {
			b.event(event)
		}
		b.count(ok)
		return 0
	}
	v, ok := b.platform.In(port, size)
	b.count(ok)
	if !ok {
		return a.mask(^uint64(0))
	}
	return uint64(v)
}

func (b *Board) mmio(a Access) uint64 {
	switch {
	case a.Addr >= linux.IOAPICAddr && a.Addr < linux.IOAPICAddr+ioapic.Size:
		if a.Write {
			b.ioapic.Write(a.Addr-linux.IOAPICAddr, uint32(a.Data))
			return 0
		}
		return a.mask(uint64(b.ioapic.Read(a.Addr - linux.IOAPICAddr)))
	case a.Write:
		b.count(b.PCI.Write(a.Addr, int(a.Size), a.Data))
		return 0
	}
	v, ok := b.PCI.Read(a.Addr, int(a.Size))
	b.count(ok)
	return a.mask(v)
}

func (b *Board) count(known bool) {
	if !known {
		b.unknown.Add(1)
	}
}

// Counters count since the board was made.
type Counters struct {
	Unknown    uint64 // accesses that no device answered
	Interrupts uint64 // messages that devices sent
	Broken     uint64 // how often a driver broke the rules
}

// Counters returns the board's counters.
func (b *Board) Counters() Counters {
	c := Counters{Unknown: b.unknown.Load(), Interrupts: b.msis.Load()}
	for _, d := range b.virtio {
		c.Broken += d.Broken()
	}
	return c
}

// Reset puts all devices into their power-on state.
func (b *Board) Reset() {
	b.PCI.Reset()
	b.ioapic.Reset()
	b.Serial.Reset()
}

// Close ends the devices' threads and closes what they hold.
func (b *Board) Close() error {
	var errs []error
	for _, d := range b.virtio {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}
