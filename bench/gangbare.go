package bench

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/link/futex"
)

// What bare threads are measured with: as many on a CPU as busy VMs are on a slot, which compute in turns.
const (
	bareThreads = crowdBusy / gangSlots
	bareRounds  = 8 // turns of each; the first does not count
)

// bareTurn measures what the host takes for a turn: threads that are bound to a CPU and do nothing but compute for 10 ms each, one after the other, and sleep
// on the clock until they are next. It returns the CPU time of a sleep, in microseconds. Less than that no scheduler can cost that changes who runs every 10 ms.
func bareTurn(ctx context.Context) (float64, error) {
	cpu, err := someCPU()
	if err != nil {
		return 0, err
	}
	const slice = int64(10 * time.Millisecond)
	begin := futex.Now() + 2*slice
	var sum, count atomic.Int64
	var never atomic.Uint32 // nobody changes it
	var all sync.WaitGroup
	for i := range bareThreads {
		all.Go(func() {
			runtime.LockOSThread() // and never unlocked: the thread is bound, and ends here
			var set unix.CPUSet
			set.Set(cpu)
			_ = unix.SchedSetaffinity(0, &set)
			_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
			for round := range bareRounds {
				from := begin + int64(round*bareThreads+i)*slice
				before := threadNanos()
				for futex.Now() < from && ctx.Err() == nil {
					futex.WaitUntil(&never, 0, from)
				}
				if round > 0 {
					sum.Add(threadNanos() - before)
					count.Add(1)
				}
				for futex.Now() < from+slice && ctx.Err() == nil {
				}
			}
		})
	}
	all.Wait()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return quotient(float64(sum.Load())/1000, float64(count.Load())), nil
}

// someCPU is the last of those that this process may use.
func someCPU() (int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 0, fmt.Errorf("which CPUs there are: %w", err)
	}
	for cpu := len(set)*64 - 1; cpu > 0; cpu-- {
		if set.IsSet(cpu) {
			return cpu, nil
		}
	}
	return 0, nil
}

// threadNanos is the CPU time of the calling thread.
func threadNanos() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) // every Linux has that clock
	return ts.Nano()
}
