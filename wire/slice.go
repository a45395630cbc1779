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

// SliceOrder is what a part does from At on. After Until, without another order, it is free: nobody is left to wait for.
type SliceOrder struct {
	Number uint64
	Mode   SliceMode
	At     ident.Micros // CLOCK_BOOTTIME; in the past: at once
	Until  ident.Micros // CLOCK_BOOTTIME
	CPUs   []uint16     // with SliceRun: the slots' CPUs, in the order of the vCPUs that have work; empty: any
}

// SliceNote says which of a part's vCPUs have work, and when they were let go in slice Number.
type SliceNote struct {
	VM          ident.VMID
	Busy        int
	Number      uint64 // 0: none
	First, Last ident.Micros
}

// AppendSliceOrder appends the encoding of o.
func AppendSliceOrder(b []byte, o *SliceOrder) []byte {
	b = append(b, GangVersion, byte(o.Mode))
	b = binary.AppendUvarint(b, o.Number)
	b = appendMicros(b, o.At, o.Until)
	b = binary.AppendUvarint(b, uint64(len(o.CPUs)))
	for _, c := range o.CPUs {
		b = binary.AppendUvarint(b, uint64(c))
	}
	return b
}

// DecodeSliceOrder decodes an order.
func DecodeSliceOrder(b []byte) (SliceOrder, error) {
	if len(b) < 2 || b[0] != GangVersion || b[1] >= byte(sliceModeEnd) {
		return SliceOrder{}, fmt.Errorf("wire: order of an unknown version or mode: %w", ErrBadFrame)
	}
	d := varints{rest: b[2:]}
	o := SliceOrder{Mode: SliceMode(b[1]), Number: d.unsigned(), At: d.micros(), Until: d.micros()}
	for range d.count(GangEntryLimit) {
		o.CPUs = append(o.CPUs, uint16(d.small()))
	}
	return o, d.end("order")
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
