package tests

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// reader follows a VM's output through all failures, and notes when each record came.
type reader struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	client  *api.Client // protected by mu
	times   []time.Time // protected by mu
	err     error       // protected by mu
	streams []moment    // protected by mu
}

func newReader(ctx context.Context, c *api.Client, vm string) *reader {
	ctx, cancel := context.WithCancel(ctx)
	r := &reader{cancel: cancel, done: make(chan struct{}), client: c}
	go func() {
		defer close(r.done)
		for ctx.Err() == nil {
			c := r.asks()
			r.tell("asks " + c.Addr())
			err := c.Output(ctx, vm, uint64(r.count()), true, r.note)
			r.tell(fmt.Sprintf("stream ends, at last through %s: %v", c.Addr(), err))
			if r.wrong() != nil || err == nil {
				return
			}
			select { // the server that keeps the output is dead, or not yet known to be: ask again
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return r
}

// asks is whom the reader asks next; through goes over to another client. Who closes the former makes it do so at once.
func (r *reader) asks() *api.Client {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.client
}

func (r *reader) through(c *api.Client) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.client = c
}

func (r *reader) note(at uint64, record uint32) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if want := len(r.times); int(at) != want || int(record) != want {
		r.err = fmt.Errorf("a follower got record %d as number %d where %d was due", record, at, want)
		return r.err
	}
	r.times = append(r.times, time.Now())
	return nil
}

func (r *reader) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.times)
}

func (r *reader) wrong() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// await waits until the reader has n records.
func (r *reader) await(t *testing.T, what string, n int) {
	t.Helper()
	late := time.NewTimer(recoverPatience)
	defer late.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for r.count() < n {
		if err := r.wrong(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("%s: the follower has %d records, %d were due", what, r.count(), n)
		}
	}
}

// onItsWay is how long records may still arrive that had left before a fault.
const onItsWay = 30 * time.Millisecond

// longestGap returns the longest time without a record since a moment, and when the first came that had not left before.
func (r *reader) longestGap(since time.Time) (gap, first time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := since
	for _, at := range r.times {
		if at.Before(since) {
			continue
		}
		if first == 0 && at.Sub(since) > onItsWay {
			first = at.Sub(since)
		}
		gap, last = max(gap, at.Sub(last)), at
	}
	return gap, first
}

func (r *reader) close() {
	r.cancel()
	<-r.done
}
