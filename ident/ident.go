// Package ident holds the distinct types for the things that Cellvisor names and counts, so that the compiler keeps an epoch from being
// passed for a page number. It is floor 0: pure, and imported by everything.
package ident

import (
	"fmt"
	"math/bits"
	"strconv"
)

// ServerID names one server for as long as its data directory lives. It is also the server's Raft node ID. Zero means none.
type ServerID uint64

// CellName is a cell's name, such as "a".
type CellName string

// ServerName is a server's name for people, such as "a-1".
type ServerName string

// VMID is a virtual machine's number: the log index at which it was created, so that a name used twice never confuses two machines.
type VMID uint64

// Epoch numbers views. It only grows.
type Epoch uint64

// Incarnation is the epoch at which a server was last admitted to the view. A server that comes back has a new one.
type Incarnation uint64

// VCPU is the index of a virtual CPU in its VM, from 0.
type VCPU uint16

// Micros is a time or a span in microseconds on the owner's monotonic clock. Cores are told the time, they never ask for it.
type Micros int64

// Spans in Micros.
const (
	Millisecond Micros = 1000
	Second      Micros = 1000 * Millisecond
)

// PageShift and PageSize describe the unit of coherence: 4 KiB of guest-physical memory.
const (
	PageShift = 12
	PageSize  = 1 << PageShift
)

// PageNo is a guest-physical page number: the address shifted right by PageShift.
type PageNo uint64

// Bytes is a size in bytes.
type Bytes uint64

// Sizes in Bytes.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
)

// Pages returns how many whole pages are in b.
func (b Bytes) Pages() uint64 { return uint64(b) >> PageShift }

// String prints the size with the largest binary unit that divides it, as "512MiB".
func (b Bytes) String() string {
	switch {
	case b == 0:
		return "0B"
	case b%GiB == 0:
		return strconv.FormatUint(uint64(b/GiB), 10) + "GiB"
	case b%MiB == 0:
		return strconv.FormatUint(uint64(b/MiB), 10) + "MiB"
	case b%KiB == 0:
		return strconv.FormatUint(uint64(b/KiB), 10) + "KiB"
	}
	return strconv.FormatUint(uint64(b), 10) + "B"
}

// MaxParts bounds the number of parts (servers) that one VM may span.
const MaxParts = 64

// Part is the index of a VM's part: its share of the VM on one server. It is below MaxParts.
type Part uint8

// String prints the part as "p3".
func (p Part) String() string { return fmt.Sprintf("p%d", uint8(p)) }

// PartSet is a set of parts.
type PartSet uint64

// Set returns s with p.
func (s PartSet) Set(p Part) PartSet { return s | 1<<p }

// Clear returns s without p.
func (s PartSet) Clear(p Part) PartSet { return s &^ (1 << p) }

// Has tells whether p is in s.
func (s PartSet) Has(p Part) bool { return s&(1<<p) != 0 }

// Len counts the members.
func (s PartSet) Len() int { return bits.OnesCount64(uint64(s)) }

// First returns the lowest member; s must not be empty.
func (s PartSet) First() Part { return Part(bits.TrailingZeros64(uint64(s))) }

// Each calls f for every member in rising order.
func (s PartSet) Each(f func(Part)) {
	for s != 0 {
		p := s.First()
		f(p)
		s = s.Clear(p)
	}
}

// Nth returns the i-th member in rising order, counted from 0; i must be below Len.
func (s PartSet) Nth(i int) Part {
	for ; i > 0; i-- {
		s &= s - 1
	}
	return s.First()
}
