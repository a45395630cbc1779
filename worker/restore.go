package worker

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/vmm/uffd"
	"github.com/cellvisor/cellvisor/wire"
)

// restoreHoldWithin bounds how long the vCPUs of a surviving member may take to give up their former life.
const restoreHoldWithin = 5 * time.Second

// restore takes this part back to the last checkpoint of the VM: the standby takes over with what it holds, a surviving member drops all it has
// and begins a new life.
//
//	every member drops its pages -> the epoch starts with the standby's image -> every vCPU has asked the new home for its state -> running
//
// No vCPU gets its state before all have asked. So if another member dies meanwhile the image is still as it was, and the VM goes back to it
// again, with one member less.
func (w *Worker) restore(m wire.WorkerMembers) error {
	began := time.Now()
	w.log.Info().Int64("at_us", int64(bootMicros())).Msg("goes back to the last checkpoint")
	var r *replica
	if m.Image == w.spec.Part {
		var err error
		if r, err = w.image(m); err != nil {
			return err
		}
	} else if err := w.giveUpLife(m); err != nil {
		return err
	}
	w.members.Store(&m)
	if err := w.rewire(m, r); err != nil {
		return err
	}
	remapped := time.Now()
	if r == nil {
		w.guard.restart()
		w.guard.release()
		return nil
	}
	if w.standby.Swap(nil) != nil {
		w.guard.start()
	} else {
		w.guard.restart()
		w.guard.release()
	}
	go w.resume(m, r, began, remapped)
	return nil
}

// image returns the replica that this part takes over with: as a standby, or again if not all members came.
func (w *Worker) image(m wire.WorkerMembers) (*replica, error) {
	if s := w.standby.Load(); s != nil {
		r, err := s.takeOver()
		w.taken = r
		return r, err
	}
	h := w.home.Load()
	if w.taken == nil || h == nil || h.isLoaded() {
		return nil, fmt.Errorf("told to take over, but this part holds no replica")
	}
	return w.taken, w.giveUpLife(m)
}

// resume tells serve that the VM runs again, once it does.
func (w *Worker) resume(m wire.WorkerMembers, r *replica, began, remapped time.Time) {
	h := w.home.Load()
	if h == nil {
		return
	}
	loaded, gone := h.waits()
	select {
	case <-loaded:
	case <-gone:
		return
	}
	done := &wire.WorkerRestored{Epoch: m.Epoch, Checkpoint: r.number,
		RemapMicros: ident.Micros(remapped.Sub(began).Microseconds()), ResumeMicros: ident.Micros(time.Since(remapped).Microseconds()),
		SinceMicros: ident.Micros(time.Since(r.at).Microseconds())}
	w.mu.Lock()
	w.restored = done
	w.mu.Unlock()
	w.log.Info().Uint64("checkpoint", r.number).Int("pages_from_disk", r.left).Dur("took", time.Since(began)).Msg("taken over")
	w.control.send(wire.FromWorker{Restored: done})
}

// giveUpLife stops a surviving member's vCPUs for good in what they were doing, and its devices if it was home.
func (w *Worker) giveUpLife(m wire.WorkerMembers) error {
	w.plane.refusePins()
	if h := w.home.Swap(nil); h != nil {
		h.close()
	}
	if err := w.quitLife(m); err != nil {
		return err
	}
	w.mu.Lock()
	if w.ended != nil && w.ended.Crash { // in the life that is taken back; the next may crash too, and has to be heard then
		w.ended = nil
	}
	w.mu.Unlock()
	return w.track(false)
}

// rewire starts the page protocol of the new epoch; r is what this part took over, nil at the others.
func (w *Worker) rewire(m wire.WorkerMembers, r *replica) error {
	w.cutter.setBooted(m.Booted)
	w.bootedAt.Store(int64(bootMicros()))
	if err := w.placeVCPUs(m); err != nil {
		return err
	}
	if r != nil {
		h, err := w.openHome()
		if err != nil {
			return err
		}
		h.holdsFor(r, m)
		elapsed := time.Since(r.at)
		if w.guard.isPaused() {
			elapsed = 0 // as it was, it did not see time pass
		}
		if err := h.restore(r.device, elapsed); err != nil {
			return err
		}
		if m.Fallback == 0 {
			if err := h.hold(false); err != nil {
				return err
			}
		}
		if w.linux == nil {
			if err := w.restoreDevices(h, r); err != nil {
				return err
			}
		}
		h.setOrigins(r.vcpus)
		w.home.Store(h)
		if w.linux != nil {
			if err := w.takeOverLinux(r); err != nil {
				return err
			}
		}
		w.checkpoints.resume(r.number)
		w.replica.setLineage(m.Epoch, r, m.Fallback)
	}
	if m.Fallback != 0 { // what is written from now on is all that the other standbys lack
		if err := w.track(true); err != nil {
			return err
		}
	}
	if (len(m.Members) > 1 || w.pager != nil) && w.plane.fd == nil {
		if err := w.plane.watch(); err != nil {
			return err
		}
	}
	if w.plane.fd == nil {
		return nil
	}
	if err := w.plane.reset(m.Image, w.spec.Part, w.memConfig()); err != nil {
		return err
	}
	return w.plane.setMembers(m)
}

