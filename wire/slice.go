package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// Between serve and a worker, slices go as datagrams on Unix sockets: at a hundred VMs and slices of milliseconds they must cost next to
// nothing. One may be lost; the next says everything again.
//
//	serve --SliceOrder--> <worker's directory>/run.sock
//	worker --SliceNote--> <data>/workers/bell

// Names of the sockets.
const (
	WorkerRunSocket = "run.sock" // in the worker's directory
	WorkersBell     = "bell"     // in the directory above it
)

// SliceDatagramLimit bounds the datagrams, in bytes.
const SliceDatagramLimit = 2048

// SliceMode says what a part's vCPUs may do.
type SliceMode uint8

// Modes. A worker begins free.
const (
	SliceFree SliceMode = iota // run under the host's scheduler
	SliceRun                   // run, each on a slot
	SliceHold                  // wait for their slice
	sliceModeEnd
)

// SliceOrder is what a part does from At on. It takes the place of all that was said for At and later. After Until, without another order, the part is free:
// nobody is left to wait for.
type SliceOrder struct {
	Number uint64
	Mode   SliceMode
	At     ident.Micros // CLOCK_BOOTTIME; in the past: at once
	Until  ident.Micros // CLOCK_BOOTTIME
	CPUs   []uint16     // with SliceRun: the slots' CPUs, in the order of the vCPUs that have work; empty: any

	Next []SliceTurn // what it does then, by time; only for workers that have said that they take turns
}

// SliceTurn is what a part does from At on.
type SliceTurn struct {
	Number uint64
	Mode   SliceMode
	At     ident.Micros
	CPUs   []uint16
}

// SliceTurnLimit bounds the turns of an order, so that it fits into a datagram with as many CPUs for each as most machines have.
const SliceTurnLimit = 64

// Versions of an order: with Next it is of the second.
const planVersion = 2

// SliceNote says which of a part's vCPUs have work, and when they were let go in slice Number.
type SliceNote struct {
	VM          ident.VMID
	Busy        int
	Number      uint64 // 0: none
	First, Last ident.Micros
}

// AppendSliceOrder appends the encoding of o.
func AppendSliceOrder(b []byte, o *SliceOrder) []byte {
	version := byte(GangVersion)
	if len(o.Next) > 0 {
		version = planVersion
	}
	b = append(b, version, byte(o.Mode))
	b = binary.AppendUvarint(b, o.Number)
	b = appendMicros(b, o.At, o.Until)
	b = appendCPUs(b, o.CPUs)
	if version == GangVersion {
		return b
	}
	b = binary.AppendUvarint(b, uint64(len(o.Next)))
	for i := range o.Next {
		t := &o.Next[i]
		b = binary.AppendUvarint(append(b, byte(t.Mode)), t.Number)
		b = appendCPUs(appendMicros(b, t.At), t.CPUs)
	}
	return b
}

func appendCPUs(b []byte, cpus []uint16) []byte {
	b = binary.AppendUvarint(b, uint64(len(cpus)))
	for _, c := range cpus {
		b = binary.AppendUvarint(b, uint64(c))
	}
	return b
}

// DecodeSliceOrder decodes an order.
func DecodeSliceOrder(b []byte) (SliceOrder, error) {
	if len(b) < 2 || b[0] != GangVersion && b[0] != planVersion || b[1] >= byte(sliceModeEnd) {
		return SliceOrder{}, fmt.Errorf("wire: order of an unknown version or mode: %w", ErrBadFrame)
	}
	d := varints{rest: b[2:]}
	o := SliceOrder{Mode: SliceMode(b[1]), Number: d.unsigned(), At: d.micros(), Until: d.micros(), CPUs: d.cpus()}
	if b[0] == GangVersion {
		return o, d.end("order")
	}
	at := o.At
	for range d.count(SliceTurnLimit) {
		mode := d.small()
		t := SliceTurn{Mode: SliceMode(mode), Number: d.unsigned(), At: d.micros(), CPUs: d.cpus()}
		d.bad = d.bad || mode >= int(sliceModeEnd) || t.At < at
		at = t.At
		o.Next = append(o.Next, t)
	}
	d.bad = d.bad || len(o.Next) == 0
	return o, d.end("order")
}

func (d *varints) cpus() (cpus []uint16) {
	for range d.count(GangEntryLimit) {
		cpus = append(cpus, uint16(d.small()))
	}
	return cpus
}

// AppendSliceNote appends the encoding of n.
func AppendSliceNote(b []byte, n *SliceNote) []byte {
	b = append(b, GangVersion)
	b = binary.AppendUvarint(b, uint64(n.VM))
	b = binary.AppendUvarint(b, uint64(n.Busy))
	b = binary.AppendUvarint(b, n.Number)
	return appendMicros(b, n.First, n.Last)
}

// DecodeSliceNote decodes a note.
func DecodeSliceNote(b []byte) (SliceNote, error) {
	if len(b) < 1 || b[0] != GangVersion {
		return SliceNote{}, fmt.Errorf("wire: note of an unknown version: %w", ErrBadFrame)
	}
	d := varints{rest: b[1:]}
	n := SliceNote{VM: ident.VMID(d.unsigned()), Busy: d.small(), Number: d.unsigned(), First: d.micros(), Last: d.micros()}
	return n, d.end("note")
}
