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

// Where the server promises its guests more memory than it has, each part holds no more than serve tells it. What has no room goes to a file in the
// worker's directory, which has no name once it is open, so that it is gone when the worker is. The part's memory is watched from the start then, also
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
	w.pager = memory.Page(file, m.LimitBytes, m.FileBytes)
	return nil
}

// limits carries out what serve says about memory, the newest word only: letting go of much takes a while.
type limits struct {
	mu   sync.Mutex
	next *wire.WorkerMemory // protected by mu
	busy bool               // protected by mu
}

// setMemory takes in how much the part may hold from now on.
func (w *Worker) setMemory(m wire.WorkerMemory) {
	if w.pager == nil {
		return
	}
	l := &w.limits
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next = &m
	if l.busy {
		return
	}
	l.busy = true
	go func() {
		for {
			l.mu.Lock()
			m := l.next
			l.next, l.busy = nil, m != nil
			l.mu.Unlock()
			if m == nil {
				return
			}
			w.pager.SetLimit(m.LimitBytes, m.FileBytes)
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
	return &wire.WorkerPaging{LimitBytes: s.Limit, FileBytes: s.File, In: s.In, Out: s.Out, Dropped: s.Dropped, Zero: s.Zero, Again: s.Again,
		InMicrosSum: s.InMicros, InMicros: s.InMicrosTypical, Error: s.Error}
}
