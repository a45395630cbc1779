package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/wire"
)

// Where the server promises its guests more memory than it has, each part holds no more than serve tells it. What has no room goes to servers that
// lend theirs, or to a file in the worker's directory, which has no name once it is open, so that it is gone when the worker is. The part's memory is watched from the start then, also
// that of a VM that has no other part: whatever is not in memory must fault.

// openPaging makes the paging file and the pager. Nothing is in guest memory yet.
func (w *Worker) openPaging(memory *ram.RAM) error {
	m := w.spec.Memory
	if m == nil {
		return nil
	}
	path := filepath.Join(w.files.dir, wire.WorkerPagingFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("paging file: %w", err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("paging file: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return errors.Join(fmt.Errorf("paging file: %w", err), file.Close())
	}
	if !m.Borrow {
		w.pager = memory.Page(onlyFile{file}, m.LimitBytes, m.FileBytes)
		return nil
	}
	w.backing = newBacking(file, w.fail)
	w.backing.setFile(m.FileBytes)
	w.backing.awake.watch(w.spec.IdleSleep)
	if w.backing.plane, err = w.listenLenders(); err != nil {
		return err
	}
	if err := w.backing.plane.SetMembers(lendEpoch, []wire.WorkerMember{{Part: 0}}); err != nil {
		return err
	}
	w.pager = memory.Page(w.backing, m.LimitBytes, m.FileBytes)
	go w.backing.write()
	go w.backing.keep(w.ctx)
	return nil
}

// onlyFile is a paging file, where nobody lends memory.
type onlyFile struct{ *os.File }

// Free and Expect implement ram.Store.
func (onlyFile) Free(uint32)   {}
func (onlyFile) Expect(uint32) {}

// limits carries out what serve says about memory, the newest word only: letting go of much takes a while.
type limits struct {
	mu      sync.Mutex
	memory  *wire.WorkerMemory  // protected by mu; the next
	lenders *wire.WorkerLenders // protected by mu; the next
	busy    bool                // protected by mu
}

// setMemory takes in how much the part may hold from now on, and setLenders who holds more for it.
func (w *Worker) setMemory(m wire.WorkerMemory) {
	w.limits.next(w, func(l *limits) { l.memory = &m })
}

func (w *Worker) setLenders(m wire.WorkerLenders) {
	w.limits.next(w, func(l *limits) { l.lenders = &m })
}

func (l *limits) next(w *Worker, change func(*limits)) {
	if w.pager == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	change(l)
	if l.busy {
		return
	}
	l.busy = true
	go func() {
		for {
			l.mu.Lock()
			m, n := l.memory, l.lenders
			l.memory, l.lenders, l.busy = nil, nil, m != nil || n != nil
			l.mu.Unlock()
			if m == nil && n == nil {
				return
			}
			if w.backing == nil {
				if m != nil {
					w.pager.SetLimit(m.LimitBytes, m.FileBytes)
				}
				continue
			}
			if m != nil {
				w.backing.setFile(m.FileBytes)
			}
			if n != nil {
				if err := w.backing.setLenders(*n); err != nil {
					w.log.Warn().Err(err).Msg("memory that lenders want back")
				}
			}
			limit := w.pager.Limit()
			if m != nil {
				limit = m.LimitBytes
			}
			w.pager.SetLimit(limit, w.backing.room())
		}
	}()
}

// pagingStats sees to the limit and says what was done. They are nil if the part may hold all there is.
func (w *Worker) pagingStats() *wire.WorkerPaging {
	if w.pager == nil {
		return nil
	}
	w.pager.Settle()
	s := w.pager.Stats()
	out := &wire.WorkerPaging{LimitBytes: s.Limit, FileBytes: s.File, In: s.In, Out: s.Out, Dropped: s.Dropped, Zero: s.Zero, Again: s.Again,
		InMicrosSum: s.InMicros, InMicros: s.InMicrosTypical, Error: s.Error}
	if w.backing != nil {
		w.backing.stats(out)
	}
	return out
}
