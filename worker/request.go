package worker

import (
	"encoding/binary"
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/machine"
)

// deviceOp is one operation of the payload ABI that only the home part can do.
type deviceOp uint8

const (
	opConsole deviceOp = iota + 1 // value: the byte
	opRecord                      // value: the record
	opClock                       // answer: milliseconds since the VM first started
	opExit                        // value: the guest's status
	opOrigin                      // waits until the image is loaded; answer: the vCPU's origin
	opAccess                      // access: a port or memory access to the PCI bus; answer: what was read
	opNotes                       // seq: of the first; notes: interrupts for vCPUs of the receiver, which need not be home
	opCounter                     // answer: the guest's time stamp counter at home, now
	opWaits                       // notes: what vCPUs of the sender waited for, see package locality; no answer
)

// deviceRequest is one such operation of one vCPU. Seq rises with each request of a vCPU, from 1, so that one repeated after a broken
// connection is done once.
type deviceRequest struct {
	epoch ident.Epoch // of the VM, in which another part sent it; not encoded. 0: it is a vCPU's here, which a new life waits for
	vcpu  ident.VCPU
	op    deviceOp
	seq   uint64
	value uint32

	access machine.Access // of opAccess, behind the rest
	notes  []byte         // of opNotes and opWaits, behind the rest
}

const deviceRequestBytes = 16

func (r deviceRequest) encode(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, r.seq)
	b = binary.LittleEndian.AppendUint32(b, r.value)
	b = binary.LittleEndian.AppendUint16(b, uint16(r.vcpu))
	b = append(b, byte(r.op), 0)
	if r.op == opAccess {
		b = r.access.Append(b)
	}
	if r.op == opNotes || r.op == opWaits {
		b = append(b, r.notes...)
	}
	return b
}

func decodeDeviceRequest(b []byte) (deviceRequest, error) {
	if len(b) < deviceRequestBytes {
		return deviceRequest{}, fmt.Errorf("device request of %d bytes, want %d", len(b), deviceRequestBytes)
	}
	r := deviceRequest{
		seq:   binary.LittleEndian.Uint64(b),
		value: binary.LittleEndian.Uint32(b[8:]),
		vcpu:  ident.VCPU(binary.LittleEndian.Uint16(b[12:])),
		op:    deviceOp(b[14]),
	}
	var err error
	if rest := b[deviceRequestBytes:]; r.op == opAccess {
		r.access, err = machine.ParseAccess(rest)
	} else if r.op == opNotes || r.op == opWaits {
		r.notes = rest
	} else if len(rest) > 0 {
		err = fmt.Errorf("device request with %d bytes too many", len(rest))
	}
	return r, err
}
