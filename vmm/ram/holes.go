package ram

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

// NextData returns the first page from page on that has contents, or Pages if there is none.
func (r *RAM) NextData(page ident.PageNo) (ident.PageNo, error) {
	if r.pager != nil {
		return r.pager.nextPage(page, true), nil
	}
	s := &r.shared
	s.mu.RLock()
	defer s.mu.RUnlock()
	if _, in := s.at(page); in {
		return page, nil
	}
	const seekData = 3 // SEEK_DATA
	next, err := r.seek(page, seekData)
	if err != nil {
		return 0, fmt.Errorf("find contents of guest memory from page 0x%x on: %w", page, err)
	}
	return min(next, s.next(page, r.Pages()).page), nil
}

// NextHole returns the first page from page on that has no contents, or Pages if there is none.
func (r *RAM) NextHole(page ident.PageNo) (ident.PageNo, error) {
	if r.pager != nil {
		return r.pager.nextPage(page, false), nil
	}
	s := &r.shared
	s.mu.RLock()
	defer s.mu.RUnlock()
	for {
		if run, in := s.at(page); in {
			page = run.end()
			continue
		}
		const seekHole = 4 // SEEK_HOLE
		next, err := r.seek(page, seekHole)
		if err != nil {
			return 0, fmt.Errorf("find a hole in guest memory from page 0x%x on: %w", page, err)
		}
		if _, in := s.at(next); !in {
			return next, nil
		}
		page = next
	}
}

// seek looks for data or a hole in the memfd from page on.
func (r *RAM) seek(page ident.PageNo, whence int) (ident.PageNo, error) {
	off, err := unix.Seek(r.fd, int64(page)<<ident.PageShift, whence)
	if errors.Is(err, unix.ENXIO) {
		return ident.PageNo(r.Pages()), nil
	}
	return ident.PageNo(off >> ident.PageShift), err
}
