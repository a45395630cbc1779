package drill

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// maxKept bounds the records that are kept of one VM for output(vm); counting goes on beyond it.
const maxKept = 1 << 20

// follower reads a VM's output log as it is released, and goes on elsewhere when the server that it reads from dies.
type follower struct {
	vm    string
	clock Clock

	mu      sync.Mutex // protects what follows
	records []uint32
	count   uint64
	last    time.Time     // when the newest record came; before the first: when following began
	longest time.Duration // between two records
	gapAt   time.Time     // when the longest gap ended
	wrong   string        // the first record that is not its own index, in words
}

func follow(ctx context.Context, clock Clock, c Cluster, vm string) *follower {
	f := &follower{vm: vm, clock: clock, last: clock.Now()}
	if clock.Stepped() {
		return f
	}
	go func() {
		for ctx.Err() == nil {
			if err := f.poll(ctx, c); err == nil {
				return // the VM has ended, and all of its output was read
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return f
}

// poll reads what is there; where time passes by itself it goes on until the VM has ended.
func (f *follower) poll(ctx context.Context, c Cluster) error {
	return c.Output(ctx, f.vm, f.length(), f.note)
}

func (f *follower) note(index uint64, record uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.clock.Now()
	if gap := now.Sub(f.last); f.count > 0 && gap > f.longest {
		f.longest, f.gapAt = gap, now
	}
	f.last = now
	switch {
	case f.wrong != "":
	case index != f.count:
		f.wrong = fmt.Sprintf("record %d of its output came where record %d was due", index, f.count)
	case uint64(record) != index:
		f.wrong = fmt.Sprintf("record %d of its output is %d", index, record)
	}
	f.count = index + 1
	if len(f.records) < maxKept {
		f.records = append(f.records, record)
	}
	return nil
}

func (f *follower) length() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count
}

func (f *follower) kept() []uint32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.records)
}

// counting tells what is wrong with the sequence, and for how long nothing has come.
func (f *follower) counting() (wrong string, silent time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wrong, f.clock.Now().Sub(f.last)
}

// summary returns the number of records, the longest gap between two, and when it ended.
func (f *follower) summary() (records uint64, longest time.Duration, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count, f.longest, f.gapAt
}
