// Package uffd lets a thread of ours serve the guest's page faults, through Linux's userfaultfd on the guest mapping of a vmm/ram memory.
//
// What the guest may do with a page of the mapping, and what takes it from one state to the other:
//
//	       Map(ro), MapZero(ro)             Protect(off)
//	none ───────────────────────► read-only ─────────────► writable
//	 ▲                             ▲     │  ◄─────────────   │
//	 │                             │     │    Protect(on)    │
//	 │          Map, MapZero (rw)  └─────│───────────────────┤
//	 │ ──────────────────────────────────│─────────────────► │
//	 └───────────────────────────────────┴───────────────────┘
//	                ram.Revoke, ram.ZeroPage
//
// A touch that the state does not allow stops the vCPU's thread in the kernel and is read as a Fault: Missing (no contents in the memfd),
// Minor (contents, no access) or WriteProtect (a write to a read-only page). The thread goes on when the access it wants is there:
// every method that gives access also wakes who waits for that page.
//
// Rules that the kernel forces:
//   - The fd must stay open and served while a vCPU may run. One that is closed lets blocked threads go on with zeros: silent corruption.
//     One that is open and unserved blocks them for ever. So stop the vCPUs first, then Interrupt the reader, then Close.
//   - A woken thread retries its access and faults again if another page operation was faster: a second Fault for a page that is already
//     right is normal and is answered by mapping it again, which only wakes.
//   - MapZero's page must be a hole or hold zeros; the kernel keeps what is in the memfd.
//
// Lock order: none. Methods may be called from several threads at once; calls for one page are ordered by the caller.
package uffd

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

// Kind tells why a thread stopped.
type Kind uint8

// The kinds of Fault.
const (
	// Missing: the page has no contents in the memfd and no access.
	Missing Kind = iota
	// Minor: the page has contents in the memfd, but the guest has no access.
	Minor
	// WriteProtect: a write to a page that the guest may only read.
	WriteProtect
)

