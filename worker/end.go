package worker

import (
	"fmt"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// guestExit is called by home when the guest ended the VM.
func (w *Worker) guestExit(status uint32) {
	reason := "the guest ended the VM"
	if status != 0 {
		reason = fmt.Sprintf("the guest ended the VM with status %d", status)
	}
	end := wire.WorkerEnded{State: "exited", ExitStatus: status, Reason: reason}
	if !w.replica.hasLastWrites() {
		w.end(end)
		return
	}
	go func() {
		w.replica.lastWrites()
		w.end(end)
	}()
}

// fail ends the VM because something here cannot go on. It may be called with any lock held.
func (w *Worker) fail(err error) {
	go w.end(wire.WorkerEnded{State: "failed", Reason: fmt.Sprintf("%s: %v", w.spec.ServerName, err), Host: true})
}

// failGuest says that the guest cannot go on. A payload may boot again.
func (w *Worker) failGuest(err error, registers string) {
	if w.linux == nil {
		w.crash(err, registers)
		return
	}
	w.end(wire.WorkerEnded{State: "failed", Reason: err.Error(), Registers: registers})
}

// lostPage ends the VM because something touched a page whose latest contents died with another server.
func (w *Worker) lostPage(page ident.PageNo) {
	m := w.members.Load()
	go w.end(wire.WorkerEnded{State: "lost", Reason: fmt.Sprintf("page 0x%x was touched, whose only copy was lost in epoch %d", page, m.Epoch)})
}

// end stops this part's vCPUs for good and tells serve, which stops the other parts. The first end counts; a crash of the
// guest, after which it was to boot again, is none.
func (w *Worker) end(e wire.WorkerEnded) {
	w.mu.Lock()
	first := w.ended == nil || w.ended.Crash
	if first {
		w.ended = &e
	}
	w.mu.Unlock()
	if !first {
		return
	}
	w.log.Info().Str("state", e.State).Uint32("status", e.ExitStatus).Msg(e.Reason)
	w.guard.stop()
	w.cancel()
	w.control.send(wire.FromWorker{Ended: &e})
}

func (w *Worker) hint(part ident.Part, reset bool) {
	if !reset && !w.hints.due(part, bootMicros()) {
		return
	}
	w.log.Warn().Stringer("peer", part).Bool("reset", reset).Msg("a peer does not answer")
	go w.control.send(wire.FromWorker{Hint: &wire.WorkerHint{Part: part, Reset: reset}})
}

func (w *Worker) fenced(on bool) {
	w.log.Warn().Bool("on", on).Int64("lease_until_us", w.guard.leaseUntil.Load()).Int64("at_us", int64(bootMicros())).Msg("fence: the lease has lapsed, or is back")
	w.control.send(wire.FromWorker{Fenced: &wire.WorkerFenced{On: on}})
}

// shutDown ends the vCPUs and closes the files. A vCPU that waits for a page can not be waited for: the end of the process takes it.
func (w *Worker) shutDown() {
	w.guard.stop()
	w.cancel()
	done := make(chan struct{})
	go func() { w.running.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(200 * time.Millisecond):
	}
	if w.plane != nil && w.plane.timer != nil {
		w.plane.close()
	}
	w.closeLinux()
	if h := w.home.Load(); h != nil {
		h.close()
	}
	w.control.listener.Close()
	w.saver.listener.Close()
}

// exit notes that the guest has asked for the end. The end is output, too: if that is held back, it comes with the checkpoint after it. It requires mu.
func (h *home) exit(status uint32) {
	h.exited, h.status = true, status
	h.off.Store(true)
	if !h.holding {
		h.onExit(status)
		return
	}
	select {
	case h.urgent <- struct{}{}:
	default:
	}
}

// switchOff is exit for a Linux machine.
func (h *home) switchOff() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.exited && !h.closed && !h.down {
		h.exit(0)
	}
}
