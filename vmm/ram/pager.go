package ram

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/paging"
)

// A Pager keeps no more of a guest's memory in this host's than a limit says. Who uses RAM does not notice: contents that are not in the memfd are read
// from where they are, or brought in first. Package paging decides what leaves; the pager moves it, always after the guest has lost access:
//
//	guest mapping --madvise--> memfd --pwrite to the store, punch a hole--> store
//	      ^                     ^  |
//	      |                     |  '--nothing to write: zeros, or a disk block equals the page--> dropped
//	      '--- Admit, by the ---'<--read, pwrite------------------------------------------------'
//	           fault's thread
//
// All contents move under mu, so a page is never seen on its way. Lock order: the page protocol's lock, the pager's, that of the disk that is read.
//
// What cannot be written out stays in memory, above the limit, and Stats says why; it is tried again a little later. What cannot be brought in again is
// lost: the call that needs it fails, and so does the VM part.
type Pager struct {
	r     *RAM
	store Store

	mu     sync.Mutex // protects all below
	table  *paging.Table
	blocks map[ident.PageNo]Block // pages that equal a disk block, wherever they are
	page   [ident.PageSize]byte
	aged   []ident.PageNo
	stats  PagerStats
	retry  time.Time // after a failure: when it is tried again
	spans  [64]ident.Micros
	next   int
}

// Store is where pages that leave memory go, by slot.
type Store interface {
	io.ReaderAt
	io.WriterAt
	// Expect says that a slot is read next: what has to come from afar may be sent for. It does not wait.
	Expect(slot uint32)
	// Free says that a slot is not needed any more.
	Free(slot uint32)
}

// Block names a block of the page's size on one of the VM's disks, and where it can be read.
type Block struct {
	Disk uint8
	No   uint64
	From io.ReaderAt
}

// PagerStats are counters since the pager was made, and what is where now.
type PagerStats struct {
	In, Out, Dropped, Zero uint64 // pages brought in, written out, dropped because a disk has them, dropped because they are zero
	Again                  uint64 // pages that were used again before they left: second chances
	InMicros               uint64 // sum
	InMicrosTypical        ident.Micros
	Resident, Limit        ident.Bytes
	File                   ident.Bytes // in the store
	Error                  string      // why pages cannot be written out, "" if they can
}

// pagerRetry is how long the pager waits after a failure to write.
const pagerRetry = time.Second

// pagerBatch is how many pages leave at once at most, so that nobody waits long.
const pagerBatch = 32

// Page begins to keep the memory within a limit. No contents may be there yet.
func (r *RAM) Page(store Store, limit, file ident.Bytes) *Pager {
	p := &Pager{r: r, store: store, blocks: map[ident.PageNo]Block{}}
	p.table = paging.New(r.Pages(), pagesOf(limit), pagesOf(file), "")
	p.table.OnFree = store.Free
	r.pager = p
	return p
}

func pagesOf(n ident.Bytes) int { return int(max(n, paging.LeastBytes) >> ident.PageShift) }

// SetLimit changes how much may be in memory and in the store. What is too much leaves in pieces, before it returns.
func (p *Pager) SetLimit(limit, file ident.Bytes) {
	p.mu.Lock()
	p.table.SetLimit(pagesOf(limit), int(file>>ident.PageShift))
	p.retry = time.Time{}
	p.mu.Unlock()
	p.Settle()
}

// Limit is how much may be in memory.
func (p *Pager) Limit() ident.Bytes {
	p.mu.Lock()
	defer p.mu.Unlock()
	return ident.Bytes(p.table.Limit()) << ident.PageShift
}

// Settle lets leave what is above the limit, for instance because it could not leave before.
func (p *Pager) Settle() {
	for more := true; more; {
		p.mu.Lock()
		before := p.table.Resident()
		p.makeRoom(0)
		more = p.table.Over(0) > 0 && p.table.Resident() < before
		p.mu.Unlock()
	}
}

// Stats returns the counters.
func (p *Pager) Stats() PagerStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Resident = ident.Bytes(p.table.Resident()) << ident.PageShift
	s.Limit = ident.Bytes(p.table.Limit()) << ident.PageShift
	s.File = ident.Bytes(p.table.Count(paging.Out)) << ident.PageShift
	s.InMicrosTypical = median(p.spans[:min(p.next, len(p.spans))])
	return s
}

// Admit has f give the guest access to a page, whose contents are in the memfd by then, or which is a hole if its contents are zeros; f tells whether it
// filled that with zeros. The page stays where it is meanwhile.
func (r *RAM) Admit(page ident.PageNo, f func() (filled bool, err error)) error {
	p := r.pager
	if p == nil {
		_, err := f()
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	where, _ := p.table.Where(page)
	switch where {
	case paging.Inactive:
		p.stats.Again++
	case paging.Absent:
		p.makeRoom(1) // f may fill it
	case paging.Out, paging.Backed:
		if err := p.bringIn(page); err != nil {
			return err
		}
	}
	filled, err := f()
	if err != nil {
		return err
	}
	if filled {
		p.table.Enter(page)
	}
	p.table.Map(page)
	return nil
}

// Mapped tells whether the guest can reach a page as far as the pager knows: without one, yes.
func (r *RAM) Mapped(page ident.PageNo) bool {
	p := r.pager
	if p == nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	where, _ := p.table.Where(page)
	return where == paging.Active
}

// KnowBlock says that a page equals a disk block until ForgetBlock: it need not be written anywhere else to leave memory.
func (p *Pager) KnowBlock(page ident.PageNo, b Block) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch where, _ := p.table.Where(page); where {
	case paging.Absent:
		return
	case paging.Out: // the guest wrote to its disk what is in the store: that copy is one too many
		p.table.Back(page)
		p.stats.Dropped++
	}
	p.blocks[page] = b
}

