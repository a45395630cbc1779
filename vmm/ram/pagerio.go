package ram

import (
	"maps"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/paging"
)

// What RAM's methods do when there is a pager.

// readAt reads guest memory page by page, wherever it is.
func (p *Pager) readAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for done := 0; done < len(b); {
		page, skip := ident.PageNo((off+int64(done))>>ident.PageShift), int((off+int64(done))%ident.PageSize)
		n := min(len(b)-done, ident.PageSize-skip)
		to := b[done : done+n]
		switch where, _ := p.table.Where(page); where {
		case paging.Active, paging.Inactive:
			if _, err := p.r.get(to, off+int64(done)); err != nil {
				return done, err
			}
		case paging.Absent:
			clear(to)
		default:
			if err := p.fetch(page, p.page[:]); err != nil {
				return done, err
			}
			copy(to, p.page[skip:])
		}
		done += n
	}
	return len(b), nil
}

// writeAt writes guest memory page by page. A page that is not written whole is brought in first.
func (p *Pager) writeAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for done := 0; done < len(b); {
		page, skip := ident.PageNo((off+int64(done))>>ident.PageShift), int((off+int64(done))%ident.PageSize)
		n := min(len(b)-done, ident.PageSize-skip)
		if err := p.hold(page, n < ident.PageSize); err != nil {
			return done, err
		}
		if err := p.r.put(b[done:done+n], off+int64(done)); err != nil {
			return done, err
		}
		done += n
	}
	return len(b), nil
}

// hold makes a page resident for a write by way of the alias. Its contents are wanted if not all of it is written. It requires mu.
func (p *Pager) hold(page ident.PageNo, contents bool) error {
	switch where, _ := p.table.Where(page); {
	case where == paging.Active || where == paging.Inactive:
		return nil
	case contents && where != paging.Absent:
		return p.bringIn(page)
	}
	p.makeRoom(1)
	p.table.Enter(page)
	return nil
}

// atWord has f access a word of a page through the alias.
func (p *Pager) atWord(off int64, f func()) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.hold(ident.PageNo(off>>ident.PageShift), true); err != nil {
		return err
	}
	f()
	return nil
}

// revoked says that the guest lost access to pages; dropped that their contents are gone.
func (p *Pager) revoked(page ident.PageNo, n uint64, f func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.table.Unmap(page, n)
	return f()
}

func (p *Pager) dropped(page ident.PageNo, n uint64, f func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.table.Drop(page, n)
	if n == 1 {
		delete(p.blocks, page)
	} else {
		maps.DeleteFunc(p.blocks, func(known ident.PageNo, _ Block) bool { return known >= page && uint64(known-page) < n })
	}
	return f()
}

// nextPage returns the first page from page on that has contents anywhere, or, if not here, that has none.
func (p *Pager) nextPage(page ident.PageNo, here bool) ident.PageNo {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.table.Next(page, here)
}

// reset says that all contents are gone.
func (p *Pager) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.table.Reset()
	clear(p.blocks)
}
