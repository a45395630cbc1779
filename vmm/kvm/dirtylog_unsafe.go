package kvm

import (
	"fmt"
	"math/bits"
	"runtime"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/cellvisor/cellvisor/ident"
)

// DirtyLog finds the pages of a memory slot that vCPUs have written since it was last read. The kernel write-protects the slot's pages in
// KVM's own tables and notes the first write to each, without leaving the kernel: far cheaper than a userfaultfd write fault. Writes that do
// not come from a vCPU, through the alias, are not in it.
type DirtyLog struct {
	vm     *VM
	region gokvm.UserspaceMemoryRegion
	first  ident.PageNo // of the VM's memory, which has no holes: that of the slot's first page
	bitmap []uint64
}

// NewDirtyLog describes the log of the slot that SetMemory made with the same arguments. It is off. The slot's first page is page first of the VM's memory.
func (vm *VM) NewDirtyLog(slot uint32, guestAddr uint64, size ident.Bytes, hostAddr uintptr, first ident.PageNo) *DirtyLog {
	return &DirtyLog{
		vm: vm, first: first,
		region: gokvm.UserspaceMemoryRegion{Slot: slot, GuestPhysAddr: guestAddr, MemorySize: uint64(size), UserspaceAddr: uint64(hostAddr)},
		bitmap: make([]uint64, (size.Pages()+63)/64),
	}
}

// Enable starts or ends logging. The first reading after a start has what was written since then.
func (d *DirtyLog) Enable(on bool) error {
	d.region.Flags = 0
	if on {
		d.region.SetMemLogDirtyPages()
	}
	if err := gokvm.SetUserMemoryRegion(uintptr(d.vm.fd), &d.region); err != nil {
		return fmt.Errorf("dirty page log of memory slot %d: %w", d.region.Slot, err)
	}
	return nil
}

// Read calls f for each page written since the last Read, in rising order, and starts afresh. To lose no write no vCPU may run meanwhile.
func (d *DirtyLog) Read(f func(ident.PageNo)) error {
	clear(d.bitmap)
	request := gokvm.DirtyLog{Slot: d.region.Slot, BitMap: uint64(uintptr(unsafe.Pointer(&d.bitmap[0])))}
	err := gokvm.GetDirtyLog(uintptr(d.vm.fd), &request)
	runtime.KeepAlive(d.bitmap)
	if err != nil {
		return fmt.Errorf("read dirty page log of memory slot %d: %w", d.region.Slot, err)
	}
	for i, word := range d.bitmap {
		for ; word != 0; word &= word - 1 {
			f(d.first + ident.PageNo(64*i+bits.TrailingZeros64(word)))
		}
	}
	return nil
}
