package worker

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/machine"
	"github.com/cellvisor/cellvisor/wire"
)

// A pause lets the guest stand still at an operator's wish, for as long as that takes.
//
//	running --pause--> every vCPU parked, devices at rest, clocks stopped: still --resume--> running
//
// The part goes on to answer its peers, to take checkpoints, to move. No slot is wanted meanwhile. The guest does not see the time pass: the payload
// ABI's clock stands, and so do the timers and the time stamp counter of a Linux machine that is all here. (With vCPUs elsewhere the counters run on,
// since they must stay equal.)
type pauses struct {
	mu    sync.Mutex // protects all below; taken before the guard's and home's
	seq   uint64     // of the last change heard
	done  uint64     // of the last change carried out
	still bool
	since time.Time
	tsc   []uint64 // by vCPU here, what the counters stand at; nil if they run on
}

// setPause carries out a change. It runs on the thread that carries out what serve says.
func (w *Worker) setPause(p wire.WorkerPause) {
	s := &w.pauses
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.Seq <= s.seq {
		return
	}
	s.seq = p.Seq
	if !p.On {
		if err := w.goOn(); err != nil {
			w.fail(err)
			return
		}
		w.guard.pause(false)
		w.saidPaused(p.Seq)
		return
	}
	w.guard.pause(true)
	go w.standStill(p.Seq)
}

// standStill waits until the guest stands still for change seq, and says so.
func (w *Worker) standStill(seq uint64) {
	if !w.guard.awaitPaused(w.allBegun) {
		return
	}
	s := &w.pauses
	over := func() bool { return w.ctx.Err() != nil || !s.wants(w, seq, nil) }
	// A device may wait for a page of a part that is gone, and for what serve says about that: nothing is locked meanwhile.
	if !s.wants(w, seq, func() { w.pauseDevices(true) }) || !w.devicesRest(over) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seq != seq || !w.guard.isPaused() {
		return
	}
	if !s.still {
		s.still, s.since = true, time.Now()
		w.pauseIdle(true)
		if h := w.home.Load(); h != nil {
			h.stand(true)
		}
		if err := s.noteTSC(w); err != nil {
			w.fail(err)
			return
		}
		w.slices.say(true)
	}
	w.saidPaused(seq)
}

// wants tells whether change seq, a pause, is the last one heard, and does something if so, before another can be heard.
func (s *pauses) wants(w *Worker, seq uint64, do func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seq != seq || !w.guard.isPaused() {
		return false
	}
	if do != nil {
		do()
	}
	return true
}

// goOn ends a standstill. It requires mu.
func (w *Worker) goOn() error {
	s := &w.pauses
	if !s.still {
		w.pauseDevices(false) // they may have begun to rest
		return nil
	}
	s.still = false
	if err := s.restoreTSC(w); err != nil {
		return err
	}
	if h := w.home.Load(); h != nil {
		h.stand(false)
	}
	if w.linux != nil {
		if board := w.linux.devices(); board != nil {
			board.StoodStill(time.Since(s.since))
		}
	}
	w.pauseDevices(false)
	w.pauseIdle(false)
	w.slices.say(false)
	return nil
}

// allBegun tells whether every vCPU has loaded the state that it begins its life with. The guard's mu is held.
func (w *Worker) allBegun(life uint64) bool {
	w.vcpuMu.Lock()
	defer w.vcpuMu.Unlock()
	for _, v := range w.vcpus {
		if v.life != life {
			return false
		}
	}
	return true
}

// saidPaused tells serve what has been carried out. It requires mu.
func (w *Worker) saidPaused(seq uint64) {
	w.pauses.done = seq
	w.log.Info().Uint64("seq", seq).Bool("still", w.pauses.still).Msg("paused, or goes on")
	w.control.send(wire.FromWorker{Paused: &wire.WorkerPaused{Seq: seq}})
}

// greeting is what a new serve is told.
func (s *pauses) greeting() (wire.FromWorker, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return wire.FromWorker{Paused: &wire.WorkerPaused{Seq: s.done}}, s.done != 0
}

// boards are those whose devices are here.
func (w *Worker) boards() (all []*machine.Board) {
	if w.linux != nil {
		if board := w.linux.devices(); board != nil {
			all = append(all, board)
		}
	}
	if h := w.home.Load(); h != nil {
		if board := h.boardNow(); board != nil {
			all = append(all, board)
		}
	}
	return all
}

func (w *Worker) pauseDevices(on bool) {
	for _, board := range w.boards() {
		board.PauseDevices(on)
	}
}

// devicesRest waits until devices that are paused rest, unless over.
func (w *Worker) devicesRest(over func() bool) bool {
	return !slices.ContainsFunc(w.boards(), func(b *machine.Board) bool { return !b.AwaitRest(over) })
}

// pauseIdle counts the vCPUs that stand still as idle: they use no slot.
func (w *Worker) pauseIdle(on bool) {
	now := int64(bootMicros())
	w.vcpuMu.Lock()
	defer w.vcpuMu.Unlock()
	for _, v := range w.vcpus {
		switch {
		case on && v.idleFrom.CompareAndSwap(0, now):
			v.standing = true
		case !on && v.standing:
			v.standing = false
			v.idleSum.Add(now - v.idleFrom.Swap(0))
		}
	}
}

// alone tells whether all vCPUs of the VM are here.
func (w *Worker) alone() bool {
	m := w.members.Load()
	return m == nil || len(m.Members) <= 1
}

// noteTSC notes what the counters of a Linux machine stand at. It requires mu.
func (s *pauses) noteTSC(w *Worker) error {
	s.tsc = nil
	if w.linux == nil || !w.alone() {
		return nil
	}
	for _, v := range w.vcpus {
		tsc, err := v.cpu.TSC()
		if err != nil {
			return err
		}
		s.tsc = append(s.tsc, tsc)
	}
	return nil
}

// restoreTSC takes the time that has passed out of the counters, by the same amount on every vCPU. It requires mu.
func (s *pauses) restoreTSC(w *Worker) error {
	if len(s.tsc) == 0 {
		return nil
	}
	now, err := w.vcpus[0].cpu.TSC()
	if err != nil {
		return err
	}
	passed := now - s.tsc[0]
	for _, v := range w.vcpus {
		offset, err := v.cpu.TSCOffset()
		if err != nil {
			return fmt.Errorf("go on after a pause: %w", err)
		}
		if err := v.cpu.SetTSCOffset(offset - passed); err != nil {
			return fmt.Errorf("go on after a pause: %w", err)
		}
	}
	s.tsc = nil
	return nil
}

// bootedAnew notes that a machine which stands still has other counters from now on: it has booted meanwhile.
func (s *pauses) bootedAnew(w *Worker) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.still {
		return nil
	}
	return s.noteTSC(w)
}

// tscOf is what the counter of a vCPU here stands at, if it stands.
func (s *pauses) tscOf(w *Worker, id ident.VCPU) (uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, v := range w.vcpus {
		if v.cpu.ID() == id && s.still && i < len(s.tsc) {
			return s.tsc[i], true
		}
	}
	return 0, false
}

// stand stops the clock, or lets it go on.
func (h *home) stand(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if on == h.stands {
		return
	}
	if on {
		h.base = h.clock()
	} else {
		h.began = time.Now()
	}
	h.stands = on
}