// ForgetBlock says that a page and its block are about to differ. If only the disk has the contents they are brought in first.
func (p *Pager) ForgetBlock(page ident.PageNo) error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.blocks[page]; !known {
		return nil
	}
	if where, _ := p.table.Where(page); where == paging.Backed {
		if err := p.bringIn(page); err != nil {
			return err
		}
	}
	delete(p.blocks, page)
	return nil
}

// Known calls f, in rising order, for each page that is known to equal a block for which want holds. f may call the pager.
func (p *Pager) Known(want func(ident.PageNo, Block) bool, f func(ident.PageNo)) {
	if p == nil {
		return
	}
	var pages []ident.PageNo
	p.mu.Lock()
	for page, b := range p.blocks {
		if want(page, b) {
			pages = append(pages, page)
		}
	}
	p.mu.Unlock()
	slices.Sort(pages)
	for _, page := range pages {
		f(page)
	}
}

// OnlyOnDisk calls f for each page whose contents only a disk block has.
func (p *Pager) OnlyOnDisk(f func(ident.PageNo)) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.table.Pages(paging.Backed, f)
}

// bringIn makes a page that is out or backed resident. It requires mu.
func (p *Pager) bringIn(page ident.PageNo) error {
	began := time.Now()
	if where, slot := p.table.Where(page); where == paging.Out {
		p.store.Expect(slot)
	}
	p.makeRoom(1) // while it comes, and while the vCPU that wants it is out of the guest: taking mappings away need not interrupt that one
	if err := p.fetch(page, p.page[:]); err != nil {
		return err
	}
	if err := p.r.put(p.page[:], int64(page)<<ident.PageShift); err != nil {
		return err
	}
	p.table.Enter(page)
	span := time.Since(began)
	p.stats.In++
	p.stats.InMicros += uint64(span.Microseconds())
	p.spans[p.next%len(p.spans)] = ident.Micros(span.Microseconds())
	p.next++
	return nil
}

// fetch reads the contents of a page that is not in memory. It requires mu.
func (p *Pager) fetch(page ident.PageNo, buf []byte) error {
	switch where, slot := p.table.Where(page); where {
	case paging.Out:
		if _, err := p.store.ReadAt(buf, int64(slot)<<ident.PageShift); err != nil {
			return fmt.Errorf("guest page 0x%x cannot be read back from where it was paged out to: %w", page, err)
		}
	case paging.Backed:
		b := p.blocks[page]
		if _, err := b.From.ReadAt(buf, int64(b.No)<<ident.PageShift); err != nil {
			return fmt.Errorf("guest page 0x%x, which equals block %d of disk %d, cannot be read back: %w", page, b.No, b.Disk, err)
		}
	default:
		clear(buf)
	}
	return nil
}

// makeRoom lets pages leave until n more have room, or until that is not possible. It requires mu.
func (p *Pager) makeRoom(n int) {
	over := min(p.table.Over(n), pagerBatch)
	if over == 0 || p.stats.Error != "" && time.Now().Before(p.retry) {
		return
	}
	p.aged = p.table.Age(p.table.Wanting(over), p.aged[:0])
	p.revoke(p.aged)
	for range over {
		page, ok := p.table.Victim()
		if !ok {
			return
		}
		if err := p.evict(page); err != nil {
			p.table.Stay(page)
			p.stats.Error, p.retry = err.Error(), time.Now().Add(pagerRetry)
			return
		}
		p.stats.Error = ""
	}
}

// revoke takes the guest's access to pages away, runs of them at once. It requires mu.
func (p *Pager) revoke(pages []ident.PageNo) {
	for i := 0; i < len(pages); {
		j := i + 1
		for j < len(pages) && pages[j] == pages[j-1]+1 {
			j++
		}
		// The range is the memory's own, and madvise has nothing else to complain of.
		if err := p.r.unmap(pages[i], uint64(j-i)); err != nil {
			panic("ram: " + err.Error())
		}
		i = j
	}
}

// evict makes an inactive page leave memory. It requires mu.
func (p *Pager) evict(page ident.PageNo) error {
	if _, known := p.blocks[page]; known {
		if err := p.r.punch(page, 1); err != nil {
			return err
		}
		p.table.Back(page)
		p.stats.Dropped++
		return nil
	}
	if _, err := p.r.get(p.page[:], int64(page)<<ident.PageShift); err != nil {
		return err
	}
	if bytes.Equal(p.page[:], zeros[:]) {
		if err := p.r.punch(page, 1); err != nil {
			return err
		}
		p.table.Drop(page, 1)
		p.stats.Zero++
		return nil
	}
	slot, ok := p.table.Slot()
	if !ok {
		return fmt.Errorf("the paging file is full: it may have %s", ident.Bytes(p.table.Slots())<<ident.PageShift)
	}
	if _, err := p.store.WriteAt(p.page[:], int64(slot)<<ident.PageShift); err != nil {
		p.table.Refuse(slot)
		return fmt.Errorf("page out: %w", err)
	}
	if err := p.r.punch(page, 1); err != nil {
		p.table.Refuse(slot)
		return err
	}
	p.table.Leave(page, slot)
	p.stats.Out++
	return nil
}

var zeros [ident.PageSize]byte

func median(spans []ident.Micros) ident.Micros {
	if len(spans) == 0 {
		return 0
	}
	sorted := slices.Clone(spans)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}
