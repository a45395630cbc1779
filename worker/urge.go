package worker

import (
	"context"
	"runtime"
	"sync"

	"github.com/cellvisor/cellvisor/link/priority"
)

// On a busy host a cut would last as long as the scheduler lets threads wait: that of a vCPU which was preempted in the guest and has to run a few
// instructions to leave it, and that which does the cut. So both are real-time threads for as long, as the slicer's is.

// urger puts the threads of kicked vCPUs first on their CPUs until they have stopped. They execute no guest instruction in that time, since the kick
// is there before.
//
//	calm --begin--> urging --all have stopped, or nobody waits for them any more--> calm
type urger struct {
	tids func() []int // of the vCPUs' threads

	mu    sync.Mutex
	urged []int // protected by mu; threads
}

func (u *urger) begin() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, tid := range u.tids() {
		if !priority.Raise(tid) {
			return // not allowed: they come when they come
		}
		u.urged = append(u.urged, tid)
	}
}

// end makes the threads ordinary ones again.
func (u *urger) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, tid := range u.urged {
		priority.Lower(tid)
	}
	u.urged = u.urged[:0]
}

// vcpuThreads returns the threads of this part's vCPUs.
func (w *Worker) vcpuThreads() []int {
	w.vcpuMu.Lock()
	defer w.vcpuMu.Unlock()
	var tids []int
	for _, v := range w.vcpus {
		if tid := int(v.cpu.TID()); tid != 0 {
			tids = append(tids, tid)
		}
	}
	return tids
}

// cutThread runs what a VM stands still for, one piece after another, ahead of all vCPUs.
type cutThread chan func()

// run is the thread, for as long as ctx lives.
func (t cutThread) run(ctx context.Context) {
	runtime.LockOSThread() // and never unlocked: the thread ends with it
	priority.First()
	for {
		select {
		case f := <-t:
			f()
		case <-ctx.Done():
			return
		}
	}
}

// do runs f on the thread and waits until it has; when ctx ends, f may not run.
func (t cutThread) do(ctx context.Context, f func()) {
	done := make(chan struct{})
	select {
	case t <- func() { defer close(done); f() }:
		<-done
	case <-ctx.Done():
	}
}
