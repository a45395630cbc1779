package worker

import (
	"time"

	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/wire"
)

// Output that is held back takes memory, so there is a bound: a guest that makes output faster than checkpoints become safe, or whose standby is
// silent, is paused until output has left. Home decides; it tells the other members again and again, and one that hears nothing any more goes on.
const (
	heldLimit  = 16 << 20                // bytes: the guest is paused; at half of that it goes on
	waitLimit  = 2 * waitingMost         // as heldLimit, blocks of disks
	waitMost   = waitLimit + waitLimit/4 // blocks of one disk, beyond which its device waits: with one request more it is still a batch
	stallEvery = 200 * time.Millisecond
	stallFor   = time.Second
)

// openHome makes the devices of this part, which becomes home.
func (w *Worker) openHome() (*home, error) {
	h, err := newHome(&w.files, w.spec.VCPUs, w.guestExit)
	if err == nil {
		h.onFull = w.heldTooMuch
	}
	return h, err
}

// checkHeld looks whether too much output is held back, or no longer too much. It requires mu.
func (h *home) checkHeld() {
	held, waiting, limit := len(h.console.held)+len(h.output.held), h.disks.waiting(), h.heldLimit
	switch {
	case !h.full && held > h.heldLimit:
		h.full = true
	case !h.full && waiting > h.waitLimit:
		h.full, limit = true, h.waitLimit*disk.BlockBytes
	case h.full && (held <= h.heldLimit/2 && waiting <= h.waitLimit/2 || h.closed):
		h.full = false
	default:
		return
	}
	if h.onFull != nil {
		h.onFull(h.full, limit)
	}
}

// diskFull is called when so many blocks wait that a checkpoint should come soon.
func (h *home) diskFull() {
	select {
	case h.urgent <- struct{}{}:
	default:
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checkHeld()
}

// heldTooMuch pauses the guest on all members while home holds back too much output: more than limit bytes. It must not wait: home's lock is held.
func (w *Worker) heldTooMuch(on bool, limit int) {
	if on == w.stalled.Swap(on) {
		return
	}
	go func() {
		w.log.Warn().Bool("paused", on).Msg("output that is held back has reached its bound, or has left")
		w.control.send(wire.FromWorker{Stalled: &wire.WorkerStalled{On: on, LimitBytes: int64(limit)}})
	}()
	if !on {
		go w.guard.stall(false)
		return
	}
	go func() {
		for w.stalled.Load() && w.ctx.Err() == nil {
			w.guard.stall(true)
			p, change := w.replica.current()
			for _, m := range p.Members {
				if !(p.Standbys | p.Mirrors).Has(m.Part) && m.Part != w.spec.Part {
					_ = w.replica.ask(m.Part, p.Seq, replicaStall)
				}
			}
			select {
			case <-time.After(stallEvery):
			case <-change:
			case <-w.ctx.Done():
			}
		}
		w.guard.stall(false)
	}()
}

// stallForNow pauses this member's vCPUs until home has said nothing more about it for a while.
func (w *Worker) stallForNow() {
	w.guard.stall(true)
	w.stallMu.Lock()
	defer w.stallMu.Unlock()
	if w.stallTimer == nil {
		w.stallTimer = time.AfterFunc(stallFor, func() { w.guard.stall(false) })
		return
	}
	w.stallTimer.Reset(stallFor)
}
