package kvm

import (
	"fmt"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// ioctls whose result or size gokvm's functions do not give.
var (
	ioctlGetMSRs   = gokvm.IIOWR(0x88, 8)
	ioctlSetMSRs   = gokvm.IIOW(0x89, 8)
	ioctlGetXsave  = gokvm.IIOR(0xa4, xsaveLegacySize)
	ioctlSetXsave  = gokvm.IIOW(0xa5, xsaveLegacySize)
	ioctlGetXsave2 = gokvm.IIOR(0xcf, xsaveLegacySize)
)

// xsaveLegacySize is sizeof(struct kvm_xsave), what KVM_GET_XSAVE copies.
const xsaveLegacySize = 4096

// msrBatch is struct kvm_msrs with room for entries.
type msrBatch struct {
	n       uint32
	_       uint32
	entries [maxMSRs]gokvm.MSREntry
}

// maxMSRs bounds one batch; KVM lists fewer than 200 today and takes 256 at most a call.
const maxMSRs = 256

// stateMSRs lists the model-specific registers that KVM says make up a vCPU's state.
func (s *System) stateMSRs() ([]uint32, error) {
	list := &s.msrList
	list.NMSRs = uint32(len(list.Indicies))
	if err := gokvm.GetMSRIndexList(uintptr(s.fd), list); err != nil {
		return nil, fmt.Errorf("KVM_GET_MSR_INDEX_LIST: %w", err)
	}
	var out []uint32
	for _, index := range list.Indicies[:min(int(list.NMSRs), len(list.Indicies))] {
		if !paravirtualMSR(index) {
			out = append(out, index)
		}
	}
	return out, nil
}

// paravirtualMSR tells whether an MSR belongs to the paravirtual interfaces that are hidden from guests: KVM's own, Hyper-V's.
func paravirtualMSR(index uint32) bool {
	return index == 0x11 || index == 0x12 || index&0xffffff00 == 0x4b564d00 || index&0xffff0000 == 0x40000000
}

// msrCall runs KVM_GET_MSRS or KVM_SET_MSRS; the result is how many entries KVM has done before it met one that it refuses.
func (v *VCPU) msrCall(op uintptr, b *msrBatch) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(v.fd), op, uintptr(unsafe.Pointer(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// getMSRs reads the state MSRs. One that KVM lists but does not let be read here is left out, this time and later.
func (v *VCPU) getMSRs() ([]gokvm.MSREntry, error) {
	out := make([]gokvm.MSREntry, 0, len(v.msrs))
	b := new(msrBatch)
	for next := 0; next < len(v.msrs); {
		n := min(len(v.msrs)-next, maxMSRs)
		b.n = uint32(n)
		for i := range n {
			b.entries[i] = gokvm.MSREntry{Index: v.msrs[next+i]}
		}
		done, err := v.msrCall(ioctlGetMSRs, b)
		if err != nil {
			return nil, fmt.Errorf("read its model-specific registers: %w", err)
		}
		out = append(out, b.entries[:done]...)
		next += done
		if done < n {
			v.msrs = append(v.msrs[:next], v.msrs[next+1:]...)
		}
	}
	return out, nil
}

// TSC is the guest's time stamp counter now. The vCPU must not be in Run.
func (v *VCPU) TSC() (uint64, error) {
	b := &msrBatch{n: 1}
	b.entries[0].Index = msrTSC
	if n, err := v.msrCall(ioctlGetMSRs, b); err != nil || n != 1 {
		return 0, fmt.Errorf("read vCPU %d's time stamp counter: %d done, %w", v.id, n, err)
	}
	return b.entries[0].Data, nil
}

// setMSRs writes MSRs. KVM refuses to write some that it lists; that is no loss if the vCPU has the value already.
func (v *VCPU) setMSRs(msrs []gokvm.MSREntry) error {
	b := new(msrBatch)
	for len(msrs) > 0 {
		n := copy(b.entries[:], msrs)
		b.n = uint32(n)
		done, err := v.msrCall(ioctlSetMSRs, b)
		if err != nil {
			return err
		}
		if msrs = msrs[done:]; done == n {
			continue
		}
		want := msrs[0]
		b.n, b.entries[0] = 1, gokvm.MSREntry{Index: want.Index}
		if got, err := v.msrCall(ioctlGetMSRs, b); err != nil || got != 1 || b.entries[0].Data != want.Data {
			return fmt.Errorf("MSR 0x%x refuses the value 0x%x (it has 0x%x here)", want.Index, want.Data, b.entries[0].Data)
		}
		msrs = msrs[1:]
	}
	return nil
}

// xsaveSize is how large the XSAVE area of the VM's vCPUs is: more than 4096 when the processor has large features such as AMX.
func xsaveSize(vmFD int) int {
	n, err := gokvm.CheckExtension(uintptr(vmFD), gokvm.CapXSave2)
	if err != nil || n < xsaveLegacySize {
		return xsaveLegacySize
	}
	return int(n)
}

func (v *VCPU) getXsave() error {
	op := ioctlGetXsave
	if len(v.args.xsave) > xsaveLegacySize {
		op = ioctlGetXsave2
	}
	return v.xsaveCall(op)
}

func (v *VCPU) setXsave() error { return v.xsaveCall(ioctlSetXsave) }

func (v *VCPU) xsaveCall(op uintptr) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(v.fd), op, uintptr(unsafe.Pointer(&v.args.xsave[0])))
	if errno != 0 {
		return errno
	}
	return nil
}