// placeVCPUs begins a life with the vCPUs that the members of its epoch give this part.
func (w *Worker) placeVCPUs(m wire.WorkerMembers) error {
	for _, member := range m.Members {
		if member.Part == w.spec.Part {
			return w.place(member.VCPUs)
		}
	}
	return nil
}

func (w *Worker) makeVCPUs(ids []ident.VCPU) ([]*vcpu, error) {
	switch {
	case w.isSpanned():
		return w.newSeats(ids)
	case w.linux != nil:
		return w.newProcessors(ids)
	}
	return newVCPUs(w.vm, ids)
}

// reserved returns a userfaultfd that watches nothing yet: one of those that were opened before the jail.
func (p *plane) reserved() (*uffd.Reserved, error) {
	if n := len(p.spares); n > 0 {
		last := p.spares[n-1]
		p.spares = p.spares[:n-1]
		return last, nil
	}
	return uffd.Reserve()
}

// watch begins to watch this part's guest memory with userfaultfd: the VM has other parts from now on.
func (p *plane) watch() error {
	p.mu.Lock()
	err := p.cache.unwatch()
	p.mu.Unlock()
	if err != nil {
		return err
	}
	spare, err := p.reserved()
	if err != nil {
		return err
	}
	fd, err := spare.Watch(p.ram)
	if err != nil {
		return err
	}
	p.fd = fd
	go p.serveFaults()
	return nil
}

// memConfig is how this part's page protocol is set up.
func (w *Worker) memConfig() mem.Config {
	c := mem.Config{Self: w.spec.Part, Pages: w.plane.ram.Pages(), Window: windowOf(w.spec), Stint: stintOf(w.spec), ReadAhead: readAheadOf(w.spec), Observe: observes(w.spec),
		Rehome: observes(w.spec) && localityOf(w.spec).Rehomes() && levelOf(w.spec) >= wire.LevelRehoming, Company: companyOf(w.spec)}
	return withPatience(c, patienceOf(w.spec))
}

// windowOf is how long a page that was just granted is kept: the VM's option "window", or the default.
func windowOf(spec wire.WorkerSpec) ident.Micros {
	if d, err := time.ParseDuration(spec.Options["window"]); err == nil {
		return ident.Micros(d.Microseconds())
	}
	return mem.DefaultWindow
}

// readAheadOf is how many pages are fetched ahead of a sequential scan: the VM's option "read-ahead", or the default.
func readAheadOf(spec wire.WorkerSpec) int {
	if n, err := strconv.Atoi(spec.Options["read-ahead"]); err == nil && n >= 0 && n <= mem.DefaultReadAhead {
		return n
	}
	return mem.DefaultReadAhead
}

// setOrigins says what the vCPUs begin with after a checkpoint was taken over, and when all have asked for it.
func (h *home) setOrigins(vcpus map[ident.VCPU][]byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.origins = make([][]byte, len(h.done))
	for id, origin := range vcpus {
		if int(id) < len(h.origins) {
			h.origins[id] = origin
		}
	}
	h.asked = make([]bool, len(h.done))
}

// note takes notice that a vCPU wants to begin. When all do, they may.
func (h *home) note(vcpu ident.VCPU) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if int(vcpu) >= len(h.asked) || h.closed {
		return
	}
	h.asked[vcpu] = true
	if !slices.Contains(h.asked, false) {
		h.asked = nil
		close(h.loaded)
		if h.board != nil {
			h.board.ReleaseDevices()
		}
	}
}

// isLoaded tells whether vCPUs may have begun.
func (h *home) isLoaded() bool {
	loaded, _ := h.waits()
	select {
	case <-loaded:
		return true
	default:
		return false
	}
}

// resume continues the numbers of a former home's checkpoints.
func (c *checkpoints) resume(number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.number, c.committed = number+1<<32, number // a former home may have cut more than arrived here
}
