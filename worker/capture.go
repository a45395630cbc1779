package worker

import (
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link/priority"
	"github.com/cellvisor/cellvisor/vmm/ram"
)

// arena is where a cut's pages are copied while the guest stands still. Everything else that is done with them, from looking for zeros to
// sending them, is done from here while the guest runs on. It lies outside the Go heap: a pause is no time to have memory cleared.
//
//	free --cut--> filled --packed, and a later cut has come--> free
//
// The arena of the last cut stays filled until the next one, so that a page written before both can travel as what changed in between.
type arena struct {
	buf   []byte
	pages []ident.PageNo // rising; page i's contents are at buf[i*PageSize]
	disk  []onDisk       // of these, what equals a disk block as of this cut; rising
	users atomic.Int32   // 0: free

	number, seq uint64      // of the cut that filled it, and of the protection it was made under
	booted      ident.Epoch // and of the guest's boot
}

// arenaSlack is how many pages more than the last cut's an arena has room for.
const arenaSlack = 256

func (a *arena) page(i int) []byte { return a.buf[i<<ident.PageShift : (i+1)<<ident.PageShift] }

// take returns a free arena of the pool with room for n pages. Growing one costs time, so room is made ahead, while the guest runs.
func (c *cutter) take(n int) (*arena, error) {
	for _, a := range c.arenas {
		if a.users.Load() != 0 {
			continue
		}
		a.users.Store(1)
		if err := a.grow(n); err != nil {
			a.users.Store(0)
			return nil, err
		}
		a.pages, a.disk = a.pages[:0], a.disk[:0]
		return a, nil
	}
	a := &arena{}
	a.users.Store(1)
	if err := a.grow(n); err != nil {
		return nil, err
	}
	c.arenas = append(c.arenas, a)
	return a, nil
}

func (a *arena) grow(n int) error {
	if len(a.buf) >= n<<ident.PageShift {
		return nil
	}
	if a.buf != nil {
		_ = unix.Munmap(a.buf)
		a.buf = nil
	}
	var err error
	a.buf, err = ram.Scratch((n + n/4 + arenaSlack) << ident.PageShift)
	return err
}

func (a *arena) done() { a.users.Add(-1) }

// copyApart is how many pages are worth another thread to copy them, and copyPiece how many a thread takes at once: one that gets no CPU takes none.
const (
	copyApart = 512
	copyPiece = 128
)

// fill copies the arena's pages out of guest memory, on as many CPUs as that is worth: the vCPUs leave theirs free.
func (a *arena) fill(memory *ram.RAM) error {
	n := len(a.pages)
	threads := min(runtime.NumCPU(), 4, 1+n/copyApart)
	if threads == 1 {
		return memory.CopyPages(a.buf, a.pages)
	}
	var next atomic.Int64
	var failed atomic.Pointer[error]
	work := func() {
		for from := int(next.Add(copyPiece)) - copyPiece; from < n; from = int(next.Add(copyPiece)) - copyPiece {
			if err := memory.CopyPages(a.buf[from<<ident.PageShift:], a.pages[from:min(n, from+copyPiece)]); err != nil {
				failed.Store(&err)
			}
		}
	}
	var others sync.WaitGroup
	for range threads - 1 {
		others.Go(work)
	}
	work()
	others.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// captureApart is how many vCPUs are worth another thread to capture them: one takes 0.1 to 0.15 ms, waking a thread about as long.
const captureApart = 3

// captureVCPUs adds the vCPUs' states to a share. The guard must hold them.
func (w *Worker) captureVCPUs(s *share) error {
	vcpus := w.residents()
	n := len(vcpus)
	origins, errs := make([][]byte, n), make([]error, n)
	threads := max(1, min(runtime.NumCPU(), 8, n/captureApart))
	var next atomic.Int64
	work := func() {
		for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
			origins[i], errs[i] = w.originOf(vcpus[i])
		}
	}
	var others sync.WaitGroup
	for range threads - 1 {
		others.Go(work)
	}
	work()
	others.Wait()
	for i, v := range vcpus {
		if errs[i] != nil {
			return errs[i]
		}
		s.add(recordVCPU, uint64(v.cpu.ID()), origins[i])
	}
	return nil
}

// capture copies the pages that this part holds to an arena and empties the set. A page that is not here was given away: whoever has it
// captures it. byDisk: pages that equal disk blocks are noted, for the standbys have those blocks. It requires the cutter's mu.
func (w *Worker) capture(number, seq uint64, byDisk bool) (*arena, error) {
	c, p := &w.cutter, w.plane
	p.mu.Lock()
	defer p.mu.Unlock()
	c.found = c.found[:0]
	c.dirty.take(func(page ident.PageNo) {
		if p.holds(page) {
			c.found = append(c.found, page)
		}
	})
	var a *arena
	var err error
	gather := func() { a, err = w.gather(c.found, byDisk) }
	if len(c.found) > manyPages {
		priority.Apart(gather)
	} else {
		gather()
	}
	if err != nil {
		return nil, err
	}
	a.number, a.seq, a.booted = number, seq, c.bootedNow()
	return a, nil
}

// manyPages is how many pages take so long to copy, a tenth of a second or so, that the thread which does it need not be ahead of others.
const manyPages = 1 << 16

// gather copies pages to a free arena. It requires the cutter's mu and the plane's.
func (w *Worker) gather(pages []ident.PageNo, byDisk bool) (*arena, error) {
	c, p := &w.cutter, w.plane
	a, err := c.take(len(pages))
	if err != nil {
		return nil, err
	}
	a.pages = append(a.pages, pages...)
	if byDisk {
		a.disk = p.cache.onDisk(a.disk, a.pages)
	}
	if err := a.fill(p.ram); err != nil {
		a.done()
		return nil, err
	}
	return a, nil
}
