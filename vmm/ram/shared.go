package ram

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

// Guests that are started from one image hold its pages once, copy on write. Share maps runs of a sealed image privately over the guest mapping, under
// the KVM memory slot, and the kernel does the rest: a page that is only read is the image's own, the first write gives this process a copy.
//
//	            page of a run                          any other page
//	contents    the image's, or this process's copy    in the memfd
//	            as the guest mapping shows it
//	memfd       a hole                                 the contents
//
// So there are two places where contents can be, and nobody but this file knows which it is. Every method of RAM looks here first. What rests on the memfd
// alone cannot be had while there are runs: Watchable, the only way to a mapping whose faults can be told of, copies them into the memfd first, and refuses
// later ones. A mapping that is watched has no runs, therefore Go code may go to a run through the guest mapping: the kernel alone serves its faults.

// span is a run of pages.
type span struct {
	page ident.PageNo
	n    uint64
}

func (s span) end() ident.PageNo { return s.page + ident.PageNo(s.n) }

// shared is what of guest memory is not in the memfd.
type shared struct {
	some atomic.Bool // whether there are runs: who finds none need not take the lock

	mu      sync.RWMutex // protects all below; held for reading while contents are looked at, for writing while they change place
	runs    []span       // rising, apart
	ever    []span       // all runs that there were in this boot, in no order
	watched bool         // the guest mapping's faults are told of: there are no runs any more
}

// mostRuns bounds the mappings that a guest can make out of a run by giving single pages back: a process may have 65,530.
const mostRuns = 4096

// settleBytes is how much is copied into the memfd at once, so that little is there twice.
const settleBytes = 2 << 20

// Share makes n pages from page on those of an image from off on, a multiple of the page size, and tells whether it did. It does not where contents must be in
// the memfd: then they are to be written there. No vCPU may run yet that uses these pages.
func (r *RAM) Share(page ident.PageNo, im *Image, off int64, n uint64) (bool, error) {
	if err := r.checkPages("share", page, n); err != nil {
		return false, err
	}
	if n == 0 || off < 0 || off%ident.PageSize != 0 || off > int64(len(im.data)) || n > uint64(int64(len(im.data))-off)>>ident.PageShift {
		return false, fmt.Errorf("share %d guest pages at page 0x%x: an image of %d bytes has no such pages at %d", n, page, len(im.data), off)
	}
	s := &r.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.pager != nil || s.watched || len(s.runs) >= mostRuns {
		return false, nil
	}
	for _, part := range s.within(span{page, n}) {
		if err := r.own(part); err != nil {
			return false, err
		}
	}
	if err := r.punch(page, n); err != nil {
		return false, err
	}
	s.ever = append(s.ever, span{page, n})
	s.add(span{page, n})
	return true, r.mapAt(r.addr+uintptr(page)<<ident.PageShift, uintptr(n)<<ident.PageShift, unix.MAP_PRIVATE, im.fd, off)
}

// Watchable returns the guest mapping for userfaultfd, which reports faults of the memfd's pages only: all contents are there from now on. No vCPU may run; one
// that does nevertheless is thrown out with an error at its next write to a run, so nothing that it wrote is lost in silence.
func (r *RAM) Watchable() (uintptr, ident.Bytes, error) {
	s := &r.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watched = true
	for len(s.runs) > 0 {
		if err := r.settle(span{s.runs[0].page, min(s.runs[0].n, settleBytes>>ident.PageShift)}); err != nil {
			return 0, 0, fmt.Errorf("take a shared image's pages into guest memory: %w", err)
		}
	}
	s.ever = nil
	return r.addr, r.size, nil
}

// settle moves a piece of a run into the memfd. It requires shared.mu.
func (r *RAM) settle(piece span) error {
	at, length := r.addr+uintptr(piece.page)<<ident.PageShift, uintptr(piece.n)<<ident.PageShift
	protect := func(mode uintptr) error {
		if _, _, errno := unix.Syscall(unix.SYS_MPROTECT, at, length, mode); errno != 0 {
			return errno
		}
		return nil
	}
	if err := protect(unix.PROT_READ); err != nil {
		return err
	}
	off := int64(piece.page) << ident.PageShift
	if err := r.put(r.guestBytes(off, int(length)), off); err != nil {
		return errors.Join(err, r.punch(piece.page, piece.n), protect(unix.PROT_READ|unix.PROT_WRITE)) // it stays a run
	}
	return r.own(piece)
}

// own maps the memfd again where a run, or a part of one, was. It requires shared.mu.
func (r *RAM) own(part span) error {
	off := int64(part.page) << ident.PageShift
	if err := r.mapAt(r.addr+uintptr(off), uintptr(part.n)<<ident.PageShift, unix.MAP_SHARED, r.fd, off); err != nil {
		return err
	}
	r.shared.cut(part)
	return nil
}

