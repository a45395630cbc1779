package demo

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// watcher follows a VM's output records and notes when each came.
type watcher struct {
	vm     string
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex // protects what follows
	times []time.Time
	wrong error // a record out of turn, or why following ended
	more  chan struct{}
}

func newWatcher(ctx context.Context, c *api.Client, vm string) *watcher {
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{vm: vm, cancel: cancel, done: make(chan struct{}), more: make(chan struct{}, 1)}
	go func() {
		defer close(w.done)
		var err error
		for ctx.Err() == nil { // while its home dies, nobody has the output for a moment
			if err = c.Output(ctx, vm, uint64(w.count()), true, func(_ uint64, record uint32) error { return w.note(record) }); err == nil || w.broken() {
				break
			}
			_ = pause(ctx, 5*time.Millisecond)
		}
		if ctx.Err() == nil && err != nil {
			w.mu.Lock()
			w.wrong = err
			w.mu.Unlock()
		}
	}()
	return w
}

func (w *watcher) note(record uint32) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if want := len(w.times); int(record) != want {
		w.wrong = fmt.Errorf("record %d came where %d was due", record, want)
		return w.wrong
	}
	w.times = append(w.times, time.Now())
	select {
	case w.more <- struct{}{}:
	default:
	}
	return nil
}

func (w *watcher) broken() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wrong != nil
}

func (w *watcher) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.times)
}

// atLeast waits for n records.
func (w *watcher) atLeast(ctx context.Context, n int, patience time.Duration) error {
	late := time.NewTimer(patience)
	defer late.Stop()
	for w.count() < n {
		select {
		case <-w.more:
		case <-w.done:
			w.mu.Lock()
			defer w.mu.Unlock()
			return fmt.Errorf("following the output of VM %s ended early: %w", w.vm, w.wrong)
		case <-late.C:
			return fmt.Errorf("VM %s emitted %d records in %v, %d were due", w.vm, w.count(), patience, n)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// report returns the longest time between two records since a moment, the present end of the log included.
func (w *watcher) report(since time.Time) (gap time.Duration, records int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wrong != nil {
		return 0, 0, fmt.Errorf("the output of VM %s is not in order: %w", w.vm, w.wrong)
	}
	last := since
	for _, t := range w.times {
		if t.Before(since) {
			continue
		}
		gap, last = max(gap, t.Sub(last)), t
	}
	return max(gap, time.Since(last)), len(w.times), nil
}

func (w *watcher) close() {
	w.cancel()
	<-w.done
}
