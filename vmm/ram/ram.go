// Package ram holds the guest memory of one VM part: one memfd with two ways in.
//
//	              memfd (contents)
//	             /                \
//	guest mapping                  alias: pread and pwrite
//	mmap MAP_SHARED                no mapping at all
//	the KVM memory slot,           the only way in for Go code
//	watched by userfaultfd
//
// Go code must never touch the guest mapping: a goroutine that takes a page fault there keeps its P, the garbage collector can then not
// stop the world, and the very thread that would serve the fault may be waiting for the collector. The alias is made of pread and
// pwrite rather than of a second mapping because a file descriptor neither raises SIGBUS when memory runs out (the call returns an
// error) nor counts the guest's pages a second time in the worker's resident size.
//
// Contents and access are two things. Contents live in the memfd and stay there until ZeroPage. Access is what the guest mapping's page
// table says; Revoke takes it away (and with it KVM's own tables, through the MMU notifier) before it returns, and vmm/uffd gives it back.
// A page with contents and no access faults as MINOR, a page without contents (a hole) as MISSING.
//
// Guests that nobody watches may have pages of a sealed image in the place of the memfd's (shared.go). Who uses RAM does not notice. Such pages are the
// exception to the rule above: the kernel alone serves their faults, so this package reaches them through the guest mapping.
//
// Invariants: the guest mapping's address and size never change; every access is inside [0, Size) or refused.
package ram

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

// ErrNoMemory is wrapped by errors that say that this host has too little memory for what was asked: worth reporting to the operator as a
// matter of capacity, not as a fault of the program.
var ErrNoMemory = errors.New("not enough memory on this host")

// RAM is one VM part's guest memory. All methods except Close may be called from several goroutines at once; two calls on one page at the
// same time race as two preads and pwrites do, so the page protocol must have decided whose turn it is.
type RAM struct {
	fd     int
	addr   uintptr
	size   ident.Bytes
	closed atomic.Bool

	aliasOnce sync.Once // makes alias, see Load16
	alias     uintptr
	aliasErr  error

	pager  *Pager // nil: all contents are in the memfd or shared; set before there are any
	shared shared // contents that are not in the memfd, but an image's
}

// New makes guest memory of size bytes, a multiple of the page size and at most 1 TiB. No page is allocated yet: the memory is all holes, and
// may be larger than this host's, since a part holds only the pages it uses.
func New(size ident.Bytes) (*RAM, error) {
	const maxSize = 1 << 40
	if size == 0 || size%ident.PageSize != 0 || size > maxSize {
		return nil, fmt.Errorf("guest memory of %d bytes: must be a multiple of %d, more than 0 and at most 1TiB", size, ident.PageSize)
	}
	fd, err := unix.MemfdCreate("cellvisor-guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, describe("memfd_create for guest memory", size, err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		unix.Close(fd)
		return nil, describe("size guest memory", size, err)
	}
	// NORESERVE: a spanning VM's memory is counted where its pages are, not in full on every part.
	addr, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE, uintptr(fd), 0)
	if errno != 0 {
		unix.Close(fd)
		return nil, describe("map guest memory", size, errno)
	}
	r := &RAM{fd: fd, addr: addr, size: size}
	// Huge pages would make one fault cover pages that belong to others; a child between fork and exec and a core file have no business
	// with guest memory. Kernels without transparent huge pages answer EINVAL to the first: then there is nothing to switch off.
	for _, advice := range mappingAdvice {
		if err := r.advise(0, uintptr(size), advice); err != nil && !errors.Is(err, unix.EINVAL) {
			r.Close()
			return nil, describe("advise on guest memory", size, err)
		}
	}
	return r, nil
}

// mappingAdvice is what the kernel is told about each mapping of guest memory.
var mappingAdvice = []int{unix.MADV_NOHUGEPAGE, unix.MADV_DONTFORK, unix.MADV_DONTDUMP}

// Size is the memory's size in bytes.
func (r *RAM) Size() ident.Bytes { return r.size }

