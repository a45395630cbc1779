package kvm

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// ioctlRun is KVM_RUN, _IO(0xAE, 0x80).
const ioctlRun = 0xae80

// runPage is the head of the kernel's struct kvm_run. Its first word is written by kickers while the vCPU runs: by atomics only. The rest
// is the kernel's during KVM_RUN and the vCPU thread's otherwise.
type runPage struct {
	flags         uint32 // request_interrupt_window, immediate_exit, two bytes of padding
	_             uint32
	exitReason    uint32
	interruptible uint32 // ready_for_interrupt_injection, if_flag, flags
	cr8           uint64
	apicBase      uint64
	data          [32]uint64 // a union, by exit reason
}

// gokvm's view of the same struct must agree with ours.
var _ [unsafe.Sizeof(gokvm.RunData{})]byte = [unsafe.Sizeof(runPage{})]byte{}

// Bits of the first word: request_interrupt_window is its first byte, immediate_exit its second.
const (
	interruptWindowBit = 1 << 0
	immediateExitBit   = 1 << 8
)

func runPageOf(area []byte) *runPage { return (*runPage)(unsafe.Pointer(&area[0])) }

func (r *runPage) setImmediateExit(on bool) {
	if on {
		atomic.OrUint32(&r.flags, immediateExitBit)
		return
	}
	atomic.AndUint32(&r.flags, ^uint32(immediateExitBit))
}

func (r *runPage) setInterruptWindow(on bool) {
	if on {
		atomic.OrUint32(&r.flags, interruptWindowBit)
		return
	}
	atomic.AndUint32(&r.flags, ^uint32(interruptWindowBit))
}

// decode reads the exit that the kernel has just reported.
func (v *VCPU) decode() Exit {
	r := v.run
	switch gokvm.ExitType(r.exitReason) {
	case gokvm.EXITIO:
		return v.decodeIO()
	case gokvm.EXITMMIO:
		size := uint32(r.data[2])
		e := Exit{Reason: MMIO, Addr: r.data[0], Size: uint8(min(size, 8)), Write: r.data[2]>>32&0xff != 0}
		if e.Write {
			e.Data = r.data[1] & mask(e.Size)
		}
		return e
	case gokvm.EXITHLT:
		return Exit{Reason: Halt}
	case gokvm.EXITSHUTDOWN:
		return Exit{Reason: Shutdown}
	case gokvm.EXITINTR, gokvm.EXITIRQWINDOWOPEN, gokvm.EXITSETTPR:
		return Exit{Reason: Interrupted}
	case exitReadMSR, exitWriteMSR:
		e := Exit{Reason: MSR, Write: r.exitReason == exitWriteMSR, Index: uint32(r.data[1] >> 32)}
		if e.Write {
			e.Data = r.data[2]
		}
		return e
	case gokvm.EXITFAILENTRY:
		return Exit{Reason: FailEntry, Detail: r.data[0]}
	case gokvm.EXITINTERNALERROR:
		e := Exit{Reason: InternalError, Code: uint32(r.data[0])}
		if r.data[0]>>32 > 0 {
			e.Detail = r.data[1]
		}
		return e
	}
	return Exit{Reason: Unknown, Code: r.exitReason, Detail: r.data[0]}
}

func (v *VCPU) decodeIO() Exit {
	d := v.run.data[0]
	e := Exit{Reason: IO, Write: d&0xff == gokvm.EXITIOOUT, Size: uint8(d >> 8), Port: uint16(d >> 16), Count: uint32(d >> 32)}
	if e.Write {
		e.Data = get(v.IOData(), e.Size)
	}
	return e
}

// IOData is the data of the last IO exit, Size*Count bytes in the run area: written by the guest, or to be filled for it. It is valid until the next Run.
func (v *VCPU) IOData() []byte {
	d := v.run.data[0]
	n, off := uint64(uint8(d>>8))*uint64(uint32(d>>32)), v.run.data[1]
	if off > uint64(len(v.area)) || n > uint64(len(v.area))-off {
		return nil
	}
	return v.area[off : off+n]
}

// SetIO answers the port input of the last IO exit with value, for each item of a string input.
func (v *VCPU) SetIO(value uint32) {
	data, size := v.IOData(), int(uint8(v.run.data[0]>>8))
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], value)
	for i := 0; size > 0 && size <= 4 && i+size <= len(data); i += size {
		copy(data[i:i+size], b[:size])
	}
}

// SetMMIO answers the read of the last MMIO exit with value.
func (v *VCPU) SetMMIO(value uint64) { v.run.data[1] = value }

func get(b []byte, size uint8) uint64 {
	var out uint64
	for i := 0; i < int(size) && i < len(b) && i < 8; i++ {
		out |= uint64(b[i]) << (8 * i)
	}
	return out
}

func mask(size uint8) uint64 {
	if size >= 8 {
		return ^uint64(0)
	}
	return 1<<(8*size) - 1
}