// zeroShared drops the contents of those pages that are in runs: they are the memfd's again, which has holes there. Where that would make too many mappings,
// zeros are written.
func (r *RAM) zeroShared(pages span) error {
	s := &r.shared
	if !s.some.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, part := range s.within(pages) {
		run, _ := s.at(part.page)
		if len(s.runs) >= mostRuns && run.page < part.page && part.end() < run.end() {
			clear(r.guestBytes(int64(part.page)<<ident.PageShift, int(part.n)<<ident.PageShift))
		} else if err := r.own(part); err != nil {
			return err
		}
	}
	return nil
}

// readShared and writeShared are ReadAt and WriteAt where there are runs.
func (r *RAM) readShared(b []byte, off int64) (done int, err error) {
	s := &r.shared
	s.mu.RLock()
	defer s.mu.RUnlock()
	err = s.each(off, len(b), func(at int64, n int, run bool) error {
		got := n
		if to := b[at-off:][:n]; run {
			copy(to, r.guestBytes(at, n))
		} else if got, err = r.get(to, at); err != nil {
			return err
		}
		done += got
		return nil
	})
	return done, err
}

func (r *RAM) writeShared(b []byte, off int64) (done int, err error) {
	s := &r.shared
	s.mu.RLock()
	defer s.mu.RUnlock()
	err = s.each(off, len(b), func(at int64, n int, run bool) error {
		if from := b[at-off:][:n]; run {
			copy(r.guestBytes(at, n), from)
		} else if err := r.put(from, at); err != nil {
			return err
		}
		done += n
		return nil
	})
	return done, err
}

// Apart tells whether a page was in a run at any time since the guest booted: then its mapping is, or was, another one than the other pages', and no
// protection of it may be asked for.
func (r *RAM) Apart(page ident.PageNo) bool {
	s := &r.shared
	if s.mu.RLock(); len(s.ever) == 0 {
		s.mu.RUnlock()
		return false
	}
	defer s.mu.RUnlock()
	return slices.ContainsFunc(s.ever, func(e span) bool { return page >= e.page && page < e.end() })
}

// Shared is how much of guest memory is runs.
func (r *RAM) Shared() ident.Bytes {
	s := &r.shared
	s.mu.RLock()
	defer s.mu.RUnlock()
	var n uint64
	for _, run := range s.runs {
		n += run.n
	}
	return ident.Bytes(n) << ident.PageShift
}

// each calls f for the pieces of n bytes at off, each of which is either in runs or in the memfd. It requires mu.
func (s *shared) each(off int64, n int, f func(at int64, n int, run bool) error) error {
	for end := off + int64(n); off < end; {
		to, run := end, false
		for _, r := range s.runs {
			from, until := int64(r.page)<<ident.PageShift, int64(r.end())<<ident.PageShift
			if until <= off {
				continue
			}
			if run = from <= off; run {
				to = min(to, until)
			} else {
				to = min(to, from)
			}
			break
		}
		if err := f(off, int(to-off), run); err != nil {
			return err
		}
		off = to
	}
	return nil
}

// within returns what of pages is in runs. It requires mu.
func (s *shared) within(pages span) (parts []span) {
	for _, r := range s.runs {
		from, to := max(r.page, pages.page), min(r.end(), pages.end())
		if from < to {
			parts = append(parts, span{from, uint64(to - from)})
		}
	}
	return parts
}

// outside returns what of pages is not in runs. It requires mu.
func (s *shared) outside(pages span) (parts []span) {
	at := pages.page
	for _, in := range s.within(pages) {
		if in.page > at {
			parts = append(parts, span{at, uint64(in.page - at)})
		}
		at = in.end()
	}
	if at < pages.end() {
		parts = append(parts, span{at, uint64(pages.end() - at)})
	}
	return parts
}

// add requires mu, and that no run overlaps with the new one.
func (s *shared) add(run span) {
	i, _ := slices.BinarySearchFunc(s.runs, run, func(a, b span) int { return int(int64(a.page) - int64(b.page)) })
	s.runs = slices.Insert(s.runs, i, run)
	s.some.Store(true)
}

// cut takes a part of a run out. It requires mu.
func (s *shared) cut(part span) {
	i := slices.IndexFunc(s.runs, func(r span) bool { return part.page >= r.page && part.end() <= r.end() })
	r := s.runs[i]
	var rest []span
	if r.page < part.page {
		rest = append(rest, span{r.page, uint64(part.page - r.page)})
	}
	if part.end() < r.end() {
		rest = append(rest, span{part.end(), uint64(r.end() - part.end())})
	}
	s.runs = slices.Replace(s.runs, i, i+1, rest...)
	s.some.Store(len(s.runs) > 0)
}

// at returns the run that a page is in. It requires mu.
func (s *shared) at(page ident.PageNo) (span, bool) {
	for _, r := range s.runs {
		if page >= r.page && page < r.end() {
			return r, true
		}
	}
	return span{}, false
}

// next returns the first run that begins at page or later, or one at the end of memory. It requires mu.
func (s *shared) next(page ident.PageNo, pages uint64) span {
	for _, r := range s.runs {
		if r.page >= page {
			return r
		}
	}
	return span{page: ident.PageNo(pages)}
}

// forget says that the whole guest mapping is the memfd's. It requires mu.
func (s *shared) forget() {
	s.runs, s.ever = nil, nil
	s.some.Store(false)
}