// Pages is the memory's size in pages.
func (r *RAM) Pages() uint64 { return r.size.Pages() }

// GuestAddr is where the guest mapping lies in this process: for the KVM memory slot, never to be dereferenced. Who wants to be told of faults asks Watchable.
func (r *RAM) GuestAddr() uintptr { return r.addr }

// ReadPage reads the contents of a page through the alias; buf is ident.PageSize long. A hole reads as zeros and stays a hole.
func (r *RAM) ReadPage(page ident.PageNo, buf []byte) error {
	if err := r.checkPage("read", page, buf); err != nil {
		return err
	}
	_, err := r.ReadAt(buf, int64(page)<<ident.PageShift)
	return err
}

// WritePage replaces the contents of a page through the alias; buf is ident.PageSize long. It needs no access to the page and gives none:
// a write protection of the guest mapping does not stop it.
func (r *RAM) WritePage(page ident.PageNo, buf []byte) error {
	if err := r.checkPage("write", page, buf); err != nil {
		return err
	}
	_, err := r.WriteAt(buf, int64(page)<<ident.PageShift)
	return err
}

// ReadAt reads guest memory through the alias; it implements io.ReaderAt.
func (r *RAM) ReadAt(b []byte, off int64) (int, error) {
	if err := r.checkRange("read", off, len(b)); err != nil {
		return 0, err
	}
	if r.pager != nil {
		return r.pager.readAt(b, off)
	}
	if r.shared.some.Load() {
		return r.readShared(b, off)
	}
	return r.get(b, off)
}

// get reads the memfd.
func (r *RAM) get(b []byte, off int64) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Pread(r.fd, b[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, fmt.Errorf("read %d bytes of guest memory at 0x%x: %w", len(b), off, err)
		}
		if n == 0 {
			return done, io.ErrUnexpectedEOF
		}
		done += n
	}
	return done, nil
}

// WriteAt writes guest memory through the alias; it implements io.WriterAt. When the host runs out of memory the error wraps ErrNoMemory
// and a part of b may have been written.
func (r *RAM) WriteAt(b []byte, off int64) (int, error) {
	if err := r.checkRange("write", off, len(b)); err != nil {
		return 0, err
	}
	if r.pager != nil {
		return r.pager.writeAt(b, off)
	}
	if r.shared.some.Load() {
		return r.writeShared(b, off)
	}
	if err := r.put(b, off); err != nil {
		return 0, err
	}
	return len(b), nil
}

// put writes to the memfd.
func (r *RAM) put(b []byte, off int64) error {
	for done := 0; done < len(b); {
		n, err := unix.Pwrite(r.fd, b[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return describe(fmt.Sprintf("write %d bytes of guest memory at 0x%x", len(b), off), r.size, err)
		}
		done += n
	}
	return nil
}

// ZeroPage drops a page's contents: it becomes a hole, reads as zeros, and takes no memory. The guest loses access to it before ZeroPage returns.
func (r *RAM) ZeroPage(page ident.PageNo) error { return r.Zero(page, 1) }

// Zero is ZeroPage for n pages from page on.
func (r *RAM) Zero(page ident.PageNo, n uint64) error {
	if err := r.checkPages("zero", page, n); err != nil || n == 0 {
		return err
	}
	if r.pager != nil {
		return r.pager.dropped(page, n, func() error { return r.punch(page, n) })
	}
	if err := r.zeroShared(span{page, n}); err != nil {
		return fmt.Errorf("zero %d guest pages at page 0x%x: %w", n, page, err)
	}
	return r.punch(page, n)
}

// punch makes n pages of the memfd holes.
func (r *RAM) punch(page ident.PageNo, n uint64) error {
	const punchHole = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	for {
		err := unix.Fallocate(r.fd, punchHole, int64(page)<<ident.PageShift, int64(n)<<ident.PageShift)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("zero %d guest pages at page 0x%x: %w", n, page, err)
		}
		return nil
	}
}