// String names the kind.
func (k Kind) String() string {
	switch k {
	case Missing:
		return "missing"
	case Minor:
		return "minor"
	case WriteProtect:
		return "write-protect"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Fault is one thread's stopped access.
type Fault struct {
	Page   ident.PageNo
	TID    uint32 // the thread that waits: a vCPU's, as KVM touches guest pages on the thread in KVM_RUN
	Kind   Kind
	Write  bool   // the access wants to write
	Offset uint16 // of the access in its page
}

var (
	// ErrInterrupted is what ReadFaults returns once Interrupt was called.
	ErrInterrupted = errors.New("userfaultfd reader interrupted")
	// ErrNoContents is returned by Map for a page that is a hole in the memfd: write contents first, or use MapZero.
	ErrNoContents = errors.New("page has no contents to map")
	// ErrUnsupported is wrapped by Open's errors when the kernel lacks a feature: the host is too old, see OldestKernel.
	ErrUnsupported = errors.New("userfaultfd lacks a needed feature")
)

// OldestKernel is the oldest Linux release that has every feature needed. (6.1 has all but CONTINUE with write protection.)
const OldestKernel = "6.6"

// FD is an open userfaultfd and the one mapping it watches.
type FD struct {
	fd     int
	stop   int // eventfd: readable once Interrupt was called
	base   uintptr
	pages  uint64
	mode   uint64 // what it is registered for
	raw    []message
	closed atomic.Bool
}

// Memory is guest memory whose faults can be told of: Watchable brings all its contents to where that is so, and returns its mapping, a whole number of pages of
// a shared memfd.
type Memory interface {
	Watchable() (addr uintptr, size ident.Bytes, err error)
}

// Open is Reserve and Watch in one.
func Open(m Memory) (*FD, error) {
	r, err := Reserve()
	if err != nil {
		return nil, err
	}
	return r.Watch(m)
}

// OpenProtect is Open for write-protect faults only: pages come and go as if nobody watched, but for those that Protect was told to protect.
func OpenProtect(addr uintptr, size ident.Bytes) (*FD, error) {
	r, err := Reserve()
	if err != nil {
		return nil, err
	}
	return r.WatchProtect(addr, size)
}

// Register registers the mapping again, after another was put in its place.
func (f *FD) Register() error {
	if err := register(f.fd, f.base, uintptr(f.pages<<ident.PageShift), f.mode); err != nil {
		return fmt.Errorf("register guest memory of %d pages with userfaultfd again: %w", f.pages, err)
	}
	return nil
}

// Reserved is a userfaultfd that watches nothing yet. A process may open one while it has the right to, and use it when it has not any more.
type Reserved struct {
	fd, stop int
}

// Reserve opens a userfaultfd with the features that Cellvisor needs.
func Reserve() (*Reserved, error) {
	fd, err := open(neededFeatures)
	if err != nil {
		return nil, err
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("eventfd for userfaultfd: %w", err)
	}
	return &Reserved{fd: fd, stop: stop}, nil
}

// Watch registers memory for missing, minor and write-protect faults. What was reserved is used up, whether Watch fails or not.
func (r *Reserved) Watch(m Memory) (*FD, error) {
	addr, size, err := m.Watchable()
	if err != nil {
		unix.Close(r.fd)
		unix.Close(r.stop)
		return nil, err
	}
	return r.watch(addr, size, registerMissing|registerMinor|registerWP)
}

// WatchProtect is Watch of the mapping of size bytes at addr for write-protect faults only.
func (r *Reserved) WatchProtect(addr uintptr, size ident.Bytes) (*FD, error) {
	return r.watch(addr, size, registerWP)
}

func (r *Reserved) watch(addr uintptr, size ident.Bytes, mode uint64) (*FD, error) {
	f := &FD{fd: r.fd, stop: r.stop, base: addr, pages: size.Pages(), mode: mode}
	if err := register(r.fd, addr, uintptr(size), mode); err != nil {
		f.Close()
		return nil, fmt.Errorf("register guest memory of %s with userfaultfd: %w", size, err)
	}
	return f, nil
}

// Interrupt makes the current and every later ReadFaults return ErrInterrupted.
func (f *FD) Interrupt() {
	// The counter cannot overflow in practice, and a full one is readable as well.
	_, _ = unix.Write(f.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// Close gives the mapping back to the kernel's own handling. No vCPU may run and no ReadFaults be under way. See the rules above.
func (f *FD) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	unix.Close(f.stop)
	if err := unix.Close(f.fd); err != nil {
		return fmt.Errorf("close userfaultfd: %w", err)
	}
	return nil
}

// ReadFaults waits for faults and stores up to len(buf) of them; it returns how many. It belongs to one thread at a time, best a locked one
// of high priority. It allocates nothing after its first call with the longest buf.
func (f *FD) ReadFaults(buf []Fault) (int, error) {
	if len(buf) == 0 {
		return 0, nil
	}
	if len(f.raw) < len(buf) {
		f.raw = make([]message, len(buf))
	}
	for {
		n, err := readMessages(f.fd, f.raw[:len(buf)])
		switch err {
		case nil:
			if n = f.decode(buf, f.raw[:n]); n > 0 {
				return n, nil
			}
		case unix.EAGAIN:
			if err := f.wait(); err != nil {
				return 0, err
			}
		case unix.EINTR:
		default:
			return 0, fmt.Errorf("read userfaultfd: %w", err)
		}
	}
}

// wait blocks until there is a fault to read or Interrupt was called.
func (f *FD) wait() error {
	fds := [2]unix.PollFd{{Fd: int32(f.fd), Events: unix.POLLIN}, {Fd: int32(f.stop), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds[:], -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("poll userfaultfd: %w", err)
		}
		if fds[1].Revents != 0 {
			return ErrInterrupted
		}
		return nil
	}
}

// Map lets the guest reach n pages from page on, whose contents are in the memfd already, and wakes who waits for them. A page that is
// mapped already gets the access asked for. Errors: ErrNoContents for a hole (pages before it are mapped).
func (f *FD) Map(page ident.PageNo, n uint64, writable bool) error {
	if err := f.check("map", page, n); err != nil {
		return err
	}
	for n > 0 {
		done, err := f.Continue(page, n, !writable)
		page, n = page+ident.PageNo(done), n-done
		switch {
		case err == nil:
		case err == unix.EEXIST:
			// Mapped already, by an earlier fault on the same page: only the access may be wrong, and somebody may wait.
			if err := f.adjust(page, writable); err != nil {
				return err
			}
			page, n = page+1, n-1
		case err == unix.EFAULT || err == unix.ENOENT:
			return fmt.Errorf("map guest page 0x%x: %w", page, ErrNoContents)
		default:
			return fmt.Errorf("map guest page 0x%x: %w", page, err)
		}
	}
	return nil
}

// MapZero lets the guest reach n pages of zeros from page on and wakes who waits for them. Each page must be a hole or hold zeros: contents
// that are there stay (ram.ZeroPage drops them).
func (f *FD) MapZero(page ident.PageNo, n uint64, writable bool) error {
	if err := f.check("map zero", page, n); err != nil {
		return err
	}
	for n > 0 {
		done, err := f.copyZero(page, n, !writable)
		page, n = page+ident.PageNo(done), n-done
		switch {
		case err == nil:
		case err == unix.EEXIST:
			// In the memfd already, mapped or not.
			if err := f.Map(page, 1, writable); err != nil {
				return err
			}
			page, n = page+1, n-1
		case err == unix.ENOMEM || err == unix.ENOSPC:
			return fmt.Errorf("map guest page 0x%x of zeros: no memory left on this host: %w", page, err)
		default:
			return fmt.Errorf("map guest page 0x%x of zeros: %w", page, err)
		}
	}
	return nil
}

// Protect takes write access to n mapped pages from page on away (on), before it returns, or gives it and wakes who waits (off). Pages that
// the guest cannot reach at all stay so: they are mapped with the access that Map is given.
func (f *FD) Protect(page ident.PageNo, n uint64, on bool) error {
	if err := f.check("protect", page, n); err != nil || n == 0 {
		return err
	}
	if err := f.writeProtect(page, n, on); err != nil {
		return fmt.Errorf("write-protect (%t) %d guest pages at page 0x%x: %w", on, n, page, err)
	}
	return nil
}

// Wake lets the threads that wait for any of n pages from page on try again.
func (f *FD) Wake(page ident.PageNo, n uint64) error {
	if err := f.check("wake", page, n); err != nil || n == 0 {
		return err
	}
	if err := f.wake(page, n); err != nil {
		return fmt.Errorf("wake waiters of %d guest pages at page 0x%x: %w", n, page, err)
	}
	return nil
}

// adjust sets the access of one mapped page and wakes its waiters.
func (f *FD) adjust(page ident.PageNo, writable bool) error {
	if err := f.writeProtect(page, 1, !writable); err != nil {
		return fmt.Errorf("set access of guest page 0x%x: %w", page, err)
	}
	if writable {
		return nil // taking the protection away has woken them
	}
	return f.Wake(page, 1)
}

func (f *FD) check(op string, page ident.PageNo, n uint64) error {
	if uint64(page) > f.pages || n > f.pages-uint64(page) {
		return fmt.Errorf("%s %d guest pages at page 0x%x: outside the guest's %d pages", op, n, page, f.pages)
	}
	return nil
}

func (f *FD) addr(page ident.PageNo) uint64 { return uint64(f.base) + uint64(page)<<ident.PageShift }
