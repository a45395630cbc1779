package ram

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device rings are read and written by guest and host at the same time, one 16-bit index after the other. pread and pwrite copy byte by byte on
// some processors, so the other side could see half an index; these accesses are single instructions. They go through a second mapping
// of the memfd, which userfaultfd does not watch, made when it is first needed. It costs address space, and page tables for ring pages only.

func (r *RAM) aliasMapping() (uintptr, error) {
	r.aliasOnce.Do(func() {
		addr, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, uintptr(r.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE, uintptr(r.fd), 0)
		if errno != 0 {
			r.aliasErr = describe("map guest memory for devices", r.size, errno)
			return
		}
		r.alias = addr
		for _, advice := range mappingAdvice {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, addr, uintptr(r.size), uintptr(advice))
		}
	})
	return r.alias, r.aliasErr
}

// word checks the access and returns the 32-bit word that holds the aligned 16-bit one, and the shift to it.
func (r *RAM) word(op string, off int64) (*uint32, uint, error) {
	if err := r.checkRange(op, off, 2); err != nil {
		return nil, 0, err
	}
	if off%2 != 0 {
		return nil, 0, fmt.Errorf("%s 16-bit word of guest memory at 0x%x: not aligned", op, off)
	}
	base, err := r.aliasMapping()
	if err != nil {
		return nil, 0, err
	}
	// The mapping is not the Go heap's and never moves, so an address computed from a number is one of a live object.
	addr := base + uintptr(off&^3)
	return *(**uint32)(unsafe.Pointer(&addr)), uint(off&2) * 8, nil
}

// Load16 reads an aligned little-endian 16-bit word as one access.
func (r *RAM) Load16(off int64) (uint16, error) {
	p, shift, err := r.word("read", off)
	if err != nil {
		return 0, err
	}
	var value uint16
	err = r.atWord(off, func() { value = uint16(atomic.LoadUint32(p) >> shift) })
	return value, err
}

// atWord has f access the word at off, whose page has its contents meanwhile.
func (r *RAM) atWord(off int64, f func()) error {
	if r.pager != nil {
		return r.pager.atWord(off, f)
	}
	f()
	return nil
}

// Store16 writes an aligned little-endian 16-bit word as one access, after all writes before it. The other half of its 32-bit word is kept
// even if the guest writes it at the same time.
func (r *RAM) Store16(off int64, value uint16) error {
	p, shift, err := r.word("write", off)
	if err != nil {
		return err
	}
	return r.atWord(off, func() {
		for {
			old := atomic.LoadUint32(p)
			if atomic.CompareAndSwapUint32(p, old, old&^(0xffff<<shift)|uint32(value)<<shift) {
				return
			}
		}
	})
}