// Revoke takes n pages from page on away from the guest: when it returns, no vCPU of this part reads or writes them any more, and the next
// touch faults (MINOR if the page has contents). The contents stay, and are final, in the memfd. In memory that is not watched a touch brings a page back
// unseen, so nobody can rest on it; there, pages that are shared are left alone.
func (r *RAM) Revoke(page ident.PageNo, n uint64) error {
	if err := r.checkPages("revoke", page, n); err != nil || n == 0 {
		return err
	}
	if r.pager != nil {
		return r.pager.revoked(page, n, func() error { return r.unmap(page, n) })
	}
	s := &r.shared
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, part := range s.outside(span{page, n}) { // MADV_DONTNEED would take what the guest has written to a run
		if err := r.unmap(part.page, part.n); err != nil {
			return err
		}
	}
	return nil
}

// unmap takes n pages out of the guest mapping.
func (r *RAM) unmap(page ident.PageNo, n uint64) error {
	if err := r.advise(uintptr(page)<<ident.PageShift, uintptr(n)<<ident.PageShift, unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("revoke %d guest pages at page 0x%x: %w", n, page, err)
	}
	return nil
}

// Resident is how much memory the contents take on this host now. Pages that are shared count at every guest that has them, as if it had them alone: the
// sum over guests is what they can come to take, and what they take is less.
func (r *RAM) Resident() (ident.Bytes, error) {
	var st unix.Stat_t
	if err := unix.Fstat(r.fd, &st); err != nil {
		return 0, fmt.Errorf("stat guest memory: %w", err)
	}
	return ident.Bytes(st.Blocks)*512 + r.Shared(), nil
}

// Close unmaps and frees the memory. Every vCPU must have left KVM_RUN for good, and no other method may run or be called later.
func (r *RAM) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	_, _, errno := unix.Syscall(unix.SYS_MUNMAP, r.addr, uintptr(r.size), 0)
	if r.alias != 0 {
		_, _, _ = unix.Syscall(unix.SYS_MUNMAP, r.alias, uintptr(r.size), 0)
	}
	err := unix.Close(r.fd)
	if errno != 0 {
		return fmt.Errorf("unmap guest memory: %w", errno)
	}
	if err != nil {
		return fmt.Errorf("close guest memory: %w", err)
	}
	return nil
}

func (r *RAM) advise(off, length uintptr, advice int) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, r.addr+off, length, uintptr(advice))
		switch errno {
		case 0:
			return nil
		case unix.EAGAIN, unix.EINTR:
			// A kernel resource was busy for a moment; nothing was refused.
			continue
		}
		return errno
	}
}

func (r *RAM) checkPage(op string, page ident.PageNo, buf []byte) error {
	if len(buf) != ident.PageSize {
		return fmt.Errorf("%s guest page 0x%x: buffer of %d bytes, want %d", op, page, len(buf), ident.PageSize)
	}
	return r.checkPages(op, page, 1)
}

func (r *RAM) checkPages(op string, page ident.PageNo, n uint64) error {
	if pages := r.Pages(); uint64(page) > pages || n > pages-uint64(page) {
		return fmt.Errorf("%s %d guest pages at page 0x%x: outside the guest's %d pages", op, n, page, pages)
	}
	return nil
}

func (r *RAM) checkRange(op string, off int64, n int) error {
	if off < 0 || uint64(off) > uint64(r.size) || uint64(n) > uint64(r.size)-uint64(off) {
		return fmt.Errorf("%s %d bytes of guest memory at 0x%x: outside the guest's %s", op, n, off, r.size)
	}
	return nil
}

// describe turns the errnos that mean "no memory" into ErrNoMemory with the size that was asked for.
func describe(op string, size ident.Bytes, err error) error {
	if errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return fmt.Errorf("%s (guest of %s): %w: %w", op, size, ErrNoMemory, err)
	}
	return fmt.Errorf("%s (guest of %s): %w", op, size, err)
}
