package ram

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
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

// atWord checks an access to an aligned 16-bit word and has f do it, on the 32-bit word that holds it, shifted; the page has its contents meanwhile.
func (r *RAM) atWord(op string, off int64, f func(word *uint32, shift uint)) error {
	if err := r.checkRange(op, off, 2); err != nil {
		return err
	}
	if off%2 != 0 {
		return fmt.Errorf("%s 16-bit word of guest memory at 0x%x: not aligned", op, off)
	}
	base, err := r.aliasMapping()
	if err != nil {
		return err
	}
	access := func() {
		// The mapping is not the Go heap's and never moves, so an address computed from a number is one of a live object.
		addr := base + uintptr(off&^3)
		f(*(**uint32)(unsafe.Pointer(&addr)), uint(off&2)*8)
	}
	if r.pager != nil {
		return r.pager.atWord(off, access)
	}
	s := &r.shared
	s.mu.RLock()
	defer s.mu.RUnlock()
	if _, in := s.at(ident.PageNo(off >> ident.PageShift)); in {
		base = r.addr
	}
	access()
	return nil
}

// Load16 reads an aligned little-endian 16-bit word as one access.
func (r *RAM) Load16(off int64) (value uint16, err error) {
	err = r.atWord("read", off, func(word *uint32, shift uint) { value = uint16(atomic.LoadUint32(word) >> shift) })
	return value, err
}

// Store16 writes an aligned little-endian 16-bit word as one access, after all writes before it. The other half of its 32-bit word is kept
// even if the guest writes it at the same time.
func (r *RAM) Store16(off int64, value uint16) error {
	return r.atWord("write", off, func(word *uint32, shift uint) {
		for {
			old := atomic.LoadUint32(word)
			if atomic.CompareAndSwapUint32(word, old, old&^(0xffff<<shift)|uint32(value)<<shift) {
				return
			}
		}
	})
}
