package worker

import (
	"github.com/cellvisor/cellvisor/ident"
)

// deviceBatch is how many pages are pinned at once for one access.
const deviceBatch = 64

// deviceMemory is guest memory as devices and the loader reach it: each page is brought here by the protocol and held for the access. It
// implements machine.Backing. What it writes is noted for the next checkpoint, since KVM's log does not see it.
type deviceMemory struct{ w *Worker }

// WriteAt implements io.WriterAt.
func (d deviceMemory) WriteAt(b []byte, off int64) (int, error) {
	return d.each(b, off, true, d.w.plane.ram.WriteAt)
}

// ReadAt implements io.ReaderAt.
func (d deviceMemory) ReadAt(b []byte, off int64) (int, error) {
	return d.each(b, off, false, d.w.plane.ram.ReadAt)
}

// Free drops whole pages, whose contents nobody needs: they are Zero again. On a VM with other parts they stay, since somebody else may have them by now.
func (d deviceMemory) Free(off, n int64) error {
	p := d.w.plane
	if d.w.spans() {
		return nil
	}
	first, count := ident.PageNo(uint64(off)>>ident.PageShift), uint64(n)>>ident.PageShift
	if off < 0 || count == 0 || uint64(first)+count > p.ram.Pages() {
		return nil
	}
	p.written(first, first+ident.PageNo(count)-1)
	if err := p.ram.Zero(first, count); err != nil {
		return err
	}
	for page := first; page < first+ident.PageNo(count); page++ {
		p.dirty.mark(page)
	}
	return nil
}

// Load16 reads an aligned word.
func (d deviceMemory) Load16(off int64) (value uint16, err error) {
	err = d.pinned(off, 2, false, func() error {
		value, err = d.w.plane.ram.Load16(off)
		return err
	})
	return value, err
}

// Store16 writes an aligned word.
func (d deviceMemory) Store16(off int64, value uint16) error {
	return d.pinned(off, 2, true, func() error { return d.w.plane.ram.Store16(off, value) })
}

// each does an access in pieces of at most deviceBatch pages.
func (d deviceMemory) each(b []byte, off int64, write bool, access func([]byte, int64) (int, error)) (int, error) {
	done := 0
	for done < len(b) {
		first := ident.PageNo(uint64(off+int64(done)) >> ident.PageShift)
		end := min(int64(first+deviceBatch)<<ident.PageShift, off+int64(len(b)))
		n := int(end - off - int64(done))
		err := d.pinned(off+int64(done), n, write, func() error {
			_, err := access(b[done:done+n], off+int64(done))
			return err
		})
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// pinned does an access of n bytes while their pages are held here. They are pinned in rising order, as all who pin several pages do.
func (d deviceMemory) pinned(off int64, n int, write bool, access func() error) error {
	p := d.w.plane
	first := ident.PageNo(uint64(off) >> ident.PageShift)
	last := ident.PageNo(uint64(off+int64(n)-1) >> ident.PageShift)
	if uint64(last) >= p.ram.Pages() || off < 0 || n <= 0 {
		return access() // says what is wrong
	}
	if d.w.spans() {
		var tokens []uint64
		defer func() {
			for i, token := range tokens {
				p.unpin(first+ident.PageNo(i), token)
			}
		}()
		var held []<-chan error
		for page := first; page <= last; page++ {
			token, answer := p.pin(page, write)
			tokens, held = append(tokens, token), append(held, answer)
		}
		for _, answer := range held {
			if err := <-answer; err != nil {
				return err
			}
		}
	}
	if write {
		p.written(first, last)
	}
	if err := access(); err != nil {
		return err
	}
	if write {
		p.written(first, last) // once more: another request may have paired a page meanwhile
	}
	for page := first; write && page <= last; page++ {
		p.dirty.mark(page)
	}
	return nil
}

// written says that a device is about to write pages, which passes the guest mapping's protection.
func (p *plane) written(first, last ident.PageNo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cache == nil {
		return
	}
	for page := first; page <= last; page++ {
		p.cache.leaves(page)
	}
}
