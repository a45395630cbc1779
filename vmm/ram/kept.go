package ram

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

// Kept is guest memory of an earlier boot: pages that are known to hold disk blocks, which are read from it and never written. Its methods may be
// called by several goroutines at once, but for Close.
type Kept struct {
	fd    int
	pages uint64
}

// Renew makes guest memory zero by putting a new memfd in the place of the old one, under the same mappings and addresses: nothing is cleared,
// whatever its size. The old memory comes back, with all its contents but
// those that were an image's. No vCPU may run, no device may work on guest memory, and a userfaultfd
// on the guest mapping must be registered again, since the mapping is a new one.
func (r *RAM) Renew() (*Kept, error) {
	old, err := unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keep guest memory of the former boot: %w", err)
	}
	k := &Kept{fd: old, pages: r.Pages()}
	fresh, err := unix.MemfdCreate("cellvisor-guest", unix.MFD_CLOEXEC)
	if err != nil {
		k.Close()
		return nil, describe("memfd_create for guest memory", r.size, err)
	}
	defer unix.Close(fresh)
	if err := unix.Ftruncate(fresh, int64(r.size)); err != nil {
		k.Close()
		return nil, describe("size guest memory", r.size, err)
	}
	if err := unix.Dup3(fresh, r.fd, unix.O_CLOEXEC); err != nil {
		k.Close()
		return nil, fmt.Errorf("replace guest memory: %w", err)
	}
	if r.pager != nil {
		r.pager.reset()
	}
	r.shared.mu.Lock()
	defer r.shared.mu.Unlock()
	r.shared.forget()
	for _, at := range []uintptr{r.addr, r.alias} {
		if at == 0 {
			continue
		}
		if err := r.mapOver(at); err != nil {
			k.Close()
			return nil, err
		}
	}
	return k, nil
}

// mapOver maps the memfd at an address where an older one is mapped.
func (r *RAM) mapOver(at uintptr) error {
	return r.mapAt(at, uintptr(r.size), unix.MAP_SHARED, r.fd, 0)
}

// mapAt puts another mapping of a file in the place of one of guest memory. Whoever touches it meanwhile finds the old or the new one.
func (r *RAM) mapAt(at, length uintptr, how int, fd int, off int64) error {
	_, _, errno := unix.Syscall6(unix.SYS_MMAP, at, length, unix.PROT_READ|unix.PROT_WRITE, uintptr(how|unix.MAP_NORESERVE|unix.MAP_FIXED), uintptr(fd), uintptr(off))
	if errno != 0 {
		return describe("map guest memory again", r.size, errno)
	}
	for _, advice := range mappingAdvice {
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, at, length, uintptr(advice))
		if errno != 0 && errno != unix.EINVAL {
			return describe("advise on guest memory", r.size, errno)
		}
	}
	return nil
}

// ReadPage reads a page as it was when its boot ended; buf is ident.PageSize long.
func (k *Kept) ReadPage(page ident.PageNo, buf []byte) error {
	if len(buf) != ident.PageSize || uint64(page) >= k.pages {
		return fmt.Errorf("read kept page 0x%x into %d bytes: there are %d pages", page, len(buf), k.pages)
	}
	for {
		n, err := unix.Pread(k.fd, buf, int64(page)<<ident.PageShift)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("read kept page 0x%x: %w", page, err)
		case n != len(buf):
			return fmt.Errorf("read kept page 0x%x: %d bytes", page, n)
		default:
			return nil
		}
	}
}

// Only gives all memory back but that of the given pages, which rise.
func (k *Kept) Only(pages []ident.PageNo) error {
	next := ident.PageNo(0)
	for _, page := range append(pages[:len(pages):len(pages)], ident.PageNo(k.pages)) {
		if page > next {
			if err := k.Drop(next, uint64(page-next)); err != nil {
				return err
			}
		}
		next = page + 1
	}
	return nil
}

// Drop gives the memory of n pages back.
func (k *Kept) Drop(page ident.PageNo, n uint64) error {
	for {
		err := unix.Fallocate(k.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(page)<<ident.PageShift, int64(n)<<ident.PageShift)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("drop %d kept pages at page 0x%x: %w", n, page, err)
		}
		return nil
	}
}

// Resident is how much memory the kept pages take.
func (k *Kept) Resident() (ident.Bytes, error) {
	var st unix.Stat_t
	if err := unix.Fstat(k.fd, &st); err != nil {
		return 0, fmt.Errorf("stat kept memory: %w", err)
	}
	return ident.Bytes(st.Blocks) * 512, nil
}

// Close gives everything back. No other method may run or be called later.
func (k *Kept) Close() error { return unix.Close(k.fd) }
