package worker

import (
	"math/bits"
	"sync/atomic"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/kvm"
)

// dirtyLogs are KVM's logs of all of a part's memory.
type dirtyLogs []*kvm.DirtyLog

// Enable begins or ends logging.
func (l dirtyLogs) Enable(on bool) error {
	for _, log := range l {
		if err := log.Enable(on); err != nil {
			return err
		}
	}
	return nil
}

// Read calls f for each page that vCPUs have written since the last Read. None may run meanwhile.
func (l dirtyLogs) Read(f func(ident.PageNo)) error {
	for _, log := range l {
		if err := log.Read(f); err != nil {
			return err
		}
	}
	return nil
}

// dirtyPages is a set of pages that may have been written since the last cut, other than by vCPUs under KVM's dirty log: pages that came here
// writable from another part, which may have written them, and pages that devices wrote. Marks may come from several threads.
type dirtyPages struct {
	on    atomic.Bool
	words []atomic.Uint64
}

func newDirtyPages(pages uint64) *dirtyPages {
	return &dirtyPages{words: make([]atomic.Uint64, (pages+63)/64)}
}

// mark adds a page, if marks are wanted at all.
func (d *dirtyPages) mark(page ident.PageNo) {
	if d.on.Load() {
		d.words[page/64].Or(1 << (page % 64))
	}
}

// add adds a page.
func (d *dirtyPages) add(page ident.PageNo) { d.words[page/64].Or(1 << (page % 64)) }

// take calls f for each page in rising order and empties the set.
func (d *dirtyPages) take(f func(ident.PageNo)) {
	for i := range d.words {
		if d.words[i].Load() == 0 {
			continue
		}
		for word := d.words[i].Swap(0); word != 0; word &= word - 1 {
			f(ident.PageNo(64*i + bits.TrailingZeros64(word)))
		}
	}
}
