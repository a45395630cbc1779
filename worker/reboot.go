package worker

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/wire"
)

// A restart in place is a new boot of the guest in the workers that it has. The registry decides it and makes it an epoch of the VM, so that all
// parts agree on what belongs to which boot:
//
//	running --crash--> halted --members of a later boot--> all vCPUs parked, memory Zero, vCPUs at their start --image loaded--> running
//	                      \--stop--> ended
//
// Nothing of the former boot outlives it here: holdings, transactions, pins and device requests are of an epoch that is over. Console, output and
// the clock go on. What a protected VM had held back stays held back until the first checkpoint of the new boot is safe; shares and full copies
// carry the boot that they are of, and a standby that sees a later one forgets all memory first.

// reboot takes this part into the boot that m names. It runs on the thread that carries out what serve says.
func (w *Worker) reboot(m wire.WorkerMembers) error {
	began := time.Now()
	h := w.home.Load()
	if h == nil && m.Home == w.spec.Part {
		return errors.New("told to boot again as the home of a VM that it is not")
	}
	if h != nil {
		h.endLife()
	}
	w.plane.refusePins()
	if err := w.quitLife(m); err != nil {
		return err
	}
	if w.loading != nil {
		<-w.loading
	}
	if w.linux != nil {
		w.linux.restDevices()
		w.restSpan(m)
	}
	w.members.Store(&m)
	if h != nil {
		h.resetDevices()
	}
	if err := w.placeVCPUs(m); err != nil {
		return err
	}
	if err := w.plane.reboot(w.memConfig()); err != nil {
		return err
	}
	if err := w.cutter.reboot(m.Booted); err != nil { // not before: a full copy that is of the new boot must not find the former one's pages
		return err
	}
	if w.spans() {
		if err := w.plane.setMembers(m); err != nil {
			return err
		}
	}
	if h != nil {
		h.beginLife(m.Epoch)
	}
	w.mu.Lock()
	w.ended = nil
	w.mu.Unlock()
	w.log.Info().Uint64("booted", uint64(m.Booted)).Dur("took", time.Since(began)).Msg("boots again")
	w.bootedAt.Store(int64(bootMicros()))
	w.guard.restart()
	w.guard.release()
	if h != nil {
		w.startLoad()
	}
	return nil
}

// startLoad begins to write the image, on a thread of its own. It runs on the thread that carries out what serve says.
func (w *Worker) startLoad() {
	done := make(chan struct{})
	w.loading = done
	go func() {
		defer close(done)
		w.load()
	}()
}

// quitLife stops this part's vCPUs for good in what they were doing. Members that are not in m any more are not waited for.
func (w *Worker) quitLife(m wire.WorkerMembers) error {
	w.guard.restarting.Store(true)
	for _, old := range w.members.Load().Members { // vCPUs that wait for an answer from one of those give up now
		if !slices.ContainsFunc(m.Members, func(n wire.WorkerMember) bool { return n.Part == old.Part }) {
			w.plane.pages.Forget(old.Part)
		}
	}
	w.guard.lookAgain()                       // a cut that waits for such a vCPU ends
	w.release(0)                              // one that was under way
	w.guard.update(func() { w.guard.held++ }) // thrown out, or no vCPU would leave before it runs on what it is given now
	defer w.guard.update(func() { w.guard.held-- })
	w.plane.letGo()
	if !w.guard.hold(restoreHoldWithin) {
		return fmt.Errorf("vCPUs did not stop within %v to begin anew", restoreHoldWithin)
	}
	return nil
}

// crash halts this part because the guest failed by itself, and says so. The registry decides whether it boots again.
func (w *Worker) crash(err error, registers string) {
	up := bootMicros() - ident.Micros(w.bootedAt.Load())
	e := wire.WorkerEnded{State: "failed", Reason: err.Error(), Registers: registers, Crash: true, Booted: w.bootedNow(), UpMicros: up}
	w.mu.Lock()
	first := w.ended == nil
	if first {
		w.ended = &e
	}
	w.mu.Unlock()
	if !first {
		return
	}
	w.log.Info().Uint64("booted", uint64(e.Booted)).Int64("up_us", int64(up)).Msg("the guest crashed: " + e.Reason)
	w.guard.halt()
	w.control.send(wire.FromWorker{Ended: &e})
}

// bootedNow is the boot that this part runs, 0 before the first.
func (w *Worker) bootedNow() ident.Epoch {
	if m := w.members.Load(); m != nil {
		return m.Booted
	}
	return 0
}

// endLife refuses what is asked in the name of the boot that ends, and what comes too early for the next.
func (h *home) endLife() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.down && !h.closed {
		h.down = true
		close(h.gone)
	}
}

// beginLife makes the devices ready for the boot that an epoch began. What the guest has written stays, and the clock runs on.
func (h *home) beginLife(epoch ident.Epoch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone, h.loaded = make(chan struct{}), make(chan struct{})
	h.origins, h.asked = nil, nil
	clear(h.done)
	h.exited, h.status = false, 0
	h.off.Store(false)
	h.down, h.since = false, epoch
}

// waits returns what is closed when the image is loaded, and what is closed when it never will be.
func (h *home) waits() (loaded, gone <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.loaded, h.gone
}

// reboot makes all memory Zero in a new boot: the protocol knows nothing of the former, and no page is written. All vCPUs must be parked.
func (p *plane) reboot(cfg mem.Config) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear := func() error { return p.ram.Zero(0, p.ram.Pages()) }
	if p.cache != nil {
		clear = p.cache.reboot
	}
	if err := clear(); err != nil {
		return err
	}
	p.core, p.epoch, p.timerAt = mem.New(cfg), 0, 0
	p.anything.Store(false)
	p.refusing = false
	return nil
}

// refusePins lets devices that wait for pages give up, until the next boot.
func (p *plane) refusePins() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusing = true
	for token, answer := range p.pins {
		delete(p.pins, token)
		answer <- errNewLife
	}
}

// reboot forgets what was written in the former boot: the next share says that it is of a new one.
func (c *cutter) reboot(booted ident.Epoch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setBooted(booted)
	clear(c.open)
	c.dirty.take(func(ident.PageNo) {})
	if !c.tracking {
		return nil
	}
	return c.log.Read(func(ident.PageNo) {})
}

// keepReset remembers what the vCPU is before its first instruction, so that it can be that again. The time stamp counter is left out: it runs on.
func (v *vcpu) keepReset() error {
	if v.reset != nil {
		return nil
	}
	state, err := v.cpu.State()
	if err != nil {
		return err
	}
	const tsc = 0x10
	kept := state.MSRs[:0]
	for _, m := range state.MSRs {
		if m.Index != tsc {
			kept = append(kept, m)
		}
	}
	state.MSRs = kept
	v.reset = state
	return nil
}

// start makes the vCPU begin as the payload ABI says, whatever it was before.
func (v *vcpu) start(s kvm.Start) error {
	if v.reset == nil {
		if err := v.keepReset(); err != nil {
			return err
		}
	} else if err := v.cpu.SetState(v.reset); err != nil {
		return err
	}
	v.deviceSeq = 0
	return v.cpu.Start(s)
}
