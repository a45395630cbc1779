package worker

import (
	"errors"
	"fmt"
	"time"

	"github.com/cellvisor/cellvisor/vmm/platform"
)

// A machine that resets itself again and again, as one does whose kernel triple-faults early, is given up: quickResets times in a row, each
// within quickReset of the machine's start.
const (
	quickReset  = 2 * time.Second
	quickResets = 5
)

// resetPace tells a machine that is restarted from one that cannot start.
type resetPace struct {
	began time.Time // of the present life; zero in the first
	quick int
}

// next notes a reset and tells whether the machine may start again.
func (p *resetPace) next(now time.Time) bool {
	if now.Sub(p.began) < quickReset {
		p.quick++
	} else {
		p.quick = 0
	}
	p.began = now
	return p.quick < quickResets
}

// linuxEvent does what the guest asked of its machine, on the thread of the vCPU that did.
func (w *Worker) linuxEvent(e platform.Event) {
	switch e {
	case platform.PowerOff:
		w.guestExit(0)
	case platform.Reset:
		w.resetLinux("the guest asked for a reset", "")
	}
}

// resetLinux starts the machine again in place. The calling vCPU must not enter the guest before the next life.
func (w *Worker) resetLinux(why, registers string) {
	if w.guard.restarting.Swap(true) {
		return // another vCPU was first
	}
	g := w.linux
	g.mu.Lock()
	again := g.resets.next(time.Now())
	g.mu.Unlock()
	if !again {
		w.failGuest(fmt.Errorf("the guest has reset itself %d times in a row within %v of its start; the last time: %s", quickResets, quickReset, why), registers)
		return
	}
	w.log.Info().Str("why", why).Msg("reset: the machine starts again")
	go func() {
		if err := w.renewLinux(); err != nil && !errors.Is(err, errEnded) {
			w.fail(fmt.Errorf("reset: %w", err))
		}
	}()
}

// renewLinux makes the machine as new, once all its vCPUs are out of the guest: devices, memory, processors, kernel.
func (w *Worker) renewLinux() error {
	const patience = time.Second
	for !w.guard.hold(patience) {
		if w.ctx.Err() != nil {
			return errEnded
		}
	}
	defer w.guard.release()
	w.linux.devices().Reset()
	memory := w.plane.ram
	if err := memory.Zero(0, memory.Pages()); err != nil {
		return err
	}
	for i, v := range w.vcpus {
		if err := v.cpu.Complete(); err != nil {
			return err
		}
		if err := w.linux.fresh[i].Restore(v.cpu); err != nil {
			return err
		}
	}
	if err := w.writeKernel(); err != nil {
		return err
	}
	w.guard.restart()
	return nil
}
